"""ViTA's modes on small traces; every expected value is its derivation from the card's numbers."""

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
from hwmodel.reporting.tables import estimates_table

P = load_card("vita").resolve()
LAYER = P.cycles_per_layer
PE = 32 * 32
BYTES_PER_CYCLE = P.dram_bytes_per_s / P.clock_hz
BLOCK, ROW, PORT = P.cycles_per_block, P.cycles_per_row, P.buffer_bytes_per_cycle
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


@pytest.mark.parametrize("mode", ["paper", "full", "chip"])
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
    """Scores: 197 queries stream past ceil(197 / 16) x 64 / 32 tiles; context past 64 / 16 x ceil(197 / 32). Three heads.

    The first tile passes the port before anything is multiplied; its inputs follow beside the arithmetic.
    """
    scores = hw.matmul(batch=3, m=197, k=64, n=197)
    context = hw.matmul(batch=3, m=197, k=197, n=64)
    apart = price(scores, context, mode="full", pe="16x32")
    fill = 16 * 32 / PORT
    assert apart.costs.cycles.tolist() == [LAYER + fill + 3 * 197 * 13 * 2, LAYER + fill + 3 * 197 * 4 * 7]
    assert apart.executed_macs == 3 * 197 * (13 * 2 + 4 * 7) * 16 * 32


@pytest.mark.parametrize("mode", ["full", "chip"])
def test_attention_by_hand_costs_what_it_spells_out(mode: str) -> None:
    """Both products and the softmax between them, whichever way a trace says it; no DRAM in either."""
    whole = price(hw.attention(batch=1, heads=3, queries=197, keys=197, head_dim=64), mode=mode, pe="16x32")
    rows = [
        hw.matmul(batch=3, m=197, k=64, n=197), hw.softmax(rows=3 * 197, cols=197), hw.matmul(batch=3, m=197, k=197, n=64),
    ]  # fmt: skip
    trace = hw.Trace.from_operators(rows).replace(edges=((0, 1), (1, 2)))
    spelled = hw.estimate(trace, device="vita", mode=mode, overrides={"pe": "16x32"})
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
    assert estimate.costs.components_j["special_functions"][0] == pytest.approx(passes * 1000 * P.sfu_j_per_element)
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
    assert head.cycles == pytest.approx(LAYER + BLOCK + 192 * 1000 / 1e9 * P.clock_hz + PE / PORT + 1)
    assert head.costs.bound.tolist() == ["memory"]
    streamed = price(hw.matmul(m=197, k=192, n=576), mode="full")
    fill = BLOCK + PE / BYTES_PER_CYCLE + PE / PORT
    assert streamed.cycles == pytest.approx(LAYER + fill + 197 * 18 * 6, rel=1e-12)
    assert streamed.costs.bound.tolist() == ["compute"]


def test_groups_of_tokens_stream_the_weights_again() -> None:
    """Two 32 x 32 tiles and 32 * 4 + 2 * 32 bytes per token: 10 240 bytes hold 42 tokens, so 197 come in five groups."""
    assert (10240 - 2 * 1024) // (32 * 4 + 2 * 32) == 42
    assert price(hw.matmul(m=197, k=192, n=576), mode="full", pe_buffer_bytes=10240.0).dram_bytes == 5 * 192 * 576


def test_inputs_past_half_the_buffer_take_the_cheaper_order() -> None:
    """Half of 128 KiB holds 65 536 of 197 x 768 bytes: three groups of tokens, or inputs again for each of 18 turns of rows."""
    layer = hw.matmul(m=197, k=768, n=576)
    inputs, outputs, weights = 197 * 768, 197 * 576, 768 * 576
    assert price(layer, mode="full", buffer_bytes=131072.0).dram_bytes == 3 * weights + inputs + outputs
    turns = price(layer, mode="chip", buffer_bytes=131072.0, pe_count=9.0)
    assert turns.dram_bytes == min(3 * weights + inputs, weights + 2 * inputs) + outputs == weights + 2 * inputs + outputs


# --- special functions beside products ----------------------------------------------------------------------------


def chain(*rows: Operator, edges: Any, mode: str = "full", **overrides: Any) -> Estimate:
    trace = hw.Trace.from_operators(rows).replace(edges=edges)
    return hw.estimate(trace, device="vita", mode=mode, overrides={"pe": "32x32", **overrides})


FC1, GELU, FC2 = hw.matmul(m=197, k=192, n=768), hw.gelu(elements=197 * 768), hw.matmul(m=197, k=768, n=192)


