"""ViTA on any trace: more of anything never costs time, energy has two sums that agree, and sweeps equal single designs."""

from __future__ import annotations

import warnings
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from examples import pruned, vit
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import pruned_products, traces

import hwmodel as hw
from hwmodel.backends.vita import sweep
from hwmodel.errors import HwmodelError
from hwmodel.ir.masks import BlockMask
from hwmodel.ir.operators import Operator

FEWER = settings(max_examples=40)
SHAPES = ["16x16", "32x32", "16x64", "24x40"]
ROOM = {"pe_count": 8.0, "pe_buffer_bytes": 40960.0, "buffer_bytes": 524288.0, "dram_bytes_per_s": 25.6e9, "clock_hz": 1e9,
        "buffer_bytes_per_cycle": 512.0, "sfu_elements_per_cycle": 32.0}  # fmt: skip


def price(trace: hw.Trace, mode: str = "chip", **overrides: Any) -> hw.Estimate:
    return hw.estimate(trace, device="vita", mode=mode, overrides={"pe": "32x32", **overrides})


@FEWER
@given(trace=traces(), pe=st.sampled_from(SHAPES), field=st.sampled_from(sorted(ROOM)), data=st.data())
def test_more_of_anything_never_costs_time(trace: hw.Trace, pe: str, field: str, data: st.DataObject) -> None:
    """PEs one by one; the rest in steps of any size, from cramped to roomy."""
    steps = st.integers(1, 40) if field == "pe_count" else st.floats(0.3, 8.0)
    low, high = sorted(data.draw(st.tuples(steps, steps)))
    scale = 1.0 if field == "pe_count" else ROOM[field]
    slower, faster = (price(trace, pe=pe, **ROOM | {field: scale * step}).latency_s for step in (low, high))
    assert faster <= slower * (1 + 1e-12)


@pytest.mark.parametrize("width", [192, 768])
@pytest.mark.parametrize("field", sorted(ROOM))
def test_more_of_anything_never_costs_a_network_time(width: int, field: str) -> None:
    factors = np.arange(1, 41) / 8.0 if field == "pe_count" else np.geomspace(0.3, 16, 40)
    for trace in (vit(width, depth=1), pruned(vit(width, depth=1), (32, 32), 0.3)):
        latency_s = price(trace, **{field: ROOM[field] * factors}).latency_s
        assert all(faster <= slower * (1 + 1e-12) for slower, faster in pairwise(latency_s.tolist())), field


@FEWER
@given(first=pruned_products(), pes=st.integers(1, 12), pe=st.sampled_from(SHAPES), data=st.data())
def test_removing_a_block_never_costs(first: Operator, pes: int, pe: str, data: st.DataObject) -> None:
    """Neither alone nor between a function and the next product, whatever is scarce."""
    mask = first.mask
    assert isinstance(mask, BlockMask)
    if not mask.kept_blocks:
        return
    fewer = mask.kept.copy()
    fewer[tuple(data.draw(st.sampled_from(np.argwhere(mask.kept).tolist())))] = False
    scarce = data.draw(
        st.sampled_from([{}, {"dram_bytes_per_s": 2e9}, {"sfu_elements_per_cycle": 2.0}, {"cycles_per_block": 90.0}])
    )
    after = hw.matmul(m=first.m, k=first.n, n=96)
    before = hw.matmul(m=first.m, k=64, n=first.k)
    rows = [before, hw.gelu(elements=first.m * first.k), None, hw.gelu(elements=first.m * first.n), after]
    costs = []
    for layer in (first.replace(mask=BlockMask(mask.shape, mask.block, fewer)), first):
        trace = hw.Trace.from_operators([row or layer for row in rows]).replace(edges=((0, 1), (1, 2), (2, 3), (3, 4)))
        costs.append(price(trace, pe=pe, pe_count=float(pes), **scarce))
    less, more = costs
    assert less.latency_s <= more.latency_s * (1 + 1e-12)
    assert less.energy_j <= more.energy_j * (1 + 1e-12)


# --- chains, whose products and functions wait for each other, in machines that are short of something -------------


