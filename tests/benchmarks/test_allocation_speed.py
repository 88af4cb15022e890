"""How long the solvers take on a DeiT-B: fifty layers at 101 ratios each."""

from __future__ import annotations

import numpy as np
import pytest
from allocation_examples import layer, within

from hwmodel.allocation.costs import flop_cost
from hwmodel.allocation.problem import Problem
from hwmodel.allocation.solvers.solve import SOLVERS, solve

SHAPES = ((2304, 768), (768, 768), (3072, 768), (768, 3072))


@pytest.fixture(scope="module")
def fifty() -> Problem:
    chosen = tuple(layer(f"l{index}", SHAPES[index % 4], (32, 32), rows=197, seed=index).at(101) for index in range(50))
    assert {len(one.pruned) for one in chosen} == {101}
    return within(chosen, flop_cost(chosen), 0.35)


@pytest.mark.parametrize("solver", SOLVERS)
def test_one_solver(benchmark: object, fifty: Problem, solver: str) -> None:
    found = benchmark(solve, fifty, solver)  # type: ignore[operator]
    assert fifty.holds(found.points)


def test_all_solvers_together(benchmark: object, fifty: Problem) -> None:
    """The goal: under one second."""
    found = benchmark(lambda: [solve(fifty, solver).objective for solver in SOLVERS])  # type: ignore[operator]
    assert np.isfinite(found).all()
