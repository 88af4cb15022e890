"""ViTA's two modes on small traces; every expected value is its derivation from the card's numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from examples import pruned, vit

import hwmodel as hw
from hwmodel.backends.cards import load_card
from hwmodel.backends.estimates import Estimate
from hwmodel.errors import HwmodelError
from hwmodel.ir.masks import BlockMask
from hwmodel.ir.operators import Operator

P = load_card("vita").resolve()
LAYER = P.cycles_per_layer
PE = 32 * 32
PAST_THE_BUFFER = int(P.buffer_bytes)


def price(*operators: Operator, mode: str = "paper", pe: str = "32x32", scope: Any = "board", **overrides: Any) -> Estimate:
    trace = hw.Trace.from_operators(operators)
    return hw.estimate(trace, device="vita", mode=mode, scope=scope, overrides={"pe": pe, **overrides})


# --- products -----------------------------------------------------------------------------------------------------


def test_one_token_vector_per_cycle_and_block() -> None:
    """DeiT-Tiny's qkv on 32 x 32: 576 / 32 block rows, 192 / 32 block columns, 197 tokens each."""
    estimate = price(hw.matmul(m=197, k=192, n=576))
    assert estimate.cycles == 197 * (576 // 32) * (192 // 32) + LAYER
    assert estimate.latency_s == estimate.cycles / P.clock_hz
    assert estimate.executed_macs == 197 * 576 * 192


def test_ragged_edges_fill_a_whole_element() -> None:
    """A 1000-way classifier has 31 full block rows and one of 8; tokens are not padded."""
    estimate = price(hw.matmul(m=1, k=192, n=1000))
    assert estimate.cycles == 1 * 32 * 6 + LAYER
    assert estimate.executed_macs == 32 * 6 * PE > 192 * 1000


@pytest.mark.parametrize(("pe", "tiles"), [("32x32", 18 * 6), ("16x32", 36 * 6), ("32x16", 18 * 12), ("64x64", 9 * 3)])
def test_the_processing_element_is_output_by_input(pe: str, tiles: int) -> None:
    assert price(hw.matmul(m=10, k=192, n=576), pe=pe).cycles == 10 * tiles + LAYER


def test_only_tiles_with_a_kept_block_are_streamed() -> None:
    """One 64 x 64 block covers four 32 x 32 elements; two 16 x 16 blocks in one element cost one."""
    large = BlockMask((128, 128), (64, 64), np.array([[True, False], [False, False]]))
    small = BlockMask((128, 128), (16, 16), np.pad(np.eye(2, dtype=np.bool_), (0, 6)))
    assert price(hw.matmul(m=10, k=128, n=128, mask=large)).cycles == 10 * 4 + LAYER
    assert price(hw.matmul(m=10, k=128, n=128, mask=small)).cycles == 10 * 1 + LAYER


@pytest.mark.parametrize("mode", ["paper", "full"])
def test_a_layer_without_blocks_costs_nothing(mode: str) -> None:
    empty = BlockMask((128, 128), (32, 32), np.zeros((4, 4)))
    estimate = price(hw.matmul(m=10, k=128, n=128, mask=empty), mode=mode)
    assert (estimate.cycles, estimate.energy_j, estimate.dram_bytes, estimate.executed_macs) == (0, 0, 0, 0)
    assert estimate.costs.bound.tolist() == ["none"]


def test_independent_products_follow_each_other() -> None:
    assert price(hw.matmul(m=10, k=64, n=64, batch=3, parameter=True)).cycles == 3 * 10 * (2 * 2) + LAYER


# --- what each mode leaves out ------------------------------------------------------------------------------------


def test_the_paper_timed_layers_with_weights_only() -> None:
    rows = [
        hw.matmul(m=197, k=64, n=197, batch=3), hw.softmax(rows=591, cols=197), hw.layernorm(rows=197, cols=192),
        hw.gelu(elements=197 * 768), hw.movement("copy", elements=10), hw.reduction("mean", inputs=10, outputs=1),
        hw.attention(batch=1, heads=3, queries=197, keys=197, head_dim=64),
    ]  # fmt: skip
    estimate = price(*rows)
    assert (estimate.latency_s, estimate.energy_j, estimate.dram_bytes) == (0, 0, 0)
    assert set(estimate.costs.kernel.tolist()) == {"not timed"}
    assert (price(*rows, mode="full").costs.latency_s > 0).all()


def test_the_full_mode_multiplies_attention_on_the_same_element() -> None:
    """Scores: 197 queries stream past ceil(197 / 16) x 64 / 32 tiles; context past 64 / 16 x ceil(197 / 32). Three heads."""
    scores = hw.matmul(batch=3, m=197, k=64, n=197)
    context = hw.matmul(batch=3, m=197, k=197, n=64)
    apart = price(scores, context, mode="full", pe="16x32")
    assert apart.costs.cycles.tolist() == [3 * 197 * 13 * 2 + LAYER, 3 * 197 * 4 * 7 + LAYER]
    assert apart.executed_macs == 3 * 197 * (13 * 2 + 4 * 7) * 16 * 32


def test_attention_by_hand_costs_what_it_spells_out() -> None:
    """Both products and the softmax between them, whichever way a trace says it; no DRAM in either."""
    whole = price(hw.attention(batch=1, heads=3, queries=197, keys=197, head_dim=64), mode="full", pe="16x32")
    spelled = price(
        hw.matmul(batch=3, m=197, k=64, n=197), hw.softmax(rows=3 * 197, cols=197), hw.matmul(batch=3, m=197, k=197, n=64),
        mode="full", pe="16x32",
    )  # fmt: skip
    assert whole.cycles == pytest.approx(spelled.cycles, rel=1e-12)
    assert whole.energy_j == pytest.approx(spelled.energy_j, rel=1e-12)
    assert whole.executed_macs == spelled.executed_macs


def test_what_does_not_depend_on_the_input_is_computed_before() -> None:
    table = hw.movement("gather", elements=10**6, constant=True)
    product = hw.matmul(m=10, k=64, n=64, parameter=True, constant=True)
    estimate = price(table, product, mode="full")
    assert (estimate.cycles, estimate.energy_j, estimate.dram_bytes, estimate.executed_macs) == (0, 0, 0, 0)


@pytest.mark.parametrize(
    ("operator", "passes"),
    [
        (hw.softmax(rows=10, cols=100), 2),
        (hw.layernorm(rows=10, cols=100), 2),
        (hw.gelu(elements=1000), 1),
        (hw.elementwise("add", elements=1000, inputs=2), 1),
        (hw.movement("copy", elements=1000), 1),
        (hw.reduction("mean", inputs=1000, outputs=10), 1),
    ],
)
def test_special_functions_take_their_passes(operator: Operator, passes: int) -> None:
    """Bandwidth without limit, so that only the special-function unit counts."""
    estimate = price(operator, mode="full", dram_bytes_per_s=1e14)
    assert estimate.cycles == passes * 1000 / P.sfu_elements_per_cycle
    assert estimate.costs.onchip_j[0] == pytest.approx(passes * 1000 * P.sfu_j_per_element)
    assert estimate.costs.bound.tolist() == ["vector"]


# --- memory -------------------------------------------------------------------------------------------------------


def test_kept_weights_are_read_once() -> None:
    """Two of four tiles are kept; int8; the activations of one layer stay in the buffer."""
    mask = BlockMask((64, 64), (32, 32), np.eye(2))
    dense, half = (price(hw.matmul(m=100, k=64, n=64, mask=m), mode="full") for m in (None, mask))
    assert dense.dram_bytes == 64 * 64
    assert half.dram_bytes == 64 * 64 / 2


def test_kept_weights_are_those_of_the_elements_own_tiles() -> None:
    """One 32 x 32 block on a 16 x 64 element: two of 4 x 1 tiles are occupied, so half of the weight is read."""
    mask = BlockMask((64, 64), (32, 32), np.array([[True, False], [False, False]]))
    assert price(hw.matmul(m=100, k=64, n=64, mask=mask), mode="full", pe="16x64").dram_bytes == 64 * 64 * 2 / (4 * 1)


def test_activations_leave_the_chip_where_half_the_buffer_is_too_small() -> None:
    fits, spills = PAST_THE_BUFFER // 2, PAST_THE_BUFFER // 2 + 1
    assert price(hw.gelu(elements=fits), mode="full").dram_bytes == 0
    assert price(hw.gelu(elements=spills), mode="full").dram_bytes == 2 * spills


def test_each_head_is_a_piece_of_its_own() -> None:
    """Scores of twelve heads are past half the buffer together, but not one by one."""
    scores = hw.matmul(batch=12, m=197, k=64, n=197)
    assert scores.output_elements > PAST_THE_BUFFER / 2 > scores.output_elements / 12
    assert price(scores, mode="full").dram_bytes == 0


def test_transfers_run_beside_the_arithmetic() -> None:
    """A classifier row uses each weight once: 192 x 1000 bytes at the card's bandwidth take longer than 32 x 6 cycles."""
    head = price(hw.matmul(m=1, k=192, n=1000), mode="full", dram_bytes_per_s=1e9)
    assert head.cycles == pytest.approx(192 * 1000 / 1e9 * P.clock_hz)
    assert head.costs.bound.tolist() == ["memory"]
    streamed = price(hw.matmul(m=197, k=192, n=576), mode="full")
    assert streamed.cycles == 197 * 18 * 6 + LAYER
    assert streamed.costs.bound.tolist() == ["compute"]


# --- energy -------------------------------------------------------------------------------------------------------


def test_energy_by_cause() -> None:
    estimate = price(hw.matmul(m=197, k=192, n=576), mode="full")
    macs = 197 * 192 * 576
    assert estimate.costs.compute_j[0] == pytest.approx(macs * P.mac_j["int8"])
    assert estimate.costs.onchip_j[0] == pytest.approx(macs * P.onchip_j_per_mac)
    assert estimate.costs.offchip_j[0] == pytest.approx(192 * 576 * P.dram_j_per_byte)
    assert estimate.costs.static_j[0] == pytest.approx(estimate.latency_s * PE * P.static_w_per_mac)


@pytest.mark.parametrize("scope", ["dynamic", "lsp"])
def test_scopes_without_idle_power_leave_static_energy_out(scope: str) -> None:
    board, dynamic = (price(hw.matmul(m=197, k=192, n=576), mode="full", scope=chosen) for chosen in ("board", scope))
    assert dynamic.costs.static_j.tolist() == [0]
    assert board.energy_j - dynamic.energy_j == pytest.approx(board.costs.static_j.sum())
    assert board.latency_s == dynamic.latency_s


def test_peak_power_of_the_whole_chip_is_the_published_one() -> None:
    """16.384 TOPS are 8192 MACs at 1 GHz; at 1.57 TOPS/W they draw 10.44 W, on-chip causes and leakage together."""
    joules_per_mac = P.mac_j["int8"] + P.onchip_j_per_mac + P.static_w_per_mac / P.clock_hz
    assert 8192 * 1e9 * joules_per_mac == pytest.approx(16.384 / 1.57, rel=0.01)


# --- the design point ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("width", "pe"), [(768, "32x32"), (384, "16x32"), (192, "16x16")])
def test_the_papers_elements_follow_the_width(width: int, pe: str) -> None:
    inferred = hw.estimate(vit(width, depth=1), device="vita")
    told = hw.estimate(vit(width, depth=1), device="vita", overrides={"pe": pe})
    assert inferred.costs.kernel[1] == f"pe {pe}"
    assert inferred.latency_s == told.latency_s


def test_the_call_wins_over_the_recipe_and_the_recipe_over_the_width() -> None:
    trace = vit(768, depth=1)
    designed = trace.replace(design={"vita": {"pe": "64x32"}})
    assert hw.estimate(designed, device="vita").costs.kernel[1] == "pe 64x32"
    assert hw.estimate(designed, device="vita", overrides={"pe": "16x16"}).costs.kernel[1] == "pe 16x16"
    assert hw.estimate(trace.replace(design={"tpu": {"pe": "64x32"}}), device="vita").costs.kernel[1] == "pe 32x32"


def test_the_element_is_never_derived_from_the_mask() -> None:
    kernels = {hw.estimate(pruned(vit(768, depth=1), block, 0.5), device="vita").costs.kernel[1] for block in [(16, 16), (64, 64)]}
    assert kernels == {"pe 32x32"}


def test_the_width_is_read_from_qkv_where_there_is_no_patch_embedding() -> None:
    rows = [operator for operator in vit(384, depth=1).operators if operator.block == 0]
    assert hw.estimate(hw.Trace.from_operators(rows), device="vita").costs.kernel[1] == "pe 16x32"


def test_any_other_width_must_be_told() -> None:
    with pytest.raises(HwmodelError, match=r"no PE is known for a model of width 512 .*--set pe=OUTxIN"):
        hw.estimate(vit(512, depth=1), device="vita")
    with pytest.raises(HwmodelError, match="width 0"):
        hw.estimate(hw.Trace.from_operators([hw.matmul(m=4, k=512, n=512)]), device="vita")
    assert hw.estimate(vit(512, depth=1), device="vita", overrides={"paper_pe_by_width.512": "16x16"}).costs.kernel[1] == "pe 16x16"


def test_a_broken_element_of_a_recipe_is_refused() -> None:
    """A trace file may carry any text as its design point."""
    with pytest.raises(HwmodelError, match="32by32"):
        hw.estimate(vit(768, depth=1).replace(design={"vita": {"pe": "32by32"}}), device="vita")
    with pytest.raises(HwmodelError, match="huge"):
        hw.estimate(vit(768, depth=1).replace(design={"vita": {"pe": "huge"}}), device="vita")