def test_a_function_between_products_hides_behind_them() -> None:
    """GELU takes 197 * 768 / 32 cycles: one row of blocks of it is left when fc1 ends, less than fc2's set-up."""
    apart = chain(FC1, GELU, FC2, edges=())
    together = chain(FC1, GELU, FC2, edges=((0, 1), (1, 2)))
    assert apart.costs.cycles[1] == 197 * 768 / 32
    assert together.costs.cycles.tolist() == [apart.costs.cycles[0], 0.0, apart.costs.cycles[2]]
    for name in ("special_functions", "global_buffer"):
        assert together.costs.components_j[name][1] == apart.costs.components_j[name][1] > 0, "hidden time, not hidden energy"


def test_what_a_slow_function_adds() -> None:
    """At one element per cycle: fc1's first row, all of GELU, then fc2, set up meanwhile."""
    slow = chain(FC1, GELU, FC2, edges=((0, 1), (1, 2)), sfu_elements_per_cycle=1.0)
    fill = BLOCK + PE / BYTES_PER_CYCLE + PE / PORT
    first_row, second = fill + 6 * 197, fill + 6 * 24 * 197
    assert slow.cycles == pytest.approx(LAYER + first_row + 197 * 768 + second)


def test_a_residual_is_added_while_its_product_runs() -> None:
    older, residual = hw.layernorm(rows=197, cols=192), hw.elementwise("add", elements=197 * 192, inputs=2)
    hidden = chain(older, FC2, residual, edges=((0, 2), (1, 2)))
    slow = chain(older, FC2, residual, edges=((0, 2), (1, 2)), sfu_elements_per_cycle=0.1)
    assert hidden.costs.cycles[2] == 0
    assert slow.costs.cycles[1:].sum() == pytest.approx(LAYER + 197 * 192 / 0.1)


def test_a_normalisation_waits_for_all_features() -> None:
    norm = hw.layernorm(rows=197, cols=192)
    assert chain(FC2, norm, FC1, edges=((0, 1), (1, 2))).costs.cycles[1] == 2 * 197 * 192 / 32


def test_a_product_hides_one_function_only() -> None:
    """A product whose output two operators read, or whose function feeds nothing, hides nothing."""
    copy = hw.movement("copy", elements=197 * 768)
    assert chain(FC1, GELU, FC2, copy, edges=((0, 1), (1, 2), (0, 3))).costs.cycles[1] == 197 * 768 / 32
    assert chain(FC1, GELU, edges=((0, 1),)).costs.cycles[1] == 197 * 768 / 32


# --- the whole chip -----------------------------------------------------------------------------------------------


def test_rows_of_blocks_are_shared_among_elements() -> None:
    """18 rows of blocks on eight elements: three turns of six tiles; two elements have a third row."""
    chip = price(hw.matmul(m=197, k=192, n=576), mode="chip", dram_bytes_per_s=256e9)
    fetch, port = PE / 256, PE / PORT
    assert chip.cycles == pytest.approx(LAYER + BLOCK + fetch + port + (2 - 1) * fetch + 3 * 6 * 197)
    assert chip.idle_share == pytest.approx(1 - 18 / (8 * 3))
    assert chip.costs.kernel.tolist() == ["pe 32x32"]


def test_heads_stay_on_one_element() -> None:
    """Twelve heads of 7 x 2 tiles on eight elements: two turns, a quarter of the time idle."""
    chip = price(hw.matmul(batch=12, m=197, k=64, n=197), mode="chip")
    port = PE / PORT
    assert chip.cycles == pytest.approx(LAYER + port + (4 - 1) * port + 2 * 14 * 197)
    assert chip.idle_share == pytest.approx(1 - 12 / 16)


def test_idle_share_of_balanced_and_skewed_masks() -> None:
    """Eight rows of eight blocks, half of them kept, on eight elements: four in each row, or all in half of the rows."""
    grids = {"balanced": np.tile([True, False], (8, 4)), "skewed": np.repeat([[True], [False]], 4, axis=0).repeat(8, axis=1)}
    layers = {name: hw.matmul(m=100, k=256, n=256, mask=BlockMask((256, 256), (32, 32), grid)) for name, grid in grids.items()}
    shares = {name: price(layer, mode="chip", pe_count=8.0).idle_share for name, layer in layers.items()}
    assert shares == {"balanced": 0.0, "skewed": 0.5}


def test_the_next_row_goes_to_the_element_with_the_fewest_tiles() -> None:
    """Rows of 4, 1, 1 and 2 tiles on two elements: 4 against 1 + 1 + 2; one row of 4 alone cannot be shared."""
    kept = np.arange(4)[None, :] < np.array([4, 1, 1, 2])[:, None]
    layer = hw.matmul(m=100, k=128, n=128, mask=BlockMask((128, 128), (32, 32), kept))
    assert price(layer, mode="chip", pe_count=2.0).idle_share == 0
    assert price(layer, mode="chip", pe_count=4.0).idle_share == 1 - 8 / 16


