"""The processor backend: a roofline whose every term can be written down by hand."""

from __future__ import annotations

import numpy as np
import pytest
from examples import vit

import hwmodel as hw
from hwmodel.backends.cards import load_card
from hwmodel.backends.cpu import GRAIN, CpuParameters
from hwmodel.errors import CardError, HwmodelError
from hwmodel.ir.masks import BlockMask

CARD = load_card("host-cpu")
CPU = CpuParameters.model_validate(CARD.values())
PEAK = CPU.cores * CPU.clock_hz * CPU.macs_per_cycle_core["fp32"] * CPU.product_efficiency


def seconds(*operators: hw.Operator, **options: object) -> list[float]:
    trace = hw.Trace.from_operators(operators)
    latencies: list[float] = hw.estimate(trace, device=CARD, **options).costs.latency_s.tolist()  # type: ignore[arg-type]
    return latencies


def test_a_large_product_runs_at_its_share_of_the_peak() -> None:
    assert seconds(hw.matmul(m=512, k=1024, n=1024)) == [pytest.approx(CPU.operator_s + 512 * 1024 * 1024 / PEAK)]


def test_bf16_takes_half_the_time_above_the_call() -> None:
    both = [seconds(hw.matmul(m=512, k=1024, n=1024), dtype=dtype)[0] - CPU.operator_s for dtype in ("fp32", "bf16")]
    assert both[0] == pytest.approx(2 * both[1])


def test_what_exceeds_the_cache_moves_at_the_speed_of_dram() -> None:
    elements = 100_000_000
    moved = 3 * 4 * elements
    memory = CPU.cache_bytes / (CPU.cache_bytes_per_s_core * CPU.cores) + (moved - CPU.cache_bytes) / CPU.dram_bytes_per_s
    assert seconds(hw.elementwise("add", elements=elements, inputs=2)) == [pytest.approx(CPU.operator_s + memory)]


def test_few_elements_stay_on_one_core() -> None:
    few, more = int(GRAIN), int(GRAIN * CPU.cores)
    first, second = seconds(hw.gelu(elements=few), hw.gelu(elements=more))
    compute = few / (CPU.elements_per_cycle_core["special"] * CPU.clock_hz)
    assert first == pytest.approx(CPU.operator_s + compute)
    assert second == pytest.approx(first), "twice the elements on twice the cores"


def test_fused_attention_is_one_call_on_its_first_row() -> None:
    trace = vit(192, depth=1)
    fused, math = (hw.estimate(trace, device=CARD, attention=choice) for choice in ("source", "math"))
    row = next(place for place, operator in enumerate(trace.operators) if operator.role == "scores")
    group = trace.operators[row].attention_group
    members = [place for place, operator in enumerate(trace.operators) if operator.attention_group == group]
    assert set(fused.costs.fused_into[members].tolist()) == {row}
    assert fused.costs.latency_s[members[1:]].tolist() == [0.0] * (len(members) - 1)
    assert (math.costs.fused_into == np.arange(len(trace))).all()
    by_hand = seconds(hw.attention(batch=1, heads=3, queries=197, keys=197, head_dim=64))
    assert fused.costs.latency_s[row] == pytest.approx(by_hand[0], rel=0.05), "but for the copy of its result"
    assert fused.latency_s < math.latency_s


def test_attention_by_hand_fused_and_not() -> None:
    by_hand = hw.attention(batch=1, heads=12, queries=197, keys=197, head_dim=64)
    fused, math = seconds(by_hand)[0], seconds(by_hand, attention="math")[0]
    assert math == pytest.approx(fused + 2 * CPU.operator_s), "three calls; compute bounds both"


def test_masks_are_not_skipped_unless_nothing_is_left() -> None:
    """PyTorch multiplies the zeros: charged in full, and said so."""
    kept = np.zeros((12, 12), dtype=np.bool_)
    empty = BlockMask((768, 768), (64, 64), kept)
    kept = kept.copy()
    kept[0, 0] = True
    one = BlockMask((768, 768), (64, 64), kept)
    operators = [hw.matmul(m=197, k=768, n=768, mask=mask) for mask in (None, one, empty)]
    estimate = hw.estimate(hw.Trace.from_operators(operators), device=CARD)
    dense, sparse, nothing = estimate.costs.latency_s.tolist()
    assert (dense, nothing) == (sparse, 0.0)
    assert estimate.costs.kernel.tolist() == ["product", "product, zeros included", "skipped"]
    assert estimate.costs.executed_macs.tolist() == [197.0 * 768 * 768, 197.0 * 768 * 768, 0.0]
    assert estimate.costs.energy_j[2] == 0.0


def test_energy_by_cause_and_scope() -> None:
    trace = hw.Trace.from_operators([hw.matmul(m=512, k=1024, n=1024)])
    board, dynamic = (hw.estimate(trace, device=CARD, scope=scope) for scope in ("board", "dynamic"))
    assert board.costs.compute_j[0] == pytest.approx(512 * 1024 * 1024 * CPU.mac_j["fp32"])
    assert board.energy_j - dynamic.energy_j == pytest.approx(board.latency_s * CPU.idle_w)
    assert CPU.static_w < board.average_power_w < 100


def test_bounds_name_what_takes_longest() -> None:
    rows = [hw.matmul(m=512, k=1024, n=1024), hw.gelu(elements=8), hw.elementwise("add", elements=10**8, inputs=2)]
    assert hw.estimate(hw.Trace.from_operators(rows), device=CARD).costs.bound.tolist() == ["compute", "host", "memory"]


def test_a_sweep_over_designs() -> None:
    trace = vit(192, depth=1)
    clocks = np.array([1e9, 2e9, 4e9])
    swept = hw.estimate(trace, device=CARD, overrides={"clock_hz": clocks, "macs_per_cycle_core.fp32": np.array([8.0, 16.0, 32.0])})
    alone = [
        hw.estimate(trace, device=CARD, overrides={"clock_hz": clock, "macs_per_cycle_core.fp32": macs}).latency_s
        for clock, macs in zip(clocks.tolist(), (8.0, 16.0, 32.0), strict=True)
    ]
    assert swept.latency_s == pytest.approx(alone)
    assert alone == sorted(alone, reverse=True)


def test_formats_and_budgets_that_cannot_be() -> None:
    with pytest.raises(HwmodelError, match="dtype for host-cpu 'fp16'"):
        seconds(hw.matmul(m=4, k=4, n=4), dtype="fp16")
    with pytest.raises(CardError, match="idle_w <= static_w"):
        seconds(hw.matmul(m=4, k=4, n=4), overrides={"idle_w": 99.0})
