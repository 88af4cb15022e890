"""What must hold for every product, mask and trace on the TPU backend."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hwmodel.backends.base import Costs, Options, Workload, evaluate
from hwmodel.backends.cards import read_card
from hwmodel.backends.systolic import Tpu, compute_cycles, folds
from hwmodel.content import content_folder
from hwmodel.ir.masks import BlockMask, ExpectedMask
from hwmodel.ir.operators import Operator, elementwise, gelu, layernorm, matmul, movement, softmax
from hwmodel.ir.trace import Trace

CARD = read_card(content_folder("simulators") / "tpu-v3" / "card.toml")
MODES = ["device", "device+host", "systolic"]
COLUMNS = ("cycles", "latency_s", "gap_s", "compute_j", "onchip_j", "offchip_j", "static_j", "dram_bytes", "executed_macs")

sizes = st.integers(1, 600)
sides = st.integers(1, 130)
dataflows = st.sampled_from(["ws", "os", "is"])


def cost(trace: Trace, mode: str, overrides: dict[str, Any] | None = None, scope: Any = "board") -> Costs:
    workload = Workload.of(trace, dtype=None, default_dtype=CARD.default_dtype)
    return evaluate(Tpu(), workload, CARD.resolve(mode, overrides), Options(mode=mode, scope=scope))


@st.composite
def masked_products(draw: st.DrawFn) -> Operator:
    out_side, in_side = draw(st.sampled_from([(16, 16), (32, 32), (64, 32), (128, 128), (48, 80)]))
    n, k = draw(st.integers(out_side, 500)), draw(st.integers(in_side, 500))
    grid = (-(-n // out_side), -(-k // in_side))
    kept = draw(st.lists(st.booleans(), min_size=grid[0] * grid[1], max_size=grid[0] * grid[1]))
    mask = BlockMask((n, k), (out_side, in_side), np.array(kept).reshape(grid))
    return matmul(m=draw(sizes), k=k, n=n, mask=mask)


@st.composite
def traces(draw: st.DrawFn) -> Trace:
    kinds = st.one_of(
        masked_products(),
        st.builds(matmul, m=sizes, k=sizes, n=sizes, batch=st.integers(1, 8)),
        st.builds(gelu, elements=st.integers(1, 10**7)),
        st.builds(lambda elements: elementwise("add", elements=elements, inputs=2), st.integers(1, 10**7)),
        st.builds(softmax, rows=sizes, cols=st.integers(1, 5000)),
        st.builds(layernorm, rows=sizes, cols=st.integers(1, 5000)),
        st.builds(lambda elements: movement("concat", elements=elements), st.integers(1, 10**7)),
    )
    operators = draw(st.lists(kinds, min_size=1, max_size=8))
    pairs = [(a, b) for b in range(len(operators)) for a in range(b)]
    edges = draw(st.lists(st.sampled_from(pairs), unique=True, max_size=10)) if pairs else []
    return Trace.from_operators(operators).replace(edges=tuple(edges))


@given(m=sizes, k=sizes, n=sizes, array=st.fixed_dictionaries({"rows": sides, "cols": sides, "dataflow": dataflows}))
def test_more_work_never_takes_fewer_cycles(m: int, k: int, n: int, array: dict[str, Any]) -> None:
    base = compute_cycles(m=m, k=k, n=n, **array)
    assert base >= 0
    assert base <= min(compute_cycles(m=m + 1, k=k, n=n, **array), compute_cycles(m=m, k=k + 1, n=n, **array))
    assert base <= compute_cycles(m=m, k=k, n=n + 1, **array)


@given(m=sizes, k=sizes, n=sizes, rows=sides, cols=sides)
def test_kept_tiles_interpolate_between_nothing_and_dense(m: int, k: int, n: int, rows: int, cols: int) -> None:
    shape = {"m": m, "k": k, "n": n, "rows": rows, "cols": cols, "dataflow": "ws"}
    cycles = compute_cycles(**shape, occupied_tiles=np.arange(int(folds(**shape)) + 1))
    assert (cycles[0], cycles[-1]) == (0, compute_cycles(**shape))
    assert (np.diff(cycles) > 0).all()


@given(m=sizes, k=sizes, n=sizes, rows=sides, cols=sides)
def test_input_stationary_is_weight_stationary_transposed(m: int, k: int, n: int, rows: int, cols: int) -> None:
    one = compute_cycles(m=m, k=k, n=n, rows=rows, cols=cols, dataflow="is")
    assert one == compute_cycles(m=n, k=k, n=m, rows=rows, cols=cols, dataflow="ws")


@pytest.mark.parametrize("mode", MODES)
@settings(max_examples=60, deadline=None)
@given(trace=traces(), data=st.data())
def test_removing_a_block_never_costs(mode: str, trace: Trace, data: st.DataObject) -> None:
    masked = [
        row for row, operator in enumerate(trace.operators) if isinstance(operator.mask, BlockMask) and operator.mask.kept_blocks
    ]
    if not masked:
        return
    row = data.draw(st.sampled_from(masked))
    mask = trace.operators[row].mask
    assert isinstance(mask, BlockMask)
    kept = mask.kept.copy()
    kept.ravel()[data.draw(st.sampled_from(np.flatnonzero(kept).tolist()))] = False
    fewer = list(trace.operators)
    fewer[row] = fewer[row].replace(mask=BlockMask(mask.shape, mask.block, kept))
    before, after = cost(trace, mode), cost(trace.replace(operators=tuple(fewer)), mode)
    slack = 1 + 1e-12
    assert (after.latency_s <= before.latency_s * slack).all()
    assert (after.energy_j <= before.energy_j * slack).all()
    assert (after.dram_bytes <= before.dram_bytes * slack).all()


@pytest.mark.parametrize("mode", MODES)
@settings(max_examples=30, deadline=None)
@given(product=masked_products(), kept=st.integers(0, 100))
def test_removing_an_expected_block_never_costs(mode: str, product: Operator, kept: int) -> None:
    assert product.mask is not None
    shape, block = product.mask.shape, product.mask.block
    total = product.mask.total_blocks
    several = [ExpectedMask(shape, block, min(count, total)) for count in (kept, kept + 1)]
    fewer, more = (cost(Trace.from_operators([product.replace(mask=mask)]), mode) for mask in several)
    assert fewer.latency_s[0] <= more.latency_s[0] * (1 + 1e-9)
    assert fewer.energy_j[0] <= more.energy_j[0] * (1 + 1e-9)


@pytest.mark.parametrize("mode", MODES)
@settings(max_examples=30, deadline=None)
@given(product=masked_products())
def test_every_block_kept_is_dense_and_no_kept_mac_is_lost(mode: str, product: Operator) -> None:
    assert product.mask is not None
    full = product.replace(mask=BlockMask.full(product.mask.shape, product.mask.block))
    masked, whole, dense = (
        cost(Trace.from_operators([operator]), mode) for operator in (product, full, product.replace(mask=None))
    )
    for column in COLUMNS:
        np.testing.assert_array_equal(getattr(whole, column), getattr(dense, column), err_msg=column)
    assert masked.executed_macs[0] >= product.kept_macs * (1 - 1e-12)


@pytest.mark.parametrize("mode", MODES)
@settings(max_examples=40, deadline=None)
@given(trace=traces())
def test_costs_are_sane(mode: str, trace: Trace) -> None:
    costs = cost(trace, mode)
    for column in COLUMNS:
        values = getattr(costs, column)
        assert np.isfinite(values).all(), column
        assert (values >= 0).all(), column
    riders = costs.fused_into != np.arange(len(trace))
    assert (costs.latency_s[riders] == 0).all()
    assert (costs.energy_j[riders] == 0).all()
    assert (costs.fused_into[costs.fused_into] == costs.fused_into).all()
    assert (costs.gap_s <= costs.latency_s).all()
    assert ((costs.bound == "none") == (costs.latency_s == 0)).all()


@pytest.mark.parametrize("mode", MODES)
@settings(max_examples=30, deadline=None)
@given(trace=traces(), seed=st.integers(0, 1000))
def test_order_by_hand_does_not_matter(mode: str, trace: Trace, seed: int) -> None:
    order = np.random.default_rng(seed).permutation(len(trace))
    shuffled = Trace(model="", operators=tuple(trace.operators[row] for row in order))
    plain = trace.replace(edges=())
    for column in COLUMNS:
        np.testing.assert_array_equal(
            getattr(cost(shuffled, mode), column), getattr(cost(plain, mode), column)[order], err_msg=column
        )


@pytest.mark.parametrize("field", ["product_hbm_bytes_per_s", "vector_hbm_bytes_per_s", "clock_hz", "vector_ops_per_cycle", "mxus"])
@settings(max_examples=20, deadline=None)
@given(trace=traces(), factor=st.integers(2, 9))
def test_better_hardware_never_takes_longer(field: str, trace: Trace, factor: int) -> None:
    better = cost(trace, "device", {field: getattr(CARD.resolve("device"), field) * float(factor)})
    assert (better.latency_s <= cost(trace, "device").latency_s * (1 + 1e-12)).all()


@settings(max_examples=20, deadline=None)
@given(trace=traces())
def test_the_host_only_adds_gaps(trace: Trace) -> None:
    device, host = cost(trace, "device"), cost(trace, "device+host")
    np.testing.assert_allclose(host.latency_s - host.gap_s, device.latency_s, rtol=1e-9, atol=1e-15)
    np.testing.assert_array_equal(host.dram_bytes, device.dram_bytes)


@settings(max_examples=20, deadline=None)
@given(trace=traces())
def test_scopes_differ_by_static_energy(trace: Trace) -> None:
    board, dynamic = cost(trace, "device"), cost(trace, "device", scope="dynamic")
    np.testing.assert_allclose(board.energy_j - dynamic.energy_j, board.static_j, rtol=1e-9, atol=1e-18)
    assert (dynamic.static_j == 0).all()
