"""Derivatives by gates against explicit Hessians of a forward pass written out here, and what scores foretell on digits."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from analysis_scripts import script
from scipy.stats import spearmanr
from token_models import IMAGES, small_vit
from torch import Tensor

import hwmodel as hw
from hwmodel.pruning.gates.heads import remove_heads
from hwmodel.pruning.gates.loss_budget import mean_loss, within_measured_loss
from hwmodel.pruning.gates.scores import head_scores, removal_changes, token_scores
from hwmodel.pruning.gates.selection import Selection, select
from hwmodel.pruning.tokens import topk_tokens

LABELS = torch.tensor([1, 4, 0])
DEPTH, HEADS, TOKENS = 3, 2, 5


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Models are too small for two."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def tiny(**options: Any) -> torch.nn.Module:
    """3 blocks, 2 heads, 4 patches and a class token, in double precision."""
    return small_vit(patch_size=16, depth=DEPTH, init_values=0.5, qk_norm=True, **options).double()


IMAGES64 = IMAGES.double()


def gated_loss(model: Any, image: Tensor, label: Tensor, *, heads: Tensor, values: Tensor, presence: Tensor) -> Tensor:
    """Loss of one image with gates on head outputs, on tokens' values and on tokens' presence, (blocks, gates) each."""
    x = model._pos_embed(model.patch_embed(image[None]))[0]
    present = torch.ones(len(x), dtype=x.dtype)
    for block, attn, head, value, left in zip(model.blocks, (b.attn for b in model.blocks), heads, values, presence, strict=True):
        x, present = x * value[:, None], present * left
        q, k, v = attn.qkv(block.norm1(x)).reshape(len(x), 3, attn.num_heads, -1).permute(1, 2, 0, 3)
        raw = torch.exp(attn.q_norm(q) @ attn.k_norm(k).transpose(1, 2) / attn.head_dim**0.5) * present
        mixed = (raw / raw.sum(-1, keepdim=True)) @ v * head[:, None, None]
        x = x + block.ls1(attn.proj(mixed.transpose(0, 1).flatten(1)))
        x = x + block.ls2(block.mlp(block.norm2(x)))
    return torch.nn.functional.cross_entropy(model.forward_head(model.norm(x)[None]), label[None])


def explicit(model: torch.nn.Module, image: Tensor, label: Tensor, kind: str) -> tuple[np.ndarray, np.ndarray]:
    """Gradient (blocks, gates) and the whole Hessian (blocks, gates, blocks, gates) by torch.autograd.functional."""
    open_gates = {"heads": torch.ones(DEPTH, HEADS), "values": torch.ones(DEPTH, TOKENS), "presence": torch.ones(DEPTH, TOKENS)}
    open_gates = {name: gates.double() for name, gates in open_gates.items()}

    def loss(gates: Tensor) -> Tensor:
        return gated_loss(model, image, label, **open_gates | {kind: gates})

    gradient = torch.autograd.functional.jacobian(loss, open_gates[kind])
    return gradient.numpy(), torch.autograd.functional.hessian(loss, open_gates[kind]).numpy()


def scored(model: torch.nn.Module, kind: str, **options: Any) -> Any:
    batches = [(IMAGES64[:2], LABELS[:2]), (IMAGES64[2:], LABELS[2:])]
    if kind == "heads":
        return head_scores(model, batches, **options)
    return token_scores(model, batches, gate="value" if kind == "values" else "presence", **options)


@pytest.fixture(scope="module")
def hessians() -> dict[str, list[tuple[np.ndarray, np.ndarray]]]:
    model = tiny()
    images = list(zip(IMAGES64, LABELS, strict=True))
    return {kind: [explicit(model, image, label, kind) for image, label in images] for kind in ("heads", "values", "presence")}


def diagonal(hessian: np.ndarray) -> np.ndarray:
    blocks, gates = hessian.shape[:2]
    return hessian.reshape(blocks * gates, -1).diagonal().reshape(blocks, gates)


@pytest.mark.parametrize("kind", ["heads", "values", "presence"])
def test_exact_scores_are_the_explicit_gradient_and_diagonal(kind: str, hessians: Any) -> None:
    found = scored(tiny(), kind, estimator="exact")
    gradient = np.stack([gradient for gradient, _ in hessians[kind]])
    curvature = np.stack([diagonal(hessian) for _, hessian in hessians[kind]])
    np.testing.assert_allclose(found.gradient, gradient, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(found.curvature, curvature, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(found.per_image, curvature / 2 - gradient, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(found.static, (curvature / 2 - gradient).mean(0), rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(found.curvature_only().per_image, curvature / 2, rtol=1e-9, atol=1e-12)


def test_exact_scores_in_single_precision(hessians: Any) -> None:
    single = head_scores(tiny().float(), [(IMAGES, LABELS)], estimator="exact")
    curvature = np.stack([diagonal(hessian) for _, hessian in hessians["heads"]])
    np.testing.assert_allclose(single.curvature, curvature, rtol=1e-4, atol=1e-4 * np.abs(curvature).max())


@pytest.mark.parametrize("kind", ["heads", "values"])
def test_row_sums_are_those_of_a_block_and_not_the_diagonal(kind: str, hessians: Any) -> None:
    found = scored(tiny(), kind, estimator="row-sums")
    sums = np.stack([np.stack([hessian[block, :, block].sum(1) for block in range(DEPTH)]) for _, hessian in hessians[kind]])
    np.testing.assert_allclose(found.curvature, sums, rtol=1e-9, atol=1e-12)
    assert not np.allclose(found.curvature, np.stack([diagonal(hessian) for _, hessian in hessians[kind]]), rtol=0.1)


def test_presence_gates_of_a_block_scale_nothing_together() -> None:
    """Attention is normalised: a common factor of all gates cancels. So gradients add up to 0, and by Euler H 1 = -g."""
    found = scored(tiny(), "presence", estimator="row-sums")
    np.testing.assert_allclose(found.gradient.sum(2), 0, atol=1e-12)
    np.testing.assert_allclose(found.curvature, -found.gradient, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kind", ["heads", "values", "presence"])
def test_random_signs_estimate_the_diagonal_without_bias(kind: str, hessians: Any) -> None:
    """One probe's error is the sum of off-diagonal entries with random signs: its variance is the sum of their squares."""
    probes = 60
    found = scored(tiny(), kind, estimator="hutchinson", probes=probes)
    exact = np.stack([diagonal(hessian) for _, hessian in hessians[kind]])
    squares = np.stack([(hessian**2).sum((2, 3)) for _, hessian in hessians[kind]])
    error = np.sqrt((squares - exact**2) / probes)
    assert np.abs(found.curvature - exact).max() > 0
    assert (np.abs(found.curvature - exact) < 4.5 * error + 1e-12).all()  # 45 draws or fewer: beyond 4.5 deviations 1 in 3000


