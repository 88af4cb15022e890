"""Scores: relative errors of predictions against measured rows, held-out rows only."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

from hwmodel.backends.cards import Card, Score
from hwmodel.backends.estimates import estimate
from hwmodel.ir.trace import Trace
from hwmodel.validation.measured import MeasuredRow, operator_of

FloatArray = npt.NDArray[np.float64]


def predict_latency_s(card: Card, rows: Iterable[MeasuredRow], mode: str) -> FloatArray:
    """Seconds of each row's operator, each a program of its own. Shape (n_rows,)."""
    traces = (Trace.from_operators([operator_of(row)]) for row in rows)
    return np.array([estimate(trace, device=card, mode=mode).latency_s for trace in traces])


def score(
    predicted: FloatArray,
    measured: Sequence[float],
    *,
    quantity: str,
    mode: str,
    dtypes: Sequence[str],
    against: str,
    band: bool = False,
) -> Score:
    """Summary of ``predicted / measured - 1``: median, mean, 90th percentile and maximum of its size, and its mean."""
    errors = predicted / np.asarray(measured, dtype=np.float64) - 1
    size = np.abs(errors)
    figures = {
        "median": np.median(size),
        "mean": size.mean(),
        "p90": np.quantile(size, 0.9),
        "max": size.max(),
        "bias": errors.mean(),
    }
    rounded = {name: round(float(value), 4) for name, value in figures.items()}
    return Score.model_validate(
        {
            "quantity": quantity,
            "mode": mode,
            "dtypes": list(dtypes),
            "against": against,
            "rows": len(errors),
            "band": band,
            **rounded,
        }
    )
