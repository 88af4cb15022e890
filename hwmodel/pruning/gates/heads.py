"""Head pruning that narrows the layers: a smaller model that computes what the dense one does with those heads' outputs at zero."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from operator import index
from typing import TYPE_CHECKING, Any

from hwmodel.errors import HwmodelError
from hwmodel.pruning.gates.attentions import attentions

if TYPE_CHECKING:
    from torch import Tensor, nn


def remove_heads(model: nn.Module, kept: Mapping[int, Iterable[int]]) -> nn.Module:
    """A copy with fewer attention heads: qkv and proj lose rows and columns, and so do a gate and Swin's table of positions.

    Heads per block may differ. Width, bias of proj, normalisations of queries and keys, and LayerScale stay as they are. The copy
    owns its weights, so it can be fine-tuned; its ``state_dict()`` in a file is what ``hw.trace(NAME, checkpoint=...)`` reads.

    Parameters
    ----------
    model : timm VisionTransformer or SwinTransformer
    kept : heads that stay, by encoder block (Swin's counted through its stages); at least one each. Other blocks stay whole.
        To lose a block's attention altogether is another pruning: a recipe's ``remove = ["attention"]``

    Raises
    ------
    HwmodelError
        A model or block without attention of a known kind, no head or an unknown head, weights under a mask or parametrization,
        or attention normalised over all its heads together, where fewer heads are not the same as zeros.
    """
    copied = _copied(model)
    found = attentions(copied, "remove_heads")
    for block, heads in kept.items():
        if block not in found:
            raise HwmodelError(f"remove_heads: block {block!r} has no attention to narrow; blocks that have: {sorted(found)}")
        staying = _staying(block, heads, int(found[block].num_heads))
        if len(staying) < found[block].num_heads:
            _refuse_coupled(block, found[block])
            _narrow(found[block], staying)
    return copied


def _copied(model: nn.Module) -> nn.Module:
    """A copy with weights of its own; products of weight and mask are no leaves, and made anew when the copy runs."""
    from torch import Tensor

    derived = {
        id(held): held.detach().clone() for part in model.modules() for held in vars(part).values() if isinstance(held, Tensor)
    }
    return copy.deepcopy(model, derived)


def _staying(block: int, heads: Iterable[int], total: int) -> list[int]:
    """Heads in ascending order."""
    try:
        staying = sorted({index(head) for head in heads})
    except TypeError as error:
        raise HwmodelError(f"remove_heads: block {block}: expected the indices of the heads that stay, got {heads!r}") from error
    if not staying:
        raise HwmodelError(f"remove_heads: block {block}: at least one head must stay")
    if staying[0] < 0 or staying[-1] >= total:
        raise HwmodelError(f"remove_heads: block {block}: it has heads 0-{total - 1}, asked to keep {staying}")
    return staying


def _refuse_coupled(block: int, attention: Any) -> None:
    """Refuse an attention that cannot be narrowed without changing the heads that stay."""
    from torch import nn

    if not isinstance(getattr(attention, "norm", None), nn.Identity | None):
        raise HwmodelError(
            f"remove_heads: block {block}: its heads are normalised together, so none can go without a change of all"
        )
    for name, layer in _linears(attention).items():
        if type(layer) is not nn.Linear or "weight" not in layer._parameters:
            raise HwmodelError(
                f"remove_heads: block {block}: {name} is masked, parametrized or quantised; make it a plain Linear first"
            )


def _linears(attention: Any) -> dict[str, nn.Module]:
    return {name: layer for name in ("qkv", "gate", "proj") if (layer := getattr(attention, name, None)) is not None}


def _narrow(attention: Any, heads: Sequence[int]) -> None:
    """Keep ``heads``: queries, keys and values one after the other in the rows of qkv, heads in each of them in their order."""
    import torch

    width = attention.proj.in_features // attention.num_heads
    columns = (torch.tensor(heads)[:, None] * width + torch.arange(width)).flatten()
    thirds = (torch.arange(3)[:, None] * attention.proj.in_features + columns).flatten()
    _keep_rows(attention.qkv, thirds)
    if getattr(attention, "gate", None) is not None:
        _keep_rows(attention.gate, columns)
    attention.proj.weight = _chosen(attention.proj.weight, columns, axis=1)
    attention.proj.in_features = len(columns)
    if hasattr(attention, "relative_position_bias_table"):
        attention.relative_position_bias_table = _chosen(attention.relative_position_bias_table, torch.tensor(heads), axis=1)
    attention.num_heads = len(heads)
    if hasattr(attention, "attn_dim"):
        attention.attn_dim = len(columns)


def _keep_rows(layer: Any, rows: Tensor) -> None:
    layer.weight = _chosen(layer.weight, rows, axis=0)
    if layer.bias is not None:
        layer.bias = _chosen(layer.bias, rows, axis=0)
    layer.out_features = len(rows)


def _chosen(parameter: nn.Parameter, places: Tensor, *, axis: int) -> nn.Parameter:
    from torch import nn

    chosen = parameter.detach().index_select(axis, places.to(parameter.device))
    return nn.Parameter(chosen, requires_grad=parameter.requires_grad)
