"""Forward and backward passes of a model whose weights need no gradient, and what they say about every weight block."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from hwmodel.errors import HwmodelError
from hwmodel.pruning.blocks.capture import Capture
from hwmodel.pruning.blocks.distortion import Float32Array
from hwmodel.pruning.blocks.projected import Kind
from hwmodel.pruning.blocks.weight_layers import WeightLayer
from hwmodel.pruning.failures import told

if TYPE_CHECKING:
    from torch import Tensor, nn

    Loss = Callable[[Tensor, "Tensor | None"], Tensor]


@dataclass(frozen=True, kw_only=True, eq=False)
class BackwardPasses:
    """One model, and what its images are differentiated by.

    Parameters
    ----------
    model : in eval mode, a copy whose hooks are nobody else's
    layers : those to project
    kind, probes, loss, seed : as :func:`~hwmodel.pruning.blocks.projections.projections` takes them
    """

    model: nn.Module
    layers: Sequence[WeightLayer]
    kind: Kind
    probes: int
    loss: Loss | None
    seed: int

    @cached_property
    def _weights(self) -> dict[str, Tensor]:
        """Parameters that need no gradient, so that backward passes do not make those of weights."""
        return {name: parameter.detach() for name, parameter in self.model.named_parameters()}

    def project(self, images: Tensor, labels: Tensor | None, *, first: int, capture: Capture) -> Float32Array:
        """(images * probes, blocks) projections, all layers one after the other; the probes of an image follow each other.

        Parameters
        ----------
        first : place of the first image among all, which its random combinations depend on

        Raises
        ------
        HwmodelError
            A forward pass or a loss that fails, and what is not finite.
        """
        import torch

        capture.start(len(images))
        with torch.enable_grad():
            totals = [objective.sum() for objective in self.objectives(self.outputs(images, capture), labels, first)]
        rows = []
        for probe, total in enumerate(totals, start=1):
            differentiate(total, keeping=probe < len(totals))
            rows.append(self._collected(capture.taken(), len(images)))
        return np.stack(rows, axis=1).reshape(len(images) * len(totals), -1)

    def outputs(self, images: Tensor, capture: Capture) -> Tensor:
        """(images, ...) what the model returns; layers are followed."""
        from torch.func import functional_call

        with told("the forward pass"), capture.following():
            returned: Any = functional_call(self.model, self._weights, (images,))
        found = getattr(returned, "logits", returned)
        import torch

        if not isinstance(found, torch.Tensor) or found.dim() < 1 or len(found) != len(images):
            raise HwmodelError(
                f"the model returns {_described(found)}, expected one tensor with a first axis of {len(images)} images"
            )
        return found

    def objectives(self, outputs: Tensor, labels: Tensor | None, first: int) -> list[Tensor]:
        """(images,) values to differentiate, one tensor for each probe."""
        if self.kind == "loss":
            losses = self._losses(outputs, labels)
            _check_finite(losses, "loss", first)
            return [losses]
        _check_finite(outputs, "output", first)
        drawn = [self._combinations(first + place, tuple(outputs.shape[1:])) for place in range(len(outputs))]
        combinations = outputs.new_tensor(np.stack(drawn, axis=1))
        return [(outputs * weights).reshape(len(outputs), -1).sum(1) for weights in combinations]

    def _combinations(self, place: int, shape: tuple[int, ...]) -> Float32Array:
        """(probes, ...) standard normal numbers of one image."""
        return np.random.default_rng([self.seed, place]).standard_normal((self.probes, *shape), dtype=np.float32)

    def _losses(self, outputs: Tensor, labels: Tensor | None) -> Tensor:
        from torch.nn.functional import cross_entropy

        with told("the loss"):
            if self.loss is not None:
                found = self.loss(outputs, labels)
            elif labels is None:
                raise HwmodelError("the cross-entropy needs labels: hand over batches of (images, labels)")
            else:
                found = cross_entropy(outputs, labels, reduction="none")
        if tuple(found.shape) != (len(outputs),):
            raise HwmodelError(f"the loss has shape {tuple(found.shape)}, expected one value for each of {len(outputs)} images")
        return found

    def _collected(self, found: dict[str, Tensor], images: int) -> Float32Array:
        """(images, blocks) of all layers, zero where no gradient came to one that it can reach."""
        rows = np.zeros((images, sum(layer.blocks for layer in self.layers)), dtype=np.float32)
        start = 0
        for layer in self.layers:
            if layer.name in found:
                rows[:, start : start + layer.blocks] = found[layer.name].cpu().numpy()
                if not np.isfinite(rows[:, start : start + layer.blocks]).all():
                    raise HwmodelError(f"{layer.name}: a gradient is not finite")
            start += layer.blocks
        return rows


def differentiate(total: Tensor, *, keeping: bool = False) -> None:
    """One backward pass; ``keeping`` the graph for another.

    Raises
    ------
    HwmodelError
        A sum that depends on no layer, or a backward pass that fails.
    """
    import torch

    if not total.requires_grad:
        raise HwmodelError("no layer's output reaches the output of the model by a differentiable way")
    with told("the backward pass"):
        torch.autograd.backward(total, retain_graph=keeping)


def _described(found: object) -> str:
    shape = getattr(found, "shape", None)
    return type(found).__name__ if shape is None else f"a tensor of shape {tuple(shape)}"


def _check_finite(values: Tensor, what: str, first: int) -> None:
    finite = values.isfinite().reshape(len(values), -1).all(1)
    if not finite.all():
        raise HwmodelError(f"the {what} of image {first + int((~finite).nonzero()[0, 0])} is not finite")
