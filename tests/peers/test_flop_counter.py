"""Our MACs against half of the FLOPs that PyTorch's own counter sees, on the meta device with attention in its math form.

Gradients stay on: the counter follows modules through them, and fails without them in some models (cait, naflexvit, pit).
"""

from __future__ import annotations

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import hwmodel as hw
from hwmodel.extraction.zoo import build, families, fused_attention, input_size

MODELS = (
    "beit_base_patch16_224", "botnet26t_256", "bat_resnext26ts", "cait_xxs24_224", "coat_lite_tiny", "convit_base",
    "convmixer_1024_20_ks9_p14", "convnext_atto", "cpubone_b0_bfrobust", "crossvit_9_240", "csatv2", "cspresnet50", "cspnext_l",
    "davit_tiny", "deepseek_vit_412m", "deit_tiny_distilled_patch16_224", "densenet121", "dla34", "dpn68", "edgenext_base",
    "efficientformer_l1", "efficientformerv2_s0", "efficientnet_b0", "efficientvim_m1", "efficientvit_b0", "efficientvit_m2",
    "eva02_tiny_patch14_224", "fasternet_t0", "fastvit_t8", "focalnet_tiny_srf", "gcvit_xxtiny", "gemma4_vit_167m",
    "ghostnet_050", "hardcorenas_a", "hgnetv2_b0", "hiera_small_224", "sam2_hiera_tiny", "hrnet_w18_small", "iformer_s",
    "inception_next_atto", "inception_resnet_v2", "inception_v3", "inception_v4", "lcnetv2_base", "levit_conv_512_s8",
    "lowformer_b0", "mambaout_femto", "coatnet_pico_rw_224", "poolformerv2_s12", "gmixer_12_224", "lcnet_050",
    "mobilenetv5_300m", "mobilevit_xxs", "mvitv2_tiny", "naflexvit_base_patch16_gap", "nasnetalarge", "nest_tiny",
    "nextvit_small", "nfnet_f0", "pit_xs_224", "pnasnet5large", "pvt_v2_b0", "qwen3_vit_88m", "rdnet_tiny", "regnetx_002",
    "repghostnet_050", "repvit_m1_1", "res2net50_48w_2s", "resnest14d", "resnet18", "resnetv2_18", "rexnet_100", "selecsls42",
    "legacy_seresnet18", "sequencer2d_s", "shvit_s1", "skresnet18", "starnet_s050", "swiftformer_s",
    "swin_tiny_patch4_window7_224", "swinv2_tiny_window8_256", "swinv2_cr_tiny_224", "tiny_vit_21m_384", "tnt_b_patch16_224",
    "tresnet_l", "twins_svt_small", "vgg11", "visformer_small", "vit_tiny_patch16_224", "vit_base_mci_224", "test_vit_relpos",
    "samvit_base_patch16", "vitamin_small_224", "volo_d1_224", "vovnet39a", "legacy_xception", "xception41",
    "xcit_nano_12_p16_224",
)  # fmt: skip
"""A small model of each module of timm, in the order of the modules."""
FAMILIES = families()


def _flops(name: str, batch: int) -> int:
    model = build(name)
    image = torch.empty((batch, *(input_size(model) or (3, 224, 224))), device="meta")
    with torch.device("meta"), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(image)
    return counter.get_total_flops()


def test_every_module_of_timm_has_a_model() -> None:
    assert [family for name in MODELS for family, names in FAMILIES.items() if name in names] == list(FAMILIES)


@pytest.mark.peer
@pytest.mark.parametrize("name", MODELS)
def test_macs_are_half_of_the_flops(name: str) -> None:
    assert 2 * hw.trace(name, batch=2).macs == _flops(name, batch=2) > 0


@pytest.mark.slow
@pytest.mark.peer
@pytest.mark.parametrize("family", FAMILIES)
def test_every_name_of_timm(family: str) -> None:
    """All 1,371 names of timm 1.0.31, those of one module at a time."""
    ours = {name: 2 * hw.trace(name).macs for name in FAMILIES[family]}
    assert ours == {name: _flops(name, batch=1) for name in FAMILIES[family]}


@pytest.mark.peer
@pytest.mark.parametrize("fused", [False, True])
def test_either_attention_of_timm_agrees(fused: bool) -> None:
    with fused_attention(fused):
        flops = _flops("deit_tiny_patch16_224", batch=1)
    assert 2 * hw.trace("deit_tiny_patch16_224", fused_attention=fused).macs == flops
