"""A problem as rectangular arrays in units of its own size, and the choices and moves that every solver makes on them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from hwmodel.allocation.layers import FloatArray, IntArray
from hwmodel.allocation.problem import SLACK, InfeasibleError, Limit, Problem

TIE = 1e-11
"""Part of the scale by which two values must differ to be told apart: ties go to the point that comes first."""
_QUOTIENT_STEPS = 20


@dataclass(frozen=True, eq=False)
class Menu:
    """Distortion over the largest distortion in all, and costs over the dense model's: the same problem in other units is the
    same menu to rounding, and ties are wider than rounding, so it has the same solution.

    Parameters
    ----------
    delta : (layers, points) objective, infinite where there is no point or floors and caps forbid it
    cost : (limits, layers, points), zero there
    most : (limits,) what the layers may cost together
    scale : distortion that 1 stands for
    """

    problem: Problem
    delta: FloatArray
    cost: FloatArray
    most: FloatArray
    scale: float

    @classmethod
    def of(cls, problem: Problem) -> Menu:
        """The menu of a problem.

        Raises
        ------
        InfeasibleError
            A limit below what the choices can reach; the message says what that is.
        """
        width = max(len(layer.pruned) for layer in problem.layers)
        shape = (len(problem.layers), width)
        delta, cost = np.full(shape, np.inf), np.zeros((len(problem.limits), *shape))
        for row, allowed in enumerate(problem.allowed):
            where = np.flatnonzero(allowed)
            delta[row, where] = problem.objective[row][where]
            for number, limit in enumerate(problem.limits):
                cost[number, row, where] = limit.cost.curves[row][where] / _size(limit.cost.dense)
        scale = float(np.where(np.isfinite(delta), delta, 0.0).max(axis=1).sum()) or 1.0
        most = np.array([(limit.most - limit.cost.rest) / _size(limit.cost.dense) for limit in problem.limits])
        found = cls(problem, delta / scale, cost, most + SLACK, scale)
        found._check()
        return found

    @cached_property
    def there(self) -> npt.NDArray[np.bool_]:
        """(layers, points) points that may be chosen."""
        return np.isfinite(self.delta)

    @property
    def rows(self) -> IntArray:
        """(layers,) index of each layer."""
        return np.arange(len(self.delta))

    def choose(self, multipliers: FloatArray) -> IntArray:
        """(layers,) the point of least distortion plus priced cost; of ties the first."""
        value = self.delta + np.tensordot(multipliers, self.cost, axes=1)
        return _first_least(value, self.there)

    def dual(self, multipliers: FloatArray) -> float:
        """Lower bound of the distortion of every choice that keeps the limits (Lagrangian duality)."""
        value = np.where(self.there, self.delta + np.tensordot(multipliers, self.cost, axes=1), np.inf)
        return float(value.min(axis=1).sum() - multipliers @ self.most)

    def spent(self, points: IntArray) -> FloatArray:
        """(limits,) what a choice costs."""
        spent: FloatArray = self.cost[:, self.rows, points].sum(axis=1)
        return spent

    def keeps(self, points: IntArray) -> bool:
        """Whether a choice keeps every limit."""
        return bool((self.spent(points) <= self.most).all())

    def distortion(self, points: IntArray) -> float:
        """Distortion of a choice."""
        return float(self.delta[self.rows, points].sum())

    def _check(self) -> None:
        least = np.where(self.there, self.cost, np.inf).min(axis=2).sum(axis=1)
        for limit, reached, most in zip(self.problem.limits, least, self.most, strict=True):
            if reached > most:
                raise InfeasibleError(f"{limit.asked} is below what is reachable: {_least(self.problem, limit)}")


def _least(problem: Problem, limit: Limit) -> str:
    """The least that a limited quantity can become, in words; the least quotient by Dinkelbach's iteration."""

    def cheapest(curves: Sequence[FloatArray]) -> IntArray:
        pairs = zip(curves, problem.allowed, strict=True)
        return np.array([int(np.argmin(np.where(allowed, curve, np.inf))) for curve, allowed in pairs])

    points = cheapest(limit.cost.curves)
    if limit.quotient is not None:
        above, below = limit.quotient
        for _ in range(_QUOTIENT_STEPS):
            watts = above.total(points) / below.total(points)
            points = cheapest(above.plus(below.scaled(-watts), "").curves)
    fixed = limit.cost.rest / _size(limit.cost.dense)
    told = "" if limit.quotient is not None else f", of which {fixed:.1%} of the dense model cannot be pruned here"
    return f"{limit.told(points)} at least, {limit.cost.name}, by floors and curves{told}"


def _size(dense: float) -> float:
    return abs(dense) or 1.0


def _first_least(value: FloatArray, there: npt.NDArray[np.bool_]) -> IntArray:
    """(layers,) first point whose value is least, to :data:`TIE` of the row's least or of 1e-6, whichever is more."""
    value = np.where(there, value, np.inf)
    least = value.min(axis=1, keepdims=True)
    near: npt.NDArray[np.bool_] = value <= least + TIE * np.maximum(np.abs(least), 1e-6)
    first: IntArray = near.argmax(axis=1)
    return first


def spend(menu: Menu, points: IntArray, weights: FloatArray) -> IntArray:
    """Spend what a choice leaves of its limits: move by move, the point that takes most distortion off per priced cost.

    Moves that cost nothing come first. ``weights`` (limits,) price the costs against each other.
    """
    points = points.copy()
    priced = np.tensordot(weights, menu.cost, axes=1)
    for _ in range(menu.delta.size):
        rows = menu.rows
        gain = menu.delta[rows, points][:, None] - np.where(menu.there, menu.delta, np.inf)
        extra = menu.cost - menu.cost[:, rows, points][:, :, None]
        fits = (extra <= (menu.most - menu.spent(points))[:, None, None]).all(axis=0)
        useful = fits & (gain > TIE)
        if not useful.any():
            break
        price = priced - priced[rows, points][:, None]
        worth = np.where(useful, gain / np.maximum(price, TIE), -np.inf)
        best = int(np.argmax((worth >= worth.max() * (1 - TIE)).ravel()))
        points[best // worth.shape[1]] = best % worth.shape[1]
    return points


def relieve(menu: Menu, points: IntArray) -> IntArray | None:
    """Bring a choice under its limits: move by move, the least distortion per cost taken off; None where no move helps."""
    points = points.copy()
    for _ in range(menu.delta.size):
        over = np.maximum(menu.spent(points) - menu.most, 0.0)
        if not over.any():
            return points
        saved = np.minimum(menu.cost[:, menu.rows, points][:, :, None] - menu.cost, over[:, None, None])
        less = np.where(menu.there, np.tensordot(over, saved, axes=1), -np.inf)
        harm = np.where(menu.there, menu.delta, np.inf) - menu.delta[menu.rows, points][:, None]
        price = np.where(less > 0, np.maximum(harm, TIE) / np.where(less > 0, less, 1.0), np.inf)
        if not np.isfinite(price).any():
            return None
        best = int(np.argmax((price <= price.min() * (1 + TIE)).ravel()))
        points[best // price.shape[1]] = best % price.shape[1]
    return None
