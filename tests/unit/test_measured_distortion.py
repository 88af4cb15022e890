"""Gauss-Newton distortion against what pruning really does to the outputs of a trained model."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from torch import Tensor, nn

from hwmodel.pruning.blocks.curves import LayerCurve
from hwmodel.pruning.blocks.masking import apply_masks
from hwmodel.pruning.blocks.projections import sensitivity_curves

DIGITS = runpy.run_path(str(Path(__file__).parents[2] / "analysis/digits_vit.py"))
RATIOS = (0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9, 1.0)


@pytest.fixture(scope="module")
def trained() -> tuple[nn.Module, Tensor]:
    """A ViT trained on the digits for a few epochs, and images it was trained on."""
    split, _ = DIGITS["digits"](0)
    return DIGITS["train"](0, epochs=4), split.images[:128]


def measured(model: nn.Module, images: Tensor, curve: LayerCurve, counts: Any) -> list[float]:
    """Mean squared change of the outputs with so many blocks of one layer pruned, by running the pruned model."""
    with torch.no_grad():
        before = model(images)
        changes = [apply_masks(model, {curve.name: curve.mask(count)})(images) - before for count in counts]
    return [float(change.square().sum(1).mean()) for change in changes]


def test_distortion_ranks_single_layers_as_they_are_measured(trained: tuple[nn.Module, Tensor]) -> None:
    """Over all layers and ratios; a prototype saw 0.98, and measured over predicted of 1.2 in the median."""
    model, images = trained
    curves = sensitivity_curves(model, images.split(64), block=(8, 8), layers=["blocks.*"])
    assert len(curves) == 16
    predicted, found = [], []
    for curve in curves:
        counts = np.rint(np.array(RATIOS) * curve.blocks).astype(int)
        predicted += curve.delta[counts].tolist()
        found += measured(model, images, curve, counts)
    assert spearmanr(predicted, found).statistic > 0.95
    assert 0.5 < np.median(np.divide(found, predicted)) < 2.5
