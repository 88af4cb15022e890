"""How the sensitivities of a model are made for the loop: which images, which form, and where they are kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

from hwmodel.allocation.loop.curve_layers import BlockCurve, prunable
from hwmodel.allocation.tokens_heads import heads_of
from hwmodel.errors import HwmodelError, UnknownNameError
from hwmodel.ir.masks import Shape
from hwmodel.pruning.blocks.curves import SCORES, Score
from hwmodel.pruning.blocks.distortion import FORMS, Form
from hwmodel.pruning.blocks.projected import Kind, matching
from hwmodel.pruning.blocks.projections import projections
from hwmodel.pruning.blocks.weight_layers import weight_layers
from hwmodel.pruning.calibration_images import Calibration
from hwmodel.pruning.gates.scores import HeadScores, TokenScores, head_scores, token_scores
from hwmodel.pruning.live_models import LiveModel

EXACT_HEADS = 32
"""Heads up to which each has a Hessian-vector product of its own: a DeiT-S with its 72 would take 20 s of CPU time per image."""
HEAD_PROBES = 4
"""Random products per image beyond that: images are averaged anyway."""
_OF_OUTPUTS = frozenset({None, "gauss-newton", "magnitude"})
"""Distortions and scores that need no labels; the others are of the loss."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Sensing:
    """What sensitivities are made of.

    Parameters
    ----------
    calibration : the images
    block : (out, in) of the weight blocks
    layers : globs over operator names; None takes every product with a weight that the block fits, but patch embedding and
        classifier
    delta, score, probes, seed : as ``hwmodel.pruning.blocks.projections`` takes them
    folder : where projections are kept as they are made, so that an interrupted run goes on and a repeated one is short;
        None keeps none
    tell : is told how many images are done, and which layers stay dense because nothing can be taken off them in blocks

    Raises
    ------
    HwmodelError
        A distortion or score of the loss where images have no labels.
    """

    calibration: Calibration
    block: Shape
    layers: Sequence[str] | None = None
    delta: Form | None = None
    score: Score | None = None
    probes: int = 1
    seed: int = 0
    folder: Path | None = None
    tell: Callable[[str], None] = lambda _: None

    def __post_init__(self) -> None:
        for what, found, known in (("delta", self.delta, FORMS), ("score", self.score, SCORES)):
            if found is not None and found not in known:
                raise UnknownNameError(what, found, known)
        if self.kind == "loss" and self.calibration.labels is None:
            told = self.delta if self.delta not in _OF_OUTPUTS else self.score
            reason = self.calibration.unlabelled or "the images have no labels; give a folder with a sub-folder per class"
            raise HwmodelError(f"{told!r} is of the loss, and {reason}")
        if self.kind == "loss" and "gauss-newton" in {self.delta, self.score}:
            raise HwmodelError(f"delta {self.delta!r}, score {self.score!r}: one is of the outputs, the other of the loss")

    @property
    def kind(self) -> Kind:
        """Projections of random combinations of the outputs, or of the loss."""
        return "gauss-newton" if {self.delta, self.score} <= _OF_OUTPUTS else "loss"

    def curves(self, live: LiveModel) -> dict[str, BlockCurve]:
        """Sensitivity curves by operator name; projections that ``folder`` holds of the same run are not made again.

        Raises
        ------
        HwmodelError
            A block larger than a layer, a layer glob without match, losses or gradients that are not finite.
        """
        names = self.chosen(live)
        if left := self.left_dense(live):
            self.tell("left dense: " + "; ".join(f"{name}: {reason}" for name, reason in left.items()))
        total = len(self.calibration.images)
        found = projections(
            live.module, self.calibration.batches(), finest=self.block, kind=self.kind, probes=self.probes, layers=names,
            seed=self.seed, progress=lambda done: self.tell(f"sensitivities: {done} of {total} images"),
            resume=None if self.folder is None else self.folder / f"projections-{self._key(live, names)}.projections",
        )  # fmt: skip
        curves = found.curves(self.block, delta=self.delta, score=self.score)
        return {curve.name: cast("BlockCurve", curve) for curve in curves}

    def head_scores(self, live: LiveModel) -> HeadScores:
        """Predicted change of the loss when a head goes; estimated where exact curvatures would take minutes."""
        few = sum(heads_of(live.structure).values()) <= EXACT_HEADS
        return head_scores(
            live.module, self._labelled(live), estimator="exact" if few else "hutchinson", probes=HEAD_PROBES, seed=self.seed
        )

    def token_scores(self, live: LiveModel) -> TokenScores:
        """Predicted change of the loss when a token goes."""
        return token_scores(live.module, self._labelled(live), seed=self.seed)

    def _labelled(self, live: LiveModel) -> list[Any]:
        return self.calibration.labelled(live.module).batches()

    def chosen(self, live: LiveModel) -> list[str]:
        """Names of the layers that may lose blocks.

        Where no globs are given, layers that the block does not fit and layers without projections stay dense.

        Raises
        ------
        HwmodelError
            A glob without match, a block larger than a layer that a glob asks for, or no layer that it fits.
        """
        if self.layers is not None:
            products = [one.name for one in live.structure.operators if one.family == "product" and one.parameter]
            names = matching(products, self.layers)
            refused = self._too_small(live, names)
        else:
            refused = self.left_dense(live)
            names = [name for name in prunable(live.structure) if name not in refused]
        if refused and (self.layers or not names):
            name, reason = next(iter(refused.items()))
            raise HwmodelError(f"{name}: {reason}")
        return names

    def left_dense(self, live: LiveModel) -> dict[str, str]:
        """Layers that would lose blocks if they could and nobody asked for, with the reason why they cannot."""
        if self.layers is not None:
            return {}
        names = prunable(live.structure)
        usable, reasons = weight_layers(live.module, (1, 1), None)
        known = {layer.name for layer in usable}
        refused = {name: reasons.get(name, "no linear layer or convolution of this name") for name in names if name not in known}
        return refused | self._too_small(live, [name for name in names if name in known])

    def _too_small(self, live: LiveModel, names: Sequence[str]) -> dict[str, str]:
        """Those of the layers that the block does not fit, with the reason."""
        shapes = {one.name: (one.n, one.k) for one in live.structure.operators}
        small = [name for name in names if any(side > length for side, length in zip(self.block, shapes[name], strict=True))]
        block, *found = ("x".join(map(str, shape)) for shape in (self.block, *(shapes[name] for name in small)))
        told = (f"a block of {block} does not fit its weight of {shape} (out x in); choose a smaller one" for shape in found)
        return dict(zip(small, told, strict=True))

    def _key(self, live: LiveModel, names: Sequence[str]) -> str:
        """Sixteen hexadecimal digits of everything that projections depend on."""
        told = [live.digest(), self.calibration.digest(), self.block, self.kind, self.probes, self.seed, names]
        told += map(repr, live.structure.operators)
        told += [version(package) for package in ("hwmodel", "torch")]
        return sha256(repr(told).encode()).hexdigest()[:16]
