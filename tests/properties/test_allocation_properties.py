"""What must hold for any layers: limits kept, order in the budget, units of cost, and skip units at equal cost."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from hwmodel.allocation.costs import flop_cost
from hwmodel.allocation.layers import FloatArray, Layer
from hwmodel.allocation.problem import Cost, Limit, Problem
from hwmodel.allocation.solvers.solve import solve
from hwmodel.allocation.units import machine_aware, unit_of_block
from hwmodel.ir.masks import grid_shape

FEW = settings(max_examples=40, deadline=None)
UNIT = (8, 8)


@st.composite
def scored_layers(draw: st.DrawFn) -> list[tuple[Layer, FloatArray]]:
    """Up to four layers of 4x4 blocks, ragged at times, with whole-number scores: many ties."""
    found = []
    for index in range(draw(st.integers(1, 4))):
        shape = draw(st.integers(4, 26)), draw(st.integers(4, 26))
        rows, cols = grid_shape(shape, (4, 4))
        marks = np.array(draw(st.lists(st.integers(0, 9), min_size=rows * cols, max_size=rows * cols)), dtype=np.float64)
        order = np.argsort(marks, kind="stable")
        delta = np.concatenate([[0.0], np.cumsum(marks[order])])
        found.append((Layer.of(f"l{index}", shape=shape, block=(4, 4), rows=5, order=order, delta=delta), marks))
    return found


def tile_cost(layers: list[Layer]) -> Cost:
    """A machine that pays one for every 8x8 tile with a kept block."""
    curves = tuple(
        np.array([one.mask(point).occupied_tiles(*UNIT) for point in range(len(one.pruned))], dtype=np.float64) for one in layers
    )
    return Cost(name="tiles", curves=curves, rest=0.0, dense=float(sum(curve[0] for curve in curves)), source="counted")


def least(layers: list[Layer], cost: Cost, share: float) -> Problem:
    """Floors at zero, so that every share can be met."""
    return Problem(layers=tuple(layers), limits=(Limit(cost=cost, most=share * cost.dense, asked="share"),), floor=0.0)


@FEW
@given(scored_layers(), st.floats(0.05, 0.95))
def test_limits_are_kept_and_nothing_beats_the_bound(scored: list[tuple[Layer, FloatArray]], share: float) -> None:
    layers = [one for one, _ in scored]
    problem = least(layers, flop_cost(layers), share)
    best = solve(problem, "exact")
    for solver in ("lagrangian", "knapsack", "exact"):
        found = solve(problem, solver)
        assert problem.holds(found.points)
        assert found.objective >= best.objective - 1e-9
    assert solve(problem).bound <= best.objective + 1e-9
    assert best.gap <= 1e-9


@FEW
@given(scored_layers(), st.floats(0.05, 0.9), st.floats(0.0, 0.5))
def test_a_larger_budget_never_costs_distortion(scored: list[tuple[Layer, FloatArray]], share: float, more: float) -> None:
    layers = [one for one, _ in scored]
    cost = flop_cost(layers)
    tight, loose = (solve(least(layers, cost, budget), "exact") for budget in (share, min(1.0, share + more)))
    assert loose.objective <= tight.objective + 1e-9


@FEW
@given(scored_layers(), st.floats(0.1, 0.9), st.floats(1e-15, 1e6))
def test_the_unit_of_a_cost_changes_no_mask(scored: list[tuple[Layer, FloatArray]], share: float, unit: float) -> None:
    layers = [one for one, _ in scored]
    cost = flop_cost(layers)
    for solver in ("lagrangian", "knapsack"):
        first, second = (solve(least(layers, one, share), solver) for one in (cost, replace(cost.scaled(unit), name="joules")))
        assert first.masks == second.masks


@FEW
@given(scored_layers(), st.data())
def test_emptied_units_distort_no_more_than_single_blocks_at_equal_cost(
    scored: list[tuple[Layer, FloatArray]], data: st.DataObject
) -> None:
    """Separable scores: at the tiles that any count of single blocks leaves, whole units distort less or as much."""
    for one, marks in scored:
        point = data.draw(st.integers(0, one.blocks))
        tiles = one.mask(point).occupied_tiles(*UNIT)
        aware = machine_aware(one, marks, UNIT, mixtures=())
        whole = [number for number in range(len(aware.pruned)) if aware.ranking[number] == 1]
        costs = [aware.mask(number).occupied_tiles(*UNIT) for number in whole]
        assert (np.diff(costs) == -1).all()  # every point of the unit ranking empties one more
        enough = [aware.delta[number] for number, cost in zip(whole, costs, strict=True) if cost <= tiles]
        assert min(enough) <= one.delta[point] + 1e-9


@FEW
@given(scored_layers(), st.floats(0.1, 0.9))
def test_a_machine_aware_allocation_is_never_worse_at_equal_cost(scored: list[tuple[Layer, FloatArray]], share: float) -> None:
    naive = [one for one, _ in scored]
    aware = [machine_aware(one, marks, UNIT) for one, marks in scored]
    plain, grouped = (solve(least(layers, tile_cost(layers), share), "exact") for layers in (naive, aware))
    assert grouped.objective <= plain.objective + 1e-9
    kept = sum(mask.occupied_tiles(*UNIT) for mask in grouped.masks.values())
    assert kept <= share * tile_cost(naive).dense + 1e-6


@FEW
@given(scored_layers())
def test_cost_never_rises_along_a_ranking(scored: list[tuple[Layer, FloatArray]]) -> None:
    for one, marks in scored:
        aware = machine_aware(one, marks, UNIT)
        (tiles,) = tile_cost([aware]).curves
        for number in range(len(aware.rankings)):
            where = aware.ranking == number
            assert (np.diff(tiles[where]) <= 0).all() and (np.diff(aware.kept_weights[where]) < 0).all()
        assert len(unit_of_block(one.shape, one.block, UNIT)) == one.blocks
