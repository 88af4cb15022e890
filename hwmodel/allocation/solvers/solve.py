"""One entry to all solvers, by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from hwmodel.allocation.problem import Allocation, Problem
from hwmodel.allocation.solvers.exact import exact
from hwmodel.allocation.solvers.knapsack import knapsack
from hwmodel.allocation.solvers.lagrangian import lagrangian
from hwmodel.allocation.solvers.paper import paper
from hwmodel.errors import HwmodelError, UnknownNameError

SOLVERS: Mapping[str, Callable[..., Allocation]] = {
    "lagrangian": lagrangian,
    "exact": exact,
    "knapsack": knapsack,
    "paper": paper,
}


def solve(problem: Problem, solver: str = "lagrangian", **settings: Any) -> Allocation:
    """Choose how many blocks each layer loses, with least distortion within the problem's limits.

    Parameters
    ----------
    solver : "lagrangian" (default: prices found by bisection, with its gap), "exact" (mixed-integer program, with its gap),
        "knapsack" (dynamic programming over one cost), "paper" (the LSP paper's slopes)
    settings : the solver's own keyword arguments

    Raises
    ------
    InfeasibleError
        Limits that cannot be met; the message says what can.
    HwmodelError
        An unknown solver or setting, or a problem that this solver does not take.
    """
    if solver not in SOLVERS:
        raise UnknownNameError("solver", solver, SOLVERS)
    try:
        return SOLVERS[solver](problem, **settings)
    except TypeError as error:
        if "unexpected keyword argument" in str(error):
            raise HwmodelError(f"solver {solver!r}: {error}") from error
        raise
