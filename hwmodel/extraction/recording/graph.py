"""Walk an exported graph: one record per row, with the module it ran in and the rows it reads."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import hwmodel.extraction.recording.aten
import hwmodel.extraction.recording.products  # noqa: F401
from hwmodel.errors import HwmodelError, UnsupportedOperatorError
from hwmodel.extraction.recording.lowering import LOWERINGS, Call, Lowering, Registry, Row, Value
from hwmodel.ir.operators import Operator

if TYPE_CHECKING:
    from torch.export import ExportedProgram
    from torch.fx import GraphModule, Node

_INLINED = frozenset({"wrap_with_autocast", "wrap_with_set_grad_enabled", "wrap", "checkpoint", "tag_activation_checkpoint"})
"""Higher-order operators that only wrap a subgraph."""

_DTYPES = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One row before it has its final name, role and block.

    Parameters
    ----------
    operator : its name is the suffix wanted below the module path
    module : path of the module that ran it, "" for the model itself
    operands : per tensor read, the rows that wrote it
    weight : name of the parameter that is its weight, "" where none
    from_input : whether it reads the user's input directly
    """

    operator: Operator
    module: str
    operands: tuple[frozenset[int], ...]
    weight: str = ""
    from_input: bool = False

    @property
    def producers(self) -> frozenset[int]:
        """All rows it reads from."""
        return frozenset().union(*self.operands)


@dataclass(frozen=True, slots=True, kw_only=True)
class Recording:
    """All rows of a forward pass, the rows that write its results, and each module path seen with its class."""

    records: tuple[Record, ...]
    results: frozenset[int]
    classes: Mapping[str, str]


def record(program: ExportedProgram, *, model: str, registry: Registry = LOWERINGS) -> Recording:
    """Lower every call of an exported program.

    Raises
    ------
    UnsupportedOperatorError
        Operators without a lowering: all of them at once, with counts.
    HwmodelError
        A shape that depends on data.
    """
    recorder = _Recorder(model, registry)
    results = recorder.walk(program.graph_module, recorder.inputs(program))
    recorder.refuse_unknown()
    return Recording(
        records=tuple(recorder.records), results=frozenset().union(*map(recorder.producers, results)), classes=recorder.classes
    )


Held = Any
"""What a node holds: a Value, a sequence of them, or a plain Python value."""


