"""Costs, budgets, the power term and skip units: against the backend itself, sums by hand, and refusals."""

from __future__ import annotations

import numpy as np
import pytest
from allocation_examples import layer, layers, made_up, scores, trace_of, within
from examples import vit

import hwmodel as hw
from hwmodel.allocation.budgets import Budget, limits
from hwmodel.allocation.costs import Machine, flop_cost, table_cost
from hwmodel.allocation.layers import Layer
from hwmodel.allocation.power import block_cost, departures, power_cost
from hwmodel.allocation.problem import Cost, InfeasibleError, Problem
from hwmodel.allocation.solvers.solve import solve
from hwmodel.allocation.units import compare, machine_aware, unit_of_block, unit_order
from hwmodel.errors import HwmodelError
from hwmodel.ir.trace import Trace

ARRAY = {"array_rows": 32, "array_cols": 32}
"""A TPU's array scaled to layers of this size."""


def vit_layers(trace: Trace, block: tuple[int, int] = (32, 32), points: int = 6) -> tuple[Layer, ...]:
    chosen = [one for one in trace.operators if one.role in {"qkv", "proj", "fc1", "fc2"}]
    return tuple(
        layer(one.name, (one.n, one.k), block, rows=one.m, seed=seed).at(points) for seed, one in enumerate(chosen)
    )  # fmt: skip


@pytest.fixture(scope="module")
def small() -> Trace:
    return vit(192, depth=1)


# --- costs -------------------------------------------------------------------------------------------------------------------


def test_flops_count_linear_layers_or_everything(small: Trace) -> None:
    chosen = vit_layers(small)[1:]
    linear = sum(one.macs for one in small.operators if one.parameter)
    assert flop_cost(chosen, small).dense == 2 * linear
    assert flop_cost(chosen, small, total=True).dense == 2 * small.macs
    assert flop_cost(chosen).rest == 0
    masks = {one.name: one.mask(2) for one in chosen}
    assert flop_cost(chosen, small, total=True).total([2] * len(chosen)) == 2 * hw.prune(small, masks).kept_macs


@pytest.mark.parametrize("device", ["vita", "tpu-v3", "a100-40gb", "agx-orin-64gb"])
def test_every_point_costs_what_the_backend_says_of_its_mask(small: Trace, device: str) -> None:
    chosen = vit_layers(small, points=4)
    machine = Machine.of(small, device=device)
    costs = machine.costs(chosen)
    for point in range(4):
        masks = {one.name: one.mask(point) for one in chosen if point}
        said = hw.estimate(hw.prune(small, masks) if masks else small, device=device)
        frame = said.frame()
        for name in ("latency_s", "energy_j"):
            curves = [curve[point] for curve in costs[name].curves]
            assert curves == pytest.approx(frame[name][[one.name for one in chosen]].tolist(), rel=1e-12)
    assert costs["energy_j"].total([0] * len(chosen)) == pytest.approx(machine.dense.energy_j)
    assert costs["latency_s"].source == machine.dense.fidelity["latency"]


def test_a_layer_that_loses_nothing_runs_its_dense_kernel(small: Trace) -> None:
    """On a GPU told to take the sparse kernel wherever there is a mask, a mask that keeps everything would be dear."""
    chosen = vit_layers(small, points=9)
    machine = Machine.of(small, device="a100-40gb", sparse_kernel="always")
    cost = machine.costs(chosen)["energy_j"]
    found = solve(within(chosen, cost, 0.999))
    assert 0 < len(found.masks) < len(chosen)
    rows = {one.name: row for row, one in enumerate(small.operators)}
    delivered = machine.price(found.masks).energy_j
    for one, curve, point in zip(chosen, cost.curves, found.points, strict=True):
        assert delivered[rows[one.name]] == pytest.approx(curve[point])


