"""The default solver: every layer takes the point of least distortion plus priced cost, and bisection finds the prices.

For one price the rule is exact (Everett, Operations Research 11(3), 1963): its choice has the least distortion of all that
cost no more. Only what the limit leaves between two neighbouring choices is lost, and spent by single moves afterwards.
"""

from __future__ import annotations

import numpy as np

from hwmodel.allocation.layers import FloatArray, IntArray
from hwmodel.allocation.problem import Allocation, InfeasibleError, Problem
from hwmodel.allocation.solvers.menu import Menu, relieve, spend

_LEAST, _MOST, _HALVINGS = -80.0, 80.0, 60
_ROUNDS = 30
_TRIED = 6
"""Choices on either side of the last price that are completed by single moves; the best is taken."""


def lagrangian(problem: Problem) -> Allocation:
    """Solve by prices on the costs, one per limit.

    Raises
    ------
    InfeasibleError
        Limits that no choice meets, or that this solver finds no choice for.
    """
    menu = Menu.of(problem)
    multipliers, points = solve_menu(menu)
    bound = menu.dual(multipliers) * menu.scale
    prices = {limit.cost.name: float(price) for limit, price in zip(problem.limits, multipliers, strict=True)}
    return Allocation(problem=problem, solver="lagrangian", points=points, bound=bound, settings={"prices": prices})


def solve_menu(menu: Menu) -> tuple[FloatArray, IntArray]:
    """Prices (limits,) and a choice that keeps every limit."""
    multipliers = np.zeros(len(menu.most))
    seen: list[IntArray] = [menu.choose(multipliers)]
    for _ in range(_ROUNDS):
        over = menu.spent(menu.choose(multipliers)) - menu.most
        if (over <= 0).all():
            break
        for number in np.argsort(-over, kind="stable").tolist():
            seen += _bisect(menu, multipliers, number)
    weights = multipliers if multipliers.any() else np.ones_like(multipliers)
    return multipliers, _best(menu, [*_distinct(seen), menu.choose(multipliers)], weights)


def _bisect(menu: Menu, multipliers: FloatArray, number: int) -> list[IntArray]:
    """Set one price to the least at which its limit holds, others as they are (as far as it can); the choices seen last."""
    seen: list[IntArray] = []

    def holds(price: float) -> bool:
        multipliers[number] = price
        seen.append(menu.choose(multipliers))
        return bool(menu.spent(seen[-1])[number] <= menu.most[number])

    if holds(0.0):
        return seen
    low, high = _LEAST, _MOST
    for _ in range(_HALVINGS):
        middle = 0.5 * (low + high)
        low, high = (low, middle) if holds(2.0**middle) else (middle, high)
    multipliers[number] = 2.0**high
    return seen


def _distinct(choices: list[IntArray]) -> list[IntArray]:
    """The last few choices that differ."""
    last = {choice.tobytes(): choice for choice in reversed(choices)}
    return list(last.values())[:_TRIED]


def _best(menu: Menu, starts: list[IntArray], weights: FloatArray) -> IntArray:
    """The least distortion among the starts, each brought under its limits and completed."""
    relieved = [found for start in starts if (found := relieve(menu, start)) is not None]
    if not relieved:
        listed = ", ".join(limit.asked for limit in menu.problem.limits)
        raise InfeasibleError(f"no choice was found that meets {listed} together; solve with 'exact' to see whether there is one")
    complete = [spend(menu, choice, weights) for choice in relieved]
    least = min(menu.distortion(choice) for choice in complete)
    return next(choice for choice in complete if menu.distortion(choice) <= least)
