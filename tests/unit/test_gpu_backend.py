"""The GPU backend over whole traces: modes, fusion, sparsity, energy scopes, sweeps."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import hwmodel as hw
from hwmodel.backends.base import Costs, Options, Workload, evaluate
from hwmodel.backends.cards import read_card
from hwmodel.backends.gpu import Gpu, slow_layers, told
from hwmodel.backends.gpu.fusion import plan
from hwmodel.backends.gpu.parameters import GpuParameters
from hwmodel.content import content_folder
from hwmodel.ir.masks import BlockMask, expected_mask
from hwmodel.ir.operators import Operator, attention, elementwise, gelu, layernorm, matmul, movement, softmax
from hwmodel.ir.trace import Trace

A100 = GpuParameters.model_validate(read_card(content_folder("simulators") / "a100-40gb-sxm" / "card.toml").values())
ORIN = read_card(content_folder("simulators") / "agx-orin-64gb" / "card.toml")
WHOLE = ("compiled", "eager", "engine")


def block(tokens: int = 1576, width: int = 768, heads: int = 12, *, mask: BlockMask | None = None) -> Trace:
    """One encoder block of a ViT; rows as numbered below."""
    images, dim = tokens // 197, width // heads
    group = {"attention_group": "attn", "fused_in_source": True}
    rows: list[tuple[Operator, tuple[int, ...]]] = [
        (layernorm(rows=tokens, cols=width, name="norm1"), ()),  # 0
        (matmul(m=tokens, k=width, n=3 * width, name="qkv"), (0,)),  # 1
        (matmul(batch=images * heads, m=197, k=dim, n=197, name="scores", **group), (1,)),  # 2
        (softmax(rows=images * heads * 197, cols=197, name="softmax", **group), (2,)),  # 3
        (matmul(batch=images * heads, m=197, k=197, n=dim, name="context", **group), (1, 3)),  # 4
        (matmul(m=tokens, k=width, n=width, name="proj"), (4,)),  # 5
        (elementwise("add", elements=tokens * width, inputs=2, name="add"), (5,)),  # 6
        (layernorm(rows=tokens, cols=width, name="norm2"), (6,)),  # 7
        (matmul(m=tokens, k=width, n=4 * width, name="fc1", mask=mask), (7,)),  # 8
        (gelu(elements=tokens * 4 * width, name="gelu"), (8,)),  # 9
        (matmul(m=tokens, k=4 * width, n=width, name="fc2"), (9,)),  # 10
        (elementwise("add", elements=tokens * width, inputs=2, name="add_1"), (6, 10)),  # 11
    ]
    edges = tuple((producer, row) for row, (_, producers) in enumerate(rows) for producer in producers)
    return Trace(model="block", operators=tuple(row for row, _ in rows), edges=edges, dtype="fp16")


def cost(trace: Trace, mode: str = "compiled", gpu: GpuParameters = A100, **options: str) -> Costs:
    workload = Workload.of(trace, dtype=None, default_dtype="fp16")
    return evaluate(Gpu(), workload, gpu, Options(mode=mode, **options))  # type: ignore[arg-type]


def kernels(mode: str, attention_choice: str = "source") -> list[tuple[int, ...]]:
    workload = Workload.of(block(), dtype=None, default_dtype="fp16")
    return [kernel.members for kernel in plan(workload, mode, attention_choice)]  # type: ignore[arg-type]


def test_fusion_rules_by_mode() -> None:
    attention_rows = (2, 3, 4)
    assert kernels("eager") == [(0,), (1,), attention_rows, *((row,) for row in range(5, 12))]
    assert kernels("kernel") == kernels("eager")
    assert kernels("eager", "math") == [(row,) for row in range(12)]
    assert kernels("compiled") == [(0,), (1,), attention_rows, (5,), (6, 7), (8,), (9,), (10,), (11,)]
    assert kernels("engine") == [(0,), (1,), attention_rows, (5, 6), (7,), (8, 9), (10, 11)]


def test_fused_rows_cost_nothing_of_their_own() -> None:
    costs = cost(block(), "compiled")
    assert costs.fused_into.tolist() == [0, 1, 2, 2, 2, 5, 6, 6, 8, 9, 10, 11]
    assert (costs.latency_s[costs.fused_into != np.arange(12)] == 0).all()


def test_a_kernel_never_waits_for_itself() -> None:
    """Row 3 reads row 2, fused with row 0, and row 1, a product that needs row 0: it cannot join rows 0 and 2."""
    rows = (
        gelu(elements=1 << 20, name="first"),
        matmul(m=1024, k=1024, n=1024, name="product"),
        elementwise("exp", elements=1 << 20, name="second"),
        elementwise("add", elements=1 << 20, inputs=2, name="sum"),
    )
    trace = Trace(model="diamond", operators=rows, edges=((0, 1), (0, 2), (1, 3), (2, 3)), dtype="fp16")
    assert cost(trace, "compiled").fused_into.tolist() == [0, 1, 0, 3]


@pytest.mark.parametrize("mode", [*WHOLE, "kernel"])
def test_rows_add_up(mode: str) -> None:
    costs = cost(block(), mode)
    np.testing.assert_allclose(costs.energy_j, costs.compute_j + costs.onchip_j + costs.offchip_j + costs.static_j)
    assert (costs.gap_s <= costs.latency_s).all()
    assert (costs.energy_j <= A100.board_limit_w * costs.latency_s * (1 + 1e-9)).all()
    np.testing.assert_allclose(costs.cycles, costs.latency_s * A100.clock_hz)


def test_modes_are_ordered() -> None:
    eager, compiled, engine = (cost(block(), mode).latency_s.sum() for mode in ("eager", "compiled", "engine"))
    assert engine < compiled < eager
    assert cost(block(), "compiled", attention="math").latency_s.sum() > compiled
    assert cost(block(), "kernel").gap_s.sum() == 0


def test_eager_is_bound_by_the_host_for_small_work() -> None:
    """Ten kernels, one attention among them, cannot pass faster than the host dispatches them."""
    costs = cost(block(197), "eager")
    assert costs.latency_s.sum() == pytest.approx(10 * A100.host_operator_s)
    assert set(costs.bound[costs.gap_s > 0.5 * costs.latency_s]) == {"host"}
    large = cost(block(197 * 512), "eager")
    assert large.gap_s.sum() == pytest.approx(10 * A100.kernel_gap_s)


def test_hand_made_attention_equals_the_spelled_out_one() -> None:
    spelled = block().operators[2:5]
    by_hand = Trace.from_operators([attention(batch=8, heads=12, queries=197, keys=197, head_dim=64)], dtype="fp16")
    apart = Trace(model="attention", operators=spelled, edges=((0, 1), (1, 2)), dtype="fp16")
    for choice in ("fused", "math"):
        assert cost(by_hand, "kernel", attention=choice).latency_s.sum() == pytest.approx(
            cost(apart, "kernel", attention=choice).latency_s.sum(), rel=0.02
        )
    assert cost(by_hand).executed_macs.sum() == cost(apart).executed_macs.sum() == 2 * 96 * 197 * 197 * 64


def test_unfused_attention_lays_its_heads_out() -> None:
    """Batched products have one stride: where the source fuses attention, queries, keys and values are first copied."""
    scores = matmul(name="scores", role="scores", batch=24, m=200, k=64, n=200, attention_group="a", fused_in_source=True)
    packed, apart = (
        hw.estimate(Trace.from_operators([one]), device="a100-40gb", mode="compiled", attention="math")
        for one in (scores, scores.replace(fused_in_source=False))
    )
    extra = packed.costs.onchip_j[0] - apart.costs.onchip_j[0]
    copied = 2 * (3 * 24 * 200 * 64) * 2
    assert extra == pytest.approx(copied * A100.onchip_j_per_byte)
    assert packed.latency_s > apart.latency_s


def test_a_gated_activation_runs_row_by_row() -> None:
    """SiLU times a gate is a runtime's own kernel: one block per row, so one row takes as long as 108 of them."""
    gate = elementwise("silu", elements=11008, inputs=2, dtype="fp16")
    times = [
        hw.estimate(Trace.from_operators([one]), device="a100-40gb", mode="kernel").latency_s
        for one in (gate.replace(cols=11008), gate, elementwise("silu", elements=11008, dtype="fp16"))
    ]
    assert times[0] > 2 * times[1], "one row on one SM, against a row spread over all"
    assert times[1] > times[2]