def test_a_table_gives_what_it_holds_at_its_own_densities(small: Trace) -> None:
    table = hw.cost_table(small, device="vita", block=(32, 32), density=[0, 0.25, 0.5, 0.75, 1], layers=["*.fc?", "*.qkv"])
    chosen = tuple(one for one in vit_layers(small, points=5) if not one.name.endswith("proj"))[:-1]
    cost = table_cost(chosen, table.curves("energy_j"), "energy")
    for one, curve in zip(chosen, cost.curves, strict=True):
        wanted = [table.cost(layer=one.name, density=share, interpolate=True).energy_j for share in one.density]
        assert curve.tolist() == pytest.approx(wanted)
    assert cost.dense == pytest.approx(hw.estimate(small, device="vita").energy_j)
    assert cost.total([0] * len(chosen)) == pytest.approx(cost.dense)


def test_costs_refuse_layers_that_are_not_the_models(small: Trace) -> None:
    table = hw.cost_table(small, device="vita", block=(32, 32), density=[0.5], layers="*.fc?")
    curves = table.curves()
    first = vit_layers(small)[0]
    with pytest.raises(HwmodelError, match=r"'blocks.0.attn.qkv' is not in the cost table"):
        table_cost([first], curves, "t")
    with pytest.raises(HwmodelError, match="tabulate from density 0"):
        table_cost([one for one in vit_layers(small) if one.name.endswith("fc1")], curves, "t")
    with pytest.raises(HwmodelError, match="unknown layer"):
        flop_cost([layer("blocks.9.mlp.fc1", (64, 64))], small)
    with pytest.raises(HwmodelError, match=r"\(rows, out, in\) = \(17, 64, 64\), the trace's operator \(197, 576, 192\)"):
        flop_cost([layer(first.name, (64, 64))], small)
    with pytest.raises(HwmodelError, match="unknown layer of a ViT of width 192 'qkv'"):
        Machine.of(small, device="tpu-v3").price({"qkv": first.mask(1)})
    with pytest.raises(HwmodelError, match="one design"):
        Machine.of(small, device="tpu-v3", overrides={"clock_hz": np.array([1e9, 2e9])})


# --- budgets -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "quantity", "value", "share"),
    [
        ("flops=0.5", "flops", 0.5, True),
        ("flops-total=50%", "flops-total", 0.5, True),
        ("flops=8.8GFLOPs", "flops", 8.8e9, False),
        ("latency=3ms", "latency", 3e-3, False),
        ("latency = 250 us", "latency", 250e-6, False),
        ("energy=4.0e1mJ", "energy", 40e-3, False),
        ("power=12W", "power", 12.0, False),
        ("latency=1.23456789ms", "latency", 1.23456789e-3, False),
        ("energy=57%", "energy", 0.57, True),
        ("flops=1234567891FLOPs", "flops", 1234567891.0, False),
    ],
)
def test_budgets_are_read(text: str, quantity: str, value: float, share: bool) -> None:
    found = Budget.parse(text)
    assert (found.quantity, found.value, found.share) == (quantity, pytest.approx(value), share)
    assert Budget.parse(str(found)) == found


@pytest.mark.parametrize(
    "text", ["latency=3", "latency=3W", "energy=", "flops=-0.5", "flops=0", "flops=1.5", "power=1.2.3W", "flops"]
)
def test_budgets_that_cannot_be_meant_are_refused(text: str) -> None:
    with pytest.raises(HwmodelError, match="budget"):
        Budget.parse(text)
    with pytest.raises(HwmodelError, match="did you mean 'latency'"):
        Budget.parse("latencies=3ms")


@pytest.mark.parametrize("budget", ["latency=0.8", "energy=70%"])
def test_a_budget_on_a_device_is_kept(small: Trace, budget: str) -> None:
    chosen = vit_layers(small, points=9)
    machine = Machine.of(small, device="vita")
    costs = machine.costs(chosen)
    problem = Problem(layers=chosen, limits=limits(budget, chosen, machines=[machine]))
    found = solve(problem)
    energy, latency = (costs[name].total(found.points) for name in ("energy_j", "latency_s"))
    reached = {
        "latency": latency / machine.dense.latency_s,
        "energy": energy / machine.dense.energy_j,
    }
    asked = Budget.parse(budget)
    assert reached[asked.quantity] <= asked.value * (1 + 1e-9)
    assert found.distortion > 0


