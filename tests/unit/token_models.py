"""Small ViTs for the tests of token reduction: real weights, or the first blocks of a timm model."""

from __future__ import annotations

from typing import Any

import torch

from hwmodel.extraction.torchvision_repair import import_torchvision
from hwmodel.extraction.zoo import Sides, build

IMAGES = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def small_vit(**options: Any) -> torch.nn.Module:
    """16 patches, 4 blocks, 2 heads of 16: a timm VisionTransformer with random weights, the same ones every time."""
    import_torchvision()
    from timm.models.vision_transformer import VisionTransformer

    torch.manual_seed(0)
    shape = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 4, "num_heads": 2, "num_classes": 5}
    model = VisionTransformer(**(shape | options)).eval()
    with torch.no_grad():
        for block in model.blocks:
            block.attn.qkv.weight.mul_(20)  # attention that is far from even, so that scores differ
    return model


def shallow(name: str, sides: Sides | None = None, *, blocks: int = 4) -> torch.nn.Module:
    """A timm model on the meta device, with its first blocks only."""
    model = build(name, sides)
    model.blocks = model.blocks[:blocks]
    return model
