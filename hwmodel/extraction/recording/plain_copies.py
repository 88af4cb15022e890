"""Copies of pruned modules whose layers are plain again, so that masks add no operators to a trace."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hwmodel.extraction.weights.stored_weights import is_semi_structured, masks_of

if TYPE_CHECKING:
    from torch import Tensor, nn


def make_plain(copied: nn.Module) -> None:
    """Replace masked, block-sparse and 2:4 weights of a copy by dense ones of the same shape, without values.

    ``copied`` must be a copy (:func:`hwmodel.extraction.recording.export.twin`): its layers change. Parametrizations that are no
    masks stay.
    """
    for module in copied.modules():
        _without_pruning_hooks(module)
        _without_mask_parametrizations(module)
        _with_dense_layout(module)


def _without_pruning_hooks(module: nn.Module) -> None:
    from torch.nn.utils.prune import BasePruningMethod

    for key, hook in list(module._forward_pre_hooks.items()):
        if isinstance(hook, BasePruningMethod):
            name = hook._tensor_name
            del module._forward_pre_hooks[key], module._buffers[f"{name}_mask"]
            original = module._parameters.pop(f"{name}_orig")
            module.__dict__.pop(name, None)
            if original is not None:
                _register(module, name, original)


def _without_mask_parametrizations(module: nn.Module) -> None:
    """The class that the module had before torch gave it parametrizations; only where all of them are masks."""
    from torch.nn.utils import parametrize

    if not parametrize.is_parametrized(module) or not all(masks_of(module, name) for name in _parametrized(module)):
        return
    values = {name: getattr(module, name) for name in _parametrized(module)}
    del module._modules["parametrizations"]
    module.__class__ = type(module).__bases__[0]
    for name, value in values.items():
        _register(module, name, value)


def _parametrized(module: nn.Module) -> list[str]:
    return list(module.parametrizations)  # type: ignore[arg-type]


def _with_dense_layout(module: nn.Module) -> None:
    import torch

    for name, parameter in list(module._parameters.items()):
        if parameter is not None and (parameter.layout != torch.strided or is_semi_structured(parameter)):
            _register(module, name, parameter)


def _register(module: nn.Module, name: str, like: Tensor) -> None:
    """A parameter without values: memory that nobody touches is never taken."""
    import torch

    empty = torch.empty(like.shape, dtype=like.dtype, device=like.device)
    module.register_parameter(name, torch.nn.Parameter(empty, requires_grad=False))
