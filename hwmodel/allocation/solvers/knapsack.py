"""A knapsack over one tabulated cost, by dynamic programming on whole units of it, as HALP (NeurIPS 2022) does on latency."""

from __future__ import annotations

import numpy as np

from hwmodel.allocation.layers import FloatArray, IntArray
from hwmodel.allocation.problem import Allocation, InfeasibleError, Problem
from hwmodel.allocation.solvers.menu import Menu, spend
from hwmodel.errors import HwmodelError

UNITS = 4000


def knapsack(problem: Problem, *, units: int = UNITS) -> Allocation:
    """Solve over costs rounded up to ``units`` whole units of the limit: never above it, and exact on the rounded table.

    What rounding leaves of the limit is spent by single moves.

    As in HALP a layer keeps its most important groups first (here: the points along its rankings) and weights are whole
    numbers. HALP's schedule of budgets over training is the caller's: solve again at each of them.

    Raises
    ------
    HwmodelError
        More than one limit (take ``lagrangian`` or ``exact``), or fewer than one unit.
    InfeasibleError
        No choice meets the limit.
    """
    if len(problem.limits) != 1:
        raise HwmodelError(f"knapsack takes one budget, found {len(problem.limits)}; solve with 'lagrangian' or 'exact'")
    if units < 1:
        raise HwmodelError(f"units must be at least 1, got {units}")
    menu = Menu.of(problem)
    cost = np.where(menu.there, menu.cost[0], np.inf)
    cheapest = cost.min(axis=1, keepdims=True)
    capacity = float(menu.most[0] - cheapest.sum())
    weights = np.ceil(np.where(menu.there, cost - cheapest, 0.0) / max(capacity, 1e-300) * units - 1e-6)
    weights = np.where(menu.there, np.minimum(np.maximum(weights, 0), units + 1), units + 1).astype(np.int64)
    points = spend(menu, _trace_back(menu.delta, weights, units), np.ones(1))
    if not menu.keeps(points):
        raise InfeasibleError(f"{problem.limits[0].asked}: no choice of whole units keeps it; raise units above {units}")
    return Allocation(problem=problem, solver="knapsack", points=points, bound=None, settings={"units": units})


def _trace_back(delta: FloatArray, weights: IntArray, units: int) -> IntArray:
    """(layers,) points of least distortion whose weights sum to ``units`` at most; a point of weight 0 exists in every layer."""
    best = np.zeros(units + 1)
    taken = np.zeros((len(delta), units + 1), dtype=np.int32)
    for row, (values, sizes) in enumerate(zip(delta, weights, strict=True)):
        found = np.full(units + 1, np.inf)
        for point in _undominated(values, sizes, units):
            size = int(sizes[point])
            candidate = best[: units + 1 - size] + values[point]
            better = candidate < found[size:]
            found[size:][better] = candidate[better]
            taken[row, size:][better] = point
        best = found
    points, left = np.zeros(len(delta), dtype=np.int64), units
    for row in range(len(delta) - 1, -1, -1):
        points[row] = taken[row, left]
        left -= int(weights[row, points[row]])
    return points


def _undominated(values: FloatArray, sizes: IntArray, units: int) -> list[int]:
    """Points that no smaller or equal one beats, by size."""
    order = np.lexsort((np.arange(len(values)), values, sizes))
    order = order[sizes[order] <= units]
    least = np.minimum.accumulate(values[order])
    first = np.concatenate([[True], values[order][1:] < least[:-1]])
    return [int(point) for point in order[first]]
