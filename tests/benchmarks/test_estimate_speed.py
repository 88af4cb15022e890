"""How fast an extracted model is priced. Run with ``make bench``; figures are for reading, not for passing.

The one assertion is a ratio inside one run, for machines are shared and noisy: pricing a thousand designs at once must
be far cheaper per design than pricing one at a time.
"""

from __future__ import annotations

import time

import numpy as np
import pytest

import hwmodel as hw
from hwmodel.backends import vita

MACHINES = {"vita": "full", "tpu-v3": "device", "a100-40gb": "compiled", "agx-orin-64gb": "engine+maxn"}


@pytest.fixture(scope="module")
def deit_base() -> hw.Trace:
    return hw.trace("deit_base_patch16_224")


def test_deit_base_on_four_machines(benchmark, deit_base: hw.Trace) -> None:
    """Closed forms on all four machines: meant to stay under 20 ms together."""
    found = benchmark(lambda: [hw.estimate(deit_base, device=device, mode=mode).latency_s for device, mode in MACHINES.items()])
    assert all(latency > 0 for latency in found)


@pytest.mark.parametrize(("device", "mode"), MACHINES.items())
def test_deit_base_on_one_machine(benchmark, deit_base: hw.Trace, device: str, mode: str) -> None:
    assert benchmark(lambda: hw.estimate(deit_base, device=device, mode=mode).latency_s) > 0


@pytest.mark.parametrize("device", ["vita", "tpu-v3"])
def test_a_thousand_designs_at_once(benchmark, deit_base: hw.Trace, device: str) -> None:
    clocks = np.linspace(0.5e9, 2.0e9, 1000)
    started = time.perf_counter()
    one = hw.estimate(deit_base, device=device, overrides={"clock_hz": float(clocks[0])})
    alone_s = time.perf_counter() - started
    started = time.perf_counter()
    sweep = benchmark.pedantic(lambda: hw.estimate(deit_base, device=device, overrides={"clock_hz": clocks}), rounds=1)
    together_s = (time.perf_counter() - started) / len(clocks)
    assert sweep.latency_s[0] == pytest.approx(one.latency_s, rel=1e-12)
    assert together_s < alone_s / 5


def test_a_million_designs_of_vita(benchmark, deit_base: hw.Trace) -> None:
    """Totals only, two threads: meant to stay under 20 s and 1 GB; far cheaper per design than one at a time."""
    rng = np.random.default_rng(0)
    count = 1_000_000
    designs = {
        "pe": "32x32", "pe_count": rng.integers(1, 33, count), "dram_bytes_per_s": rng.uniform(6e9, 1e11, count),
        "buffer_bytes": rng.uniform(131072, 4e6, count), "clock_hz": rng.uniform(0.5e9, 2e9, count),
    }  # fmt: skip
    started = time.perf_counter()
    hw.estimate(deit_base, device="vita", mode="chip", overrides={"pe": "32x32"})
    alone_s = time.perf_counter() - started
    started = time.perf_counter()
    found = benchmark.pedantic(lambda: vita.sweep(deit_base, designs), rounds=1)
    assert len(found.latency_s) == count
    assert (time.perf_counter() - started) / count < alone_s / 100
