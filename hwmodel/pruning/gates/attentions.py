"""The attentions of a model that this package gates and narrows, by the number of their encoder block."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hwmodel.errors import HwmodelError

if TYPE_CHECKING:
    from torch import nn


def encoder_blocks(model: nn.Module, function: str) -> list[Any]:
    """Encoder blocks in execution order, as traces number them; those of a hierarchical model are counted through its stages.

    Raises
    ------
    HwmodelError
        A model that is not timm's VisionTransformer or SwinTransformer.
    """
    from hwmodel.extraction.torchvision_repair import import_torchvision

    import_torchvision()
    from timm.models.swin_transformer import SwinTransformer
    from timm.models.vision_transformer import VisionTransformer

    running: Any = model
    if isinstance(model, VisionTransformer):
        return list(running.blocks)
    if isinstance(model, SwinTransformer):
        return [block for stage in running.layers for block in stage.blocks]
    raise HwmodelError(f"{function}: expected a timm VisionTransformer or SwinTransformer, got {type(model).__name__}")


def attentions(model: nn.Module, function: str) -> dict[int, Any]:
    """Attention of every block that has one of a kind whose heads are known, by block.

    Raises
    ------
    HwmodelError
        A model of another kind, or one without such an attention.
    """
    blocks = encoder_blocks(model, function)
    from timm.layers.attention import Attention
    from timm.models.swin_transformer import WindowAttention

    found = {number: getattr(block, "attn", None) for number, block in enumerate(blocks)}
    known = {number: attention for number, attention in found.items() if type(attention) in (Attention, WindowAttention)}
    if not known:
        kinds = ", ".join(sorted({type(attention).__name__ for attention in found.values()})) or "no blocks"
        raise HwmodelError(f"{function}: {type(model).__name__} has no timm Attention or WindowAttention in its blocks ({kinds})")
    return known
