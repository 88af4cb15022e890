"""Sensitivity curves: against explicit Fisher matrices, around present masks, and on disk."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from token_models import IMAGES, small_vit
from torch.nn.functional import cross_entropy

import hwmodel as hw
from hwmodel.allocation.layers import Layer
from hwmodel.allocation.units import machine_aware
from hwmodel.errors import HwmodelError
from hwmodel.pruning.blocks.curves import Curves, LayerCurve
from hwmodel.pruning.blocks.distortion import paper_recurrence
from hwmodel.pruning.blocks.masking import apply_masks
from hwmodel.pruning.blocks.projected import Projections
from hwmodel.pruning.blocks.projections import projections, sensitivity_curves

SAMPLES = torch.randn(6, 3, 32, 32, generator=torch.Generator().manual_seed(5))
LABELS = torch.tensor([0, 1, 2, 3, 4, 0])
EXPLICIT = ("blocks.0.attn.proj", "blocks.1.mlp.fc2", "head")
KAPPA = 1e-2
"""Large enough to matter beside the Fisher matrix."""


@pytest.fixture(scope="module")
def of_outputs() -> Projections:
    return projections(small_vit(), [SAMPLES], finest=(4, 4), probes=2)


@pytest.fixture(scope="module")
def of_losses() -> Projections:
    return projections(small_vit(), [(SAMPLES, LABELS)], finest=(1, 4), kind="loss", layers=[*EXPLICIT, "patch_embed.proj"])


def changes(curve: LayerCurve, weight: torch.Tensor) -> np.ndarray[Any, Any]:
    """(blocks + 1, weights) change of the flat weight with 0, 1, 2, ... blocks pruned."""
    flat = weight.detach().double().flatten(1).numpy()
    kept = [np.kron(curve.mask(k).kept, np.ones(curve.block))[: flat.shape[0], : flat.shape[1]] for k in range(curve.blocks + 1)]
    return np.array([((one - 1) * flat).ravel() for one in kept])


def loss_gradients(name: str) -> tuple[torch.Tensor, np.ndarray[Any, Any]]:
    """The weight, and (images, weights) gradients of each image's loss in 64-bit."""
    model = small_vit().double()
    weight = model.get_submodule(name).weight
    rows = [
        torch.autograd.grad(cross_entropy(model(image[None].double()), label[None]), weight)[0].ravel().numpy()
        for image, label in zip(SAMPLES, LABELS, strict=True)
    ]
    return weight, np.array(rows)


@pytest.mark.parametrize("name", EXPLICIT)
def test_delta_against_an_explicit_fisher_matrix(of_losses: Projections, name: str) -> None:
    """D x D, element by element; shapes that the block divides and not (the head has 5 outputs, blocks 3)."""
    block = (3, 8)
    weight, gradients = loss_gradients(name)
    fisher = KAPPA * np.eye(weight.numel()) + gradients.T @ gradients / len(gradients)
    paper = of_losses.curves(block, delta="paper", score="taylor", layers=[name], kappa=KAPPA)[name]
    d = changes(paper, weight)
    curvature = ((d @ fisher) * d).sum(1)
    expected = d @ gradients.mean(0) + curvature / 2
    np.testing.assert_allclose(paper.delta, expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())
    squared = of_losses.curves(block, delta="squared", order={name: paper.order}, layers=[name], kappa=KAPPA)[name]
    expected = np.mean((d @ gradients.T + curvature[:, None] / 2) ** 2, axis=1)
    np.testing.assert_allclose(squared.delta, expected, rtol=1e-3)


def test_gauss_newton_delta_is_the_output_change_to_first_order() -> None:
    """With the outputs' whole Jacobian, E (v'Jd)^2 over many probes is the squared norm of Jd."""
    name, probes = "head", 400
    model = small_vit()
    curve = projections(model, [SAMPLES], layers=[name], finest=(1, 8), probes=probes).curves((1, 8))[name]
    model.double()
    with torch.no_grad():
        features = model.forward_head(model.forward_features(SAMPLES.double()), pre_logits=True).numpy()
    d = changes(curve, model.head.weight).reshape(curve.blocks + 1, *curve.shape)
    exact = np.square(np.einsum("koj,nj->kno", d, features)).sum(2).mean(1)  # the head is linear: its Jacobian is known
    np.testing.assert_allclose(curve.delta, exact, rtol=6 * np.sqrt(2 / (probes * len(SAMPLES))))


def test_the_recurrence_of_the_paper_is_the_direct_form(of_losses: Projections) -> None:
    for curve in of_losses.curves((5, 4), delta="paper", score="fisher", kappa=KAPPA):
        recurred = paper_recurrence(curve.distortion.p, curve.distortion.squared_norms, curve.order, KAPPA)
        np.testing.assert_allclose(recurred, curve.delta, rtol=1e-9, atol=1e-12)