@cache
def trained() -> list[np.ndarray[Any, np.dtype[np.float64]]]:
    """Weights (out, in) of a small network trained on digits: rows of blocks that are kept differ as real ones do."""
    from sklearn.datasets import load_digits
    from sklearn.neural_network import MLPClassifier

    images, labels = load_digits(return_X_y=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        network = MLPClassifier((192, 256, 128), max_iter=8, random_state=0).fit(images / 16, labels)
    return [weights.T for weights in network.coefs_]


@st.composite
def masks(draw: st.DrawFn) -> BlockMask:
    """Of random blocks, even or skewed by rows; or the largest blocks of a trained layer."""
    block = draw(st.sampled_from([(16, 16), (32, 32), (32, 64), (64, 32)]))
    density = draw(st.floats(0.1, 1.0))
    if draw(st.booleans()):
        weights = trained()[draw(st.sampled_from([1, 2]))]
        rows, cols = (size // side for size, side in zip(weights.shape, block, strict=True))
        score = np.square(weights).reshape(rows, block[0], cols, block[1]).sum(axis=(1, 3))
        return BlockMask(weights.shape, block, score >= np.quantile(score, 1 - density))
    shape = draw(st.tuples(*(st.integers(side // 8, 60).map(lambda eighths: 8 * eighths) for side in block)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    grid = -(-shape[0] // block[0]), -(-shape[1] // block[1])
    thinner = 2 * rng.random((grid[0], 1)) if draw(st.booleans()) else np.ones((grid[0], 1))
    return BlockMask(shape, block, rng.random(grid) < density * thinner)


CRAMPED = st.fixed_dictionaries(
    {
        "pe": st.sampled_from(SHAPES),
        "pe_buffer_bytes": st.sampled_from([8192.0, 16384.0, 40960.0]),
        "buffer_bytes": st.sampled_from([32768.0, 131072.0, 524288.0]),
        "dram_bytes_per_s": st.sampled_from([2e9, 12.8e9, 51.2e9]),
        "buffer_bytes_per_cycle": st.sampled_from([64.0, 512.0]),
        "sfu_elements_per_cycle": st.sampled_from([2.0, 8.0, 32.0]),
        "cycles_per_block": st.sampled_from([0.0, 2.0, 90.0]),
        "cycles_per_row": st.sampled_from([0.0, 20.0, 100.0]),
    }
)


@pytest.fixture(scope="module", autouse=True)
def _trained_before() -> None:
    """Training draws from Python's own generator, which a strategy may not."""
    trained()


GROWING = sorted({*ROOM} - {"pe_count"})


def chain(mask: BlockMask, m: int, after: int) -> hw.Trace:
    """A pruned product, GELU, a product of that, and a residual."""
    n, k = mask.shape
    rows = [hw.matmul(m=m, k=k, n=n, mask=mask), hw.gelu(elements=m * n), hw.matmul(m=m, k=n, n=after)]
    older = hw.layernorm(rows=m, cols=after)
    residual = hw.elementwise("add", elements=m * after, inputs=2)
    return hw.Trace.from_operators([*rows, older, residual]).replace(edges=((0, 1), (1, 2), (2, 4), (3, 4)))


def never_rises(latency_s: Any) -> None:
    assert all(faster <= slower * (1 + 1e-12) for slower, faster in pairwise(np.asarray(latency_s).tolist()))


@settings(max_examples=60)
@given(mask=masks(), m=st.integers(1, 900), after=st.integers(8, 400), machine=CRAMPED, pes=st.integers(1, 16), data=st.data())
def test_more_of_anything_never_costs_a_chain_time(
    *, mask: BlockMask, m: int, after: int, machine: dict[str, Any], pes: int, data: st.DataObject
) -> None:
    """Bandwidth of DRAM and port, both buffers, clock and rate of the functions in twelve steps; 1 to 16 PEs."""
    trace, field = chain(mask, m, after), data.draw(st.sampled_from(GROWING))
    growing = machine | {field: machine.get(field, ROOM[field]) * np.geomspace(1, 8, 12)}
    for mode, count in (("full", {}), ("chip", {"pe_count": float(pes)})):
        never_rises(price(trace, mode, **growing, **count).latency_s)
    never_rises(price(trace, **machine, pe_count=np.arange(1.0, 17)).latency_s)


@settings(max_examples=60)
@given(mask=masks(), m=st.integers(1, 900), after=st.integers(8, 400), machine=CRAMPED, pes=st.integers(1, 16), data=st.data())
def test_fewer_blocks_never_cost_a_chain_time(
    *, mask: BlockMask, m: int, after: int, machine: dict[str, Any], pes: int, data: st.DataObject
) -> None:
    """Blocks are taken away one after the other, on one PE and on many."""
    if not mask.kept_blocks:
        return
    places = data.draw(st.permutations(np.argwhere(mask.kept).tolist()))[:8]
    for mode, count in (("full", {}), ("chip", {"pe_count": float(pes)})):
        kept, found = mask.kept.copy(), [price(chain(mask, m, after), mode, **machine, **count).latency_s]
        for place in places:
            kept[tuple(place)] = False
            fewer = BlockMask(mask.shape, mask.block, kept.copy())
            found.append(price(chain(fewer, m, after), mode, **machine, **count).latency_s)
        never_rises(found)


# --- energy and bounds --------------------------------------------------------------------------------------------


@FEWER
@given(trace=traces(), mode=st.sampled_from(["full", "chip"]))
def test_energy_by_component_and_by_cause_sum_to_the_same(trace: hw.Trace, mode: str) -> None:
    estimate = price(trace, mode)
    parts = sum(estimate.costs.components_j.values())
    assert np.allclose(parts, estimate.costs.energy_j, rtol=1e-12, atol=0)
    assert sum(estimate.energy_by_component_j.values()) == pytest.approx(estimate.energy_j)


@FEWER
@given(trace=traces(), mode=st.sampled_from(["full", "chip"]))
def test_never_faster_than_arithmetic_or_memory_allow(trace: hw.Trace, mode: str) -> None:
    estimate = price(trace, mode)
    pes = 8 if mode == "chip" else 1
    assert estimate.cycles >= estimate.executed_macs / (pes * 1024) * (1 - 1e-12)
    assert estimate.latency_s >= estimate.dram_bytes / 25.6e9 * (1 - 1e-12)
    assert 0 <= estimate.idle_share < 1


# --- many designs at once -----------------------------------------------------------------------------------------


def test_a_sweep_equals_its_designs_one_by_one() -> None:
    trace = pruned(vit(192, depth=2), (32, 32), 0.4, "tile-clustered")
    rng = np.random.default_rng(0)
    designs = {
        "pe_count": rng.integers(1, 20, 9),
        **{name: ROOM[name] * rng.uniform(0.5, 4, 9) for name in ROOM if name != "pe_count"},
    }
    found = sweep(trace, {"pe": "32x32", **designs})
    for place in range(9):
        one = price(trace, **{name: float(values[place]) for name, values in designs.items()})
        assert found.latency_s[place] == pytest.approx(one.latency_s, rel=1e-12)
        assert found.energy_j[place] == pytest.approx(one.energy_j, rel=1e-12)
        assert found.dram_bytes[place] == pytest.approx(one.dram_bytes, rel=1e-12)
        assert found.idle_share[place] == pytest.approx(one.idle_share, abs=1e-12)
        assert found.area_mm2[place] == pytest.approx(sum(one.area_mm2.values()), rel=1e-12)


def test_chunks_and_threads_leave_no_trace() -> None:
    """Three chunks; one thread and three give the same numbers in the same order."""
    clocks = np.linspace(0.5e9, 2e9, 9000)
    one, three = (sweep(vit(192, depth=1), {"pe": "32x32", "clock_hz": clocks}, workers=count) for count in (1, 3))
    assert one.latency_s.tolist() == three.latency_s.tolist()
    assert (np.diff(one.latency_s) <= 0).all()


@pytest.mark.parametrize(
    ("designs", "choices", "told"),
    [
        ({"pe": "32x32"}, {}, "none is swept"),
        ({"clock_hz": [1e9, 2e9], "pe_count": [1, 2, 3]}, {}, "clock_hz has 2, pe_count has 3"),
        ({"clock_hz": []}, {}, "one at least"),
        ({"clock_hz": [1e9, -1e9]}, {}, "clock_hz"),
        ({"clock_mhz": [1e3]}, {}, "did you mean 'clock_hz'"),
        ({"clock_hz": [1e9]}, {"mode": "paper"}, "a sweep is for modes full and chip"),
        ({"clock_hz": [1e9]}, {"device": "tpu-v3"}, "a sweep is for modes full and chip"),
        ({"clock_hz": [1e9]}, {"mode": "chp"}, "did you mean 'chip'"),
        ({"clock_hz": [1e9]}, {"dtype": "int4"}, "int4"),
    ],
)
def test_what_a_sweep_refuses(designs: dict[str, Any], choices: dict[str, Any], told: str) -> None:
    with pytest.raises(HwmodelError, match=told):
        sweep(vit(768, depth=1), designs, **choices)