@pytest.mark.parametrize("kind", ["heads", "tokens"])
def test_removal_is_what_closed_gates_do(kind: str) -> None:
    model = tiny()
    found = removal_changes(model, [(IMAGES64, LABELS)], "head" if kind == "heads" else "token")
    gates = {"heads": torch.ones(DEPTH, HEADS), "values": torch.ones(DEPTH, TOKENS), "presence": torch.ones(DEPTH, TOKENS)}
    gates = {name: value.double() for name, value in gates.items()}
    closing = "heads" if kind == "heads" else "presence"
    with torch.no_grad():
        for image, (pixels, label) in enumerate(zip(IMAGES64, LABELS, strict=True)):
            whole = gated_loss(model, pixels, label, **gates)
            for block in range(DEPTH):
                for unit in range(0 if kind == "heads" else 1, gates[closing].shape[1]):
                    closed = gates[closing].clone()
                    closed[block, unit] = 0
                    change = gated_loss(model, pixels, label, **gates | {closing: closed}) - whole
                    assert found[image, block, unit] == pytest.approx(float(change), abs=1e-10)
    assert np.isnan(found[:, :, 0]).all() == (kind == "tokens")  # the class token cannot leave


def test_scores_are_the_same_for_a_seed_alone_and_in_a_batch() -> None:
    model = small_vit()
    first, again, other = (token_scores(model, [(IMAGES, LABELS)], probes=4, seed=seed) for seed in (0, 0, 1))
    assert first.curvature.tobytes() == again.curvature.tobytes()
    assert first.gradient.tobytes() == other.gradient.tobytes()
    assert not np.array_equal(first.curvature, other.curvature)
    together = head_scores(model, [(IMAGES, LABELS)]).per_image
    alone = head_scores(model, [(image[None], label[None]) for image, label in zip(IMAGES, LABELS, strict=True)]).per_image
    np.testing.assert_allclose(together, alone, rtol=1e-3, atol=1e-5)


