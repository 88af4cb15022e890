"""The weights of an ONNX file, each loaded when its sparsity is asked for, as PyTorch keeps it: (out, in)."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from hwmodel.errors import HwmodelError
from hwmodel.extraction.onnx_files.folding import Graph
from hwmodel.extraction.onnx_files.reading import onnx_package
from hwmodel.extraction.onnx_files.recording import Weight

if TYPE_CHECKING:
    from torch import Tensor

    from hwmodel.extraction.weights.weight_reading import WeightReader


def weight_reader(path: Path, graph: Graph, weights: Mapping[str, Weight], block: tuple[int, int] | None) -> WeightReader:
    """What reads the sparsity of the floating-point weights of a file; quantised ones, whose zero is a code, are left out."""
    from hwmodel.extraction.weights.checkpoints import StoredTensors
    from hwmodel.extraction.weights.stored_weights import StoredWeights
    from hwmodel.extraction.weights.weight_reading import WeightReader

    plain = {name: weight for name, weight in weights.items() if "float" in graph.tensors[weight[0]].dtype}
    shapes = {name: value.shape for name, (_, value) in plain.items()}
    return WeightReader(StoredWeights(StoredTensors(str(path), shapes, partial(_load, path, graph, plain))), block)


def _load(path: Path, graph: Graph, weights: Mapping[str, Weight], name: str) -> Tensor:
    """One weight; from the file beside the model where it is external."""
    import torch

    onnx = onnx_package()
    stored, value = weights[name]
    try:
        array = onnx.numpy_helper.to_array(graph.stored[stored], str(path.parent))
    except (OSError, ValueError, onnx.checker.ValidationError) as error:
        raise HwmodelError(f"{path}: weight {name!r} cannot be read: {str(error).splitlines()[0]}") from error
    flat = np.ascontiguousarray(array.astype(np.float32)).ravel()
    steps = tuple(step * flat.itemsize for step in value.stride)
    return torch.from_numpy(np.lib.stride_tricks.as_strided(flat, value.shape, steps).copy())
