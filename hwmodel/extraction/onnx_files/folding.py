"""Shapes of every tensor of an ONNX graph, and the numbers that exporters compute inside it, done once here."""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hwmodel.errors import HwmodelError, UnsupportedOperatorError
from hwmodel.extraction.onnx_files.reading import Sides, input_shapes, onnx_package

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto, TensorProto, TypeProto

Shape = tuple[int, ...]
_MOST_NUMBERS = 64
"""Integers in a tensor that still count as host arithmetic on shapes rather than as data."""
_LISTED = 5
HOST = frozenset({"int64", "int32", "bool"})
"""Formats of shapes, axes and indices."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """One operation on tensors, in our own words: outside ONNX's standard domain the operator carries its domain."""

    op: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any] = field(default_factory=dict)
    module: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Tensor:
    """Shape and format ("float32") of a tensor."""

    shape: Shape
    dtype: str

    @property
    def numel(self) -> int:
        """Elements of the shape."""
        return prod(self.shape)


@dataclass(slots=True)
class Graph:
    """A folded graph.

    Parameters
    ----------
    nodes : what is left to do on tensors, in execution order
    tensors : every tensor by name
    numbers : tensors whose values are known and small: shapes, axes, scales
    parameters : tensor name to the name of the parameter it holds
    inputs, outputs : names of the graph's own
    classes : module path to class, where the exporter says
    stored : parameter tensors as the file holds them, not decoded
    """

    nodes: list[Node] = field(default_factory=list)
    tensors: dict[str, Tensor] = field(default_factory=dict)
    numbers: dict[str, Any] = field(default_factory=dict)
    parameters: dict[str, str] = field(default_factory=dict)
    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    classes: dict[str, str] = field(default_factory=dict)
    stored: dict[str, TensorProto] = field(default_factory=dict)


def fold(model: ModelProto, path: Path, batch: int, sides: Sides | None) -> Graph:
    """Walk a model once: infer shapes, evaluate host arithmetic, drop identities.

    Raises
    ------
    UnsupportedOperatorError
        Operators that ONNX does not define: all of them, with node names.
    HwmodelError
        A shape that cannot be inferred.
    """
    return _Folder(model, path).run(input_shapes(model, path, batch, sides))


