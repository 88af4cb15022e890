"""Block masks on live models."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from token_models import IMAGES, small_vit
from torch.nn.utils import parametrizations, prune

import hwmodel as hw
from hwmodel.errors import HwmodelError
from hwmodel.ir.masks import BlockMask, grid_shape
from hwmodel.pruning.blocks.masking import apply_masks, release_masks

FC1 = "blocks.0.mlp.fc1"
MASKS = {
    "patch_embed.proj": BlockMask((32, 192), (16, 64), np.array([[True, False, True], [False, True, True]])),
    FC1: BlockMask((128, 32), (50, 20), np.array([[True, False], [False, True], [False, True]])),
}  # ragged: 128 rows are 50 + 50 + 28, 32 columns are 20 + 12


def expected(name: str, weight: torch.Tensor) -> torch.Tensor:
    """The weight with the pruned blocks set to zero, element by element."""
    mask, found = MASKS[name], weight.detach().clone().flatten(1)
    for row, col in np.ndindex(*grid_shape(mask.shape, mask.block)):
        if not mask.kept[row, col]:
            found[row * mask.block[0] : (row + 1) * mask.block[0], col * mask.block[1] : (col + 1) * mask.block[1]] = 0
    return found.reshape(weight.shape)


@pytest.mark.parametrize("options", [{}, {"in_place": True}, {"hold": True}, {"hold": True, "in_place": True}])
def test_pruned_blocks_are_zero_and_the_rest_is_as_before(options: dict[str, Any]) -> None:
    model, dense = small_vit(), small_vit()
    pruned = apply_masks(model, MASKS, **options)
    assert (pruned is model) == options.get("in_place", False)
    for name in MASKS:
        before = dense.get_submodule(name).weight
        assert torch.equal(pruned.get_submodule(name).weight, expected(name, before))
        if pruned is not model:
            assert torch.equal(model.get_submodule(name).weight, before)
    assert torch.equal(pruned.blocks[1].mlp.fc1.weight, dense.blocks[1].mlp.fc1.weight)
    traced = hw.trace(pruned, example=IMAGES[:1], block=None)
    kept = {operator.name: operator.kept_macs / operator.macs for operator in traced.operators if operator.name in MASKS}
    assert kept == pytest.approx({name: mask.kept_weights / np.prod(mask.shape) for name, mask in MASKS.items()})


def test_held_masks_outlast_training() -> None:
    model = apply_masks(small_vit(), MASKS, hold=True)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(2):
        optimiser.zero_grad()
        model(IMAGES).square().sum().backward()
        optimiser.step()
    weight = model.get_submodule(FC1).weight
    assert torch.equal(weight == 0, expected(FC1, torch.ones(128, 32)) == 0)
    assert not torch.equal(weight, expected(FC1, small_vit().get_submodule(FC1).weight))
    outputs = model(IMAGES)
    released = release_masks(model)
    assert torch.equal(released(IMAGES), outputs)
    assert "blocks.0.mlp.fc1.weight" in released.state_dict() and not any("mask" in name for name in released.state_dict())


@pytest.mark.parametrize("hold", [False, True])
def test_masks_add_to_masks_that_are_held(hold: bool) -> None:
    model = small_vit()
    before = copy.deepcopy(model.get_submodule(FC1).weight)
    prune.ln_structured(model.get_submodule(FC1), "weight", amount=0.5, n=2, dim=0)
    first = model.get_submodule(FC1).weight.detach() != 0
    pruned = apply_masks(model, MASKS, hold=hold)
    assert torch.equal(pruned.get_submodule(FC1).weight, expected(FC1, before) * first)
    pruned(IMAGES)
    assert torch.equal(pruned.get_submodule(FC1).weight, expected(FC1, before) * first)
    assert torch.equal(pruned.get_submodule(FC1).weight_mask != 0, (expected(FC1, torch.ones(128, 32)) * first) != 0)
    assert torch.equal(model.get_submodule(FC1).weight != 0, first)


def test_what_cannot_be_masked() -> None:
    model = small_vit()
    with pytest.raises(HwmodelError, match=r"unknown layer 'blocks.0.mlp.fc3': did you mean"):
        apply_masks(model, {"blocks.0.mlp.fc3": MASKS[FC1]})
    with pytest.raises(HwmodelError, match=r"head: mask is for a weight of \(128, 32\) \(out, in\), found \(5, 32\)"):
        apply_masks(model, MASKS | {"head": MASKS[FC1]}, in_place=True)
    assert torch.equal(
        model.get_submodule(FC1).weight, small_vit().get_submodule(FC1).weight
    )  # nothing is pruned before all is checked
    parametrizations.weight_norm(model.get_submodule(FC1))
    with pytest.raises(HwmodelError, match="its weight is computed by a parametrization"):
        apply_masks(model, MASKS)
