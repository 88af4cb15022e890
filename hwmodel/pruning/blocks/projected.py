"""Block projections of a model: what one backward pass per image says about every weight block, at the finest blocks asked for.

Projections add up: those of a coarser block are sums of those of the finest blocks in it, so that one pass serves every shape.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from hwmodel.errors import HwmodelError, UnknownNameError
from hwmodel.ir.masks import BoolArray, FloatArray, Shape, grid_shape
from hwmodel.pruning.blocks.curves import SCORES, Curves, LayerCurve, Score, layer_curve
from hwmodel.pruning.blocks.distortion import FORMS, KAPPA, Float32Array, Form

Kind = Literal["gauss-newton", "loss"]
KINDS: tuple[Kind, ...] = ("gauss-newton", "loss")

_FITTING: Mapping[str, tuple[Kind, ...]] = {
    "gauss-newton": ("gauss-newton",), "paper": ("loss",), "squared": ("loss",),
    "fisher": ("loss",), "taylor": ("loss",), "magnitude": KINDS,
}  # fmt: skip
"""Kinds of projections that a distortion or a score is defined for."""

_ROWS = 64
"""Projections summed to coarser blocks at once."""


@dataclass(frozen=True, kw_only=True, eq=False)
class LayerProjections:
    """One layer at its finest blocks.

    Parameters
    ----------
    name : operator name, as in the trace
    shape : (out, in) of the weight; a convolutional patch embedding flattened
    finest : (out, in) of the blocks
    p : (rows, blocks) sum of weight times gradient over each block, blocks in row order; a row is an image, or one probe of it
    squared_norms, magnitudes : (blocks,) sums of squared and of absolute weights
    """

    name: str
    shape: Shape
    finest: Shape
    p: Float32Array
    squared_norms: FloatArray
    magnitudes: FloatArray

    @property
    def kept(self) -> BoolArray:
        """(blocks,) which blocks hold a weight."""
        return self.magnitudes > 0

    @property
    def mean(self) -> FloatArray:
        """(blocks,) mean projection: the weight times the mean gradient, summed over each block."""
        found: FloatArray = self.p.mean(axis=0, dtype=np.float64)
        return found

    def at(self, block: Shape) -> LayerProjections:
        """The same layer in coarser blocks, multiples of the finest; blocks at the edges hold what there is.

        Raises
        ------
        HwmodelError
            A block that does not fit the weight, or that the finest blocks do not make up.
        """
        if any(side % size for side, size in zip(block, self.finest, strict=True)):
            raise HwmodelError(
                f"{self.name}: blocks of {told(block)} are not made up of the finest ones, {told(self.finest)}; "
                f"make the projections with finest={tuple(map(int, np.gcd(block, self.finest)))}"
            )
        if any(side > length for side, length in zip(block, self.shape, strict=True)):
            raise HwmodelError(f"{self.name}: a block of {told(block)} does not fit a weight of {told(self.shape)} (out x in)")
        if block == self.finest:
            return self
        squared_norms, magnitudes = self._summed(np.stack([self.squared_norms, self.magnitudes]), block)
        return replace(self, finest=block, p=self._summed(self.p, block), squared_norms=squared_norms, magnitudes=magnitudes)

    def curve(self, *, form: Form, score: Score, kappa: float, order: npt.ArrayLike | None = None) -> LayerCurve:
        """Order and distortion at these blocks, see :meth:`Projections.curves`."""
        return layer_curve(
            self.name, self.shape, self.finest, p=self.p, squared_norms=self.squared_norms, magnitudes=self.magnitudes,
            form=form, score=score, kappa=kappa, order=order,
        )  # fmt: skip

    def _summed(self, values: npt.NDArray[np.floating], block: Shape) -> npt.NDArray[np.floating]:
        """(rows, coarse blocks) sums of (rows, finest blocks), in 64-bit, stored as before."""
        rows, cols = grid_shape(self.shape, self.finest)
        coarse_rows, coarse_cols = grid_shape(self.shape, block)
        found = np.empty((len(values), coarse_rows * coarse_cols), dtype=values.dtype)
        for start in range(0, len(values), _ROWS):
            grid = values[start : start + _ROWS].reshape(-1, rows, cols)
            by_row = np.add.reduceat(grid, np.arange(0, rows, block[0] // self.finest[0]), axis=1, dtype=np.float64)
            both = np.add.reduceat(by_row, np.arange(0, cols, block[1] // self.finest[1]), axis=2)
            found[start : start + _ROWS] = both.reshape(len(both), -1)
        return found


@dataclass(frozen=True, kw_only=True, eq=False)
class Projections:
    """The projections of a model's layers, in the order of its forward pass.

    Parameters
    ----------
    layers : one entry for each layer
    images : (rows,) digest of the image of each row
    kind : ``gauss-newton``, gradients of random combinations of the outputs; ``loss``, gradients of each image's loss
    probes : random combinations for each image
    seed : of the combinations
    left_out : layers that have no projections, with the reason
    made_by : versions, device, and digests of the weights that they are of and of what is differentiated for the first image
    """

    layers: tuple[LayerProjections, ...]
    images: npt.NDArray[np.uint64]
    kind: Kind
    probes: int = 1
    seed: int = 0
    left_out: Mapping[str, str] = field(default_factory=dict)
    made_by: Mapping[str, str] = field(default_factory=dict)

    @property
    def samples(self) -> int:
        """Images."""
        return len(self.layers[0].p) // self.probes

    def __iter__(self) -> Iterator[LayerProjections]:
        return iter(self.layers)

    def __len__(self) -> int:
        return len(self.layers)

    def __getitem__(self, name: str) -> LayerProjections:
        found = {layer.name: layer for layer in self.layers}
        if name not in found:
            raise UnknownNameError("layer", name, found)
        return found[name]

    def curves(
        self,
        block: Shape | Mapping[str, Shape] = (32, 32),
        *,
        delta: Form | None = None,
        score: Score | None = None,
        order: Mapping[str, npt.ArrayLike] | None = None,
        layers: Sequence[str] | None = None,
        kappa: float = KAPPA,
    ) -> Curves:
        """Order and distortion of every layer, in blocks of a size.

        Parameters
        ----------
        block : (out, in) of a block, or a mapping of globs over layer names to it; later entries win, layers that none matches
            are left out
        delta : distortion, see :class:`~hwmodel.pruning.blocks.distortion.Distortion`; None takes ``gauss-newton``, and ``squared``
            where the projections are of losses
        score : what blocks are ranked by, see :func:`~hwmodel.pruning.blocks.curves.block_scores`; None takes ``gauss-newton``, and
            ``fisher`` where the projections are of losses
        order : fixed orders of pruning for some layers, by name
        layers : globs over layer names; None takes all
        kappa : damping of the Fisher matrix (Eq. 12)

        Raises
        ------
        HwmodelError
            A distortion or score that these projections do not give, blocks that do not fit, all layers named.
        """
        delta, score = checked_forms(self.kind, delta, score, kappa)
        chosen = matching([layer.name for layer in self.layers], layers)
        blocks = blocks_of(chosen, block)
        self._check_blocks(blocks)
        orders = dict(order or {})
        if unknown := sorted(orders.keys() - blocks.keys()):
            raise UnknownNameError("layer", unknown[0], blocks)
        made = (
            self[name].at(size).curve(form=delta, score=score, kappa=kappa, order=orders.get(name)) for name, size in blocks.items()
        )
        return Curves(tuple(made), self.samples)

    def _check_blocks(self, blocks: Mapping[str, Shape]) -> None:
        """Refuse blocks larger than their weight, all of them at once."""
        small = [
            f"{name} ({told(self[name].shape)})"
            for name, block in blocks.items()
            if any(side > length for side, length in zip(block, self[name].shape, strict=True))
        ]
        if small:
            sizes = " and ".join(sorted({told(block) for block in blocks.values()}))
            raise HwmodelError(
                f"blocks of {sizes} (out x in) do not fit {', '.join(small)}; choose others with layers=, or give them "
                "blocks of their own: block={'glob': (out, in)}"
            )

    def save(self, path: str | Path) -> None:
        """Write a file that :meth:`load` reads back equal."""
        from hwmodel.pruning.blocks.projection_files import save_projections

        save_projections(self, path)

    @classmethod
    def load(cls, path: str | Path) -> Projections:
        """Read what :meth:`save` wrote, or the file of a run (``resume=``), also of one that was interrupted: its images so far.

        Projections stay on disk until they are used.

        Raises
        ------
        HwmodelError
            A file that is missing, or that is not one of projections.
        """
        from hwmodel.pruning.blocks.projection_files import load_projections

        return load_projections(path)


def checked_forms(kind: Kind, delta: Form | None, score: Score | None, kappa: float) -> tuple[Form, Score]:
    """Distortion and score, those of the kind of projections where None.

    Raises
    ------
    HwmodelError
        Unknown ones, ones that projections of the kind do not give, or a damping below 0.
    """
    if not 0 <= kappa < np.inf:
        raise HwmodelError(f"kappa is {kappa}, expected a damping of at least 0")
    if kind not in KINDS:
        raise UnknownNameError("kind", kind, KINDS)
    form: Form = delta or ("gauss-newton" if kind == "gauss-newton" else "squared")
    ranked_by: Score = score or ("gauss-newton" if kind == "gauss-newton" else "fisher")
    for what, found, known in (("delta", form, FORMS), ("score", ranked_by, SCORES)):
        if found not in known:
            raise UnknownNameError(what, found, known)
        if kind not in _FITTING[found]:
            needed = " or ".join(map(repr, _FITTING[found]))
            raise HwmodelError(f"{what} {found!r} needs projections of kind {needed}; these are of kind {kind!r}")
    return form, ranked_by


def told(shape: Shape) -> str:
    """A shape for messages: "32x16"."""
    return "x".join(map(str, shape))


def matching(names: Sequence[str], globs: Sequence[str] | None) -> list[str]:
    """Those of ``names`` that one of ``globs`` matches, in their order; a glob that matches nothing is an error."""
    if globs is None:
        return list(names)
    for glob in globs:
        if not any(fnmatchcase(name, glob) for name in names):
            raise UnknownNameError("layer", glob, names)
    return [name for name in names if any(fnmatchcase(name, glob) for glob in globs)]


def blocks_of(names: Sequence[str], block: Shape | Mapping[str, Shape]) -> dict[str, Shape]:
    """(out, in) of the blocks of each layer; of a mapping of globs the last match counts, and layers without one are left out.

    Raises
    ------
    HwmodelError
        A block that is not two positive whole numbers, or a glob that matches no layer.
    """
    by_glob = block if isinstance(block, Mapping) else {"*": block}
    found: dict[str, Shape] = {}
    for glob, shape in by_glob.items():
        sides = tuple(shape) if isinstance(shape, Sequence) else ()
        if len(sides) != 2 or not all(isinstance(side, (int, np.integer)) and side > 0 for side in sides):
            raise HwmodelError(f"a block is (out, in), two positive whole numbers, found {shape!r}")
        found |= dict.fromkeys(matching(names, [glob]), (int(sides[0]), int(sides[1])))
    return {name: found[name] for name in names if name in found}