class _Folder:
    """State of one walk."""

    def __init__(self, model: ModelProto, path: Path) -> None:
        self.onnx = onnx_package()
        self.model, self.path = model, path
        self.graph = Graph(outputs=tuple(value.name for value in model.graph.output))
        self.alias: dict[str, str] = {}
        self.types: dict[str, TypeProto] = {}
        self.data: dict[str, TensorProto] = {}
        self.stored_types = {value.name: value.type for value in (*model.graph.value_info, *model.graph.output)}
        self.opsets = {item.domain: item.version for item in model.opset_import}

    def run(self, shapes: Mapping[str, Shape]) -> Graph:
        self._refuse_foreign()
        for tensor in self.model.graph.initializer:
            self._parameter(tensor.name, tensor)
        elements = {value.name: value.type.tensor_type.elem_type for value in self.model.graph.input}
        self.graph.inputs = tuple(shapes)
        for name, shape in shapes.items():
            self._type(name, self.onnx.helper.make_tensor_type_proto(elements[name], shape))
        for node in self.model.graph.node:
            self._visit(node)
        return self.graph

    def _dtype(self, element: int) -> str:
        name = self.onnx.TensorProto.DataType.Name(element).lower()
        return {"float": "float32", "double": "float64"}.get(name, str(name))

    def _type(self, name: str, kind: TypeProto) -> None:
        tensor = kind.tensor_type
        shape = tuple(dim.dim_value if dim.HasField("dim_value") else -1 for dim in tensor.shape.dim)
        if min(shape, default=0) < 0 or not tensor.HasField("shape"):
            raise HwmodelError(f"{self.path}: the shape of {name!r} depends on data or cannot be inferred")
        self.types[name] = kind
        self.graph.tensors[name] = Tensor(shape=shape, dtype=self._dtype(tensor.elem_type))

    def _parameter(self, name: str, tensor: TensorProto) -> None:
        """A stored tensor; its values are read only where they are few and in the file itself."""
        self._type(name, self.onnx.helper.make_tensor_type_proto(tensor.data_type, tuple(tensor.dims)))
        self.graph.parameters[name] = name
        self.graph.stored[name] = tensor
        if tensor.data_location == self.onnx.TensorProto.DEFAULT and self._is_number(name):
            self._number(name, self.onnx.numpy_helper.to_array(tensor))

    def _is_number(self, name: str) -> bool:
        held = self.graph.tensors[name]
        return held.numel <= (_MOST_NUMBERS if held.dtype in HOST else 1)

    def _number(self, name: str, value: Any) -> None:
        array = np.asarray(value)
        self.graph.numbers[name] = array
        self.data[name] = self.onnx.numpy_helper.from_array(array, name)
        self._type(name, self.onnx.helper.make_tensor_type_proto(self.data[name].data_type, array.shape))

    def _visit(self, node: NodeProto) -> None:
        inputs = tuple(self.alias.get(name, name) for name in node.input)
        op = node.op_type if node.domain in {"", "ai.onnx"} else f"{node.domain}::{node.op_type}"
        attributes = {item.name: self.onnx.helper.get_attribute_value(item) for item in node.attribute}
        if op == "Constant":
            self._constant(node.output[0], attributes)
        elif op in {"Identity", "Dropout"}:
            self._pass_on(inputs[0], node.output[0])
        elif op in {"Shape", "Size"}:
            self._size(op, inputs[0], node.output[0], attributes)
        elif inputs and all(name in self.graph.numbers for name in inputs if name) and self._evaluated(node, inputs):
            pass
        else:
            self._tensors(node, op, inputs, attributes)

    def _constant(self, name: str, attributes: Mapping[str, Any]) -> None:
        value = next(iter(attributes.values()))
        if isinstance(value, self.onnx.TensorProto):
            self._parameter(name, value)
        else:
            self._number(name, np.asarray(value, dtype=None if isinstance(value, bytes) else np.asarray(value).dtype))

    def _pass_on(self, source: str, name: str) -> None:
        """Another name for the same tensor; exporters name repeated parameters so."""
        if source not in self.graph.parameters or source in self.graph.numbers:
            self.alias[name] = source
            return
        self._type(name, self.types[source])
        self.graph.stored[name] = self.graph.stored[source]
        self.graph.parameters[name] = name if "." in name else self.graph.parameters[source]

    def _size(self, op: str, source: str, name: str, attributes: Mapping[str, Any]) -> None:
        shape = self.graph.tensors[source].shape
        if op == "Size":
            self._number(name, np.asarray(prod(shape), dtype=np.int64))
        else:
            self._number(name, np.asarray(shape[attributes.get("start", 0) : attributes.get("end")], dtype=np.int64))

    def _evaluated(self, node: NodeProto, inputs: tuple[str, ...]) -> bool:
        """Whether the results are small enough to be known; they are then."""
        evaluator = self._evaluator(node)
        if evaluator is None:
            return False
        feed = {given: self.graph.numbers[name] for given, name in zip(node.input, inputs, strict=True) if given}
        results = evaluator.run(None, feed)
        if any(np.size(result) > _MOST_NUMBERS for result in results):
            return False
        for name, result in zip(node.output, results, strict=True):
            self._number(name, result)
        return True

    def _evaluator(self, node: NodeProto) -> Any:
        if node.domain not in {"", "ai.onnx"} or node.op_type in {"If", "Loop", "Scan", "RandomNormal", "RandomUniform"}:
            return None
        try:
            return self.onnx.reference.ReferenceEvaluator(node)
        except NotImplementedError:
            return None

    def _tensors(self, node: NodeProto, op: str, inputs: tuple[str, ...], attributes: Mapping[str, Any]) -> None:
        """A node that works on tensors: infer its results and keep it."""
        for name, kind in self._inferred(node, op, inputs).items():
            self._type(name, kind)
        path, classes = module_of(node)
        self.graph.classes.update(classes)
        self.graph.nodes.append(
            Node(op=op, name=node.name, inputs=inputs, outputs=tuple(node.output), attributes=attributes, module=path)
        )

    def _inferred(self, node: NodeProto, op: str, inputs: tuple[str, ...]) -> dict[str, TypeProto]:
        """Types of the results by the operator's schema, else those that the file states."""
        stated = {name: self.stored_types[name] for name in node.output if name in self.stored_types}
        copied = type(node)()
        copied.CopyFrom(node)
        del copied.input[:]
        copied.input.extend(inputs)
        kinds = {name: self.types[name] for name in inputs if name in self.types}
        data = {name: self.data[name] for name in inputs if name in self.data}
        imports = list(self.model.opset_import)
        try:
            found: dict[str, TypeProto] = self.onnx.shape_inference.infer_node_outputs(
                self._schema(node), copied, kinds, data, opset_imports=imports, ir_version=self.model.ir_version
            )
        except self.onnx.shape_inference.InferenceError as error:
            raise HwmodelError(f"{self.path}: node {node.name!r} ({op}): {str(error).splitlines()[0]}") from error
        missing = [name for name in node.output if name and name not in found and name not in stated]
        if missing:
            raise HwmodelError(f"{self.path}: node {node.name!r} ({op}): the shape of {missing[0]!r} cannot be inferred")
        return stated | found

    def _schema(self, node: NodeProto) -> Any:
        """The definition of a node's operator, None where the package has none."""
        try:
            return self.onnx.defs.get_schema(node.op_type, self.opsets.get(node.domain, 1), node.domain)
        except self.onnx.defs.SchemaError:
            return None

    def _refuse_foreign(self) -> None:
        """Operators that ONNX does not define cannot be read, nor the shapes behind them."""
        unknown: dict[str, list[str]] = {}
        for node in self.model.graph.node:
            if self._schema(node) is None:
                name = f"{node.domain}::{node.op_type}" if node.domain else node.op_type
                unknown.setdefault(name, []).append(node.name or node.output[0])
        if unknown:
            raise UnsupportedOperatorError(unknown_operators(self.path, unknown))


