"""Our MACs against half of the FLOPs that PyTorch's own counter sees, on the meta device with attention in its math form."""

from __future__ import annotations

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import hwmodel as hw
from hwmodel.extraction.zoo import build, fused_attention, input_size

MODELS = (
    "deit_small_distilled_patch16_224",
    "vit_base_patch16_siglip_224",
    "vit_small_patch14_reg4_dinov2",
    "vit_base_patch16_dinov3",
    "vit_giant_patch14_224",
    "swin_tiny_patch4_window7_224",
    "swinv2_tiny_window8_256",
    "beit_base_patch16_224",
    "cait_xxs24_224",
    "xcit_nano_12_p16_224",
    "pvt_v2_b0",
    "maxvit_tiny_rw_224",
    "levit_128",
    "mixer_s32_224",
    "convnext_atto",
    "mobilevit_s",
    "resnet18",
)


def _flops(name: str, batch: int) -> int:
    model = build(name).requires_grad_(False)
    image = torch.empty((batch, *(input_size(model) or ())), device="meta")
    with torch.device("meta"), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(image)
    return counter.get_total_flops()


@pytest.mark.peer
@pytest.mark.parametrize("name", MODELS)
def test_macs_are_half_of_the_flops(name: str) -> None:
    assert 2 * hw.trace(name, batch=2).macs == _flops(name, batch=2)


@pytest.mark.peer
@pytest.mark.parametrize("fused", [False, True])
def test_either_attention_of_timm_agrees(fused: bool) -> None:
    with fused_attention(fused):
        flops = _flops("deit_tiny_patch16_224", batch=1)
    assert 2 * hw.trace("deit_tiny_patch16_224", fused_attention=fused).macs == flops
