"""The reference solver: the multiple-choice knapsack to proven optimality, with the gap where a search limit ends it early.

Points whose reduced cost alone exceeds the gap of a Lagrangian solution cannot be in a better one and are left out beforehand.
One limit is then solved by dynamic programming over undominated sums, several as a mixed-integer program by HiGHS.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from hwmodel.allocation.layers import FloatArray, IntArray
from hwmodel.allocation.problem import Allocation, InfeasibleError, Problem
from hwmodel.allocation.solvers.lagrangian import solve_menu
from hwmodel.allocation.solvers.menu import Menu

NODES = 2_000
"""Branch-and-bound nodes after which the best choice so far is returned with its gap: a count, so that results repeat."""
STATES = 200_000
"""Sums that dynamic programming keeps at most before branch and bound takes over."""
_MARGIN = 1e-12
_RELATIVE_GAP = 1e-5


class _Found(NamedTuple):
    """A choice, a lower bound of every choice (both in the menu's scale), and the method."""

    points: IntArray
    bound: float
    method: str


def exact(problem: Problem, *, nodes: int = NODES, states: int = STATES) -> Allocation:
    """Solve to proven optimality, or as far as ``states`` sums and then ``nodes`` of branch and bound go: see the gap.

    Raises
    ------
    InfeasibleError
        No choice meets all limits; the message says by how much they would have to be raised together.
    """
    menu = Menu.of(problem)
    try:
        prices, known = solve_menu(menu)
    except InfeasibleError:
        found = _branch(menu, menu.there, np.zeros(len(menu.most)), None, nodes)
    else:
        found = _improved(menu, prices, known, nodes, states)
    settings = {"method": found.method, "nodes": nodes, "states": states}
    return Allocation(problem=problem, solver="exact", points=found.points, bound=found.bound * menu.scale, settings=settings)


def _improved(menu: Menu, prices: FloatArray, known: IntArray, nodes: int, states: int) -> _Found:
    candidates = _candidates(menu, prices, menu.distortion(known))
    if len(menu.most) == 1:
        found = _sums(menu, candidates, float(prices[0]), known, states)
        if found is not None:
            return found
    return _branch(menu, candidates, prices, known, nodes)


def _candidates(menu: Menu, prices: FloatArray, known: float) -> npt.NDArray[np.bool_]:
    """Points that a choice better than ``known`` may have: dual bound plus reduced cost stays below it."""
    value = np.where(menu.there, menu.delta + np.tensordot(prices, menu.cost, axes=1), np.inf)
    reduced = value - value.min(axis=1, keepdims=True)
    return np.asarray(menu.dual(prices) + reduced <= known + _MARGIN) & menu.there


def _sums(menu: Menu, candidates: npt.NDArray[np.bool_], price: float, known: IntArray, states: int) -> _Found | None:
    """Layer by layer all sums of cost and distortion that may still become better than ``known``; None where they are too many."""
    cost, delta = np.where(candidates, menu.cost[0], np.inf), np.where(candidates, menu.delta, np.inf)
    cheapest = _after(cost.min(axis=1))
    bounded = _after((delta + price * np.where(candidates, menu.cost[0], 0.0)).min(axis=1))
    most, best = float(menu.most[0]), menu.distortion(known)
    spent, value, steps = np.zeros(1), np.zeros(1), []
    for row in range(len(delta)):
        points = np.flatnonzero(candidates[row])
        spent_next = np.add.outer(spent, cost[row, points]).ravel()
        value_next = np.add.outer(value, delta[row, points]).ravel()
        hopeful = (spent_next + cheapest[row + 1] <= most) & (
            value_next + price * (spent_next - most) + bounded[row + 1] < best - _MARGIN
        )
        kept = _undominated(spent_next, value_next, np.flatnonzero(hopeful))
        if not kept.size:
            return _Found(known, best, "dynamic programming")
        if kept.size > states:
            return None
        steps.append((kept // len(points), points[kept % len(points)]))
        spent, value = spent_next[kept], value_next[kept]
    place, chosen = int(np.argmin(value)), np.zeros(len(delta), dtype=np.int64)
    for row in range(len(delta) - 1, -1, -1):
        before, point = steps[row]
        chosen[row], place = point[place], int(before[place])
    return _Found(chosen, menu.distortion(chosen), "dynamic programming")


def _after(values: FloatArray) -> FloatArray:
    """(layers + 1,) the sum of each layer's value and all later ones', then 0."""
    sums: FloatArray = np.concatenate([np.cumsum(values[::-1])[::-1], [0.0]])
    return sums


def _undominated(spent: FloatArray, value: FloatArray, among: IntArray) -> IntArray:
    """Of the sums ``among``, those that no cheaper or equal one is as good as."""
    order = among[np.lexsort((value[among], spent[among]))]
    if not order.size:
        return order
    least = np.minimum.accumulate(value[order])
    better: IntArray = order[np.concatenate([[True], value[order][1:] < least[:-1]])]
    return better


def _branch(menu: Menu, candidates: npt.NDArray[np.bool_], prices: FloatArray, known: IntArray | None, nodes: int) -> _Found:
    """The mixed-integer program over the candidates; ``known`` where it finds nothing better."""
    rows, cols = np.nonzero(candidates)
    result = _milp(menu.delta[rows, cols], _one_each(rows), menu.cost[:, rows, cols], menu.most, nodes)
    proven = menu.dual(prices) if result.mip_dual_bound is None else float(result.mip_dual_bound)
    if result.x is not None:
        chosen = result.x > 0.5
        points = np.zeros(len(menu.delta), dtype=np.int64)
        points[rows[chosen]] = cols[chosen]
        if menu.keeps(points) and (known is None or menu.distortion(points) < menu.distortion(known)):
            return _Found(points, min(proven, menu.distortion(points)), "branch and bound")
    if known is None:
        raise _infeasible(menu)
    return _Found(known, min(max(proven, menu.dual(prices)), menu.distortion(known)), "branch and bound")


def _one_each(rows: IntArray) -> Any:
    """(layers, points) sparse: which points are of which layer."""
    from scipy.sparse import csr_array

    return csr_array((np.ones(len(rows)), (rows, np.arange(len(rows)))))


def _milp(objective: FloatArray, one_each: Any, cost: FloatArray, most: FloatArray, nodes: int) -> Any:
    from scipy.optimize import Bounds, LinearConstraint, milp

    constraints = [LinearConstraint(one_each, 1, 1), LinearConstraint(cost, -np.inf, most)]
    options = {"node_limit": nodes, "mip_rel_gap": _RELATIVE_GAP}
    return milp(objective, constraints=constraints, integrality=np.ones(len(objective)), bounds=Bounds(0, 1), options=options)


def _infeasible(menu: Menu) -> InfeasibleError:
    """Why nothing meets all limits: the least common share by which they would have to be raised (whole points relaxed)."""
    from scipy.optimize import linprog
    from scipy.sparse import csr_array, hstack

    rows, cols = np.nonzero(menu.there)
    one_each = hstack([_one_each(rows), csr_array((len(menu.delta), 1))])
    limited = np.column_stack([menu.cost[:, rows, cols], -np.ones(len(menu.most))])
    result = linprog(
        np.append(np.zeros(len(rows)), 1.0), A_ub=limited, b_ub=menu.most, A_eq=one_each, b_eq=np.ones(len(menu.delta)),
        bounds=[*[(0, 1)] * len(rows), (0, None)],
    )  # fmt: skip
    listed = ", ".join(f"{limit.asked} ({limit.cost.name})" for limit in menu.problem.limits)
    return InfeasibleError(
        f"no choice was found that meets all of {listed}: each can be met alone, all together only with limits raised by at least "
        f"{float(result.fun):.2%} of the dense model's cost"
    )
