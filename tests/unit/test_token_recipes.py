"""Token reduction by recipe equals the extraction of the wrapped model: rows, edges, MACs and estimates."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from token_models import shallow

import hwmodel as hw
from hwmodel.extraction.whatif.recipes import EncoderRule, Recipe
from hwmodel.extraction.zoo import fused_attention
from hwmodel.pruning.tokens import merge_tokens, patch_dropout, threshold_tokens, topk_tokens

TINY = "deit_tiny_patch16_224"
DEVICES = ("a100-40gb", "agx-orin-64gb", "vita", "tpu-v3", "host-cpu")
Wrap = Callable[[torch.nn.Module], torch.nn.Module]


@cache
def dense(name: str = TINY, batch: int = 1, fused: bool = True) -> hw.Trace:
    with fused_attention(fused):
        return hw.trace(shallow(name), batch=batch).replace(model=name)


def recipe(*rules: dict[str, Any], model: str = TINY) -> Recipe:
    return Recipe(model=model, source="a test", encoder=[EncoderRule(**rule) for rule in rules])


def rows(trace: hw.Trace) -> list[hw.Operator]:
    return [operator.replace(dense_macs=None) for operator in trace.operators]


def assert_same(wrapped: hw.Trace, by_recipe: hw.Trace) -> None:
    assert rows(wrapped) == rows(by_recipe)
    assert wrapped.edges == by_recipe.edges
    assert wrapped.macs == by_recipe.kept_macs


CASES: dict[str, tuple[Wrap, list[dict[str, Any]]]] = {
    "top-k": (lambda model: topk_tokens(model, {1: 0.7, 3: 0.7}), [{"blocks": "1,3", "keep": 0.7, "select": "attention"}]),
    "top-k with a fused token": (
        lambda model: topk_tokens(model, {1: 0.7, 3: 0.7}, fused=True),
        [
            {"blocks": "1", "tokens": 138, "select": "attention", "fused": True},  # ceil(0.7 * 196)
            {"blocks": "3", "tokens": 98, "select": "attention", "fused": True},  # ceil(0.7 * 139)
        ],
    ),
    "merging": (lambda model: merge_tokens(model, 60), [{"blocks": "0-3", "merge": 60}]),  # 196, 136, 76 (so 38), 38 (so 19)
    "merging here and there": (
        lambda model: merge_tokens(model, [0, 5, 0, 98 - 3]),
        [{"blocks": "1", "merge": 5}, {"blocks": "3", "merge": 98 - 3}],
    ),
}


@pytest.mark.parametrize(("case", "batch"), list(zip(CASES, [1, 3, 3, 1], strict=True)))
def test_a_recipe_is_the_wrapped_model(case: str, batch: int) -> None:
    wrap, rules = CASES[case]
    wrapped, by_recipe = hw.trace(wrap(shallow(TINY)), batch=batch), hw.prune(dense(batch=batch), recipe(*rules))
    assert_same(wrapped, by_recipe)
    assert by_recipe.macs == dense(batch=batch).macs
    for device in DEVICES:
        real, told = hw.estimate(wrapped, device=device), hw.estimate(by_recipe, device=device)
        assert (real.latency_s, real.energy_j) == (told.latency_s, told.energy_j)


@pytest.mark.parametrize(
    ("name", "case"),
    [
        ("deit3_small_patch16_224", "top-k with a fused token"),  # LayerScale
        ("deit3_small_patch16_224", "merging"),
        ("deit_tiny_distilled_patch16_224", "top-k with a fused token"),  # two prefix tokens
        ("deit_tiny_distilled_patch16_224", "merging"),
        ("vit_wee_patch16_reg1_gap_256", "merging"),  # a register and no class token, queries and keys normalised
    ],
)
def test_other_vits(name: str, case: str) -> None:
    wrap, rules = CASES[case]
    assert_same(hw.trace(wrap(shallow(name))), hw.prune(dense(name), recipe(*rules, model=name)))


@pytest.mark.parametrize("case", ["top-k", "merging"])
def test_attention_that_was_never_fused(case: str) -> None:
    wrap, rules = CASES[case]
    with fused_attention(False):
        model = shallow(TINY)
    assert_same(hw.trace(wrap(model)), hw.prune(dense(fused=False), recipe(*rules)))


def test_fewer_heads_are_scored_too() -> None:
    """Heads go first, so the scores are averaged over those left: 1 of 3 here, 64 wide."""
    both = hw.prune(dense(), recipe({"blocks": "3", "heads": 1, "keep": 0.5, "select": "attention"}))
    assert both["blocks.3.select.mean"].elements == 1 * 196
    assert both["blocks.3.attn.mul"].elements == 1 * 197 * 64
    assert both["blocks.3.mlp.fc1"].m == 1 + 98


def test_patch_dropout_is_a_gather_ahead_of_the_first_block() -> None:
    """Only the name and the block of that row differ: the module runs it outside the blocks."""
    wrapped = hw.trace(patch_dropout(shallow(TINY), 0.5), batch=2)
    by_recipe = hw.prune(dense(batch=2), recipe({"blocks": "0", "keep": 0.5}))
    renamed = [
        row.replace(name="patch_drop", block=None) if row.name == "blocks.0.token_gather" else row for row in rows(by_recipe)
    ]
    assert rows(wrapped) == renamed
    assert wrapped.edges == by_recipe.edges
    gather = wrapped["patch_drop"]
    assert (gather.kind, gather.elements, gather.input_elements) == ("gather", 2 * 99 * 192, 2 * 99 * 192 + 99)


def test_the_scoring_is_charged() -> None:
    """DeiT-T: 3 heads of 64, 196 patches, 98 pairs of candidates, 8 of them merged."""
    merged = hw.prune(dense(), recipe({"blocks": "2", "merge": 8}))
    match = merged["blocks.2.merge.matmul"]
    assert (match.batch, match.m, match.k, match.n) == (1, 98, 64, 98)
    assert (match.macs, match.kept_macs) == (0, 98 * 64 * 98)  # no part of the dense model, executed by the merged one
    assert merged["blocks.2.mlp.fc1"].m == merged["blocks.3.attn.qkv"].m == 197 - 8
    assert merged["blocks.2.attn.qkv"].m == 197
    assert merged["blocks.3.attn.add"].elements == 3 * 189 * 189
    scored = hw.prune(dense(), recipe({"blocks": "2", "keep": 0.5, "select": "attention"}))
    assert [row.kind for row in scored.operators if ".select." in row.name] == ["mean", "topk", "gather", "concat"]
    assert not scored["blocks.2.attn.softmax"].fused_in_source
    assert scored["blocks.3.attn.softmax"].fused_in_source


def test_keeping_every_token_changes_nothing() -> None:
    for rule in ({"keep": 1.0, "select": "attention"}, {"tokens": 196, "select": "attention"}, {"keep": 1.0}):
        assert hw.prune(dense(), recipe({"blocks": "3", **rule})).operators == dense().operators


@pytest.mark.parametrize(
    ("rules", "reason"),
    [
        (
            [{"blocks": "3", "tokens": 197, "select": "attention"}],
            "encoder.0.tokens: block 3 asks for 197 patch tokens, but the model",
        ),
        ([{"blocks": "1", "tokens": 9}, {"blocks": "2", "merge": 2}], "encoder.1.merge: a recipe that merges tokens cannot drop"),
        (
            [{"blocks": "1", "tokens": {"values": [9, 12], "probability": [0.5, 0.5]}}],
            "encoder.0.tokens: block 1 keeps as many as the image asks for: price it with hwmodel estimate or hw.prune_family",
        ),
    ],
)
def test_recipes_that_do_not_fit(rules: list[dict[str, Any]], reason: str) -> None:
    with pytest.raises(hw.HwmodelError) as refusal:
        hw.prune(dense(), recipe(*rules))
    assert reason in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_scores_need_a_class_token() -> None:
    name = "vit_base_patch16_siglip_224"
    with pytest.raises(hw.HwmodelError, match="block 3 is scored by the class token's attention, but the model has no class token"):
        hw.prune(dense(name), recipe({"blocks": "3", "keep": 0.5, "select": "attention"}, model=name))


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("tokens = {values = [9, 12], probability = [0.5, 0.4]}", "encoder.0.tokens: probabilities must sum to 1, found 0.9"),
        ("tokens = {values = [9, 12], probability = [1.0]}", "one probability per row of counts, found 2 and 1"),
        ("tokens = {values = [0, 12], probability = [0.5, 0.5]}", "token counts must be whole numbers of at least 1, found 0"),
        ("tokens = {values = [9], probabilities = [1.0]}", "unknown key 'probabilities'; did you mean 'probability'"),
        ("tokens = {values = 9, probability = 1.0}", "needs values = [counts] and probability = [one per count]"),
        ("tokens = 0", "expected a count of at least 1, or {values = [...], probability = [...]}, found 0"),
        ("tokens = 9\nmerge = 2", "merge and tokens (or keep) exclude each other"),
        ("tokens = 9\nfused = true", 'fused adds a token for those that select = "attention" drops'),
        ('select = "attention"', "select says how tokens are chosen; there is no tokens or keep"),
        ('tokens = 9\nselect = "random"', "encoder.0.select: expected 'given', 'attention' or 'threshold', found 'random'"),
        ("merge = 0", "encoder.0.merge: expected greater than or equal to 1, found 0"),
        (
            'tokens = {values = [9], probability = [1.0]}\nselect = "attention"',
            'select = "attention" keeps a fixed count; a distribution needs "threshold" or "given"',
        ),
    ],
)
def test_recipe_files_that_contradict_themselves(line: str, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.toml"
    path.write_text(f'schema_version = 1\nmodel = "m"\nsource = "s"\n[[encoder]]\nblocks = "3"\n{line}\n')
    with pytest.raises(hw.HwmodelError) as refusal:
        hw.load_recipe(path)
    assert reason in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_token_rules_are_saved_and_loaded_back_equal(tmp_path: Path) -> None:
    spread = {"values": [9, 12, 9], "probability": [0.25, 0.25, 0.5]}
    saved = recipe(
        {"blocks": "1", "tokens": spread, "select": "threshold"},
        {"blocks": "2", "tokens": {**spread, "independent": True}},
        {"blocks": "3", "keep": 0.5, "select": "attention", "fused": True},
    )
    hw.save_recipe(saved, tmp_path / "saved.toml")
    assert hw.load_recipe(tmp_path / "saved.toml") == saved
    merging = recipe({"blocks": "1-3", "merge": 4})
    hw.save_recipe(merging, tmp_path / "merging.toml")
    assert hw.load_recipe(tmp_path / "merging.toml") == merging


def test_data_dependent_models_are_told_what_to_do() -> None:
    with pytest.raises(hw.HwmodelError, match=r"module 'blocks\.3\.select' depends on the data .*hw\.trace_family"):
        hw.trace(threshold_tokens(shallow(TINY), {3: 1.0}))
