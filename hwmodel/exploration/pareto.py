"""Pareto fronts and their knee points, exact for any number of objectives."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]


def pareto_front(losses: npt.ArrayLike) -> npt.NDArray[np.int64]:
    """Rows that no other row beats: as good in every objective and better in one. Equal rows are all kept.

    Parameters
    ----------
    losses : (points, objectives)
        Numbers to minimise; a row with a missing one (NaN) is never on the front.

    Notes
    -----
    ``moocore`` (Fonseca, Lopez-Ibanez et al.) does it in C, by dimension sweep for two and three objectives.
    """
    import moocore

    values = np.asarray(losses, dtype=np.float64)
    rows: npt.NDArray[np.int64] = np.flatnonzero(~np.isnan(values).any(axis=1))
    if len(rows) == 0:
        return rows
    best = np.asarray(moocore.is_nondominated(_finite(values[rows]), keep_weakly=True), dtype=np.bool_)
    return rows[best]


def _finite(values: FloatArray) -> FloatArray:
    """Ranks in place of the values, where infinities would upset arithmetic; the order, hence the front, is the same."""
    if np.isfinite(values).all():
        return values
    return np.stack([np.unique(column, return_inverse=True)[1] for column in values.T], axis=-1).astype(np.float64)


def normalised(front: FloatArray) -> FloatArray:
    """Each objective from 0 (the best on the front) to 1 (the worst); 0 where all are equal."""
    low, high = front.min(axis=0), front.max(axis=0)
    scaled: FloatArray = (front - low) / np.where(high > low, high - low, 1.0)
    return scaled


def knee_distances(front: FloatArray) -> FloatArray:
    """How far each row of a front lies below the plane through the ends, in normalised objectives; negative above it.

    Source: Das, "On characterizing the knee of the Pareto curve", Structural Optimization 18 (1999): the knee is the point
    farthest from the plane through the individual minima. Normalised, those lie at 1 on one axis each, so the plane is
    ``sum = 1``.
    """
    scaled = normalised(front)
    distances: FloatArray = (1.0 - scaled.sum(axis=1)) / np.sqrt(front.shape[1])
    return distances


def knee_points(losses: npt.ArrayLike, count: int = 3, apart: float = 0.1) -> npt.NDArray[np.int64]:
    """Up to ``count`` rows of a front that bend most, the best first, no two nearer than ``apart`` in every objective.

    A front of one row is its own knee. Ties go to the lower row.
    """
    front = np.asarray(losses, dtype=np.float64)
    if len(front) == 0:
        return np.zeros(0, dtype=np.int64)
    scaled = normalised(front)
    chosen: list[int] = []
    order: Any = np.argsort(-knee_distances(front), kind="stable")
    for row in order.tolist():
        if all(np.abs(scaled[row] - scaled[other]).max() >= apart for other in chosen):
            chosen.append(row)
        if len(chosen) == count:
            break
    return np.array(chosen, dtype=np.int64)
