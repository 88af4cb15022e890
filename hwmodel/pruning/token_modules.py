"""Modules that drop or merge tokens inside a timm ViT. The only module of the package that imports torch at its top."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


@contextmanager
def _results(module: nn.Module) -> Iterator[list[Tensor]]:
    """What ``module`` returns while the block runs."""
    seen: list[Tensor] = []
    hook = module.register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    try:
        yield seen
    finally:
        hook.remove()


class _Reducing(nn.Module):
    """A pre-norm encoder block with the children of a timm ``Block``, whose tokens shrink between attention and MLP."""

    attn: Any
    norm1: nn.Module
    ls1: nn.Module
    drop_path1: nn.Module
    norm2: nn.Module
    mlp: nn.Module
    ls2: nn.Module
    drop_path2: nn.Module

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        for name, child in block.named_children():
            self.add_module(name, child)

    def _added(self, x: Tensor, attended: Tensor) -> Tensor:
        branch: Tensor = self.drop_path1(self.ls1(attended))
        return x + branch

    def _mlp(self, x: Tensor) -> Tensor:
        branch: Tensor = self.drop_path2(self.ls2(self.mlp(self.norm2(x))))
        return x + branch


class SelectingBlock(_Reducing):
    """Drops patch tokens by how much the class token attends to them (EViT, Liang et al. 2022)."""

    def __init__(self, block: nn.Module, select: nn.Module, prefix: int) -> None:
        super().__init__(block)
        self.attn.fused_attn = False  # a fused kernel keeps its weights to itself
        self.select = select
        self.prefix = prefix

    def forward(self, x: Tensor) -> Tensor:
        """Tokens of shape (images, tokens, width), fewer of them out than in."""
        with _results(self.attn.attn_drop) as weights:
            attended = self.attn(self.norm1(x))
        return self._mlp(self.select(self._added(x, attended), weights[0][:, :, 0, self.prefix :]))


def _picked(x: Tensor, index: Tensor) -> Tensor:
    """Tokens of ``x`` by an index of shape (images, picked)."""
    return x.gather(1, index.unsqueeze(-1).expand(-1, -1, x.shape[-1]))


class TopK(nn.Module):
    """The ``ceil(keep * patches)`` tokens with the highest scores, and where ``fused`` the weighted sum of the others."""

    def __init__(self, count: int, prefix: int, *, fused: bool) -> None:
        super().__init__()
        self.count, self.prefix, self.fused = count, prefix, fused

    def forward(self, x: Tensor, attention: Tensor) -> Tensor:
        """Tokens (images, tokens, width) by attention (images, heads, patches), which is averaged over heads."""
        return self.kept(x, attention.mean(1))

    def kept(self, x: Tensor, scores: Tensor) -> Tensor:
        """Tokens (images, tokens, width) by scores (images, patches)."""
        patches = x[:, self.prefix :]
        if not self.fused:
            return torch.cat([x[:, : self.prefix], _picked(patches, scores.topk(self.count, dim=1).indices)], dim=1)
        values, order = scores.sort(dim=1, descending=True)
        kept, rest = _picked(patches, order[:, : self.count]), _picked(patches, order[:, self.count :])
        summed = (rest * values[:, self.count :].unsqueeze(-1)).sum(1, keepdim=True)
        return torch.cat([x[:, : self.prefix], kept, summed], dim=1)


class LinearTopK(TopK):
    """The tokens that a linear function of their values scores highest; where ``fused``, the scores' softmax weighs the others."""

    def __init__(self, weight: Tensor, count: int, prefix: int, *, fused: bool) -> None:
        super().__init__(count, prefix, fused=fused)
        self.score = nn.Linear(len(weight), 1, bias=False, device="meta")
        self.score.weight = nn.Parameter(weight.unsqueeze(0))

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        """Tokens of shape (images, tokens, width), fewer of them out than in."""
        scores = self.score(x[:, self.prefix :]).squeeze(-1)
        return self.kept(x, scores.softmax(dim=1) if self.fused else scores)


class GatedBlock(_Reducing):
    """Drops patch tokens ahead of its attention, by a gate of its own."""

    def __init__(self, block: nn.Module, select: LinearTopK) -> None:
        super().__init__(block)
        self.select = select

    def forward(self, x: Tensor) -> Tensor:
        """Tokens of shape (images, tokens, width), fewer of them out than in."""
        x = self.select(x)
        return self._mlp(self._added(x, self.attn(self.norm1(x))))


