"""Block masks: which (out, in) blocks of a weight are kept, and how many tiles of a machine still hold one.

A weight has shape ``(n, k)`` = (output features, input features), as ``nn.Linear.weight`` has. Its block grid has
shape ``(ceil(n / out), ceil(k / in))``; blocks on the right and bottom edges are ragged where ``out`` or ``in`` does
not divide the weight.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from math import ceil
from operator import index
from typing import Literal, Protocol, cast, runtime_checkable

import numpy as np
import numpy.typing as npt

BoolArray = npt.NDArray[np.bool_]
IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]
Shape = tuple[int, int]
Rule = Literal["uniform", "row-clustered", "tile-clustered"]
RULES: tuple[Rule, ...] = ("uniform", "row-clustered", "tile-clustered")

_DIGITS = 9
"""Decimals kept of an expected tile count: beyond them is binary rounding."""

CLUSTER: Shape = (128, 128)
"""Weight elements of one cluster under the rule ``tile-clustered``: the largest skip unit among our machines."""


@runtime_checkable
class Mask(Protocol):
    """What a backend may ask of a mask, whether it is stored or only expected."""

    @property
    def digest(self) -> str: ...
    @property
    def block(self) -> Shape: ...
    @property
    def shape(self) -> Shape: ...
    @property
    def total_blocks(self) -> int: ...
    @property
    def kept_blocks(self) -> int: ...
    @property
    def kept_fraction(self) -> float: ...
    @property
    def kept_weights(self) -> float: ...
    def occupied_tiles(self, tile_out: int, tile_in: int) -> float: ...
    def occupied_tiles_std(self, tile_out: int, tile_in: int) -> float: ...


def grid_shape(shape: Shape, block: Shape) -> Shape:
    """Blocks along (out, in), ragged edges counted."""
    return ceil(shape[0] / block[0]), ceil(shape[1] / block[1])


def _whole(shape: Shape) -> Shape:
    """``shape`` as two plain ints (numpy's have another text, and so another digest)."""
    try:
        first, second = (index(size) for size in shape)
    except (TypeError, ValueError) as error:
        raise ValueError(f"expected two whole numbers (out, in), found {shape!r}") from error
    return first, second


def _check(shape: Shape, block: Shape) -> None:
    if min(shape) < 1 or min(block) < 1:
        raise ValueError(f"weight shape {shape} and block {block} must be positive")
    if block[0] > shape[0] or block[1] > shape[1]:
        raise ValueError(f"a block of {block[0]}x{block[1]} does not fit a weight of {shape[0]}x{shape[1]} (out x in)")


def _covered_blocks(length: int, block: int, tile: int) -> tuple[IntArray, IntArray]:
    """First block and one past the last block that each tile along one axis touches."""
    starts = np.arange(0, length, tile, dtype=np.int64)
    ends = np.minimum(starts + tile, length)
    return starts // block, -(-ends // block)


@dataclass(frozen=True, eq=False)
class BlockMask:
    """Kept blocks of one weight.

    Parameters
    ----------
    shape : (n, k)
        Output and input features of the weight.
    block : (out, in)
        Elements of one block.
    kept : (ceil(n / out), ceil(k / in)) bool
        True where a block is kept. Copied and made read-only.

    Raises
    ------
    ValueError
        Where the block does not fit the weight or the grid has another shape.
    """

    shape: Shape
    block: Shape
    kept: BoolArray
    _tiles: dict[Shape, int] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        for name in ("shape", "block"):
            object.__setattr__(self, name, _whole(getattr(self, name)))
        _check(self.shape, self.block)
        kept = np.array(self.kept, dtype=np.bool_)
        expected = grid_shape(self.shape, self.block)
        if kept.shape != expected:
            raise ValueError(
                f"mask grid has shape {kept.shape}, expected {expected} for a weight of {self.shape} in {self.block} blocks"
            )
        kept.setflags(write=False)
        object.__setattr__(self, "kept", kept)

    @classmethod
    def full(cls, shape: Shape, block: Shape) -> BlockMask:
        """Every block kept."""
        _check(shape, block)
        return cls(shape, block, np.ones(grid_shape(shape, block), dtype=np.bool_))

    @cached_property
    def digest(self) -> str:
        """SHA-256 of shape, block and bits: equal masks have equal digests."""
        head = f"{self.shape}{self.block}".encode()
        return hashlib.sha256(head + np.packbits(self.kept).tobytes()).hexdigest()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, BlockMask) and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)

    @property
    def total_blocks(self) -> int:
        """Blocks of the grid, ragged ones included."""
        return int(self.kept.size)

    @cached_property
    def kept_blocks(self) -> int:
        """Blocks kept, ragged ones counted as one each."""
        return int(np.count_nonzero(self.kept))

    @property
    def kept_fraction(self) -> float:
        """Kept blocks over all blocks, in [0, 1]."""
        return self.kept_blocks / self.total_blocks

    @cached_property
    def kept_weights(self) -> float:
        """Weight elements inside kept blocks; ragged blocks count what they really hold."""
        rows, cols = (
            np.minimum(size, length - size * np.arange(count))
            for size, length, count in zip(self.block, self.shape, self.kept.shape, strict=True)
        )
        return float(rows @ self.kept.astype(np.int64) @ cols)

    def occupied_tiles(self, tile_out: int, tile_in: int) -> int:
        """Tiles of ``tile_out x tile_in`` elements that hold at least one kept block (or part of one).

        The tile grid starts at element (0, 0), like the block grid; neither has to divide the other. Counted with a
        summed-area table over the block grid, once per distinct tile shape.
        """
        tile = (tile_out, tile_in)
        if tile not in self._tiles:
            self._tiles[tile] = int(np.count_nonzero(self.tile_occupancy(tile_out, tile_in)))
        return self._tiles[tile]

    def tile_occupancy(self, tile_out: int, tile_in: int) -> BoolArray:
        """Which tiles hold a kept block: bool of shape ``(ceil(n / tile_out), ceil(k / tile_in))``."""
        if min(tile_out, tile_in) < 1:
            raise ValueError(f"a tile must be at least 1x1, got {tile_out}x{tile_in}")
        area = np.zeros((self.kept.shape[0] + 1, self.kept.shape[1] + 1), dtype=np.int64)
        area[1:, 1:] = self.kept.cumsum(axis=0, dtype=np.int64).cumsum(axis=1)
        top, bottom = _covered_blocks(self.shape[0], self.block[0], tile_out)
        left, right = _covered_blocks(self.shape[1], self.block[1], tile_in)
        inside = area[np.ix_(bottom, right)] - area[np.ix_(top, right)] - area[np.ix_(bottom, left)]
        occupied: BoolArray = inside + area[np.ix_(top, left)] > 0
        return occupied

    def occupied_tiles_std(self, tile_out: int, tile_in: int) -> float:
        """Zero: a stored mask is certain."""
        return 0.0


