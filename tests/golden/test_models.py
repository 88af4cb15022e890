"""Every shipped recipe loads, applies to its model's trace, and keeps the share of linear MACs that the paper prints."""

import csv
import re
from functools import cache
from pathlib import Path

import pytest

import hwmodel as hw
from hwmodel.extraction.whatif.recipe_files import recipe_names

with Path(__file__).with_name("lsp_recipes.csv").open(newline="") as lines:
    ROWS = list(csv.DictReader(lines))

PRUNABLE = {"deit": 50, "swin_tiny": 1 + 12 * 4 + 3 + 1, "swin_base": 1 + 24 * 4 + 3 + 1}
"""Weights pruned: patch embedding, four linears a block, patch mergings, classifier."""


@cache
def dense(model: str, image_size: int | None) -> hw.Trace:
    return hw.trace(model, image_size=image_size)


def block_of(name: str) -> tuple[int, int]:
    """(out, in) in the name of a recipe."""
    out, inner = re.search(r"_b(\d+)x(\d+)", name).groups()
    return int(out), int(inner)


def test_every_shipped_recipe_has_a_published_row() -> None:
    assert sorted(row["op"] for row in ROWS) == recipe_names()


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["op"])
def test_shipped_recipe(row: dict[str, str]) -> None:
    name = row["op"]
    recipe = hw.load_recipe(name)
    trace = dense(recipe.model, recipe.image_size)
    pruned = hw.prune(trace, name)
    linear = [operator for operator in pruned.operators if operator.parameter]
    family = name.partition("_lsp")[0]
    assert len(linear) == PRUNABLE.get(family, PRUNABLE["deit"])
    assert {operator.mask.block for operator in linear} == {block_of(name)}
    share = sum(operator.kept_macs for operator in linear) / sum(operator.macs for operator in linear)
    assert share == pytest.approx(float(row["value"]), rel=float(row["rel_tol"]))
    assert pruned.macs == trace.macs
    assert hw.prune(trace, recipe) == pruned


@pytest.mark.parametrize("name", recipe_names())
def test_shipped_recipe_says_where_it_comes_from(name: str) -> None:
    recipe = hw.load_recipe(name)
    assert "LSP" in recipe.source
    assert "Table" in recipe.source
    assert recipe.remarks
    assert recipe.published["source"]


@pytest.mark.parametrize("name", recipe_names())
def test_printed_figures_agree_with_the_density(name: str) -> None:
    recipe = hw.load_recipe(name)
    printed = recipe.published.get("flops_remained_pct") or 100 * recipe.published["flops_g"] / recipe.published["dense_flops_g"]
    assert recipe.layers[0].density == pytest.approx(printed / 100)
