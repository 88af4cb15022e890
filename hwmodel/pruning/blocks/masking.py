"""Block masks on live models: weights set to zero, and masks that hold while a model is trained further."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from hwmodel.errors import HwmodelError, UnknownNameError
from hwmodel.extraction.models import as_module
from hwmodel.ir.masks import BlockMask

if TYPE_CHECKING:
    from torch import Tensor, nn


def apply_masks(model: nn.Module, masks: Mapping[str, BlockMask], *, in_place: bool = False, hold: bool = False) -> nn.Module:
    """Prune the blocks that masks leave out; biases stay.

    Parameters
    ----------
    masks : by module path, each of the (out, in) shape of the weight, a convolution's flattened; blocks at the edges are cropped
    in_place : change ``model`` itself; by default a copy is made and returned
    hold : keep the masks beside the weights (``torch.nn.utils.prune``: ``weight_orig``, ``weight_mask``), so that training keeps
        what is pruned at zero; :func:`release_masks` makes the weights plain again. Extraction reads either.

    Raises
    ------
    UnknownNameError
        A path that is no layer of the model.
    HwmodelError
        A mask of another shape than its weight, or a weight that is computed by a parametrization.
    """
    found = as_module(model)
    layers = {name: _layer(found, name) for name in masks}
    for name, layer in layers.items():
        _check(name, layer, masks[name])
    if not in_place:
        found = copied(found)
        layers = {name: found.get_submodule(name) for name in masks}
    for name, layer in layers.items():
        _prune(layer, masks[name], hold=hold)
    return found


def release_masks(model: nn.Module) -> nn.Module:
    """Make held masks final: each weight is a plain parameter again, zero where it was masked. Changes ``model`` itself."""
    from torch.nn.utils import prune

    for module in as_module(model).modules():
        for name in _held(module):
            prune.remove(module, name)  # type: ignore[no-untyped-call]
    return model


def element_mask(mask: BlockMask, like: Tensor) -> Tensor:
    """1 where a weight element is kept and 0 where it is pruned, as a tensor like the weight."""
    import torch

    grid = np.repeat(np.repeat(mask.kept, mask.block[0], axis=0), mask.block[1], axis=1)[: mask.shape[0], : mask.shape[1]]
    return torch.from_numpy(grid).to(device=like.device, dtype=like.dtype).reshape(like.shape)


def copied(model: nn.Module) -> nn.Module:
    """A deep copy; weights that held masks have computed are copied as plain values, for torch copies no others."""
    computed = {
        id(value): value.detach().clone()
        for module in model.modules()
        for name in _held(module)
        if (value := module.__dict__.get(name)) is not None
    }
    return copy.deepcopy(model, computed)


def _held(module: nn.Module) -> list[str]:
    """Tensors of a module that ``torch.nn.utils.prune`` masks."""
    from torch.nn.utils.prune import BasePruningMethod

    hooks: Any = module._forward_pre_hooks.values()
    return [hook._tensor_name for hook in hooks if isinstance(hook, BasePruningMethod)]


def _layer(model: nn.Module, name: str) -> Any:
    from torch import nn

    known = {path for path, module in model.named_modules() if isinstance(module, (nn.Linear, nn.Conv2d))}
    if name not in known:
        raise UnknownNameError("layer", name, known)
    return model.get_submodule(name)


def _check(name: str, layer: Any, mask: BlockMask) -> None:
    shape = layer.weight.shape[0], layer.weight[0].numel()
    if mask.shape != shape:
        raise HwmodelError(f"{name}: mask is for a weight of {mask.shape} (out, in), found {shape}")
    if "weight" not in layer._parameters and "weight" not in _held(layer):
        raise HwmodelError(f"{name}: its weight is computed by a parametrization; remove that first")


def _prune(layer: Any, mask: BlockMask, *, hold: bool) -> None:
    import torch
    from torch.nn.utils import prune

    kept = element_mask(mask, layer.weight)
    if hold:
        prune.custom_from_mask(layer, "weight", kept)  # type: ignore[no-untyped-call]
        return
    with torch.no_grad():
        if "weight" in layer._parameters:
            layer.weight.mul_(kept)
        else:
            layer.weight_orig.mul_(kept)
            layer.weight_mask.mul_(kept)
            layer.weight = layer.weight_orig * layer.weight_mask
