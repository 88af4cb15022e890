"""From a model to its trace. torch and timm are imported when :func:`trace` is called, not before."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from hwmodel.errors import HwmodelError
from hwmodel.ir.dtypes import check_dtype
from hwmodel.ir.operators import Operator
from hwmodel.ir.trace import Trace

if TYPE_CHECKING:
    import torch
    from torch import nn
    from torch.export import ExportedProgram

    from hwmodel.extraction.graph import Record
    from hwmodel.extraction.roles import Structure

ImageSize = int | tuple[int, int]

_DTYPES = {"torch.float16": "fp16", "torch.bfloat16": "bf16"}
"""Parameter formats that become the dtype of the trace; fp32 leaves it open."""


def trace(
    model: str | nn.Module,
    *,
    batch: int = 1,
    image_size: ImageSize | None = None,
    dtype: str | None = None,
    example: torch.Tensor | Sequence[torch.Tensor] | None = None,
    fused_attention: bool | None = None,
) -> Trace:
    """Every operator of one forward pass in eval mode; no weight is loaded, copied or changed.

    Parameters
    ----------
    model : name of a timm model ("deit_base_patch16_224"), or a module of your own
    batch : images of one forward pass
    image_size : pixels of a side, or (height, width); the model's own by default
    dtype : number format of the trace; None leaves it to the card, or to the module's parameters where they are 16-bit
    example : input of your own module, or a tuple of them, of shape (batch, ...); images of one are repeated ``batch`` times
    fused_attention : build a timm model with or without PyTorch's fused attention; None leaves timm's setting

    Raises
    ------
    UnknownNameError
        A model name or dtype that does not exist.
    UnsupportedOperatorError
        Operators that have no lowering, all of them with counts.
    HwmodelError
        An image size the model does not take, a missing example, or a forward pass that depends on data.
    """
    if dtype is not None:
        check_dtype(dtype)
    if batch < 1:
        raise HwmodelError(f"batch must be at least 1, got {batch}")
    sides = None if image_size is None else _sides(image_size)
    if not isinstance(model, str):
        return _trace_module(_module(model), _inputs(model, batch, sides, example), dtype)
    if example is not None:
        raise HwmodelError(f"{model}: a model given by name makes its own input; leave example= out")
    return _trace_timm(model, batch, sides, dtype, fused_attention)


def _module(model: object) -> nn.Module:
    from torch import nn

    if not isinstance(model, nn.Module):
        raise HwmodelError(f"expected the name of a timm model or a torch.nn.Module, got {type(model).__name__}")
    return getattr(model, "_orig_mod", model)  # what torch.compile wrapped


def _sides(image_size: ImageSize) -> tuple[int, int]:
    sides = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)
    if len(sides) != 2 or min(sides) < 1:
        raise HwmodelError(f"image_size must be a number of pixels or (height, width), got {image_size!r}")
    return sides[0], sides[1]


def _trace_timm(name: str, batch: int, sides: tuple[int, int] | None, dtype: str | None, fused: bool | None) -> Trace:
    import torch

    from hwmodel.extraction import zoo
    from hwmodel.extraction.export import export

    with zoo.fused_attention(fused):
        model = zoo.build(name, sides)
    zoo.check_image_size(model, name, sides)
    channels, height, width = zoo.input_size(model) or (3, 224, 224)
    height, width = sides or (height, width)
    image = torch.empty((batch, channels, height, width), device="meta")
    try:
        with torch.device("meta"):
            program = export(model, (image,), name=name)
    except HwmodelError as error:
        if sides is None:
            raise
        raise HwmodelError(f"image size {height}x{width} does not fit {name}: {zoo.accepted_sizes(model)} ({error})") from error
    return _assemble(program, name=name, shape=tuple(image.shape), own="fp32", dtype=dtype)


def _inputs(
    model: nn.Module, batch: int, sides: tuple[int, int] | None, example: torch.Tensor | Sequence[torch.Tensor] | None
) -> tuple[Any, ...]:
    """Arguments of the forward pass with ``batch`` images."""
    import torch

    if example is None:
        return (_image(model, batch, sides),)
    if sides is not None:
        raise HwmodelError("give either image_size= or example=, not both")
    values = (example,) if isinstance(example, torch.Tensor) else tuple(example)
    return tuple(_repeated(value, batch) if isinstance(value, torch.Tensor) else value for value in values)


def _image(model: nn.Module, batch: int, sides: tuple[int, int] | None) -> torch.Tensor:
    """An image for a timm model that was handed over as a module."""
    import torch

    from hwmodel.extraction.zoo import input_size

    size = input_size(model)
    if size is None:
        raise HwmodelError(f"{type(model).__name__} does not say what it takes; pass example=, a tensor of shape (batch, ...)")
    like = next((tensor for tensor in model.parameters() if tensor.is_floating_point()), torch.empty(0))
    return torch.empty((batch, size[0], *(sides or size[1:])), device=like.device, dtype=like.dtype)


def _repeated(value: torch.Tensor, batch: int) -> torch.Tensor:
    """``value`` for ``batch`` images, without memory for the repeats."""
    images = value.shape[0] if value.dim() else 1
    if batch in {1, images}:
        return value
    if images != 1:
        raise HwmodelError(f"example has {images} images, batch is {batch}; give an example of one image or of {batch}")
    return value.new_empty((batch, *value.shape[1:]), device=value.device)


def _trace_module(model: nn.Module, inputs: tuple[Any, ...], dtype: str | None) -> Trace:
    from hwmodel.extraction.export import export, twin

    config = getattr(model, "pretrained_cfg", None) or {}
    name = config.get("architecture") or type(model).__name__
    copied = twin(model)
    with _default_device(copied):
        program = export(copied, tuple(_placed(value, copied) for value in inputs), name=name)
    shape = next((tuple(value.shape) for value in inputs if hasattr(value, "shape")), ())
    own = _module_dtype(model)
    return _assemble(program, name=name, shape=shape, own=own, dtype=dtype or (None if own == "fp32" else own))


def _is_meta(model: nn.Module) -> bool:
    return any(tensor.is_meta for tensor in model.parameters())


def _default_device(model: nn.Module) -> AbstractContextManager[object]:
    """A module on the meta device makes its new tensors there too."""
    import torch

    return torch.device("meta") if _is_meta(model) else nullcontext()


def _placed(value: Any, model: nn.Module) -> Any:
    return value.to("meta") if _is_meta(model) and hasattr(value, "is_meta") else value


def _module_dtype(model: nn.Module) -> str:
    """The format most parameter elements have."""
    elements: dict[str, int] = {}
    for parameter in model.parameters():
        elements[str(parameter.dtype)] = elements.get(str(parameter.dtype), 0) + parameter.numel()
    return _DTYPES.get(max(elements, key=lambda key: elements[key]), "fp32") if elements else "fp32"


def _assemble(program: ExportedProgram, *, name: str, shape: tuple[int, ...], own: str, dtype: str | None) -> Trace:
    """The trace of an exported program whose parameters are of dtype ``own``."""
    from hwmodel.extraction.graph import record
    from hwmodel.extraction.naming import names
    from hwmodel.extraction.roles import analyse

    recording = record(program, model=name)
    structure = analyse(recording)
    final = names(recording, structure)
    return Trace(
        model=name,
        operators=tuple(_operators(recording.records, structure, final, own)),
        edges=tuple((producer, row) for row, rec in enumerate(recording.records) for producer in sorted(rec.producers)),
        batch=shape[0] if shape else 1,
        input_shape=shape,
        dtype=dtype,
        versions=_versions("torch", "timm", "hwmodel"),
    )


def _operators(records: Sequence[Record], structure: Structure, final: Sequence[str], own: str) -> Iterable[Operator]:
    """Records with name, role, block and attention group; a dtype of their own only where it differs."""
    groups = {index: attention for attention in structure.attentions for index in attention.members}
    for index, record in enumerate(records):
        operator, attention = record.operator, groups.get(index)
        fused = attention is not None and records[attention.scores].operator.fused_in_source
        yield operator.replace(
            name=final[index],
            role=structure.roles.get(index, ""),
            block=structure.blocks.get(index),
            dtype=None if operator.dtype == own else operator.dtype,
            attention_group=attention.name if attention else None,
            fused_in_source=fused,
        )


def _versions(*packages: str) -> dict[str, str]:
    found = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
