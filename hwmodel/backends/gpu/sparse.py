"""Block-sparse and 2:4 weights: what a kernel that skips them costs against the dense one. Pure formulas on arrays."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

import numpy as np

from hwmodel.backends.base import FloatArray
from hwmodel.backends.gpu.parameters import GpuParameters
from hwmodel.backends.gpu.products import Products, inner_cycles, product_seconds
from hwmodel.ir.masks import Mask

SIDES: Final = (64, 32, 16)
"""Block sides that block-sparse-row kernels are written for."""
OVERHEAD: Final = 0.13
"""Part of the dense time that stays at density zero."""
INEFFICIENCY: Final = 1.174
"""Cycles of a block-sparse MAC over what its tile explains. With it and 64x64 blocks in bf16 on A100,
sparse time = dense * (0.13 + 1.89 * density): two whole ViT-H runs (torchao superblock, densities 0.2 and 0.1) gave two
constants, so a hypothesis. Break-even near density 0.46."""
ROWS: Final = 128.0
"""Rows of activations one block-sparse CTA holds (assumed)."""
INDEX_DEPTH: Final = 16.0
"""Fetching the index of a block costs as much as this many steps of its inner loop (assumed)."""
_DENSE_TILE: Final = (256.0, 128.0)

SEMI_STRUCTURED: Final = "2:4"
"""The one N:M pattern tensor cores skip (Ampere and later)."""
SEMI_EFFICIENCY: Final = 0.70
"""Of twice the dense tensor rate (cuSPARSELt on RTX 3090, VENOM's sweep of k)."""
SEMI_BYTES: Final = 0.5625
"""Bytes of a 16-bit 2:4 weight over dense: half the values and 2 bits of index for each."""
SEMI_ENERGY: Final = 0.6
"""Energy of a product with a 2:4 weight over dense (assumed: half the MACs, operands selected)."""
_SEMI_TILES: Final = np.array([(256.0, 128.0, 1.0), (128.0, 256.0, 1.0), (128.0, 128.0, 1.0)])


def skip_unit(mask: Mask) -> tuple[int, int]:
    """(out, in) of the blocks a kernel skips for this mask: the largest sides that fit into the mask's blocks.

    64x64 for blocks of 64x64 and more; 16x16 for anything finer, of which few units are empty. It depends on the block
    shape alone, so removing a block never changes the kernel for the worse.
    """
    out, depth = (next((side for side in SIDES if side <= length), SIDES[-1]) for length in mask.block)
    return out, depth


def occupied_share(mask: Mask) -> float:
    """Occupied over all skip units of the weight, in [0, 1]."""
    out, depth = skip_unit(mask)
    n, k = mask.shape
    return float(mask.occupied_tiles(out, depth)) / (-(-n // out) * -(-k // depth))


def slope(out: FloatArray, depth: FloatArray, products: Products, gpu: GpuParameters) -> FloatArray:
    """Growth of sparse over dense time with density at blocks of (``out``, ``depth``), arrays of shape (n,).

    1.89 for bf16 at 64x64 on A100. Smaller blocks reuse fewer operands and fetch more indices; CUDA-core products are
    not limited by operands, so theirs is lower (1.48).
    """
    tile = inner_cycles(ROWS, out, products, gpu)
    dense = inner_cycles(*_DENSE_TILE, products, gpu)
    return INEFFICIENCY * (tile / dense) * (1.0 + INDEX_DEPTH / depth)


def sparse_factor(share: FloatArray, out: FloatArray, depth: FloatArray, products: Products, gpu: GpuParameters) -> FloatArray:
    """Sparse over dense time; zero where nothing is kept."""
    factor = OVERHEAD + slope(out, depth, products, gpu) * share
    return np.where(share > 0, factor, 0.0)


def break_even(out: FloatArray, depth: FloatArray, products: Products, gpu: GpuParameters) -> FloatArray:
    """Occupied share of (``out``, ``depth``) blocks, at most 1, below which the sparse kernel wins: 0.46 for bf16 at 64x64."""
    share: FloatArray = np.minimum((1.0 - OVERHEAD) / slope(out, depth, products, gpu), 1.0)
    return share


def semi_structured(
    products: Products, weight_bytes: FloatArray, gpu: GpuParameters, *, copies: bool
) -> tuple[FloatArray, FloatArray]:
    """Seconds, (n,) or (designs, n), and bytes (n,) of products whose weights are 2:4.

    Notes
    -----
    Tensor cores at ``gpu.semi_structured_rate`` times their rate, large tiles only, no split-K; CUDA cores gain nothing.
    ``copies``: PyTorch's 2:4 linear hands its result over transposed, and the compiler fuses nothing across it, so the
    result is read and written once more (torchao, ViT-H: 2:4 MLPs gain 13 %, not the 35-40 % of the kernel).
    """
    rate = np.where(products.simt, 1.0, gpu.semi_structured_rate * SEMI_EFFICIENCY)
    kept = products.moved_bytes - weight_bytes * (1.0 - SEMI_BYTES)
    shorter = replace(products, macs_per_clock=products.macs_per_clock * rate, moved_bytes=kept)
    seconds, _ = product_seconds(shorter, gpu, _SEMI_TILES)
    again = 2.0 * products.batch * products.m * products.n * products.element_bytes * copies
    return seconds + again / (gpu.dram_bytes_per_s * gpu.dram_efficiency), kept + again


def sparse_seconds(
    products: Products,
    dense: FloatArray,
    columns: tuple[FloatArray, FloatArray, FloatArray, FloatArray],
    weight_bytes: FloatArray,
    gpu: GpuParameters,
    *,
    copies: bool,
) -> tuple[FloatArray, FloatArray]:
    """Seconds and bytes of the kernel that skips: 2:4 where a weight has that pattern, else block-sparse.

    ``columns``: occupied share, skip unit (out, in), and whether the weight is 2:4, each (n,). Never below one launch and
    the time its bytes take, and zero where nothing is kept.
    """
    share, out, depth, semi = columns
    kept = np.minimum(products.moved_bytes, products.moved_bytes - weight_bytes * (1.0 - share))
    floor = gpu.launch_cycles / gpu.clock_hz + kept / (gpu.dram_bytes_per_s * gpu.dram_efficiency)
    blocks = np.where(share > 0, np.maximum(dense * sparse_factor(share, out, depth, products, gpu), floor), 0.0)
    if not semi.any():
        return blocks, kept
    seconds, moved = semi_structured(products, weight_bytes, gpu, copies=copies)
    return np.where(semi > 0, seconds, blocks), np.where(semi > 0, moved, kept)