def test_scores_by_hand(of_losses: Projections) -> None:
    p = np.asarray(of_losses["head"].p, dtype=np.float64)
    by_score = {score: of_losses.curves((1, 4), score=score)["head"].scores for score in ("taylor", "fisher", "magnitude")}
    np.testing.assert_allclose(by_score["taylor"], np.abs(p.mean(0)))
    np.testing.assert_allclose(by_score["fisher"], (p**2).mean(0))
    weight = small_vit().head.weight.detach().double().abs().reshape(5, 8, 4).sum(2).ravel()
    np.testing.assert_allclose(by_score["magnitude"], weight)
    np.testing.assert_allclose(of_losses["head"].mean, p.mean(0))


@pytest.mark.parametrize("score", ["gauss-newton", "magnitude"])
def test_blocks_of_the_least_score_go_first(of_outputs: Projections, score: Any) -> None:
    for curve in of_outputs.curves((4, 4), score=score):
        assert (np.diff(curve.scores[curve.order]) >= 0).all(), curve.name


def test_coarser_blocks_are_sums_of_the_finest(of_outputs: Projections) -> None:
    direct = projections(small_vit(), [SAMPLES], finest=(12, 8), probes=2, layers=["blocks.*"])
    for layer in direct:
        summed = of_outputs[layer.name].at((12, 8))
        np.testing.assert_allclose(summed.p, layer.p, rtol=0, atol=1e-5 * np.abs(layer.p).max())
        np.testing.assert_allclose(summed.squared_norms, layer.squared_norms)
        np.testing.assert_allclose(summed.magnitudes, layer.magnitudes)


def test_one_call_and_two(of_outputs: Projections) -> None:
    once = sensitivity_curves(small_vit(), [SAMPLES], block=(4, 4), probes=2)
    twice = of_outputs.curves((4, 4))
    assert all(
        np.array_equal(one.order, other.order) and np.array_equal(one.delta, other.delta)
        for one, other in zip(once, twice, strict=True)
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"delta": "paper"}, "delta 'paper' needs projections of kind 'loss'"),
        ({"score": "gauss-newton", "kind": "loss"}, "score 'gauss-newton' needs projections of kind 'gauss-newton'"),
        ({"kind": "fisher"}, "unknown kind 'fisher'"),
        ({"kappa": -1.0}, "kappa is -1.0"),
    ],
)
def test_curves_that_cannot_be_made_are_refused_before_any_image(arguments: dict[str, Any], message: str) -> None:
    seen: list[int] = []
    with pytest.raises(HwmodelError, match=message):
        sensitivity_curves(small_vit(), [(SAMPLES, LABELS)], block=(4, 4), progress=seen.append, **arguments)
    assert seen == []


def test_one_call_takes_the_damping() -> None:
    options: dict[str, Any] = {"kind": "loss", "layers": ["head"]}
    once = sensitivity_curves(small_vit(), [(SAMPLES, LABELS)], block=(1, 8), delta="paper", kappa=KAPPA, **options)["head"]
    twice = projections(small_vit(), [(SAMPLES, LABELS)], finest=(1, 8), **options)
    assert np.array_equal(once.delta, twice.curves((1, 8), delta="paper", kappa=KAPPA)["head"].delta)
    assert not np.array_equal(once.delta, twice.curves((1, 8), delta="paper")["head"].delta)


# Around present masks


