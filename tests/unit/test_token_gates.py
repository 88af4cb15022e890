"""Cheap gates: their fit by hand, the model they choose tokens in against a plain loop, and their operators in its trace."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from token_models import IMAGES, small_vit

import hwmodel as hw
from hwmodel.pruning.gates.scores import TokenScores, token_scores
from hwmodel.pruning.gates.token_gates import fit_token_gate
from hwmodel.pruning.tokens import gated_tokens

BATCHES = [(IMAGES[:2], torch.tensor([0, 1])), (IMAGES[2:], torch.tensor([2]))]


def entering(model: Any, block: int) -> np.ndarray:
    """(images, patches, width) of what enters a block, without hooks."""
    with torch.no_grad():
        x = model._pos_embed(model.patch_embed(IMAGES))
        for before in model.blocks[:block]:
            x = before(x)
    return x[:, model.num_prefix_tokens :].double().numpy()


def scores_like(values: np.ndarray, block: int) -> TokenScores:
    """Scores whose curvature is twice ``values`` at one block's patches, and no gradient."""
    curvature = np.zeros((len(values), 4, 1 + values.shape[1]))
    curvature[:, block, 1:] = 2 * values
    return TokenScores(np.zeros_like(curvature), curvature, "exact")


def test_a_linear_score_is_found_again() -> None:
    """Scores that are linear in the tokens, then shifted and scaled image by image, are explained whole."""
    model, truth = small_vit(), np.random.default_rng(0).normal(size=32)
    truth[0] = 0
    linear = entering(model, 2) @ truth
    spread = linear.std(axis=1, keepdims=True)
    gate = fit_token_gate(model, BATCHES, scores_like(linear * np.median(spread) / spread + [[5.0], [-3.0], [0.0]], 2), ridge=1e-12)
    assert gate.explained[2] == pytest.approx(1, abs=0.1)
    fitted = entering(model, 2) @ gate.weights[2].numpy()
    for image in range(3):
        assert np.corrcoef(fitted[image], linear[image])[0, 1] > 0.95
    assert gate.explained[0] == 0  # its scores are all the same


def test_the_fit_is_least_squares_of_standardised_scores() -> None:
    model = small_vit()
    scores = token_scores(model, BATCHES, probes=2)
    gate = fit_token_gate(model, BATCHES, scores, blocks=[1], ridge=1e-3)
    assert list(gate.weights) == [1]
    x, y = entering(model, 1), scores.per_image[:, 1, 1:]
    x = (x - x.mean(1, keepdims=True)).reshape(-1, 32)
    y = ((y - y.mean(1, keepdims=True)) / y.std(1, keepdims=True)).ravel()
    padding = np.sqrt(1e-3 * (x**2).sum() / 32) * np.eye(32)  # ridge as 32 more rows of an ordinary least-squares problem
    weights = np.linalg.lstsq(np.vstack([x, padding]), np.concatenate([y, np.zeros(32)]), rcond=None)[0]
    np.testing.assert_allclose(gate.weights[1].numpy(), weights, rtol=1e-4, atol=1e-6)
    assert gate.explained[1] == pytest.approx(1 - ((y - x @ weights) ** 2).sum() / (y**2).sum(), rel=1e-4)


@pytest.mark.parametrize("fused", [False, True])
def test_a_gated_model_is_the_loop(fused: bool) -> None:
    model, keep = small_vit(reg_tokens=1), {0: 0.5, 2: 0.5}
    draw = torch.Generator().manual_seed(5)
    weights = {block: torch.randn(32, generator=draw) for block in keep}
    gated = gated_tokens(model, keep, weights, fused=fused)
    expected = []
    with torch.no_grad():
        for image in IMAGES:
            x = model._pos_embed(model.patch_embed(image[None]))[0]
            for number, block in enumerate(model.blocks):
                if number in keep:
                    scores = [float(token @ weights[number]) for token in x[2:]]
                    order = sorted(range(len(scores)), key=lambda token: -scores[token])
                    count = -(-len(scores) // 2)
                    share = torch.softmax(torch.tensor(scores), 0)
                    rest = [share[token] * x[2 + token] for token in order[count:]]
                    x = torch.stack([x[0], x[1], *(x[2 + token] for token in order[:count]), *([sum(rest)] if fused else [])])
                x = block(x[None])[0]
            expected.append(model.forward_head(model.norm(x)[None])[0])
        torch.testing.assert_close(gated(IMAGES), torch.stack(expected))


def test_the_gate_is_charged() -> None:
    """16 tokens enter block 1, of which 8 do; then 8 and 4: each scored by one dot product over 32 values."""
    model = small_vit()
    gate = fit_token_gate(model, BATCHES, token_scores(model, BATCHES, probes=1))
    traced = hw.trace(gated_tokens(model, {1: 0.5, 2: 0.5}, gate.weights), example=IMAGES[:2])
    rows = {operator.name: operator for operator in traced.operators}
    scoring = {name: (row.m, row.k, row.n) for name, row in rows.items() if name.endswith("select.score")}
    assert scoring == {"blocks.1.select.score": (2 * 16, 32, 1), "blocks.2.select.score": (2 * 8, 32, 1)}
    assert {row.kind for name, row in rows.items() if name.startswith("blocks.1.select.")} == {"matmul", "topk", "gather", "concat"}
    assert [row.m for row in rows.values() if row.role == "qkv"] == [2 * 17, 2 * 9, 2 * 5, 2 * 5]
    assert rows["blocks.1.attn.qkv"].block == 1
    priced = hw.estimate(traced, device="agx-orin-64gb").frame()
    assert (priced.latency_s[list(scoring)] > 0).all()


def test_gates_that_cannot_be_are_told() -> None:
    model = small_vit()
    scores = token_scores(model, BATCHES, probes=1)
    gate = fit_token_gate(model, BATCHES, scores, blocks=[1])
    for batches in (BATCHES[:1], [*BATCHES, *BATCHES]):
        with pytest.raises(hw.HwmodelError, match="3 images were scored, the batches have another number"):
            fit_token_gate(model, batches, scores)
    with pytest.raises(hw.HwmodelError, match=r"blocks \[4\], but the model has blocks 0-3"):
        fit_token_gate(model, BATCHES, scores, blocks=[4])
    fewer = replace(scores, curvature=scores.curvature[:, :, :9], gradient=scores.gradient[:, :, :9])
    with pytest.raises(hw.HwmodelError, match="16 patch tokens enter a block, and not all of them have scores"):
        fit_token_gate(model, BATCHES, fewer)
    with pytest.raises(hw.HwmodelError, match=r"block 0 needs weights of shape \(32,\)"):
        gated_tokens(model, {0: 0.5}, gate.weights)
    with pytest.raises(hw.HwmodelError, match=r"gated_tokens: block 1: keep must be in \(0, 1\], got 0"):
        gated_tokens(model, {1: 0}, gate.weights)
    with pytest.raises(hw.HwmodelError, match="gated_tokens: found block 9, but the model has blocks 0-3"):
        gated_tokens(model, {9: 0.5}, gate.weights)
