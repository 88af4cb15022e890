"""From a model to its trace. torch and timm are imported when :func:`trace` is called, not before."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hwmodel.errors import HwmodelError
from hwmodel.ir.dtypes import check_dtype
from hwmodel.ir.operators import Operator
from hwmodel.ir.trace import Trace

if TYPE_CHECKING:
    import torch
    from torch import nn
    from torch.export import ExportedProgram

    from hwmodel.extraction.recording.graph import Record, Recording
    from hwmodel.extraction.recording.roles import Structure
    from hwmodel.extraction.weights.weight_reading import WeightReader

ImageSize = int | tuple[int, int]

_DTYPES = {"torch.float16": "fp16", "torch.bfloat16": "bf16"}
"""Parameter formats that become the dtype of the trace; fp32 leaves it open."""


@contextmanager
def _uncollected() -> Iterator[None]:
    """No garbage collection: an export makes many objects that live on, and looking through them takes a quarter of its time."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


@_uncollected()
def trace(
    model: str | Path | nn.Module,
    *,
    batch: int = 1,
    image_size: ImageSize | None = None,
    dtype: str | None = None,
    example: torch.Tensor | Sequence[torch.Tensor] | None = None,
    fused_attention: bool | None = None,
    checkpoint: str | Path | None = None,
    block: tuple[int, int] | None = None,
) -> Trace:
    """Every operator of one forward pass in eval mode, with the sparsity of its weights where there are weights.

    A live module is not changed, and no weight is kept.

    Parameters
    ----------
    model : name of a timm model ("deit_base_patch16_224"), a module of your own, or the path of an ``.onnx`` file
    batch : images of one forward pass
    image_size : pixels of a side, or (height, width); the model's own by default
    dtype : number format of the trace; None leaves it to the card, or to the module's parameters where they are 16-bit
    example : input of your own module, or a tuple of them, of shape (batch, ...); images of one are repeated ``batch`` times
    fused_attention : build a timm model with or without PyTorch's fused attention; None leaves timm's setting
    checkpoint : file with the weights of the model (.safetensors, or .pt as torch.save writes it), read for their sparsity
    block : (out, in) of the weight blocks that are pruned whole; None detects them, weight by weight

    Raises
    ------
    UnknownNameError
        A model name or dtype that does not exist.
    UnsupportedOperatorError
        Operators that have no lowering, all of them with counts.
    CheckpointError
        Weights that cannot be read, that are not the model's, or that hold NaN; a block that does not fit.
    HwmodelError
        An image size the model does not take, a missing example, or a forward pass that depends on data.
    """
    if dtype is not None:
        check_dtype(dtype)
    if batch < 1:
        raise HwmodelError(f"batch must be at least 1, got {batch}")
    sides = None if image_size is None else _sides(image_size)
    if isinstance(model, str | Path) and Path(model).suffix == ".onnx":
        given = {"example=": example, "a checkpoint": checkpoint}
        _refuse_for_onnx(Path(model), [name for name, value in given.items() if value is not None])
        from hwmodel.extraction.onnx_files.front_end import trace_onnx

        return trace_onnx(Path(model), batch=batch, sides=sides, dtype=dtype, block=block)
    if not isinstance(model, str):
        module = as_module(model)
        return _trace_module(module, example_inputs(module, batch, sides, example), dtype, checkpoint, block)
    if example is not None:
        raise HwmodelError(f"{model}: a model given by name makes its own input; leave example= out")
    return _trace_timm(model, batch, sides, dtype, fused_attention, checkpoint=checkpoint, block=block)


def _refuse_for_onnx(path: Path, given: Sequence[str]) -> None:
    if given:
        raise HwmodelError(f"{path}: an ONNX file names its own inputs and brings its own weights; leave out {' and '.join(given)}")


def as_module(model: object) -> nn.Module:
    """The module itself, out of ``torch.compile`` where that wrapped it; anything else is refused."""
    from torch import nn

    if not isinstance(model, nn.Module):
        raise HwmodelError(f"expected the name of a timm model or a torch.nn.Module, got {type(model).__name__}")
    return getattr(model, "_orig_mod", model)  # what torch.compile wrapped


def _sides(image_size: ImageSize) -> tuple[int, int]:
    sides = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)
    if len(sides) != 2 or min(sides) < 1:
        raise HwmodelError(f"image_size must be a number of pixels or (height, width), got {image_size!r}")
    return sides[0], sides[1]


