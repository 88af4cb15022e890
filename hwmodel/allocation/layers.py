"""What an allocator is told about a layer: its weight blocks in the order of pruning, and the distortion at every count."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import gcd
from typing import Any

import numpy as np
import numpy.typing as npt

from hwmodel.errors import HwmodelError
from hwmodel.ir.masks import BlockMask, Shape, grid_shape

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, eq=False)
class Ranking:
    """One fixed order in which a layer's blocks are pruned; masks along it are nested.

    Parameters
    ----------
    order : (blocks,) indices into the block grid in row order, pruned first
    unit : (out, in) weights that empty together along this order; None where blocks go one by one. A mask of whole units
        is told in blocks of ``unit``, so that a machine with kernels for large blocks can use them
    """

    order: IntArray
    unit: Shape | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class Layer:
    """The choices of one layer, called points: how many blocks are pruned, by which ranking, at what distortion.

    Made by :meth:`of`; several rankings of one layer become one by :meth:`joined`.

    Parameters
    ----------
    name : operator name, as in the trace
    shape : (out, in) of the weight
    block : (out, in) of a block
    rows : rows of activations that the weight multiplies, whole batch (M of the product)
    rankings : orders of pruning
    ranking : (points,) which of them each point prunes by
    pruned : (points,) blocks pruned
    delta : (points,) distortion, any unit that all layers of a problem share
    """

    name: str
    shape: Shape
    block: Shape
    rows: int
    rankings: tuple[Ranking, ...]
    ranking: IntArray
    pruned: IntArray
    delta: FloatArray

    @classmethod
    def of(
        cls,
        name: str,
        *,
        shape: Shape,
        block: Shape,
        rows: int,
        order: Sequence[int] | IntArray,
        delta: Sequence[float] | FloatArray,
        pruned: Sequence[int] | IntArray | None = None,
        unit: Shape | None = None,
    ) -> Layer:
        """A layer with one ranking.

        Parameters
        ----------
        order : (blocks,) indices into the block grid in row order, pruned first
        delta : distortion with ``pruned`` blocks pruned
        pruned : ascending counts that ``delta`` is for; every count from 0 to all blocks where None

        Raises
        ------
        HwmodelError
            Arrays that do not fit each other, an order that is no permutation, a distortion that is not finite.
        """
        if min(block) < 1:
            raise HwmodelError(f"{name}: block {block} must be positive")
        out, depth = grid_shape(shape, block)
        points = np.arange(out * depth + 1) if pruned is None else np.asarray(pruned)
        found = np.asarray(order)
        _check_shape(name, shape, block, rows)
        _check_order(name, found, out * depth)
        _check_curve(name, points, np.asarray(delta, dtype=np.float64), out * depth)
        ranking = Ranking(order=found.astype(np.int64), unit=unit)
        return cls(
            name=name, shape=shape, block=block, rows=rows, rankings=(ranking,), ranking=np.zeros(len(points), dtype=np.int64),
            pruned=points.astype(np.int64), delta=np.asarray(delta, dtype=np.float64),
        )  # fmt: skip

    @classmethod
    def joined(cls, *layers: Layer) -> Layer:
        """One layer that may be pruned by any ranking of ``layers``, which are the same layer ranked differently.

        Raises
        ------
        HwmodelError
            Layers that differ in name, shape, block or rows.
        """
        first = layers[0]
        if any((one.name, one.shape, one.block, one.rows) != (first.name, first.shape, first.block, first.rows) for one in layers):
            raise HwmodelError(f"{first.name}: only rankings of one and the same layer can be joined")
        starts = np.cumsum([0, *(len(one.rankings) for one in layers[:-1])])
        return cls(
            name=first.name, shape=first.shape, block=first.block, rows=first.rows,
            rankings=tuple(ranking for one in layers for ranking in one.rankings),
            ranking=np.concatenate([one.ranking + start for one, start in zip(layers, starts, strict=True)]),
            pruned=np.concatenate([one.pruned for one in layers]), delta=np.concatenate([one.delta for one in layers]),
        )  # fmt: skip

    @property
    def blocks(self) -> int:
        """Blocks of the weight, ragged ones included."""
        out, depth = grid_shape(self.shape, self.block)
        return out * depth

    @cached_property
    def density(self) -> FloatArray:
        """(points,) fraction of blocks kept."""
        share: FloatArray = 1.0 - self.pruned / self.blocks
        return share

    @cached_property
    def envelope(self) -> FloatArray:
        """(points,) distortion that never falls along a ranking: its running maximum, at least 0."""
        found = np.empty_like(self.delta)
        for number in range(len(self.rankings)):
            where = self.ranking == number
            found[where] = np.maximum.accumulate(np.maximum(self.delta[where], 0.0))
        return found

    @cached_property
    def kept_weights(self) -> IntArray:
        """(points,) weight elements in kept blocks; ragged blocks count what they really hold."""
        sides = [
            np.minimum(size, length - size * np.arange(count))
            for size, length, count in zip(self.block, self.shape, grid_shape(self.shape, self.block), strict=True)
        ]
        elements = np.multiply.outer(*sides).ravel()
        lost = np.stack([np.concatenate([[0], np.cumsum(elements[ranking.order])]) for ranking in self.rankings])
        kept: IntArray = elements.sum() - lost[self.ranking, self.pruned]
        return kept

    def at(self, ratios: int) -> Layer:
        """The same layer at ``ratios`` evenly spaced pruning ratios at most, ends included; each count once."""
        wanted = np.unique(np.rint(np.linspace(0, 1, ratios) * self.blocks).astype(np.int64))
        chosen = np.isin(self.pruned, wanted)
        return self._only(chosen)

    def _only(self, chosen: npt.NDArray[np.bool_]) -> Layer:
        return Layer(
            name=self.name, shape=self.shape, block=self.block, rows=self.rows, rankings=self.rankings,
            ranking=self.ranking[chosen], pruned=self.pruned[chosen], delta=self.delta[chosen],
        )  # fmt: skip

    def mask(self, point: int) -> BlockMask:
        """The kept blocks at a point, in blocks of the ranking's unit where it is made of whole units."""
        ranking = self.rankings[self.ranking[point]]
        kept = np.ones(self.blocks, dtype=np.bool_)
        kept[ranking.order[: self.pruned[point]]] = False
        mask = BlockMask(self.shape, self.block, kept.reshape(grid_shape(self.shape, self.block)))
        return mask if ranking.unit is None else coarsened(mask, ranking.unit)


