"""The second ViTA card, held to the three figures that Nag et al. (ISCAS 2023, arXiv 2302.09108) print: 150 MHz, 0.88 W, and a
utilisation of about 90 %. Utilisation is predicted; one energy constant was set so that a DeiT-S meets the power."""

from __future__ import annotations

import pytest
from examples import vit

import hwmodel as hw
from hwmodel.backends.cards import load_card

P = load_card("vita-iscas23").resolve()


def test_the_clock_is_printed() -> None:
    assert P.clock_hz == 150e6


@pytest.mark.parametrize("width", [192, 384, 768])
def test_utilisation_and_power(width: int) -> None:
    """MACs over cycles times MACs of the array; power without DRAM."""
    estimate = hw.estimate(vit(width), device="vita-iscas23")
    assert estimate.trace.macs / (estimate.cycles * P.chip_macs) == pytest.approx(0.90, abs=0.08)
    power_w = (estimate.energy_j - estimate.costs.offchip_j.sum()) / estimate.latency_s
    assert power_w == pytest.approx(0.88, rel=0.06)


def test_it_tells_no_area() -> None:
    """Nothing about area is in the figures we have."""
    assert hw.estimate(vit(192, depth=1), device="vita-iscas23").area_mm2 == {}
