"""Read an ONNX file without its external weights, with its free dimensions given sizes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from hwmodel.errors import HwmodelError

if TYPE_CHECKING:
    from onnx import ModelProto, ValueInfoProto

Sides = tuple[int, int]
_SPATIAL = {2: "height", 3: "width"}
"""Axes of an image input (images, channels, height, width) that ``image_size`` gives."""


def onnx_package() -> Any:
    """The package ``onnx``.

    Raises
    ------
    HwmodelError
        It is not installed.
    """
    try:
        import onnx
        import onnx.inliner
        import onnx.numpy_helper
        import onnx.reference
        import onnx.shape_inference
    except ImportError as error:
        raise HwmodelError('reading .onnx files needs the package onnx: pip install "hwmodel[onnx]"') from error
    return onnx


def read_model(path: Path) -> ModelProto:
    """The model in a file, functions inlined; weights in external files are left where they are.

    Raises
    ------
    HwmodelError
        No such file, or one that holds no ONNX graph.
    """
    onnx = onnx_package()
    if not path.is_file():
        raise HwmodelError(f"{path}: no such file")
    from google.protobuf.message import DecodeError

    try:
        model = onnx.load(path, load_external_data=False)
    except DecodeError as error:
        raise HwmodelError(f"{path}: not an ONNX file, or a truncated one ({error})") from error
    if not model.graph.node or not model.opset_import:
        raise HwmodelError(f"{path}: holds no ONNX graph; is it truncated?")
    inlined: ModelProto = onnx.inliner.inline_local_functions(model) if model.functions else model
    return inlined


def input_shapes(model: ModelProto, path: Path, batch: int, sides: Sides | None) -> dict[str, tuple[int, ...]]:
    """Shape of every input of the graph that is no initializer, free dimensions filled in.

    Raises
    ------
    HwmodelError
        A fixed batch or image size other than the one asked for, or a free dimension that nothing gives.
    """
    stored = {tensor.name for tensor in model.graph.initializer}
    given = [value for value in model.graph.input if value.name not in stored]
    return {value.name: _filled(value, path, batch, sides) for value in given}


def _filled(value: ValueInfoProto, path: Path, batch: int, sides: Sides | None) -> tuple[int, ...]:
    dims = value.type.tensor_type.shape.dim
    wanted = {0: batch} | (dict(zip(_SPATIAL, sides, strict=True)) if sides is not None and len(dims) == 4 else {})
    sizes = []
    for axis, dim in enumerate(dims):
        fixed = dim.dim_value if dim.HasField("dim_value") else None
        asked = wanted.get(axis)
        what = "batch" if axis == 0 else _SPATIAL.get(axis, f"axis {axis}")
        if fixed is None and asked is None:
            option = "give image_size" if axis in _SPATIAL else "export it with a fixed size"
            raise HwmodelError(f"{path}: input {value.name!r} has a free {what} ({dim.dim_param or '?'}); {option}")
        if fixed is not None and asked not in (None, fixed):
            raise HwmodelError(
                f"{path}: exported at {what} {fixed}, not {asked}; ask for {what} {fixed}, or export it with a free {what}"
            )
        sizes.append(fixed if fixed is not None else int(asked or 0))
    return tuple(sizes)
