"""How much faster the closed form is than the SCALE-Sim package, both timed in one run. Times are for reading.

The one assertion is a ratio inside one run: machines are shared and noisy.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest

from hwmodel.backends import scale_sim
from hwmodel.backends.scale_sim import Product
from hwmodel.backends.systolic import compute_cycles

TPU = {"rows": 128, "cols": 128, "dataflow": "ws"}
Sizes = npt.NDArray[np.int64]


def network(width: int) -> tuple[Sizes, Sizes, Sizes, Sizes]:
    """m, k, n and count of the distinct products of a DeiT of 12 blocks, 197 tokens and heads of 64."""
    heads = width // 64
    block = [
        (197, width, 3 * width, 1), (197, 64, 197, heads), (197, 197, 64, heads), (197, width, width, 1),
        (197, width, 4 * width, 1), (197, 4 * width, width, 1),
    ]  # fmt: skip
    rows = [(196, 768, width, 1), (1, width, 1000, 1), *((m, k, n, 12 * count) for m, k, n, count in block)]
    m, k, n, count = np.array(rows).T
    return m, k, n, count


def least_s(run: Callable[[], object], calls: int) -> float:
    """Best time of one call out of five series."""
    series = []
    for _ in range(5):
        started = time.perf_counter()
        for _ in range(calls):
            run()
        series.append((time.perf_counter() - started) / calls)
    return min(series)


@pytest.mark.slow
@pytest.mark.peer
def test_a_million_times_faster_than_the_package_on_deit_tiny(capsys: pytest.CaptureFixture[str]) -> None:
    """All 122 layers: the package layer by layer (a distinct one timed once, times its count), ours in one call."""
    pytest.importorskip("scalesim", reason="the SCALE-Sim package is not installed")
    m, k, n, count = network(192)
    scale_sim.simulate(Product(4, 4, 4, 4, 4, "ws"))  # import it first
    package_s, total = 0.0, 0
    for layer, times in zip(np.stack([m, k, n], axis=1).tolist(), count.tolist(), strict=True):
        started = time.process_time()
        total += times * scale_sim.simulate(Product(*layer, 128, 128, "ws")).compute_cycles
        package_s += times * (time.process_time() - started)
    every = [np.repeat(size, count) for size in (m, k, n)]
    ours_s = least_s(lambda: compute_cycles(m=every[0], k=every[1], n=every[2], **TPU), calls=1000)
    assert compute_cycles(m=every[0], k=every[1], n=every[2], **TPU).sum() == total == 360_342
    with capsys.disabled():
        sys.stdout.write(
            f"\nDeiT-T, 122 layers: package {package_s:.1f} s, closed form {ours_s * 1e6:.1f} us: {package_s / ours_s:.2e} times\n"
        )
    assert package_s / ours_s > 1e6


def test_deit_base_in_array_form(benchmark) -> None:
    """Meant to stay under 20 us; printed, not asserted."""
    m, k, n, count = network(768)
    assert benchmark(lambda: int((count * compute_cycles(m=m, k=k, n=n, **TPU)).sum())) == 3_373_894


def test_a_million_products(benchmark) -> None:
    m, k, n, count = network(768)
    every = [np.repeat(size, count * 3000) for size in (m, k, n)]
    assert benchmark(lambda: compute_cycles(m=every[0], k=every[1], n=every[2], **TPU)).sum() == 3000 * 3_373_894