class Threshold(nn.Module):
    """The tokens whose score is above ``threshold / patches of the model``: how many depends on the image.

    A batch keeps as many of every image as its longest image needs, the next best ones of the others.
    ``counted`` is the number kept in the last forward pass on real tensors.
    """

    def __init__(self, threshold: float, prefix: int) -> None:
        super().__init__()
        self.threshold, self.prefix = threshold, prefix
        self.counted = 0

    def forward(self, x: Tensor, attention: Tensor) -> Tensor:
        """Tokens (images, tokens, width) by attention (images, heads, patches), which is averaged over heads."""
        scores = attention.mean(1)
        count: Any = (scores > self.threshold).sum(1).max().clamp(min=1).item()
        torch._check(count >= 1)  # type: ignore[no-untyped-call]
        torch._check(count <= scores.shape[1])  # type: ignore[no-untyped-call]
        if isinstance(count, int):
            self.counted = count
        return torch.cat([x[:, : self.prefix], _picked(x[:, self.prefix :], scores.topk(count, dim=1).indices)], dim=1)


class FixedPatches(nn.Module):
    """The same patches of every image, prefix tokens always: PatchDropout (Liu et al. 2022) carried over to inference."""

    index: Tensor

    def __init__(self, index: Tensor) -> None:
        super().__init__()
        self.register_buffer("index", index)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens of shape (images, tokens, width), fewer of them out than in."""
        return x[:, self.index]


class MergingBlocks(nn.Sequential):
    """Encoder blocks that hand on, beside the tokens, how many patches each token stands for."""

    def forward(self, x: Tensor) -> Tensor:
        """Tokens of shape (images, tokens, width), fewer of them out than in."""
        size: Tensor | None = None
        for block in self:
            x, size = block(x, size)
        return x


class MergingBlock(_Reducing):
    """Merges the ``pairs`` most similar pairs of patch tokens after attention, which counts a token by its size."""

    def __init__(self, block: nn.Module, pairs: int, prefix: int) -> None:
        super().__init__(block)
        self.merge = Merge(pairs, prefix) if pairs else None

    def forward(self, x: Tensor, size: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Tokens (images, tokens, width) and sizes (images, tokens, 1), None where nothing was merged yet."""
        bias = None if size is None else size.log().transpose(1, 2).unsqueeze(1)
        with _results(self.attn.k_norm) as keys:
            attended = self.attn(self.norm1(x), attn_mask=bias)
        x = self._added(x, attended)
        if self.merge is not None:
            x, size = self.merge(x, keys[0], size)
        return self._mlp(x), size


class Merge(nn.Module):
    """Bipartite soft matching (token merging, Bolya et al., ICLR 2023), written from the paper.

    Patch tokens are dealt alternately to two sets; each token of the first is matched to the most similar one of the
    second by the cosine of their mean keys; the ``pairs`` best matches become size-weighted means. Prefix tokens stay.
    """

    def __init__(self, pairs: int, prefix: int) -> None:
        super().__init__()
        self.pairs, self.prefix = pairs, prefix

    def forward(self, x: Tensor, keys: Tensor, size: Tensor | None) -> tuple[Tensor, Tensor]:
        """Tokens (images, tokens, width), keys (images, heads, tokens, depth), sizes (images, tokens, 1)."""
        size = x.new_ones(x.shape[0], x.shape[1], 1) if size is None else size
        source, rest, target = self._match(keys.mean(1))
        merged = self._sum(size, source, rest, target)
        return self._sum(x * size, source, rest, target) / merged, merged

    def _sets(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Patch tokens at even places of the sequence, prefix included, and at odd places."""
        first = self.prefix + self.prefix % 2
        second = self.prefix + 1 - self.prefix % 2
        return x[:, first::2], x[:, second::2]

    def _match(self, metric: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens of the first set to merge, those to leave alone, and where in the second set the former go."""
        first, second = self._sets(metric / metric.norm(dim=-1, keepdim=True))
        best = (first @ second.transpose(1, 2)).max(dim=-1)
        order = best.values.argsort(dim=-1, descending=True)
        source = order[:, : self.pairs]
        return source, order[:, self.pairs :], best.indices.gather(1, source)

    def _sum(self, x: Tensor, source: Tensor, rest: Tensor, target: Tensor) -> Tensor:
        """Prefix tokens, the first set's rest, and the second set with the matched tokens added."""
        first, second = self._sets(x)
        into = target.unsqueeze(-1).expand(-1, -1, x.shape[-1])
        summed = second.scatter_add(1, into, _picked(first, source))
        return torch.cat([x[:, : self.prefix], _picked(first, rest), summed], dim=1)