def _none_kept(total: int, kept: int, touched: int) -> float:
    """Probability that none of ``touched`` given blocks is among ``kept`` of ``total``: C(total - touched, kept) / C(total, kept).

    As a product of min(kept, touched) ratios, each exact to rounding; differences of log-gamma lose nine digits here.
    """
    if touched + kept > total:
        return 0.0
    few, many = sorted((kept, touched))
    left = np.arange(total, total - few, -1, dtype=np.float64)
    return float(np.prod((left - many) / left))


@dataclass(frozen=True)
class ExpectedMask:
    """A mask of which only the density is known: ``kept_blocks`` lie anywhere, every placement as likely (``uniform``).

    Without replacement, so exactly ``kept_blocks`` are kept. A tile that touches ``g`` of the ``B`` blocks is empty
    with probability C(B - g, kept) / C(B, kept) (hypergeometric); expectation and standard deviation of the number of
    occupied tiles follow exactly, correlations between tiles included.

    Raises
    ------
    ValueError
        Where the block does not fit or ``kept_blocks`` is not in [0, total].
    """

    shape: Shape
    block: Shape
    kept_blocks: int

    def __post_init__(self) -> None:
        for name in ("shape", "block"):
            object.__setattr__(self, name, _whole(getattr(self, name)))
        _check(self.shape, self.block)
        try:
            object.__setattr__(self, "kept_blocks", index(self.kept_blocks))
        except TypeError as error:
            raise ValueError(f"kept_blocks must be a whole number, got {self.kept_blocks!r}") from error
        if not 0 <= self.kept_blocks <= self.total_blocks:
            raise ValueError(f"kept_blocks must be in [0, {self.total_blocks}], got {self.kept_blocks}")

    @property
    def digest(self) -> str:
        """SHA-256 of shape, block and count, apart from every stored mask's."""
        text = f"uniform{self.shape}{self.block}{self.kept_blocks}"
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def total_blocks(self) -> int:
        """Blocks of the grid, ragged ones included."""
        rows, cols = grid_shape(self.shape, self.block)
        return rows * cols

    @property
    def kept_fraction(self) -> float:
        """Kept blocks over all blocks, in [0, 1]."""
        return self.kept_blocks / self.total_blocks

    @property
    def kept_weights(self) -> float:
        """Expected weight elements inside kept blocks: by symmetry the kept share of all of them."""
        return self.kept_blocks * (self.shape[0] * self.shape[1]) / self.total_blocks

    def _empty_probability(self, touched: FloatArray) -> FloatArray:
        """Probability that none of ``touched`` given blocks is kept, elementwise."""
        sizes, where = np.unique(touched, return_inverse=True)
        distinct = np.array([_none_kept(self.total_blocks, self.kept_blocks, int(size)) for size in sizes])
        return cast("FloatArray", distinct[where].reshape(touched.shape))

    def occupied_tiles(self, tile_out: int, tile_in: int) -> float:
        """Expected number of tiles of ``tile_out x tile_in`` elements that hold a kept block."""
        if min(tile_out, tile_in) < 1:
            raise ValueError(f"a tile must be at least 1x1, got {tile_out}x{tile_in}")
        return _expected_tiles(self, tile_out, tile_in)

    def _touched(self, tile_out: int, tile_in: int) -> tuple[FloatArray, FloatArray]:
        """Distinct numbers of blocks that a tile touches, and how many tiles touch so many."""
        spans = [
            np.subtract(*_covered_blocks(length, block, tile)[::-1])
            for length, block, tile in zip(self.shape, self.block, (tile_out, tile_in), strict=True)
        ]
        sizes, counts = np.unique(np.multiply.outer(*spans), return_counts=True)
        return sizes.astype(np.float64), counts.astype(np.float64)

    def occupied_tiles_std(self, tile_out: int, tile_in: int) -> float:
        """Standard deviation of the number of occupied tiles over all placements."""
        rows = _pair_overlaps(self.shape[0], self.block[0], tile_out)
        cols = _pair_overlaps(self.shape[1], self.block[1], tile_in)
        (row_a, row_b, row_both), row_count = rows
        (col_a, col_b, col_both), col_count = cols
        size_a, size_b = np.multiply.outer(row_a, col_a), np.multiply.outer(row_b, col_b)
        union = size_a + size_b - np.multiply.outer(row_both, col_both)
        joint = self._empty_probability(union)
        apart = self._empty_probability(size_a) * self._empty_probability(size_b)
        variance = float(np.sum(np.multiply.outer(row_count, col_count) * (joint - apart)))
        return float(max(variance, 0.0) ** 0.5)


