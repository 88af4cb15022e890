"""Token reduction on real tensors, against plain loops written from the papers."""

from __future__ import annotations

from math import ceil

import pytest
import torch
from token_models import IMAGES, small_vit

import hwmodel as hw
from hwmodel.pruning import token_modules
from hwmodel.pruning.tokens import measured_tokens, merge_tokens, patch_dropout, threshold_tokens, topk_tokens


def run(model: torch.nn.Module, images: torch.Tensor = IMAGES) -> torch.Tensor:
    with torch.no_grad():
        return model(images)


def attention_of(attn: torch.nn.Module, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Softmax weights (heads, tokens, tokens) and keys (heads, tokens, depth) of one image, by hand."""
    tokens, _ = y.shape
    q, k, _ = attn.qkv(y).reshape(tokens, 3, attn.num_heads, attn.head_dim).permute(1, 2, 0, 3)
    q, k = attn.q_norm(q), attn.k_norm(k)
    return torch.stack([torch.softmax(q[h] @ k[h].T / attn.head_dim**0.5, dim=-1) for h in range(attn.num_heads)]), k


def topk_loop(model: torch.nn.Module, image: torch.Tensor, keeps: dict[int, float], fused: bool) -> torch.Tensor:
    """Class scores of one image, token by token."""
    x = model._pos_embed(model.patch_embed(image[None]))[0]
    for number, block in enumerate(model.blocks):
        weights, _ = attention_of(block.attn, block.norm1(x))
        x = x + block.ls1(block.attn(block.norm1(x)[None])[0])
        if keeps.get(number, 1) < 1:
            scores = weights[:, 0, 1:].mean(0).tolist()
            order = sorted(range(len(scores)), key=lambda token: -scores[token])
            kept = order[: ceil(keeps[number] * len(scores))]
            rest = [scores[token] * x[1 + token] for token in order[len(kept) :]]
            x = torch.stack([x[0], *(x[1 + token] for token in kept), *([sum(rest)] if fused else [])])
        x = x + block.ls2(block.mlp(block.norm2(x)))
    return model.forward_head(model.norm(x)[None])[0]


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("options", [{}, {"init_values": 0.5, "qk_norm": True}], ids=["plain", "scaled"])
def test_topk_is_the_loop(fused: bool, options: dict) -> None:
    model, keeps = small_vit(**options), {1: 0.6, 2: 0.5}
    expected = torch.stack([topk_loop(model, image, keeps, fused) for image in IMAGES])
    with torch.no_grad():
        torch.testing.assert_close(run(topk_tokens(model, keeps, fused=fused)), expected.detach())
    assert not torch.allclose(run(model), expected, atol=1e-3)


def test_topk_that_keeps_everything_is_the_model_itself() -> None:
    model = small_vit()
    assert torch.equal(run(topk_tokens(model, {0: 1.0, 2: 1.0})), run(model))
    assert torch.equal(run(merge_tokens(model, 0)), run(model))
    assert torch.equal(run(patch_dropout(model, 1.0)), run(model))


def merge_loop(
    x: torch.Tensor, keys: torch.Tensor, size: torch.Tensor, pairs: int, prefix: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Bipartite soft matching of one image, pair by pair: tokens (tokens, width) and their sizes."""
    unit = torch.nn.functional.normalize(keys.mean(0), dim=-1)
    first = [token for token in range(prefix, len(x)) if token % 2 == 0]
    second = [token for token in range(prefix, len(x)) if token % 2 == 1]
    best = {a: max(second, key=lambda b, a=a: float(unit[a] @ unit[b])) for a in first}
    order = sorted(first, key=lambda a: -float(unit[a] @ unit[best[a]]))
    total, sizes = x * size[:, None], size.clone()
    for a in order[:pairs]:
        total[best[a]] += x[a] * size[a]
        sizes[best[a]] += size[a]
    left = [*range(prefix), *order[pairs:], *second]
    return torch.stack([total[token] / sizes[token] for token in left]), sizes[left]


@pytest.mark.parametrize("prefix", [0, 1, 2, 5])
@pytest.mark.parametrize("pairs", [1, 4, 6])
def test_merging_is_the_loop_and_keeps_what_it_sums(prefix: int, pairs: int) -> None:
    draw = torch.Generator().manual_seed(prefix)
    tokens = prefix + 13
    x, keys = torch.randn(2, tokens, 8, generator=draw), torch.randn(2, 3, tokens, 4, generator=draw)
    size = torch.randint(1, 5, (2, tokens, 1), generator=draw).float()
    merged, sizes = token_modules.Merge(pairs, prefix)(x, keys, size)
    assert merged.shape == (2, tokens - pairs, 8)
    torch.testing.assert_close(sizes.sum(1), size.sum(1))
    torch.testing.assert_close((merged * sizes).sum(1), (x * size).sum(1))
    torch.testing.assert_close(merged[:, :prefix], x[:, :prefix])
    for image in range(2):
        expected, expected_sizes = merge_loop(x[image], keys[image], size[image, :, 0], pairs, prefix)
        torch.testing.assert_close(merged[image], expected)
        torch.testing.assert_close(sizes[image, :, 0], expected_sizes)


def merging_loop(model: torch.nn.Module, image: torch.Tensor, schedule: list[int]) -> torch.Tensor:
    """Class scores of one image with attention that counts a token by its size."""
    x = model._pos_embed(model.patch_embed(image[None]))[0]
    size = torch.ones(len(x))
    for block, pairs in zip(model.blocks, schedule, strict=True):
        y, attn = block.norm1(x), block.attn
        q, k, v = attn.qkv(y).reshape(len(x), 3, attn.num_heads, attn.head_dim).permute(1, 2, 0, 3)
        q, k = attn.q_norm(q), attn.k_norm(k)
        heads = []
        for h in range(attn.num_heads):
            raw = torch.exp(q[h] @ k[h].T / attn.head_dim**0.5) * size  # softmax of scores + log(size)
            heads.append(raw / raw.sum(1, keepdim=True) @ v[h])
        x = x + block.ls1(attn.proj(torch.cat(heads, dim=-1)))
        if pairs:
            x, size = merge_loop(x, k, size, pairs, model.num_prefix_tokens)
        x = x + block.ls2(block.mlp(block.norm2(x)))
    return model.forward_head(model.norm(x)[None])[0]


@pytest.mark.parametrize("options", [{}, {"init_values": 0.5}, {"reg_tokens": 2}, {"qk_norm": True}], ids=str)
def test_a_merging_model_is_the_loop(options: dict) -> None:
    model, schedule = small_vit(**options), [3, 0, 4, 2]
    with torch.no_grad():
        expected = torch.stack([merging_loop(model, image, schedule) for image in IMAGES])
    torch.testing.assert_close(run(merge_tokens(model, schedule)), expected, rtol=1e-4, atol=1e-5)


def test_patch_dropout_keeps_the_prefix_and_as_many_patches() -> None:
    module = patch_dropout(small_vit(reg_tokens=2), 0.55).patch_drop
    assert module.index[:3].tolist() == [0, 1, 2]
    assert len(module.index) == 3 + ceil(0.55 * 16)
    assert module.index.tolist() == sorted(set(module.index.tolist()))
    assert module.index.tolist() != patch_dropout(small_vit(reg_tokens=2), 0.55, seed=1).patch_drop.index.tolist()


def test_timms_own_patch_dropout_runs_and_is_traced_dense() -> None:
    dense = hw.trace(small_vit(), example=IMAGES[:1])
    dropping = small_vit(patch_drop_rate=0.5)
    assert torch.equal(run(dropping), run(small_vit()))
    assert hw.trace(dropping.train(), example=IMAGES[:1]).operators == dense.operators


def test_a_threshold_keeps_what_is_above_it_image_by_image() -> None:
    model, threshold = small_vit(), 1.1
    block = model.blocks[1]
    counts = []
    with torch.no_grad():
        for image in IMAGES:
            x = model.blocks[0](model._pos_embed(model.patch_embed(image[None])))[0]
            scores = attention_of(block.attn, block.norm1(x))[0][:, 0, 1:].mean(0)
            counts.append(max(1, int((scores > threshold / 16).sum())))
    found = measured_tokens(threshold_tokens(model, {1: threshold}), IMAGES)
    assert found == hw.TokenDistribution(counts, [1 / 3] * 3)
    assert len(set(counts)) > 1
    for image, count in zip(IMAGES, counts, strict=True):
        as_many = topk_tokens(model, {1: count / 16})
        torch.testing.assert_close(run(threshold_tokens(model, {1: threshold}), image[None]), run(as_many, image[None]))
    batch = topk_tokens(model, {1: max(counts) / 16})
    torch.testing.assert_close(run(threshold_tokens(model, {1: threshold})), run(batch))


def test_wrapping_shares_weights_and_leaves_the_model_alone() -> None:
    model = small_vit()
    before = run(model)
    wrapped = topk_tokens(model, {1: 0.5})
    assert wrapped.blocks[1].attn.qkv.weight is model.blocks[1].attn.qkv.weight
    assert torch.equal(run(model), before)
    assert model.blocks[1].attn.fused_attn


@pytest.mark.parametrize(
    ("wrap", "reason"),
    [
        (lambda model: topk_tokens(model, {1: 1.2}), "block 1: keep must be in (0, 1], got 1.2"),
        (lambda model: topk_tokens(model, {1: 0}), "block 1: keep must be in (0, 1], got 0"),
        (lambda model: topk_tokens(model, {4: 0.5}), "found block 4, but the model has blocks 0-3"),
        (lambda model: threshold_tokens(model, {1: -1}), "block 1: a threshold must not be negative, got -1"),
        (lambda model: merge_tokens(model, [1]), "r has 1 numbers, the model 4 blocks"),
        (lambda model: merge_tokens(model, -1), "block 0: r is -1"),
        (lambda model: patch_dropout(model, 0), "keep must be in (0, 1], got 0"),
        (lambda model: measured_tokens(model, IMAGES), "no point where the number of tokens depends on the image"),
        (lambda model: topk_tokens(torch.nn.Linear(2, 2), {0: 0.5}), "expected a timm VisionTransformer, got Linear"),
    ],
)
def test_bad_input_is_one_line(wrap: object, reason: str) -> None:
    with pytest.raises(hw.HwmodelError) as refusal:
        wrap(small_vit())
    assert reason in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_scores_need_a_class_token() -> None:
    model = small_vit(class_token=False, global_pool="avg")
    for wrap in (topk_tokens, threshold_tokens):
        with pytest.raises(hw.HwmodelError, match="VisionTransformer has no class token"):
            wrap(model, {1: 0.5})
    assert run(merge_tokens(model, 2)).shape == (3, 5)


def test_merging_takes_at_most_half_of_what_is_left() -> None:
    model = small_vit()  # 16 patch tokens: 9 asked and 8 merged, then 4, 2 and 1
    assert torch.equal(run(merge_tokens(model, 9)), run(merge_tokens(model, [8, 4, 2, 1])))
    assert not torch.equal(run(merge_tokens(model, 9)), run(merge_tokens(model, [8, 4, 1, 1])))


def test_blocks_of_another_kind_are_refused() -> None:
    from timm.models.vision_transformer import ParallelScalingBlock

    model = small_vit()
    model.blocks[0] = ParallelScalingBlock(32, 2)
    with pytest.raises(hw.HwmodelError, match="block 0 is a ParallelScalingBlock"):
        topk_tokens(model, {0: 0.5})