def coarsened(mask: BlockMask, unit: Shape) -> BlockMask:
    """``mask`` in blocks of ``unit`` where that says the same, else unchanged."""
    fits = all(side % block == 0 and side <= length for side, block, length in zip(unit, mask.block, mask.shape, strict=True))
    if not fits or unit == mask.block:
        return mask
    coarse = BlockMask(mask.shape, unit, mask.tile_occupancy(*unit))
    return coarse if coarse.kept_weights == mask.kept_weights else mask


def common_unit(block: Shape, unit: Shape) -> Shape:
    """The smallest (out, in) that is whole in blocks and in skip units of the machine."""
    out, depth = (side * size // gcd(side, size) for side, size in zip(block, unit, strict=True))
    return out, depth


def _check_shape(name: str, shape: Shape, block: Shape, rows: int) -> None:
    if rows < 1 or any(side > length for side, length in zip(block, shape, strict=True)):
        raise HwmodelError(f"{name}: a block of {block} in a weight of {shape} (out, in) with {rows} rows is no layer")


def _check_order(name: str, order: np.ndarray[Any, Any], blocks: int) -> None:
    if order.shape != (blocks,) or order.dtype.kind not in "iu" or not np.array_equal(np.sort(order), np.arange(blocks)):
        raise HwmodelError(f"{name}: order must hold each of the {blocks} block indices once")


def _check_curve(name: str, pruned: np.ndarray[Any, Any], delta: FloatArray, blocks: int) -> None:
    counts = pruned.dtype.kind in "iu" and pruned.ndim == 1 and pruned.size > 0
    if not counts or pruned[0] < 0 or pruned[-1] > blocks or (np.diff(pruned) <= 0).any():
        raise HwmodelError(f"{name}: pruned must be ascending counts between 0 and {blocks}")
    if delta.shape != pruned.shape:
        raise HwmodelError(f"{name}: delta has shape {delta.shape}, expected {pruned.shape}: one value per count of pruned blocks")
    if not np.isfinite(delta).all():
        raise HwmodelError(f"{name}: delta is not finite with {int(pruned[~np.isfinite(delta)][0])} blocks pruned")
