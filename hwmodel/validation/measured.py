"""Measured rows in one tidy layout, and the operators they stand for.

A file ``measured.csv`` lies beside the card it belongs to. Columns: source, device, dtype, framework, model_or_op, shape,
batch, metric, value, unit, conditions, split. ``split`` is "fit" where a constant of the card was fitted on the row,
else "held-out".
"""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from hwmodel.errors import HwmodelError
from hwmodel.ir.kinds import ROWWISE, family_of
from hwmodel.ir.operators import Operator, attention, elementwise, matmul, reduction, rowwise

_UNITS: Mapping[str, float] = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "W": 1.0, "J": 1.0}
_SPLITS = ("fit", "held-out")


@dataclass(frozen=True, kw_only=True)
class MeasuredRow:
    """One measurement, its value in SI units (seconds, watts or joules)."""

    source: str
    device: str
    dtype: str
    framework: str
    model_or_op: str
    shape: str
    batch: int
    metric: str
    value: float
    conditions: str
    split: str


def read_measured(path: str | Path) -> list[MeasuredRow]:
    """All rows of a measured file.

    Raises
    ------
    HwmodelError
        A missing column, a unit or a split that does not exist, or a value that is no number; told with the line.
    """
    with Path(path).open(encoding="utf-8", newline="") as lines:
        return [_row(f"{path}: line {number}", raw) for number, raw in enumerate(csv.DictReader(lines), start=2)]


def _row(where: str, raw: Mapping[str, str]) -> MeasuredRow:
    try:
        if raw["unit"] not in _UNITS or raw["split"] not in _SPLITS:
            raise HwmodelError(
                f"{where}: unit {raw['unit']!r} and split {raw['split']!r} must be among {[*_UNITS]} and {[*_SPLITS]}"
            )
        texts = {
            name: raw[name]
            for name in ("source", "device", "dtype", "framework", "model_or_op", "shape", "metric", "conditions", "split")
        }
        return MeasuredRow(batch=int(raw["batch"]), value=float(raw["value"]) * _UNITS[raw["unit"]], **texts)
    except KeyError as error:
        raise HwmodelError(f"{where}: the column {error} is missing") from error
    except (TypeError, ValueError) as error:
        raise HwmodelError(f"{where}: {error}") from error


_NUMBER = re.compile(r"(B|M|N|K|rows|cols|elems|heads|seq|headdim)(\d+)")


def operator_of(row: MeasuredRow) -> Operator:
    """The operator that a row timed: a product, a row-wise or elementwise operator, or fused attention.

    Shapes read ``M..xN..xK..`` (a leading ``B`` is a batch), ``rows..xcols..``, ``elems..`` or ``heads.. seq.. headdim..``.

    Raises
    ------
    HwmodelError
        A shape that reads as none of them.
    """
    sizes = {name.lower(): int(size) for name, size in _NUMBER.findall(row.shape)}
    for needed, build in _SHAPES.items():
        if set(needed) <= sizes.keys():
            return build(row, sizes)
    raise HwmodelError(f"{row.source}: cannot read the shape {row.shape!r} of {row.model_or_op!r}")


def _product(row: MeasuredRow, sizes: Mapping[str, int]) -> Operator:
    batch = sizes.get("b", 1)
    return matmul(m=sizes["m"], k=sizes["k"], n=sizes["n"], batch=batch, dtype=row.dtype)


def _rows(row: MeasuredRow, sizes: Mapping[str, int]) -> Operator:
    if row.model_or_op in ROWWISE:
        return rowwise(row.model_or_op, rows=sizes["rows"], cols=sizes["cols"], dtype=row.dtype)
    return _elementwise(row, sizes["rows"] * sizes["cols"], two_operands={"add", "sub", "mul", "div"})


def _elements(row: MeasuredRow, sizes: Mapping[str, int]) -> Operator:
    """FlagPerf multiplies and divides by a scalar: its times are those of one read and one write."""
    if family_of(row.model_or_op) == "reduction":
        return reduction(row.model_or_op, inputs=sizes["elems"], outputs=1, dtype=row.dtype)
    return _elementwise(row, sizes["elems"], two_operands={"add", "sub"})


def _elementwise(row: MeasuredRow, elements: int, two_operands: set[str]) -> Operator:
    return elementwise(row.model_or_op, elements=elements, inputs=2 if row.model_or_op in two_operands else 1, dtype=row.dtype)


def _attention(row: MeasuredRow, sizes: Mapping[str, int]) -> Operator:
    causal = row.model_or_op.endswith("causal")
    seq = sizes["seq"]
    return attention(
        batch=row.batch, heads=sizes["heads"], queries=seq, keys=seq, head_dim=sizes["headdim"], causal=causal, dtype=row.dtype
    )


_SHAPES: Mapping[tuple[str, ...], Callable[[MeasuredRow, Mapping[str, int]], Operator]] = {
    ("m", "n", "k"): _product,
    ("rows", "cols"): _rows,
    ("elems",): _elements,
    ("heads", "seq", "headdim"): _attention,
}
