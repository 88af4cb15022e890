"""Streams, attention, block-sparse kernels and board power of a GPU, each against a derivation."""

from __future__ import annotations

import numpy as np
import pytest
from pydantic import ValidationError

from hwmodel.backends.cards import read_card
from hwmodel.backends.gpu.attention import GENERATIONS, Attentions, attention_seconds
from hwmodel.backends.gpu.parameters import GpuParameters
from hwmodel.backends.gpu.power import Energies, capped
from hwmodel.backends.gpu.products import Products, product_seconds
from hwmodel.backends.gpu.sparse import break_even, occupied_share, semi_structured, skip_unit, slope, sparse_factor
from hwmodel.backends.gpu.vector import OVERLAP, Streams, issue_rate, launch_share, overlap_of, reads, softmax_slow, stream_seconds
from hwmodel.content import content_folder
from hwmodel.ir.masks import BlockMask, expected_mask

VALUES = read_card(content_folder("simulators") / "a100-80gb-sxm" / "card.toml").values()
A100 = GpuParameters.model_validate(VALUES)


def one(value: float) -> np.ndarray:
    return np.array([float(value)])


def streams(elements: float, moved: float, kind: str = "add", slow: float = 1.0, rows: float = 0.0) -> Streams:
    issue = one(elements / issue_rate(kind))
    return Streams(issue, one(rows), one(moved), one(launch_share(kind)), one(slow), one(overlap_of(kind)))


def products(*, simt: bool = False) -> Products:
    size, rate = (4.0, 64.0) if simt else (2.0, 1024.0)
    return Products(one(1), one(4096), one(1280), one(5120), one(size), one(1e8), one(rate), np.array([simt]))


def test_large_stream_runs_at_dram_rate() -> None:
    seconds, dram = stream_seconds(streams(1 << 30, 3 * 2 * (1 << 30)), A100)
    assert dram[0] == pytest.approx(3 * 2 * (1 << 30), rel=0.01)
    assert seconds[0] == pytest.approx(3 * 2 * (1 << 30) / (A100.dram_bytes_per_s * A100.dram_efficiency), rel=0.01)


def test_small_stream_stays_in_l2() -> None:
    """8 MB are well below half of 40 MB."""
    seconds, dram = stream_seconds(streams(1, 8e6), A100)
    assert dram[0] == 0
    l2 = 8e6 / (A100.l2_bytes_per_clock_sm * 108 * 1.41e9)
    assert seconds[0] == pytest.approx(launch_share("add") * A100.launch_cycles / A100.clock_hz + l2, rel=1e-6)


def test_gelu_in_fp16_is_limited_by_instructions() -> None:
    """2.7 elements per clock on each of 108 SMs at 1.41 GHz are 411 G/s; A100 boards measure 330 to 390."""
    count = 1 << 29
    seconds, _ = stream_seconds(streams(count, 4 * count, "gelu"), A100)
    assert 330e9 < count / seconds[0] < 411e9


def test_the_sm_with_the_most_rows_decides() -> None:
    """109 rows on 108 SMs take as long as 216: two rows of 4096 at 1.7 values per clock. One row takes half of that."""

    def busy_s(rows: int) -> float:
        seconds, _ = stream_seconds(streams(4096 * rows, 0.0, "rmsnorm", rows=rows), A100)
        return float(seconds[0]) - launch_share("rmsnorm") * A100.launch_cycles / A100.clock_hz

    assert busy_s(109) == pytest.approx(busy_s(216)) == pytest.approx(2 * 4096 / 1.7 / A100.clock_hz)
    assert busy_s(1) == pytest.approx(busy_s(108)) == pytest.approx(busy_s(216) / 2)


