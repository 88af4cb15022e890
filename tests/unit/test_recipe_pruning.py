"""Recipes on a trace: structure first, then blocks; what is refused, and what an operator of the pruned model looks like."""

from functools import cache

import numpy as np
import pytest

import hwmodel as hw
from hwmodel.errors import RecipeError, UnknownNameError
from hwmodel.extraction.whatif.pruning import prune
from hwmodel.extraction.whatif.recipes import EncoderRule, LayerRule, Recipe
from hwmodel.ir.masks import BlockMask, ExpectedMask, expected_mask

TINY = "deit_tiny_patch16_224"  # 12 blocks, width 192, 3 heads of 64, MLP 768, 196 patches and a class token


@cache
def tiny(batch: int = 1) -> hw.Trace:
    return hw.trace(TINY, batch=batch)


def recipe(*encoder: dict, layers: tuple[dict, ...] = (), **fields: object) -> Recipe:
    rules = [EncoderRule(**rule) for rule in encoder]
    return Recipe(model=TINY, source="a test", encoder=rules, layers=[LayerRule(**rule) for rule in layers], **fields)


def refusal(trace: hw.Trace, what: object) -> str:
    with pytest.raises(RecipeError) as error:
        prune(trace, what)
    assert "\n" not in str(error.value)
    return str(error.value)


# ---------------------------------------------------------------- blocks of weights


def test_a_density_becomes_an_expected_mask_on_matched_weights_only() -> None:
    dense = tiny()
    pruned = prune(dense, {"blocks.*.mlp.fc?": {"block": (64, 64), "density": 0.2}})
    assert pruned["blocks.3.mlp.fc1"].mask == ExpectedMask((768, 192), (64, 64), 7)  # round(0.2 * 12 * 3 = 7.2)
    changed = [new.name for old, new in zip(dense.operators, pruned.operators, strict=True) if new is not old]
    assert changed == [f"blocks.{block}.mlp.fc{layer}" for block in range(12) for layer in (1, 2)]
    assert pruned.macs == dense.macs
    assert pruned.kept_macs == dense.macs - 24 * 197 * 192 * 768 * (1 - 7 / 36)


def test_a_mask_changes_no_shape() -> None:
    before = tiny()["blocks.3.mlp.fc1"]
    after = prune(tiny(), {before.name: {"block": (64, 64), "density": 0.2}})[before.name]
    assert after.replace(mask=None) == before


def test_a_stored_mask_is_taken_as_it_is() -> None:
    mask = BlockMask((1000, 192), (32, 32), np.arange(32 * 6).reshape(32, 6) % 3 == 0)
    assert prune(tiny(), {"head": mask})["head"].mask is mask
    full = BlockMask.full((1000, 192), (32, 32))
    assert prune(tiny(), {"head": {"mask": full}})["head"].mask is full


def test_an_expected_mask_may_be_handed_over_too() -> None:
    mask = expected_mask((1000, 192), (32, 32), 0.5)
    assert prune(tiny(), {"head": mask})["head"].mask == mask


def test_expect_says_how_blocks_lie() -> None:
    fields = {"block": (64, 64), "density": 0.5}
    clustered = prune(tiny(), {"head": fields | {"expect": "row-clustered"}})["head"].mask
    assert clustered == expected_mask((1000, 192), (64, 64), 0.5, "row-clustered")
    assert clustered != prune(tiny(), {"head": fields})["head"].mask


def test_equal_expectations_are_one_object() -> None:
    pruned = prune(tiny(), {"blocks.*.attn.qkv": {"block": (64, 64), "density": 0.5}})
    assert len({id(pruned[f"blocks.{block}.attn.qkv"].mask) for block in range(12)}) == 1


def test_density_one_is_the_dense_operator() -> None:
    assert prune(tiny(), {"blocks.*.mlp.fc?": {"block": (64, 64), "density": 1}}) == tiny()


