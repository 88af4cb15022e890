"""Scaled-dot-product attention as one fused kernel (FlashAttention style). Pure formulas on arrays."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from hwmodel.backends.base import BoolArray, FloatArray
from hwmodel.backends.gpu.parameters import GpuParameters

QUERY_TILES: Final = np.array([128.0, 64.0])
QUERY_TILE_FACTOR: Final = np.array([1.0, 1.15])
"""Product time per MAC of a tile of 64 queries over one of 128 (assumed: half the reuse of keys and values)."""
KEY_STEP: Final = 64
HEAD_DIM_STEP: Final = 32
LAUNCH_SHARE: Final = 2.4
"""Launch over that of a product kernel: 6.5 us floor of bidirectional rows on L40S, framework part left out."""


@dataclass(frozen=True, eq=False)
class Attentions:
    """Columns of shape (n,): ``batch`` heads in all, ``m`` queries, ``n`` keys, head dimension ``k``."""

    batch: FloatArray
    m: FloatArray
    k: FloatArray
    n: FloatArray
    causal: BoolArray
    element_bytes: FloatArray
    moved_bytes: FloatArray
    macs_per_clock: FloatArray


def attention_seconds(heads: Attentions, gpu: GpuParameters) -> FloatArray:
    """Device time of each fused attention: (n,) or (designs, n).

    Notes
    -----
    One CTA holds a tile of queries and walks over its keys in steps of 64, head dimension padded to 32; products and
    exponentials add up. Bidirectional CTAs run in waves. Causal ones differ in length, so the SMs share them evenly until
    the longest, started last, runs alone. Ignores split-KV for few long heads. Efficiency fitted on half of the L40S
    (vLLM, head dimensions 64 to 80) and A100 rows (three libraries, causal, 128).
    """
    tile, factor = QUERY_TILES.reshape(-1, 1, 1), QUERY_TILE_FACTOR.reshape(-1, 1, 1)
    keys = np.ceil(heads.n / KEY_STEP) * KEY_STEP
    seen = np.where(heads.causal, (keys + np.minimum(tile, keys)) / 2, keys)
    width = np.ceil(heads.k / HEAD_DIM_STEP) * HEAD_DIM_STEP
    products = 2 * tile * width * factor / (heads.macs_per_clock * gpu.attention_efficiency)
    per_key = products + tile / gpu.exponentials_per_clock_sm
    ctas = heads.batch * np.ceil(heads.m / tile)
    even = np.maximum(ctas / gpu.sm_count, 1.0) * seen + (keys - seen)
    walked = np.where(heads.causal, even, np.ceil(ctas / gpu.sm_count) * keys)
    compute = (walked * per_key).min(axis=0) / gpu.clock_hz
    memory = heads.moved_bytes / (gpu.dram_bytes_per_s * gpu.dram_efficiency)
    seconds: FloatArray = LAUNCH_SHARE * gpu.launch_cycles / gpu.clock_hz + np.maximum(compute, memory)
    return seconds[0] if len(seconds) == 1 else seconds
