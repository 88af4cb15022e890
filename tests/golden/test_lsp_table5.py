"""All twelve rows of LSP's Table 5, from traces written by hand.

``simulators/vita/lsp_table5.csv`` quotes the paper; no tool rewrites it. ``pe`` is the processing element that each row ran on
(paper/README: "DeiT-B rows at 64x32, 32x64 and 64x64 ran on PEs 2, 2 and 4 times larger"; all DeiT-S rows have 512 MACs);
dense rows leave it to the card's rule. Speed-ups are against dense on the same processing element.
"""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from examples import pruned, vit

import hwmodel as hw
from hwmodel.backends import vita
from hwmodel.content import content_folder
from hwmodel.ir.trace import Trace

Row = dict[str, str]

with (content_folder("simulators") / "vita" / "lsp_table5.csv").open(encoding="utf-8", newline="") as _file:
    ROWS: list[Row] = list(csv.DictReader(_file))
WIDTH = {"deit_base_patch16_224": 768, "deit_small_patch16_224": 384, "deit_tiny_patch16_224": 192}
DENSE_TOLERANCE, PRUNED_TOLERANCE = 0.005, 0.05
"""What we promise of each printed figure, relative."""


def dense(row: Row) -> Trace:
    trace = vit(WIDTH[row["model"]], depth=12)
    return trace.replace(design={"vita": {"pe": row["pe"]}}) if row["recipe"] else trace


def asked(row: Row) -> Trace:
    """The trace of one row: every layer with weights at the printed density."""
    block = int(row["block_out"] or 0), int(row["block_in"] or 0)
    return pruned(dense(row), block, float(row["kept_pct"]) / 100) if row["recipe"] else dense(row)


def latency_s(trace: Trace) -> float:
    return hw.estimate(trace, device="vita", mode="paper").latency_s


def tolerance(row: Row) -> float:
    return PRUNED_TOLERANCE if row["recipe"] else DENSE_TOLERANCE


@pytest.mark.parametrize("row", ROWS, ids=[row["recipe"] or f"{row['model']} dense" for row in ROWS])
def test_row_of_table_5(row: Row) -> None:
    ours = latency_s(asked(row))
    assert ours * 1e3 == pytest.approx(float(row["time_ms"]), rel=tolerance(row))
    assert latency_s(dense(row)) / ours == pytest.approx(float(row["speedup"]), rel=tolerance(row))


def test_all_twelve_rows_are_there() -> None:
    assert sorted(bool(row["recipe"]) for row in ROWS) == [False] * 3 + [True] * 9


def test_layers_with_weights_are_the_papers_fifty() -> None:
    layers = [operator for operator in vit(768).operators if operator.parameter]
    assert len(layers) == 1 + 12 * 4 + 1
    assert (layers[0].m, layers[1].m, layers[-1].m) == (14 * 14, 14 * 14 + 1, 1)


def test_dense_rows_are_the_formula() -> None:
    """cycles = sum of m * ceil(n / out) * ceil(k / in) + 770 per layer, at 1 GHz; DeiT-Base on 32 x 32."""
    block = 197 * (72 * 24 + 24 * 24 + 2 * 96 * 24)
    cycles = 196 * 24 * 24 + 12 * block + 1 * 32 * 24 + 50 * 770
    assert latency_s(vit(768)) == pytest.approx(cycles / 1e9, rel=1e-12)


def test_the_backend_knows_no_model() -> None:
    folder = Path(vita.__file__).parent
    code = "".join(path.read_text(encoding="utf-8").lower() for path in sorted(folder.glob("*.py")))
    assert not [name for name in ("deit", "swin", "timm", "patch16") if name in code]