def test_the_model_is_left_alone() -> None:
    model = small_vit().train()
    model.requires_grad_(False)
    backends = (torch.backends.cuda.flash_sdp_enabled(), torch.backends.cuda.math_sdp_enabled())
    seen: list[int] = []
    head_scores(model, [(IMAGES[:2], LABELS[:2]), (IMAGES[2:], LABELS[2:])], progress=seen.append)
    assert seen == [2, 3]
    assert model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_pre_hooks for module in model.modules())
    assert model.blocks[0].attn.fused_attn
    assert backends == (torch.backends.cuda.flash_sdp_enabled(), torch.backends.cuda.math_sdp_enabled())


def test_a_loss_of_your_own() -> None:
    twice = head_scores(
        small_vit(), [(IMAGES, LABELS)], loss=lambda y, labels: 2 * torch.nn.functional.cross_entropy(y, labels, reduction="none")
    )
    once = head_scores(small_vit(), [(IMAGES, LABELS)])
    np.testing.assert_allclose(twice.per_image, 2 * once.per_image, rtol=1e-4, atol=1e-7)


def test_blocks_with_fewer_units_are_nan_beyond_them() -> None:
    narrowed = remove_heads(small_vit(), {1: [0]})
    assert np.isnan(head_scores(narrowed, [(IMAGES, LABELS)]).static).tolist() == [[False, False], [False, True]] + 2 * [
        [False, False]
    ]
    shrinking = token_scores(topk_tokens(small_vit(), {1: 0.5}), [(IMAGES, LABELS)], gate="value", probes=1)
    assert (~np.isnan(shrinking.static)).sum(1).tolist() == [17, 17, 9, 9]
    assert shrinking.ranked.shape == (4, 16)
    assert (~np.isnan(shrinking.ranked)).sum(1).tolist() == [16, 16, 8, 8]


def test_ranked_scores_are_sorted_image_by_image_before_the_mean() -> None:
    found = token_scores(small_vit(), [(IMAGES, LABELS)], probes=2)
    by_hand = np.mean([[sorted(block[1:]) for block in image] for image in found.per_image], axis=0)
    np.testing.assert_allclose(found.ranked, by_hand)


def swin() -> torch.nn.Module:
    from timm.models.swin_transformer import SwinTransformer

    small_vit()  # imports torchvision safely
    torch.manual_seed(0)
    shape = {"img_size": 32, "patch_size": 4, "window_size": 4, "embed_dim": 16, "depths": (2, 2), "num_heads": (2, 4)}
    model = SwinTransformer(**shape, num_classes=5).eval()  # 4 windows of 4 x 4 in the first stage, one in the second
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "relative_position" in name or "qkv" in name:
                parameter.mul_(20)
    return model


def test_heads_of_windowed_attention_are_gated_image_by_image() -> None:
    """Gates of a window partition belong to its image: a batch scores as its images do, and the first order is the slope."""
    model = swin().double()
    found = head_scores(model, [(IMAGES64, LABELS)])
    assert found.static.shape == (4, 4)
    assert np.isnan(found.static).sum() == 4  # two heads in the first two blocks
    alone = np.concatenate([head_scores(model, [(IMAGES64[i : i + 1], LABELS[i : i + 1])]).per_image for i in range(3)])
    np.testing.assert_allclose(found.per_image, alone, rtol=1e-8, atol=1e-12)
    step, losses = 1e-4, []
    for factor in (1 + step, 1.0, 1 - step):
        changed = swin().double()
        attn = changed.layers[0].blocks[1].attn
        with torch.no_grad():
            attn.proj.weight[:, 8:] *= factor  # the second head of 8 channels
            losses.append(torch.nn.functional.cross_entropy(changed(IMAGES64), LABELS, reduction="none").numpy())
    np.testing.assert_allclose(found.gradient[:, 1, 1], (losses[0] - losses[2]) / (2 * step), rtol=1e-5)
    np.testing.assert_allclose(found.curvature[:, 1, 1], (losses[0] - 2 * losses[1] + losses[2]) / step**2, rtol=1e-3, atol=1e-6)


# ---------------------------------------------------------------- what is refused


def infinite(y: Tensor, labels: Tensor) -> Tensor:
    return torch.nn.functional.cross_entropy(y, labels, reduction="none") + torch.tensor([0.0, torch.inf, 0.0])[: len(labels)]


