"""ViTs that Torch-Pruning narrowed, for real: what we read off them against PyTorch's own counter and against a recipe."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import hwmodel as hw
from hwmodel.extraction.torchvision_repair import import_torchvision
from hwmodel.extraction.weights.narrowing import fit
from hwmodel.extraction.whatif.comparison import found_structure
from hwmodel.extraction.whatif.recipes import EncoderRule, Recipe

tp = pytest.importorskip("torch_pruning")
import_torchvision()
vision_transformer = pytest.importorskip("timm.models.vision_transformer")
pytestmark = pytest.mark.peer

EXAMPLE = torch.zeros(1, 3, 32, 32)
HEADS, HEAD_DIM, DEPTH = 4, 16, 3
RATIOS = (0.25, 0.5, 0.75)


def vit() -> torch.nn.Module:
    torch.manual_seed(0)
    return vision_transformer.VisionTransformer(
        img_size=32, patch_size=8, embed_dim=HEADS * HEAD_DIM, depth=DEPTH, num_heads=HEADS, num_classes=10
    ).eval()


def narrowed(prune: str) -> torch.nn.Module:
    """Blocks whose ``heads`` or head ``widths``, and whose MLPs, Torch-Pruning cut by ratios of their own."""
    model = vit()
    of_block = dict(zip(model.blocks, RATIOS, strict=True))
    qkv = {block.attn.qkv: ratio for block, ratio in of_block.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pruner = tp.pruner.BasePruner(
            model,
            EXAMPLE,
            importance=tp.importance.GroupMagnitudeImportance(p=2),
            pruning_ratio=0.0,
            pruning_ratio_dict={**{block.mlp.fc1: ratio for block, ratio in of_block.items()}, **qkv},
            head_pruning_ratio_dict=qkv,
            num_heads=dict.fromkeys(qkv, HEADS),
            prune_num_heads=prune == "heads",
            prune_head_dims=prune == "widths",
            ignored_layers=[model.head, model.patch_embed.proj],
        )
        pruner.step()
    for block in model.blocks:  # what Torch-Pruning leaves to its user: timm's forward reshapes by these
        heads, width = pruner.num_heads[block.attn.qkv], block.attn.qkv.out_features // 3
        block.attn.num_heads, block.attn.head_dim, block.attn.attn_dim = heads, width // heads, width
    return model


EXPECTED = {  # a quarter, a half and three quarters of 4 heads of 16, and of 256 hidden values, are gone
    "heads": (
        EncoderRule(blocks="0", heads=3, mlp=192),
        EncoderRule(blocks="1", heads=2, mlp=128),
        EncoderRule(blocks="2", heads=1, mlp=64),
    ),
    "widths": (
        EncoderRule(blocks="0", qk=12, v=12, mlp=192),
        EncoderRule(blocks="1", qk=8, v=8, mlp=128),
        EncoderRule(blocks="2", qk=4, v=4, mlp=64),
    ),
}


@pytest.mark.parametrize("prune", EXPECTED)
def test_a_narrowed_model_is_read_as_it_is(prune: str) -> None:
    model, dense = narrowed(prune), hw.trace(vit(), example=EXAMPLE)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(EXAMPLE)
    trace = hw.trace(model, example=EXAMPLE)
    assert 2 * trace.macs == counter.get_total_flops()
    assert [op.role for op in trace.operators if op.role] == [op.role for op in dense.operators if op.role]
    assert {op.block for op in trace.operators if op.block is not None} == set(range(DEPTH))
    assert found_structure(dense, trace) == EXPECTED[prune]


def test_its_checkpoint_gives_the_same_trace() -> None:
    """The shapes of its state dict and the dense model are enough."""
    model = narrowed("heads")
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    fitted = fit(vit().to("meta"), shapes)
    rebuilt, live = (hw.trace(each, example=EXAMPLE) for each in (fitted.module, model))
    assert rebuilt.operators == live.operators
    assert rebuilt.edges == live.edges


def test_narrower_heads_without_fewer_are_read_by_a_stated_rule() -> None:
    """Half of every head and half of the heads leave the same shapes: the dense width is preferred, and that is said."""
    shapes = {name: tuple(tensor.shape) for name, tensor in narrowed("widths").state_dict().items()}
    fitted = fit(vit().to("meta"), shapes)
    read = [note.partition(" would")[0].partition(" or ")[0] for note in fitted.notes]
    assert read == [
        "blocks.0.attn: read as 3 heads of 16, of 4 heads of 16; 4 heads of 12",
        "blocks.1.attn: read as 2 heads of 16, of 4 heads of 16; 4 heads of 8",
        "blocks.2.attn: read as 1 head of 16, of 4 heads of 16; 4 heads of 4",
    ]


def test_the_whole_residual_width_may_be_narrower_in_a_live_model() -> None:
    """Without layers to leave alone, Torch-Pruning narrows embeddings, norms and every linear."""
    model = vit()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tp.pruner.BasePruner(
            model,
            EXAMPLE,
            importance=tp.importance.GroupMagnitudeImportance(p=2),
            pruning_ratio=0.25,
            num_heads={block.attn.qkv: HEADS for block in model.blocks},
            prune_head_dims=True,
            ignored_layers=[model.head],
        ).step()
    for block in model.blocks:
        width = block.attn.qkv.out_features // 3
        block.attn.head_dim, block.attn.attn_dim = width // HEADS, width
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(EXAMPLE)
    trace = hw.trace(model, example=EXAMPLE)
    assert 2 * trace.macs == counter.get_total_flops()
    assert trace["patch_embed.proj"].n == 48
    with pytest.raises(hw.HwmodelError, match="its structure cannot be written as a recipe: "):
        found_structure(hw.trace(vit(), example=EXAMPLE), trace)


def test_recipe_of_a_narrowed_model_keeps_what_it_has() -> None:
    dense = hw.trace(vit(), example=EXAMPLE)
    live = hw.trace(narrowed("heads"), example=EXAMPLE)
    recipe = Recipe(model=dense.model, source="a test", encoder=EXPECTED["heads"])
    assert hw.prune(dense, recipe).kept_macs == live.macs
