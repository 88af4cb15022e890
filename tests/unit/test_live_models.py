"""Models with real weights: which checkpoints and modules become one, and what tells two of them apart."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from loop_examples import EXAMPLE, images, small_vit
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

import hwmodel as hw
from hwmodel.errors import CheckpointError, HwmodelError
from hwmodel.extraction import zoo
from hwmodel.pruning.live_models import LiveModel

LAYER = "blocks.0.mlp.fc1"


class Masking(nn.Module):
    """A parametrization that multiplies by a mask."""

    mask: torch.Tensor

    def __init__(self, mask: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("mask", mask)

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return weight * self.mask


def seeded() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return zoo.build("test_vit", (32, 32), device="cpu")


def half(weight: torch.Tensor) -> torch.Tensor:
    """A mask that keeps the upper rows."""
    return (torch.arange(len(weight)) < len(weight) // 2).float()[:, None].expand_as(weight).contiguous()


def masked_by_table(model: nn.Module) -> Any:
    return {"state_dict": model.state_dict(), "masks": {f"{LAYER}.weight": half(model.get_submodule(LAYER).weight)}}


def masked_by_parametrization(model: nn.Module) -> Any:
    layer = model.get_submodule(LAYER)
    parametrize.register_parametrization(layer, "weight", Masking(half(layer.weight)))
    return model.state_dict()


def masked_by_hook(model: nn.Module) -> Any:
    layer = model.get_submodule(LAYER)
    prune.custom_from_mask(layer, "weight", half(layer.weight))  # type: ignore[no-untyped-call]
    return model.state_dict()


@pytest.mark.parametrize("masked", [masked_by_table, masked_by_parametrization, masked_by_hook])
def test_masks_of_a_checkpoint_are_multiplied_in_as_trace_reads_them(masked: Callable[[nn.Module], Any], tmp_path: Path) -> None:
    expected = seeded().state_dict()
    expected[f"{LAYER}.weight"] *= half(expected[f"{LAYER}.weight"])
    torch.save(masked(seeded()), tmp_path / "masked.pt")
    live = LiveModel.of("test_vit", checkpoint=tmp_path / "masked.pt", image_size=32)
    found = live.module.state_dict()
    assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)
    live.save(tmp_path / "plain.safetensors")
    read, plain = (hw.trace("test_vit", image_size=32, checkpoint=tmp_path / name) for name in ("masked.pt", "plain.safetensors"))
    assert read.kept_macs == plain.kept_macs == live.reloaded(tmp_path / "plain.safetensors").kept_macs < live.structure.macs


def with_norm(norm: Callable[[nn.Module], nn.Module]) -> Any:
    model = seeded()
    norm(model.get_submodule(LAYER))
    return model.state_dict()


@pytest.mark.parametrize(
    ("norm", "form"),
    [
        (parametrizations.weight_norm, "as 2 tensors that make one"),
        (parametrizations.spectral_norm, "by a parametrization that is no mask"),
    ],
    ids=["weight norm", "spectral norm"],
)
def test_weights_that_are_computed_otherwise_are_refused_by_name(norm: Any, form: str, tmp_path: Path) -> None:
    torch.save(with_norm(norm), tmp_path / "normed.pt")
    with pytest.raises(CheckpointError, match=rf"normed.pt: {LAYER}\.weight is stored {form}.*plain") as refused:
        LiveModel.of("test_vit", checkpoint=tmp_path / "normed.pt", image_size=32)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "norm", [parametrizations.weight_norm, parametrizations.spectral_norm], ids=["weight norm", "spectral norm"]
)
def test_weights_that_a_module_computes_are_plain_in_its_copy(norm: Any) -> None:
    model = small_vit(1)
    norm(model.get_submodule(LAYER))
    model.eval()
    with torch.no_grad():
        expected = model(images(2))
    before = list(model.state_dict())
    live = LiveModel.of(model, example=EXAMPLE)
    assert live.module.state_dict().keys() == small_vit(1).state_dict().keys()
    assert torch.equal(live.module.get_submodule(LAYER).weight, model.get_submodule(LAYER).weight)
    with torch.no_grad():
        assert torch.allclose(live.module(images(2)), expected)
    assert list(model.state_dict()) == before


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("norm", [nn.utils.weight_norm, nn.utils.spectral_norm])
def test_weights_that_hooks_compute_are_refused(norm: Any) -> None:
    model = small_vit(1)
    norm(model.get_submodule(LAYER))
    with pytest.raises(HwmodelError, match=rf"VisionTransformer: {LAYER}\.weight is computed by a hook"):
        LiveModel.of(model, example=EXAMPLE)


def test_masks_that_are_none_are_refused(tmp_path: Path) -> None:
    given = masked_by_table(seeded())
    given["masks"][f"{LAYER}.weight"][0, 0] = 0.5
    torch.save(given, tmp_path / "soft.pt")
    with pytest.raises(CheckpointError, match=r"soft.pt: mask .* holds values other than 0 and 1"):
        LiveModel.of("test_vit", checkpoint=tmp_path / "soft.pt", image_size=32)


def test_block_sparse_weights_are_dense_in_the_model(tmp_path: Path) -> None:
    state = dict(seeded().state_dict())
    expected = state[f"{LAYER}.weight"] * half(state[f"{LAYER}.weight"])
    state[f"{LAYER}.weight"] = expected.to_sparse_bsr((16, 16))
    torch.save(state, tmp_path / "sparse.pt")
    live = LiveModel.of("test_vit", checkpoint=tmp_path / "sparse.pt", image_size=32)
    assert torch.equal(live.module.get_submodule(LAYER).weight, expected)


def test_masks_of_a_module_s_parametrizations_are_final_in_its_copy() -> None:
    model = small_vit(1)
    weight = model.get_submodule(LAYER).weight.detach().clone()
    masked_by_parametrization(model)
    live = LiveModel.of(model, example=EXAMPLE)
    assert torch.equal(live.module.get_submodule(LAYER).weight, weight * half(weight))
    assert not parametrize.is_parametrized(live.module.get_submodule(LAYER))
    assert parametrize.is_parametrized(model.get_submodule(LAYER))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_digest_changes_with_every_weight(dtype: torch.dtype) -> None:
    model = small_vit(1).to(dtype)
    digest = LiveModel.of(model).digest()
    assert LiveModel.of(model).digest() == digest
    for parameter in model.parameters():
        before = digest
        with torch.no_grad():
            parameter.view(-1)[-1] += 1
        digest = LiveModel.of(model).digest()
        assert digest != before


def test_a_name_without_a_checkpoint_has_the_weights_of_its_seed() -> None:
    first, again, other = (LiveModel.of("test_vit", image_size=32, seed=seed).digest() for seed in (0, 0, 1))
    assert first == again != other


def test_what_does_not_go_together_is_refused() -> None:
    with pytest.raises(HwmodelError, match="brings its own weights"):
        LiveModel.of(small_vit(1), checkpoint="weights.pt")
    with pytest.raises(HwmodelError, match="makes its own input"):
        LiveModel.of("test_vit", example=EXAMPLE)
