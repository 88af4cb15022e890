"""Dead work: what follows from masks, and that the network without it computes the same (proved on real weights)."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import hwmodel as hw
from hwmodel.extraction.whatif.dead_work import LivingWork, unprovable
from hwmodel.ir.masks import BlockMask, Shape

WIDTH, HEADS, HIDDEN, TOKENS = 128, 4, 192, 9
DEPTH = WIDTH // HEADS


class Attention(nn.Module):
    def __init__(self, heads: int, *, qkv_bias: bool = True, proj_bias: bool = True, norm: bool = False) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(WIDTH, 3 * heads * DEPTH, bias=qkv_bias)
        self.norm = nn.LayerNorm(heads * DEPTH) if norm else nn.Identity()
        self.proj = nn.Linear(heads * DEPTH, WIDTH, bias=proj_bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        images, tokens, _ = x.shape
        q, k, v = self.qkv(x).reshape(images, tokens, 3, self.heads, DEPTH).permute(2, 0, 3, 1, 4).unbind(0)
        mixed = torch.nn.functional.scaled_dot_product_attention(q, k, v)
        return self.proj(self.norm(mixed.transpose(1, 2).reshape(images, tokens, self.heads * DEPTH)))


class Mlp(nn.Module):
    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.fc1, self.act, self.fc2 = nn.Linear(WIDTH, hidden), nn.GELU(), nn.Linear(hidden, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc2(self.act(self.fc1(x)))


class Constant(nn.Module):
    """A branch of which only a vector is left."""

    def __init__(self, vector: torch.Tensor) -> None:
        super().__init__()
        self.vector = nn.Parameter(vector)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.vector


class Block(nn.Module):
    def __init__(self, heads: int = HEADS, hidden: int = HIDDEN, **options: bool) -> None:
        super().__init__()
        self.norm1, self.attn = nn.LayerNorm(WIDTH), Attention(heads, **options)
        self.norm2, self.mlp = nn.LayerNorm(WIDTH), Mlp(hidden)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Network(nn.Module):
    def __init__(self, depth: int = 2, **options: bool) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*(Block(**options) for _ in range(depth)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.blocks(x)


def network(**options: bool) -> Network:
    torch.manual_seed(0)
    made = Network(**options).double().eval()
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=0.2)
    return made


def example() -> torch.Tensor:
    return torch.randn(1, TOKENS, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def mask(shape: Shape, block: Shape, *, rows: slice | list[int] = slice(0), cols: slice | list[int] = slice(0)) -> BlockMask:
    """A mask that keeps all but some block rows and block columns."""
    kept = np.ones((-(-shape[0] // block[0]), -(-shape[1] // block[1])), dtype=np.bool_)
    kept[rows, :] = False
    kept[:, cols] = False
    return BlockMask(shape, block, kept)


QKV, PROJ, FC1, FC2 = (3 * WIDTH, WIDTH), (WIDTH, WIDTH), (HIDDEN, WIDTH), (WIDTH, HIDDEN)


def dropped(masks: dict[str, BlockMask], **options: bool) -> tuple[hw.Trace, LivingWork]:
    trace = hw.prune(hw.trace(network(**options), example=example()), masks)
    return trace, hw.drop_dead_work(trace)


def apply_masks(model: nn.Module, masks: dict[str, BlockMask]) -> None:
    for name, held in masks.items():
        layer = model.get_submodule(name)
        grid = np.kron(held.kept, np.ones(held.block))[: held.shape[0], : held.shape[1]]
        layer.weight.data *= torch.tensor(grid, dtype=layer.weight.dtype)


def cut_heads(attention: Attention, kept: list[int]) -> Attention:
    """The attention with some heads only; what the others return without seeing their input goes into proj's bias."""
    smaller = Attention(len(kept)).double().eval()
    channels = torch.cat([torch.arange(head * DEPTH, (head + 1) * DEPTH) for head in kept])
    gone = torch.tensor([channel for channel in range(WIDTH) if channel not in set(channels.tolist())])
    rows = torch.cat([channels + part * WIDTH for part in range(3)])
    smaller.qkv.weight.data, smaller.qkv.bias.data = attention.qkv.weight.data[rows], attention.qkv.bias.data[rows]
    smaller.proj.weight.data = attention.proj.weight.data[:, channels]
    constant = attention.proj.weight.data[:, gone] @ attention.qkv.bias.data[2 * WIDTH + gone]
    smaller.proj.bias.data = attention.proj.bias.data + constant
    return smaller


def cut_units(mlp: Mlp, kept: list[int]) -> Mlp:
    smaller = Mlp(len(kept)).double().eval()
    gone = [unit for unit in range(HIDDEN) if unit not in set(kept)]
    smaller.fc1.weight.data, smaller.fc1.bias.data = mlp.fc1.weight.data[kept], mlp.fc1.bias.data[kept]
    smaller.fc2.weight.data = mlp.fc2.weight.data[:, kept]
    constant = mlp.fc2.weight.data[:, gone] @ mlp.act(mlp.fc1.bias.data[gone])
    smaller.fc2.bias.data = mlp.fc2.bias.data + constant
    return smaller


