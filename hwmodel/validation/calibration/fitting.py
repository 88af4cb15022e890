"""Robust least squares on log latency, within bounds, the same every time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np

from hwmodel.backends.base import BoolArray, FloatArray, IntArray
from hwmodel.backends.cards import Card
from hwmodel.validation.calibration.fields import Free
from hwmodel.validation.calibration.observations import Latencies

SOFT = 0.1
"""Log error beyond which a row counts linearly instead of by its square: an outlier does not drag the fit."""
HOLD = 0.003
"""Pull towards the card's own value, per row and unit of log: only what the rows cannot tell feels it."""
STEP = 1e-3
STARTS, TRIED = 2, 32
"""Starts besides the card's own values: the best of a fixed sequence of points that fills the bounds evenly."""
MOST_EVALUATIONS = 30
MOST_ROWS = 1500
"""Fit rows used, evenly spaced in the file where there are more: a bound on time. All rows are scored."""
_DIGITS = 6


@dataclass(frozen=True, eq=False)
class _Problem:
    """Residuals of the fit rows. Points ``x`` hold natural logarithms of the free numbers, shape (n_free,)."""

    found: Latencies
    card: Card
    mode: str
    free: Sequence[Free]
    rows: IntArray

    def residuals(self, points: FloatArray) -> FloatArray:
        """Log of predicted over measured, then the pull: (designs, n_rows + n_free) for points (designs, n_free)."""
        values = {one.path: np.exp(points[:, place]) for place, one in enumerate(self.free)}
        overrides = {one.path: np.clip(values[one.path], one.low, one.high) for one in self.free}
        predicted = self.found.predict(self.card, self.mode, overrides)[:, self.found.of[self.rows]]
        pull = HOLD * np.sqrt(len(self.rows)) * (points - self.start)
        return np.concatenate([np.log(predicted) - np.log(self.found.measured_s[self.rows]), pull], axis=1)

    @property
    def start(self) -> FloatArray:
        return np.log([one.start for one in self.free])

    @property
    def bounds(self) -> tuple[FloatArray, FloatArray]:
        return np.log([one.low for one in self.free]), np.log([one.high for one in self.free])

    def cost(self, points: FloatArray) -> FloatArray:
        """What is minimised, for points (designs, n_free): (designs,)."""
        squares = (self.residuals(points) / SOFT) ** 2
        return cast("FloatArray", (np.sqrt(1.0 + squares) - 1.0).sum(axis=1))

    def jacobian(self, point: FloatArray) -> FloatArray:
        """One-sided differences, all in one call, stepping inwards at an upper bound: (n_rows + n_free, n_free)."""
        steps = np.where(point + STEP > self.bounds[1], -STEP, STEP)
        points = np.concatenate([point[None, :], point + np.diag(steps)])
        values = self.residuals(points)
        return cast("FloatArray", ((values[1:] - values[0]) / steps[:, None]).T)


def fit(found: Latencies, card: Card, mode: str, free: Sequence[Free]) -> dict[str, float]:
    """The values of the free numbers that explain the fit rows best, rounded to six digits.

    Notes
    -----
    Minimises the sum of soft_l1(log(predicted / measured) / 0.1) by scipy's trust region from the card's own values and from
    the two best of 32 points spread over the bounds (Kronecker sequence, Niederreiter 1992), so the result is never worse
    on these rows than what the card says. Latency has kinks (waves, tiles): a local optimum is what one gets.
    """
    from scipy.optimize import least_squares

    problem = _Problem(found, card, mode, free, _rows(~found.held_out))
    low, high = problem.bounds
    spread = low + (high - low) * _points(TRIED, len(free))
    order = np.argsort(problem.cost(spread), kind="stable")[:STARTS]
    ends = [problem.start]
    for start in [problem.start, *spread[order]]:
        solved = least_squares(
            lambda point: problem.residuals(point[None, :])[0],
            np.clip(start, low + 1e-9, high - 1e-9),
            jac=problem.jacobian,
            bounds=(low - 1e-8, high + 1e-8),
            loss="soft_l1",
            f_scale=SOFT,
            max_nfev=MOST_EVALUATIONS,
        )
        ends.append(np.clip(solved.x, low, high))
    best = ends[int(np.argmin(problem.cost(np.array(ends))))]
    return {one.path: _rounded(value, one) for one, value in zip(free, np.exp(best).tolist(), strict=True)}


def _rounded(value: float, one: Free) -> float:
    return min(max(float(f"{value:.{_DIGITS}g}"), one.low), one.high)


def _rows(chosen: BoolArray) -> IntArray:
    rows = np.flatnonzero(chosen)
    picked: IntArray = rows[np.unique(np.linspace(0, len(rows) - 1, MOST_ROWS).round().astype(np.int64))]
    return picked if len(rows) > MOST_ROWS else rows


def _points(count: int, dimensions: int) -> FloatArray:
    """Evenly spread points of the unit cube, (count, dimensions): fractional parts of multiples of root-based steps."""
    root = 2.0
    for _ in range(30):
        root = (1.0 + root) ** (1.0 / (dimensions + 1))
    steps = root ** -np.arange(1, dimensions + 1, dtype=np.float64)
    points: FloatArray = (0.5 + np.arange(1, count + 1)[:, None] * steps) % 1.0
    return points