class _Recorder:
    """State of one walk."""

    def __init__(self, model: str, registry: Registry) -> None:
        self.model = model
        self.registry = registry
        self.records: list[Record] = []
        self.classes: dict[str, str] = {}
        self.unknown: Counter[str] = Counter()
        self._sizes: dict[int, int] = {}
        self._written: dict[int, frozenset[int]] = {}
        self._varying: set[int] = set()
        self._stored_bits: dict[str, int] = {}

    def inputs(self, program: ExportedProgram) -> list[Held]:
        """Values of the placeholders, in order."""
        kinds = {spec.arg.name: (spec.kind.name, spec.target or "") for spec in program.graph_signature.input_specs}
        placeholders = [node for node in program.graph.nodes if node.op == "placeholder"]
        return [self._input(node, *kinds.get(node.name, ("USER_INPUT", ""))) for node in placeholders]

    def _input(self, node: Node, kind: str, target: str) -> Held:
        if kind == "USER_INPUT":
            return self._hold(node.meta.get("val"), node, from_input=True)
        held = self._hold(node.meta.get("val"), node, constant=True, stored=True, source=target, learned=kind == "PARAMETER")
        if isinstance(held, Value) and held.dtype in {"int8", "uint8"}:
            self._stored_bits[target] = 8 * held.distinct
        return held

    def _hold(self, meta: Any, node: Node, **origin: Any) -> Held:
        """Values with the structure of a node's example result; fresh memory unless ``origin`` names one."""
        if isinstance(meta, list | tuple):
            return tuple(self._hold(item, node, **origin) for item in meta)
        if not hasattr(meta, "shape") or not hasattr(meta, "dtype"):
            return self._checked((meta,), node)[0]
        sizes = self._checked(meta.shape, node)
        fields = {"storage": len(self._sizes)} | origin
        value = Value(shape=sizes, stride=_strides(meta, sizes), dtype=str(meta.dtype).removeprefix("torch."), **fields)
        self._sizes.setdefault(value.storage, value.numel)
        return value

    def _checked(self, sizes: Iterable[Any], node: Node) -> tuple[Any, ...]:
        """``sizes`` as they are, refused where one is a symbol: it depends on data."""
        found = tuple(sizes)
        if any(type(size).__name__ in {"SymInt", "SymFloat", "SymBool"} for size in found):
            where = module_path(node)[0] or "its own forward"
            raise HwmodelError(
                f"{self.model}: a shape or number in module {where!r} depends on the data ({node.name}); "
                "trace a variant with fixed token counts, or every count with hw.trace_family"
            )
        return found

    def walk(self, graph: GraphModule, values: Sequence[Held]) -> list[Value]:
        """Record all calls of a graph whose placeholders hold ``values``; return the tensors of its result."""
        held: dict[Node, Held] = {}
        feed = iter(values)
        for node in graph.graph.nodes:
            if node.op == "placeholder":
                held[node] = next(feed)
            elif node.op == "get_attr":
                held[node] = self._attribute(graph, node)
            elif node.op == "call_function":
                held[node] = self._call(node, held)
        output = graph.graph.output_node().args[0]
        return list(_values(_replace(output, held)))

    def _attribute(self, graph: GraphModule, node: Node) -> Held:
        """A subgraph, or a tensor kept on the graph, which is a constant."""
        found: Any = graph
        for part in str(node.target).split("."):
            found = getattr(found, part)
        if hasattr(found, "graph"):
            return found
        return self._hold(found, node, constant=True, stored=True, source=str(node.target))

    def _call(self, node: Node, held: dict[Node, Held]) -> Held:
        target: Any = node.target
        args = _replace(node.args, held)
        if target.__name__ == "getitem":
            return args[0][args[1]]
        if target.__name__ in _INLINED and not hasattr(target, "_schema"):
            return self._inline(args)
        if not hasattr(target, "_schema"):
            return self._host(node)
        return self._operator(node, args, _replace(node.kwargs, held))

    def _host(self, node: Node) -> Held:
        """Python arithmetic on sizes is free; another higher-order operator is unknown."""
        if type(node.target).__module__.startswith("torch"):
            self.unknown[str(node.target)] += 1
        return self._hold(node.meta.get("val"), node)

    def _inline(self, args: Sequence[Held]) -> Held:
        """Walk the subgraph among ``args`` with the operands that follow it."""
        at = next(index for index, arg in enumerate(args) if hasattr(arg, "graph"))
        return tuple(self.walk(args[at], args[at + 1 :]))

    def _operator(self, node: Node, args: Sequence[Held], kwargs: Mapping[str, Held]) -> Held:
        call = _bind(node, args, kwargs)
        call = replace(call, operands=self._refresh(call.operands))
        lowering = self.registry.find(call.name)
        meta = node.meta.get("val")
        call = replace(call, outputs=tuple(_values(self._hold(meta, node))))
        rows = None if lowering is None else self._lowered(lowering, call, node)
        if rows is None:
            self.unknown[call.name if "::" in call.name else f"aten.{call.name}"] += 1
            rows = ()
        constant = all(value.constant for value in _reads(rows, call))
        for row in rows:
            self._append(row, call, node, constant)
        return self._result(meta, node, call, constant, frozenset({len(self.records) - 1}) if rows else None)

    def _lowered(self, lowering: Lowering, call: Call, node: Node) -> tuple[Row, ...] | None:
        """Rows of a call; sizes beyond what an operator can hold are the user's to change, not our own failure."""
        try:
            return lowering(call)
        except ValueError as error:
            where = module_path(node)[0] or "its own forward"
            raise HwmodelError(f"{self.model}: {call.name} in module {where!r}: {str(error).removeprefix(': ')}") from error

    def _append(self, row: Row, call: Call, node: Node, constant: bool) -> None:
        reads = call.tensors if row.reads is None else row.reads
        before = (frozenset({len(self.records) - 1}),) if row.chained else ()
        path, known = module_path(node)
        self.classes.update(known)
        weight = next((value.source for value in (row.weight,) if value is not None), "")
        dtypes = [value.dtype for value in (*call.outputs, *call.tensors) if value.dtype in _DTYPES]
        dtype = _DTYPES[dtypes[0]] if dtypes else None
        self.records.append(
            Record(
                operator=row.operator.replace(
                    constant=constant, dtype=dtype, weight_dtype=self._stored_format(row.operator, weight)
                ),
                module=path,
                operands=before + tuple(self.producers(value) for value in reads),
                weight=weight,
                from_input=any(value.from_input for value in reads),
            )
        )

    def _stored_format(self, operator: Operator, weight: str) -> str | None:
        """The integer format of a weight that the module itself widens before it multiplies; two of four bits share a byte."""
        weights = operator.batch * operator.k * operator.n
        bits = self._stored_bits.get(weight, 0)
        return {8 * weights: "int8", 4 * weights: "int4"}.get(bits) if bits else None

    def _result(self, meta: Any, node: Node, call: Call, constant: bool, wrote: frozenset[int] | None) -> Held:
        """What the node holds: its first operand seen anew where no row was made, else memory the last row wrote."""
        tensors = call.tensors
        if call.in_place and tensors and wrote is not None:
            self._overwrite(tensors[0], wrote, constant)
            return self._hold(meta, node, storage=tensors[0].storage, constant=constant)
        if wrote is not None or not tensors:
            origin = _origin(tensors) if constant else {}
            raw = any(value.from_input for value in tensors) and self._is_raw(wrote)
            return self._hold(meta, node, producers=wrote or frozenset(), constant=constant, from_input=raw, **origin)
        listed = call["tensors"]
        if isinstance(listed, tuple) and isinstance(meta, list | tuple) and len(listed) == len(meta):
            return tuple(self._view(item, node, value) for item, value in zip(meta, listed, strict=True))
        return self._view(meta, node, tensors[0])

    def _view(self, meta: Any, node: Node, of: Value) -> Held:
        """The same memory, seen another way."""
        return self._hold(
            meta, node, storage=of.storage, producers=of.producers, constant=of.constant, stored=of.stored,
            source=of.source, learned=of.learned, from_input=of.from_input,
        )  # fmt: skip

    def _is_raw(self, wrote: frozenset[int] | None) -> bool:
        """Whether no product stands between the user's input and what was written."""
        return all(self.records[row].operator.family != "product" for row in wrote or ())

    def _overwrite(self, target: Value, wrote: frozenset[int], constant: bool) -> None:
        """All views of the memory now depend on the row that overwrote it, and on its former rows where only part of it."""
        whole = target.numel == self._sizes.get(target.storage)
        self._written[target.storage] = wrote if whole else self.producers(target) | wrote
        if not constant:
            self._varying.add(target.storage)

    def producers(self, value: Value) -> frozenset[int]:
        """Rows that wrote the memory of a value, in-place ones included."""
        return self._written.get(value.storage, value.producers)

    def _refresh(self, operands: Mapping[str, Held]) -> dict[str, Held]:
        """Operands whose memory was overwritten with activations are constants no more."""
        return {name: self._current(value) for name, value in operands.items()}

    def _current(self, value: Held) -> Held:
        if isinstance(value, list | tuple):
            return tuple(self._current(item) for item in value)
        if isinstance(value, Value) and value.storage in self._varying:
            return replace(value, constant=False, stored=False)
        return value

    def refuse_unknown(self) -> None:
        """Raise once for everything that has no lowering."""
        if not self.unknown:
            return
        listed = ", ".join(f"{name} x{count}" for name, count in sorted(self.unknown.items(), key=lambda item: (-item[1], item[0])))
        raise UnsupportedOperatorError(
            f"{self.model} uses operators that hwmodel does not model: {listed}; "
            "register a lowering for each (hwmodel.extraction.recording.lowering.LOWERINGS)"
        )


