"""Block-sparse weights: what a kernel that skips empty blocks costs against the dense one. Pure formulas on arrays."""

from __future__ import annotations

from typing import Final

import numpy as np

from hwmodel.backends.base import FloatArray
from hwmodel.backends.gpu.parameters import GpuParameters
from hwmodel.backends.gpu.products import Products, inner_cycles
from hwmodel.ir.masks import Mask

SIDES: Final = (64, 32, 16)
"""Block sides that block-sparse-row kernels are written for."""
OVERHEAD: Final = 0.10
"""Part of the dense time that stays at density zero."""
INEFFICIENCY: Final = 1.174
"""Cycles of a block-sparse MAC over what its tile explains. With it and 64x64 blocks in bf16 on A100,
sparse time = dense * (0.10 + 1.89 * density): three whole ViT-H runs (torchao superblock) gave two constants, so a
hypothesis. Break-even near density 0.48."""
ROWS: Final = 128.0
"""Rows of activations one block-sparse CTA holds (assumed)."""
INDEX_DEPTH: Final = 16.0
"""Fetching the index of a block costs as much as this many steps of its inner loop (assumed)."""
_DENSE_TILE: Final = (256.0, 128.0)


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