def test_pruned_to_nothing_costs_nothing() -> None:
    empty = expected_mask((3072, 768), (64, 64), 0.0)
    for choice in ("auto", "always"):
        costs = cost(block(mask=empty), "compiled", sparse_kernel=choice)  # type: ignore[arg-type]
        assert costs.latency_s[8] == costs.energy_j[8] == costs.executed_macs[8] == costs.dram_bytes[8] == 0
        assert costs.kernel[8] == "skipped"
    fused = cost(block(mask=empty), "engine")  # type: ignore[arg-type]
    assert fused.fused_into[9] == 9
    assert fused.latency_s[9] == 0, "a function of the bias alone is known before the first image"


def test_auto_takes_the_dense_kernel_where_sparse_is_dearer() -> None:
    dense, kept = cost(block(197 * 64), "kernel"), expected_mask((3072, 768), (64, 64), 0.8)
    auto, always = (cost(block(197 * 64, mask=kept), "kernel", sparse_kernel=choice) for choice in ("auto", "always"))  # type: ignore[arg-type]
    assert auto.latency_s[8] == dense.latency_s[8]
    assert always.latency_s[8] > 1.2 * dense.latency_s[8]
    assert always.kernel[8] == "block-sparse"
    assert always.executed_macs[8] == pytest.approx(0.8 * dense.executed_macs[8], rel=0.01)


