"""Terminal tables: totals are the estimate's, mode and format are always printed, names are no markup."""

from __future__ import annotations

import csv
import io

import pytest
from reporting_fakes import EDGE, GPU, PE, card, estimate, on_four_machines, pruned, score, vit
from rich.console import Console, RenderableType

from hwmodel.reporting.export import csv_text
from hwmodel.reporting.report import csv_text as csv_text_of_report
from hwmodel.reporting.tables import devices_table, estimates_table, trace_table
from hwmodel.reporting.units import si

DENSE = vit()
SPARSE = pruned(DENSE, 0.26)


def _text(renderable: RenderableType, width: int = 200) -> str:
    console = Console(file=io.StringIO(), width=width, no_color=True)
    console.print(renderable)
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_every_estimate_is_a_row_with_its_own_totals() -> None:
    estimates = [*on_four_machines(DENSE), *on_four_machines(SPARSE)]
    text = _text(estimates_table(estimates))
    for one in estimates:
        assert si(one.latency_s, "s") in text
        assert si(one.energy_j, "J") in text
        assert si(one.average_power_w, "W") in text
        assert si(one.executed_macs) in text
        assert f"{one.mode}, {one.dtype}" in text


def test_ratios_are_against_the_dense_estimate_of_the_same_device() -> None:
    options = {"tile": 32, "bytes_per_s": 1e18}
    dense, sparse = estimate(DENSE, PE, **options), estimate(SPARSE, PE, **options)
    factor = f"{dense.latency_s / sparse.latency_s:.2f}×"
    assert factor in _text(estimates_table([dense, sparse]))
    alone = _text(estimates_table([sparse]))
    assert "×" not in alone  # nothing to compare with: no factor is invented
    other = _text(estimates_table([estimate(DENSE, GPU, mode="compiled"), sparse]))
    assert "×" not in other


def test_unmeasured_errors_are_said_to_be_unmeasured() -> None:
    text = _text(estimates_table([estimate(DENSE, GPU, mode="compiled"), estimate(DENSE, PE)]))
    assert "gpu-like, compiled, fp16: latency calibrated, error ±5.1 % median" in text.replace("\N{NO-BREAK SPACE}", " ")
    assert "pe-like, full, fp16: latency assumed, error not measured" in text


def test_the_table_fits_a_terminal_of_eighty_columns() -> None:
    text = _text(estimates_table([*on_four_machines(DENSE), *on_four_machines(SPARSE)]), width=80)
    assert max(len(line) for line in text.splitlines()) <= 80
    assert "gpu-like" in text and "less" in text


def test_labels_name_the_variants_and_are_no_markup() -> None:
    text = _text(estimates_table([estimate(DENSE, PE), estimate(SPARSE, PE)], labels=["[red]dense[/red]", "[bold]"]))
    assert "[red]dense[/red]" in text and "[bold]" in text
    with pytest.raises(ValueError, match="zip"):
        estimates_table([estimate(DENSE, PE)], labels=["a", "b"])


def test_a_change_of_mode_is_printed_on_its_row() -> None:
    text = _text(estimates_table([estimate(DENSE, EDGE, mode="engine+30w"), estimate(DENSE, EDGE, mode="engine+maxn")]))
    assert "engine+30w, fp16" in text and "engine+maxn, fp16" in text


def test_no_estimates_make_an_empty_table() -> None:
    assert "latency" in _text(estimates_table([]))
    assert csv_text([]) == ""


def test_devices_table_names_aliases_default_and_measured_error() -> None:
    other = card("odd-one", aliases=["odd"], scores=[score("latency", "full", ["fp16"], band=False)])
    text = _text(devices_table([GPU, other])).replace("\N{NO-BREAK SPACE}", " ")
    assert "latency compiled: 5.1 % of 31 rows" in text
    assert "= odd" in text
    assert "not measured" in text  # a score that gives no band is none to show here


def test_trace_table_sums_to_the_trace() -> None:
    text = _text(trace_table(SPARSE))
    assert si(SPARSE.macs) in text and si(SPARSE.kept_macs) in text
    last = next(line for line in text.splitlines() if line.strip().startswith("all"))
    assert str(len(SPARSE)) in last


def test_csv_reads_back_to_the_very_totals() -> None:
    estimates = [*on_four_machines(DENSE), estimate(SPARSE, PE, tile=32)]
    rows = list(csv.DictReader(io.StringIO(csv_text(estimates))))
    assert list(rows[0]) == ["model", "device", "mode", "dtype", "batch", "name", *estimates[0].frame().columns]
    assert len(rows) == sum(len(one.trace) for one in estimates)
    for column in ("latency_s", "energy_j", "dram_bytes", "executed_macs"):
        read = [float(row[column]) for row in rows[: len(DENSE)]]
        assert read == estimates[0].frame()[column].tolist()


def test_csv_is_stable_and_keeps_blocks_whole() -> None:
    one = estimate(DENSE, GPU, mode="compiled", fused=True)
    text = csv_text([one])
    assert text == csv_text([one]) == csv_text_of_report([one])
    lines = text.splitlines()
    assert "\r" not in text and text.endswith("\n")
    assert ",patch_embed.proj,matmul,patch_embed,," in lines[1]  # no block outside the encoder: an empty cell, not 0
    assert ",blocks.1.attn.qkv,matmul,qkv,1," in text


def test_csv_tells_variants_apart_by_label() -> None:
    text = csv_text([estimate(DENSE, PE), estimate(SPARSE, PE)], labels=["dense", "a, b"])
    variants = dict.fromkeys(row["variant"] for row in csv.DictReader(io.StringIO(text)))
    assert list(variants) == ["dense", "a, b"]
