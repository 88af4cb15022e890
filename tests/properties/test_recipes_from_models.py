"""Extracting a pruned model, and applying its recipe to the dense trace, cost the same on every backend."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import parametrize, prune

import hwmodel as hw
from hwmodel.extraction.torchvision_repair import import_torchvision

CARDS = {"vita": {"pe": "16x16"}, "tpu-v3": {}, "a100-40gb": {}, "host-cpu": {}}
"""One card of every backend."""
KINDS = ("dense", "hooks", "parametrization", "zeros", "scattered", "2:4", "rows", "bsr")


class Mask(nn.Module):
    def __init__(self, kept: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("kept", kept)

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return weight * self.kept


def fresh(width: int, depth: int) -> nn.Module:
    """A ViT of 16 patches, 16 channels a head, and random weights that are always the same."""
    import_torchvision()
    from timm.models.vision_transformer import VisionTransformer

    torch.manual_seed(0)
    return VisionTransformer(img_size=32, patch_size=8, embed_dim=width, depth=depth, num_heads=width // 16, num_classes=10).eval()


@cache
def dense_trace(width: int, depth: int) -> hw.Trace:
    return hw.trace(fresh(width, depth), example=torch.ones(1, 3, 32, 32))


def blocks_of(weight: torch.Tensor, block: tuple[int, int], seed: int) -> torch.Tensor:
    rows, cols = weight.shape
    grid = torch.rand(-(-rows // block[0]), -(-cols // block[1]), generator=torch.Generator().manual_seed(seed)) < 0.5
    return grid.repeat_interleave(block[0], 0)[:rows].repeat_interleave(block[1], 1)[:, :cols]


@torch.no_grad()
def prune_layer(layer: nn.Linear, kind: str, block: tuple[int, int], seed: int) -> None:
    """Prune one layer as ``kind`` says."""
    kept = blocks_of(layer.weight, block, seed)
    if kind == "hooks":
        prune.custom_from_mask(layer, "weight", kept)
    elif kind == "parametrization":
        parametrize.register_parametrization(layer, "weight", Mask(kept))
    elif kind == "zeros":
        layer.weight *= kept
    elif kind == "scattered":
        layer.weight *= torch.rand(layer.weight.shape, generator=torch.Generator().manual_seed(seed)) < 0.5
    elif kind == "2:4":
        fours = layer.weight.view(-1, 4)
        fours.scatter_(1, fours.abs().argsort(dim=1)[:, :2], 0)
    elif kind == "rows":
        layer.weight[: block[0]] = 0
    elif kind == "bsr":
        layer.weight = nn.Parameter((layer.weight * blocks_of(layer.weight, (16, 16), seed)).to_sparse_bsr((16, 16)))


@st.composite
def pruned_models(draw: st.DrawFn) -> tuple[hw.Trace, nn.Module]:
    """The trace of a small ViT, and the model pruned, layer by layer in another way."""
    width, depth = draw(st.sampled_from([32, 48])), draw(st.integers(1, 2))
    pruned = fresh(width, depth)
    for layer in [module for module in pruned.modules() if isinstance(module, nn.Linear)]:
        kind = draw(st.sampled_from(KINDS if layer.out_features % 16 == 0 else KINDS[:-1]))
        prune_layer(layer, kind, draw(st.sampled_from([(16, 16), (8, 4), (5, 12)])), draw(st.integers(0, 99)))
    return dense_trace(width, depth), pruned


@pytest.mark.filterwarnings("ignore:Sparse BSR")
@settings(max_examples=8, deadline=None)
@given(pruned_models())
def test_a_recipe_costs_what_the_model_costs_on_every_backend(models: tuple[hw.Trace, nn.Module]) -> None:
    dense, pruned = models[0], hw.trace(models[1], example=torch.ones(1, 3, 32, 32))
    with TemporaryDirectory() as folder:
        hw.save_recipe(hw.recipe_of(pruned, dense, source="a test"), Path(folder) / "found.toml")
        priced = hw.prune(dense, Path(folder) / "found.toml")
    assert priced.operators == pruned.operators
    for card, overrides in CARDS.items():
        ours, theirs = (hw.estimate(trace, device=card, overrides=overrides) for trace in (pruned, priced))
        for quantity in ("cycles", "latency_s", "energy_j"):
            assert np.array_equal(getattr(ours.frame(), quantity), getattr(theirs.frame(), quantity), equal_nan=True), (
                card,
                quantity,
            )