def test_a_power_below_reach_names_the_least_power() -> None:
    """The kept block costs 2 J in 1 s beside 1 J in 1 s: 1.5 W; both blocks 5 J in 2 s beside it: 2 W."""
    one = (Layer.of("a", shape=(2, 1), block=(1, 1), rows=1, order=[0, 1], delta=[0.0, 1.0, 2.0]),)
    costs = {"energy_j": made_up("energy", [[5, 2, 0]], 1.0), "latency_s": made_up("latency", [[2, 1, 0]], 1.0)}
    found = solve(Problem(layers=one, limits=limits("power=1.6W", one, costs=[costs])))
    assert found.points.tolist() == [1]
    assert "1.5 W of 2 W" in str(found)
    with pytest.raises(InfeasibleError, match=r"power=1.4W is below what is reachable: 1.5 W of 2 W at least"):
        solve(Problem(layers=one, limits=limits("power=1.4W", one, costs=[costs])))


def test_several_devices_worst_case_and_weighted(small: Trace) -> None:
    chosen = vit_layers(small, points=9)
    machines = [Machine.of(small, device="vita"), Machine.of(small, device="tpu-v3", mode="systolic", overrides=ARRAY)]
    worst = limits("latency=0.8", chosen, machines=machines)
    found = solve(Problem(layers=chosen, limits=worst))
    shares = [limit.cost.total(found.points) / limit.cost.dense for limit in worst]
    assert len(shares) == 2 and max(shares) <= 0.8 + 1e-9
    (mean,) = limits("latency=0.8", chosen, machines=machines, weights=[3, 1])
    relaxed = solve(Problem(layers=chosen, limits=(mean,)), "exact")
    shares = [limit.cost.total(relaxed.points) / limit.cost.dense for limit in worst]
    assert 0.75 * shares[0] + 0.25 * shares[1] == pytest.approx(mean.cost.total(relaxed.points))
    assert mean.cost.total(relaxed.points) <= 0.8 + 1e-9


def test_budgets_without_what_they_need_are_refused(small: Trace) -> None:
    chosen, machine = vit_layers(small), Machine.of(small, device="vita")
    with pytest.raises(HwmodelError, match="name a device"):
        limits("latency=0.5", chosen)
    with pytest.raises(HwmodelError, match="needs the model's trace"):
        limits("flops-total=0.5", chosen)
    with pytest.raises(HwmodelError, match="weights"):
        limits("latency=0.5", chosen, machines=[machine], weights=[1, 2])
    with pytest.raises(HwmodelError, match="weights"):
        limits("power=0.9", chosen, machines=[machine], weights=[1])
    with pytest.raises(HwmodelError, match="is not of devices"):
        limits("flops=0.5", chosen, machines=[machine], weights=[1])


# --- the power term ----------------------------------------------------------------------------------------------------------


def test_eq_8_by_hand() -> None:
    """197 rows in blocks of 1, a 64x128 weight in 32x32 blocks: 197 * 2 * 4 block products, half of them left at half density."""
    one = layer("a", (64, 128), (32, 32), rows=197).at(3)
    cost = power_cost([one], 2.5)
    assert cost.curves[0].tolist() == [2.5 * 197 * 8, 2.5 * 197 * 4, 0.0]
    assert power_cost([one], 2.5, block_rows=197).curves[0].tolist() == [2.5 * 8, 2.5 * 4, 0.0]


def test_eq_7_meets_a_device_that_is_proportional_to_it_and_departs_from_one_with_a_floor() -> None:
    chosen = tuple(one.at(5) for one in layers(4))
    flops = flop_cost(chosen)
    assert all(one.largest < 1e-12 for one in departures(chosen, flops))
    floor = Cost(
        name="floored", curves=tuple(curve + curve[0] for curve in flops.curves), rest=0.0, dense=2 * flops.dense, source=""
    )
    for one in departures(chosen, floor):  # twice the FLOPs when dense, as often as FLOPs when nothing is left
        assert one.dense_ratio == pytest.approx(1.0)
        assert (one.largest, one.at_density, one.unsaved) == (pytest.approx(0.5), 0.0, pytest.approx(0.5))


