"""What an ONNX node is in PyTorch's words: the ATen call whose lowering prices it, or a view of its operand."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from hwmodel.extraction.onnx_files.folding import Graph, Node
from hwmodel.extraction.onnx_files.idioms import ATTENTION, LINEAR, NORM, ROLL, SIGMOID_GATED
from hwmodel.extraction.onnx_files.layouts import memory_order, viewed
from hwmodel.extraction.recording.lowering import Call, Shape, Value

Operands = Mapping[str, Any]
Layout = tuple[Shape, Shape]
"""Sizes and strides."""

ELEMENTWISE: Mapping[str, str] = {
    "Abs": "abs", "Acos": "acos", "Acosh": "acosh", "Add": "add", "And": "logical_and", "Asin": "asin", "Asinh": "asinh",
    "Atan": "atan", "Atanh": "atanh", "Ceil": "ceil", "Celu": "celu", "Clip": "clamp", "Cos": "cos", "Cosh": "cosh",
    "Div": "div", "Elu": "elu", "Equal": "eq", "Erf": "erf", "Exp": "exp", "Floor": "floor", "Greater": "gt",
    "GreaterOrEqual": "ge", "HardSigmoid": "hardsigmoid", "HardSwish": "hardswish", "IsInf": "isinf", "IsNaN": "isnan",
    "LeakyRelu": "leaky_relu", "Less": "lt", "LessOrEqual": "le", "Log": "log", "Max": "maximum", "Min": "minimum",
    "Mish": "mish", "Mod": "remainder", "Mul": "mul", "Neg": "neg", "Not": "logical_not", "Or": "logical_or",
    "PRelu": "prelu", "Reciprocal": "reciprocal", "Relu": "relu", "Round": "round", "Selu": "selu", "Sigmoid": "sigmoid",
    "Sign": "sign", "Sin": "sin", "Sinh": "sinh", "Softplus": "softplus", "Sqrt": "sqrt", "Sub": "sub", "Sum": "add",
    "Swish": "silu", "Tan": "tan", "Tanh": "tanh", "Where": "where", "Xor": "logical_xor", SIGMOID_GATED: "silu",
}  # fmt: skip
"""Operators that work value by value."""
OTHERS: Mapping[str, str] = {
    "ArgMax": "argmax", "ArgMin": "argmin", "AveragePool": "avg_pool2d", "BatchNormalization": "batch_norm",
    "Concat": "cat", "ConstantOfShape": "full", "CumSum": "cumsum", "DepthToSpace": "pixel_shuffle", "GatherElements": "gather",
    "GatherND": "index", "GlobalAveragePool": "adaptive_avg_pool2d", "GlobalMaxPool": "adaptive_max_pool2d",
    "InstanceNormalization": "instance_norm", "MaxPool": "max_pool2d", "OneHot": "one_hot", "Pad": "pad", "Range": "arange",
    "ReduceL2": "linalg_vector_norm", "ReduceLogSumExp": "logsumexp", "ReduceMax": "amax", "ReduceMean": "mean",
    "ReduceMin": "amin", "ReduceProd": "prod", "ReduceSum": "sum", "Resize": "upsample_bilinear2d", "ScatterElements": "scatter",
    "ScatterND": "index_put", "SpaceToDepth": "pixel_unshuffle", "Tile": "repeat", ROLL: "roll",
}  # fmt: skip
"""Operators whose lowering needs no more than the tensors."""


def view(node: Node, graph: Graph, value: Value) -> Layout | None:
    """Layout of the result where it is the operand's memory seen another way; None where it is new memory."""
    make = _VIEWS.get(node.op)
    return None if make is None else make(node, graph, value)


def _transpose(node: Node, graph: Graph, value: Value) -> Layout:
    order = node.attributes.get("perm") or range(len(value.shape))[::-1]
    return tuple(value.shape[axis] for axis in order), tuple(value.stride[axis] for axis in order)


def _reshape(node: Node, graph: Graph, value: Value) -> Layout | None:
    shape = graph.tensors[node.outputs[0]].shape
    stride = viewed(value.shape, value.stride, shape)
    return None if stride is None else (shape, stride)


def _expand(node: Node, graph: Graph, value: Value) -> Layout:
    shape = graph.tensors[node.outputs[0]].shape
    lead = len(shape) - len(value.shape)
    old = (1,) * lead + value.shape
    steps = (0,) * lead + value.stride
    return shape, tuple(0 if was == 1 and size != 1 else step for was, size, step in zip(old, shape, steps, strict=True))