def test_later_entries_win_field_by_field() -> None:
    both = prune(
        tiny(),
        recipe(
            layers=(
                {"match": ["blocks.*.mlp.fc?"], "block": (64, 64), "density": 0.2, "dtype": "fp16"},
                {"match": ["blocks.3.mlp.fc1"], "block": (32, 32), "density": 0.5},
                {"match": ["blocks.4.*"], "dtype": "int8"},
                {"match": ["blocks.5.mlp.fc1"], "block": (64, 64), "density": 1},
            )
        ),
    )
    assert both["blocks.3.mlp.fc1"].mask == ExpectedMask((768, 192), (32, 32), 72)  # 0.5 * 24 * 6
    assert both["blocks.3.mlp.fc1"].dtype == "fp16"
    assert both["blocks.4.mlp.fc1"].mask == ExpectedMask((768, 192), (64, 64), 7)
    assert both["blocks.4.mlp.fc1"].dtype == both["blocks.4.norm1"].dtype == "int8"
    assert both["blocks.5.mlp.fc1"].mask is None


def test_an_overridden_block_need_not_fit() -> None:
    layers = (
        {"match": ["head", "patch_embed.proj"], "block": (512, 64), "density": 0.5},
        {"match": ["patch_embed.proj"], "block": (64, 64), "density": 0.5},
    )
    assert prune(tiny(), recipe(layers=layers))["patch_embed.proj"].mask.block == (64, 64)


def test_a_second_recipe_replaces_masks() -> None:
    once = prune(tiny(), {"head": {"block": (32, 32), "density": 0.5}})
    assert prune(once, {"head": {"block": (32, 32), "density": 1}}) == tiny()


def test_a_format_replaces_that_of_the_weights() -> None:
    operators = tuple(op.replace(weight_dtype="fp32") if op.name == "head" else op for op in tiny().operators)
    head = prune(tiny().replace(operators=operators), {"head": {"dtype": "int8"}})["head"]
    assert (head.dtype, head.weight_dtype) == ("int8", None)


@pytest.mark.parametrize(
    ("mapping", "expected"),
    [
        (
            {"blocks.*.mlp.fcx": {"block": (8, 8), "density": 0.5}},
            "layers.0.match: 'blocks.*.mlp.fcx' matches no operator; did you mean 'blocks.",
        ),
        (
            {"blocks.*.mlp.*": {"block": (8, 8), "density": 0.5}},
            "no blocks can be pruned of blocks.0.mlp.act (gelu), blocks.1.mlp.act",
        ),
        (
            {"*.scores": {"block": (8, 8), "density": 0.5}},
            "(matmul), blocks.1.attn.scores (matmul), blocks.2.attn.scores (matmul) and 9 more",
        ),
        (
            {"head": {"block": (2048, 8), "density": 0.5}},
            "layers.0: head: a block of 2048x8 does not fit a weight of 1000x192 (out x in)",
        ),
        (
            {"head": BlockMask.full((192, 192), (8, 8))},
            "layers.0: head: the mask is for a weight of 192x192, the operator has 1000x192 (out x in)",
        ),
        ({"head": {"block": (8, 8), "density": 1.5}}, "recipe: head.density: expected less than or equal to 1, found 1.5"),
        ({"head": {"block": (8, 8), "dense": 0.5}}, "recipe: head.dense: unknown key; did you mean 'density'"),
        ({"head": 0.5}, "head: expected a mask, or a mapping with block, density, mask, expect, dtype; found 0.5"),
        ({"head": {"match": ["x"], "dtype": "int8"}}, "head: expected a mask, or a mapping"),
        ({"head": {"mask": "masks.npz#head"}}, "expected a BlockMask"),
    ],
)
def test_layers_that_do_not_fit(mapping: dict, expected: str) -> None:
    assert expected in refusal(tiny(), mapping)


def test_a_grouped_layer_has_no_single_weight() -> None:
    trace = hw.Trace.from_operators([hw.matmul(m=4, k=8, n=8, batch=3, parameter=True, name="grouped")])
    assert "no blocks can be pruned of grouped" in refusal(trace, {"grouped": {"block": (4, 4), "density": 0.5}})


def test_recipe_and_trace_must_be_of_one_model() -> None:
    other = Recipe(model="deit_small_patch16_224", source="s")
    assert refusal(tiny(), other) == f"recipe: model: the recipe prunes 'deit_small_patch16_224', the trace is of {TINY!r}"
    tagged = tiny().replace(model=f"{TINY}.fb_in1k")
    assert prune(tagged, recipe()) == tagged


def test_image_size_is_checked() -> None:
    assert "trace the model with image_size=768" in refusal(tiny(), recipe(image_size=768))
    assert prune(tiny(), recipe(image_size=224)) == tiny()
    by_hand = tiny().replace(input_shape=())
    assert prune(by_hand, recipe(image_size=768)) == by_hand