def test_the_block_cost_of_a_device_gives_its_own_dense_energy(small: Trace) -> None:
    chosen = vit_layers(small)
    energy = Machine.of(small, device="vita").costs(chosen)["energy_j"]
    told = power_cost(chosen, block_cost(chosen, energy))
    assert told.dense == pytest.approx(sum(curve[0] for curve in energy.curves))
    assert len(departures(chosen, energy)) == len(chosen)


# --- skip units --------------------------------------------------------------------------------------------------------------


def test_blocks_know_their_unit_where_sides_do_not_divide() -> None:
    assert unit_of_block((8, 8), (2, 2), (4, 8)).tolist() == [0] * 8 + [1] * 8
    assert unit_of_block((12, 6), (4, 6), (6, 6)).tolist() == [0, 0, 0]  # 4 and 6 meet at 12: one unit
    assert unit_of_block((10, 2), (2, 2), (4, 2)).tolist() == [0, 0, 1, 1, 2]


def test_whole_units_empty_in_the_order_of_their_totals() -> None:
    marks = np.array([9.0, 1.0, 2.0, 2.0])  # units of two blocks: 10 and 4
    assert unit_order(marks, shape=(8, 1), block=(2, 1), unit=(4, 1)).tolist() == [2, 3, 1, 0]
    assert unit_order(marks, shape=(8, 1), block=(2, 1), unit=(4, 1), whole=0.0).tolist() == [1, 2, 3, 0]


def aware_of(chosen: tuple[Layer, ...], unit: tuple[int, int]) -> tuple[Layer, ...]:
    return tuple(
        machine_aware(one, scores(one.shape, one.block, seed), unit) for seed, one in enumerate(chosen)
    )  # fmt: skip


@pytest.mark.parametrize("share", [0.6, 0.75])
def test_on_coarse_tiles_whole_units_save_where_single_blocks_do_not(share: float) -> None:
    chosen = tuple(one.at(129) for one in layers(3, block=(8, 8)))
    machine = Machine.of(trace_of(chosen), device="tpu-v3", mode="systolic", overrides=ARRAY)
    assert machine.skip_unit == (32, 32)
    aware = aware_of(chosen, (32, 32))
    plain, grouped = (within(which, machine.costs(which)["energy_j"], share) for which in (chosen, aware))
    found = compare(plain, grouped, "exact")
    assert found.naive is not None and found.saved is not None
    assert found.saved > 0.2
    promised = found.aware.costs["energy_j on tpu-v3/systolic"]
    delivered = machine.price(found.aware.masks).energy_j.sum()
    assert delivered == pytest.approx(promised, rel=1e-9)
    assert machine.price(found.naive.masks).energy_j.sum() == pytest.approx(found.naive.costs["energy_j on tpu-v3/systolic"])


def test_a_naive_ranking_that_cannot_meet_the_budget_is_said_so() -> None:
    chosen = tuple(one.at(3) for one in layers(2, block=(8, 8)))  # half of all single blocks: every unit stays
    cost = made_up("tiles", [[4.0, 4.0, 0.0]] * 2)
    better = made_up("tiles", [[4.0, 2.0, 0.0]] * 2)
    found = compare(within(chosen, cost, 0.6), within(chosen, better, 0.6))
    assert found.naive is None and found.saved is None and "below what is reachable" in found.reason


def test_units_no_coarser_than_blocks_change_nothing() -> None:
    one = layer("a", (64, 64), (32, 32))
    marks = scores(one.shape, one.block, 0)
    assert machine_aware(one, marks, (32, 32)) is one
    assert machine_aware(one, marks, (16, 8)) is one
    assert machine_aware(one, marks, None) is one
    with pytest.raises(HwmodelError, match="finite score for each of 4 blocks"):
        machine_aware(one, marks[:3], (64, 64))


def test_a_gpu_prices_emptied_units_as_large_blocks() -> None:
    """16x16 blocks in whole 64x64 units are a 64x64 mask, which block-sparse kernels skip at their best rate."""
    one = layer("a", (256, 256), (16, 16), rows=4096)
    grouped = machine_aware(one, scores(one.shape, one.block, 0), (64, 64), mixtures=())
    emptied = np.flatnonzero((grouped.ranking == 1) & (grouped.pruned == 128))
    assert grouped.mask(int(emptied[0])).block == (64, 64)
    assert grouped.mask(128).block == (16, 16)