def _slice(node: Node, graph: Graph, value: Value) -> Layout | None:
    shape = graph.tensors[node.outputs[0]].shape
    names = [*node.inputs, "", ""]
    axes = graph.numbers.get(names[3], np.arange(len(shape)))
    steps = graph.numbers.get(names[4], np.ones(np.size(axes), dtype=np.int64))
    if node.inputs[1] not in graph.numbers or (np.asarray(steps) < 1).any():
        return None
    factor = {int(axis) % len(shape): int(step) for axis, step in zip(np.ravel(axes), np.ravel(steps), strict=True)}
    return shape, tuple(step * factor.get(axis, 1) for axis, step in enumerate(value.stride))


def _split(node: Node, graph: Graph, value: Value) -> Layout:
    return graph.tensors[node.outputs[0]].shape, value.stride


def _select(node: Node, graph: Graph, value: Value) -> Layout | None:
    """A gather of one known index, or of neighbours, is a view."""
    index = graph.numbers.get(node.inputs[1])
    axis = node.attributes.get("axis", 0) % len(value.shape)
    if index is None or np.ndim(index) > 0:
        return None
    return graph.tensors[node.outputs[0]].shape, tuple(step for at, step in enumerate(value.stride) if at != axis)


def _cast(node: Node, graph: Graph, value: Value) -> Layout | None:
    same = graph.tensors[node.outputs[0]].dtype == value.dtype
    return (value.shape, value.stride) if same else None


def _same(node: Node, graph: Graph, value: Value) -> Layout:
    return value.shape, value.stride


_VIEWS: Mapping[str, Callable[[Node, Graph, Value], Layout | None]] = {
    "Transpose": _transpose,
    **dict.fromkeys(("Reshape", "Flatten", "Squeeze", "Unsqueeze"), _reshape),
    "Expand": _expand,
    "Slice": _slice,
    "Split": _split,
    "Gather": _select,
    **dict.fromkeys(("Cast", "CastLike"), _cast),
    "DequantizeLinear": _same,
}


def fresh_layout(node: Node, shape: Shape, operands: tuple[Value, ...]) -> Layout:
    """Layout of new memory: elementwise results lie as their first operand of that shape does, all others in order."""
    like = next((value for value in operands if value.shape == shape), None)
    if like is not None and (node.op in ELEMENTWISE or node.op in {"Gelu", "Pow", "QuantizeLinear", "Cast"}):
        return shape, memory_order(shape, like.stride)
    return shape, memory_order(shape, None)


def call_of(node: Node, operands: tuple[Value | None, ...], outputs: tuple[Value, ...], graph: Graph) -> Call | None:
    """The ATen call that a node stands for; None where it stands for none.

    ``operands`` has a None wherever an input is absent or only a number.
    """
    make = _CALLS.get(node.op)
    if make is not None:
        name, named = make(node, operands, graph)
        return Call(name=name, overload="", operands=named, outputs=outputs)
    name = ELEMENTWISE.get(node.op) or OTHERS.get(node.op, "")
    return Call(name=name, overload="", operands=_listed(operands), outputs=outputs) if name else None


def _listed(operands: tuple[Value | None, ...]) -> Operands:
    return {f"operand_{at}": value for at, value in enumerate(operands) if value is not None}


def _padded(operands: tuple[Value | None, ...], count: int) -> tuple[Any, ...]:
    return (*operands, *(None,) * count)[:count]


def _turned(weight: Value) -> Value:
    """A matrix (in, out) as PyTorch keeps weights: (out, in); of more dimensions, the last two change places."""
    shape, stride = ((*item[:-2], item[-1], item[-2]) for item in (weight.shape, weight.stride))
    return replace(weight, shape=shape, stride=stride)


def _linear(node: Node, operands: tuple[Value | None, ...], graph: Graph) -> tuple[str, Operands]:
    tokens, weight, bias = _padded(operands, 3)
    return "linear", {"input": tokens, "weight": _turned(weight), "bias": bias}


def _gemm(node: Node, operands: tuple[Value | None, ...], graph: Graph) -> tuple[str, Operands]:
    left, right, bias = _padded(operands, 3)
    left = _turned(left) if node.attributes.get("transA") else left
    if not right.constant:
        right = _turned(right) if node.attributes.get("transB") else right
        return (
            ("matmul", {"self": left, "other": right}) if bias is None else ("addmm", {"self": bias, "mat1": left, "mat2": right})
        )
    right = right if node.attributes.get("transB") else _turned(right)
    return "linear", {"input": left, "weight": right, "bias": bias}


def _matmul(node: Node, operands: tuple[Value | None, ...], graph: Graph) -> tuple[str, Operands]:
    return "matmul", {"self": operands[0], "other": operands[1]}


