"""Cheap gates that imitate token scores: scores need labels and derivatives, which a deployed model has not."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from hwmodel.errors import HwmodelError
from hwmodel.extraction.recording.export import twin
from hwmodel.pruning.gates.attentions import encoder_blocks
from hwmodel.pruning.gates.derivatives import FloatArray
from hwmodel.pruning.gates.points import Arguments, changed_calls

if TYPE_CHECKING:
    from torch import Tensor, nn

    from hwmodel.pruning.gates.derivatives import Batches
    from hwmodel.pruning.gates.scores import TokenScores


@dataclass(frozen=True, eq=False)
class TokenGate:
    """A linear gate per block: the dot product of a token with ``weights`` stands for how much the token is needed.

    Parameters
    ----------
    weights : block to (width,) weights, what :func:`hwmodel.pruning.tokens.gated_tokens` takes
    explained : block to the part of the scores' variance within images that the gate explains, on the images it is fitted to
    """

    weights: Mapping[int, Tensor]
    explained: Mapping[int, float]


def fit_token_gate(
    model: nn.Module, batches: Batches, scores: TokenScores, *, blocks: Collection[int] | None = None, ridge: float = 1e-4
) -> TokenGate:
    """Fit a gate per block to the scores of calibration images, by least squares in closed form.

    Only the order of an image's tokens counts, so scores are standardised within each image, and tokens are taken from their mean.

    Parameters
    ----------
    model, batches : those that were scored, batches in the same order
    scores : of :func:`hwmodel.pruning.gates.scores.token_scores`
    blocks : to fit; all where None
    ridge : weight of the squared weights, in parts of the mean variance of a token's values

    Raises
    ------
    HwmodelError
        Another number of images or tokens than was scored, or an unknown block.
    """
    import torch

    running = twin(model)
    modules = encoder_blocks(running, "fit_token_gate")
    wanted = sorted(range(len(modules)) if blocks is None else set(blocks))
    if not set(wanted) <= set(range(len(modules))):
        raise HwmodelError(f"fit_token_gate: blocks {wanted}, but the model has blocks 0-{len(modules) - 1}")
    fits = {block: _LeastSquares.empty() for block in wanted}
    targets, start = scores.per_image, 0
    with torch.no_grad():
        for images, _ in batches:
            stop = start + len(images)
            _check_images(stop <= len(targets), len(targets))
            tokens = _entering(running, {block: modules[block] for block in wanted}, images)
            for block, x in tokens.items():
                fits[block] = fits[block].plus(x[:, scores.prefix :], targets[start:stop, block, scores.prefix :])
            start = stop
    if start != len(targets):
        raise HwmodelError(
            f"fit_token_gate: {len(targets)} images were scored, the batches have another number; give the same ones"
        )
    solved = {block: fit.solved(ridge) for block, fit in fits.items()}
    return TokenGate(
        {block: torch.from_numpy(weights) for block, (weights, _) in solved.items()},
        {block: explained for block, (_, explained) in solved.items()},
    )


def _check_images(same: bool, scored: int) -> None:
    if not same:
        raise HwmodelError(f"fit_token_gate: {scored} images were scored, the batches have another number; give the same ones")


def _entering(model: nn.Module, modules: Mapping[int, nn.Module], images: Tensor) -> dict[int, FloatArray]:
    """(images, tokens, width) of the tokens that enter each block."""
    found: dict[int, FloatArray] = {}

    def seen(block: int) -> Any:
        def change(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Arguments:
            found[block] = args[0].double().cpu().numpy()
            return args, kwargs

        return change

    with changed_calls([(module, seen(block)) for block, module in modules.items()]):
        model(images.to(next(model.parameters()).device))
    return found


@dataclass(frozen=True, eq=False)
class _LeastSquares:
    """Sums over tokens: products of their values, of values and target, and of the target with itself."""

    values: Any
    mixed: Any
    target: float

    @classmethod
    def empty(cls) -> _LeastSquares:
        return cls(0.0, 0.0, 0.0)

    def plus(self, x: FloatArray, scores: FloatArray) -> _LeastSquares:
        """With (images, patches, width) tokens and their (images, patches) scores."""
        if scores.shape[1] < x.shape[1] or np.isnan(scores[:, : x.shape[1]]).any():
            raise HwmodelError(f"fit_token_gate: {x.shape[1]} patch tokens enter a block, and not all of them have scores")
        y = scores[:, : x.shape[1]]
        y = y - y.mean(axis=1, keepdims=True)
        spread = y.std(axis=1, keepdims=True)
        y = np.divide(y, spread, out=np.zeros_like(y), where=spread > 0).ravel()
        x = (x - x.mean(axis=1, keepdims=True)).reshape(-1, x.shape[2])
        return _LeastSquares(self.values + x.T @ x, self.mixed + x.T @ y, self.target + float(y @ y))

    def solved(self, ridge: float) -> tuple[FloatArray, float]:
        """Weights, and the part of the target's variance that they explain."""
        damping = ridge * np.trace(self.values) / len(self.values)
        weights = np.linalg.solve(self.values + damping * np.eye(len(self.values)), self.mixed)
        left = self.target - 2 * weights @ self.mixed + weights @ self.values @ weights
        return weights, float(1 - left / self.target) if self.target else 0.0