@lru_cache(maxsize=2**16)
def _expected_tiles(mask: ExpectedMask, tile_out: int, tile_in: int) -> float:
    """:meth:`ExpectedMask.occupied_tiles`, once per distinct mask and tile: sweeps ask for the same ones again and again."""
    sizes, counts = mask._touched(tile_out, tile_in)
    return round(float(counts @ (1.0 - mask._empty_probability(sizes))), _DIGITS)


def _pair_overlaps(length: int, block: int, tile: int) -> tuple[FloatArray, FloatArray]:
    """Pairs of tiles along one axis: (blocks of a, blocks of b, blocks of both) as rows, and how often each occurs."""
    first, last = _covered_blocks(length, block, tile)
    size = np.broadcast_to(last - first, (len(first), len(first)))
    both = np.minimum.outer(last, last) - np.maximum.outer(first, first)
    triples = np.stack([size.T.ravel(), size.ravel(), np.maximum(both, 0).ravel()])
    distinct, counts = np.unique(triples, axis=1, return_counts=True)
    return distinct.astype(np.float64), counts.astype(np.float64)


def expected_mask(shape: Shape, block: Shape, density: float, rule: Rule = "uniform") -> BlockMask | ExpectedMask:
    """The mask that stands for a density where no mask is given.

    ``round(density * blocks)`` blocks are kept. ``uniform``: anywhere, as an expectation with its spread.
    ``row-clustered``: the first block rows whole (output features die together). ``tile-clustered``: 128x128 clusters
    one after the other in row order. The clustered rules are certain, so they return a stored mask.

    Raises
    ------
    ValueError
        Density outside [0, 1], unknown rule, or a block that does not fit.
    """
    if not 0.0 <= density <= 1.0:
        raise ValueError(f"density must be in [0, 1], got {density}")
    shape, block = _whole(shape), _whole(block)
    _check(shape, block)
    rows, cols = grid_shape(shape, block)
    kept_blocks = round(density * rows * cols)
    if rule == "uniform":
        return ExpectedMask(shape, block, kept_blocks)
    if rule not in RULES:
        raise ValueError(f"unknown rule {rule!r}: expected one of {', '.join(RULES)}")
    row, col = np.divmod(np.arange(rows * cols), cols)
    if rule == "tile-clustered":
        order = np.lexsort((col, row, col * block[1] // CLUSTER[1], row * block[0] // CLUSTER[0]))
    else:
        order = np.arange(rows * cols)
    kept = np.zeros(rows * cols, dtype=np.bool_)
    kept[order[:kept_blocks]] = True
    return BlockMask(shape, block, kept.reshape(rows, cols))