def test_design_points_are_added() -> None:
    trace = tiny().replace(design={"vita": {"pe": "8x8", "other": "1"}, "tpu": {"x": "y"}})
    assert prune(trace, recipe(vita={"pe": "16x32"})).design == {"vita": {"pe": "16x32", "other": "1"}, "tpu": {"x": "y"}}


def test_a_path_or_a_shipped_name_will_do(tmp_path) -> None:
    hw.save_recipe(recipe({"blocks": "0", "heads": 1}), tmp_path / "mine.toml")
    assert (
        prune(tiny(), tmp_path / "mine.toml")
        == prune(tiny(), str(tmp_path / "mine.toml"))
        == prune(tiny(), recipe({"blocks": "0", "heads": 1}))
    )
    assert prune(tiny(), "deit_tiny_lsp_b16x16")["head"].mask.block == (16, 16)
    assert "deit_small_lsp_b16x16.toml: model: the recipe prunes" in refusal(tiny(), "deit_small_lsp_b16x16")
    with pytest.raises(UnknownNameError):
        prune(tiny(), "deit_tiny_lsp")


# ---------------------------------------------------------------- heads and MLPs


@pytest.mark.parametrize("heads", [2, [0, 2]])
def test_heads_shrink_attention_and_both_projections(heads: object) -> None:
    dense, pruned = tiny(2), prune(tiny(2), recipe({"blocks": "3", "heads": heads}))
    shapes = {
        name: (op.batch, op.m, op.k, op.n)
        for name in ("qkv", "scores", "context", "proj")
        for op in [pruned[f"blocks.3.attn.{name}"]]
    }
    assert shapes == {
        "qkv": (1, 2 * 197, 192, 3 * 2 * 64),
        "scores": (2 * 2, 197, 64, 197),
        "context": (2 * 2, 197, 197, 64),
        "proj": (1, 2 * 197, 2 * 64, 192),
    }
    assert pruned["blocks.3.attn.softmax"].elements == 2 * 2 * 197 * 197
    assert pruned["blocks.3.attn.softmax"].cols == 197
    assert pruned["blocks.3.attn.qkv"].weight_elements == 192 * 384 + 384
    assert pruned["blocks.3.attn.proj"].weight_elements == 128 * 192 + 192
    assert pruned["blocks.3.attn.qkv"].output_elements == 2 * 197 * 384
    assert pruned["blocks.3.attn.context"].input_elements == 2 * 2 * (197 * 197 + 197 * 64)
    assert pruned["blocks.3.attn.qkv"].dense_macs == 2 * 197 * 192 * 576
    per_head = 2 * (197 * 192 * 3 * 64 + 2 * 197 * 197 * 64 + 197 * 64 * 192)
    assert dense.macs - pruned.kept_macs == per_head
    assert pruned.macs == dense.macs
    assert pruned.edges == dense.edges


def test_only_the_blocks_named_change() -> None:
    pruned = prune(tiny(), recipe({"blocks": "1,4-5", "heads": 1, "mlp": 100}))
    after = {operator.name: operator for operator in pruned.operators}
    changed = [operator for operator in tiny().operators if after.get(operator.name) != operator]
    assert {operator.block for operator in changed} == {1, 4, 5}
    gone = {operator.name for operator in changed} - after.keys()
    assert gone == {f"blocks.{block}.attn.copy" for block in (1, 4, 5)}  # one head has no others to be laid beside


def test_mlp_width() -> None:
    pruned = prune(tiny(), recipe({"blocks": "0-11", "mlp": 500}))
    assert tiny().macs - pruned.kept_macs == 12 * 2 * 197 * 192 * (768 - 500)
    assert pruned["blocks.7.mlp.act"].elements == pruned["blocks.7.mlp.act"].input_elements == 197 * 500
    assert pruned["blocks.7.mlp.fc1"].weight_elements == 192 * 500 + 500
    assert pruned["blocks.7.mlp.fc2"].weight_elements == 500 * 192 + 192


def test_later_entries_win_for_each_sort_of_structure() -> None:
    pruned = prune(
        tiny(), recipe({"blocks": "0-3", "heads": 1, "mlp": 500}, {"blocks": "3", "mlp": 600}, {"blocks": "2", "heads": 3})
    )
    assert pruned["blocks.3.mlp.fc2"].k == 600
    assert pruned["blocks.3.attn.proj"].k == 64
    assert pruned["blocks.2.attn.proj"] is tiny()["blocks.2.attn.proj"]


