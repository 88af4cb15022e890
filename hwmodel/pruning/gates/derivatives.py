"""First and second derivatives of the loss of every image by gates of value 1, and what removal really does to it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from hwmodel.errors import HwmodelError, UnknownNameError
from hwmodel.pruning.failures import told
from hwmodel.pruning.gates.points import Arguments, GatePoint, RemovalPoint, changed_calls

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    Batches = Iterable[tuple[Tensor, Tensor]]
    """Images with their labels."""
    Loss = Callable[[Tensor, Tensor], Tensor]
    """From (outputs, labels) to the loss of every image, shape (images,)."""

FloatArray = npt.NDArray[np.float64]
Estimator = Literal["exact", "hutchinson", "row-sums"]


@dataclass(frozen=True)
class Curvatures:
    """How the diagonal of the Hessian of the gates is had from products with it.

    Parameters
    ----------
    estimator : "exact": one product per gate of a block; "hutchinson": ``probes`` products with random signs at all gates at
        once, unbiased; "row-sums": one product per block with ones, which is not the diagonal
    probes : of "hutchinson"
    signs : where its signs are drawn from, batch by batch
    """

    estimator: Estimator
    probes: int
    signs: torch.Generator

    @classmethod
    def of(cls, estimator: Estimator, probes: int, seed: int) -> Curvatures:
        """Checked, with signs from ``seed``.

        Raises
        ------
        HwmodelError
            An unknown estimator, or fewer than one probe.
        """
        import torch

        if estimator not in _ESTIMATORS:
            raise UnknownNameError("estimator", estimator, _ESTIMATORS)
        if probes < 1:
            raise HwmodelError(f"probes must be at least 1, got {probes}")
        return cls(estimator, probes, torch.Generator().manual_seed(seed))

    def __call__(self, gradients: Sequence[Tensor], gates: Sequence[Tensor]) -> list[Tensor]:
        """One (images, gates) tensor per block, from gradients that can be differentiated again."""
        return _ESTIMATORS[self.estimator](gradients, gates, self)


def _product(value: Tensor, gates: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Derivatives of a sum over gradients: a row of the Hessian, or its product with a vector."""
    import torch

    return torch.autograd.grad(value, gates, retain_graph=True, materialize_grads=True)


def _exact(gradients: Sequence[Tensor], gates: Sequence[Tensor], _: Curvatures) -> list[Tensor]:
    import torch

    return [
        torch.stack([_product(gradient[:, unit].sum(), [gate])[0][:, unit] for unit in range(gate.shape[1])], dim=1)
        for gradient, gate in zip(gradients, gates, strict=True)
    ]


def _hutchinson(gradients: Sequence[Tensor], gates: Sequence[Tensor], how: Curvatures) -> list[Tensor]:
    import torch

    total = [torch.zeros_like(gate) for gate in gates]
    for _ in range(how.probes):
        signs = [(2 * torch.randint(2, gate.shape, generator=how.signs) - 1).to(gate) for gate in gates]
        along = torch.stack([(gradient * sign).sum() for gradient, sign in zip(gradients, signs, strict=True)]).sum()
        total = [sums + sign * found for sums, sign, found in zip(total, signs, _product(along, gates), strict=True)]
    return [sums / how.probes for sums in total]


def _row_sums(gradients: Sequence[Tensor], gates: Sequence[Tensor], _: Curvatures) -> list[Tensor]:
    return [_product(gradient.sum(), [gate])[0] for gradient, gate in zip(gradients, gates, strict=True)]


_ESTIMATORS: Mapping[str, Callable[[Sequence[Tensor], Sequence[Tensor], Curvatures], list[Tensor]]] = {
    "exact": _exact,
    "hutchinson": _hutchinson,
    "row-sums": _row_sums,
}