def shapes(trace: hw.Trace) -> dict[str, tuple[int, ...]]:
    return {
        op.name: (op.batch, op.m, op.k, op.n, op.elements, op.input_elements, op.output_elements, op.weight_elements)
        for op in trace.operators
    }


def test_the_reduced_network_computes_the_same_and_its_own_trace_is_the_reduced_trace() -> None:
    masks = {
        "blocks.0.attn.proj": mask(PROJ, (32, 32), cols=[0]),  # nothing reads head 0
        "blocks.0.attn.qkv": mask(QKV, (32, 32), rows=[10]),  # head 2 returns the bias of its values
        "blocks.0.mlp.fc2": mask(FC2, (32, 32), cols=[1]),  # nothing reads units 32-63
        "blocks.0.mlp.fc1": mask(FC1, (32, 32), rows=[3]),  # units 96-127 return gelu(bias)
    }
    _, (reduced, findings) = dropped(masks)
    original, smaller = network(), network()
    apply_masks(original, masks)
    apply_masks(smaller, masks)
    block = smaller.blocks[0]
    block.attn = cut_heads(block.attn, [1, 3])
    block.mlp = cut_units(block.mlp, [*range(32), *range(64, 96), *range(128, HIDDEN)])
    torch.testing.assert_close(smaller(example()), original(example()), rtol=1e-12, atol=1e-12)
    assert shapes(reduced) == shapes(hw.trace(smaller, example=example()))
    assert [(found.name, found.what) for found in findings] == [
        ("blocks.0.attn.proj", "2 of 4 heads"),
        ("blocks.0.mlp.fc2", "64 of 192 hidden units"),
    ]


def test_a_branch_without_any_living_part_goes_whole_and_leaves_a_vector() -> None:
    masks = {
        "blocks.1.attn.proj": mask(PROJ, (32, 32), cols=slice(None)),
        "blocks.1.mlp.fc1": mask(FC1, (32, 32), rows=slice(None)),
    }
    trace, (reduced, findings) = dropped(masks)
    original, smaller = network(), network()
    apply_masks(original, masks)
    apply_masks(smaller, masks)
    block = smaller.blocks[1]
    vectors = (
        block.attn.proj.bias.data,
        block.mlp.fc2.bias.data + block.mlp.fc2.weight.data @ block.mlp.act(block.mlp.fc1.bias.data),
    )
    block.norm1, block.attn, block.norm2, block.mlp = nn.Identity(), Constant(vectors[0]), nn.Identity(), Constant(vectors[1])
    torch.testing.assert_close(smaller(example()), original(example()), rtol=1e-12, atol=1e-12)
    own = hw.trace(smaller, example=example())
    assert list(shapes(reduced).values()) == list(shapes(own).values())
    assert [op.name for op in trace.operators if op.block == 0] == [op.name for op in reduced.operators if op.block == 0]
    attention = TOKENS * WIDTH * 3 * WIDTH + 2 * HEADS * TOKENS * TOKENS * DEPTH
    assert [found.macs for found in findings] == [attention, TOKENS * WIDTH * HIDDEN]
    norm, qkv = 2 * WIDTH, WIDTH * 3 * WIDTH
    assert findings[0].weights == norm + qkv


def test_a_branch_without_any_bias_takes_its_addition_along() -> None:
    masks = {"blocks.0.attn.proj": mask(PROJ, (32, 32), cols=slice(None))}
    _, (reduced, _) = dropped(masks, proj_bias=False)
    assert [op.name for op in reduced.operators if op.block == 0] == [
        "blocks.0.norm2", "blocks.0.mlp.fc1", "blocks.0.mlp.act", "blocks.0.mlp.fc2", "blocks.0.add_1",
    ]  # fmt: skip
    added = [op.name for op in reduced.operators].index("blocks.0.add_1")
    assert [edge for edge in reduced.edges if edge[1] == added] == [(added - 1, added)]  # its other operand is the input


def test_values_with_a_bias_stay_where_proj_has_none_to_take_it_over() -> None:
    masks = {"blocks.0.attn.qkv": mask(QKV, (32, 32), rows=[10])}
    assert dropped(masks, proj_bias=False)[1].dropped == ()
    assert len(dropped(masks, proj_bias=False, qkv_bias=False)[1].dropped) == 1


def test_a_norm_across_heads_keeps_them_all() -> None:
    masks = {"blocks.0.attn.proj": mask(PROJ, (32, 32), cols=[0])}
    assert dropped(masks, norm=True)[1].dropped == ()


def test_pruned_keys_alone_do_not_make_a_head_dead() -> None:
    masks = {"blocks.0.attn.qkv": mask(QKV, (32, 32), rows=[4, 5, 6, 7])}
    assert dropped(masks)[1].dropped == ()