def _trace_timm(
    name: str,
    batch: int,
    sides: tuple[int, int] | None,
    dtype: str | None,
    fused: bool | None,
    *,
    checkpoint: str | Path | None = None,
    block: tuple[int, int] | None = None,
) -> Trace:
    import torch

    from hwmodel.extraction import zoo
    from hwmodel.extraction.recording.export import export

    with zoo.fused_attention(fused):
        model = zoo.build(name, sides)
    zoo.check_image_size(model, name, sides)
    model, weights = _fitted(model, name, checkpoint, block)
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
    traced = _assemble(program, name=name, shape=tuple(image.shape), own="fp32", dtype=dtype, weights=weights)
    if weights is None or not weights.narrowed:
        return traced
    from hwmodel.extraction.whatif.found_recipes import beside_dense

    return beside_dense(traced, _trace_timm(name, batch, sides, dtype, fused))


def _fitted(
    model: nn.Module, name: str, checkpoint: str | Path | None, block: tuple[int, int] | None
) -> tuple[nn.Module, WeightReader | None]:
    """A model by name as its checkpoint has it, with the weights; the model itself where there is no checkpoint."""
    if checkpoint is None:
        return model, _weights(model, name, None, block)
    from hwmodel.extraction.weights.weight_reading import fitted

    return fitted(checkpoint, model, name, block)


def example_inputs(
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


def _weights(model: nn.Module, name: str, checkpoint: str | Path | None, block: tuple[int, int] | None) -> WeightReader | None:
    """The weights to read the sparsity of: those of the checkpoint, or the model's own where it has any."""
    from hwmodel.extraction.weights.weight_reading import WeightReader

    if checkpoint is not None:
        return WeightReader.of_checkpoint(checkpoint, model, name, block)
    if _is_meta(model):
        if block is not None:
            raise HwmodelError(f"{name}: a block says how weights are pruned, and there are none to read; give a checkpoint too")
        return None
    return WeightReader.of_module(model, block)


def _trace_module(
    model: nn.Module,
    inputs: tuple[Any, ...],
    dtype: str | None,
    checkpoint: str | Path | None,
    block: tuple[int, int] | None,
) -> Trace:
    program, assemble = exported_module(model, inputs, dtype, checkpoint, block)
    return assemble(program)


def exported_module(
    model: nn.Module,
    inputs: tuple[Any, ...],
    dtype: str | None,
    checkpoint: str | Path | None = None,
    block: tuple[int, int] | None = None,
) -> tuple[ExportedProgram, Callable[[ExportedProgram], Trace]]:
    """A module's program, and what makes the trace of it."""
    from hwmodel.extraction.recording.export import export, twin
    from hwmodel.extraction.recording.plain_copies import make_plain
    from hwmodel.extraction.weights.formats import make_float, read_formats, with_formats

    config = getattr(model, "pretrained_cfg", None) or {}
    name = config.get("architecture") or type(model).__name__
    formats = read_formats(model, name)
    weights = _weights(model, name, checkpoint, block)
    copied = twin(model)
    make_float(copied)
    make_plain(copied)
    with _default_device(copied):
        program = export(copied, tuple(_placed(value, copied) for value in inputs), name=name)
    shape = next((tuple(value.shape) for value in inputs if hasattr(value, "shape")), ())
    own = _module_dtype(model)
    settled = dtype or (None if own == "fp32" else own)
    assemble = partial(_assemble, name=name, shape=shape, own=own, dtype=settled, weights=weights)
    return program, lambda graph: with_formats(assemble(graph), formats)


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


def _assemble(
    program: ExportedProgram, *, name: str, shape: tuple[int, ...], own: str, dtype: str | None, weights: WeightReader | None = None
) -> Trace:
    """The trace of an exported program whose parameters are of dtype ``own``."""
    from hwmodel.extraction.recording.graph import record

    packages = ("torch", "timm", "hwmodel")
    return assembled(record(program, model=name), name=name, shape=shape, own=own, dtype=dtype, packages=packages, weights=weights)


def assembled(
    recording: Recording,
    *,
    name: str,
    shape: tuple[int, ...],
    own: str,
    dtype: str | None,
    packages: tuple[str, ...],
    weights: WeightReader | None = None,
) -> Trace:
    """The trace of a recording: names, roles, encoder blocks and attention groups, whichever front end recorded it."""
    from hwmodel.extraction.recording.naming import names
    from hwmodel.extraction.recording.roles import analyse

    structure = analyse(recording)
    final = names(recording, structure)
    traced = Trace(
        model=name,
        operators=tuple(_operators(recording.records, structure, final, own)),
        edges=tuple((producer, row) for row, rec in enumerate(recording.records) for producer in sorted(rec.producers)),
        batch=shape[0] if shape else 1,
        input_shape=shape,
        dtype=dtype,
        versions=_versions(*packages),
    )
    return traced if weights is None else weights.read_into(traced, recording, final)


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
