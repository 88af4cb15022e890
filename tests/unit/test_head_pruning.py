"""Narrowed attention against the dense model with those heads' outputs at zero, and how extraction reads it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from test_gate_scores import swin
from token_models import IMAGES, small_vit

import hwmodel as hw
from hwmodel.extraction.zoo import build
from hwmodel.pruning.gates.attentions import attentions
from hwmodel.pruning.gates.heads import remove_heads

KEPT = {0: [3], 1: [0, 2, 3], 3: [1, 2]}


def silenced(model: Any, kept: dict[int, list[int]]) -> Any:
    """The model, whose proj no longer reads the heads that go."""
    with torch.no_grad():
        for block, heads in kept.items():
            attn = attentions(model, "test")[block]
            columns = attn.proj.weight.unflatten(1, (attn.num_heads, -1))
            for head in set(range(attn.num_heads)) - set(heads):
                columns[:, head] = 0
    return model


def vit(**options: Any) -> torch.nn.Module:
    """4 blocks of 4 heads of 8, with biases and scales that are not those of a fresh model."""
    model = small_vit(**{"num_heads": 4, **options})
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter), alpha=0.3)
    return model


@pytest.mark.parametrize(
    "options",
    [{}, {"qkv_bias": False}, {"qk_norm": True, "init_values": 0.3}, {"proj_bias": False, "reg_tokens": 2}],
    ids=["bias", "no-qkv-bias", "qk-norm-and-scale", "no-bias"],
)
def test_fewer_heads_are_the_same_as_silent_ones(options: dict[str, Any]) -> None:
    narrowed = remove_heads(vit(**options), KEPT)
    with torch.no_grad():
        torch.testing.assert_close(narrowed(IMAGES), silenced(vit(**options), KEPT)(IMAGES), rtol=1e-5, atol=1e-5)
        assert not torch.allclose(narrowed(IMAGES), vit(**options)(IMAGES), atol=1e-3)
    assert [block.attn.qkv.out_features for block in narrowed.blocks] == [3 * 8, 3 * 24, 3 * 32, 3 * 16]  # heads of 8
    assert [block.attn.proj.in_features for block in narrowed.blocks] == [8, 24, 32, 16]


def test_heads_of_a_gated_attention_lose_their_gates() -> None:
    from timm.layers.attention import Attention

    models = []
    for _ in range(2):
        model = vit()
        torch.manual_seed(3)
        for block in model.blocks:
            block.attn = Attention(32, num_heads=4, qkv_bias=True, gated=True)
        models.append(model.eval())
    narrowed = remove_heads(models[0], KEPT)
    assert narrowed.blocks[0].attn.gate.out_features == 8
    with torch.no_grad():
        torch.testing.assert_close(narrowed(IMAGES), silenced(models[1], KEPT)(IMAGES), rtol=1e-5, atol=1e-5)


def test_a_distilled_model_is_narrowed_like_any() -> None:
    from timm.models.deit import VisionTransformerDistilled

    def deit() -> torch.nn.Module:
        torch.manual_seed(0)
        return VisionTransformerDistilled(img_size=32, patch_size=8, embed_dim=32, depth=4, num_heads=4, num_classes=5).eval()

    with torch.no_grad():
        torch.testing.assert_close(remove_heads(deit(), KEPT)(IMAGES), silenced(deit(), KEPT)(IMAGES), rtol=1e-5, atol=1e-5)


def test_windowed_attention_keeps_the_positions_of_its_heads() -> None:
    kept = {0: [1], 1: [0], 2: [0, 3], 3: [2]}
    narrowed = remove_heads(swin(), kept)
    with torch.no_grad():
        torch.testing.assert_close(narrowed(IMAGES), silenced(swin(), kept)(IMAGES), rtol=1e-5, atol=1e-5)
    assert narrowed.layers[1].blocks[0].attn.relative_position_bias_table.shape == (7 * 7, 2)
    traced = hw.trace(narrowed, example=IMAGES[:1])
    heads = {operator.block: operator.batch for operator in traced.operators if operator.role == "scores"}
    assert heads == {0: 4 * 1, 1: 4 * 1, 2: 2, 3: 1}  # 4 windows in the first stage


def test_the_copy_owns_its_weights_and_trains() -> None:
    model = vit().train()
    model.blocks[0].attn.qkv.weight.requires_grad_(False)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    narrowed = remove_heads(model, {0: (0, 1)})
    assert narrowed.training
    assert not narrowed.blocks[0].attn.qkv.weight.requires_grad
    assert narrowed.blocks[0].attn.proj.weight.requires_grad
    narrowed(IMAGES).sum().backward()
    with torch.no_grad():
        for parameter in narrowed.parameters():
            parameter.add_(1)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_keeping_all_changes_nothing_and_order_does_not_matter() -> None:
    model = vit()
    with torch.no_grad():
        assert torch.equal(remove_heads(model, {0: range(4)})(IMAGES), model(IMAGES))
        assert torch.equal(remove_heads(model, {1: [3, 0]})(IMAGES), remove_heads(model, {1: [0, 3, 3]})(IMAGES))


def test_narrowed_heads_are_traced_live_and_from_a_checkpoint(tmp_path: Path) -> None:
    kept = {0: [2], 5: [0, 2], 11: [1]}
    narrowed = remove_heads(build("deit_tiny_patch16_224", device="cpu"), kept)
    file = tmp_path / "pruned.safetensors"
    save_file(narrowed.state_dict(), file)
    live, read = hw.trace(narrowed), hw.trace("deit_tiny_patch16_224", checkpoint=file)
    shapes = [(o.name, o.kind, o.batch, o.m, o.k, o.n, o.elements) for o in live.operators]
    assert shapes == [(o.name, o.kind, o.batch, o.m, o.k, o.n, o.elements) for o in read.operators]
    products = {o.name: o for o in read.operators}
    assert (products["blocks.5.attn.qkv"].n, products["blocks.5.attn.proj"].k) == (3 * 2 * 64, 2 * 64)
    assert (products["blocks.11.attn.qkv"].n, products["blocks.3.attn.qkv"].n) == (3 * 64, 3 * 192)
    assert [o.batch for o in read.operators if o.role == "scores"] == [1, 3, 3, 3, 3, 2, 3, 3, 3, 3, 3, 1]
    head = 197 * 192 * 3 * 64 + 2 * 197 * 197 * 64 + 197 * 64 * 192  # MACs of one head: qkv, scores and context, proj
    assert read.macs - read.kept_macs == (2 + 1 + 2) * head


@pytest.mark.parametrize(
    ("kept", "message"),
    [
        ({0: []}, "block 0: at least one head must stay"),
        ({0: [0, 4]}, "block 0: it has heads 0-3, asked to keep"),
        ({0: [-1]}, "block 0: it has heads 0-3"),
        ({0: ["1"]}, "block 0: expected the indices of the heads that stay"),
        ({0: 2}, "block 0: expected the indices of the heads that stay, got 2"),
        ({4: [0]}, r"block 4 has no attention to narrow; blocks that have: \[0, 1, 2, 3\]"),
    ],
    ids=str,
)
def test_heads_that_cannot_stay_are_told(kept: Any, message: str) -> None:
    with pytest.raises(hw.HwmodelError, match=f"remove_heads: {message}") as refusal:
        remove_heads(vit(), kept)
    assert "\n" not in str(refusal.value)


def test_attention_that_cannot_be_narrowed_is_told() -> None:
    with pytest.raises(hw.HwmodelError, match="block 0: its heads are normalised together"):
        remove_heads(vit(scale_attn_norm=True), {0: [0]})
    assert remove_heads(vit(scale_attn_norm=True), {0: range(4)}) is not None
    masked = vit()
    torch.nn.utils.prune.l1_unstructured(masked.blocks[1].attn.qkv, "weight", 0.5)
    with pytest.raises(hw.HwmodelError, match="block 1: qkv is masked, parametrized or quantised"):
        remove_heads(masked, {1: [0]})
    with torch.no_grad():
        torch.testing.assert_close(
            remove_heads(masked, KEPT | {1: range(4)})(IMAGES), silenced(masked, KEPT | {1: range(4)})(IMAGES)
        )
    with pytest.raises(hw.HwmodelError, match="remove_heads: expected a timm VisionTransformer or SwinTransformer, got Sequential"):
        remove_heads(torch.nn.Sequential(), {0: [0]})
