"""Sensitivities of tokens and attention heads after HEART-ViT (Uddin, Seymour and Baidya 2025): what removing one does to the loss.

Gates of value 1 are put on every head's output and on every token that enters an encoder block. To second order, closing one
changes an image's loss by ``-gradient + curvature / 2``. Curvatures come from Hessian-vector products, two backward passes
each (Pearlmutter 1994); the Hessian is never formed. Images do not see each other, so one product serves a whole batch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, Self, get_args

import numpy as np

from hwmodel.errors import HwmodelError, UnknownNameError
from hwmodel.extraction.recording.export import twin
from hwmodel.pruning.gates.attentions import attentions, encoder_blocks
from hwmodel.pruning.gates.derivatives import Curvatures, Estimator, FloatArray, Scoring
from hwmodel.pruning.gates.points import HeadOutputs, TokenPresence, TokenValues

if TYPE_CHECKING:
    from torch import nn

    from hwmodel.pruning.gates.derivatives import Batches, Loss

Progress = Callable[[int], None]
Gate = Literal["presence", "value"]


@dataclass(frozen=True, eq=False)
class GateScores:
    """Derivatives of every image's loss by every gate. NaN where a block has fewer gates than the widest one.

    Parameters
    ----------
    gradient, curvature : (images, blocks, gates)
        First derivative, and the second one as ``estimator`` gives it
    estimator : "exact" diagonal of the Hessian, its unbiased estimate "hutchinson", or "row-sums" of a block's gates, which
        are not the diagonal: mixed derivatives are added to it
    second_order_only : leave the gradient out, as HEART-ViT does on the assumption that training has converged
    """

    gradient: FloatArray
    curvature: FloatArray
    estimator: Estimator
    second_order_only: bool = False

    @property
    def per_image(self) -> FloatArray:
        """(images, blocks, gates) predicted change of the loss when a gate closes: ``-gradient + curvature / 2``."""
        second = self.curvature / 2
        return second if self.second_order_only else second - self.gradient

    @property
    def static(self) -> FloatArray:
        """(blocks, gates) mean over the images: one ranking for every input."""
        found: FloatArray = self.per_image.mean(axis=0)
        return found

    def curvature_only(self) -> Self:
        """The same by HEART-ViT's own rule: half of ``z' H z`` for a token or head output ``z``, the gradient left out."""
        return replace(self, second_order_only=True)


@dataclass(frozen=True, eq=False)
class HeadScores(GateScores):
    """Scores of attention heads, (images, blocks, heads); blocks without attention are NaN throughout."""


@dataclass(frozen=True, eq=False)
class TokenScores(GateScores):
    """Scores of the tokens that enter each block, (images, blocks, tokens): first ``prefix`` that always stay, then patches."""

    prefix: int = 1

    @property
    def ranked(self) -> FloatArray:
        """(blocks, patches) mean score of an image's least needed patch token, of its second least needed one, and so on.

        It is what one token less costs where every input chooses its own. NaN comes last.
        """
        found: FloatArray = np.sort(self.per_image[:, :, self.prefix :], axis=2).mean(axis=0)
        return found


def head_scores(
    model: nn.Module,
    batches: Batches,
    *,
    estimator: Estimator = "exact",
    probes: int = 16,
    seed: int = 0,
    loss: Loss | None = None,
    progress: Progress | None = None,
) -> HeadScores:
    """Sensitivity of the loss to every attention head, image by image.

    Parameters
    ----------
    model : timm VisionTransformer or SwinTransformer with weights; differentiated in eval mode, itself left alone
    batches : (images, labels) pairs, streamed
    estimator : "exact" takes a Hessian-vector product per head, "hutchinson" ``probes`` products with random signs at all
        heads at once, "row-sums" one per block
    probes, seed : of "hutchinson"; signs are drawn batch by batch, so the same images in other batches get other estimates
    loss : from (outputs, labels) to one loss per image, cross-entropy where None
    progress : called with the number of images done

    Raises
    ------
    HwmodelError
        A model without attention of a known kind or without weights, no batches; with their batch, images or labels that the
        model or the loss fails on, a loss that is not one per image, or values that are not finite.
    """
    scoring, how = _scoring(model, "head_scores", loss), Curvatures.of(estimator, probes, seed)
    return HeadScores(*scoring.derivatives(_heads(scoring), batches, how, progress), estimator)


def token_scores(
    model: nn.Module,
    batches: Batches,
    *,
    gate: Gate = "presence",
    estimator: Estimator = "hutchinson",
    probes: int = 16,
    seed: int = 0,
    loss: Loss | None = None,
    progress: Progress | None = None,
) -> TokenScores:
    """Sensitivity of the loss to every token that enters a block, image by image.

    Parameters
    ----------
    model : timm VisionTransformer that classifies by its class token, with weights; itself left alone
    batches, probes, seed, loss, progress : as in :func:`head_scores`
    gate : "presence": how much the token counts in this block's attention and in later ones, so that a closed gate is a token
        that has left; "value": it multiplies the token's values, as in HEART-ViT, and a closed one is a token of zeros that is
        still attended to. On digits the first ranks an image's tokens far better (Spearman 0.8 against 0.3)
    estimator : "exact" takes one Hessian-vector product per token and block: for small models

    Raises
    ------
    HwmodelError
        What :func:`head_scores` refuses; a model without class token, as tokens that are averaged are read outside of attention
        too; "presence" in a model whose number of tokens changes.
    """
    if gate not in get_args(Gate):
        raise UnknownNameError("gate", gate, get_args(Gate))
    scoring, how = _scoring(model, "token_scores", loss), Curvatures.of(estimator, probes, seed)
    values = _tokens(scoring)
    found = scoring.derivatives(values if gate == "value" else _presence(scoring), batches, how, progress)
    return TokenScores(*found, estimator, prefix=_prefix(model))


def removal_changes(model: nn.Module, batches: Batches, unit: Literal["head", "token"], *, loss: Loss | None = None) -> FloatArray:
    """What removing one head or token really does to every image's loss, by forward passes alone: the reference for scores.

    Heads give zeros, tokens leave the sequence. One pass per head or token and batch.

    Returns
    -------
    (images, blocks, units) float64
        Loss without the unit less the loss with it; NaN where a block has fewer units, for tokens also at prefix tokens.

    Raises
    ------
    HwmodelError
        What :func:`head_scores` and :func:`token_scores` refuse.
    """
    scoring = _scoring(model, "removal_changes", loss)
    if unit == "head":
        return scoring.removals(_heads(scoring), batches)
    return scoring.removals(_tokens(scoring), batches, first=_prefix(model))


def _scoring(model: nn.Module, function: str, loss: Loss | None) -> Scoring:
    running = twin(model)
    return Scoring(function, running, len(encoder_blocks(running, function)), loss)


def _heads(scoring: Scoring) -> list[HeadOutputs]:
    found = attentions(scoring.model, scoring.function)
    return [HeadOutputs(attention.proj, block, attention.num_heads) for block, attention in found.items()]


def _tokens(scoring: Scoring) -> list[TokenValues]:
    running: Any = scoring.model
    if getattr(running, "cls_token", None) is None or running.global_pool != "token":
        kind = type(running).__name__
        raise HwmodelError(
            f"{scoring.function}: {kind} does not classify by a class token, so tokens are not read by attention alone"
        )
    return [TokenValues(block, number) for number, block in enumerate(encoder_blocks(running, scoring.function))]


def _presence(scoring: Scoring) -> list[TokenPresence]:
    return [TokenPresence(attention, block) for block, attention in attentions(scoring.model, scoring.function).items()]


def _prefix(model: Any) -> int:
    return int(model.num_prefix_tokens)
