"""Which block shape the zeros of a weight follow. Plain numpy, closed forms over the whole weight; no shape is tried in turn.

Blocks lie on a grid that starts at element (0, 0), with ragged blocks at the far edges. If the zeros are whole blocks of
``(out, in)``, then a row can differ from the row before it only at multiples of ``out``, and a column from the column
before it only at multiples of ``in``. So the largest such block is unique: the greatest common divisors of the positions
where rows and where columns change.

One stray zero breaks that. Whether a block shape explains zeros at all is therefore told by description length: the bits
for the shape, for which blocks are empty, and for where zeros lie in the others, against the bits for all zeros one by
one. Independent zeros can be told in no fewer bits than one by one (the chain rule of entropy), so they are never taken
for blocks, at any density.
"""

from __future__ import annotations

from math import gcd, log2
from typing import Any

import numpy as np
import numpy.typing as npt

from hwmodel.ir.masks import BlockMask, BoolArray, IntArray, Shape

_NOISE_WIDTHS = 5
"""Standard deviations by which neighbours must differ more than those beside them, to be the edge of a block."""


def block_mask(nonzero: BoolArray, block: Shape) -> BlockMask:
    """Which blocks of a weight hold an element that is not zero.

    Raises
    ------
    ValueError
        A block that does not fit the weight.
    """
    shape = nonzero.shape[0], nonzero.shape[1]
    if block[0] > shape[0] or block[1] > shape[1] or min(block) < 1:
        raise ValueError(f"a block of {block[0]}x{block[1]} does not fit a weight of {shape[0]}x{shape[1]} (out x in)")
    return BlockMask(shape, block, _any_in_runs(_any_in_runs(nonzero, block[0], axis=0), block[1], axis=1))


def _any_in_runs(values: BoolArray, length: int, axis: int) -> BoolArray:
    """Whether any of ``length`` neighbours along an axis is set; the last run may be shorter."""
    if length == 1:
        return values
    starts = np.arange(0, values.shape[axis], length)
    found: BoolArray = np.logical_or.reduceat(values, starts, axis=axis)
    return found


def follows_two_of_four(nonzero: BoolArray) -> bool:
    """Whether every four neighbours along the inputs hold two zeros or more: the pattern that sparse tensor cores take."""
    n, k = nonzero.shape
    if k % 4 or 2 * np.count_nonzero(nonzero) > n * k:
        return False
    return bool((nonzero.reshape(n, k // 4, 4).sum(axis=2, dtype=np.uint8) <= 2).all())


def explaining_mask(nonzero: BoolArray) -> BlockMask | None:
    """The largest blocks that the zeros of a weight follow, None where they follow none.

    First the largest block of which the zeros are a union, ragged edges included. Where that explains nothing because
    stray zeros lie among the kept weights, the candidates are blocks whose edges differ by more than stray zeros would,
    pieces of one row or column, and whole rows and columns; of these the one with the shortest description.
    """
    if not nonzero.any():
        return block_mask(nonzero, (nonzero.shape[0], nonzero.shape[1]))
    exact = _exact_block(nonzero)
    candidates = [exact] if _saves_bits(nonzero, exact) else _likely_blocks(nonzero)
    masks = [block_mask(nonzero, block) for block in dict.fromkeys(candidates)]
    best = min(masks, key=lambda mask: _bits(mask, nonzero))
    return best if _bits(best, nonzero) < _bits_one_by_one(nonzero) else None


def _exact_block(nonzero: BoolArray) -> Shape:
    """The largest block of which the zeros are a union of whole ones; 1x1 where there is no larger."""
    rows = (nonzero[1:] != nonzero[:-1]).any(axis=1)
    cols = (nonzero[:, 1:] != nonzero[:, :-1]).any(axis=0)
    return _common_step(rows, nonzero.shape[0]), _common_step(cols, nonzero.shape[1])


def _common_step(changes: BoolArray, length: int) -> int:
    """The largest step of which every position of a change is a multiple; the whole length where nothing changes."""
    return gcd(*(np.flatnonzero(changes) + 1).tolist()) or length


def _saves_bits(nonzero: BoolArray, block: Shape) -> bool:
    return block != (1, 1) and _bits(block_mask(nonzero, block), nonzero) < _bits_one_by_one(nonzero)


def _likely_blocks(nonzero: BoolArray) -> list[Shape]:
    """Blocks whose edges are where neighbours differ by more than stray zeros make them differ, and rows and columns."""
    n, k = nonzero.shape
    out = _common_step(_loud((nonzero[1:] != nonzero[:-1]).sum(axis=1)), n)
    in_ = _common_step(_loud((nonzero[:, 1:] != nonzero[:, :-1]).sum(axis=0)), k)
    return [(out, in_), (1, in_), (out, 1), (1, k), (n, 1)]


def _loud(differences: IntArray) -> BoolArray:
    """Where more elements change than on either side: inside blocks stray zeros alone make changes, a Poisson count."""
    beside = np.pad(differences, 1)
    quiet = np.maximum(beside[:-2], beside[2:])
    loud: BoolArray = differences > quiet + _NOISE_WIDTHS * np.sqrt(quiet + 1)
    return loud


def _bits(mask: BlockMask, nonzero: npt.NDArray[Any]) -> float:
    """Bits that say the block shape, which blocks are empty, and which elements of the others are zero."""
    elements = nonzero.size
    kept = int(mask.kept_weights)
    return log2(elements) + _choice_bits(mask.kept_blocks, mask.total_blocks) + _choice_bits(int(np.count_nonzero(nonzero)), kept)


def _bits_one_by_one(nonzero: BoolArray) -> float:
    return _choice_bits(int(np.count_nonzero(nonzero)), nonzero.size)


def _choice_bits(chosen: int, total: int) -> float:
    """``total`` times the entropy of a choice that takes ``chosen`` of ``total``."""
    if chosen in {0, total}:
        return 0.0
    share = chosen / total
    return -total * (share * log2(share) + (1 - share) * log2(1 - share))