@pytest.mark.parametrize(
    ("batches", "options", "message"),
    [
        (
            [(IMAGES, LABELS), (IMAGES * torch.tensor([1, 1, torch.nan])[:, None, None, None], LABELS)],
            {},
            "batch 1: the loss of image 2",
        ),
        ([(IMAGES, LABELS)], {"loss": infinite}, "batch 0: the loss of image 1 is not finite"),
        ([(IMAGES, torch.tensor([1, 2, 7]))], {}, "batch 0: the loss fails: Target 7 is out of bounds"),
        ([(IMAGES, LABELS)], {"loss": lambda y, _: y.sum()}, r"one value per image, \(3,\), got \(\)"),
        ([(IMAGES, LABELS[:2])], {}, "batch 0: expected .images, labels."),
        ([IMAGES], {}, "batch 0: expected .images, labels."),
        ([], {}, "no batches"),
        ([(IMAGES[..., :16], LABELS)], {}, "batch 0: the forward pass fails: "),
        ([(IMAGES, LABELS), (IMAGES, [1, 4, 0])], {}, "batch 1: expected .images, labels."),
        ([(IMAGES, LABELS)], {"loss": lambda y, _: y[:, 0].tolist()}, r"one value per image, \(3,\), got a list"),
        ([(IMAGES, LABELS)], {"loss": lambda y, _: y[:, 0].detach()}, "batch 0: the backward pass fails: "),
        ([(IMAGES, LABELS)], {"estimator": "exakt"}, "unknown estimator 'exakt': did you mean 'exact'"),
        ([(IMAGES, LABELS)], {"estimator": "hutchinson", "probes": 0}, "probes must be at least 1"),
    ],
    ids=[
        "nan",
        "infinite",
        "label",
        "scalar",
        "lengths",
        "unlabelled",
        "none",
        "size",
        "label-list",
        "loss-list",
        "detached",
        "estimator",
        "probes",
    ],
)
def test_what_cannot_be_scored_is_told(batches: Any, options: Any, message: str) -> None:
    for score in (head_scores, token_scores):
        with pytest.raises(hw.HwmodelError, match=message) as refusal:
            score(small_vit(), batches, **options)
        assert "\n" not in str(refusal.value)


def test_models_that_cannot_be_scored_are_told() -> None:
    batches = [(IMAGES, LABELS)]
    with pytest.raises(hw.HwmodelError, match="token_scores: VisionTransformer does not classify by a class token"):
        token_scores(small_vit(class_token=False, global_pool="avg"), batches)
    with pytest.raises(hw.HwmodelError, match="does not classify by a class token"):
        token_scores(small_vit(global_pool="avg"), batches)
    with pytest.raises(hw.HwmodelError, match="head_scores: expected a timm VisionTransformer or SwinTransformer, got Linear"):
        head_scores(torch.nn.Linear(2, 2), batches)
    without = small_vit()
    for block in without.blocks:
        block.attn = torch.nn.Identity()
    with pytest.raises(hw.HwmodelError, match=r"head_scores: VisionTransformer has no timm Attention .*\(Identity\)"):
        head_scores(without, batches)
    with pytest.raises(hw.HwmodelError, match="meta device"):
        head_scores(small_vit().to("meta"), batches)
    with pytest.raises(hw.HwmodelError, match="number of tokens changes"):
        token_scores(topk_tokens(small_vit(), {1: 0.5}), batches)
    with pytest.raises(hw.HwmodelError, match="unknown gate 'values': did you mean 'value'"):
        token_scores(small_vit(), batches, gate="values")  # type: ignore[arg-type]


# ---------------------------------------------------------------- what scores foretell


@pytest.fixture(scope="module")
def digits() -> tuple[torch.nn.Module, list[tuple[Tensor, Tensor]]]:
    """A ViT trained on digits for 12 epochs, and 300 of its training images to calibrate on."""
    study = script("digits_vit")
    model = study.train(0, epochs=12)
    train, test = study.digits(0)
    assert study.accuracy(model, test) > 0.9
    return model, list(train.first(300).batches(150))


def per_image(scores: np.ndarray, true: np.ndarray, first: int = 0) -> float:
    """Rank correlation over the units of an image, mean over the images."""
    return float(
        np.mean([spearmanr(a[:, first:].ravel(), b[:, first:].ravel()).statistic for a, b in zip(scores, true, strict=True)])
    )


