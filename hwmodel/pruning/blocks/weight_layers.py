"""Layers whose weight is pruned in blocks: linears, and convolutions whose windows do not overlap, as linears over patches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from hwmodel.errors import HwmodelError
from hwmodel.ir.masks import FloatArray, Shape, grid_shape
from hwmodel.pruning.blocks.projected import blocks_of, matching, told

if TYPE_CHECKING:
    from torch import Tensor, nn

_NO_BLOCK = "finest= gives it no block"


@dataclass(frozen=True, kw_only=True, eq=False)
class WeightLayer:
    """A layer of a live module.

    Parameters
    ----------
    name : module path, which is the operator's name in the trace
    module : ``nn.Linear``, or ``nn.Conv2d`` whose stride is its kernel
    shape : (out, in) of the weight; a convolution's flattened
    finest : (out, in) of the blocks that projections are made for
    """

    name: str
    module: nn.Module
    shape: Shape
    finest: Shape

    @property
    def blocks(self) -> int:
        """Blocks of the weight, ragged ones included."""
        rows, cols = grid_shape(self.shape, self.finest)
        return rows * cols

    def weight(self) -> Tensor:
        """(out, in) weight as the module computes with it, masks applied."""
        weight: Any = self.module.weight
        found: Tensor = weight.detach().flatten(1)
        return found

    def input_rows(self, inputs: Tensor) -> Tensor:
        """(images, ..., in) inputs, or the patches of images, with features last."""
        if inputs.dim() != 4 or not is_patchifying(self.module):
            return inputs
        kernel: Any = self.module.kernel_size
        images, channels, *sides = inputs.shape
        height, width = (size // side for size, side in zip(sides, kernel, strict=True))
        cropped = inputs[:, :, : height * kernel[0], : width * kernel[1]]
        patches = cropped.reshape(images, channels, height, kernel[0], width, kernel[1])
        return patches.permute(0, 2, 4, 1, 3, 5).flatten(3)

    def output_rows(self, outputs: Tensor) -> Tensor:
        """(images, ..., out) outputs, or their gradients, with features last."""
        return outputs.permute(0, 2, 3, 1) if is_patchifying(self.module) else outputs


def is_patchifying(module: nn.Module) -> bool:
    """Whether a module is a convolution whose windows neither overlap nor leave gaps, in one group and without padding."""
    from torch import nn

    if not isinstance(module, nn.Conv2d) or module.kernel_size != module.stride or module.groups != 1:
        return False
    return module.padding in {(0, 0), "valid"} and module.dilation == (1, 1)


def weight_layers(
    model: nn.Module, finest: Shape | Mapping[str, Shape], layers: Sequence[str] | None
) -> tuple[tuple[WeightLayer, ...], dict[str, str]]:
    """The layers to project, and those that cannot be, each with the reason.

    Parameters
    ----------
    finest : (out, in) of the finest blocks, or a mapping of globs over layer names to it; layers that none matches are left out
    layers : globs over layer names; None takes all that can be projected

    Raises
    ------
    HwmodelError
        Nothing to project, a layer asked for by its name that cannot be, or a block larger than its weight.
    """
    from torch import nn

    held = {name: _up_to_date(module) for name, module in model.named_modules() if isinstance(module, (nn.Linear, nn.Conv2d))}
    if not held:
        raise HwmodelError(f"{type(model).__name__} has neither linear layers nor convolutions")
    shared = _shared_weights(model, held)
    chosen = matching(list(held), layers)
    blocks = blocks_of(chosen, finest)
    given = dict.fromkeys(blocks, "")
    reasons = {
        name: reason for name in chosen if (reason := shared.get(name) or _unusable(held[name]) or given.get(name, _NO_BLOCK))
    }
    for name in layers or ():
        if name in reasons:
            raise HwmodelError(f"{name}: {reasons[name]}")
    usable = [name for name in chosen if name not in reasons]
    if not usable:
        raise HwmodelError("; ".join(f"{name}: {reason}" for name, reason in list(reasons.items())[:3]))
    found = tuple(_layer(name, held[name], blocks[name]) for name in usable)
    return found, reasons


def _up_to_date(module: nn.Module) -> nn.Module:
    """A module whose masked weight is that of its present parameters, as it becomes when the module is next called."""
    import torch
    from torch.nn.utils.prune import BasePruningMethod

    for hook in module._forward_pre_hooks.values():
        if isinstance(hook, BasePruningMethod):
            with torch.no_grad():
                hook(module, ())
    return module


def _layer(name: str, module: Any, finest: Shape) -> WeightLayer:
    shape = module.weight.shape[0], module.weight[0].numel()
    if any(side > length for side, length in zip(finest, shape, strict=True)):
        raise HwmodelError(f"{name}: a finest block of {told(finest)} does not fit a weight of {told(shape)} (out x in)")
    return WeightLayer(name=name, module=module, shape=shape, finest=finest)


def _unusable(module: Any) -> str:
    """Why a layer's weight has no projections, "" where it has."""
    import torch
    from torch import nn

    weight = module.weight
    if isinstance(module, nn.Conv2d) and not is_patchifying(module):
        return "a convolution whose windows overlap is no product of a weight with patches"
    if weight.is_meta:
        return "has no values (it is on the meta device)"
    plain = type(weight) in {torch.Tensor, nn.Parameter} and weight.layout == torch.strided and weight.is_floating_point()
    return "" if plain else "its weight is quantised or stored sparse; make it a plain tensor first"


def _shared_weights(model: nn.Module, layers: Mapping[str, nn.Module]) -> dict[str, str]:
    """Layers whose weight other modules hold too, with the reason not to prune them apart."""
    owners: dict[int, list[str]] = {}
    for path, module in model.named_modules():
        for parameter in module._parameters.values():
            if parameter is not None and parameter.dim() > 1:
                owners.setdefault(id(parameter), []).append(path)
    found = {}
    for paths in owners.values():
        for layer in layers:
            others = [path for path in paths if path != layer and not path.startswith(f"{layer}.")]
            if len(others) < len(paths) and others:
                found[layer] = f"shares its weight with {', '.join(map(repr, others))}, so that the two cannot be pruned apart"
    return found


def block_norms(layer: WeightLayer) -> FloatArray:
    """(2, blocks) sums of squared and of absolute weights over each block.

    Raises
    ------
    HwmodelError
        A weight that is not finite.
    """
    values = layer.weight().double().cpu().numpy()
    if not np.isfinite(values).all():
        raise HwmodelError(f"{layer.name}: its weight holds values that are not finite")
    starts = [np.arange(0, length, side) for length, side in zip(layer.shape, layer.finest, strict=True)]
    both = np.stack([np.square(values), np.abs(values)])
    found: FloatArray = np.add.reduceat(np.add.reduceat(both, starts[0], axis=1), starts[1], axis=2)
    return found.reshape(2, -1)
