"""What an allocator relies on: on an additive device, layers priced one by one add up to any mix of densities; hulls are hulls."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from examples import vit
from hypothesis import given, settings
from hypothesis import strategies as st

import hwmodel as hw
from hwmodel.exploration.hulls import lower_hull

DENSITIES = (0.0, 0.1, 0.25, 0.5, 0.75, 1.0)


@cache
def tabulated(device: str) -> tuple[hw.Trace, hw.CostTable]:
    trace = vit(192, depth=2)
    return trace, hw.cost_table(trace, device=device, block=(32, 32), density=DENSITIES)


@settings(max_examples=25, deadline=None)
@given(choice=st.lists(st.sampled_from(DENSITIES), min_size=10, max_size=10), device=st.sampled_from(["tpu-v3", "systolic-32x32"]))
def test_any_mix_of_densities_costs_the_sum_of_its_entries(choice: list[float], device: str) -> None:
    trace, table = tabulated(device)
    mixed = {name: {"block": (32, 32), "density": density} for name, density in zip(table.layers, choice, strict=True)}
    estimate = hw.estimate(hw.prune(trace, mixed), device=device)
    for quantity in ("latency_s", "energy_j"):
        curves = table.curves(quantity)  # type: ignore[arg-type]
        entries = [curves.cost[layer, DENSITIES.index(density)] for layer, density in enumerate(choice)]
        assert sum(entries) + curves.rest == pytest.approx(getattr(estimate, quantity), rel=1e-12)


@given(
    heights=st.lists(st.floats(0, 1e3, allow_subnormal=False), min_size=2, max_size=40),
    gaps=st.lists(st.floats(1e-3, 1.0), min_size=40, max_size=40),
)
def test_a_lower_hull_is_convex_below_the_curve_and_touches_its_ends(heights: list[float], gaps: list[float]) -> None:
    y = np.array(heights)
    x = np.cumsum(gaps)[: len(y)]
    hull = lower_hull(x, y)
    slack = 1e-7 * max(float(np.ptp(y)), 1e-12)
    assert (hull.value <= y).all()
    assert (hull.value[0], hull.value[-1]) == (y[0], y[-1])
    middle = hull.value[:-2] + (hull.value[2:] - hull.value[:-2]) * (x[1:-1] - x[:-2]) / (x[2:] - x[:-2])
    assert (hull.value[1:-1] <= middle + slack).all()
    assert (np.diff(hull.slope) >= -slack * 1e3).all()
