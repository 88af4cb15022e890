"""The design study of ViTA: its fronts, masks and swings."""

from __future__ import annotations

import numpy as np
import pytest
from analysis_scripts import script
from examples import vit

import hwmodel as hw

study = script("vita_design")


def test_the_front_holds_what_no_other_point_beats() -> None:
    first, second = np.array([3.0, 1.0, 2.0, 1.0, 4.0]), np.array([1.0, 5.0, 6.0, 4.0, 1.0])
    assert study.front(first, second).tolist() == [3, 0]


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(study, "_traced", lambda name: vit(192, depth=1))


def test_masks_have_their_density_and_skewed_ones_wait_longer(small: None) -> None:
    even, skewed = (study.pruned("any", (16, 16), 0.25, skewed=choice) for choice in (False, True))
    for trace in (even, skewed):
        layers = [one for one in trace.operators if one.mask is not None]
        assert [one.role for one in layers] == ["qkv", "proj", "fc1", "fc2"]
        assert {one.mask.kept_fraction for one in layers} == {0.25}
    idle = [hw.estimate(trace, device="vita", mode="chip", overrides={"pe": "16x16"}).idle_share for trace in (even, skewed)]
    assert idle[0] < idle[1]


def test_swings_are_those_of_the_ends_of_each_range(small: None) -> None:
    trace = vit(192, depth=1)
    swings = {one.field: one for one in study.tornado(trace)}
    own, worst = (
        hw.estimate(trace, device="vita", mode="chip", overrides={"pe": "32x32", **change}).latency_s
        for change in ({}, {"dram_bytes_per_s": 6.4e9})
    )
    assert swings["dram_bytes_per_s"].latency[0] == pytest.approx(worst / own)
    assert [one.width for one in swings.values()] == sorted((one.width for one in swings.values()), reverse=True)
