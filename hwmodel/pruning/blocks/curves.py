"""Sensitivity curves: for every layer the order in which its blocks are pruned, and the distortion at every count."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from hwmodel.errors import HwmodelError, UnknownNameError
from hwmodel.ir.masks import BlockMask, BoolArray, FloatArray, IntArray, Shape, grid_shape
from hwmodel.pruning.blocks.distortion import Distortion, Float32Array, Form, mean_and_mean_square

Score = Literal["gauss-newton", "fisher", "taylor", "magnitude"]
SCORES: tuple[Score, ...] = ("gauss-newton", "fisher", "taylor", "magnitude")


@dataclass(frozen=True, kw_only=True, eq=False)
class LayerCurve:
    """One layer: its blocks in the order of pruning, and what pruning them does.

    Masks along the order are nested. Blocks that hold no weight (pruned already) come first, at no distortion, unless an order of
    one's own says otherwise.

    Parameters
    ----------
    name : operator name, as in the trace
    shape : (out, in) of the weight; a convolutional patch embedding flattened
    block : (out, in) of a block
    order : (blocks,) indices into the block grid in row order, pruned first
    delta : (blocks + 1,) distortion with the first 0, 1, 2, ... blocks pruned; raw, so it may fall
    scores : (blocks,) what pruning each block alone costs, by the score asked for
    kept : (blocks,) which blocks hold a weight now
    distortion : the same distortion along any order
    """

    name: str
    shape: Shape
    block: Shape
    order: IntArray
    delta: FloatArray
    scores: FloatArray
    kept: BoolArray
    distortion: Distortion

    @property
    def blocks(self) -> int:
        """Blocks of the weight, ragged ones included."""
        return len(self.order)

    @property
    def already_pruned(self) -> int:
        """Blocks that hold no weight now: the first ones of the order where that is by score."""
        return self.blocks - int(np.count_nonzero(self.kept))

    def delta_of(self, order: npt.ArrayLike) -> FloatArray:
        """(blocks + 1,) distortion along another order.

        Raises
        ------
        HwmodelError
            An order that does not hold each block once.
        """
        try:
            return self.distortion.along(order)
        except HwmodelError as error:
            raise HwmodelError(f"{self.name}: {error}") from error

    def mask(self, pruned: int | None = None, *, kept: int | None = None) -> BlockMask:
        """The mask with the first ``pruned`` blocks of the order pruned, or all but the last ``kept``.

        Raises
        ------
        HwmodelError
            Neither or both counts, or one outside [0, blocks].
        """
        if (pruned is None) == (kept is None):
            raise HwmodelError(f"{self.name}: give either the blocks pruned or the blocks kept")
        count = self.blocks - kept if kept is not None else pruned
        if count is None or not 0 <= count <= self.blocks:
            raise HwmodelError(f"{self.name}: has {self.blocks} blocks, asked to prune {pruned} or to keep {kept}")
        grid = np.ones(self.blocks, dtype=np.bool_)
        grid[self.order[:count]] = False
        return BlockMask(self.shape, self.block, grid.reshape(grid_shape(self.shape, self.block)))


@dataclass(frozen=True, eq=False)
class Curves:
    """The curves of a model, layer by layer in the order of its forward pass.

    Parameters
    ----------
    layers : one curve for each layer
    samples : images that the distortion is a mean over
    """

    layers: tuple[LayerCurve, ...]
    samples: int

    def __iter__(self) -> Iterator[LayerCurve]:
        return iter(self.layers)

    def __len__(self) -> int:
        return len(self.layers)

    def __getitem__(self, name: str) -> LayerCurve:
        found = {layer.name: layer for layer in self.layers}
        if name not in found:
            raise UnknownNameError("layer", name, found)
        return found[name]

    def masks(self, pruned: Mapping[str, int]) -> dict[str, BlockMask]:
        """Masks with so many blocks pruned, by layer name."""
        return {name: self[name].mask(count) for name, count in pruned.items()}

    def save(self, path: str | Path) -> None:
        """Write an ``.npz`` file that :meth:`load` reads back equal, projections included."""
        from hwmodel.pruning.blocks.curve_files import save_curves

        save_curves(self, path)

    @classmethod
    def load(cls, path: str | Path) -> Curves:
        """Read what :meth:`save` wrote.

        Raises
        ------
        HwmodelError
            A file that is missing, or that is not one of curves.
        """
        from hwmodel.pruning.blocks.curve_files import load_curves

        return load_curves(path)


def layer_curve(
    name: str,
    shape: Shape,
    block: Shape,
    *,
    p: Float32Array,
    squared_norms: FloatArray,
    magnitudes: FloatArray,
    form: Form,
    score: Score,
    kappa: float,
    order: npt.ArrayLike | None = None,
) -> LayerCurve:
    """The curve of one layer from what is known of each of its blocks.

    Parameters
    ----------
    p : (rows, blocks) projections
    squared_norms, magnitudes : (blocks,) sums of squared and of absolute weights
    order : blocks in the order of pruning; None ranks them by score, those without weight first, ties by their place
    """
    kept = magnitudes > 0
    scores = block_scores(score, p, magnitudes)
    ranked = np.lexsort((np.arange(len(kept)), scores, kept)) if order is None else np.asarray(order)
    distortion = Distortion(form=form, p=p, squared_norms=squared_norms, kappa=kappa)
    try:
        delta = distortion.along(ranked)
    except HwmodelError as error:
        raise HwmodelError(f"{name}: {error}") from error
    return LayerCurve(
        name=name, shape=shape, block=block, order=ranked.astype(np.int64), delta=delta,
        scores=scores, kept=kept, distortion=distortion,
    )  # fmt: skip


def block_scores(score: Score, p: Float32Array, magnitudes: FloatArray) -> FloatArray:
    """(blocks,) what each block is worth, summed over its real elements.

    ``gauss-newton`` and ``fisher``: mean square of its projection, which is its distortion alone. ``taylor``: size of its mean
    projection. ``magnitude``: sum of absolute weights.
    """
    if score == "magnitude":
        return magnitudes
    mean, square = mean_and_mean_square(p)
    return np.abs(mean) if score == "taylor" else square