def test_head_scores_rank_heads_as_their_removal_does(digits: Any) -> None:
    """Seen: 0.99 for the mean over images and 0.88 image by image; by the gradient alone the mean is unrelated."""
    model, batches = digits
    true, found = removal_changes(model, batches, "head"), head_scores(model, batches)
    assert spearmanr(found.static.ravel(), true.mean(0).ravel()).statistic > 0.85
    assert spearmanr(found.curvature_only().static.ravel(), true.mean(0).ravel()).statistic > 0.85
    assert per_image(found.per_image, true) > 0.8
    assert abs(spearmanr(-found.gradient.mean(0).ravel(), true.mean(0).ravel()).statistic) < 0.6


def test_presence_foretells_a_token_better_than_its_values(digits: Any) -> None:
    """Seen: 0.84 with presence gates, 0.29 with HEART-ViT's on values: zeros are not the same as a token that has left."""
    model, batches = digits
    true = removal_changes(model, batches[:1], "token")
    presence, value = (token_scores(model, batches[:1], gate=gate, probes=16) for gate in ("presence", "value"))
    assert per_image(presence.per_image, true, first=1) > 0.7
    assert per_image(value.per_image, true, first=1) < per_image(presence.per_image, true, first=1) - 0.2


def test_a_measured_budget_holds_where_the_sum_of_predictions_does_not(digits: Any) -> None:
    """Seen: a predicted sum of 0.01 is a loss of 0.3 once half of the heads have gone."""
    model, batches = digits
    scores, budget = head_scores(model, batches).static, 0.02

    def pruned(selection: Selection) -> torch.nn.Module:
        return remove_heads(model, selection.by_block)

    before = mean_loss(model, batches)
    believed = select(scores, np.ones(4), budget)
    assert mean_loss(pruned(believed), batches) - before > budget
    found = within_measured_loss(model, batches, budget, lambda predicted: select(scores, np.ones(4), predicted), pruned)
    assert 0 < found.loss_change <= budget
    assert found.loss_change == pytest.approx(mean_loss(found.model, batches) - before)
    assert 4 <= found.selection.counts.sum() < 16
    assert found.selection.counts.sum() > believed.counts.sum()
    everything = within_measured_loss(model, batches, 1e9, lambda predicted: select(scores, np.ones(4), predicted), pruned)
    assert everything.selection.counts.tolist() == [1, 1, 1, 1]


def distance(outputs: Tensor, wanted: Tensor) -> Tensor:
    return (outputs - wanted).square().sum(1)


@pytest.mark.parametrize("budget", [0.0, 0.02])
def test_a_measured_budget_is_used_up_where_predictions_are_too_high(budget: float) -> None:
    """Predicted harms are 1 and more; the measured loss falls with every removal, by how far outputs are from the dense ones."""
    model, scores = small_vit(depth=1, num_heads=4).double(), np.array([[1.0, 2.0, 3.0, 4.0]])
    found = within_measured_loss(
        model,
        [(IMAGES64, model(IMAGES64).detach())],
        budget,
        lambda predicted: select(scores, [1.0], predicted),
        lambda selection: remove_heads(model, selection.by_block),
        loss=lambda outputs, dense: -distance(outputs, dense),
    )
    assert found.selection.by_block == {0: (3,)}
    assert found.loss_change < 0


def test_a_measured_budget_above_the_predicted_one_stops_where_it_is_spent() -> None:
    """Predicted harms are 100 times the measured ones or more, and the budget lies between those of one head and of two."""
    model = small_vit(depth=1, num_heads=4).double()
    batches = [(IMAGES64, model(IMAGES64).detach())]
    one, two, three = (mean_loss(remove_heads(model, {0: range(gone, 4)}), batches, distance) for gone in (1, 2, 3))
    assert 0 < one < two < three
    scores, budget = 100 * np.array([[one, two, three, three]]), (one + two) / 2
    found = within_measured_loss(
        model,
        batches,
        budget,
        lambda predicted: select(scores, [1.0], predicted),
        lambda selection: remove_heads(model, selection.by_block),
        loss=distance,
    )
    assert found.selection.by_block == {0: (1, 2, 3)}
    assert found.loss_change == pytest.approx(one)


def test_a_measured_budget_that_cannot_hold_is_told(digits: Any) -> None:
    model, batches = digits
    for budget, message in ((-1.0, "at least 0, got -1"), (0.0, "costs .* of loss, the budget is 0")):
        with pytest.raises(hw.HwmodelError, match=message):
            within_measured_loss(
                model, batches, budget, lambda _: select(np.zeros((4, 4)), np.ones(4), 0), lambda s: remove_heads(model, s.by_block)
            )