def test_blocks_that_are_pruned_come_first_at_no_distortion() -> None:
    dense = sensitivity_curves(small_vit(), [SAMPLES], block=(8, 8), layers=["blocks.*"])
    masks = dense.masks({layer.name: layer.blocks // 2 for layer in dense})
    pruned = apply_masks(small_vit(), masks)
    again = sensitivity_curves(pruned, [SAMPLES], block=(8, 8), layers=["blocks.*"])
    for layer, before in zip(again, dense, strict=True):
        count = layer.already_pruned
        assert count == before.blocks // 2
        assert (layer.delta[: count + 1] == 0).all() and layer.delta[-1] > 0
        assert layer.mask(count) == masks[layer.name]


def test_a_layer_that_is_pruned_whole_has_a_flat_curve() -> None:
    model = small_vit()
    torch.nn.init.zeros_(model.blocks[1].mlp.fc1.weight)
    curve = sensitivity_curves(model, [SAMPLES], block=(8, 8), layers=["blocks.1.mlp.fc1"])["blocks.1.mlp.fc1"]
    assert curve.already_pruned == curve.blocks == 64 and (curve.delta == 0).all()
    assert np.array_equal(curve.order, np.arange(64))


# What allocation takes


def test_a_curve_feeds_an_allocation_layer(of_outputs: Projections) -> None:
    curve = of_outputs.curves((8, 8), layers=["blocks.0.mlp.fc1"])["blocks.0.mlp.fc1"]
    layer = Layer.of(curve.name, shape=curve.shape, block=curve.block, rows=17, order=curve.order, delta=curve.delta)
    assert layer.mask(20) == curve.mask(20) == curve.mask(kept=44)
    aware = machine_aware(layer, curve.scores, (32, 32), delta_of=curve.delta_of)
    assert len(aware.rankings) == 5
    whole = aware.rankings[-1].order
    np.testing.assert_allclose(aware.delta[-1], curve.delta_of(whole)[-1])


def test_orders_and_counts_that_are_none(of_outputs: Projections) -> None:
    curve = of_outputs.curves((8, 8), layers=["blocks.0.mlp.fc1"])["blocks.0.mlp.fc1"]
    for order in ([0, 1], np.zeros(64, dtype=int), np.linspace(0, 63, 64)):
        with pytest.raises(HwmodelError, match=r"blocks.0.mlp.fc1: an order must hold each of the 64 block indices once"):
            curve.delta_of(order)
    for arguments in ({"pruned": 65}, {"pruned": -1}, {"kept": 65}):
        with pytest.raises(HwmodelError, match="has 64 blocks"):
            curve.mask(**arguments)
    with pytest.raises(HwmodelError, match="either the blocks pruned or the blocks kept"):
        curve.mask()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"block": (8, 8)}, r"blocks of 8x8 \(out x in\) do not fit head \(5x32\)"),
        (
            {"block": (6, 4), "layers": ["patch*"]},
            r"patch_embed.proj: blocks of 6x4 are not made up of the finest ones, 4x4; .*finest=\(2, 4\)",
        ),
        ({"delta": "paper"}, "delta 'paper' needs projections of kind 'loss'; these are of kind 'gauss-newton'"),
        ({"score": "taylor"}, "score 'taylor' needs projections of kind 'loss'"),
        ({"delta": "hessian"}, "unknown delta 'hessian'"),
        ({"kappa": -1.0}, "kappa is -1.0"),
        ({"layers": ["neck"]}, "unknown layer 'neck'"),
        ({"order": {"neck": [0]}}, "unknown layer 'neck'"),
        ({"order": {"head": [0]}}, "head: an order must hold each of the 16 block indices once"),
        ({"block": {"blocks.7.*": (4, 4)}}, r"unknown layer 'blocks.7.\*'"),
    ],
)
def test_curves_that_cannot_be_made(of_outputs: Projections, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(HwmodelError, match=message):
        of_outputs.curves(**{"block": (4, 4), **arguments})


def test_blocks_by_layer(of_outputs: Projections) -> None:
    curves = of_outputs.curves({"blocks.*": (8, 8), "blocks.1.*": (4, 16), "head": (4, 4)})
    assert "patch_embed.proj" not in [layer.name for layer in curves]
    assert (curves["blocks.1.mlp.fc1"].block, curves["head"].block) == ((4, 16), (4, 4))


# Files and determinism


def test_the_same_seed_gives_the_same_bytes(tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        sensitivity_curves(small_vit(), SAMPLES.split(4), block=(4, 4), seed=seed).save(tmp_path / name)
    a, b, c = (tmp_path.joinpath(name).read_bytes() for name in "abc")
    assert a == b != c


def test_curves_load_back_equal(tmp_path: Path, of_outputs: Projections) -> None:
    curves = of_outputs.curves((4, 4))
    curves.save(tmp_path / "curves.npz")
    loaded = Curves.load(tmp_path / "curves.npz")
    assert (len(loaded), loaded.samples) == (18, 6)
    for layer, other in zip(curves, loaded, strict=True):
        assert (layer.name, layer.shape, layer.block) == (other.name, other.shape, other.block)
        assert np.array_equal(layer.delta, other.delta) and np.array_equal(layer.kept, other.kept)
        assert np.array_equal(layer.delta_of(layer.order[::-1]), other.delta_of(layer.order[::-1]))
    (tmp_path / "other.npz").write_bytes(b"PK")
    np.savez(tmp_path / "arrays.npz", a=np.zeros(3))
    header = json.dumps({"format": "hwmodel-curves", "schema_version": 1, "layers": []})
    np.savez(tmp_path / "samples.npz", header=np.array(header))
    for name in ("other.npz", "arrays.npz", "missing.npz", "samples.npz"):
        with pytest.raises(HwmodelError, match=f"{name}: cannot be read as curves"):
            Curves.load(tmp_path / name)


def test_pruned_models_are_extracted_with_the_masks_of_their_curves() -> None:
    curves = sensitivity_curves(small_vit(), [SAMPLES], block=(8, 8), layers=["blocks.*"])
    masks = curves.masks({layer.name: layer.blocks // 3 for layer in curves})
    traced = hw.trace(apply_masks(small_vit(), masks), example=IMAGES[:1], block=(8, 8))
    found = {operator.name: operator.mask for operator in traced.operators if operator.mask is not None}
    assert found == masks
