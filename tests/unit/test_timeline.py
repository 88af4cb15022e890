"""Timelines: valid trace events whose slices add up to the estimate, tracks that follow from the model."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import pairwise
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from examples import pruned, vit
from reporting_fakes import on_four_machines

import hwmodel as hw
from hwmodel import cli
from hwmodel.backends.cards import Card, shipped_cards
from hwmodel.backends.registry import get_backend
from hwmodel.errors import HwmodelError
from hwmodel.reporting.timeline import timeline, timeline_text
from hwmodel.reporting.timeline_clock import Clock
from hwmodel.reporting.variants import Case

CARDS = list(shipped_cards().values())
FIRST = {card.backend: card for card in reversed(CARDS)}
DESIGN = {"vita": {"pe": "32x32"}}
METADATA = {
    "process_name": ("name", str), "thread_name": ("name", str), "process_labels": ("labels", str),
    "process_sort_index": ("sort_index", int), "thread_sort_index": ("sort_index", int),
}  # fmt: skip
"""Metadata events of the trace-event format, with the one argument each must have."""
Event = dict[str, Any]


def case(trace: hw.Trace, device: Any, label: str = "dense", **choices: Any) -> Case:
    return Case(label, hw.estimate(trace.replace(design=DESIGN), device=device, **choices))


def check_schema(document: dict[str, Any]) -> None:
    """The public format ("Trace Event Format", JSON object format), for the phases X, C and M."""
    assert isinstance(document["traceEvents"], list)
    assert document["displayTimeUnit"] in {"ms", "ns"}
    for event in document["traceEvents"]:
        assert set(event) - {"cat", "dur"} == {"ph", "name", "pid", "tid", "ts", "args"}
        assert isinstance(event["name"], str) and event["name"]
        assert all(type(event[field]) is int for field in ("pid", "tid"))
        assert isfinite(event["ts"]) and event["ts"] >= 0
        {"X": check_slice, "C": check_counter, "M": check_metadata}[event["ph"]](event)


def check_slice(event: Event) -> None:
    assert isfinite(event["dur"]) and event["dur"] >= 0
    assert isinstance(event["cat"], str) and isinstance(event["args"], dict)


def check_counter(event: Event) -> None:
    assert event["args"] and all(isfinite(value) and value >= 0 for value in event["args"].values())


def check_metadata(event: Event) -> None:
    key, kind = METADATA[event["name"]]
    assert set(event["args"]) == {key} and isinstance(event["args"][key], kind)


def slices(document: dict[str, Any], pid: int = 100) -> dict[int, list[Event]]:
    """Slices of a process by track."""
    found: dict[int, list[Event]] = {}
    for event in document["traceEvents"]:
        if event["ph"] == "X" and event["pid"] == pid:
            found.setdefault(event["tid"], []).append(event)
    return found


def end_ns(event: Event) -> int:
    """Where viewers end a slice: they round start and length apart from each other."""
    return round(event["ts"] * 1e3) + round(event["dur"] * 1e3)


def tracks(document: dict[str, Any], pid: int = 100) -> dict[str, int]:
    """Track numbers of a process by name."""
    return {
        event["args"]["name"]: event["tid"]
        for event in document["traceEvents"]
        if event["ph"] == "M" and event["name"] == "thread_name" and event["pid"] == pid
    }


def integral(document: dict[str, Any], name: str) -> float:
    """A counter of the first process times the seconds it holds."""
    steps = [
        (event["ts"], *event["args"].values()) for event in document["traceEvents"] if event["ph"] == "C" and event["name"] == name
    ]
    return sum(value * (after - before) * 1e-6 for (before, value), (after, _) in pairwise(steps))


def modes() -> list[Any]:
    """Every card in its default mode, and every mode of one card per backend."""
    every = [(card, None) for card in CARDS]
    every += [(card, mode) for card in FIRST.values() for mode in get_backend(card.backend).modes if mode != "scale-sim"]
    return [pytest.param(card, mode, id=f"{card.name}-{mode or 'default'}") for card, mode in every]


@pytest.mark.parametrize(("card", "mode"), modes())
def test_slices_add_up_to_the_estimate_on_every_machine(card: Card, mode: str | None) -> None:
    priced = case(pruned(vit(192, depth=2), (32, 32), 0.3), card, mode=mode)
    document = json.loads(timeline_text(timeline([priced])))
    check_schema(document)
    by_track = slices(document)
    main = by_track[100]
    assert sum(event["dur"] for event in main) == pytest.approx(priced.latency_s * 1e6, rel=1e-12)
    assert np.sum([event["args"]["latency_s"] for event in main]) == pytest.approx(priced.latency_s, rel=1e-15)
    assert all(end_ns(before) == round(after["ts"] * 1e3) for before, after in pairwise(main))
    told = document["otherData"]["estimates"][0]
    assert {event["name"] for event in main} | set(told["without_slice"]) == {one.name for one in priced.trace.operators}
    for track in by_track.values():
        assert all(end_ns(before) <= round(after["ts"] * 1e3) for before, after in pairwise(track)), "viewers drop overlaps"
        assert end_ns(track[-1]) <= priced.latency_s * 1e9 + len(track)
    assert integral(document, "power (W)") == pytest.approx(priced.energy_j, rel=1e-12)
    assert integral(document, "DRAM bandwidth (B/s)") == pytest.approx(float(priced.estimate.dram_bytes), rel=1e-12)
    assert set(tracks(document)) == set(told["tracks"]) and all(len(what) > 20 for what in told["tracks"].values())


def test_units_of_a_product_on_the_tpu_by_hand() -> None:
    """One product of 1024 x 768 by 768 x 3072 in bf16 on two 128x128 arrays: 6 x 24 tiles of 1024 rows."""
    trace = hw.Trace.from_operators([hw.matmul(m=1024, k=768, n=3072, dtype="bf16", name="fc1")])
    priced = case(trace, "tpu-v3")
    document = timeline([priced])
    found, numbers = slices(document), tracks(document)
    values = priced.card.values()
    mxu_s = 6 * 24 * 1024 / (2 * values["clock_hz"] * values["mxu_efficiency"])
    hbm_s = 2 * (1024 * 768 + 768 * 3072 + 1024 * 3072) / values["product_hbm_bytes_per_s"]
    assert found[numbers["MXU"]][0]["args"]["busy_s"] == pytest.approx(mxu_s)
    assert found[numbers["DMA (HBM)"]][0]["dur"] == pytest.approx(hbm_s * 1e6, abs=1e-3)
    assert "vector unit" not in numbers


def test_units_of_a_product_on_a_gpu_by_hand() -> None:
    trace = hw.Trace.from_operators([hw.matmul(m=4096, k=4096, n=4096, name="big")])
    priced = case(trace, "a100-40gb", mode="kernel", dtype="fp16")
    document = timeline([priced])
    found, numbers = slices(document), tracks(document)
    peak = 108 * 1024 * priced.card.values()["clock_hz"]  # SMs, fp16 MACs per clock and SM (NVIDIA A100 white paper)
    assert found[numbers["tensor cores"]][0]["dur"] == pytest.approx(4096**3 / peak * 1e6, abs=1e-3)
    assert found[numbers["DRAM"]][0]["args"]["busy_s"] == pytest.approx(3 * 4096**2 * 2 / priced.card.values()["dram_bytes_per_s"])
    launch = found[numbers["launch"]][0]
    assert found[numbers["tensor cores"]][0]["ts"] == pytest.approx(launch["dur"], abs=1e-3), "arithmetic starts after the launch"
    assert found[100][0]["args"]["m"] == 4096 and found[100][0]["args"]["limited_by"] == "compute"


def test_fp32_products_of_a_gpu_run_on_cuda_cores() -> None:
    numbers = tracks(timeline([case(vit(192, depth=1), "a100-40gb", dtype="fp32", mode="eager")]))
    assert "CUDA cores (products)" in numbers and "tensor cores" not in numbers and "host gap" in numbers


def test_a_softmax_on_vita_runs_beside_its_products() -> None:
    """It begins with the first finished head of the scores, while they go on, and has no slice of its own."""
    document = timeline([case(vit(192, depth=1), "vita")])
    found, numbers = slices(document), tracks(document)
    scores = next(event for event in found[100] if event["name"] == "blocks.0.attn.scores")
    softmax = next(event for event in found[numbers["special functions"]] if event["name"] == "blocks.0.attn.softmax")
    setup_us = 0.770  # of a layer: 770 cycles at 1 GHz (LSP Table 5); then three heads, one after the other on one PE
    assert softmax["ts"] - scores["ts"] == pytest.approx(setup_us + (scores["dur"] - setup_us) / 3, rel=0.02)
    assert document["otherData"]["estimates"][0]["without_slice"]["blocks.0.attn.softmax"] == "runs beside others"


@pytest.mark.parametrize("card", CARDS, ids=lambda card: card.name)
def test_no_unit_works_longer_than_there_is_time(card: Card) -> None:
    """Within its own slice on machines where operators do not overlap; in the whole on ViTA, where they do."""
    trace = pruned(vit(384, depth=1, batch=8), (64, 64), 0.1)
    for dtype in card.dtypes:
        priced = case(trace, card, dtype=dtype).estimate
        tell = get_backend(card.backend).units  # type: ignore[attr-defined]
        for name, unit in tell(priced.workload, card.resolve(priced.mode, {}), priced.options).items():
            assert (unit.busy_s >= 0).all() and np.isfinite(unit.start_s).all(), name
            assert unit.busy_s.sum() <= priced.latency_s * (1 + 1e-9), name
            if card.backend != "vita":
                assert (unit.start_s >= 0).all(), name
                assert (unit.start_s + unit.busy_s <= priced.costs.latency_s * (1 + 1e-9)).all(), name


def test_dense_is_above_pruned_and_shapes_and_masks_are_told() -> None:
    dense = vit(192, depth=1)
    document = timeline([case(dense, "vita"), case(pruned(dense, (32, 32), 0.5), "vita", "half")])
    names = [event["args"]["name"] for event in document["traceEvents"] if event["name"] == "process_name"]
    order = [event["args"]["sort_index"] for event in document["traceEvents"] if event["name"] == "process_sort_index"]
    assert names == ["1. vita: dense (full, int8)", "2. vita: half (full, int8)"] and order == sorted(order)
    fc1 = next(event for event in slices(document, 200)[200] if event["name"] == "blocks.0.mlp.fc1")
    shape = {"kind": "matmul", "role": "fc1", "batch": 1, "m": 197, "k": 192, "n": 768, "block_shape": "32x32", "kept_blocks": 0.5}
    assert fc1["args"].items() >= shape.items()


@pytest.mark.parametrize("card", CARDS, ids=lambda card: card.name)
def test_perfetto_shows_dense_above_pruned(card: Card) -> None:
    """Its order: more slices first, then by name. On ViTA pruning leaves functions without a product to run beside."""
    dense = vit(192, depth=2)
    document = timeline(
        [case(dense, card), *(case(pruned(dense, (32, 32), share), card, str(share)) for share in (0.3, 0.05, 0.0))]
    )
    names = {event["pid"]: event["args"]["name"] for event in document["traceEvents"] if event["name"] == "process_name"}
    for pid, told in zip(names, document["otherData"]["estimates"], strict=True):
        assert sum(event["dur"] for event in slices(document, pid)[pid]) == pytest.approx(told["latency_s"] * 1e6, rel=1e-12)
    counts = {pid: sum(len(track) for track in slices(document, pid).values()) for pid in names}
    assert min(names, key=lambda pid: (-counts[pid], names[pid])) == 100


def test_rows_carried_by_another_kernel_are_named_there() -> None:
    document = timeline([case(vit(192, depth=1), "a100-40gb")])
    fused = next(event for event in slices(document)[100] if event["name"] == "blocks.0.attn.scores")
    assert fused["args"]["carries"] == ["blocks.0.attn.softmax", "blocks.0.attn.context"]
    reason = document["otherData"]["estimates"][0]["without_slice"]["blocks.0.attn.softmax"]
    assert reason == "carried by blocks.0.attn.scores"


def test_a_backend_that_does_not_tell_has_the_main_sequence_only() -> None:
    priced = Case("dense", on_four_machines(vit(192, depth=1))[0])
    document = timeline([priced])
    check_schema(document)
    assert list(tracks(document)) == ["operators"]
    assert sum(event["dur"] for event in slices(document)[100]) == pytest.approx(priced.latency_s * 1e6, rel=1e-15)


def test_an_estimate_that_costs_nothing_is_an_empty_timeline() -> None:
    trace = hw.Trace.from_operators([hw.softmax(rows=4, cols=4, name="soft")])
    document = timeline([case(trace, "tpu-v3", mode="systolic")])
    check_schema(document)
    assert {event["ph"] for event in document["traceEvents"]} == {"M"}
    assert document["otherData"]["estimates"][0]["without_slice"] == {"soft": "costs no time"}


def test_nothing_to_draw_is_refused() -> None:
    with pytest.raises(HwmodelError, match="at least one estimate"):
        timeline([])
    sweep = hw.estimate(vit(192, depth=1), device="tpu-v3", overrides={"clock_hz": [1e9, 2e9]})
    with pytest.raises(HwmodelError, match="sweep over designs"):
        timeline([Case("dense", sweep)])


def test_edges_are_whole_nanoseconds_and_end_at_the_exact_total() -> None:
    """Ten slices of 10.3 ns: nine edges rounded, the last not."""
    edges = Clock.of(np.full(10, 10.3e-9)).edges_ns
    assert edges[:-1].tolist() == [0, 10, 21, 31, 41, 52, 62, 72, 82, 93]
    assert edges[-1] == pytest.approx(103.0, rel=1e-12)


def test_operators_without_time_at_the_end_leave_the_total_to_the_last_that_has_some() -> None:
    assert Clock.of(np.array([1.25e-9, 0.0])).edges_ns.tolist() == pytest.approx([0, 1.25, 1.25])


# --- the command --------------------------------------------------------------------------------------------------


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    monkeypatch.chdir(tmp_path)
    hw.save_trace(vit(192, depth=1), "trace.json")

    def outcome(*arguments: str) -> tuple[int, str, str]:
        status = 0
        try:
            cli.main(["timeline", *arguments])
        except SystemExit as ended:
            status = ended.code if isinstance(ended.code, int) else 1
        return status, *capsys.readouterr()

    return outcome


def test_the_command_writes_the_same_bytes_twice(run: Callable[..., tuple[int, str, str]]) -> None:
    asked = ("trace.json", "--device", "vita,tpu-v3,a100-40gb,agx-orin-64gb", "-o")
    assert run(*asked, "a.json")[0] == run(*asked, "b.json")[0] == 0
    assert Path("a.json").read_bytes() == Path("b.json").read_bytes()
    document = json.loads(Path("a.json").read_text())
    check_schema(document)
    assert [one["device"] for one in document["otherData"]["estimates"]] == ["vita", "tpu-v3", "a100-40gb-sxm", "agx-orin-64gb"]


def test_the_command_draws_dense_above_each_recipe(run: Callable[..., tuple[int, str, str]]) -> None:
    head = 'schema_version = 1\nmodel = "a ViT of width 192"\nsource = "a test"\n'
    Path("half.toml").write_text(head + '[[layers]]\nmatch = ["blocks.*.mlp.fc?"]\nblock = [32, 32]\ndensity = 0.5\n')
    assert run("trace.json", "--device", "vita", "--recipe", "half.toml", "-o", "a.json")[0] == 0
    told = json.loads(Path("a.json").read_text())["otherData"]["estimates"]
    assert [one["variant"] for one in told] == ["dense", "half"]
    assert told[1]["latency_s"] < told[0]["latency_s"]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("trace.json", "--device", "vita", "-o", "a.html"), "a.html: expected a file name that ends in .json"),
        (("trace.json", "--device", "vita", "-o", "no/a.json"), "does not exist; create it first"),
        (("trace.json", "--device", "vitta", "-o", "a.json"), "unknown device 'vitta'"),
        (("trace.json", "--device", ",", "-o", "a.json"), "at least one device"),
        (("trace.json", "--device", "vita"), "--output"),
        (("missing.json", "--device", "vita", "-o", "a.json"), "missing.json"),
        (("trace.json", "--device", "vita", "--set", "clock_hz=[1e9, 2e9]", "-o", "a.json"), "expected one value"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(
    run: Callable[..., tuple[int, str, str]], arguments: tuple[str, ...], told: str
) -> None:
    status, out, err = run(*arguments)
    assert (status, out) == (2, ""), err
    assert err.startswith("hwmodel: error: ") and err.count("\n") == 1 and told in err
    assert [path.name for path in Path().iterdir()] == ["trace.json"]
