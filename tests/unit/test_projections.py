"""Block projections of live models against weight gradients that torch computes image by image."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from token_models import IMAGES, small_vit
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.utils import parametrize, prune

import hwmodel as hw
from hwmodel.errors import HwmodelError
from hwmodel.extraction.torchvision_repair import import_torchvision
from hwmodel.pruning.blocks.backward_passes import BackwardPasses
from hwmodel.pruning.blocks.capture import Capture
from hwmodel.pruning.blocks.projected import Projections
from hwmodel.pruning.blocks.projections import projections
from hwmodel.pruning.blocks.rehearsal import rehearse
from hwmodel.pruning.blocks.weight_layers import weight_layers
from hwmodel.pruning.tokens import gated_tokens, merge_tokens, threshold_tokens, topk_tokens

LABELS = torch.tensor([0, 4, 2])


def block_sums(values: np.ndarray[Any, Any], block: tuple[int, int]) -> np.ndarray[Any, Any]:
    """Sums over blocks, one by one; those at the edges are cropped."""
    rows, cols = range(0, values.shape[0], block[0]), range(0, values.shape[1], block[1])
    return np.array([[values[r : r + block[0], c : c + block[1]].sum() for c in cols] for r in rows]).ravel()


def by_autograd(
    model: nn.Module, images: Tensor, objective: Callable[[Tensor, int], Tensor], block: tuple[int, int]
) -> dict[str, np.ndarray[Any, Any]]:
    """(images, blocks) weight times gradient, from one backward pass for each image alone."""
    model.eval()
    layers = {name: module for name, module in model.named_modules() if isinstance(module, (nn.Linear, nn.Conv2d))}
    rows: dict[str, list[np.ndarray[Any, Any]]] = {name: [] for name in layers}
    for place, image in enumerate(images):
        weights = [layer.weight for layer in layers.values()]
        gradients = torch.autograd.grad(objective(model(image[None]), place), weights, allow_unused=True)
        for name, weight, gradient in zip(layers, weights, gradients, strict=True):
            product = torch.zeros_like(weight) if gradient is None else weight * gradient
            rows[name].append(block_sums(product.detach().double().flatten(1).numpy(), block))
    return {name: np.array(found) for name, found in rows.items()}


def assert_equal(found: Projections, expected: dict[str, np.ndarray[Any, Any]], rel: float = 2e-5) -> None:
    assert {layer.name for layer in found} == set(expected)
    for layer in found:
        np.testing.assert_allclose(
            layer.p, expected[layer.name], rtol=0, atol=rel * np.abs(expected[layer.name]).max(), err_msg=layer.name
        )


def first_logit(outputs: Tensor, _labels: Tensor | None) -> Tensor:
    return outputs[:, 0]


def of_loss(outputs: Tensor, place: int) -> Tensor:
    return cross_entropy(outputs, LABELS[place : place + 1])


@pytest.mark.parametrize("block", [(4, 4), (4, 2), (5, 7), (1, 32)])
def test_projections_of_losses(block: tuple[int, int]) -> None:
    model = small_vit()
    found = projections(model, [(IMAGES, LABELS)], kind="loss", finest=block)
    assert_equal(found, by_autograd(model, IMAGES, of_loss, block))
    assert found.samples == 3 and found.left_out == {}


def test_random_combinations_of_outputs_are_seeded_by_image() -> None:
    model = small_vit()
    found = projections(model, [IMAGES], probes=2, seed=7, finest=(4, 4))
    for probe in range(2):
        drawn = [np.random.default_rng([7, place]).standard_normal((2, 5), dtype=np.float32)[probe] for place in range(3)]

        def combined(outputs: Tensor, place: int, drawn: list[Any] = drawn) -> Tensor:
            return (outputs[0] * torch.tensor(drawn[place])).sum()

        expected = by_autograd(model, IMAGES, combined, (4, 4))
        for layer in found:
            scale = np.abs(expected[layer.name]).max()
            np.testing.assert_allclose(layer.p[probe::2], expected[layer.name], rtol=0, atol=2e-5 * scale, err_msg=layer.name)


@pytest.mark.parametrize("reduced", [lambda model: topk_tokens(model, {1: 0.5}, fused=True), lambda model: merge_tokens(model, 3)])
def test_models_that_drop_or_merge_tokens(reduced: Callable[[nn.Module], nn.Module]) -> None:
    model = reduced(small_vit())
    found = projections(model, [IMAGES], kind="loss", loss=first_logit, finest=(4, 4))
    assert_equal(found, by_autograd(model, IMAGES, lambda outputs, _place: outputs[0, 0], (4, 4)))


def test_token_counts_that_depend_on_the_image_are_those_of_the_image_alone() -> None:
    model = threshold_tokens(small_vit(), {0: 1.0, 2: 1.0})
    found = projections(model, [IMAGES], kind="loss", loss=first_logit, finest=(4, 4))
    assert_equal(found, by_autograd(model, IMAGES, lambda outputs, _place: outputs[0, 0], (4, 4)))
    assert found.made_by["images_per_pass"] == "1"


def test_windows_and_patch_merging() -> None:
    """A Swin: rows of a linear are windows times tokens, and its patches come from a convolution of stride 4."""
    import_torchvision()
    from timm.models.swin_transformer import SwinTransformer

    torch.manual_seed(0)
    model = SwinTransformer(img_size=32, patch_size=4, window_size=4, embed_dim=16, depths=(2, 1), num_heads=(2, 2), num_classes=5)
    found = projections(model, [IMAGES], kind="loss", loss=first_logit, finest=(4, 4))
    expected = by_autograd(model, IMAGES, lambda outputs, _place: outputs[0, 0], (4, 4))
    assert_equal(found, expected)
    assert any("downsample" in name for name in expected)


class EvenRowsPruned(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight * (torch.arange(weight.shape[0]) % 2).unsqueeze(1)


def small_beit() -> Any:
    import_torchvision()
    from timm.models.beit import Beit

    torch.manual_seed(0)
    return Beit(
        img_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=2, num_classes=5, use_rel_pos_bias=True, init_values=0.1
    )


def test_weights_that_other_modules_multiply_by() -> None:
    """A BEiT: its attention takes the weight of ``qkv`` and adds biases of its own, without calling the layer."""
    model, dense = small_beit(), small_beit()
    held, computed = model.blocks[0].attn.qkv, model.blocks[1].attn.qkv
    prune.random_unstructured(held, "weight", 0.5)
    parametrize.register_parametrization(computed, "weight", EvenRowsPruned())
    with torch.no_grad():
        dense.blocks[0].attn.qkv.weight.copy_(held.weight)
        dense.blocks[1].attn.qkv.weight.copy_(computed.weight)
    found = projections(model, [IMAGES], kind="loss", loss=first_logit, finest=(4, 4))
    assert found.left_out == {}
    assert_equal(found, by_autograd(dense, IMAGES, lambda outputs, _place: outputs[0, 0], (4, 4)))
    assert all(parameter.grad is None for parameter in model.parameters())


def test_names_are_those_of_the_trace() -> None:
    model = small_vit()
    traced = {operator.name: (operator.n, operator.k) for operator in hw.trace(model, example=IMAGES[:1]).operators}
    found = projections(model, [IMAGES])
    assert {layer.name: layer.shape for layer in found}.items() <= traced.items()
    assert len(found) == 18


def test_layers_without_a_trace_of_gradients_elsewhere_keep_theirs() -> None:
    """Frozen weights are projected like others, no gradient is left behind, and the model stays in its mode."""
    model, free = small_vit(), small_vit()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    model.train()
    found, expected = projections(model, [IMAGES]), projections(free, [IMAGES])
    for layer, other in zip(found, expected, strict=True):
        assert np.array_equal(layer.p, other.p)
    assert model.training and all(parameter.grad is None for parameter in free.parameters())
    assert not any(module._forward_hooks for module in model.modules())


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.shared = nn.Linear(6, 6)
        self.last = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.last(torch.tanh(self.shared(torch.tanh(self.shared(x)))))
        return found


def test_a_layer_that_is_called_twice_adds_up_its_calls() -> None:
    torch.manual_seed(0)
    model, inputs = Twice(), torch.randn(4, 6)
    found = projections(model, [inputs], kind="loss", loss=first_logit, finest=(2, 3))
    assert_equal(found, by_autograd(model, inputs, lambda outputs, _place: outputs[0, 0], (2, 3)))


def test_masked_layers_are_projected_as_they_compute() -> None:
    model = small_vit()
    prune.random_unstructured(model.blocks[0].mlp.fc1, "weight", 0.5)
    parametrize.register_parametrization(model.blocks[1].mlp.fc1, "weight", EvenRowsPruned())
    dense = small_vit()
    with torch.no_grad():
        for number in (0, 1):
            dense.blocks[number].mlp.fc1.weight.copy_(model.blocks[number].mlp.fc1.weight)
    options: Any = {"kind": "loss", "loss": first_logit, "finest": (1, 32), "layers": ["blocks.[01].*"]}
    found, expected = projections(model, [IMAGES], **options), projections(dense, [IMAGES], **options)
    for layer, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(layer.p, other.p, rtol=1e-4, atol=1e-6)
    assert np.array_equal(found["blocks.1.mlp.fc1"].kept, np.arange(128) % 2 == 1)


def test_masks_that_are_held_count_with_the_weights_of_now() -> None:
    """An optimiser changes ``weight_orig``; the masked weight follows when the layer is next called."""
    model = small_vit()
    layer = model.blocks[0].mlp.fc1
    prune.l1_unstructured(layer, "weight", 0.5)
    with torch.no_grad():
        layer.weight_orig.mul_(3)
    found = projections(model, [IMAGES], layers=["blocks.0.mlp.fc1"])["blocks.0.mlp.fc1"]
    assert found.magnitudes.sum() == pytest.approx((layer.weight_orig * layer.weight_mask).abs().sum().item())


def test_a_model_with_one_output() -> None:
    torch.manual_seed(0)
    model, inputs = nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 1), nn.Flatten(0)), torch.randn(3, 6)
    assert projections(model, [inputs], finest=(1, 2)).samples == 3
    found = projections(model, [inputs], kind="loss", loss=lambda outputs, _labels: outputs, finest=(1, 2))
    assert_equal(found, by_autograd(model, inputs, lambda outputs, _place: outputs[0], (1, 2)))


def test_sixteen_bit_weights() -> None:
    model = small_vit()
    expected = projections(model, [IMAGES], kind="loss", loss=first_logit)
    found = projections(small_vit().bfloat16(), [IMAGES.bfloat16()], kind="loss", loss=first_logit)
    for layer, exact in zip(found, expected, strict=True):
        assert np.corrcoef(layer.p.ravel(), exact.p.ravel())[0, 1] > 0.98, layer.name


# Batches, memory, files


def test_batches_and_memory_do_not_change_what_is_found() -> None:
    model = small_vit()
    whole = projections(model, [IMAGES], probes=2)
    apart = projections(model, IMAGES.split(1), probes=2)
    tight = projections(model, [IMAGES], probes=2, memory_bytes=420_000)
    assert tight.made_by["images_per_pass"] == "1" != whole.made_by["images_per_pass"]
    for layer, other, split in zip(whole, apart, tight, strict=True):
        np.testing.assert_allclose(layer.p, other.p, rtol=0, atol=1e-5 * np.abs(layer.p).max())
        assert np.array_equal(other.p, split.p)


@pytest.mark.parametrize("memory_bytes", [1000, 100_000, 250_000])
def test_one_image_that_does_not_fit(memory_bytes: int) -> None:
    """Found out while the forward pass runs, or once what the backward pass takes is counted too."""
    with pytest.raises(HwmodelError, match=r"one image takes at least \d+ KiB beside the model, memory_bytes allows \d+ KiB"):
        projections(small_vit(), [IMAGES], memory_bytes=memory_bytes)


class Watched(nn.Module):
    """Passes tokens on, and remembers the nodes of the graphs that it is part of."""

    def __init__(self) -> None:
        super().__init__()
        self.nodes: list[weakref.ref[Any]] = []

    def forward(self, x: Tensor) -> Tensor:
        nodes = self.nodes

        class Same(torch.autograd.Function):
            @staticmethod
            def forward(context: Any, values: Tensor) -> Tensor:
                nodes.append(weakref.ref(context))
                return values.clone()

            @staticmethod
            def backward(_context: Any, gradient: Tensor) -> Tensor:
                return gradient

        found: Tensor = Same.apply(x)
        return found


def test_nothing_outlives_a_pass_until_garbage_is_collected() -> None:
    """Reference cycles would hold the activations of earlier passes: more memory than was allowed."""
    model = small_vit()
    model.pos_drop = Watched()
    layers, _ = weight_layers(model, (4, 4), None)
    passes = BackwardPasses(model=model, layers=layers, kind="gauss-newton", probes=1, loss=None, seed=0)
    capture = Capture(layers, 1 << 20)
    captured = weakref.ref(capture)
    gc.disable()
    try:
        rehearse(passes, IMAGES, None, 1 << 30)
        passes.project(IMAGES, None, first=0, capture=capture)
        del capture
        assert [node() for node in model.pos_drop.nodes] == [None, None]
        assert captured() is None
    finally:
        gc.enable()


class StoppedError(Exception):
    pass


def interrupted(images: Tensor, after: int) -> Any:
    for place, batch in enumerate(images.split(2)):
        if place == after:
            raise StoppedError
        yield batch


@pytest.mark.parametrize("cut", [0, 100])
def test_an_interrupted_run_continues_bit_for_bit(tmp_path: Path, cut: int) -> None:
    images = torch.randn(7, 3, 32, 32, generator=torch.Generator().manual_seed(3))
    path, whole = tmp_path / "run.projections", tmp_path / "whole.projections"
    expected = projections(small_vit(), images.split(2), resume=whole)
    with pytest.raises(StoppedError):
        projections(small_vit(), interrupted(images, 2), resume=path)
    assert Projections.load(path).samples == 4
    path.write_bytes(path.read_bytes()[: path.stat().st_size - cut])  # a machine that stopped while it wrote
    seen: list[int] = []
    found = projections(small_vit(), images.split(2), resume=path, progress=seen.append)
    assert path.read_bytes() == whole.read_bytes()
    assert seen == [2, 4, 6, 7] and found.samples == expected.samples == 7
    assert all(np.array_equal(layer.p, other.p) for layer, other in zip(found, expected, strict=True))
    assert projections(small_vit(), images[:4].split(2), resume=path).samples == 4


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"seed": 1}, "seed was 0, is 1"),
        ({"finest": (8, 8), "layers": ["blocks.*"]}, "layers differs"),
        ({"probes": 2}, "probes was 1, is 2"),
        ({"memory_bytes": 420_000}, "images_per_pass was '8', is '1'"),
    ],
)
def test_files_of_another_run_are_refused(tmp_path: Path, changed: dict[str, Any], message: str) -> None:
    path = tmp_path / "run.projections"
    projections(small_vit(), [IMAGES], resume=path)
    before = path.read_bytes()
    with pytest.raises(HwmodelError, match=message):
        projections(small_vit(), [IMAGES], resume=path, **changed)
    with pytest.raises(HwmodelError, match=r"image 0 gives other values: another image, label, loss or model"):
        projections(small_vit(), [IMAGES + 1], resume=path)
    with pytest.raises(HwmodelError, match="projections of other images"):
        projections(small_vit(), [torch.cat([IMAGES[:1], IMAGES[1:] + 1])], resume=path)
    model = small_vit()
    torch.nn.init.ones_(model.head.bias)
    with pytest.raises(HwmodelError, match="weights differs"):
        projections(model, [IMAGES], resume=path)
    assert path.read_bytes() == before


def test_files_of_models_that_differ_in_no_weight_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "run.projections"
    projections(topk_tokens(small_vit(), {0: 0.25}), [IMAGES], resume=path)
    before = path.read_bytes()
    with pytest.raises(HwmodelError, match=r"is of another run \(image 0 gives other values"):
        projections(topk_tokens(small_vit(), {0: 0.75}), [IMAGES], resume=path)
    assert path.read_bytes() == before


def test_files_of_another_loss_of_the_same_name_are_refused(tmp_path: Path) -> None:
    def times(factor: float) -> Callable[[Tensor, Tensor | None], Tensor]:
        return lambda outputs, _labels: factor * outputs[:, 0]

    path = tmp_path / "run.projections"
    projections(small_vit(), [IMAGES], kind="loss", loss=times(1), resume=path)
    assert projections(small_vit(), [IMAGES], kind="loss", loss=times(1), resume=path).samples == 3
    with pytest.raises(HwmodelError, match=r"is of another run \(image 0 gives other values"):
        projections(small_vit(), [IMAGES], kind="loss", loss=times(5), resume=path)


def test_saved_projections_load_back_equal(tmp_path: Path) -> None:
    found = projections(small_vit(), [IMAGES], probes=2, resume=tmp_path / "run.projections")
    found.save(tmp_path / "saved.projections")
    assert (tmp_path / "saved.projections").read_bytes() == (tmp_path / "run.projections").read_bytes()
    loaded = Projections.load(tmp_path / "saved.projections")
    assert (loaded.kind, loaded.probes, loaded.seed, loaded.made_by) == (found.kind, 2, 0, found.made_by)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize("content", [b"", b"nothing", b"{}\n", b'{"format": "hwmodel-projections", "schema_version": 9}\n'])
def test_other_files_are_no_projections(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "other"
    path.write_bytes(content)
    with pytest.raises(HwmodelError, match="is not a file of projections"):
        Projections.load(path)
    with pytest.raises(HwmodelError, match="is not a file of projections"):
        projections(small_vit(), [IMAGES], resume=path)
    assert path.read_bytes() == content


# What is refused


def test_batch_statistics_are_refused() -> None:
    layers = [nn.Conv2d(3, 8, 4, stride=4), nn.BatchNorm2d(8, track_running_stats=False), nn.Flatten(), nn.Linear(512, 3)]
    with pytest.raises(HwmodelError, match=r"batch 0 \(from image 0\): 0: images of a batch are not independent"):
        projections(nn.Sequential(*layers), [IMAGES], finest=(2, 2))


def test_batch_norm_with_running_statistics_is_as_in_eval_mode() -> None:
    torch.manual_seed(0)
    model, inputs = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)).train(), torch.randn(6, 4)
    before = model[1].running_mean.clone()
    found = projections(model, [inputs], finest=(2, 2), kind="loss", loss=first_logit)
    assert model.training and torch.equal(model[1].running_mean, before)
    assert_equal(found, by_autograd(model, inputs, lambda outputs, _place: outputs[0, 0], (2, 2)))


def test_images_that_are_not_the_first_axis_are_refused() -> None:
    class TokensFirst(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x.transpose(0, 1)).transpose(0, 1).sum(1)  # type: ignore[no-any-return]

    with pytest.raises(HwmodelError, match="layer: images of a batch are not independent"):
        projections(TokensFirst(), [torch.randn(6, 5, 4)], finest=(2, 2))


def test_weights_that_two_layers_share_are_refused() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.Linear(4, 3))
    model[2].weight = model[0].weight
    with pytest.raises(HwmodelError, match=r"0: shares its weight with '2', so that the two cannot be pruned apart"):
        projections(model, [torch.randn(2, 4)], finest=(2, 2), layers=["0"])
    found = projections(model, [torch.randn(2, 4)], finest=(2, 2))
    assert [layer.name for layer in found] == ["3"] and set(found.left_out) == {"0", "2"}


def test_an_input_changed_in_place_is_refused() -> None:
    class InPlace(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            hidden = self.first(x)
            found = self.second(hidden)
            hidden += 1
            return found + hidden  # type: ignore[no-any-return]

    with pytest.raises(HwmodelError, match="second: its input is changed in place"):
        projections(InPlace(), [torch.randn(2, 4)], finest=(2, 2))


def test_layers_that_cannot_be_projected_are_named() -> None:
    class Attending(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(3, 8, 3, stride=2)
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
            self.head = nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            tokens = self.stem(x).flatten(2).transpose(1, 2)
            return self.head(self.attention(tokens, tokens, tokens)[0].mean(1))  # type: ignore[no-any-return]

    found = projections(Attending(), [IMAGES], finest=(1, 2))
    assert [layer.name for layer in found] == ["head"]
    assert found.left_out["stem"].startswith("a convolution whose windows overlap")
    assert found.left_out["attention.out_proj"].startswith("takes no part in the forward pass that could be followed")
    for name in ("stem", "attention.out_proj"):
        with pytest.raises(HwmodelError, match=f"{name}: "):
            projections(Attending(), [IMAGES], finest=(1, 2), layers=[name])


def test_layers_that_only_choose_are_left_out() -> None:
    """Their outputs are compared, not computed with: no gradient says what their blocks are worth, which is not nothing."""
    width = 32
    model = gated_tokens(small_vit(), {1: 0.5}, {1: torch.linspace(-1, 1, width)})
    (gate,) = (name for name, module in model.named_modules() if isinstance(module, nn.Linear) and module.out_features == 1)
    found = projections(model, [IMAGES], finest=(1, 4))
    assert gate not in {layer.name for layer in found} and len(found) == 18
    assert found.left_out[gate].startswith("no gradient reaches it")
    assert all(layer.p.any() for layer in found)
    with pytest.raises(HwmodelError, match=f"{gate}: no gradient reaches it"):
        projections(model, [IMAGES], finest=(1, 4), layers=[gate])


@pytest.mark.parametrize("images", [1, 3])
def test_outputs_that_no_gradient_leads_through(images: int) -> None:
    with pytest.raises(
        HwmodelError, match=r"none of the layers can be projected; patch_embed.proj: no gradient reaches it .* is detached"
    ):
        projections(small_vit(), [IMAGES[:images]], kind="loss", loss=lambda outputs, _labels: outputs[:, 0].detach())


def test_a_backward_pass_that_fails_for_two_images_is_told() -> None:
    class OneByOne(torch.autograd.Function):
        @staticmethod
        def forward(_context: Any, values: Tensor) -> Tensor:
            return values.clone()

        @staticmethod
        def backward(_context: Any, gradient: Tensor) -> Tensor:
            if len(gradient) > 1:
                raise RuntimeError("one image at a time")
            return gradient

    with pytest.raises(HwmodelError, match=r"batch 0 \(from image 0\): the backward pass fails: one image at a time"):
        projections(small_vit(), [IMAGES], kind="loss", loss=lambda outputs, _labels: OneByOne.apply(outputs[:, 0]))


def test_layers_that_finest_gives_no_block() -> None:
    found = projections(small_vit(), [IMAGES], finest={"blocks.*": (4, 4)})
    assert found.left_out == dict.fromkeys(("patch_embed.proj", "head"), "finest= gives it no block")


def infinite(outputs: Tensor, _labels: Tensor | None) -> Tensor:
    return outputs[:, 0] / 0


def steep(outputs: Tensor, _labels: Tensor | None) -> Tensor:
    """Finite, with a gradient that is not."""
    return (outputs[:, 0] - outputs[:, 0].detach()).sqrt()


@pytest.mark.parametrize(
    ("given", "options", "message"),
    [
        ([], {}, "there are no images"),
        ([IMAGES[:, :1]], {}, r"batch 0 \(from image 0\): the forward pass fails: .*channels"),
        (
            [IMAGES, torch.cat([IMAGES[:1], IMAGES[1:] * torch.nan])],
            {},
            r"batch 1 \(from image 3\): the output of image 4 is not finite",
        ),
        ([IMAGES], {"kind": "loss"}, "the cross-entropy needs labels"),
        ([(IMAGES, LABELS[:2])], {"kind": "loss"}, "batch 0: has 3 images and 2 labels"),
        ([(IMAGES, LABELS + 9)], {"kind": "loss"}, "the loss fails: Target 9 is out of bounds"),
        ([IMAGES], {"kind": "loss", "loss": infinite}, "the loss of image 0 is not finite"),
        ([IMAGES], {"kind": "loss", "loss": steep}, r"batch 0 .*: (patch_embed.proj|head): a gradient is not finite"),
        ([IMAGES], {"kind": "loss", "loss": lambda outputs, _labels: outputs.mean()}, "expected one value for each of"),
        ([IMAGES], {"kind": "loss", "probes": 2}, "probes is 2"),
        ([IMAGES], {"kind": "fisher"}, "unknown kind 'fisher'"),
        ([IMAGES], {"layers": ["blocks.9.*"]}, r"unknown layer 'blocks.9.\*'"),
        ([IMAGES], {"finest": (64, 64)}, r"patch_embed.proj: a finest block of 64x64 does not fit a weight of 32x192"),
        ([IMAGES], {"finest": (0, 4)}, "two positive whole numbers"),
        ([IMAGES], {"finest": 4}, "two positive whole numbers"),
        ([IMAGES], {"finest": {}}, "patch_embed.proj: finest= gives it no block"),
        ([IMAGES], {"finest": {"blocks.*": (4, 4)}, "layers": ["head", "blocks.0.*"]}, "head: finest= gives it no block"),
        ([IMAGES], {"seed": -1}, "seed -1"),
        ([IMAGES], {"memory_bytes": 0}, "memory_bytes is 0"),
        (["image.png"], {}, "batch 0: expected a tensor of images, or images and labels, found str"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(tmp_path: Path, given: list[Any], options: dict[str, Any], message: str) -> None:
    with pytest.raises(HwmodelError, match=message) as caught:
        projections(small_vit(), given, **options)
    assert "\n" not in str(caught.value)


def test_what_was_computed_before_a_failure_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "run.projections"
    bad = IMAGES.clone()
    bad[1] = torch.nan
    with pytest.raises(HwmodelError, match=r"batch 1 .*not finite; the 3 images before are kept in .*run.projections"):
        projections(small_vit(), [IMAGES, bad], resume=path)
    assert Projections.load(path).samples == 3
    found = projections(small_vit(), [IMAGES, IMAGES + 1], resume=path)
    assert found.samples == 6


def test_models_without_values_or_layers() -> None:
    with pytest.raises(HwmodelError, match="has no values"):
        projections(small_vit().to("meta"), [IMAGES])
    with pytest.raises(HwmodelError, match="has neither linear layers nor convolutions"):
        projections(nn.ReLU(), [IMAGES])
    with pytest.raises(HwmodelError, match=r"expected the name of a timm model or a torch.nn.Module, got str"):
        projections("deit_small", [IMAGES])  # type: ignore[arg-type]


def test_checkpointed_activations() -> None:
    """Blocks that are run again in the backward pass give what they give without."""
    model = small_vit()
    model.set_grad_checkpointing(True)
    for layer, other in zip(projections(model, [IMAGES]), projections(small_vit(), [IMAGES]), strict=True):
        np.testing.assert_allclose(layer.p, other.p, rtol=0, atol=1e-5 * np.abs(other.p).max())


def test_weights_that_are_not_finite() -> None:
    model = small_vit()
    with torch.no_grad():
        model.blocks[2].mlp.fc1.weight[3, 3] = torch.nan
    with pytest.raises(HwmodelError, match=r"blocks.2.mlp.fc1: its weight holds values that are not finite"):
        projections(model, [IMAGES])
