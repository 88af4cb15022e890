"""Dropping dead work never adds work, finds nothing twice, and never costs time or energy."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import hwmodel as hw
from hwmodel.extraction.torchvision_repair import import_torchvision
from hwmodel.ir.masks import BlockMask, grid_shape

PRUNED = ("blocks.*.attn.qkv", "blocks.*.attn.proj", "blocks.*.mlp.fc1", "blocks.*.mlp.fc2")
DTYPES = {"agx-orin-64gb": "int8"}
"""Narrow formats ask most of alignment; other cards as they come."""
SIDES = (8, 16, 24, 32, 48, 64, 96)


@cache
def dense() -> hw.Trace:
    import_torchvision()
    from timm.models import VisionTransformer

    with torch.device("meta"):
        model = VisionTransformer(img_size=64, patch_size=16, embed_dim=192, depth=2, num_heads=6, num_classes=10)
    return hw.trace(model.eval(), example=torch.empty(1, 3, 64, 64, device="meta"))


@st.composite
def masked(draw: st.DrawFn) -> hw.Trace:
    """A small ViT in whose weights whole rows and columns of blocks are pruned, and other blocks at random."""
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    masks = {}
    for operator in dense().operators:
        if operator.block is None or not operator.parameter or not draw(st.booleans()):
            continue
        shape = (operator.n, operator.k)
        block = draw(st.sampled_from(SIDES)), draw(st.sampled_from(SIDES))
        rows, cols = grid_shape(shape, block)
        kept = generator.random((rows, cols)) < draw(st.sampled_from([0.3, 1.0]))
        kept[generator.random(rows) < draw(st.sampled_from([0.0, 0.5, 1.0]))] = False
        kept[:, generator.random(cols) < draw(st.sampled_from([0.0, 0.5, 1.0]))] = False
        masks[operator.name] = BlockMask(shape, block, kept)
    return hw.prune(dense(), masks)


@given(masked())
@settings(max_examples=40, deadline=None)
def test_work_only_falls_and_what_is_left_has_no_more_to_drop(trace: hw.Trace) -> None:
    reduced, dropped = hw.drop_dead_work(trace)
    assert reduced.kept_macs <= trace.kept_macs
    assert sum(found.macs for found in dropped) == trace.kept_macs - reduced.kept_macs
    assert all(found.macs >= 0 and found.weights >= 0 for found in dropped)
    assert hw.drop_dead_work(reduced) == (reduced, ())


@pytest.mark.parametrize("device", ["vita", "tpu-v3", "a100-40gb", "agx-orin-64gb", "host-cpu"])
@given(trace=masked())
@settings(max_examples=15, deadline=None)
def test_no_machine_gets_slower_or_hungrier(device: str, trace: hw.Trace) -> None:
    reduced = hw.drop_dead_work(trace).trace
    before, after = (hw.estimate(one, device=device, dtype=DTYPES.get(device)) for one in (trace, reduced))
    assert after.latency_s <= before.latency_s * (1 + 1e-12)
    assert after.energy_j <= before.energy_j * (1 + 1e-12)
