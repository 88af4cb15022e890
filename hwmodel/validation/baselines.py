"""What a model must beat: the naive roofline, and the same with one efficiency and one constant fitted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from hwmodel.backends.cards import Card
from hwmodel.ir.operators import Operator

FloatArray = npt.NDArray[np.float64]

_PEAKS = (
    ("sm_count", "macs_per_clock_sm", "clock_hz"),
    ("array_rows", "array_cols", "mxus", "clock_hz"),
    ("cores", "macs_per_cycle_core", "clock_hz"),
)
_MEMORY = ("dram_bytes_per_s", "product_hbm_bytes_per_s")
LEAST_ROWS = 4
"""Rows that one efficiency and one constant are fitted to, at the least."""


def roofline(operators: Sequence[Operator], card: Card, power_mode: str | None = None) -> FloatArray | None:
    """``max(macs / peak, bytes / bandwidth)`` of each operator, (n_ops,) seconds; None where the card states neither.

    Every operand and result crosses the memory once. Source: Williams, Waterman and Patterson, CACM 52(4), 2009, on the
    data sheet's figures, which is how most people estimate.
    """
    values = card.values(power_mode)
    bandwidth = next((float(values[name]) for name in _MEMORY if name in values), None)
    peaks = {dtype: _peak(values, dtype) for dtype in {operator.dtype or card.default_dtype for operator in operators}}
    if bandwidth is None or None in peaks.values():
        return None
    moved = np.array([operator.input_bytes + operator.output_bytes + operator.weight_bytes for operator in operators])
    rates = np.array([cast("float", peaks[operator.dtype or card.default_dtype]) for operator in operators])
    macs = np.array([operator.shape_macs for operator in operators], dtype=np.float64)
    floor: FloatArray = np.maximum(macs / rates, moved / bandwidth)
    return floor


def _peak(values: Mapping[str, Any], dtype: str) -> float | None:
    """MACs per second in ``dtype``."""
    fields = next((names for names in _PEAKS if all(name in values for name in names)), None)
    if fields is None:
        return None
    numbers = [_in_format(values[name], dtype) for name in fields]
    known = [number for number in numbers if number is not None]
    return prod(known) if len(known) == len(numbers) else None


def _in_format(value: Any, dtype: str) -> float | None:
    """A number, or the entry of a table by format; autocast computes in its 16-bit half."""
    found = value.get(dtype, value.get(dtype.removeprefix("amp-"))) if isinstance(value, dict) else value
    return None if found is None else float(found)


def two_parameters(floor: FloatArray, measured: FloatArray, fit: npt.NDArray[np.bool_]) -> FloatArray | None:
    """``constant + floor / efficiency``, both fitted on the rows of ``fit`` by robust least squares on the logarithm.

    (n_rows,) seconds for every row; None where there are fewer than :data:`LEAST_ROWS` to fit.
    """
    if fit.sum() < LEAST_ROWS:
        return None
    from scipy.optimize import least_squares

    def predicted(point: FloatArray, rows: FloatArray) -> FloatArray:
        return cast("FloatArray", np.exp(point[0]) + rows / np.exp(point[1]))

    solved = least_squares(
        lambda point: np.log(predicted(point, floor[fit])) - np.log(measured[fit]),
        np.array([np.log(measured[fit].min() / 2), np.log(0.7)]),
        bounds=(np.log([1e-9, 0.005]), np.log([1.0, 2.0])),
        loss="soft_l1",
        f_scale=0.1,
    )
    return predicted(solved.x, floor)