@dataclass(frozen=True)
class Scoring:
    """A model whose losses are asked for.

    Parameters
    ----------
    function : its name in error messages
    model : in eval mode, ours to put hooks into
    blocks : encoder blocks of the model
    loss : of every image; cross-entropy where None
    """

    function: str
    model: nn.Module
    blocks: int
    loss: Loss | None = None

    def derivatives(
        self, points: Sequence[GatePoint], batches: Batches, curvatures: Curvatures, progress: Callable[[int], None] | None = None
    ) -> tuple[FloatArray, FloatArray]:
        """(images, blocks, gates) gradients and curvatures of the images' losses; NaN where a block has fewer gates.

        ``progress`` is called with the number of images done. Fused attention has no second derivative: its math form runs.

        Raises
        ------
        HwmodelError
            No batches, batches without labels, a loss that is not one per image, or a value that is not finite.
        """
        found, images = [], 0
        for number, inputs, labels in self._checked(batches):
            found.append(self._batch(points, number, inputs, labels, curvatures))
            images += len(inputs)
            if progress is not None:
                progress(images)
        first, second = ([batch[order] for batch in found] for order in (0, 1))
        return self._joined(points, first), self._joined(points, second)

    def removals(self, points: Sequence[RemovalPoint], batches: Batches, first: int = 0) -> FloatArray:
        """(images, blocks, units) change of the images' losses when one unit from ``first`` on is removed; NaN before it.

        Raises
        ------
        HwmodelError
            What :meth:`derivatives` refuses.
        """
        import torch

        with torch.no_grad():
            found = [self._removed(points, *batch, first=first) for batch in self._checked(batches)]
        return self._joined(points, found)

    def mean_loss(self, batches: Batches) -> float:
        """Mean over all images.

        Raises
        ------
        HwmodelError
            What :meth:`derivatives` refuses.
        """
        import torch

        with torch.no_grad():
            return float(torch.cat([self._losses(*batch) for batch in self._checked(batches)]).mean())

    def _checked(self, batches: Batches) -> Iterator[tuple[int, Tensor, Tensor]]:
        """Batches with their numbers, on the model's device."""
        parameter = next(self.model.parameters())
        if parameter.is_meta:
            raise HwmodelError(f"{self.function}: {type(self.model).__name__} has no values (it is on the meta device)")
        number = -1
        for number, batch in enumerate(batches):
            if not _labelled(batch):
                raise HwmodelError(f"{self.function}: batch {number}: expected (images, labels), two tensors of one length")
            yield number, batch[0].to(parameter.device), batch[1].to(parameter.device)
        if number < 0:
            raise HwmodelError(f"{self.function}: no batches; expected pairs of images and labels")

    def _losses(self, number: int, inputs: Tensor, labels: Tensor) -> Tensor:
        """Loss of every image, (images,), with the weights as constants."""
        from torch.func import functional_call
        from torch.nn.functional import cross_entropy

        constants = {name: parameter.detach() for name, parameter in self.model.named_parameters()}
        where = f"{self.function}: batch {number}"
        with told(f"{where}: the forward pass"):
            outputs = functional_call(self.model, constants, (inputs,))
        with told(f"{where}: the loss"):
            losses = cross_entropy(outputs, labels, reduction="none") if self.loss is None else self.loss(outputs, labels)
        shape = getattr(losses, "shape", None)
        if shape != (len(inputs),):
            got = f"a {type(losses).__name__}" if shape is None else tuple(shape)
            raise HwmodelError(f"{where}: loss must be one value per image, ({len(inputs)},), got {got}")
        self._finite(number, "loss", losses.detach().unsqueeze(1))
        return losses

    def _batch(
        self, points: Sequence[GatePoint], number: int, inputs: Tensor, labels: Tensor, curvatures: Curvatures
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Gradients and curvatures of one batch, (images, gates) per point."""
        import torch
        from torch.nn.attention import SDPBackend, sdpa_kernel

        gates: dict[int, Tensor] = {}

        def opened(point: GatePoint, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Arguments:
            gates[point.block] = args[0].new_ones((len(inputs), point.units(args[0]))).requires_grad_()
            return point.gated(args, kwargs, gates)

        with sdpa_kernel(SDPBackend.MATH):
            with changed_calls([(point.module, partial(opened, point)) for point in points]):
                losses = self._losses(number, inputs, labels)
            met = [gates[point.block] for point in points]
            with told(f"{self.function}: batch {number}: the backward pass"):
                gradients = torch.autograd.grad(losses.sum(), met, create_graph=True, materialize_grads=True)
                seconds = curvatures(gradients, met)
        firsts = [gradient.detach() for gradient in gradients]
        for point, first, second in zip(points, firsts, seconds, strict=True):
            self._finite(number, f"gradient in block {point.block}", first)
            self._finite(number, f"curvature in block {point.block}", second)
        return firsts, seconds

    def _removed(self, points: Sequence[RemovalPoint], number: int, inputs: Tensor, labels: Tensor, *, first: int) -> list[Tensor]:
        """Changes of one batch, (images, units) per point."""
        import torch

        units: dict[int, int] = {}

        def counted(point: RemovalPoint, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Arguments:
            units[point.block] = point.units(args[0])
            return args, kwargs

        with changed_calls([(point.module, partial(counted, point)) for point in points]):
            whole = self._losses(number, inputs, labels)
        found = []
        for point in points:
            changes = whole.new_full((len(inputs), units[point.block]), torch.nan)
            for unit in range(first, units[point.block]):
                with changed_calls([(point.module, partial(point.without, unit))]):
                    changes[:, unit] = self._losses(number, inputs, labels) - whole
            found.append(changes)
        return found

    def _finite(self, number: int, what: str, values: Tensor) -> None:
        finite = values.isfinite().all(dim=1)
        if not finite.all():
            image = int((~finite).nonzero()[0])
            raise HwmodelError(
                f"{self.function}: batch {number}: the {what} of image {image} is not finite; check pixels, label and weights"
            )

    def _joined(self, points: Sequence[GatePoint], batches: Sequence[Sequence[Tensor]]) -> FloatArray:
        """Batches of one (images, gates) tensor per point as (images, blocks, gates)."""
        images = sum(len(batch[0]) for batch in batches)
        joined = np.full((images, self.blocks, max(found.shape[1] for batch in batches for found in batch)), np.nan)
        start = 0
        for batch in batches:
            for point, found in zip(points, batch, strict=True):
                joined[start : start + len(found), point.block, : found.shape[1]] = found.cpu().numpy()
            start += len(batch[0])
        return joined


def _labelled(batch: object) -> bool:
    """Whether a batch is images and labels, as many of both."""
    import torch

    if not isinstance(batch, tuple | list) or len(batch) != 2:
        return False
    images, labels = batch
    tensors = isinstance(images, torch.Tensor) and isinstance(labels, torch.Tensor)
    return tensors and images.dim() > 0 and labels.dim() > 0 and len(images) == len(labels) > 0