def test_rmsnorm_loads_and_computes_in_turn() -> None:
    """One block per row waits for its sum of squares: issue and memory add up. Layernorm overlaps them in part."""
    issue = 4096 * 10800 / 1.7 / (108 * A100.clock_hz)
    memory = 12e6 / (A100.l2_bytes_per_clock_sm * 108 * A100.clock_hz)
    seconds, _ = stream_seconds(streams(4096 * 10800, 12e6, "rmsnorm", rows=10800), A100)
    launch = launch_share("rmsnorm") * A100.launch_cycles / A100.clock_hz
    assert seconds[0] == pytest.approx(launch + issue + memory)
    assert overlap_of("rmsnorm") == 1.0 < overlap_of("layernorm")


def test_rows_that_do_not_fit_are_read_twice() -> None:
    assert [reads("layernorm", cols * 4) for cols in (2560, 4096)] == [1, 2]
    assert [reads("softmax", cols * 4) for cols in (8192, 10240, 16384)] == [1, 2, 3]
    assert reads("add", 1e9) == 1


def test_softmax_likes_short_rows_and_powers_of_two() -> None:
    """fp32: up to 1024 columns a warp does a row; 1280 keep 256 threads of 4 values busy once and a quarter."""
    assert [softmax_slow(cols, 4) for cols in (1024, 1280, 2048, 3072, 4096, 5120)] == [1.0, 1.33, 1.0, 1.33, 1.0, 1.0]
    assert softmax_slow(197, 2) == 1.5


def test_a_large_stream_still_saves_what_the_cache_keeps() -> None:
    """0.6 of the resident half of 40 MB: 12 MB of 1 GB."""
    _, dram = stream_seconds(streams(1, 1e9), A100)
    assert dram[0] == pytest.approx(1e9 - 0.6 * 0.5 * 40e6)
    assert overlap_of("add") == OVERLAP > overlap_of("layernorm")


def attention(seq: float, *, dim: float = 64, causal: bool = False, batch: float = 768) -> float:
    moved = batch * 4 * seq * dim * 2
    heads = Attentions(*(one(v) for v in (batch, seq, dim, seq)), np.array([causal]), one(2), one(moved), one(1024))
    return float(attention_seconds(heads, A100)[0])


def test_attention_rate_is_that_of_flash_attention() -> None:
    """Products and exponentials of one key: 2 * 128 * 64 / (1024 * 0.73) + 128 / 16 = 29.9 cycles, so 53 % of peak."""
    share = 2 * 768 * 4096**2 * 64 / (108 * 1024 * 1.41e9) / attention(4096)
    assert share == pytest.approx(16 / (2 * 128 * 64 / (1024 * GENERATIONS["fa2"].efficiency) + 8), rel=0.04)


def test_keys_and_values_are_reread_where_tiles_run_apart() -> None:
    """4096 queries are 32 tiles of 128: 31 more readings of keys and values (268 of 537 MB), all from DRAM."""
    slower = A100.model_copy(update={"attention_kernel": "trtllm-encoder"})
    moved = 128 * 4 * 4096 * 64 * 2
    heads = Attentions(one(128), one(4096), one(64), one(4096), np.array([False]), one(2), one(moved), one(1e9))
    bytes_s = (moved + 31 * moved / 2) / (A100.dram_bytes_per_s * A100.dram_efficiency)
    assert attention_seconds(heads, slower)[0] == pytest.approx(bytes_s, rel=0.2)
    assert attention_seconds(heads, A100)[0] < 0.6 * bytes_s


def test_few_heads_run_with_half_the_queries_per_block() -> None:
    """4 heads of 1024 queries are 32 tiles of 128 or 64 of 64, on 108 SMs: the smaller tile takes half as long."""
    heads = Attentions(one(4), one(1024), one(80), one(1024), np.array([False]), one(2), one(1.0), one(1024))
    kind = GENERATIONS["trtllm-encoder"]
    per_key = 2 * 64 * 96 / (1024 * kind.efficiency) + 64 / 16
    expected = kind.launch * A100.launch_cycles / A100.clock_hz + 1024 * per_key / A100.clock_hz
    encoder = A100.model_copy(update={"attention_kernel": "trtllm-encoder", "l2_bytes_per_clock_sm": 1e6})
    assert attention_seconds(heads, encoder)[0] == pytest.approx(expected, rel=1e-3)


