"""Cut a weight's mask by rows and columns: what is certainly pruned, what can go as whole blocks, what is left."""

from __future__ import annotations

import numpy as np

from hwmodel.ir.masks import BlockMask, BoolArray, ExpectedMask, IntArray, Mask
from hwmodel.ir.operators import Operator

OUT, IN = 0, 1
"""Axes of a weight: output features are its rows, input features its columns."""


def certainly_pruned(operator: Operator, axis: int) -> BoolArray:
    """Rows (``OUT``) or columns (``IN``) of a weight of which no element is kept.

    A mask of which only a density is known proves nothing, unless it keeps no block at all.
    """
    length = (operator.n, operator.k)[axis]
    mask = operator.mask
    if isinstance(mask, BlockMask):
        alive = mask.kept.any(axis=1 - axis)
        return ~np.repeat(alive, mask.block[axis])[:length]
    return np.full(length, mask is not None and mask.kept_blocks == 0)


def cut_blocks(operator: Operator, gone: BoolArray, axis: int) -> BoolArray:
    """Rows or columns of ``gone`` that share a block with one that stays; none where the weight has no mask."""
    if operator.mask is None:
        return np.zeros_like(gone)
    block = operator.mask.block[axis]
    starts = np.arange(0, len(gone), block)
    whole = np.logical_and.reduceat(gone, starts)
    cut: BoolArray = gone & ~np.repeat(whole, block)[: len(gone)]
    return cut


def sliced(mask: Mask | None, stays_out: BoolArray, stays_in: BoolArray) -> Mask | None:
    """The mask of the rows and columns that stay, None where it keeps all of them; those that go must be whole blocks."""
    if mask is None or (stays_out.all() and stays_in.all()):
        return mask
    shape = int(stays_out.sum()), int(stays_in.sum())
    block = min(mask.block[OUT], shape[OUT]), min(mask.block[IN], shape[IN])
    if isinstance(mask, BlockMask):
        rows, cols = _stays(stays_out, mask.block[OUT]), _stays(stays_in, mask.block[IN])
        kept = mask.kept[np.ix_(rows, cols)]
        return None if kept.all() else BlockMask(shape, block, kept)
    if mask.kept_blocks not in {0, mask.total_blocks}:
        raise ValueError("a mask of which only a density is known cannot be sliced")
    return ExpectedMask(shape, block, 0) if mask.kept_blocks == 0 else None


def _stays(stays: BoolArray, block: int) -> IntArray:
    """Indices of the blocks that stay along one axis."""
    return np.flatnonzero(stays[::block])


def tightened(mask: Mask | None, dead_out: BoolArray, dead_in: BoolArray) -> Mask | None:
    """The mask without the blocks that lie wholly in dead rows or wholly in dead columns; the same object where none does."""
    if not isinstance(mask, BlockMask):
        return mask
    rows = np.logical_and.reduceat(dead_out, np.arange(0, len(dead_out), mask.block[OUT]))
    cols = np.logical_and.reduceat(dead_in, np.arange(0, len(dead_in), mask.block[IN]))
    kept = mask.kept & ~rows[:, None] & ~cols[None, :]
    return mask if bool((kept == mask.kept).all()) else BlockMask(mask.shape, mask.block, kept)
