"""timm models by name: built without weights, with the image size asked for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from hwmodel.errors import HwmodelError, UnknownNameError
from hwmodel.extraction.torchvision_repair import import_torchvision

if TYPE_CHECKING:
    from torch import nn

Sides = tuple[int, int]


def build(name: str, sides: Sides | None = None, *, device: str = "meta") -> nn.Module:
    """A timm model in eval mode on the meta device: shapes only, no memory for weights.

    Parameters
    ----------
    name : name of the architecture, with or without a tag of pretrained weights
    sides : (height, width) of the images in pixels; the model's own where None
    device : another one makes real weights, with random values

    Raises
    ------
    UnknownNameError
        A name timm does not know.
    HwmodelError
        An image size the model cannot be built for.
    """
    timm = _timm()
    if not timm.is_model(name):
        raise UnknownNameError("model", name, timm.list_models())
    if sides is None:
        return _create(name, device)
    try:
        return _create(name, device, img_size=sides)
    except TypeError as error:
        if "img_size" not in str(error):
            raise
        return _create(name, device)
    except (AssertionError, ValueError, RuntimeError, ZeroDivisionError) as error:
        raise HwmodelError(_misfit(name, sides, _create(name))) from error


def families(pattern: str = "*") -> dict[str, list[str]]:
    """Names of timm's models by the module of timm that holds them, both sorted; a pattern chooses modules or names."""
    timm = _timm()
    found = {module: sorted(timm.list_models(module=module)) for module in sorted(timm.list_modules())}
    chosen = {
        module: names if fnmatchcase(module, pattern) else [name for name in names if fnmatchcase(name, pattern)]
        for module, names in found.items()
    }
    return {module: names for module, names in chosen.items() if names}


def _timm() -> Any:
    import_torchvision()
    import timm

    return timm


def _create(name: str, device: str = "meta", **options: Any) -> nn.Module:
    import torch

    with torch.device(device):
        model: nn.Module = _timm().create_model(name, pretrained=False, **options)
    return model.eval()


@contextmanager
def fused_attention(fused: bool | None) -> Iterator[None]:
    """timm's switch for PyTorch's fused attention, set for models built inside; None leaves it alone."""
    if fused is None:
        yield
        return
    _timm()
    from timm.layers import config

    before = config._USE_FUSED_ATTN
    config.set_fused_attn(fused)
    try:
        yield
    finally:
        config._USE_FUSED_ATTN = before


def input_size(model: nn.Module) -> tuple[int, int, int] | None:
    """(channels, height, width) that a timm model was made for, None where the model does not say."""
    config = getattr(model, "pretrained_cfg", None) or {}
    size = config.get("input_size")
    return tuple(size) if size else None


def patch_size(model: nn.Module) -> Sides | None:
    """(height, width) of a patch, None for models without a patch embedding."""
    size = getattr(getattr(model, "patch_embed", None), "patch_size", None)
    if isinstance(size, int):
        return size, size
    return (int(size[0]), int(size[1])) if isinstance(size, tuple | list) and len(size) == 2 else None


def check_image_size(model: nn.Module, name: str, sides: Sides | None) -> None:
    """Refuse images that patches do not tile: timm would silently drop the pixels at the edge.

    Raises
    ------
    HwmodelError
        One line naming size, model and what it takes.
    """
    patch = patch_size(model)
    if sides is not None and patch is not None and (sides[0] % patch[0] or sides[1] % patch[1]):
        raise HwmodelError(_misfit(name, sides, model))


def _misfit(name: str, sides: Sides, model: nn.Module) -> str:
    return f"image size {sides[0]}x{sides[1]} does not fit {name}: {accepted_sizes(model)}"


def accepted_sizes(model: nn.Module) -> str:
    """What a model takes, in words."""
    size, patch = input_size(model), patch_size(model)
    made = f"it takes {size[1]}x{size[2]}" if size else "it has no default size"
    return f"{made} and other multiples of its {patch[0]}x{patch[1]} patch" if patch else made
