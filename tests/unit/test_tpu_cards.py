"""Cards of systolic arrays: published peaks follow from their numbers, and a new one needs no code."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest

import hwmodel as hw
from hwmodel.backends.cards import load_card, read_card
from hwmodel.content import content_folder

PEAKS = {  # bf16 FLOP/s and bytes/s of a chip, as published
    "tpu-v2": (46e12, 600e9), "tpu-v3": (123e12, 900e9), "tpu-v4": (275e12, 1200e9), "tpu-v5e": (197e12, 819e9),
}  # fmt: skip
traced = cache(hw.trace)
NAMES = [*PEAKS, "systolic-32x32"]


@pytest.mark.parametrize(("name", "peaks"), PEAKS.items())
def test_published_peaks(name: str, peaks: tuple[float, float]) -> None:
    p = load_card(name).resolve("device")
    flops = 2 * p.chip_cores * p.mxus * p.array_rows * p.array_cols * p.clock_hz
    assert flops == pytest.approx(peaks[0], rel=0.005)
    for achieved in (p.product_hbm_bytes_per_s, p.vector_hbm_bytes_per_s):
        assert 0.75 * peaks[1] < achieved * p.chip_cores < peaks[1]


@pytest.mark.parametrize("name", NAMES)
def test_every_mode_prices_a_model_and_every_folder_tells_about_it(name: str) -> None:
    trace = traced("deit_tiny_patch16_224")
    for mode in ("device", "device+host", "systolic", "paper-fit"):
        estimate = hw.estimate(trace, device=name, mode=mode)
        assert estimate.latency_s > 0
        assert estimate.fidelity["energy"] == "assumed"
        assert estimate.error_band() is None
    text = (content_folder("simulators") / name / "README.md").read_text(encoding="utf-8")
    assert "measured" in text


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("images", [1, 64])
def test_power_lies_between_idle_and_the_maximum(name: str, images: int) -> None:
    p = load_card(name).resolve("device")
    for cores in range(1, int(p.chip_cores) + 1):
        power_w = hw.estimate(
            traced("deit_small_patch16_224", batch=images), device=name, overrides={"cores": cores}
        ).average_power_w
        assert p.static_w < power_w <= p.max_power_w * (1 + 1e-9)


def test_int8_is_twice_as_fast_where_the_chip_is() -> None:
    product = hw.Trace.from_operators([hw.matmul(m=8192, k=4096, n=4096)])
    v5e, v4 = (
        [hw.estimate(product, device=name, dtype=dtype).frame().latency_s.iloc[0] for dtype in ("bf16", "int8")]
        for name in ("tpu-v5e", "tpu-v4")
    )
    assert v5e[1] < 0.55 * v5e[0]
    assert v4[1] > 0.8 * v4[0], "the same array time, fewer bytes at its ends"


def test_newer_chips_are_faster() -> None:
    trace = traced("deit_base_patch16_224", batch=64)
    times = [hw.estimate(trace, device=name).latency_s for name in ("systolic-32x32", "tpu-v2", "tpu-v3", "tpu-v4", "tpu-v5e")]
    assert times == sorted(times, reverse=True)


def test_a_new_array_is_a_card_only(tmp_path: Path) -> None:
    text = (content_folder("simulators") / "systolic-32x32" / "card.toml").read_text(encoding="utf-8")
    path = tmp_path / "card.toml"
    path.write_text(text.replace('name = "systolic-32x32"', 'name = "mine"').replace("value = 32\n", "value = 48\n", 2))
    card = read_card(path)
    assert (card.name, card.resolve("systolic").array_rows, card.resolve("systolic").array_cols) == ("mine", 48, 48)
    product = hw.Trace.from_operators([hw.matmul(m=100, k=96, n=96)])
    assert hw.estimate(product, device=path, mode="systolic").cycles == 2 * 2 * (2 * 48 + 48 + 100 - 2) - 1
