"""From an ONNX file to its trace."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from hwmodel.extraction.onnx_files.folding import Graph, fold
from hwmodel.extraction.onnx_files.idioms import recognise
from hwmodel.extraction.onnx_files.reading import Sides, read_model
from hwmodel.extraction.onnx_files.recording import record
from hwmodel.extraction.onnx_files.weights import weight_reader
from hwmodel.ir.trace import Trace

_DTYPES = {"float16": "fp16", "bfloat16": "bf16"}


def trace_onnx(
    path: Path, *, batch: int = 1, sides: Sides | None = None, dtype: str | None = None, block: tuple[int, int] | None = None
) -> Trace:
    """Every operator of an ONNX graph, as :func:`hwmodel.trace` gives it for the module it was exported from.

    Shapes say what weights cost; their values are read one by one for the blocks that are zero, as for a live module.
    Layout operators (transpose, reshape, slice) are views, as in PyTorch, and cost a copy only where memory moves. What
    an exporter folded into a constant is a parameter here. A product between dequantised operands (QDQ) runs in their
    integers; each quantisation is a cast.

    Parameters
    ----------
    path : the ``.onnx`` file; its stem becomes the model's name
    batch : images; must be the file's own where that is fixed
    sides : (height, width) where the file leaves them free
    dtype : number format of the trace; None takes the file's where its weights are 16-bit
    block : (out, in) of the weight blocks that are pruned whole; None detects them, weight by weight

    Raises
    ------
    UnsupportedOperatorError
        Operators without a lowering, with their nodes.
    HwmodelError
        Not an ONNX file, a size that contradicts the file, a shape that depends on data, or ``onnx`` is not installed.
    """
    from hwmodel.extraction.models import assembled

    graph = fold(read_model(path), path, batch, sides)
    recording, weights = record(graph, recognise(graph), path)
    own = _own_dtype(graph)
    shape = graph.tensors[graph.inputs[0]].shape if graph.inputs else ()
    return assembled(
        recording, name=path.stem, shape=shape, own=own, dtype=dtype or (None if own == "fp32" else own),
        packages=("onnx", "hwmodel"), weights=weight_reader(path, graph, weights, block),
    )  # fmt: skip


def _own_dtype(graph: Graph) -> str:
    """The format most parameter elements have, integers apart."""
    elements: Counter[str] = Counter()
    for name in graph.parameters:
        tensor = graph.tensors[name]
        elements[tensor.dtype] += tensor.numel
    return _DTYPES.get(elements.most_common(1)[0][0], "fp32") if elements else "fp32"