def test_sparse_kernel_wins_below_break_even() -> None:
    tokens = 197 * 64
    few = expected_mask((3072, 768), (64, 64), 0.2)
    ratio = cost(block(tokens, mask=few), "kernel").latency_s[8] / cost(block(tokens), "kernel").latency_s[8]  # type: ignore[arg-type]
    assert ratio == pytest.approx(0.13 + 1.89 * 0.2, rel=0.08)


def semi(trace: Trace, *names: str) -> Trace:
    return trace.replace(operators=tuple(one.replace(sparsity="2:4") if one.name in names else one for one in trace.operators))


def test_two_of_four_is_priced_where_it_wins() -> None:
    tokens = 197 * 64
    dense, sparse = cost(block(tokens), "engine"), cost(semi(block(tokens), "fc1", "fc2"), "engine")
    assert sparse.kernel[8] == sparse.kernel[10] == "sparse-2:4"
    assert 0.5 * dense.latency_s[8] < sparse.latency_s[8] < 0.9 * dense.latency_s[8]
    assert sparse.executed_macs[8] == 0.5 * dense.executed_macs[8]
    assert sparse.energy_j[8] < dense.energy_j[8]
    copied = cost(semi(block(tokens), "fc1"), "compiled", sparse_kernel="always")
    assert copied.latency_s[8] > cost(semi(block(tokens), "fc1"), "kernel", sparse_kernel="always").latency_s[8]


def test_two_of_four_never_costs() -> None:
    for mode in (*WHOLE, "kernel"):
        for dtype in ("fp16", "fp32"):
            plain, pruned = block(197).replace(dtype=dtype), semi(block(197), "qkv", "fc1").replace(dtype=dtype)
            dense, sparse = cost(plain, mode), cost(pruned, mode)
            assert (sparse.latency_s <= dense.latency_s * (1 + 1e-9)).all()
            assert (sparse.energy_j <= dense.energy_j * (1 + 1e-9)).all()


def test_slow_layers_name_their_break_even() -> None:
    masks = [expected_mask((3072, 768), (64, 64), density) for density in (0.8, 0.2)]
    (slow,) = slow_layers(hw.estimate(block(197 * 64, mask=masks[0]), device="a100-40gb", mode="compiled"))  # type: ignore[arg-type]
    assert (slow.name, slow.unit, slow.break_even) == ("fc1", (64, 64), pytest.approx(0.46, abs=0.01))
    assert slow.sparse_s > slow.dense_s
    (line,) = told([slow], forced=False)
    assert line.startswith("fc1: the block-sparse kernel takes ")
    assert line.endswith("it runs dense, and breaks even at 46%")
    assert "it runs sparse all the same" in told([slow], forced=True)[0]
    assert told([replace(slow, name=f"blocks.{block}.fc1") for block in range(3)], forced=False)[0].startswith(
        "blocks.*.fc1 (3 layers): "
    )
    assert not slow_layers(hw.estimate(block(197 * 64, mask=masks[1]), device="a100-40gb", mode="compiled"))  # type: ignore[arg-type]
    small = semi(block(197), "proj")
    (layer,) = slow_layers(hw.estimate(small, device="t4", mode="kernel"))
    assert layer.break_even is None
    assert "its 2:4 kernel takes" in told([layer], forced=False)[0]
    assert slow_layers(hw.estimate(block(197, mask=masks[0]), device="tpu-v3", dtype="bf16")) == []  # type: ignore[arg-type]


def test_narrow_weights_are_read_faster() -> None:
    wide, narrow = (matmul(m=1, k=4096, n=4096, weight_dtype=dtype, dtype="fp16") for dtype in (None, "int8"))
    ratio = cost(Trace.from_operators([narrow]), "kernel").latency_s / cost(Trace.from_operators([wide]), "kernel").latency_s
    assert 0.5 < ratio[0] < 0.8