def _strides(meta: Any, sizes: tuple[int, ...]) -> tuple[int, ...]:
    """Strides of an example tensor; contiguous ones for layouts without strides (block-sparse)."""
    try:
        return tuple(meta.stride())
    except RuntimeError:
        steps = [1]
        for size in reversed(sizes[1:]):
            steps.insert(0, steps[0] * size)
        return tuple(steps[: len(sizes)])


def _reads(rows: Sequence[Row], call: Call) -> list[Value]:
    """Values that some row of a call reads; all its operands where there is no row."""
    if not rows:
        return list(call.tensors)
    return [value for row in rows for value in (call.tensors if row.reads is None else row.reads)]


def _origin(tensors: Sequence[Value]) -> dict[str, Any]:
    """The largest parameter or buffer that a constant derives from; of two as large the parameter."""
    named = sorted((value for value in tensors if value.source), key=lambda value: (-value.distinct, not value.learned))
    return {"source": named[0].source, "learned": named[0].learned} if named else {}


def _values(held: Held) -> Iterator[Value]:
    if isinstance(held, Value):
        yield held
    elif isinstance(held, list | tuple):
        for item in held:
            yield from _values(item)


def _replace(argument: Any, held: Mapping[Node, Held]) -> Any:
    """An argument of a node with nodes replaced by what they hold."""
    if isinstance(argument, list | tuple):
        return tuple(_replace(item, held) for item in argument)
    if isinstance(argument, dict):
        return {name: _replace(item, held) for name, item in argument.items()}
    try:
        return held.get(argument, argument)
    except TypeError:
        return argument


def _bind(node: Node, args: Sequence[Held], kwargs: Mapping[str, Held]) -> Call:
    """The call with its operands under their schema names, defaults filled in."""
    schema = getattr(node.target, "_schema")  # noqa: B009
    operands: dict[str, Held] = {}
    for position, argument in enumerate(schema.arguments):
        if argument.name in kwargs:
            operands[argument.name] = kwargs[argument.name]
        elif position < len(args):
            operands[argument.name] = args[position]
        else:
            operands[argument.name] = argument.default_value if argument.has_default_value() else None
    namespace, _, name = schema.name.partition("::")
    known = name if namespace == "aten" else schema.name
    return Call(name=known, overload=schema.overload_name, operands=operands, outputs=())


def module_path(node: Node) -> tuple[str, dict[str, str]]:
    """Path of the innermost module that a node ran in, and the class of each module around it."""
    stack = [(_clean(path), _class_name(kind)) for path, kind in node.meta.get("nn_module_stack", {}).values()]
    return (stack[-1][0] if stack else ""), dict(stack)


def _clean(path: str) -> str:
    """A module path without the number of the call (``@1``) that export appends to modules called twice."""
    return re.sub(r"@\d+", "", path)


def _class_name(kind: Any) -> str:
    return kind if isinstance(kind, str) else f"{kind.__module__}.{kind.__qualname__}"