def test_causal_attention_is_half_of_the_whole_for_long_rows() -> None:
    assert 0.5 < attention(8192, causal=True) / attention(8192) < 0.52


def test_head_dimension_is_padded_to_32() -> None:
    assert attention(1024, dim=72) == pytest.approx(attention(1024, dim=96), rel=0.02)


def test_block_sparse_slope_and_break_even() -> None:
    """dense * (0.13 + 1.89 * density) at 64x64 in bf16: even with dense at 0.87 / 1.89 = 0.460."""
    assert slope(one(64), one(64), products(), A100)[0] == pytest.approx(1.89, abs=0.01)
    half = sparse_factor(one(0.460), one(64), one(64), products(), A100)
    assert half[0] == pytest.approx(1.0, abs=0.01)
    assert break_even(one(64), one(64), products(), A100)[0] == pytest.approx(0.460, abs=0.002)
    assert sparse_factor(one(0), one(64), one(64), products(), A100)[0] == 0


def test_two_of_four_weights_double_the_tensor_rate_at_most() -> None:
    dense, _ = product_seconds(products(), A100)
    weight = one(2 * 1280 * 5120)
    alone, fewer = semi_structured(products(), weight, A100, copies=False)
    copied, more = semi_structured(products(), weight, A100, copies=True)
    assert 0.5 * dense[0] < alone[0] < 0.9 * dense[0]
    assert (fewer[0], more[0]) == (1e8 - weight[0] * 0.4375, fewer[0] + 2 * 4096 * 5120 * 2)
    assert alone[0] < copied[0]
    simt, _ = semi_structured(products(simt=True), weight, A100, copies=False)
    assert simt[0] >= product_seconds(products(simt=True), A100)[0][0] * 0.99


def test_smaller_blocks_cost_more_per_mac() -> None:
    slopes = [float(slope(one(side), one(side), products(), A100)[0]) for side in (64, 32, 16)]
    assert slopes == sorted(slopes)
    assert float(slope(one(64), one(64), products(simt=True), A100)[0]) < slopes[0]


@pytest.mark.parametrize(
    ("block", "unit"), [((64, 64), (64, 64)), ((128, 96), (64, 64)), ((64, 32), (64, 32)), ((48, 16), (32, 16)), ((1, 4), (16, 16))]
)
def test_skip_unit_follows_the_block(block: tuple[int, int], unit: tuple[int, int]) -> None:
    assert skip_unit(BlockMask.full((768, 768), block)) == unit


def test_occupied_share_counts_units() -> None:
    assert occupied_share(expected_mask((768, 768), (64, 64), 0.25, "row-clustered")) == 36 / 144
    assert occupied_share(expected_mask((768, 768), (64, 64), 0.0)) == 0


def test_board_limit_stretches_time_and_invents_no_energy() -> None:
    budget = A100.board_limit_w - A100.static_w
    asked = Energies(one(4 * budget * 1e-3), one(0), one(0))
    seconds, energies = capped(one(1e-3), asked, A100)
    assert seconds[0] == pytest.approx(2e-3)  # sqrt(4) times longer
    assert energies.compute_j[0] + A100.static_w * seconds[0] == pytest.approx(A100.board_limit_w * seconds[0])
    kept, clipped = capped(one(1e-3), asked, A100, slows=False)
    assert kept[0] == 1e-3
    assert clipped.compute_j[0] == pytest.approx(budget * 1e-3)
    below, unchanged = capped(one(1e-3), Energies(one(budget * 0.5e-3), one(0), one(0)), A100)
    assert (below[0], unchanged.compute_j[0]) == (1e-3, budget * 0.5e-3)


def test_impossible_power_budget_is_refused() -> None:
    with pytest.raises(ValidationError, match="static_w < board_limit_w"):
        GpuParameters.model_validate(VALUES | {"board_limit_w": 100})
