"""Walk a folded ONNX graph: the same records that an exported PyTorch program gives, by the same lowerings."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import hwmodel.extraction.recording.aten
import hwmodel.extraction.recording.products  # noqa: F401
from hwmodel.errors import UnsupportedOperatorError
from hwmodel.extraction.onnx_files.calls import Layout, call_of, fresh_layout, view
from hwmodel.extraction.onnx_files.folding import HOST, Graph, Node, unknown_operators
from hwmodel.extraction.onnx_files.layouts import memory_order
from hwmodel.extraction.recording.graph import Record, Recording
from hwmodel.extraction.recording.lowering import LOWERINGS, Call, Row, Value

_DTYPES = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}
_QUANTISED = {"int8": "int8", "uint8": "int8", "int4": "int4", "uint4": "int4"}
Weight = tuple[str, Value]
"""The stored tensor that holds a weight, and how the product sees it: (out, in) in that memory."""
_SHARED = 2
"""Parameters that so many modules read bear the name of one of them only."""


def record(graph: Graph, nodes: Sequence[Node], path: Path) -> tuple[Recording, Mapping[str, Weight]]:
    """Lower every node; also where each weight of a product is stored.

    Raises
    ------
    UnsupportedOperatorError
        Operators that stand for no call, or whose call has no lowering: all of them, with node names.
    """
    recorder = _Recorder(graph, nodes)
    for node in nodes:
        recorder.visit(node)
    if recorder.unknown:
        raise UnsupportedOperatorError(unknown_operators(path, recorder.unknown))
    results = frozenset().union(*(recorder.values[name].producers for name in graph.outputs if name in recorder.values))
    return Recording(records=tuple(recorder.records), results=results, classes=graph.classes), recorder.weights


class _Recorder:
    """State of one walk."""

    def __init__(self, graph: Graph, nodes: Sequence[Node]) -> None:
        self.graph = graph
        self.records: list[Record] = []
        self.values: dict[str, Value] = {}
        self.quantised: dict[str, str] = {}
        self.modules: dict[str, str] = {}
        self.unknown: dict[str, list[str]] = {}
        readers = Counter(graph.parameters[name] for node in nodes for name in node.inputs if name in graph.parameters)
        self.held: dict[int, str] = {}
        self.weights: dict[str, Weight] = {}
        self.shared = {name for name, count in readers.items() if count >= _SHARED}
        for name in graph.inputs:
            self._hold(name, producers=frozenset(), from_input=True)

    def _hold(self, name: str, layout: Layout | None = None, **origin: object) -> Value:
        """A value under its name, contiguous unless a layout is given."""
        tensor = self.graph.tensors[name]
        shape, stride = layout or (tensor.shape, memory_order(tensor.shape, None))
        fields = {"storage": len(self.values)} | origin
        self.values[name] = Value(shape=shape, stride=stride, dtype=tensor.dtype, **fields)  # type: ignore[arg-type]
        return self.values[name]

    def _operand(self, name: str) -> Value | None:
        """What a node reads; None where it is absent, or a number rather than data."""
        if name not in self.values and name in self.graph.parameters and not self._is_number(name):
            value = self._hold(name, constant=True, stored=True, source=self.graph.parameters[name], learned=True)
            self.held[value.storage] = name
        return self.values.get(name)

    def _is_number(self, name: str) -> bool:
        """Whether a known tensor is host arithmetic, rather than a parameter of one value."""
        tensor = self.graph.tensors[name]
        return name in self.graph.numbers and (not tensor.shape or tensor.dtype in HOST)

    def visit(self, node: Node) -> None:
        """Record one node."""
        read = tuple(self._operand(name) if name else None for name in node.inputs)
        tensors = tuple(value for value in read if value is not None)
        module = self._module(node)
        self.modules.update(dict.fromkeys(node.outputs, module))
        layout = view(node, self.graph, tensors[0]) if tensors else None
        if layout is not None:
            self._seen_anew(node, tensors[0], layout)
        else:
            self._computed(node, read, module)

    def _module(self, node: Node) -> str:
        """The module a node says it comes from, else that of what it reads."""
        if node.module is not None:
            return node.module
        return next((self.modules[name] for name in node.inputs if name in self.modules), "")

    def _seen_anew(self, node: Node, value: Value, layout: Layout) -> None:
        for name in node.outputs:
            shape = self.graph.tensors[name].shape
            self.values[name] = replace(value, shape=shape, stride=layout[1], dtype=self.graph.tensors[name].dtype)
        if node.op == "DequantizeLinear":
            self.quantised[node.outputs[0]] = _QUANTISED.get(value.dtype, "")
        elif node.inputs[0] in self.quantised:
            self.quantised.update(dict.fromkeys(node.outputs, self.quantised[node.inputs[0]]))

    def _computed(self, node: Node, read: tuple[Value | None, ...], module: str) -> None:
        tensors = tuple(value for value in read if value is not None)
        outputs = tuple(
            self._hold(name, fresh_layout(node, self.graph.tensors[name].shape, tensors)) for name in node.outputs if name
        )
        call = call_of(node, read, outputs, self.graph)
        lowering = None if call is None else LOWERINGS.find(call.name)
        rows = None if call is None or lowering is None else lowering(call)
        if call is None or rows is None:
            self.unknown.setdefault(node.op, []).append(node.name or node.outputs[0])
            return
        reads = [value for row in rows for value in (call.tensors if row.reads is None else row.reads)] if rows else list(tensors)
        constant = all(value.constant for value in reads)
        for row in rows:
            self._append(row, call, node, module, constant)
        wrote = frozenset({len(self.records) - 1}) if rows else frozenset().union(*(value.producers for value in tensors))
        raw = any(value.from_input for value in tensors) and all(self.records[at].operator.family != "product" for at in wrote)
        named = next((value.source for value in tensors if value.source), "") if constant else ""
        for name in filter(None, node.outputs):
            self.values[name] = replace(
                self.values[name], producers=wrote, constant=constant, from_input=raw, source=named, learned=bool(named)
            )

    def _append(self, row: Row, call: Call, node: Node, module: str, constant: bool) -> None:
        reads = call.tensors if row.reads is None else row.reads
        before = (frozenset({len(self.records) - 1}),) if row.chained else ()
        dtypes = [_DTYPES[value.dtype] for value in (*call.outputs, *call.tensors) if value.dtype in _DTYPES]
        self.records.append(
            Record(
                operator=row.operator.replace(
                    constant=constant, **({"dtype": dtypes[0] if dtypes else None} | self._formats(row, node))
                ),
                module=module,
                operands=before + tuple(value.producers for value in reads),
                weight=self._weight(row, call, module),
                from_input=any(value.from_input for value in reads),
            )
        )

    def _formats(self, row: Row, node: Node) -> dict[str, str]:
        """The formats of a product whose operands are dequantised just before it: such pairs run in integers."""
        if row.operator.family != "product":
            return {}
        found = [self.quantised.get(name, "") for name in node.inputs[:2]]
        if all(found):
            return {"dtype": found[0]} | ({"weight_dtype": found[1]} if found[1] != found[0] else {})
        return {"weight_dtype": found[1]} if row.operator.parameter and found[1] else {}

    def _weight(self, row: Row, call: Call, module: str) -> str:
        """Name of the weight: what the file calls it, else what goes with its bias, else after its module."""
        if row.weight is None:
            return ""
        home = f"{module}." if module else ""
        bias = call["bias"]
        own = [row.weight.source, re.sub("bias$", "weight", bias.source) if isinstance(bias, Value) else ""]
        name = next((name for name in own if self._is_own(name, home)), f"{home}weight")
        if row.operator.family == "product" and row.weight.storage in self.held:
            self.weights[name] = (self.held[row.weight.storage], row.weight)
        return name

    def _is_own(self, name: str, home: str) -> bool:
        """Whether a name is that of one module's parameter alone: exporters share equal ones, and rename folded ones."""
        unshared = name not in self.shared and re.sub("weight$", "bias", name) not in self.shared
        return name.startswith(home) and "." in name and "::" not in name and unshared