def unknown_operators(path: Path, nodes: Mapping[str, list[str]]) -> str:
    """One line on operators that cannot be read, with the first nodes of each."""
    counts = Counter({op: len(names) for op, names in nodes.items()})
    listed = "; ".join(f"{op} x{count} ({', '.join(nodes[op][:_LISTED])})" for op, count in counts.most_common())
    return f"{path} uses operators that hwmodel does not model: {listed}"


def module_of(node: NodeProto) -> tuple[str | None, dict[str, str]]:
    """Path of the torch module a node comes from, None where nothing says, and the class of each module around it.

    PyTorch's dynamo exporter writes both beside each node; its TorchScript exporter puts the path into the name
    ("/blocks/blocks.0/attn/qkv/MatMul").
    """
    notes = {item.key: item.value for item in node.metadata_props}
    if "pkg.torch.onnx.name_scopes" in notes:
        scopes = ast.literal_eval(notes["pkg.torch.onnx.name_scopes"])[:-1]
        kinds = ast.literal_eval(notes.get("pkg.torch.onnx.class_hierarchy", "[]"))
        return (scopes[-1] if scopes else ""), dict(zip(scopes, kinds, strict=False))
    if not node.name.startswith("/"):
        return None, {}
    parts = node.name.strip("/").split("/")[:-1]
    paths: list[str] = []
    for part in parts:
        above = paths[-1] if paths else ""
        nested = "." in part and (part.rpartition(".")[0] == above or part.rpartition(".")[0] == above.rpartition(".")[2])
        base = above.removesuffix(part.rpartition(".")[0]).strip(".") if nested else above
        paths.append(f"{base}.{part}".strip("."))
    return (paths[-1] if paths else ""), dict.fromkeys(paths, "")
