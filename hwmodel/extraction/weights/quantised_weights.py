"""Quantised weights in a checkpoint: integers beside the scales and zero points that give them their size.

Two layouts are known: ``weight`` of integers with ``weight_scale`` (and ``weight_zero_point``), and torchao's flattened
tensors, ``_weight_qdata`` with ``_weight_scale`` (and ``_weight_zero_point``). Each integer is one element of the weight.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import numpy as np

from hwmodel.errors import CheckpointError
from hwmodel.extraction.weights.checkpoints import Shape, StoredTensors
from hwmodel.extraction.weights.formats import LayerFormat
from hwmodel.ir.masks import BoolArray

if TYPE_CHECKING:
    from torch import Tensor

_FLAT = re.compile(r"^(?P<path>.*?)_(?P<name>\w*weight)_(?P<part>qdata|scale|zero_point)$")
_BESIDE = re.compile(r"^(?P<weight>.*weight)_(?P<part>scale|zero_point)$")


def quantised_part(name: str, tensors: StoredTensors) -> tuple[str, str] | None:
    """The weight that a stored tensor belongs to and what it is of it ("qdata", "scale", "zero_point"); None for any other."""
    flat = _FLAT.match(name)
    if flat is not None and f"{flat['path']}_{flat['name']}_qdata" in tensors.shapes:
        return flat["path"] + flat["name"], flat["part"]
    beside = _BESIDE.match(name)
    if beside is not None and beside["weight"] in tensors.shapes and _is_integer(tensors.load(beside["weight"])):
        return beside["weight"], beside["part"]
    return None


def _is_integer(tensor: Tensor) -> bool:
    return not tensor.is_floating_point() and not tensor.is_complex()


def stored_format(qdata: Tensor, scale: Tensor, zero_point: Tensor | None, where: str) -> LayerFormat:
    """The format of a weight: 8-bit integers, with one scale (and zero point) per group of weights.

    Raises
    ------
    CheckpointError
        Integers of another width.
    """
    if str(qdata.dtype) not in {"torch.int8", "torch.uint8"}:
        raise CheckpointError(f"{where} is quantised to {str(qdata.dtype).removeprefix('torch.')}; known are 8-bit integers")
    parts = [scale] if zero_point is None else [scale, zero_point]
    return LayerFormat(
        weights="int8", group=qdata.numel() // max(scale.numel(), 1), scale_bits=8 * sum(part.element_size() for part in parts)
    )


def nonzero_integers(qdata: Tensor, zero_point: Tensor | None, where: str) -> BoolArray:
    """Elements whose value is not zero: integers that differ from the zero point of their row or group.

    Raises
    ------
    CheckpointError
        Zero points that do not tile the weight.
    """
    integers = qdata.cpu().numpy()
    zeros = np.zeros(1) if zero_point is None else zero_point.cpu().numpy()
    differs: BoolArray = integers != (zeros.reshape(1) if zeros.size == 1 else _spread(zeros, integers.shape, where))
    return differs


def _spread(zeros: np.ndarray, shape: Shape, where: str) -> np.ndarray:
    """Zero points per row, or per row and group, at every element."""
    grid = zeros.reshape(shape[0], -1) if zeros.shape[0] == shape[0] else zeros[:0]
    columns = int(np.prod(shape[1:]))
    if not grid.size or columns % grid.shape[1]:
        raise CheckpointError(f"{where} has zero points of shape {zeros.shape}, which do not tile its shape {shape}")
    return np.repeat(grid, columns // grid.shape[1], axis=1).reshape(shape)


def refuse_packed(stored: dict[str, Shape], expected: dict[str, Shape], where: str) -> None:
    """Refuse integers that hold several elements each: their number is not that of the weight, and the layout is unknown.

    Raises
    ------
    CheckpointError
        One line naming the first such weight.
    """
    for name, shape in stored.items():
        dense = expected.get(name)
        if dense is not None and shape != dense and np.prod(shape, dtype=int) in {np.prod(dense, dtype=int) // by for by in (2, 8)}:
            raise CheckpointError(
                f"{where}: {name} is quantised and packed ({'x'.join(map(str, shape))} for {'x'.join(map(str, dense))}), "
                "a layout hwmodel does not know; trace the live module, or store one integer per weight"
            )
