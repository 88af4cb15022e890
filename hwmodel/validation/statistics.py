"""How far predictions are off: the figures that every comparison shows."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Errors:
    """Relative errors (predicted / measured - 1) of some rows; all but ``bias`` and ``spearman`` are of their size.

    ``spearman`` is the rank correlation of predictions and measurements, None where fewer than three rows or no spread.
    """

    rows: int
    median: float
    mean: float
    p90: float
    max: float
    bias: float
    spearman: float | None

    def document(self) -> dict[str, Any]:
        """As plain JSON values, rounded to four decimals."""
        return {name: round(value, 4) if isinstance(value, float) else value for name, value in asdict(self).items()}


def errors_of(predicted: FloatArray, measured: FloatArray) -> Errors | None:
    """Errors of predictions of shape (n_rows,); None where there are no rows."""
    if len(measured) == 0:
        return None
    relative = predicted / measured - 1.0
    size = np.abs(relative)
    return Errors(
        rows=len(measured),
        median=float(np.median(size)),
        mean=float(size.mean()),
        p90=float(np.quantile(size, 0.9)),
        max=float(size.max()),
        bias=float(relative.mean()),
        spearman=spearman(predicted, measured),
    )


def spearman(first: FloatArray, second: FloatArray) -> float | None:
    """Pearson's correlation of ranks, equal values sharing their mean rank (Spearman, Am. J. Psychol. 15, 1904)."""
    if len(first) < 3 or np.ptp(first) == 0 or np.ptp(second) == 0:
        return None
    return float(np.corrcoef(_ranks(first), _ranks(second))[0, 1])


def _ranks(values: FloatArray) -> FloatArray:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    ranks: FloatArray = (ends - (counts - 1) / 2.0)[inverse]
    return ranks


@dataclass(frozen=True, kw_only=True)
class Distribution:
    """Sizes of relative errors at some quantiles, and the share of rows within some sizes."""

    quantiles: dict[str, float]
    within: dict[str, float]


def distribution_of(predicted: FloatArray, measured: FloatArray) -> Distribution:
    """Quantiles 10 % to 90 %, and the share of rows within 5, 10, 20 and 50 %."""
    size = np.abs(predicted / measured - 1.0)
    levels, sizes = (0.1, 0.25, 0.5, 0.75, 0.9), (0.05, 0.1, 0.2, 0.5)
    return Distribution(
        quantiles={f"p{level * 100:.0f}": round(float(np.quantile(size, level)), 4) for level in levels},
        within={f"{limit:.0%}": round(float((size <= limit).mean()), 4) for limit in sizes},
    )
