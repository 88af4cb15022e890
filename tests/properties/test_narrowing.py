"""What holds for every structurally narrowed ViT: its checkpoint's shapes, its trace and its recipe say the same."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

import hwmodel as hw
from hwmodel.extraction.torchvision_repair import import_torchvision
from hwmodel.extraction.weights.narrowing import fit
from hwmodel.extraction.whatif.comparison import found_structure
from hwmodel.extraction.whatif.recipes import Recipe

import_torchvision()
vision_transformer = pytest.importorskip("timm.models.vision_transformer")

DEPTH, HEADS, HEAD_DIM, HIDDEN = 3, 4, 8, 64
WIDTH = HEADS * HEAD_DIM
DEVICES = {"vita": {"overrides": {"pe": "16x16"}}, "tpu-v3": {}, "a100-40gb": {}, "agx-orin-64gb": {}, "host-cpu": {}}

heads = st.tuples(st.integers(1, HEADS), st.integers(1, HEAD_DIM), st.integers(1, HEAD_DIM))
parts = st.one_of(st.just("dense"), st.just("identity"), st.just("removed"), heads)
mlps = st.one_of(st.just("dense"), st.just("identity"), st.just("removed"), st.integers(1, HIDDEN - 1))
styles = st.tuples(st.booleans(), st.booleans(), st.booleans())
EXAMPLE = torch.empty(2, 3, 16, 16, device="meta")


@cache
def dense(fused: bool, qk_norm: bool, scaled: bool) -> torch.nn.Module:
    """A small ViT with or without fused attention, norms of queries and keys, and layer scale."""
    from hwmodel.extraction.zoo import fused_attention

    with fused_attention(fused), torch.device("meta"):
        return vision_transformer.VisionTransformer(
            img_size=16, patch_size=8, embed_dim=WIDTH, depth=DEPTH, num_heads=HEADS, mlp_ratio=HIDDEN / WIDTH, num_classes=5,
            qk_norm=qk_norm, init_values=1e-4 if scaled else None,
        ).eval()  # fmt: skip


@cache
def dense_trace(fused: bool, qk_norm: bool, scaled: bool) -> hw.Trace:
    return hw.trace(dense(fused, qk_norm, scaled), example=EXAMPLE)


def narrow_attention(shapes: dict, path: str, count: int, qk: int, v: int) -> None:
    fused = count * (2 * qk + v)
    shapes |= {f"{path}.qkv.weight": (fused, WIDTH), f"{path}.proj.weight": (WIDTH, count * v)}
    new = {"qkv.bias": fused, "q_norm.weight": qk, "q_norm.bias": qk, "k_norm.weight": qk, "k_norm.bias": qk}
    shapes |= {f"{path}.{name}": (size,) for name, size in new.items() if f"{path}.{name}" in shapes}


def narrow_mlp(shapes: dict, path: str, hidden: int) -> None:
    new = {"fc1.weight": (hidden, WIDTH), "fc1.bias": (hidden,), "fc2.weight": (WIDTH, hidden)}
    shapes |= {f"{path}.{name}": size for name, size in new.items()}


def without(shapes: dict, *prefixes: str) -> dict:
    return {name: shape for name, shape in shapes.items() if not name.startswith(prefixes)}


def checkpoint(model: torch.nn.Module, blocks: list[tuple]) -> dict:
    """Shapes of a state dict after each block was changed as its (attention, MLP) say."""
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    for index, (attention, mlp) in enumerate(blocks):
        path = f"blocks.{index}"
        for change, part, norm, scale in ((attention, "attn", "norm1", "ls1"), (mlp, "mlp", "norm2", "ls2")):
            if change in {"identity", "removed"}:
                shapes = without(shapes, f"{path}.{part}.")
            if change == "removed":
                shapes = without(shapes, f"{path}.{norm}.", f"{path}.{scale}.")
        if isinstance(attention, tuple):
            narrow_attention(shapes, f"{path}.attn", *attention)
        if isinstance(mlp, int):
            narrow_mlp(shapes, f"{path}.mlp", mlp)
    return shapes


@settings(max_examples=12, deadline=None, phases=[Phase.explicit, Phase.reuse, Phase.generate])  # shrinking takes minutes
@given(styles, st.lists(st.tuples(parts, mlps), min_size=DEPTH, max_size=DEPTH))
def test_the_recipe_of_a_narrowed_model_costs_what_the_model_costs(style: tuple, blocks: list[tuple]) -> None:
    shapes = checkpoint(dense(*style), blocks)
    if not any(".attn." in name for name in shapes):
        return  # encoder blocks are told by their attention
    fitted = fit(dense(*style), shapes).module
    assert {name: tuple(tensor.shape) for name, tensor in fitted.state_dict().items()} == shapes
    live, before = hw.trace(fitted, example=EXAMPLE), dense_trace(*style)
    rules = found_structure(before, live)
    pruned = hw.prune(before, Recipe(model=before.model, source="a test", encoder=rules))
    assert pruned.macs == before.macs
    assert pruned.kept_macs == live.macs
    assert pruned.edges == live.edges
    assert [op.name for op in pruned.operators if op.role] == [op.name for op in live.operators if op.role]
    assert [op.block for op in pruned.operators] == [op.block for op in live.operators]
    for device, options in DEVICES.items():
        one, other = (hw.estimate(trace, device=device, **options) for trace in (pruned, live))
        assert (one.latency_s, one.energy_j) == (other.latency_s, other.energy_j)