def test_blocks_are_pruned_of_what_structure_leaves() -> None:
    layers = ({"match": ["blocks.3.mlp.fc?"], "block": (64, 64), "density": 0.5},)
    pruned = prune(tiny(), recipe({"blocks": "3", "mlp": 256}, layers=layers))
    assert pruned["blocks.3.mlp.fc1"].mask == ExpectedMask((256, 192), (64, 64), 6)  # half of 4 x 3
    assert pruned["blocks.3.mlp.fc1"].kept_macs == 197 * 192 * 256 / 2
    assert pruned["blocks.3.mlp.fc1"].macs == 197 * 192 * 768


def test_weights_with_masks_keep_their_shape() -> None:
    once = prune(tiny(), {"blocks.0.mlp.fc1": {"block": (64, 64), "density": 0.5}})
    assert "encoder.0.mlp: block 0: blocks.0.mlp.fc1 carries a block mask already" in refusal(
        once, recipe({"blocks": "0", "mlp": 64})
    )


def test_gated_mlps_narrow_both_first_layers() -> None:
    rows = [hw.matmul(m=8, k=4, n=6, name=f"mlp.{name}", role="fc1", block=0) for name in ("gate", "up")]
    rows += [hw.elementwise("mul", elements=8 * 6, inputs=2, name="mlp.mul", block=0)]
    rows += [hw.layernorm(rows=8, cols=6, name="mlp.norm", block=0), hw.matmul(m=8, k=6, n=4, name="mlp.down", role="fc2", block=0)]
    pruned = prune(hw.Trace.from_operators(rows, model=TINY), recipe({"blocks": "0", "mlp": 2}))
    assert [op.n for op in pruned.operators[:2]] == [2, 2]
    assert (pruned["mlp.mul"].input_elements, pruned["mlp.mul"].elements) == (2 * 8 * 2, 8 * 2)
    assert (pruned["mlp.norm"].cols, pruned["mlp.norm"].elements, pruned["mlp.norm"].weight_elements) == (2, 8 * 2, 2 * 2)


def without(role: str) -> hw.Trace:
    operators = tuple(op.replace(role="") if op.role == role else op for op in tiny().operators)
    return tiny().replace(operators=operators)


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ({"blocks": "11-12", "heads": 1}, "encoder.0.blocks: found block 12, but the trace has blocks 0-11"),
        ({"blocks": "0", "heads": 4}, "encoder.0.heads: block 0: found 4, but the block has 3 heads (0-2)"),
        ({"blocks": "0", "heads": [0, 3]}, "encoder.0.heads: block 0: found (0, 3), but the block has 3 heads (0-2)"),
        ({"blocks": "0", "mlp": 769}, "encoder.0.mlp: block 0: found 769, but the hidden width of the block is 768"),
        ({"blocks": "4", "tokens": 197}, "encoder.0.tokens: block 4 asks for 197 patch tokens, but the model has 196"),
    ],
)
def test_structure_the_model_does_not_have(rule: dict, expected: str) -> None:
    assert expected in refusal(tiny(), recipe(rule))


@pytest.mark.parametrize(
    ("role", "rule", "expected"),
    [
        ("scores", {"heads": 1}, "expected one operator with role 'scores', found none"),
        ("qkv", {"heads": 1}, "expected an operator with role 'qkv', found none"),
        ("fc2", {"mlp": 1}, "expected one operator with role 'fc2', found none"),
        ("fc1", {"mlp": 1}, "expected operators with role 'fc1'"),
        ("patch_embed", {"tokens": 1}, "no operator has the role 'patch_embed'"),
        ("scores", {"keep": 0.5}, "encoder.0.keep: no attention scores in the encoder blocks"),
    ],
)
def test_roles_that_are_missing(role: str, rule: dict, expected: str) -> None:
    assert expected in refusal(without(role), recipe({"blocks": "0"} | rule))


def test_one_whole_attention_has_no_heads_to_tell_apart() -> None:
    rows = [hw.attention(batch=1, heads=3, queries=5, keys=5, head_dim=4, name="attn", block=0)]
    trace = hw.Trace.from_operators(rows, model=TINY)
    assert "(attention is one whole operator here)" in refusal(trace, recipe({"blocks": "0", "heads": 1}))


