"""What no card of a systolic array may break: its peaks, its powers, and what more hardware or less work must not cost."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import hwmodel as hw
from hwmodel.backends.cards import load_card
from hwmodel.ir.operators import Operator

CARDS = ["tpu-v2", "tpu-v3", "tpu-v4", "tpu-v5e", "systolic-32x32"]
HBM_BYTES_PER_S = {"tpu-v2": 600e9, "tpu-v3": 900e9, "tpu-v4": 1200e9, "tpu-v5e": 819e9, "systolic-32x32": 34.2e9}  # of a chip
SLACK = 1 + 1e-9
sizes = st.integers(1, 1000)


@st.composite
def batches(draw: st.DrawFn) -> hw.Trace:
    """Products (some pruned), heads and vector operators of a batch of images, with some edges."""
    images = draw(st.integers(1, 6))

    def linear() -> Operator:
        k, n = draw(sizes), draw(sizes)
        mask = None
        if min(k, n) >= 16 and draw(st.booleans()):
            mask = hw.expected_mask((n, k), (16, 16), draw(st.floats(0, 1)), draw(st.sampled_from(["uniform", "tile-clustered"])))
        return hw.matmul(m=images * draw(sizes), k=k, n=n, mask=mask)

    kinds = {
        "linear": linear,
        "heads": lambda: hw.matmul(m=draw(sizes), k=draw(sizes), n=draw(sizes), batch=images * draw(st.integers(1, 6))),
        "softmax": lambda: hw.softmax(rows=images * draw(sizes), cols=draw(sizes)),
        "layernorm": lambda: hw.layernorm(rows=images * draw(sizes), cols=draw(sizes)),
        "gelu": lambda: hw.gelu(elements=images * draw(st.integers(1, 10**6))),
        "add": lambda: hw.elementwise("add", elements=images * draw(st.integers(1, 10**6)), inputs=2),
    }
    operators = [kinds[kind]() for kind in draw(st.lists(st.sampled_from(sorted(kinds)), min_size=1, max_size=7))]
    trace = hw.Trace.from_operators(operators, batch=images)
    pairs = [(row, row + 1) for row in range(len(operators) - 1)]
    return trace.replace(edges=tuple(draw(st.lists(st.sampled_from(pairs), unique=True)))) if pairs else trace


cards = st.sampled_from(CARDS)
lowerings = st.sampled_from(["xla", "op-by-op", "single-pass"])


@st.composite
def designs(draw: st.DrawFn) -> tuple[str, dict[str, Any]]:
    card = draw(cards)
    cores = draw(st.integers(1, int(load_card(card).resolve("device").chip_cores)))
    return card, {"cores": cores, "lowering": draw(lowerings)}


@settings(max_examples=60)
@given(trace=batches(), design=designs())
def test_never_faster_than_the_arrays_peak(trace: hw.Trace, design: tuple[str, dict[str, Any]]) -> None:
    p = load_card(design[0]).resolve("device", design[1])
    macs_per_s = p.cores * p.mxus * p.array_rows * p.array_cols * p.clock_hz
    for mode in ("device", "device+host"):
        estimate = hw.estimate(trace, device=design[0], mode=mode, overrides=design[1])
        kept = np.array([operator.kept_macs for operator in trace.operators])
        assert (kept / macs_per_s <= estimate.costs.latency_s * SLACK).all()


@settings(max_examples=60)
@given(trace=batches(), design=designs())
def test_never_faster_than_the_memory(trace: hw.Trace, design: tuple[str, dict[str, Any]]) -> None:
    card, overrides = design
    costs = hw.estimate(trace, device=card, overrides=overrides).costs
    share = overrides["cores"] / load_card(card).resolve("device").chip_cores
    assert (costs.dram_bytes / (HBM_BYTES_PER_S[card] * share) <= costs.latency_s * SLACK).all()


@settings(max_examples=60)
@given(trace=batches(), design=designs(), mac_j=st.sampled_from([1e-13, 2e-12, 1e-9]))
def test_average_power_lies_between_idle_and_the_maximum(trace: hw.Trace, design: tuple[str, dict[str, Any]], mac_j: float) -> None:
    """Whatever a MAC is said to cost."""
    p = load_card(design[0]).resolve("device")
    for mode in ("device", "device+host", "systolic", "paper-fit"):
        estimate = hw.estimate(trace, device=design[0], mode=mode, overrides=design[1] | {"mac_j": mac_j})
        if estimate.latency_s:
            assert p.static_w / SLACK <= estimate.average_power_w <= p.max_power_w * SLACK


@settings(max_examples=40)
@given(trace=batches(), card=st.sampled_from(["tpu-v2", "tpu-v3", "tpu-v4"]), lowering=lowerings)
def test_a_second_core_never_costs_time(trace: hw.Trace, card: str, lowering: str) -> None:
    one, both = (
        hw.estimate(trace, device=card, overrides={"cores": cores, "lowering": lowering}).costs.latency_s for cores in (1, 2)
    )
    assert (both <= one * SLACK).all()


@pytest.mark.parametrize("field", ["clock_hz", "product_hbm_bytes_per_s", "vector_hbm_bytes_per_s"])
@settings(max_examples=15)
@given(trace=batches(), design=designs(), factor=st.floats(1.01, 20))
def test_more_clock_or_bandwidth_never_costs_time(
    field: str, trace: hw.Trace, design: tuple[str, dict[str, Any]], factor: float
) -> None:
    card, overrides = design
    faster = overrides | {field: getattr(load_card(card).resolve("device"), field) * factor}
    before, after = (hw.estimate(trace, device=card, overrides=given).costs.latency_s for given in (overrides, faster))
    assert (after <= before * SLACK).all()


shapes = st.tuples(sizes, st.integers(16, 1000), st.integers(16, 1000))


@pytest.mark.parametrize("mode", ["device", "device+host", "systolic", "paper-fit"])
@settings(max_examples=15)
@given(shape=shapes, design=designs(), densities=st.tuples(st.floats(0, 1), st.floats(0, 1)))
def test_lower_density_never_costs(
    mode: str, shape: tuple[int, int, int], design: tuple[str, dict[str, Any]], densities: tuple[float, float]
) -> None:
    m, k, n = shape

    def price(density: float, rule: Any) -> Any:
        product = hw.matmul(m=m, k=k, n=n, mask=hw.expected_mask((n, k), (16, 16), density, rule))
        return hw.estimate(hw.Trace.from_operators([product]), device=design[0], mode=mode, overrides=design[1])

    for rule in ("uniform", "tile-clustered", "row-clustered"):
        fewer, more = (price(density, rule) for density in sorted(densities))
        assert fewer.latency_s <= more.latency_s * SLACK
        assert fewer.energy_j <= more.energy_j * SLACK


@settings(max_examples=30)
@given(trace=batches(), card=cards)
def test_lowering_less_cleverly_never_gains(trace: hw.Trace, card: str) -> None:
    single, fused, apart = (
        hw.estimate(trace, device=card, overrides={"lowering": lowering}).latency_s
        for lowering in ("single-pass", "xla", "op-by-op")
    )
    assert single <= fused * SLACK
    assert fused <= apart * SLACK
