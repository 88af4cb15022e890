"""``analysis/lsp_figures.py``: scores mean what they say, the masks drawn are those of the weights, statements can be wrong."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from analysis_scripts import script

from hwmodel.errors import HwmodelError

BLOCK = (8, 8)


@pytest.fixture(scope="module")
def study() -> ModuleType:
    return script("lsp_figures")


@pytest.fixture(scope="module")
def model(study: ModuleType) -> torch.nn.Module:
    torch.manual_seed(0)
    untrained: torch.nn.Module = study.small_vit().eval()
    return untrained


def pruned(study: ModuleType, model: torch.nn.Module, dropped: dict[str, float]) -> Any:
    """The model without the first rows of blocks of some layers: name to the share of rows that is dropped."""
    scores = {}
    for name, layer in study.prunable(model).items():
        scores[name] = np.ones((-(-layer.out_features // BLOCK[0]), layer.in_features // BLOCK[1]))
        scores[name][: round(dropped.get(name, 0.0) * len(scores[name]))] = 0.0
    kept = float(np.concatenate([score.ravel() for score in scores.values()]).mean())
    return study.pruned(model.state_dict(), scores, BLOCK, kept)


def test_block_sums_are_smaller_at_the_edges(study: ModuleType) -> None:
    values = np.arange(15.0).reshape(3, 5)
    expected = [[0 + 1 + 5 + 6, 2 + 3 + 7 + 8, 4 + 9], [10 + 11, 12 + 13, 14]]
    assert study._block_sums(values, (2, 2)).tolist() == expected


def test_a_score_is_the_squared_slope_of_the_loss_over_the_size_of_a_block(study: ModuleType, model: torch.nn.Module) -> None:
    images, labels, _, _ = study.digits()
    score = study.block_scores(model, batches=1)[BLOCK]["blocks.0.mlp.fc1"][3, 5]
    exact = study.trained_like(model.state_dict()).double()
    weight = exact.blocks[0].mlp.fc1.weight.data[24:32, 40:48]
    own, losses = weight.clone(), []
    for factor in (0.99, 1.01):
        weight.copy_(factor * own)
        losses.append(float(torch.nn.functional.cross_entropy(exact(images.double()), labels).detach()))
    assert score == pytest.approx(((losses[1] - losses[0]) / 0.02) ** 2, rel=1e-3)


def test_what_is_drawn_was_read_from_the_weights(study: ModuleType, model: torch.nn.Module) -> None:
    found = pruned(study, model, {"blocks.2.mlp.fc1": 0.5, "blocks.4.attn.proj": 0.25})
    changed = {name: kept for name, kept in found.densities.items() if kept < 1}
    assert changed == pytest.approx({"blocks.2.mlp.fc1": 0.5, "blocks.4.attn.proj": 0.75})


def test_statements_of_the_paper_hold_where_they_do_and_not_elsewhere(study: ModuleType, model: torch.nn.Module) -> None:
    projections = {f"blocks.{block}.attn.proj": 0.75 for block in range(study.DEPTH)}
    early = {f"blocks.{block}.mlp.fc1": 0.5 for block in range(study.DEPTH - 1)}
    as_told = pruned(study, model, projections | early)
    assert [holds for holds, _ in study.shown(as_told)] == [True, True, True]
    last = pruned(study, model, {"blocks.5.mlp.fc2": 0.5, "head": 0.5})
    assert [holds for holds, _ in study.shown(last)] == [False, False, False]


def test_figures_are_the_same_bytes_twice_and_of_a_known_kind(study: ModuleType, model: torch.nn.Module) -> None:
    found = pruned(study, model, {"blocks.2.mlp.fc1": 0.5})
    figure = study.draw_densities([found, found], ".svg")
    assert figure == study.draw_densities([found, found], ".svg")
    assert study.draw_masks(found, ".svg").startswith(b"<?xml")
    with pytest.raises(HwmodelError, match=r"\.svg"):
        study.draw_masks(found, ".bmp")
