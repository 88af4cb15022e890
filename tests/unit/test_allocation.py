"""Layers, problems and solvers: choices worked out by hand, by trying all of them, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from allocation_examples import BLOCK, ROWS, layer, layers, made_up, trace_of, within

import hwmodel as hw
from hwmodel.allocation.costs import flop_cost
from hwmodel.allocation.layers import Layer, coarsened, common_unit
from hwmodel.allocation.power import block_products, power_cost
from hwmodel.allocation.problem import InfeasibleError, Limit, Problem
from hwmodel.allocation.solvers.menu import Menu, spend
from hwmodel.allocation.solvers.paper import derivative, smoothed
from hwmodel.allocation.solvers.solve import SOLVERS, solve
from hwmodel.errors import HwmodelError


def hand_made(delta: list[float], name: str = "a") -> Layer:
    blocks = len(delta) - 1
    return Layer.of(name, shape=(blocks, 1), block=(1, 1), rows=1, order=range(blocks), delta=delta)


def best_of_all(problem: Problem) -> float:
    choices = product(*(np.flatnonzero(allowed) for allowed in problem.allowed))
    return min(problem.value(np.array(points)) for points in choices if problem.holds(np.array(points)))


def test_points_are_masks_along_the_order() -> None:
    one = Layer.of("a", shape=(5, 4), block=(2, 2), rows=3, order=[4, 5, 0, 1, 2, 3], delta=[0, 1, 3, 2, 5, 6, 9])
    assert one.mask(1).kept.tolist() == [[True, True], [True, True], [False, True]]
    assert one.kept_weights.tolist() == [20, 18, 16, 12, 8, 4, 0]  # blocks 4 and 5 are ragged: one row of two weights
    assert one.envelope.tolist() == [0, 1, 3, 3, 5, 6, 9]
    assert all(one.mask(point).kept_weights == kept for point, kept in enumerate(one.kept_weights))


def test_a_curve_on_fewer_ratios_keeps_its_ends() -> None:
    one = layer("a", (64, 64), (4, 4))
    few = one.at(5)
    assert few.pruned.tolist() == [0, 64, 128, 192, 256]
    assert few.delta.tolist() == one.delta[few.pruned].tolist()


def test_a_mask_of_whole_units_is_told_in_units() -> None:
    kept = np.kron(np.array([[1, 0], [0, 1]]), np.ones((2, 2))).astype(bool)
    mask = hw.BlockMask((8, 8), (2, 2), kept)
    assert coarsened(mask, (4, 4)).kept.tolist() == [[True, False], [False, True]]
    kept[0, 0] = False
    partial = hw.BlockMask((8, 8), (2, 2), kept)
    assert coarsened(partial, (4, 4)) is partial
    assert common_unit((32, 48), (128, 128)) == (128, 384)


@pytest.mark.parametrize("solver", ["lagrangian", "exact", "knapsack"])
def test_two_layers_by_hand(solver: str) -> None:
    """Equal costs of 1 per block: of six blocks three may stay, and the three cheapest steps are 1, 1 and 2."""
    pair = (hand_made([0, 1, 6, 30], "a"), hand_made([0, 1, 3, 40], "b"))
    cost = made_up("blocks", [[3, 2, 1, 0], [3, 2, 1, 0]])
    found = solve(within(pair, cost, 0.5), solver)
    assert found.points.tolist() == [1, 2]
    assert (found.distortion, found.costs["blocks"]) == (4.0, 3.0)
    assert found.density == {"a": pytest.approx(2 / 3), "b": pytest.approx(1 / 3)}


def test_what_a_choice_leaves_of_the_budget_is_spent() -> None:
    """The middle point lies above the hull, so no price chooses it; it still is the best that fits."""
    one = (hand_made([0, 10, 11]),)
    menu = Menu.of(within(one, made_up("c", [[2, 1, 0]]), 0.5, floor=0.0))
    assert menu.choose(np.array([100.0])).tolist() == [2]
    assert spend(menu, np.array([2]), np.ones(1)).tolist() == [1]
    assert solve(menu.problem).points.tolist() == [1]


@pytest.mark.parametrize("seed", range(20))
def test_exact_is_the_best_of_all_choices_and_bounds_hold(seed: int) -> None:
    rng = np.random.default_rng(seed)
    chosen = tuple(hand_made([0.0, *np.cumsum(rng.integers(0, 9, 4))], str(index)) for index in range(5))
    cost = made_up("c", [np.sort(rng.integers(0, 12, 5))[::-1].tolist() for _ in range(5)], rest=3.0)
    other = made_up("d", [rng.integers(1, 12, 5).tolist() for _ in range(5)])
    least = sum(curve.min() for curve in other.curves)
    limits = (Limit(cost=cost, most=0.75 * cost.dense, asked="c"), Limit(cost=other, most=least + 9.0, asked="d"))
    for number in (1, 2):
        problem = Problem(layers=chosen, limits=limits[:number], floor=0.0)
        try:
            best = best_of_all(problem)
        except ValueError:
            with pytest.raises(InfeasibleError):
                solve(problem, "exact")
            continue
        found = solve(problem, "exact")
        assert problem.holds(found.points)
        assert found.objective == best
        assert found.bound == pytest.approx(best, rel=1e-4)
        try:
            quick = solve(problem)
        except InfeasibleError as error:  # prices and moves are no search: two costs that pull apart may defeat them
            assert number == 2 and "solve with 'exact'" in str(error)
            continue
        assert problem.holds(quick.points)
        assert quick.bound is not None and quick.bound <= best + 1e-9 <= quick.objective + 2e-9


@pytest.mark.parametrize("share", [0.25, 0.5, 0.75])
def test_lagrangian_is_within_two_percent_of_exact_and_says_its_gap(share: float) -> None:
    chosen = layers(16)
    problem = within(chosen, flop_cost(chosen), share)
    quick, best = solve(problem), solve(problem, "exact")
    assert quick.objective <= best.objective * 1.02
    assert quick.gap is not None and best.gap is not None
    assert best.gap <= 1e-6 <= quick.gap + 1e-6 <= 0.02
    assert f"gap to the least possible at most {quick.gap:.2%}" in str(quick)


def test_a_search_that_ends_early_goes_on_by_branch_and_bound_and_stays_honest() -> None:
    chosen = layers(12)
    problem = within(chosen, flop_cost(chosen), 0.4)
    full, early = solve(problem, "exact"), solve(problem, "exact", states=1, nodes=1)
    assert (full.settings["method"], early.settings["method"]) == ("dynamic programming", "branch and bound")
    assert early.bound is not None and early.bound <= full.objective * (1 + 1e-9) <= early.objective * (1 + 2e-9)


def test_floors_and_caps_hold_for_every_solver() -> None:
    chosen = layers(8)
    problem = within(chosen, flop_cost(chosen), 0.5, floor={"*": 0.1, "layer3": 0.9}, cap={"layer0": 0.3})
    for solver in SOLVERS:
        density = solve(problem, solver).density
        assert density["layer3"] >= 0.9 and density["layer0"] <= 0.3 and min(density.values()) >= 0.1, solver


def test_a_layer_keeps_a_block_unless_told_otherwise() -> None:
    one = (hand_made([0, 0, 0, 0]),)
    cost = made_up("c", [[3, 2, 1, 0]])
    assert solve(within(one, cost, 0.34)).density == {"a": pytest.approx(1 / 3)}
    assert solve(within(one, cost, 0.0, floor=0.0)).density == {"a": 0.0}


def test_the_same_problem_twice_gives_the_same_bits() -> None:
    for solver in SOLVERS:
        first, second = (solve(within(layers(), flop_cost(layers()), 0.4), solver) for _ in range(2))
        assert [mask.digest for mask in first.masks.values()] == [mask.digest for mask in second.masks.values()]


# --- the theorem -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("solver", ["lagrangian", "exact", "knapsack"])
@pytest.mark.parametrize("joule_per_flop", [0.23e-12, 1 / 3, 7.1])
def test_energy_in_proportion_to_flops_gives_identical_masks(solver: str, joule_per_flop: float) -> None:
    chosen = layers(12)
    flops = flop_cost(chosen)
    energy = replace(flops.scaled(joule_per_flop), name="energy")
    for share in (0.25, 0.35, 0.5, 0.7):
        by_flops, by_energy = (solve(within(chosen, cost, share), solver) for cost in (flops, energy))
        assert by_flops.masks == by_energy.masks


def test_no_weight_on_the_power_term_moves_the_optimum_where_the_budget_is_used_up() -> None:
    """Eq. 8 is FLOPs over block area: added to the objective it adds the same to every choice that uses the budget up."""
    chosen = tuple(hand_made([0, *np.cumsum(range(1, 5)) * scale], str(scale)) for scale in (1.0, 1.37, 2.11, 2.93))
    flops, power = flop_cost(chosen), power_cost(chosen, 1.0)
    plain = within(chosen, flops, 0.5)
    best = solve(plain, "exact")
    for weight in (0.001, 0.03, 0.3):
        assert solve(replace(plain, term=power.scaled(weight)), "exact").masks == best.masks
    overshot = solve(replace(plain, term=power.scaled(30.0)), "exact")  # beyond the steepest slope the budget binds no longer
    assert overshot.costs["flops of linear layers"] < best.costs["flops of linear layers"]


# --- the paper's solver ------------------------------------------------------------------------------------------------------


def test_the_five_point_derivative_is_exact_on_cubics_inside_and_one_sided_at_the_ends() -> None:
    x = np.linspace(0, 1, 101)
    inner = derivative(x**3, 4, 0.01)
    assert inner[8:-8] == pytest.approx(3 * x[8:-8] ** 2)
    assert derivative(x, 4, 0.01) == pytest.approx(np.ones(101))
    assert inner[0] == pytest.approx(0.04**2)  # (0.04**3 - 0) / 0.04


def test_the_moving_average_corrects_its_start() -> None:
    assert smoothed(np.array([3.0, 3.0, 3.0]), 0.5).tolist() == [3.0, 3.0, 3.0]
    assert smoothed(np.array([0.0, 6.0]), 0.5).tolist() == [0.0, 4.0]  # (0.25 * 0 + 0.5 * 6) / 0.75


def quadratic(name: str, out: int, steepness: float) -> Layer:
    """delta = steepness / 2 * ratio**2, whose slope is steepness * ratio."""
    ratio = np.arange(out * 100 + 1) / (out * 100)
    return Layer.of(name, shape=(out, 100), block=(1, 1), rows=4, order=range(out * 100), delta=steepness / 2 * ratio**2)


def test_slopes_meet_eq_11_with_beta_of_eq_14() -> None:
    """Slopes s_i alpha_i = lambda + beta C_i, so alpha_i is that over s_i, for every layer that is not at an end."""
    chosen = (quadratic("a", 1, 2.0), quadratic("b", 3, 9.0))
    found = solve(within(chosen, flop_cost(chosen), 0.34), "paper", memory=0.0)
    pull = [block_products(one, 1) for one in chosen]
    assert pull == [400.0, 1200.0]
    beta, target = found.settings["beta"], found.settings["lambda"]
    assert beta == pytest.approx((2.0 + 9.0) / 1600, rel=0.03)  # one-sided differences at the end see slopes a little lower
    for one, steepness, each in zip(chosen, (2.0, 9.0), pull, strict=True):
        assert 1 - found.density[one.name] == pytest.approx((target + beta * each) / steepness, abs=0.011)


def test_the_printed_range_of_lambda_overshoots_where_the_signed_one_does_not() -> None:
    chosen = layers(8)
    problem = within(chosen, flop_cost(chosen), 0.7)
    printed, signed = solve(problem, "paper", signed=False), solve(problem, "paper")
    assert printed.settings["lambda"] == 0.0 and signed.settings["lambda"] < 0.0
    assert printed.costs["flops of linear layers"] < 0.6 * signed.costs["flops of linear layers"]
    assert signed.costs["flops of linear layers"] <= 0.7 * problem.limits[0].cost.dense


def test_slope_matching_is_not_better_than_prices() -> None:
    chosen = layers(16)
    for share in (0.25, 0.35, 0.5):
        problem = within(chosen, flop_cost(chosen), share)
        assert solve(problem).objective <= solve(problem, "paper").objective
        assert solve(problem).objective <= solve(problem, "paper", beta=0.0).objective


# --- what is refused ---------------------------------------------------------------------------------------------------------


def test_a_budget_below_reach_says_what_can_be_reached() -> None:
    """Two layers of four blocks keep at least one each, beside a rest of 2: 4 of 10."""
    pair = (hand_made([0, 1, 2, 3, 4], "a"), hand_made([0, 1, 2, 3, 4], "b"))
    cost = made_up("blocks", [[4, 3, 2, 1, 0]] * 2, rest=2.0)
    for solver in ("lagrangian", "exact", "knapsack"):
        with pytest.raises(InfeasibleError, match=r"30% is below what is reachable: 4 of 10 \(40\.0%\) at least"):
            solve(within(pair, cost, 0.3), solver)
    with pytest.raises(InfeasibleError, match=r"30%: the slope rule prunes no further than \d of 10"):
        solve(within(pair, cost, 0.3), "paper")


def test_budgets_that_exclude_each_other_say_so() -> None:
    """Pruning trades one cost for the other: halves of both need the point in the middle, a third of both has none."""
    one = (hand_made([0, 1, 2]),)
    falls, rises = made_up("falls", [[4, 2, 0]]), made_up("rises", [[0, 2, 4]])

    def both(most: float) -> Problem:
        return Problem(layers=one, limits=tuple(Limit(cost=cost, most=most, asked=cost.name) for cost in (falls, rises)), floor=0.0)

    assert solve(both(2.0)).points.tolist() == solve(both(2.0), "exact").points.tolist() == [1]
    for solver in ("lagrangian", "exact"):
        with pytest.raises(InfeasibleError, match=r"no choice was found that meets"):
            solve(both(1.0), solver)


GOOD = {"shape": (4, 4), "block": (2, 2), "rows": 3, "order": [0, 1, 2, 3], "delta": [0.0, 1.0, 2.0, 3.0, 4.0]}


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"delta": [0.0, np.nan, 2.0, 3.0, 4.0]}, "delta is not finite with 1 blocks pruned"),
        ({"delta": [0.0, 1.0]}, "one value per count of pruned blocks"),
        ({"order": [0, 1, 2, 2]}, "order must hold each of the 4 block indices once"),
        ({"pruned": [0, 2, 1, 3, 4]}, "pruned must be ascending counts between 0 and 4"),
        ({"block": (8, 2)}, "is no layer"),
        ({"block": (0, 2)}, "must be positive"),
        ({"rows": 0}, "is no layer"),
    ],
)
def test_layers_that_do_not_fit_are_refused(wrong: dict[str, object], told: str) -> None:
    with pytest.raises(HwmodelError, match=told):
        Layer.of("a", **{**GOOD, **wrong})  # type: ignore[arg-type]


def test_problems_that_make_no_sense_are_refused() -> None:
    chosen = layers(2)
    cost = flop_cost(chosen)
    with pytest.raises(HwmodelError, match="given twice"):
        within((chosen[0], chosen[0]), cost, 0.5)
    with pytest.raises(HwmodelError, match="do not have the points of the layers"):
        within(chosen[::-1], cost, 0.5)
    with pytest.raises(HwmodelError, match="floor: 'blok' matches no layer"):
        solve(within(chosen, cost, 0.5, floor={"blok": 0.5}))
    with pytest.raises(HwmodelError, match="outside"):
        solve(within(chosen, cost, 0.5, cap=1.5))
    with pytest.raises(InfeasibleError, match="within floor and cap"):
        solve(within(chosen, cost, 0.5, floor=0.8, cap=0.3))
    with pytest.raises(HwmodelError, match="at least one layer and one budget"):
        Problem(layers=chosen, limits=())
    with pytest.raises(HwmodelError, match="unknown solver 'lagrange': did you mean 'lagrangian'"):
        solve(within(chosen, cost, 0.5), "lagrange")
    with pytest.raises(HwmodelError, match="unexpected keyword"):
        solve(within(chosen, cost, 0.5), tolerance=1)
    with pytest.raises(HwmodelError, match="same layer"):
        Layer.joined(*chosen)


def test_masks_are_what_prune_takes() -> None:
    chosen = layers(4)
    found = solve(within(chosen, flop_cost(chosen), 0.5))
    pruned = hw.prune(trace_of(chosen), found.masks)
    assert 2 * pruned.kept_macs == found.costs["flops of linear layers"]
    frame = found.frame()
    assert frame.kept_blocks[list(found.masks)].tolist() == [mask.kept_blocks for mask in found.masks.values()]
    assert (frame.density.drop(list(found.masks)) == 1.0).all()
    assert {one.block for one in chosen} == {BLOCK} and {one.rows for one in chosen} == {ROWS}
