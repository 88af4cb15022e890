"""``analysis/heart_vit_orin.py``: every schedule makes the claimed cut, and what is said follows from the priced points."""

from __future__ import annotations

from types import ModuleType

import pytest
from analysis_scripts import script

import hwmodel as hw


@pytest.fixture(scope="module")
def heart() -> ModuleType:
    return script("heart_vit_orin")


@pytest.fixture(scope="module")
def dense(heart: ModuleType) -> hw.Trace:
    return hw.trace(heart.MODELS[0])


def test_the_abstracts_figures_contradict_each_other(heart: ModuleType) -> None:
    """1 / (1 - 0.36) is 1.5625, and 1 / 1.46 is 1 - 0.315; 1 / (1 - 0.494) is 1.976, of which 1.5625 is 79 %."""
    first, second = heart.arithmetic()
    assert "+56% throughput" in first
    assert "-31.5% latency" in first
    assert "1.98 times as fast" in second
    assert "79%" in second


def test_shares_of_tokens_and_heads_by_hand(heart: ModuleType, dense: hw.Trace) -> None:
    """In ViT-B one token costs 12 blocks x 12 x 768^2 MACs and its part of 2 x 768 x tokens^2; a head is a twelfth of attention."""
    assert heart.TOKENS_OF_CLAIM == 118
    tokens, width, blocks = 1 + 118, 768, 12
    per_block = 12 * tokens * width**2 + 2 * tokens**2 * width
    ends = 196 * width**2 + 1000 * width  # the patch embedding has as many inputs as the model is wide: 16 x 16 x 3
    assert heart.change(dense, heart.uniform(118)) == pytest.approx((blocks * per_block + ends) / dense.macs - 1, rel=1e-12)
    half = (4 * width**2 * tokens + 2 * tokens**2 * width) // 2  # six of twelve heads
    assert heart.change(dense, heart.uniform(118, 6 * 12)) == pytest.approx(
        (blocks * (per_block - half) + ends) / dense.macs - 1, rel=1e-12
    )


def test_every_schedule_makes_the_claimed_cut_on_both_models(heart: ModuleType, dense: hw.Trace) -> None:
    other = hw.trace(heart.MODELS[1])
    ways = heart.schedules(dense)
    assert len({way.name for way in ways}) == 5
    for way in ways:
        assert heart.change(dense, way.rules) == pytest.approx(-0.494, abs=0.003)
    assert other.operators == dense.operators


def test_points_and_sentences_at_batch_1(heart: ModuleType) -> None:
    _, points = heart.study(batches=(1,))
    assert len(points) == 5 * (4 + 2)
    for point in points:
        assert (point.gate_s > 0) is ("per input" in point.schedule)
        assert -0.6 < point.latency < 0, "never more than the cut in MACs by much, and never slower"
        assert (1 + point.latency) * (1 + point.throughput) == pytest.approx(1)
    by_mode = {point.mode: point for point in points if point.schedule == "tokens only" and point.device == heart.ORIN}
    assert by_mode["engine+15w"].latency < by_mode["engine+maxn"].latency, "the slow chip is bound by arithmetic"
    same = {point.schedule: point for point in points if point.place == "Orin 15w"}
    assert same["asymmetric, top-k per input"].latency > same["asymmetric, static"].latency, "the gate is charged"
    said = heart.sentences(points)
    assert said[0].startswith("Orin, batch 1: latency -")
    assert any(one.startswith("Orin 15w: latency analytic (not measured), energy ") for one in said)
    assert any(one.startswith("A100 engine: latency calibrated (±") for one in said)
    assert heart.as_figure(points, ".png").startswith(b"\x89PNG")
    assert len(heart.as_table(points).rows) == len(points)