def _conv(node: Node, operands: tuple[Value | None, ...], graph: Graph) -> tuple[str, Operands]:
    image, weight, bias = _padded(operands, 3)
    pads = node.attributes.get("pads") or [0]
    padded = node.attributes.get("auto_pad", b"NOTSET") in {b"SAME_UPPER", b"SAME_LOWER"} or any(pads)
    rank = len(weight.shape) - 2
    return "convolution", {
        "input": image, "weight": weight, "bias": bias, "stride": tuple(node.attributes.get("strides") or (1,) * rank),
        "padding": (int(padded),), "groups": node.attributes.get("group", 1), "transposed": node.op == "ConvTranspose",
    }  # fmt: skip


def _norm(node: Node, operands: tuple[Value | None, ...], graph: Graph) -> tuple[str, Operands]:
    source, weight, bias = _padded(operands, 3)
    axis = node.attributes.get("axis", -1)
    name = "rms_norm" if node.op == "RMSNormalization" else "layer_norm"
    return name, {"input": source, "normalized_shape": source.shape[axis:], "weight": weight, "bias": bias}


def _group_norm(node: Node, operands: tuple[Value | None, ...], graph: Graph) -> tuple[str, Operands]:
    source, weight, bias = _padded(operands, 3)
    return "group_norm", {"input": source, "num_groups": node.attributes["num_groups"], "weight": weight, "bias": bias}


def _batch_norm(node: Node, operands: tuple[Value | None, ...], graph: Graph) -> tuple[str, Operands]:
    names = ("input", "weight", "bias", "running_mean", "running_var")
    return "batch_norm", dict(zip(names, operands, strict=False))


def _along(name: str) -> Callable[[Node, tuple[Value | None, ...], Graph], tuple[str, Operands]]:
    return lambda node, operands, graph: (name, {"self": operands[0], "dim": node.attributes.get("axis", -1)})


def _gelu(node: Node, operands: tuple[Value | None, ...], graph: Graph) -> tuple[str, Operands]:
    return "gelu", {"self": operands[0], "approximate": node.attributes.get("approximate", b"none").decode()}


def _pow(node: Node, operands: tuple[Value | None, ...], graph: Graph) -> tuple[str, Operands]:
    exponent = graph.numbers.get(node.inputs[1])
    known = exponent is not None and np.size(exponent) == 1
    return "pow", {"self": operands[0], "exponent": float(np.asarray(exponent).ravel()[0]) if known else operands[1]}


def _attention(node: Node, operands: tuple[Value | None, ...], graph: Graph) -> tuple[str, Operands]:
    query, key, value, mask = _padded(operands, 4)
    if node.attributes.get("turned"):
        key = _turned(key)
    causal = bool(node.attributes.get("is_causal", 0))
    return "scaled_dot_product_attention", {
        "query": query, "key": key, "value": value, "attn_mask": mask, "is_causal": causal,
    }  # fmt: skip


def _gather(node: Node, operands: tuple[Value | None, ...], graph: Graph) -> tuple[str, Operands]:
    return "index_select", _listed(operands)


def _topk(node: Node, operands: tuple[Value | None, ...], graph: Graph) -> tuple[str, Operands]:
    return "topk", {"self": operands[0], "dim": node.attributes.get("axis", -1)}


def _einsum(node: Node, operands: tuple[Value | None, ...], graph: Graph) -> tuple[str, Operands]:
    return "einsum", {"equation": node.attributes["equation"].decode(), "tensors": operands}


def _copied(node: Node, operands: tuple[Value | None, ...], graph: Graph) -> tuple[str, Operands]:
    return "clone", {"self": operands[0]}


def _converted(node: Node, operands: tuple[Value | None, ...], graph: Graph) -> tuple[str, Operands]:
    return "to", {"self": operands[0]}


_CALLS: Mapping[str, Callable[[Node, tuple[Value | None, ...], Graph], tuple[str, Operands]]] = {
    LINEAR: _linear,
    "Gemm": _gemm,
    "MatMul": _matmul,
    "MatMulInteger": _matmul,
    **dict.fromkeys(("Conv", "ConvTranspose"), _conv),
    **dict.fromkeys(("LayerNormalization", "RMSNormalization", NORM), _norm),
    "GroupNormalization": _group_norm,
    "BatchNormalization": _batch_norm,
    "Softmax": _along("softmax"),
    "LogSoftmax": _along("log_softmax"),
    "Gelu": _gelu,
    "Pow": _pow,
    **dict.fromkeys((ATTENTION, "Attention"), _attention),
    "Gather": _gather,
    "TopK": _topk,
    "Einsum": _einsum,
    **dict.fromkeys(("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Slice"), _copied),
    **dict.fromkeys(("Cast", "CastLike", "QuantizeLinear"), _converted),
}