def test_a_block_that_straddles_heads_keeps_the_shape_and_prunes_what_only_the_dead_head_used() -> None:
    masks = {
        "blocks.0.attn.proj": mask(PROJ, (32, 48), cols=[0]),  # columns 0-47: head 0 and half of head 1
        "blocks.0.attn.qkv": mask(QKV, (16, 32)),
    }
    trace, (reduced, findings) = dropped(masks)
    assert reduced["blocks.0.attn.scores"] == trace["blocks.0.attn.scores"]
    kept = reduced["blocks.0.attn.qkv"].mask
    dead_rows = [0, 1, 8, 9, 16, 17, 18]  # q, k and v of head 0 in rows of 16, and the first half of head 1's values
    assert isinstance(kept, BlockMask)
    assert np.flatnonzero(~kept.kept.any(axis=1)).tolist() == dead_rows
    assert [found.what for found in findings] == ["blocks of dead channels"]
    assert findings[0].macs == TOKENS * len(dead_rows) * 16 * WIDTH


def test_masks_of_shrunk_layers_are_sliced_block_by_block() -> None:
    grid = np.random.default_rng(0).random((4, 4)) < 0.5
    grid[0], grid[:, 1] = True, False
    masks = {"blocks.0.attn.proj": BlockMask(PROJ, (32, 32), grid)}
    reduced = dropped(masks)[1].trace
    assert reduced["blocks.0.attn.proj"].mask == BlockMask((WIDTH, 96), (32, 32), grid[:, [0, 2, 3]])


def test_a_mask_that_keeps_all_of_what_stays_is_none() -> None:
    masks = {"blocks.0.attn.proj": mask(PROJ, (32, 32), cols=[1])}
    reduced = dropped(masks)[1].trace
    assert (reduced["blocks.0.attn.proj"].k, reduced["blocks.0.attn.proj"].mask) == (96, None)


def test_widths_stay_aligned_so_that_single_dead_units_only_leave_the_mask() -> None:
    masks = {"blocks.0.mlp.fc2": mask(FC2, (1, 1), cols=[5]), "blocks.0.mlp.fc1": mask(FC1, (1, 1))}
    reduced = dropped(masks)[1].trace
    assert reduced["blocks.0.mlp.fc2"].k == HIDDEN
    kept = reduced["blocks.0.mlp.fc1"].mask
    assert isinstance(kept, BlockMask)
    assert np.flatnonzero(~kept.kept.any(axis=1)).tolist() == [5]


def test_a_density_proves_nothing_unless_it_is_zero() -> None:
    trace = hw.trace(network(), example=example())
    sparse = hw.prune(trace, {"blocks.0.attn.proj": {"block": (32, 32), "density": 0.3}})
    assert hw.drop_dead_work(sparse) == (sparse, ())
    assert unprovable(sparse) == ["blocks.0.attn.proj"]
    empty = hw.prune(trace, {"blocks.0.attn.proj": {"block": (32, 32), "density": 0.0}})
    assert unprovable(empty) == []
    assert [found.what for found in hw.drop_dead_work(empty).dropped] == ["all 4 heads and the branch around them"]


def test_attention_weights_that_something_else_reads_keep_their_heads() -> None:
    """As in EViT: the class token's attention over all heads decides which tokens stay."""

    class Watched(Network):
        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            attention = self.blocks[0].attn
            images, tokens, _ = x.shape
            q, k, v = attention.qkv(x).reshape(images, tokens, 3, HEADS, DEPTH).permute(2, 0, 3, 1, 4).unbind(0)
            weights = (q @ k.transpose(-2, -1)).softmax(dim=-1)
            mixed = (weights @ v).transpose(1, 2).reshape(images, tokens, WIDTH)
            return x + attention.proj(mixed), weights.mean(dim=1)

    trace = hw.trace(Watched().eval(), example=torch.zeros(1, TOKENS, WIDTH))
    pruned = hw.prune(trace, {"blocks.0.attn.proj": mask(PROJ, (32, 32), cols=[0])})
    assert hw.drop_dead_work(pruned).dropped == ()


@pytest.mark.parametrize(("model", "gone"), [("swin_tiny_patch4_window7_224", 1), ("cait_xxs24_224", 2)])
def test_windowed_and_class_attention_lose_heads_too(model: str, gone: int) -> None:
    """Heads of CaiT are 48 wide, so one alone would leave a width of 144, which tensor cores do not like."""
    trace = hw.trace(model)
    proj = next(op for op in reversed(trace.operators) if op.role == "proj")
    context = [op for op in trace.operators if op.role == "context" and op.block == proj.block][-1]
    heads = proj.k // context.n
    pruned = hw.prune(trace, {proj.name: mask((proj.n, proj.k), (1, context.n), cols=slice(gone))})
    reduced, findings = hw.drop_dead_work(pruned)
    assert [found.what for found in findings] == [f"{gone} of {heads} heads"]
    assert reduced[context.name].batch == context.batch // heads * (heads - gone)
    assert reduced.kept_macs < pruned.kept_macs


def test_joint_projections_laid_out_head_by_head_are_left_alone() -> None:
    trace = hw.trace("coatnet_nano_rw_224")
    proj = next(op for op in trace.operators if op.role == "proj")
    assert hw.drop_dead_work(hw.prune(trace, {proj.name: {"block": (32, 32), "density": 0.0}})).dropped == ()
