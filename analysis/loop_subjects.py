"""What ``loop_digits.py`` prunes: a trained model with its images, its sensitivity curves, and its accuracy under masks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

import digits_vit
from loop_images import Folder, image_folder
from loop_results import Row

import hwmodel as hw
from hwmodel.allocation.loop.curve_layers import prunable
from hwmodel.ir.masks import BlockMask
from hwmodel.pruning.blocks.curves import Curves
from hwmodel.pruning.blocks.masking import apply_masks
from hwmodel.pruning.blocks.projections import projections
from hwmodel.pruning.live_models import LiveModel

if TYPE_CHECKING:
    from torch import nn

SAMPLES, BATCH = 512, 64

Case = tuple[int, float]
"""Side of the blocks, and the budget as a share of the dense linear layers."""
Pictures = digits_vit.Labelled | Folder
Masks = Mapping[str, BlockMask]


@dataclass(frozen=True, eq=False)
class Subject:
    """One trained model with its data, and what pruning does to it.

    Parameters
    ----------
    name : in tables
    seed : of split, training, calibration and fine-tuning
    structure : from a site's ``batch`` and ``widen`` to a trace of the dense model
    tune_epochs, samples : of fine-tuning, and calibration images
    known : accuracies by masks, so that equal masks are tuned once
    """

    name: str
    seed: int
    live: LiveModel
    train: Pictures
    test: Pictures
    structure: Callable[[int, int], hw.Trace]
    tune_epochs: int = digits_vit.TUNING_EPOCHS
    samples: int = SAMPLES
    known: dict[str, tuple[float, float]] = field(default_factory=dict)

    def curves(self, blocks: Sequence[int], *, of_loss: bool = False) -> dict[int, Curves]:
        """Sensitivity curves by block size, from one backward pass over the calibration images."""
        side = min(blocks)
        found = projections(
            self.live.module, self.train.first(self.samples).batches(BATCH), finest=(side, side), seed=self.seed,
            kind="loss" if of_loss else "gauss-newton", layers=list(prunable(self.structure(1, 1))),
        )  # fmt: skip
        return {block: found.curves((block, block), delta="paper" if of_loss else "gauss-newton") for block in blocks}

    def accuracies(self, masks: Masks) -> tuple[float, float]:
        """Top-1 with the masks, before and after fine-tuning."""
        key = digest(masks)
        if key not in self.known:
            pruned = apply_masks(self.live.module, masks)
            before = digits_vit.accuracy(pruned, self.test)
            digits_vit.fine_tune(pruned, self.train, epochs=self.tune_epochs, seed=self.seed)
            self.known[key] = (before, digits_vit.accuracy(pruned, self.test))
        return self.known[key]

    def row(
        self, machine: str, case: Case, method: str, *, masks: Masks | None = None, energy: float | None = None, reason: str = ""
    ) -> Row:
        """What came of one allocation, or why there is none."""
        row = Row(model=self.name, seed=self.seed, machine=machine, block=case[0], budget=case[1], method=method, reason=reason)
        if masks is None:
            return row
        before, after = self.accuracies(masks)
        flops = kept_flops(self.structure(1, 1), masks)
        return replace(row, masks=digest(masks), flops=flops, energy=energy, before=before, after=after)


def digest(masks: Masks) -> str:
    """Twelve hexadecimal digits that are equal for equal kept weights in equal blocks."""
    told = sha256()
    for name, mask in sorted(masks.items()):
        told.update(f"{name} {mask.block}".encode() + mask.kept.tobytes())
    return told.hexdigest()[:12]


def kept_flops(trace: hw.Trace, masks: Masks) -> float:
    """FLOPs of the layers that may be pruned, as a share of the dense ones'."""
    names = set(prunable(trace))
    layers = [operator for operator in trace.operators if operator.name in names]
    kept = sum(one.m * (masks[one.name].kept_weights if one.name in masks else one.n * one.k) for one in layers)
    return kept / sum(one.m * one.n * one.k for one in layers)


def digits_subject(seed: int, variant: digits_vit.Variant, *, epochs: int, tune_epochs: int, cache: Path | None) -> Subject:
    """A digits model, trained or as a former run left it in ``cache``."""
    import torch

    @lru_cache
    def structure(batch: int, widen: int) -> hw.Trace:
        return hw.trace(digits_vit.build(seed, variant, widen=widen), example=torch.zeros(batch, 1, 8, 8), batch=batch)

    train, test = digits_vit.digits(seed)
    live = LiveModel.of(_trained(seed, variant, epochs, cache), example=train.images[:1])
    return Subject(variant, seed, live, train, test, structure, tune_epochs)


def _trained(seed: int, variant: digits_vit.Variant, epochs: int, cache: Path | None) -> nn.Module:
    """From the cache where the same code trained it before."""
    from safetensors.torch import load_model, save_model

    if cache is None:
        return digits_vit.train(seed, epochs=epochs, variant=variant)
    code = sha256(Path(digits_vit.__file__).read_bytes()).hexdigest()[:12]
    path = cache / f"{variant}_{seed}_{epochs}_{code}.safetensors"
    if path.exists():
        model = digits_vit.build(seed, variant).eval()
        load_model(model, path)
    else:
        model = digits_vit.train(seed, epochs=epochs, variant=variant)
        save_model(model, str(path))
    return model


def own_subject(
    data: Path, name: str, checkpoint: Path | None, seed: int, *, tune_epochs: int, samples: int, most: int | None
) -> Subject:
    """A timm model with the images of a folder, at most ``most`` of them to tune with and as many to test on."""
    live = LiveModel.of(name, checkpoint=checkpoint, seed=seed)
    train, test = (
        part if most is None else part.first(most) for part in image_folder(data, live.module, seed, trained=checkpoint is not None)
    )

    @lru_cache
    def structure(batch: int, _: int) -> hw.Trace:
        return hw.trace(name, batch=batch)

    return Subject(name, seed, live, train, test, structure, tune_epochs, samples)