def test_a_product_in_between_is_refused() -> None:
    operators = [op.replace(role="") if op.name == "blocks.0.attn.qkv" else op for op in tiny().operators]
    row = [op.name for op in operators].index("blocks.0.attn.context")
    operators.insert(row, hw.matmul(m=197 * 197, k=3, n=3, name="blocks.0.attn.talk", block=0))
    trace = tiny().replace(
        operators=tuple(op.replace(role="qkv") if op.name == "blocks.0.attn.qkv" else op for op in operators), edges=()
    )
    assert "blocks.0.attn.talk: a matmul that mixes channels here cannot be narrowed" in refusal(
        trace, recipe({"blocks": "0", "heads": 1})
    )


def test_widths_that_share_no_number_of_heads() -> None:
    operators = tuple(op.replace(n=575) if op.name == "blocks.0.attn.qkv" else op for op in tiny().operators)
    assert "blocks.0.attn.qkv gives 575 values, 3 heads take 576" in refusal(
        tiny().replace(operators=operators), recipe({"blocks": "0", "heads": 1})
    )


# ---------------------------------------------------------------- tokens


def test_tokens_leave_and_never_come_back() -> None:
    dense, pruned = tiny(2), prune(tiny(2), recipe({"blocks": "4-5", "tokens": 120}))
    assert [op.name for op in pruned.operators if op.kind == "gather"] == ["blocks.4.token_gather"]
    gather = pruned["blocks.4.token_gather"]
    assert gather.elements == gather.output_elements == 2 * 121 * 192
    assert gather.input_elements == 2 * 121 * 192 + 121  # one index serves both images
    assert gather.block == 4
    for block, tokens in ((3, 197), (4, 121), (11, 121)):
        assert pruned[f"blocks.{block}.attn.qkv"].m == 2 * tokens
        assert (pruned[f"blocks.{block}.attn.scores"].m, pruned[f"blocks.{block}.attn.scores"].n) == (tokens, tokens)
        assert (pruned[f"blocks.{block}.attn.context"].m, pruned[f"blocks.{block}.attn.context"].k) == (tokens, tokens)
        assert pruned[f"blocks.{block}.attn.softmax"].elements == 2 * 3 * tokens**2
        assert pruned[f"blocks.{block}.attn.softmax"].cols == tokens
        assert pruned[f"blocks.{block}.norm1"].elements == 2 * tokens * 192
        assert pruned[f"blocks.{block}.norm1"].weight_elements == 2 * 192
        assert pruned[f"blocks.{block}.add"].input_elements == 2 * 2 * tokens * 192
        assert pruned[f"blocks.{block}.mlp.act"].elements == 2 * tokens * 768
    assert pruned["norm"].elements == 2 * 121 * 192
    assert pruned["head"] is dense["head"]
    linear = 12 * 192 * 192  # qkv 3, proj 1, fc1 4, fc2 4 times the width squared
    assert dense.macs - pruned.kept_macs == 8 * 2 * (linear * (197 - 121) + 2 * 192 * (197**2 - 121**2))
    assert pruned.macs == dense.macs


def test_edges_go_through_the_gather() -> None:
    dense, pruned = tiny(), prune(tiny(), recipe({"blocks": "4", "keep": 0.5}, {"blocks": "8-11", "keep": 0.25}))
    graph = pruned.graph()
    assert set(graph.predecessors("blocks.4.token_gather")) == {"blocks.3.add_1"}
    assert set(graph.successors("blocks.4.token_gather")) == {"blocks.4.norm1", "blocks.4.add"}
    assert set(graph.predecessors("blocks.8.token_gather")) == {"blocks.7.add_1"}
    for name in ("blocks.4.token_gather", "blocks.8.token_gather"):
        (before,) = graph.predecessors(name)
        graph.add_edges_from([(before, after) for after in graph.successors(name)])
        graph.remove_node(name)
    assert set(graph.edges) == set(dense.graph().edges)
    assert (pruned["blocks.4.attn.qkv"].m, pruned["blocks.8.attn.qkv"].m) == (1 + 98, 1 + 49)


def test_constants_reach_over_a_gather() -> None:
    operators = [op.replace(constant=True) if op.name == "patch_embed.proj" else op for op in tiny().operators]
    edges = (*tiny().edges, (0, 60))
    pruned = prune(tiny().replace(operators=tuple(operators), edges=edges), recipe({"blocks": "0", "tokens": 9}))
    assert pruned.graph().has_edge("patch_embed.proj", operators[60].name)