@pytest.mark.parametrize(("pe", "count"), [("32x32", 8), ("16x16", 32), ("64x64", 2), ("64x32", 4), ("48x32", 5)])
def test_a_chip_has_as_many_elements_as_its_macs_allow(pe: str, count: int) -> None:
    """Heads enough for all: the busiest has one of ``count``."""
    chip = price(hw.matmul(batch=count, m=10, k=16, n=16), mode="chip", pe=pe)
    more = price(hw.matmul(batch=count + 1, m=10, k=16, n=16), mode="chip", pe=pe)
    assert (chip.idle_share, more.idle_share > 0) == (0, True)


def test_a_core_that_reads_slowly_bounds_a_layer() -> None:
    """54 blocks and ten rows beyond the first eight, at 1000 cycles each: the last one's arithmetic comes after."""
    slow = price(hw.matmul(m=20, k=96, n=576), mode="chip", cycles_per_block=1000.0, cycles_per_row=1000.0)
    beside = PE / BYTES_PER_CYCLE + PE / PORT
    assert slow.cycles == pytest.approx(LAYER + (54 + 10) * 1000 + beside + 20)
    assert slow.costs.bound.tolist() == ["memory"]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"pe": "128x128"}, "a PE of 128x128 has 16384 MACs, more than the 8192 of the chip"),
        ({"pe_count": 2.5}, "pe_count must be a whole number"),
        ({"pe_count": [1.0, 2.5]}, "pe_count must be a whole number"),
        ({"pe_count": 0.0}, "pe_count"),
        ({"pe_buffer_bytes": 2000.0}, "pe_buffer_bytes is 2000 bytes, too small for one block: a PE of 32x32 needs at least 2240"),
        ({"buffer_bytes": 2048.0}, "half of buffer_bytes is 1024 bytes, too small for one block"),
    ],
)
def test_impossible_chips_are_refused(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(HwmodelError, match=told):
        price(hw.matmul(m=10, k=64, n=64), mode="chip", **changes)


def test_a_count_of_elements_is_for_the_chip() -> None:
    with pytest.raises(HwmodelError, match="pe_count is for mode chip; mode full has one PE"):
        price(hw.matmul(m=10, k=64, n=64), mode="full", pe_count=2.0)


# --- what a user is warned about ----------------------------------------------------------------------------------


def test_blocks_that_the_element_does_not_divide_are_told_with_their_cost() -> None:
    """One 16 x 16 block of 8 x 8 keeps a whole 32 x 32 element: four times the kept weights."""
    mask = BlockMask((128, 128), (16, 16), np.pad([[True]], (0, 7)))
    (line,) = price(hw.matmul(m=10, k=128, n=128, mask=mask), mode="chip").warnings
    assert "does not divide blocks of 16x16: it multiplies 4.00 times the kept weights of 1 layer," in line
    assert price(hw.matmul(m=10, k=128, n=128, mask=BlockMask((128, 128), (64, 32), np.eye(2, 4)))).warnings == []


def test_layers_smaller_than_the_element_are_told() -> None:
    """16 of 64 outputs and 32 of 64 inputs: an eighth of the MACs."""
    (line,) = price(hw.matmul(m=10, k=32, n=16, name="tiny"), mode="full", pe="64x64").warnings
    assert "larger than tiny (16x32): such a layer costs whole PEs, of which down to 12% do useful work" in line


# --- energy and area ----------------------------------------------------------------------------------------------


def test_energy_by_component() -> None:
    estimate = price(hw.matmul(m=197, k=192, n=576), mode="full")
    macs, tiles = 197 * 192 * 576, 18 * 6
    visits = tiles * (PE + 197 * 32)
    parts = {name: joules[0] for name, joules in estimate.costs.components_j.items()}
    small = 0.85e-12 * (40960 / 32768) ** (np.log(1.21 / 0.85) / np.log(4))
    large = 1.34e-12 * (524288 / 262144) ** (np.log(2.91 / 1.34) / np.log(4))
    assert parts["mac"] == pytest.approx(macs * P.mac_j["int8"])
    assert parts["operands"] == pytest.approx(macs * P.operand_j_per_byte)
    assert parts["pe_buffer"] == pytest.approx((2 * visits + 2 * tiles * 197 * 32 * 4) * small)
    assert parts["global_buffer"] == pytest.approx((visits + 197 * 576 + 192 * 576) * large)
    assert parts["dram"] == pytest.approx(192 * 576 * P.dram_j_per_byte)
    assert parts["control"] == pytest.approx(estimate.cycles * P.control_j_per_cycle)
    leaking = PE * P.static_w_per_mac + (P.pe_buffer_bytes + P.buffer_bytes) * P.sram_w_per_byte
    assert parts["leakage"] == pytest.approx(estimate.latency_s * leaking)
    assert sum(parts.values()) == pytest.approx(estimate.energy_j)
    assert estimate.energy_by_component_j == pytest.approx(parts)


def test_the_document_and_the_table_tell_the_parts_where_the_machine_does() -> None:
    vita, tpu = (hw.estimate(vit(192, depth=1), device=device) for device in ("vita", "tpu-v3"))
    told = vita.document()
    assert sum(told["energy_by_component_j"].values()) == pytest.approx(told["energy_j"])
    assert told["area_mm2"] == vita.area_mm2
    assert told["idle_share"] == 0, "one PE"
    assert not {"energy_by_component_j", "area_mm2", "idle_share"} & tpu.document().keys()
    (line,) = [one for one in str(estimates_table([vita, tpu]).caption).splitlines() if "energy leakage" in one]
    assert f"area {sum(vita.area_mm2.values()):.2f} mm2; PEs idle 0" in line


@pytest.mark.parametrize("scope", ["dynamic", "lsp"])
def test_scopes_without_idle_power_leave_static_energy_out(scope: str) -> None:
    board, dynamic = (price(hw.matmul(m=197, k=192, n=576), mode="full", scope=chosen) for chosen in ("board", scope))
    assert dynamic.costs.static_j.tolist() == [0]
    assert board.energy_j - dynamic.energy_j == pytest.approx(board.costs.static_j.sum())
    assert board.latency_s == dynamic.latency_s


def test_peak_power_of_the_whole_chip_is_the_published_one() -> None:
    """16.384 TOPS at 1.57 TOPS/W draw 10.44 W: every component but DRAM, at full dense utilisation on eight 32x32 elements."""
    estimate = price(hw.matmul(m=197, k=768, n=8192), mode="chip", dram_bytes_per_s=1e13)
    assert estimate.executed_macs / estimate.cycles == pytest.approx(8192, rel=0.01), "hardly a cycle is lost"
    power_w = (estimate.energy_j - estimate.costs.offchip_j.sum()) / estimate.latency_s
    assert power_w == pytest.approx(16.384 / 1.57, rel=0.10)


def test_area_of_the_whole_chip_is_the_published_one() -> None:
    """16.384 TOPS at 2.13 TOPS/mm2 are 7.69 mm2."""
    area = price(hw.matmul(m=1, k=1, n=1), mode="chip").area_mm2
    assert sum(area.values()) == pytest.approx(16.384 / 2.13, rel=0.15)
    assert set(area) == {"mac", "pe_buffer", "global_buffer", "special_functions", "control", "interconnect"}
    assert area["pe_buffer"] == pytest.approx(8 * P.pe_buffer_bytes * P.sram_mm2_per_byte)


def test_paper_mode_still_sums_to_the_published_energy_per_mac() -> None:
    joules_per_mac = P.mac_j["int8"] + P.onchip_j_per_mac + P.static_w_per_mac / P.clock_hz
    assert 8192 * 1e9 * joules_per_mac == pytest.approx(16.384 / 1.57, rel=0.01)
    estimate = price(hw.matmul(m=197, k=192, n=576))
    assert estimate.costs.onchip_j[0] == pytest.approx(197 * 192 * 576 * P.onchip_j_per_mac)


def test_the_numbers_of_the_tables_are_those_of_their_sources() -> None:
    """Horowitz at 45 nm times 0.5; CACTI's 32 and 22 nm points (pJ per byte) as 32 nm ** 0.6 * 22 nm ** 0.4."""
    assert P.mac_j == pytest.approx({"int8": 0.3e-12 / 2, "fp16": 1.5e-12 / 2, "bf16": 1.5e-12 / 2, "fp32": 4.6e-12 / 2})
    cacti = {
        8: (0.42, 0.22), 32: (1.21, 0.50), 128: (1.66, 0.75), 256: (1.72, 0.92), 1024: (3.67, 2.05), 2048: (5.04, 2.83),
        4096: (7.22, 3.90),
    }  # fmt: skip
    for kib, (at_32, at_22) in cacti.items():
        assert P.sram_j_per_byte[str(kib * 1024)] == pytest.approx(at_32**0.6 * at_22**0.4 * 1e-12, rel=0.02)
    assert P.sram_w_per_byte == pytest.approx(0.608**0.6 * 0.309**0.4 / 2**20, rel=0.02)
    assert P.mac_mm2 == pytest.approx(3 * (282 + 137) * (28 / 45) ** 2 * 1e-6, rel=0.01)


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
