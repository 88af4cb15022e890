"""The TPU backend's modes on small traces; every expected value is its derivation from the card's numbers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hwmodel.backends.base import Costs, Options, Workload, evaluate
from hwmodel.backends.cards import Card, read_card
from hwmodel.backends.systolic import NOT_MODELLED, Tpu
from hwmodel.backends.tpu.programs import kernel_leaders, programs
from hwmodel.content import content_folder
from hwmodel.errors import CardError, HwmodelError
from hwmodel.ir.masks import BlockMask, ExpectedMask
from hwmodel.ir.operators import Operator, attention, elementwise, gelu, layernorm, matmul, movement, reduction, softmax
from hwmodel.ir.trace import Trace

CARD = read_card(content_folder("simulators") / "tpu-v3" / "card.toml")
P = CARD.resolve("device")
CLOCK = P.clock_hz
PEAK_TILES_PER_S = 2 * CLOCK * P.mxu_efficiency  # weight tiles times streamed rows


def cost(
    *operators: Operator,
    mode: str = "device",
    edges: tuple[tuple[int, int], ...] = (),
    overrides: Mapping[str, Any] | None = None,
    scope: Any = "board",
    dtype: str | None = None,
) -> Costs:
    trace = Trace.from_operators(operators).replace(edges=edges)
    workload = Workload.of(trace, dtype=dtype, default_dtype=CARD.default_dtype)
    return evaluate(Tpu(), workload, CARD.resolve(mode, overrides), Options(mode=mode, scope=scope))


def mask(shape: tuple[int, int], kept: int, block: tuple[int, int] = (128, 128)) -> BlockMask:
    grid = np.zeros((-(-shape[0] // block[0]), -(-shape[1] // block[1])), dtype=np.bool_)
    grid.ravel()[:kept] = True
    return BlockMask(shape, block, grid)


# --- products on silicon ------------------------------------------------------------------------------------------


def test_long_product_alone_exposes_one_buffer_of_transfers() -> None:
    """64 weight tiles, 8192 rows, two arrays; operands move beside the arrays, less the first half of the memory."""
    compute_s = 8 * 8 * 8192 / PEAK_TILES_PER_S
    moved = 2 * (8192 * 1024 + 1024 * 1024 + 8192 * 1024)
    memory_s = moved / P.product_hbm_bytes_per_s
    exposed_s = min(compute_s, memory_s, 8 * 2**20 / P.product_hbm_bytes_per_s)
    costs = cost(matmul(m=8192, k=1024, n=1024))
    assert costs.latency_s[0] == pytest.approx(max(compute_s, memory_s) + exposed_s)
    assert costs.dram_bytes[0] == moved
    assert costs.executed_macs[0] == 8192 * 1024 * 1024
    assert (costs.bound[0], costs.kernel[0], costs.gap_s[0]) == ("compute", "mxu", 0)


def test_few_rows_wait_for_the_next_weights() -> None:
    """m = 5 pads to 8, but a tile is held for the 128 cycles in which the next one loads."""
    a, b = (cost(matmul(m=m, k=256, n=256), edges=()).latency_s[0] for m in (5, 8))
    memory_s = 2 * (8 * 256 + 256 * 256 + 8 * 256) / P.product_hbm_bytes_per_s
    compute_s = 2 * 2 * 128 / PEAK_TILES_PER_S
    assert a == b == pytest.approx(max(compute_s, memory_s) + min(compute_s, memory_s))


def test_lanes_and_sublanes_are_padded() -> None:
    """197 x 64 x 197 lies in memory as 200 x 128, 128 x 256 and 200 x 256; two of the 1 x 2 tiles are streamed."""
    costs = cost(matmul(m=197, k=64, n=197, batch=12))
    assert costs.dram_bytes[0] == 12 * 2 * (200 * 128 + 128 * 256 + 200 * 256)
    assert costs.executed_macs[0] == 12 * (1 * 2) * 128 * 128 * 197


def test_inside_a_program_nothing_is_exposed() -> None:
    """Two products joined by an edge: each costs the slower of arrays and memory, the fetch of the other is hidden."""
    joined = cost(matmul(m=8192, k=1024, n=1024), matmul(m=8192, k=1024, n=1024), edges=((0, 1),))
    assert joined.latency_s.tolist() == pytest.approx([64 * 8192 / PEAK_TILES_PER_S] * 2)


def test_weights_are_read_at_their_own_width() -> None:
    base = {"m": 128, "k": 128, "n": 128}
    assert cost(matmul(**base, weight_dtype="int8")).dram_bytes[0] == 128 * 128 * (2 + 1 + 2)
    assert cost(matmul(**base, dtype="amp-bf16")).dram_bytes[0] == 128 * 128 * (2 + 4 + 2), "32-bit weights, cast on use"
    assert cost(matmul(**base, dtype="fp32")).dram_bytes[0] == 128 * 128 * (4 + 4 + 4)


def test_passes_by_dtype_multiply_array_time() -> None:
    six = cost(matmul(m=8192, k=1024, n=1024, dtype="fp32"), overrides={"product_passes.fp32": 6.0})
    one = cost(matmul(m=8192, k=1024, n=1024, dtype="fp32"))
    assert six.latency_s[0] - one.latency_s[0] == pytest.approx(5 * 64 * 8192 / PEAK_TILES_PER_S)
    with pytest.raises(HwmodelError, match="product_passes has no entry for 'fp16'"):
        cost(matmul(m=8, k=8, n=8, dtype="fp16"))


# --- masks --------------------------------------------------------------------------------------------------------


def test_a_tile_is_skipped_only_when_every_block_in_it_is_pruned() -> None:
    """4 x 4 tiles of 128 x 128 in a 512 x 512 weight; one 32 x 32 block left in each tile keeps them all."""
    grid = np.zeros((16, 16), dtype=np.bool_)
    grid[::4, ::4] = True
    dense = cost(matmul(m=4096, k=512, n=512))
    sixteenth = cost(matmul(m=4096, k=512, n=512, mask=BlockMask((512, 512), (32, 32), grid)))
    assert sixteenth.latency_s[0] == dense.latency_s[0]
    half = cost(matmul(m=4096, k=512, n=512, mask=mask((512, 512), 8)))
    assert half.executed_macs[0] == dense.executed_macs[0] / 2
    assert half.dram_bytes[0] == dense.dram_bytes[0] - 2 * 8 * 128 * 128


@pytest.mark.parametrize("mode", ["device", "device+host", "systolic"])
def test_nothing_kept_costs_nothing_and_everything_kept_costs_dense(mode: str) -> None:
    none, full, dense = (
        cost(matmul(m=197, k=192, n=576, mask=kept), mode=mode)
        for kept in (mask((576, 192), 0), BlockMask.full((576, 192), (32, 32)), None)
    )
    for column in ("latency_s", "cycles", "energy_j", "dram_bytes", "executed_macs", "gap_s"):
        assert getattr(none, column)[0] == 0, column
        assert getattr(full, column)[0] == getattr(dense, column)[0], column
    assert none.bound[0] == none.kernel[0] == "none"


# --- vector operators ---------------------------------------------------------------------------------------------


def test_layernorm_passes_four_times_over_padded_fp32() -> None:
    """4090 rows pad to 4096 and 1000 columns to 1024; bf16 costs the same as fp32."""
    expected = 4 * 4 * 4096 * 1024
    for dtype in ("bf16", "fp32"):
        costs = cost(layernorm(rows=4090, cols=1000, dtype=dtype))
        assert costs.dram_bytes[0] == expected
        assert costs.latency_s[0] == pytest.approx(expected / P.vector_hbm_bytes_per_s)


def test_softmax_passes_half_as_often_while_it_fits() -> None:
    """Half of 16 MiB holds 2 Mi values: up to there 4 passes, from there 8."""
    fits, large = 2**21, 2**23
    assert cost(softmax(rows=fits // 1024, cols=1024)).dram_bytes[0] == 4 * 4 * fits
    assert cost(softmax(rows=large // 1024, cols=1024)).dram_bytes[0] == 4 * (4 * fits + 8 * (large - fits))


def test_softmax_inside_a_program_passes_four_times_whatever_its_size() -> None:
    size = 2**23
    joined = cost(matmul(m=8, k=8, n=8), softmax(rows=size // 1024, cols=1024), edges=((0, 1),))
    assert joined.dram_bytes[1] == 4 * 4 * size


def test_elementwise_movement_and_reduction_alone() -> None:
    size = 2**20
    costs = cost(
        gelu(elements=size, dtype="bf16"),
        elementwise("add", elements=size, inputs=2, dtype="bf16"),
        movement("concat", elements=size, dtype="bf16"),
        reduction("mean", inputs=size, outputs=1024, dtype="bf16"),
    )
    assert costs.dram_bytes.tolist() == [4 * 2 * size, 4 * 3 * size, 2 * 2 * size, 4 * (size + 1024)]
    assert costs.kernel.tolist() == ["vpu", "vpu", "dma", "vpu"]
    np.testing.assert_allclose(costs.latency_s, costs.dram_bytes / P.vector_hbm_bytes_per_s)


def test_a_slow_vector_unit_decides() -> None:
    costs = cost(gelu(elements=2**20), overrides={"vector_ops_per_cycle": 16.0})
    assert costs.latency_s[0] == pytest.approx(30 * 2**20 / (16 * CLOCK))
    assert costs.bound[0] == "vector"


# --- fusion -------------------------------------------------------------------------------------------------------

FC1, GELU = matmul(m=197, k=192, n=768, name="fc1"), gelu(elements=197 * 768, name="act")
FC2, ADD = matmul(m=197, k=768, n=192, name="fc2"), elementwise("add", elements=197 * 192, inputs=2, name="add")
NORM = layernorm(rows=197, cols=192, name="norm")


def test_elementwise_operators_ride_in_the_product_before_them() -> None:
    """norm -> fc1 -> gelu -> fc2 -> add (with norm's input side): epilogues add only the operand they still fetch."""
    rows, edges = (NORM, FC1, GELU, FC2, ADD), ((0, 1), (1, 2), (2, 3), (3, 4), (0, 4))
    costs = cost(*rows, edges=edges)
    assert costs.fused_into.tolist() == [0, 1, 1, 3, 3]
    assert costs.latency_s[[2, 4]].tolist() == [0, 0]
    assert costs.energy_j[[2, 4]].tolist() == [0, 0]
    fc2_bytes = 2 * (200 * 768 + 768 * 256 + 200 * 256)
    residual = 2 * 197 * 192
    assert costs.dram_bytes[3] == fc2_bytes + residual
    assert costs.latency_s[3] == pytest.approx(fc2_bytes / P.product_hbm_bytes_per_s + residual / P.vector_hbm_bytes_per_s)
    assert costs.kernel.tolist() == ["vpu", "mxu", "mxu", "mxu", "mxu"]


def test_made_by_hand_nothing_fuses() -> None:
    assert cost(FC1, GELU).fused_into.tolist() == [0, 1]


def leaders(*operators: Operator, edges: tuple[tuple[int, int], ...]) -> list[int]:
    trace = Trace.from_operators(operators).replace(edges=edges)
    return kernel_leaders(Workload.of(trace, dtype=None, default_dtype="bf16")).tolist()


def test_an_output_that_others_read_is_not_fused_away() -> None:
    assert leaders(FC1, GELU, NORM, edges=((0, 1), (0, 2))) == [0, 1, 2]


def test_elementwise_chains_share_one_kernel() -> None:
    scale = elementwise("mul", elements=197 * 768, name="scale")
    assert leaders(FC1, scale, GELU, edges=((0, 1), (1, 2))) == [0, 0, 0]
    assert leaders(NORM, scale, GELU, edges=((0, 1), (1, 2))) == [0, 1, 1]


def test_constants_are_computed_once_and_fuse_with_nothing() -> None:
    constant = matmul(m=64, k=64, n=64, name="table", constant=True)
    assert leaders(constant, GELU, edges=((0, 1),)) == [0, 1]
    assert cost(constant, softmax(rows=8, cols=8, constant=True)).energy_j.tolist() == [0, 0]


def test_fusing_never_costs_more_than_not_fusing() -> None:
    fused, apart = cost(FC1, GELU, FC2, ADD, edges=((0, 1), (1, 2), (2, 3))), cost(FC1, GELU, FC2, ADD)
    assert fused.latency_s.sum() < apart.latency_s.sum()
    assert fused.energy_j.sum() < apart.energy_j.sum()


# --- attention by hand --------------------------------------------------------------------------------------------


def test_attention_by_hand_is_scores_softmax_and_context_in_turn() -> None:
    whole = cost(attention(batch=2, heads=3, queries=197, keys=197, head_dim=64))
    parts = cost(
        matmul(m=197, k=64, n=197, batch=6), softmax(rows=6 * 197, cols=197), matmul(m=197, k=197, n=64, batch=6),
        edges=((0, 1), (1, 2)),
    )  # fmt: skip
    for column in ("latency_s", "energy_j", "dram_bytes", "executed_macs"):
        assert getattr(whole, column)[0] == pytest.approx(getattr(parts, column).sum()), column
    array = cost(attention(batch=2, heads=3, queries=197, keys=197, head_dim=64), mode="systolic")
    assert array.cycles[0] == 6 * (2 * 579 - 1) + 6 * (2 * 579 - 1)


# --- host ---------------------------------------------------------------------------------------------------------


def test_each_operator_by_hand_is_dispatched_a_program_once() -> None:
    """One step of 52 us beyond 35 us of device time, one of 285 us beyond 1 ms; a joined trace pays once."""
    small, large = matmul(m=128, k=128, n=128), matmul(m=8192, k=4096, n=4096)
    by_hand = cost(small, large, NORM, mode="device+host")
    assert by_hand.gap_s.tolist() == pytest.approx([121e-6, 121e-6 + 52e-6 + 285e-6, 135e-6])
    np.testing.assert_allclose(by_hand.latency_s, cost(small, large, NORM).latency_s + by_hand.gap_s)
    assert by_hand.bound.tolist() == ["host", "compute", "host"]
    joined = cost(small, large, NORM, mode="device+host", edges=((0, 1), (1, 2)))
    assert joined.gap_s.tolist() == pytest.approx([128e-6 + 52e-6 + 285e-6, 0, 0])


def test_programs_are_what_edges_join() -> None:
    trace = Trace.from_operators([NORM, FC1, GELU, FC2, ADD]).replace(edges=((0, 2), (1, 3), (2, 4)))
    assert programs(Workload.of(trace, dtype=None, default_dtype="bf16")).tolist() == [0, 1, 0, 1, 0]


# --- energy -------------------------------------------------------------------------------------------------------


def test_energy_by_cause() -> None:
    costs = cost(matmul(m=8192, k=1024, n=1024))
    tiles = 8 * 8
    assert costs.compute_j[0] == pytest.approx(2.0e-12 * 8192 * 1024 * 1024)
    assert costs.offchip_j[0] == pytest.approx(40e-12 * costs.dram_bytes[0])
    onchip_bytes = tiles * (8192 * (128 * 2 + 128 * 4) + 128 * 128 * 2)  # bf16 in, fp32 sums out, weights
    assert costs.onchip_j[0] == pytest.approx(5e-12 * onchip_bytes)
    assert costs.static_j[0] == pytest.approx(123 * costs.latency_s[0])


def test_busy_core_draws_between_idle_and_the_highest_measured_power() -> None:
    costs = cost(matmul(m=8192, k=8192, n=8192))
    assert 123 + 30 < costs.energy_j[0] / costs.latency_s[0] < 262


def test_power_is_clipped() -> None:
    costs = cost(matmul(m=8192, k=8192, n=8192), overrides={"mac_j": 1e-10})
    assert costs.energy_j[0] / costs.latency_s[0] == pytest.approx(262)
    dynamic = cost(matmul(m=8192, k=8192, n=8192), overrides={"mac_j": 1e-10}, scope="dynamic")
    assert dynamic.energy_j[0] / dynamic.latency_s[0] == pytest.approx(262 - 123)
    assert dynamic.static_j[0] == 0


# --- systolic mode ------------------------------------------------------------------------------------------------


def test_systolic_mode_is_the_closed_form_per_batch_entry() -> None:
    costs = cost(matmul(m=197, k=64, n=197, batch=3), gelu(elements=100), mode="systolic")
    assert costs.cycles.tolist() == [3 * (1 * 2 * (128 + 197 + 127 + 127) - 1), 0]
    assert costs.latency_s.tolist() == [costs.cycles[0] / 940e6, 0]
    assert costs.kernel.tolist() == ["systolic-ws", "none"]


def test_systolic_mode_skips_tiles_under_ws_only() -> None:
    pruned = matmul(m=197, k=384, n=1536, mask=mask((1536, 384), 18))
    assert cost(pruned, mode="systolic").cycles[0] == 18 * 579 - 1
    for dataflow in ("os", "is"):
        overrides = {"dataflow": dataflow}
        dense = cost(matmul(m=197, k=384, n=1536), mode="systolic", overrides=overrides)
        assert cost(pruned, mode="systolic", overrides=overrides).cycles[0] == dense.cycles[0]


def test_expected_masks_cost_their_expected_tiles() -> None:
    expected = ExpectedMask((512, 512), (32, 32), 20)
    tiles = expected.occupied_tiles(128, 128)
    assert cost(matmul(m=197, k=512, n=512, mask=expected), mode="systolic").cycles[0] == pytest.approx(tiles * 579 - 1)


def test_vector_operators_are_listed_as_outside_the_model() -> None:
    backend = Tpu()
    for mode in ("systolic", "scale-sim"):
        assert backend.kinds(mode) == {"product", "attention"}
        assert backend.free(mode) == NOT_MODELLED
        assert set(NOT_MODELLED.values()) == {"SCALE-Sim models matrix products only"}
    assert backend.free("device") == {}


# --- sweeps and cards ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["device", "device+host", "systolic"])
def test_a_sweep_equals_its_designs_one_by_one(mode: str) -> None:
    rows = (NORM, matmul(m=197, k=192, n=768, mask=mask((768, 192), 30, (32, 32)), name="fc1"), GELU, FC2, ADD)
    edges = ((0, 1), (1, 2), (2, 3), (3, 4), (0, 4))
    designs = {
        "array_rows": [128.0, 64.0, 32.0],
        "array_cols": [128.0, 128.0, 32.0],
        "clock_hz": [9e8, 1e9, 2e9],
        "mac_j": [1e-12, 2e-12, 3e-12],
        "product_hbm_bytes_per_s": [1e11, 4e11, 9e11],
        "hbm_passes.layernorm": [2.0, 4.0, 6.0],
        "vmem_bytes": [1e5, 1e6, 1e7],
        "dispatch_s.program": [1e-6, 1e-5, 1e-4],
        "static_w": [10.0, 100.0, 300.0],
    }
    swept = cost(*rows, mode=mode, edges=edges, overrides={field: np.array(values) for field, values in designs.items()})
    assert swept.latency_s.shape == (3, 5)
    for index in range(3):
        single = cost(*rows, mode=mode, edges=edges, overrides={field: values[index] for field, values in designs.items()})
        for column in ("cycles", "latency_s", "gap_s", "energy_j", "dram_bytes", "executed_macs"):
            np.testing.assert_allclose(getattr(swept, column)[index], getattr(single, column), rtol=1e-12, err_msg=column)
        assert np.broadcast_to(swept.bound, (3, 5))[index].tolist() == single.bound.tolist()


def test_card_problems_are_told(tmp_path: Path) -> None:
    text = (content_folder("simulators") / "tpu-v3" / "card.toml").read_text()
    path = tmp_path / "card.toml"
    path.write_text(text.replace("rowwise = 10, ", "").replace("value = 128\n", "value = 127.5\n", 1))
    with pytest.raises(CardError) as caught:
        read_card(path)
    assert "array_rows" in str(caught.value)
    path.write_text(text.replace("rowwise = 10, ", ""))
    with pytest.raises(CardError, match=r"missing entries: vector_ops\.rowwise"):
        read_card(path)
    path.write_text(text.replace("value = [35e-6, 1.0e-3]", "value = [35e-6]"))
    with pytest.raises(CardError, match="same length"):
        read_card(path)


def test_an_empty_trace_costs_nothing() -> None:
    for mode in ("device", "device+host", "systolic"):
        assert cost(mode=mode).latency_s.shape == (0,)


def test_card_is_what_the_readme_says() -> None:
    assert isinstance(CARD, Card)
    assert (CARD.default_mode, CARD.default_dtype) == ("device", "bf16")
    chip_flops = 2 * 2 * P.mxus * P.array_rows * P.array_cols * P.clock_hz
    assert chip_flops == pytest.approx(123e12, rel=0.005)
