"""Scaled-dot-product attention as one fused kernel, by kernel generation. Pure formulas on arrays."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np

from hwmodel.backends.base import BoolArray, FloatArray
from hwmodel.backends.gpu.parameters import GpuParameters
from hwmodel.backends.gpu.vector import dram_share

QUERY_STEP: Final = 16
KEY_STEP: Final = 64
HEAD_DIM_STEP: Final = 32


@dataclass(frozen=True)
class Generation:
    """Constants of one family of fused kernels.

    ``efficiency``: tensor rate reached while it multiplies. ``launch``: launch over that of a product kernel.
    ``rereads``: tiles of queries of one head run far apart, so keys and values come from DRAM for every tile unless
    everything stays in the L2. ``cache_slow``: time of a decoder's cache write over that of a plain copy. ``overlap``:
    p-norm of compute and memory time. ``query_tiles``: queries one CTA may hold, the fastest taken. ``l2_share``: of the
    rate at which streams read the L2; below 1 where few loads are in flight.
    """

    efficiency: float
    launch: float
    rereads: bool
    cache_slow: float
    overlap: float = 1.5
    query_tiles: tuple[int, ...] = (128,)
    l2_share: float = 1.0


GENERATIONS: Final[Mapping[str, Generation]] = {
    "fa2": Generation(efficiency=0.73, launch=2.0, rereads=False, cache_slow=1.4),
    "fa2-sglang": Generation(efficiency=0.72, launch=4.0, rereads=False, cache_slow=1.15),
    "trtllm": Generation(efficiency=0.55, launch=2.8, rereads=False, cache_slow=1.5),
    "trtllm-encoder": Generation(
        efficiency=0.60, launch=3.0, rereads=True, cache_slow=1.0, overlap=4.0, query_tiles=(64, 128), l2_share=0.18
    ),
}
"""FlashAttention 2 (vLLM on L40S and A100; PyTorch's own is the same source), SGLang's build of it, TensorRT-LLM's
context attention and its encoder attention. Fitted on half of the shapes of ``l40s`` and ``a100-80gb-sxm``."""


@dataclass(frozen=True, eq=False)
class Attentions:
    """Columns of shape (n,): ``batch`` heads in all, ``m`` queries, ``n`` keys, head dimension ``k``.

    ``moved_bytes``: queries, keys, values and result, each once.
    """

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
    ``launch + norm(compute, memory)``. One CTA holds up to 128 queries and walks over its keys in steps of 64, head dimension
    padded to 32; products and exponentials add up. Bidirectional CTAs run in waves. Causal ones differ in length, so the
    SMs share them evenly until the longest, started last, runs alone. Bytes that stay in the L2 move at its rate.
    Ignores split-KV for few long heads, and what a cache write costs per token beyond its bytes.
    """
    kind = GENERATIONS[gpu.attention_kernel]
    busy = np.min([_busy_seconds(heads, gpu, kind, tile) for tile in kind.query_tiles], axis=0)
    seconds: FloatArray = kind.launch * gpu.launch_cycles / gpu.clock_hz + busy
    return seconds


def _busy_seconds(heads: Attentions, gpu: GpuParameters, kind: Generation, query_tile: int) -> FloatArray:
    """Time beyond the launch with CTAs of ``query_tile`` queries."""
    keys = np.ceil(heads.n / KEY_STEP) * KEY_STEP
    tile = np.minimum(np.ceil(heads.m / QUERY_STEP) * QUERY_STEP, query_tile)
    seen = np.where(heads.causal, np.minimum((keys + tile) / 2, keys), keys)
    width = np.ceil(heads.k / HEAD_DIM_STEP) * HEAD_DIM_STEP
    products = 2 * tile * width / (heads.macs_per_clock * kind.efficiency)
    per_key = products + tile / gpu.exponentials_per_clock_sm
    tiles = np.ceil(heads.m / query_tile)
    ctas = heads.batch * tiles
    even = np.maximum(ctas / gpu.sm_count, 1.0) * seen + (keys - seen)
    walked = np.where(heads.causal, even, np.ceil(ctas / gpu.sm_count) * keys)
    compute = walked * per_key / gpu.clock_hz
    busy: FloatArray = (compute**kind.overlap + _memory_seconds(heads, gpu, kind, tiles) ** kind.overlap) ** (1.0 / kind.overlap)
    return busy


def _memory_seconds(heads: Attentions, gpu: GpuParameters, kind: Generation, tiles: FloatArray) -> FloatArray:
    """Time of all bytes at DRAM and L2 rate, keys and values again for each of ``tiles`` of queries where they are reread."""
    share = dram_share(heads.moved_bytes, gpu)
    again = 2 * heads.batch * heads.n * heads.k * heads.element_bytes * (tiles - 1) if kind.rereads else 0.0
    moved = heads.moved_bytes + again
    l2_bytes_per_s = kind.l2_share * gpu.l2_bytes_per_clock_sm * gpu.sm_count * gpu.clock_hz
    seconds: FloatArray = moved * share / (gpu.dram_bytes_per_s * gpu.dram_efficiency) + moved * (1 - share) / l2_bytes_per_s
    return seconds
