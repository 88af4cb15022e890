"""Our own runs of SCALE-Sim 3.0.0, frozen: they hold the closed form where the package is not installed.

``python tests/golden/test_scale_sim_golden.py --regold`` runs the package again and rewrites ``scale_sim.csv``; rows quoted
from elsewhere (``tool_version`` other than that of the package) are kept as they are.
"""

from __future__ import annotations

import csv
import re
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from hwmodel.backends import scale_sim, systolic
from hwmodel.backends.scale_sim import Product

GOLDEN = Path(__file__).with_name("scale_sim.csv")
COLUMNS = ["op", "quantity", "value", "unit", "rel_tol", "source", "tool_version"]
Row = dict[str, str]


def rows() -> list[Row]:
    with GOLDEN.open(encoding="utf-8", newline="") as lines:
        return list(csv.DictReader(lines))


def product(op: str) -> Product:
    """ "m197 k192 n576 on 128x128 ws" as a product."""
    found = re.fullmatch(r"m(\d+) k(\d+) n(\d+) on (\d+)x(\d+) (\w\w)", op)
    assert found is not None, op
    *sizes, dataflow = found.groups()
    return Product(*(int(size) for size in sizes), dataflow)


def closed_form(row: Row) -> int:
    p = product(row["op"])
    shape = {"m": p.m, "k": p.k, "n": p.n, "rows": p.rows, "cols": p.cols, "dataflow": p.dataflow}
    if row["quantity"] != "compute_cycles":
        return int(getattr(systolic.access_counts(**shape), row["quantity"]))
    rule = "ispass-2020" if row["tool_version"].startswith("1") else "scale-sim"
    return int(systolic.compute_cycles(**shape, rule=rule))


@pytest.mark.parametrize("row", rows(), ids=lambda row: f"{row['tool_version']} {row['op']} {row['quantity']}")
def test_closed_form_equals_frozen_runs(row: Row) -> None:
    assert closed_form(row) == int(row["value"])
    assert float(row["rel_tol"]) == 0


def test_golden_rows_cover_all_dataflows_and_versions() -> None:
    assert {product(row["op"]).dataflow for row in rows()} == {"ws", "os", "is"}
    assert {row["tool_version"] for row in rows()} == {"3.0.0", "1 (ISPASS 2020)"}
    assert len(rows()) > 150


def regold() -> None:
    """Run the package on every operator of its rows."""
    kept = [row for row in rows() if row["tool_version"] != version("scalesim")]
    ops = list(dict.fromkeys(row["op"] for row in rows() if row["tool_version"] == version("scalesim")))
    results = zip(ops, scale_sim.run([product(op) for op in ops], workers=2), strict=True)
    names = ("compute_cycles", *systolic.AccessCounts._fields)
    units = {name: "cycles" if name == "compute_cycles" else "words" for name in names}
    made = [
        dict(
            zip(
                COLUMNS, (op, name, str(getattr(result, name)), units[name], "0", "own run, CALC", version("scalesim")), strict=True
            )
        )
        for op, result in results
        for name in names
        if name == "compute_cycles" or product(op).rows < 64
    ]
    with GOLDEN.open("w", encoding="utf-8", newline="") as lines:
        writer = csv.DictWriter(lines, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows([*made, *kept])


if __name__ == "__main__" and "--regold" in sys.argv:
    regold()
