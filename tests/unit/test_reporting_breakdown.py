"""Every part of a breakdown sums to the estimate's total."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reporting_fakes import EDGE, GPU, PE, TPU, changed, estimate, pruned, vit

import hwmodel as hw
from hwmodel.reporting import breakdown
from hwmodel.reporting.ceilings import ceilings_of, resolved_values
from hwmodel.reporting.variants import Case

DENSE = vit()
SPARSE = pruned(DENSE, 0.26)
GPU_LIKE = {"mode": "compiled", "rate": 120e12, "bytes_per_s": 1300e9, "gap_s": 1.5e-6, "fused": True}


def _case(**changes: object) -> Case:
    return Case("dense", estimate(DENSE, GPU, **(GPU_LIKE | changes)))  # type: ignore[arg-type]


def test_roles_sum_to_the_latency_and_waiting_is_its_own() -> None:
    case = _case()
    parts = breakdown.latency_by_role(case)
    assert sum(parts.values()) == pytest.approx(case.latency_s)
    assert parts["waiting"] == pytest.approx(float(case.estimate.costs.gap_s.sum()))
    assert parts["products"] == 0  # every product of a ViT has a role


def test_bounds_sum_to_the_latency_largest_first() -> None:
    case = _case()
    parts = breakdown.latency_by_bound(case)
    assert sum(parts.values()) == pytest.approx(case.latency_s)
    assert list(parts.values()) == sorted(parts.values(), reverse=True)
    assert parts["host"] == pytest.approx(float(case.estimate.costs.gap_s.sum()))


def test_encoder_blocks_leave_out_patch_embedding_and_head() -> None:
    case = _case()
    frame = case.frame
    outside = frame.loc[["patch_embed.proj", "head"], "latency_s"].sum()
    blocks = breakdown.by_encoder_block(case, "latency_s")
    assert list(blocks.index) == [0, 1]
    assert blocks.to_numpy().sum() + outside == pytest.approx(case.latency_s)


@settings(max_examples=25, deadline=None)
@given(density=st.floats(0.0, 1.0), tile=st.sampled_from([None, 16, 32, 64, 128]), gap=st.floats(0.0, 1e-4))
def test_the_account_sums_to_the_latency_and_only_the_rest_may_be_negative(density: float, tile: int | None, gap: float) -> None:
    sparse = pruned(DENSE, density)
    before, after = (Case("x", estimate(trace, GPU, mode="compiled", tile=tile, gap_s=gap)) for trace in (DENSE, sparse))
    parts = breakdown.account(after, before)
    assert parts.latency_s == pytest.approx(after.latency_s)
    assert min(parts.kept_s, parts.untouched_s, parts.coarse_s) >= 0


def test_a_machine_that_skips_every_pruned_block_loses_nothing_to_coarseness() -> None:
    """Compute-bound everywhere and a skip unit equal to the block: time follows the kept MACs, layer by layer."""
    options = {"tile": 32, "bytes_per_s": 1e18}
    before, after = Case("dense", estimate(DENSE, PE, **options)), Case("sparse", estimate(SPARSE, PE, **options))
    parts = breakdown.account(after, before)
    assert parts.coarse_s == pytest.approx(0, abs=1e-12)
    assert parts.rest_s == pytest.approx(0, abs=1e-9)


def test_a_machine_that_skips_nothing_pays_for_every_pruned_mac() -> None:
    options = {"tile": None, "bytes_per_s": 1e18}
    before, after = Case("dense", estimate(DENSE, PE, **options)), Case("sparse", estimate(SPARSE, PE, **options))
    parts = breakdown.account(after, before)
    pruned_macs = DENSE.kept_macs - SPARSE.kept_macs
    assert parts.coarse_s == pytest.approx(pruned_macs / 1e12)  # at 1e12 MAC/s
    assert after.latency_s == pytest.approx(before.latency_s)


def test_untouched_operators_are_those_without_a_mask() -> None:
    before, after = Case("dense", estimate(DENSE, PE)), Case("sparse", estimate(SPARSE, PE))
    parts = breakdown.untouched_by_role(after, before)
    assert set(parts) == {"attention", "vector", "ends"}
    assert sum(parts.values()) == pytest.approx(breakdown.account(after, before).untouched_s)


def test_an_operator_that_pruning_removed_counts_as_no_work_left() -> None:
    shorter = DENSE.replace(operators=DENSE.operators[:-1])
    before, after = Case("dense", estimate(DENSE, PE)), Case("cut", estimate(shorter, PE))
    change = breakdown.changes(after, before)[-1]
    assert (change.now, change.kept, change.executed) == (None, 0.0, 0.0)
    assert breakdown.account(after, before).latency_s == pytest.approx(after.latency_s)


def test_roofline_points_are_one_per_kind_of_kernel_and_their_shares_add_up() -> None:
    case = _case()
    points = breakdown.roofline_points(case)
    frame = case.frame
    busy = frame["latency_s"] - frame["gap_s"]
    multiplies = frame["executed_macs"] > 0
    assert points["share"].sum() == pytest.approx(busy[multiplies].sum() / case.latency_s)
    assert len(points) == 7  # patch embedding, qkv, attention, proj, fc1, fc2, head: two blocks alike
    assert points["count"].sum() == 2 + 2 * 5
    fused = points[points["role"] == "attention"].iloc[0]
    rows = frame.loc[["blocks.0.attn.scores", "blocks.0.attn.context"]]
    assert fused["macs_per_s"] == pytest.approx(rows["executed_macs"].sum() / busy["blocks.0.attn.scores"])


def test_nothing_off_chip_is_an_infinite_intensity_and_no_error() -> None:
    case = Case("dense", changed(estimate(DENSE, PE), dram_bytes=0.0))
    assert np.isinf(breakdown.roofline_points(case)["macs_per_byte"]).all()


def test_ceilings_come_from_the_card_only() -> None:
    gpu, tpu, pe = (
        ceilings_of(Case("dense", estimate(DENSE, card, mode=mode)))
        for card, mode in ((GPU, "compiled"), (TPU, "full"), (PE, "full"))
    )
    assert gpu.macs_per_s == pytest.approx(108 * 1024 * 1.41e9)
    assert gpu.bytes_per_s == 1555e9
    assert tpu.macs_per_s == pytest.approx(128 * 128 * 2 * 0.94e9)
    assert tpu.bytes_per_s == 396e9
    assert pe.macs_per_s is None  # the card states no peak, so no line is drawn


@pytest.mark.parametrize(("mode", "macs"), [("full", 32 * 32), ("chip", 8 * 32 * 32)])
def test_the_ceiling_of_vita_is_that_of_its_elements(mode: str, macs: int) -> None:
    priced = hw.estimate(DENSE, device="vita", mode=mode, overrides={"pe": "32x32", "clock_hz": 2e9})
    assert ceilings_of(Case("dense", priced)).macs_per_s == macs * 2e9


def test_ceilings_follow_the_power_mode_and_what_the_caller_replaced() -> None:
    slow = Case("dense", estimate(DENSE, EDGE, mode="engine+30w"))
    assert ceilings_of(slow).macs_per_s == pytest.approx(16 * 512 * 0.6e9)
    changed = Case("dense", estimate(DENSE, EDGE, mode="engine+30w", overrides={"sm_count": 8, "macs_per_clock_sm.fp16": 256}))
    assert resolved_values(changed)["macs_per_clock_sm"] == {"fp16": 256}
    assert ceilings_of(changed).macs_per_s == pytest.approx(8 * 256 * 0.6e9)
