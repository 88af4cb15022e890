"""What must hold on a GPU for every product, stream, mask and card."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from hwmodel.backends.base import Costs, Options, Workload, evaluate
from hwmodel.backends.cards import read_card
from hwmodel.backends.gpu import Gpu
from hwmodel.backends.gpu.parameters import GpuParameters
from hwmodel.content import content_folder
from hwmodel.ir.masks import BlockMask
from hwmodel.ir.operators import Operator, attention, elementwise, layernorm, matmul, softmax
from hwmodel.ir.trace import Trace

A100 = GpuParameters.model_validate(read_card(content_folder("simulators") / "a100-40gb-sxm" / "card.toml").values())
MODES = st.sampled_from(["kernel", "eager", "compiled", "engine"])
DTYPES = st.sampled_from(["fp32", "tf32", "fp16", "bf16", "amp-fp16", "int8"])
SIZE = st.integers(1, 5000)


@st.composite
def operators(draw: st.DrawFn) -> Operator:
    a, b, c, batch, dtype = draw(SIZE), draw(SIZE), draw(SIZE), draw(st.integers(1, 64)), draw(DTYPES)
    return draw(
        st.sampled_from(
            [
                matmul(m=a, k=b, n=c, dtype=dtype),
                matmul(m=a, k=b, n=64, batch=batch, dtype=dtype),
                softmax(rows=a * batch, cols=b, dtype=dtype),
                layernorm(rows=a, cols=b, dtype=dtype),
                elementwise("gelu", elements=a * b, dtype=dtype),
                elementwise("add", elements=a * b, inputs=2, dtype=dtype),
                attention(batch=batch, heads=3, queries=a, keys=b, head_dim=64, dtype=dtype),
            ]
        )
    )


TRACES = st.lists(operators(), min_size=1, max_size=6).map(Trace.from_operators)


def cost(trace: Trace, mode: str, gpu: GpuParameters = A100) -> Costs:
    return evaluate(Gpu(), Workload.of(trace, dtype=None, default_dtype="fp16"), gpu, Options(mode=mode))


@given(TRACES, MODES, st.floats(1.01, 100), st.sampled_from(["dram_bytes_per_s", "clock_hz", "l2_bytes"]))
@settings(deadline=None)
def test_a_faster_part_never_costs_time(trace: Trace, mode: str, factor: float, field: str) -> None:
    """Board limit lifted: a higher clock at a fixed limit may well be slower."""
    free = A100.model_copy(update={"board_limit_w": 1e9})
    faster = free.model_copy(update={field: getattr(free, field) * factor})
    assert cost(trace, mode, faster).latency_s.sum() <= cost(trace, mode, free).latency_s.sum() * (1 + 1e-9)


@given(TRACES, MODES)
@settings(deadline=None)
def test_costs_are_finite_and_within_the_board_limit(trace: Trace, mode: str) -> None:
    costs = cost(trace, mode)
    assert np.isfinite(costs.latency_s).all()
    assert (costs.latency_s > 0).all()
    assert (costs.energy_j <= A100.board_limit_w * costs.latency_s * (1 + 1e-9)).all()
    assert (costs.executed_macs >= [operator.kept_macs for operator in trace.operators]).all()


@given(st.lists(operators(), min_size=2, max_size=6), MODES, st.randoms())
@settings(deadline=None)
def test_order_does_not_matter_without_edges(rows: list[Operator], mode: str, random: object) -> None:
    named = [row.replace(name=f"row{index}") for index, row in enumerate(rows)]
    shuffled = named.copy()
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    one = dict(zip([row.name for row in named], cost(Trace.from_operators(named), mode).latency_s, strict=True))
    two = dict(zip([row.name for row in shuffled], cost(Trace.from_operators(shuffled), mode).latency_s, strict=True))
    for name, seconds in one.items():
        np.testing.assert_allclose(two[name], seconds, rtol=1e-9)


@given(st.integers(1, 4096), SIZE, SIZE, DTYPES, st.integers(1, 4096))
@settings(deadline=None)
def test_fewer_tokens_never_cost_time_or_energy(m: int, k: int, n: int, dtype: str, more: int) -> None:
    few, many = (cost(Trace.from_operators([matmul(m=rows, k=k, n=n, dtype=dtype)]), "kernel") for rows in (m, m + more))
    assert few.latency_s[0] <= many.latency_s[0] * (1 + 1e-9)
    assert few.energy_j[0] <= many.energy_j[0] * (1 + 1e-9)


@given(
    st.integers(1, 3000), st.sampled_from([(64, 64), (32, 32), (64, 32), (16, 16), (128, 128)]), DTYPES,
    st.integers(0, 2**32 - 1), st.tuples(st.floats(0, 1), st.floats(0, 1)),
)  # fmt: skip
@settings(deadline=None)
def test_removing_blocks_never_costs(m: int, block: tuple[int, int], dtype: str, seed: int, shares: tuple[float, float]) -> None:
    """Time, energy and traffic, under sparse_kernel "auto"; all blocks kept equals no mask."""
    shape = (640, 512)
    score = np.random.default_rng(seed).random((640 // block[0], 512 // block[1]))
    masks = [BlockMask(shape, block, score < share) for share in sorted(shares)]
    rows = [matmul(m=m, k=512, n=640, dtype=dtype, mask=mask) for mask in (*masks, BlockMask.full(shape, block), None)]
    costs = cost(Trace.from_operators(rows), "kernel")
    for column in (costs.latency_s, costs.energy_j, costs.dram_bytes, costs.executed_macs):
        assert column[0] <= column[1] * (1 + 1e-9)
        assert column[1] <= column[2] * (1 + 1e-9)
        assert column[2] == column[3]


@given(TRACES, MODES, st.lists(st.floats(0.3, 3.0), min_size=1, max_size=3))
@settings(deadline=None)
def test_a_sweep_equals_its_designs(trace: Trace, mode: str, factors: list[float]) -> None:
    clocks = A100.clock_hz * np.array(factors).reshape(-1, 1)
    swept = cost(trace, mode, A100.model_copy(update={"clock_hz": clocks}))
    for index, clock in enumerate(clocks[:, 0].tolist()):
        single = cost(trace, mode, A100.model_copy(update={"clock_hz": clock}))
        np.testing.assert_allclose(swept.latency_s[index], single.latency_s, rtol=1e-12)
        np.testing.assert_allclose(swept.energy_j[index], single.energy_j, rtol=1e-12)
