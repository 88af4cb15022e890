"""Token reduction of timm ViTs: each function returns a copy that runs, shares its weights, and is traced like any model.

Attention and MLP keep their module paths, so recipes for the dense model fit its wrapped versions too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import ceil
from typing import TYPE_CHECKING, Any, cast

from hwmodel.errors import HwmodelError
from hwmodel.extraction.recording.export import twin
from hwmodel.ir.token_counts import TokenDistribution

if TYPE_CHECKING:
    import torch
    from torch import nn

_DIGITS = 9
"""Decimals of ``keep * tokens`` that count: beyond them is binary rounding."""


def topk_tokens(model: nn.Module, blocks: Mapping[int, float], *, fused: bool = False) -> nn.Module:
    """Keep the patch tokens that the class token attends to most (EViT, Liang et al., ICLR 2022).

    Parameters
    ----------
    model : timm VisionTransformer with a class token
    blocks : block index to the part of the tokens present that stays after its attention, rounded up, in (0, 1]
    fused : add one token, the sum of those dropped weighted by their attention

    Raises
    ------
    HwmodelError
        A model without class token or of another kind, an unknown block, or a part outside (0, 1].
    """
    from hwmodel.pruning.token_modules import SelectingBlock, TopK

    copied, tokens = _prepared(model, "topk_tokens", class_token=True)
    present, prefix = tokens, copied.num_prefix_tokens
    for block, keep in sorted(_checked_blocks(copied, blocks, "topk_tokens").items()):
        count = _count(block, keep, present, "topk_tokens")
        if count < present:
            copied.blocks[block] = SelectingBlock(copied.blocks[block], TopK(count, prefix, fused=fused), prefix)
            present = count + fused
    return cast("nn.Module", copied)


def gated_tokens(
    model: nn.Module, blocks: Mapping[int, float], weights: Mapping[int, torch.Tensor], *, fused: bool = False
) -> nn.Module:
    """Keep the patch tokens that a small gate of every block scores highest, one dot product per token, ahead of its attention.

    Parameters
    ----------
    model : timm VisionTransformer
    blocks : block index to the part of the tokens present that enters it, rounded up, in (0, 1]
    weights : block index to the gate's weights, (width,), as :func:`hwmodel.pruning.gates.token_gates.fit_token_gate` finds them
    fused : add one token, the sum of those dropped weighted by the softmax of their scores

    Raises
    ------
    HwmodelError
        A model of another kind, an unknown block, a part outside (0, 1], or a block without weights of its width.
    """
    from hwmodel.pruning.token_modules import GatedBlock, LinearTopK

    copied, present = _prepared(model, "gated_tokens")
    prefix, like = copied.num_prefix_tokens, next(copied.parameters())
    for block, keep in sorted(_checked_blocks(copied, blocks, "gated_tokens").items()):
        count = _count(block, keep, present, "gated_tokens")
        if block not in weights or weights[block].shape != (copied.embed_dim,):
            raise HwmodelError(f"gated_tokens: block {block} needs weights of shape ({copied.embed_dim},) for its gate")
        if count < present:
            select = LinearTopK(weights[block].to(like), count, prefix, fused=fused)
            copied.blocks[block] = GatedBlock(copied.blocks[block], select)
            present = count + fused
    return cast("nn.Module", copied.eval())


def threshold_tokens(model: nn.Module, blocks: Mapping[int, float]) -> nn.Module:
    """Keep the patch tokens whose class-token attention is above a threshold, so that their number depends on the image.

    Parameters
    ----------
    model : timm VisionTransformer with a class token
    blocks : block index to threshold, as a multiple of 1 / patch tokens of the model; 1 keeps what is above even attention

    Raises
    ------
    HwmodelError
        A model without class token or of another kind, an unknown block, or a negative threshold.
    """
    from hwmodel.pruning.token_modules import SelectingBlock, Threshold

    copied, tokens = _prepared(model, "threshold_tokens", class_token=True)
    prefix = copied.num_prefix_tokens
    for block, threshold in _checked_blocks(copied, blocks, "threshold_tokens").items():
        if threshold < 0:
            raise HwmodelError(f"threshold_tokens: block {block}: a threshold must not be negative, got {threshold}")
        copied.blocks[block] = SelectingBlock(copied.blocks[block], Threshold(threshold / tokens, prefix), prefix)
    return cast("nn.Module", copied)


def merge_tokens(model: nn.Module, r: int | Sequence[int]) -> nn.Module:
    """Merge the most similar pairs of patch tokens in every block (token merging, Bolya et al., ICLR 2023).

    Parameters
    ----------
    model : timm VisionTransformer
    r : pairs merged per block, or one number for each block; a block merges at most half of its patch tokens, as published

    Raises
    ------
    HwmodelError
        A model of another kind, a list of another length than the blocks, or a negative number of pairs.
    """
    from hwmodel.pruning.token_modules import MergingBlock, MergingBlocks

    copied, present = _prepared(model, "merge_tokens")
    depth = len(copied.blocks)
    asked = [r] * depth if isinstance(r, int) else list(r)
    if len(asked) != depth:
        raise HwmodelError(f"merge_tokens: r has {len(asked)} numbers, the model {depth} blocks")
    schedule = []
    for block, pairs in enumerate(asked):
        if pairs < 0:
            raise HwmodelError(f"merge_tokens: block {block}: r is {pairs}, expected a number of pairs")
        schedule.append(min(pairs, present // 2))
        present -= schedule[-1]
    _checked_blocks(copied, dict.fromkeys(range(depth)), "merge_tokens")
    merging = zip(copied.blocks, schedule, strict=True)
    if any(schedule):
        copied.blocks = MergingBlocks(*(MergingBlock(block, pairs, copied.num_prefix_tokens) for block, pairs in merging))
    return cast("nn.Module", copied)


def patch_dropout(model: nn.Module, keep: float, *, seed: int = 0) -> nn.Module:
    """Keep a fixed random part of the patches at inference, ahead of the first block (PatchDropout, Liu et al., WACV 2023).

    timm's own ``patch_drop_rate`` works in training only: in eval mode its model runs, and is traced, with every token.

    Parameters
    ----------
    model : timm VisionTransformer
    keep : part of the patch tokens that stays, rounded up, in (0, 1]
    seed : of the choice of patches

    Raises
    ------
    HwmodelError
        A model of another kind, or a part outside (0, 1].
    """
    import torch

    from hwmodel.pruning.token_modules import FixedPatches

    copied, tokens = _prepared(model, "patch_dropout")
    if not 0 < keep <= 1:
        raise HwmodelError(f"patch_dropout: keep must be in (0, 1], got {keep}")
    if keep < 1:
        prefix, count = copied.num_prefix_tokens, ceil(round(keep * tokens, _DIGITS))
        generator = torch.Generator().manual_seed(seed)
        chosen = torch.randperm(tokens, generator=generator, device="cpu")[:count].sort().values
        index = torch.cat([torch.arange(prefix, device="cpu"), chosen + prefix])
        copied.patch_drop = FixedPatches(index.to(next(copied.parameters()).device))
    return cast("nn.Module", copied)


def measured_tokens(model: nn.Module, images: torch.Tensor) -> TokenDistribution:
    """Run a model of :func:`threshold_tokens` on real images, one by one, and count what it keeps at each of its points.

    Raises
    ------
    HwmodelError
        A model without such points, or on the meta device.
    """
    import torch

    from hwmodel.pruning.token_modules import Threshold

    running = twin(model)
    points = [module for module in running.modules() if isinstance(module, Threshold)]
    if not points:
        raise HwmodelError(f"{type(model).__name__} has no point where the number of tokens depends on the image")
    if any(parameter.is_meta for parameter in running.parameters()):
        raise HwmodelError(f"{type(model).__name__} has no values (it is on the meta device), so nothing can be measured")
    samples = []
    with torch.no_grad():
        for image in images:
            running(image[None])
            samples.append([point.counted for point in points])
    return TokenDistribution.measured(samples)


def _prepared(model: nn.Module, function: str, *, class_token: bool = False) -> tuple[Any, int]:
    """A copy in eval mode, and its number of patch tokens."""
    from hwmodel.extraction.torchvision_repair import import_torchvision

    import_torchvision()
    from timm.models.vision_transformer import VisionTransformer

    if not isinstance(model, VisionTransformer):
        raise HwmodelError(f"{function}: expected a timm VisionTransformer, got {type(model).__name__}")
    if class_token and model.cls_token is None:
        raise HwmodelError(f"{function}: scores are the class token's attention, and {type(model).__name__} has no class token")
    return twin(model), int(model.patch_embed.num_patches)


def _count(block: int, keep: float, present: int, function: str) -> int:
    """Patch tokens that a part of those present is."""
    if not 0 < keep <= 1:
        raise HwmodelError(f"{function}: block {block}: keep must be in (0, 1], got {keep}")
    return ceil(round(keep * present, _DIGITS))


def _checked_blocks(model: Any, blocks: Mapping[int, Any], function: str) -> dict[int, Any]:
    """``blocks`` as given, once each is a block whose attention and residuals are known."""
    from timm.layers.attention import Attention
    from timm.models.vision_transformer import Block

    for block in blocks:
        if not 0 <= block < len(model.blocks):
            raise HwmodelError(f"{function}: found block {block}, but the model has blocks 0-{len(model.blocks) - 1}")
        kinds = type(model.blocks[block]), type(getattr(model.blocks[block], "attn", None))
        if kinds != (Block, Attention):
            raise HwmodelError(f"{function}: block {block} is a {kinds[0].__name__} with {kinds[1].__name__}, not timm's own Block")
    return dict(blocks)
