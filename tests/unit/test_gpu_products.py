"""Products on a GPU: limits that any tile must obey, and the staircase over tokens."""

from __future__ import annotations

import numpy as np
import pytest

from hwmodel.backends.base import FloatArray, by_key
from hwmodel.backends.cards import read_card
from hwmodel.backends.gpu.parameters import GpuParameters, arithmetic
from hwmodel.backends.gpu.products import TENSOR_EFFICIENCY, Products, inner_cycles, product_seconds
from hwmodel.content import content_folder
from hwmodel.errors import HwmodelError

CARD = read_card(content_folder("simulators") / "a100-80gb-sxm" / "card.toml")
A100 = GpuParameters.model_validate(CARD.values())
PEAK_MACS_PER_S = {"fp32": 108 * 64 * 1.41e9, "bf16": 108 * 1024 * 1.41e9}


def seconds(m: int | list[int], k: int, n: int, *, batch: int = 1, dtype: str = "bf16", gpu: GpuParameters = A100) -> FloatArray:
    rows = np.atleast_1d(np.asarray(m, dtype=np.float64))
    ones = np.ones_like(rows)
    size = 4.0 if dtype == "fp32" else 2.0
    moved = batch * (rows * k + k * n + rows * n) * size
    rate = by_key(gpu.macs_per_clock_sm, np.full(rows.shape, dtype), "macs_per_clock_sm")
    products = Products(batch * ones, rows, k * ones, n * ones, size * ones, moved, rate, np.full(rows.shape, dtype == "fp32"))
    return product_seconds(products, gpu)[0]


def test_token_plateau() -> None:
    """N 3072, K 768: 1 wave of 256x128 tiles at 1024 tokens, two from 1280 to 2048 (measured 27.6, then 48-54 us)."""
    one, *two = seconds([1024, 1280, 1536, 1792, 2048], 768, 3072)
    assert np.ptp(two) / np.mean(two) < 0.08
    assert 1.6 < two[0] / one < 2.0


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_large_products_approach_peak(dtype: str) -> None:
    """82 to 97 % of peak, never above (FlagPerf, LLMCompass)."""
    share = 8192**3 / PEAK_MACS_PER_S[dtype] / float(seconds(8192, 8192, 8192, dtype=dtype)[0])
    assert 0.82 < share < 0.98


def test_a_tiny_product_costs_its_launch() -> None:
    launch = A100.launch_cycles / A100.clock_hz
    assert launch < float(seconds(1, 32, 64)[0]) < launch + 3e-6


def test_odd_token_counts_halve_the_rate_of_tensor_products_only() -> None:
    """197 bf16 values are no multiple of 16 bytes, 200 are; CUDA cores do not mind."""
    assert 1.8 < float(seconds(200, 64, 197, batch=96)[0] / seconds(200, 64, 200, batch=96)[0]) <= 2.0
    plain = seconds(200, 64, 197, batch=96, dtype="fp32") / seconds(200, 64, 200, batch=96, dtype="fp32")
    assert float(plain[0]) <= 1.0


def test_memory_bound_product_moves_its_weight_at_dram_rate() -> None:
    weight_bytes = 2 * 16384 * 16384
    floor = weight_bytes / (A100.dram_bytes_per_s * A100.dram_efficiency)
    assert floor < float(seconds(16, 16384, 16384)[0]) < 1.35 * floor


def test_inner_loop_is_between_its_two_limits() -> None:
    products = Products(*(np.ones(1) for _ in range(4)), 2 * np.ones(1), np.ones(1), np.full(1, 1024.0), np.zeros(1, dtype=bool))
    mac = 1 / (1024 * TENSOR_EFFICIENCY)
    supply = (256 + 128) * 2 / (A100.feed_bytes_per_clock_sm * 256 * 128)
    cycles = float(inner_cycles(256.0, 128.0, products, A100)[0])
    assert max(mac, supply) < cycles < mac + supply


def test_sweep_axis_gives_one_row_per_design() -> None:
    clocks = np.array([[1.0e9], [1.41e9]])
    both = seconds([512, 1024, 4096], 768, 3072, gpu=A100.model_copy(update={"clock_hz": clocks}))
    assert both.shape == (2, 3)
    np.testing.assert_array_equal(both[1], seconds([512, 1024, 4096], 768, 3072))


def test_unknown_format_is_told() -> None:
    assert arithmetic(np.array(["amp-fp16", "fp32"])).tolist() == ["fp16", "fp32"]
    with pytest.raises(HwmodelError, match="macs_per_clock_sm has no entry for 'int4', only for bf16"):
        by_key(A100.macs_per_clock_sm, np.array(["int4"]), "macs_per_clock_sm")
