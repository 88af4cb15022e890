"""Recipes from traces: classes, structure, masks and patterns, and what the command prints and writes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from examples import vit

import hwmodel as hw
from hwmodel import cli
from hwmodel.errors import RecipeError
from hwmodel.extraction import zoo
from hwmodel.extraction.whatif.recipes import Recipe
from hwmodel.ir.masks import BlockMask

MODEL = "test_vit"


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return zoo.build(MODEL, device="cpu").state_dict()


def test_masks_and_patterns_become_rules() -> None:
    dense = vit(64, depth=1)
    mask = BlockMask((192, 64), (64, 64), np.array([[True], [False], [True]]))
    changes = {"blocks.0.attn.qkv": {"mask": mask}, "blocks.0.mlp.fc1": {"sparsity": "2:4"}}
    pruned = dense.replace(operators=tuple(one.replace(**changes.get(one.name, {})) for one in dense.operators))
    recipe = hw.recipe_of(pruned, dense, source="a test")
    assert [(rule.match, rule.mask, rule.sparsity) for rule in recipe.layers] == [
        (("blocks.0.attn.qkv",), mask, None),
        (("blocks.0.mlp.fc1",), None, "2:4"),
    ]
    assert hw.prune(dense, recipe).operators == pruned.operators


@pytest.mark.parametrize("scale_bytes", [384, 385], ids=["two bytes per row", "rows share them unevenly"])
def test_number_formats_become_rules(scale_bytes: int, tmp_path: Path) -> None:
    dense = vit(64, depth=1)
    mask = BlockMask((192, 64), (64, 64), np.array([[True], [False], [True]]))
    stored = {"weight_dtype": "int8", "scale_bytes": scale_bytes}
    changes = {"blocks.0.attn.qkv": {"mask": mask, **stored}, "blocks.0.mlp.fc1": {"dtype": "int8"}}
    found = dense.replace(operators=tuple(one.replace(**changes.get(one.name, {})) for one in dense.operators))
    hw.save_recipe(hw.recipe_of(found, dense, source="a test"), tmp_path / "r.toml")
    assert hw.prune(dense, tmp_path / "r.toml").operators == found.operators


def test_a_pattern_is_written_and_read(tmp_path: Path) -> None:
    recipe = Recipe(model="m", source="s", classes=7, layers=[{"match": ["*fc?"], "sparsity": "2:4"}])
    hw.save_recipe(recipe, tmp_path / "r.toml")
    assert hw.load_recipe(tmp_path / "r.toml") == recipe
    assert 'sparsity = "2:4"' in (tmp_path / "r.toml").read_text()


@pytest.mark.parametrize("extra", [{"block": (2, 2)}, {"density": 0.5, "block": (2, 2)}, {"sparsity": "2-4"}])
def test_a_pattern_stands_alone(extra: dict[str, object]) -> None:
    with pytest.raises(RecipeError, match="sparsity"):
        Recipe.from_mapping({"a": {"sparsity": "2:4"} | extra}, model="m")


def test_a_fine_tuned_classifier_is_no_pruning(tmp_path: Path, state: dict[str, torch.Tensor]) -> None:
    own = state | {"head.weight": torch.ones(10, 64), "head.bias": torch.ones(10)}
    torch.save(own, tmp_path / "ten.pt")
    found, dense = hw.trace(MODEL, checkpoint=tmp_path / "ten.pt"), hw.trace(MODEL)
    recipe = hw.recipe_of(found, dense, source="a test")
    assert (recipe.classes, recipe.encoder, recipe.layers) == (10, (), ())
    assert found.macs == dense.macs - 64 * 990  # one image: each class is one product of 64 values
    priced = hw.prune(dense, recipe)
    assert (priced.operators, priced.macs) == (found.operators, found.macs)


def test_narrow_layers_and_masks_in_one_checkpoint(tmp_path: Path, state: dict[str, torch.Tensor]) -> None:
    own = dict(state)
    own["blocks.2.mlp.fc1.weight"] = own["blocks.2.mlp.fc1.weight"][:80].clone()
    own["blocks.2.mlp.fc1.bias"] = own["blocks.2.mlp.fc1.bias"][:80].clone()
    own["blocks.2.mlp.fc2.weight"] = own["blocks.2.mlp.fc2.weight"][:, :80].clone()
    own["blocks.2.mlp.fc2.weight"][:32, :16] = 0
    torch.save(own, tmp_path / "narrow.pt")
    found, dense = hw.trace(MODEL, checkpoint=tmp_path / "narrow.pt"), hw.trace(MODEL)
    recipe = hw.recipe_of(found, dense, source="a test")
    assert [(rule.blocks, rule.mlp) for rule in recipe.encoder] == [("2", 80)]
    assert found.macs == dense.macs
    assert found["blocks.2.mlp.fc2"].mask.block == (32, 16)
    assert hw.prune(dense, recipe).operators == found.operators


def test_the_command_writes_what_it_shows(
    tmp_path: Path, state: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    own = dict(state)
    own["blocks.0.mlp.fc2.weight"] = own["blocks.0.mlp.fc2.weight"].clone()
    own["blocks.0.mlp.fc2.weight"][:16] = 0
    own["blocks.1.attn.proj.weight"] = own["blocks.1.attn.proj.weight"] * (torch.rand(64, 64) < 0.5)
    torch.save(own, "pruned.pt")
    cli.main(["recipe", "pruned.pt", "--model", MODEL, "-o", "found.toml"])
    shown = capsys.readouterr().out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["found.npz", "found.toml", "pruned.pt"]
    assert "blocks.0.mlp.fc2" in shown
    assert "but scattered" in shown
    cli.main(["trace", MODEL, "--recipe", "found.toml", "-o", "priced.json"])
    assert hw.load_trace("priced.json").operators == hw.trace(MODEL, checkpoint="pruned.pt").operators
