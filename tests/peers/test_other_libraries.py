"""Models that are not timm's: MACs against PyTorch's own counter, and the roles of an encoder block."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import hwmodel as hw
from hwmodel.extraction.torchvision_repair import import_torchvision

pytestmark = pytest.mark.peer

ATTENTION = {"scores": 1, "context": 1, "proj": 1, "fc1": 1, "fc2": 1}
QUICK = {"vit_b_16": 12, "swin_t": 12, "swin_v2_t": 12}
OTHERS = {
    "vit_b_32": 12, "vit_l_16": 24, "vit_l_32": 24, "vit_h_14": 32, "swin_s": 24, "swin_b": 24, "swin_v2_s": 24, "swin_v2_b": 24,
}  # fmt: skip
"""Blocks of torchvision's models."""
TOGETHER, APART = {"qkv": 1}, {"q": 1, "k": 1, "v": 1}


def _flops(model: nn.Module, example: torch.Tensor) -> int:
    with torch.device("meta"), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(example)
    return counter.get_total_flops()


def _check(make: Callable[[], nn.Module], shape: tuple[int, ...], blocks: int, projections: dict[str, int]) -> None:
    """Exact MACs, and ``blocks`` encoder blocks with one row of each role."""
    with torch.device("meta"):
        model, example = make().eval(), torch.empty(shape)
    trace = hw.trace(model, example=example)
    assert 2 * trace.macs == _flops(model, example) > 0
    inside = Counter(row.role for row in trace.operators if row.role and row.block is not None)
    assert inside == {role: blocks * rows for role, rows in (projections | ATTENTION).items()}
    assert {row.block for row in trace.operators} - {None} == set(range(blocks))


@pytest.mark.parametrize(
    ("name", "blocks"),
    [
        *QUICK.items(),
        *(pytest.param(name, blocks, marks=pytest.mark.slow) for name, blocks in OTHERS.items()),
    ],
)
def test_torchvision(name: str, blocks: int) -> None:
    import_torchvision()
    models = pytest.importorskip("torchvision").models
    side = 256 if "v2" in name else 224
    _check(lambda: models.get_model(name, weights=None), (2, 3, side, side), blocks, TOGETHER)


@pytest.mark.parametrize(("family", "attention"), [("ViT", "sdpa"), ("ViT", "eager"), ("Dinov2", "sdpa"), ("CLIPVision", "sdpa")])
def test_hugging_face(family: str, attention: str) -> None:
    transformers = pytest.importorskip("transformers")
    config = getattr(transformers, f"{family}Config")(image_size=224)
    config._attn_implementation = attention
    _check(lambda: getattr(transformers, f"{family}Model")(config), (2, 3, 224, 224), 12, APART)


@pytest.mark.parametrize("norm_first", [False, True])
def test_encoder_of_torch(norm_first: bool) -> None:
    layer = {"d_model": 64, "nhead": 4, "dim_feedforward": 128, "batch_first": True, "norm_first": norm_first}

    def make() -> nn.Module:
        return nn.TransformerEncoder(nn.TransformerEncoderLayer(**layer), 3, enable_nested_tensor=False)

    _check(make, (2, 16, 64), 3, TOGETHER)


def test_an_encoder_that_would_take_its_fast_path() -> None:
    """Frozen, in eval mode and without gradients torch runs a whole layer as one fused call: it is traced spelled out."""
    layer = nn.TransformerEncoderLayer(64, 4, 128, batch_first=True)
    model, example = nn.TransformerEncoder(layer, 2).eval().requires_grad_(False), torch.zeros(2, 16, 64)
    with torch.no_grad():
        trace = hw.trace(model, example=example)
    linear, attention = 2 * 16 * (4 * 64 * 64 + 2 * 64 * 128), 2 * 2 * 16 * 16 * 64
    assert trace.macs == 2 * (linear + attention)
    assert torch.backends.mha.get_fastpath_enabled()