def test_scopes_subtract_idle_power() -> None:
    board, dynamic, lsp = (cost(block(), "compiled", scope=scope) for scope in ("board", "dynamic", "lsp"))
    np.testing.assert_allclose(board.energy_j - dynamic.energy_j, A100.idle_w * board.latency_s)
    np.testing.assert_array_equal(dynamic.energy_j, lsp.energy_j)


def test_sweep_equals_single_designs() -> None:
    clocks = np.array([[0.6e9], [1.0e9], [1.41e9]])
    memory = np.array([[0.5e12], [1.0e12], [1.555e12]])
    both = A100.model_copy(update={"clock_hz": clocks, "dram_bytes_per_s": memory})
    for mode in (*WHOLE, "kernel"):
        swept = cost(block(), mode, both)
        assert swept.latency_s.shape == (3, 12)
        for row in range(3):
            single = A100.model_copy(update={"clock_hz": clocks[row, 0], "dram_bytes_per_s": memory[row, 0]})
            np.testing.assert_allclose(swept.latency_s[row], cost(block(), mode, single).latency_s, rtol=1e-12)
            np.testing.assert_allclose(swept.energy_j[row], cost(block(), mode, single).energy_j, rtol=1e-12)


def test_constants_are_folded_where_a_deployed_model_would() -> None:
    trace = Trace.from_operators([elementwise("add", elements=1 << 20, constant=True)], dtype="fp16")
    assert cost(trace, "compiled").latency_s[0] == 0
    assert cost(trace, "eager").latency_s[0] > 0


def test_patches_are_free_in_whole_models_only() -> None:
    trace = Trace.from_operators([movement("patchify", elements=1 << 20)], dtype="fp16")
    assert "patchify" in Gpu().free("compiled")
    assert cost(trace, "compiled").latency_s[0] == 0
    assert cost(trace, "kernel").latency_s[0] > 0


def test_autocast_charges_casts_and_wide_norms() -> None:
    rows = [layernorm(rows=1 << 16, cols=768), matmul(m=8, k=4096, n=4096)]
    wide, plain = (Trace.from_operators([row.replace(dtype=dtype) for row in rows]) for dtype in ("amp-fp16", "fp16"))
    more = cost(wide).latency_s / cost(plain).latency_s
    assert more[0] == pytest.approx(1.5, rel=0.2)  # reads 32 bits, writes the 16 that the next product reads
    assert more[1] > 2.0
    np.testing.assert_allclose(cost(wide, "engine").latency_s[1], cost(plain, "engine").latency_s[1])


def test_int8_and_tf32_have_their_own_rates() -> None:
    def product(dtype: str) -> float:
        return float(cost(Trace.from_operators([matmul(m=8192, k=8192, n=8192, dtype=dtype)]), "kernel").latency_s[0])

    assert product("int8") < 0.6 * product("fp16")
    assert 1.7 * product("fp16") < product("tf32") < 0.25 * product("fp32")


def test_power_modes_of_orin_are_ordered() -> None:
    latencies, powers = [], []
    for name in ("maxn", "50w", "30w", "15w"):
        gpu = GpuParameters.model_validate(ORIN.values(name))
        costs = cost(block(197), "engine", gpu)
        latencies.append(costs.latency_s.sum())
        powers.append(costs.energy_j.sum() / costs.latency_s.sum())
        assert powers[-1] <= gpu.board_limit_w
    assert latencies == sorted(latencies)
    assert powers == sorted(powers, reverse=True)


def test_an_empty_trace_costs_nothing() -> None:
    assert cost(Trace.from_operators([])).latency_s.shape == (0,)


@pytest.mark.parametrize("device", ["rtx-5090", "v100", "t4", "a100-40gb"])
@pytest.mark.parametrize("density", [0.02, 0.1, 0.5, 1.0])
def test_no_product_outruns_its_own_bytes(device: str, density: float) -> None:
    mask = expected_mask((3072, 768), (64, 64), density)
    rows = [matmul(m=197 * images, k=768, n=3072, name=f"fc1.{images}", mask=mask) for images in (1, 8, 64)]
    found = hw.estimate(Trace.from_operators(rows), device=device, mode="kernel", dtype="fp16", sparse_kernel="always")
    rate = found.card.values()["dram_bytes_per_s"]
    assert (found.costs.latency_s >= found.costs.dram_bytes / rate).all()