def test_tokens_from_the_first_block() -> None:
    pruned = prune(
        tiny(), recipe({"blocks": "0-11", "tokens": 196}, {"blocks": "0", "tokens": 100}, {"blocks": "1-11", "tokens": 100})
    )
    assert [op.kind for op in pruned.operators][:4] == ["conv", "concat", "add", "gather"]
    assert sum(op.kind == "gather" for op in pruned.operators) == 1


def test_tokens_cannot_rise() -> None:
    message = refusal(tiny(), recipe({"blocks": "4", "tokens": 120}, {"blocks": "7", "tokens": 150}))
    assert (
        "encoder.1.tokens: block 7 asks for 150 patch tokens, but dropped tokens never come back and block 4 leaves 120" in message
    )


def test_tokens_are_dropped_once() -> None:
    once = prune(tiny(), recipe({"blocks": "4", "tokens": 120}))
    assert "blocks see different numbers of tokens (121, 197)" in refusal(once, recipe({"blocks": "6", "tokens": 100}))


def test_everything_kept_is_the_dense_trace() -> None:
    everything = recipe(
        {"blocks": "0-11", "heads": [0, 1, 2], "mlp": 768, "tokens": 196},
        {"blocks": "2-3", "heads": 3, "keep": 1.0},
        layers=({"match": ["blocks.*.mlp.fc?"], "block": (64, 64), "density": 1.0},),
    )
    pruned = prune(tiny(), everything)
    assert pruned == tiny()
    assert all(new is old for new, old in zip(pruned.operators, tiny().operators, strict=True))


def test_blocks_that_cannot_be_read_refuse_tokens() -> None:
    names = [op.name for op in tiny().operators]
    odd = list(tiny().operators)
    odd[names.index("blocks.5.add")] = odd[names.index("blocks.5.add")].replace(elements=1000)
    assert "blocks.5.add: 1000 values are no multiple of the 197 tokens" in refusal(
        tiny().replace(operators=tuple(odd)), recipe({"blocks": "4", "tokens": 9})
    )
    odd = list(tiny().operators)
    odd[names.index("blocks.5.mlp.fc1")] = odd[names.index("blocks.5.mlp.fc1")].replace(m=50)
    assert "blocks.5.mlp.fc1: has 50 rows, expected 1 x 197 tokens" in refusal(
        tiny().replace(operators=tuple(odd)), recipe({"blocks": "4", "tokens": 9})
    )


def test_parameters_shrink_with_the_tokens_unless_all_tokens_share_them() -> None:
    """Four patches of width 8, so that the width is a multiple of the tokens; two heads of 4."""
    rows = [
        hw.matmul(m=4, k=12, n=8, name="embed", role="patch_embed"),
        hw.matmul(m=4, k=8, n=24, name="b.qkv", role="qkv", block=0),
        hw.elementwise("mul", elements=2 * 4 * 4, name="b.rotary", block=0).replace(weight_elements=4 * 4),
        hw.matmul(batch=2, m=4, k=4, n=4, name="b.scores", role="scores", block=0),
        hw.elementwise("add", elements=2 * 4 * 4, name="b.bias", block=0).replace(weight_elements=2 * 4 * 4),
        hw.softmax(rows=2 * 4, cols=4, name="b.softmax", block=0),
        hw.matmul(batch=2, m=4, k=4, n=4, name="b.context", role="context", block=0),
        hw.elementwise("mul", elements=4 * 8, name="b.scale", block=0).replace(weight_elements=8),
        hw.layernorm(rows=4, cols=8, name="norm"),
        hw.matmul(m=4, k=8, n=5, name="decoder", role="head"),
    ]
    pruned = prune(hw.Trace.from_operators(rows, model=TINY), recipe({"blocks": "0", "tokens": 3}))
    weights = {name: pruned[name].weight_elements for name in ("b.rotary", "b.bias", "b.scale", "norm")}
    assert weights == {"b.rotary": 3 * 4, "b.bias": 2 * 3 * 3, "b.scale": 8, "norm": 2 * 8}
    assert (pruned["b.scale"].elements, pruned["norm"].elements, pruned["decoder"].m) == (3 * 8, 3 * 8, 3)
    assert pruned["b.bias"].elements == 2 * 3 * 3
