"""What a backend is: a pure map from the columns of a trace and the resolved numbers of a card to costs.

Every array over operators has shape (n_ops,), or (designs, n_ops) where a parameter is an array of shape (designs, 1).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property
from operator import attrgetter
from typing import Any, ClassVar, Literal, Protocol, TypeVar, cast

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ValidationInfo, field_validator

from hwmodel.errors import HwmodelError, UnsupportedOperatorError
from hwmodel.ir.dtypes import BITS
from hwmodel.ir.masks import Mask
from hwmodel.ir.operators import Operator
from hwmodel.ir.trace import Trace

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]
TextArray = npt.NDArray[np.str_]
Number = float | FloatArray
"""A resolved parameter: a float, or an array of shape (designs, 1)."""

AttentionChoice = Literal["source", "math", "fused"]
SparseChoice = Literal["auto", "always"]
Scope = Literal["board", "dynamic", "lsp"]


@dataclass(frozen=True, kw_only=True)
class Options:
    """What a caller chooses besides the card.

    Parameters
    ----------
    mode : one of the backend's modes, power mode included ("engine+30w")
    attention : "source" fuses attention where the source calls scaled-dot-product attention; "math" and "fused" force it
    sparse_kernel : "auto" takes the cheaper of dense and sparse kernel, "always" shows the sparse one's cost
    scope : "board" energy with idle power, "dynamic" and "lsp" without
    """

    mode: str
    attention: AttentionChoice = "source"
    sparse_kernel: SparseChoice = "auto"
    scope: Scope = "board"


_PLACE = frozenset({"name", "block", "attention_group", "dense_macs", "dtype", "weight_dtype"})
_asked = attrgetter(*(item.name for item in fields(Operator) if item.name not in _PLACE))
"""What an operator asks of a machine: all but where it stands, where it comes from, and formats, which a workload settles."""
_OF_MASKS = frozenset({"trace", "masks", "emptied", "kept_macs", "kept_fraction", "alike"})
"""What a workload holds that changes with its masks."""
Kept = TypeVar("Kept")


@dataclass(frozen=True, eq=False)
class Workload:
    """The columns of a trace, with the number format of every operator settled.

    Every array has shape (n_ops,). ``dtype`` is the compute and activation format, ``weight_dtype`` that of the
    weights. Integer columns are int64. ``masks`` holds one entry per operator, None where dense.
    """

    trace: Trace
    dtype: TextArray
    weight_dtype: TextArray

    @classmethod
    def of(cls, trace: Trace, *, dtype: str | None, default_dtype: str) -> Workload:
        """Settle formats by precedence: operator, the call (``dtype``), the trace, the card's default."""
        general = dtype or trace.dtype or default_dtype
        settled = [operator.dtype or general for operator in trace.operators]
        weights = [operator.weight_dtype or own for operator, own in zip(trace.operators, settled, strict=True)]
        return cls(trace, np.array(settled, dtype=np.str_), np.array(weights, dtype=np.str_))

    def __len__(self) -> int:
        return len(self.trace.operators)

    def _text(self, name: str) -> TextArray:
        return np.array([getattr(operator, name) or "" for operator in self.trace.operators], dtype=np.str_)

    def _count(self, name: str) -> IntArray:
        return np.array([getattr(operator, name) for operator in self.trace.operators], dtype=np.int64)

    def _flag(self, name: str) -> BoolArray:
        return np.array([getattr(operator, name) for operator in self.trace.operators], dtype=np.bool_)

    @cached_property
    def kind(self) -> TextArray:
        return self._text("kind")

    @cached_property
    def family(self) -> TextArray:
        return self._text("family")

    @cached_property
    def role(self) -> TextArray:
        return self._text("role")

    @cached_property
    def batch(self) -> IntArray:
        return self._count("batch")

    @cached_property
    def m(self) -> IntArray:
        return self._count("m")

    @cached_property
    def k(self) -> IntArray:
        return self._count("k")

    @cached_property
    def n(self) -> IntArray:
        return self._count("n")

    @cached_property
    def elements(self) -> IntArray:
        return self._count("elements")

    @cached_property
    def cols(self) -> IntArray:
        return self._count("cols")

    @cached_property
    def input_elements(self) -> IntArray:
        return self._count("input_elements")

    @cached_property
    def output_elements(self) -> IntArray:
        return self._count("output_elements")

    @cached_property
    def weight_elements(self) -> IntArray:
        return self._count("weight_elements")

    @cached_property
    def parameter(self) -> BoolArray:
        """The right operand of a product is a weight."""
        return self._flag("parameter")

    @cached_property
    def constant(self) -> BoolArray:
        return self._flag("constant")

    @cached_property
    def causal(self) -> BoolArray:
        return self._flag("causal")

    @cached_property
    def fused_in_source(self) -> BoolArray:
        return self._flag("fused_in_source")

    @cached_property
    def attention_group(self) -> TextArray:
        """Name shared by the operators of one spelled-out attention; "" outside."""
        return self._text("attention_group")

    @cached_property
    def masks(self) -> tuple[Mask | None, ...]:
        return tuple(operator.mask for operator in self.trace.operators)

    @cached_property
    def shape_macs(self) -> FloatArray:
        """MACs of each operator at its present shape, masks ignored."""
        return np.array([operator.shape_macs for operator in self.trace.operators], dtype=np.float64)

    @cached_property
    def kept_macs(self) -> FloatArray:
        """MACs that involve a kept weight."""
        return np.array([operator.kept_macs for operator in self.trace.operators], dtype=np.float64)

    @cached_property
    def kept_fraction(self) -> FloatArray:
        """Kept blocks over all blocks of each weight; 1 where dense."""
        return np.array([1.0 if mask is None else mask.kept_fraction for mask in self.masks])

    @cached_property
    def activation_bytes(self) -> FloatArray:
        """Bytes of one activation element, by operator."""
        return np.array([BITS[dtype] / 8 for dtype in self.dtype])

    @cached_property
    def weight_element_bytes(self) -> FloatArray:
        """Bytes of one weight element, by operator, with its part of the scales of quantised weights."""
        scales = self._count("scale_bytes") / np.maximum(self.weight_elements, 1)
        bytes_each: FloatArray = np.array([BITS[dtype] / 8 for dtype in self.weight_dtype]) + scales
        return bytes_each

    @cached_property
    def successors(self) -> tuple[tuple[int, ...], ...]:
        """Rows that read each row's output."""
        found: list[list[int]] = [[] for _ in self.trace.operators]
        for producer, consumer in self.trace.edges:
            found[producer].append(consumer)
        return tuple(tuple(rows) for rows in found)

    @cached_property
    def predecessors(self) -> tuple[tuple[int, ...], ...]:
        """Rows whose output each row reads."""
        found: list[list[int]] = [[] for _ in self.trace.operators]
        for producer, consumer in self.trace.edges:
            found[consumer].append(producer)
        return tuple(tuple(rows) for rows in found)

    @cached_property
    def alike(self) -> IntArray:
        """First row that asks a machine for the same as each row: everything but names, blocks and edges is equal."""
        first: dict[Any, int] = {}
        settled = zip(self.trace.operators, self.dtype.tolist(), self.weight_dtype.tolist(), strict=True)
        return np.array(
            [first.setdefault((_asked(operator), *formats), row) for row, (operator, *formats) in enumerate(settled)],
            dtype=np.int64,
        )

    def only(self, rows: IntArray) -> Workload:
        """The workload of some rows, without edges."""
        operators = tuple(self.trace.operators[row] for row in rows.tolist())
        return Workload(self.trace.replace(operators=operators, edges=()), self.dtype[rows], self.weight_dtype[rows])

    def masked(self, masks: Mapping[int, Mask | None]) -> Workload:
        """The same operators under other masks on some rows. Columns that do not depend on masks are shared."""
        operators = list(self.trace.operators)
        for row, mask in masks.items():
            operators[row] = operators[row].replace(mask=mask)
        other = Workload(self.trace.replace(operators=tuple(operators)), self.dtype, self.weight_dtype)
        shared = {name: column for name, column in self.__dict__.items() if name not in _OF_MASKS}
        if other.emptied != self.emptied:
            shared.pop("_structure", None)
        other.__dict__.update(shared)
        return other

    @cached_property
    def emptied(self) -> tuple[bool, ...]:
        """Rows whose mask keeps nothing."""
        return tuple(mask is not None and mask.kept_blocks == 0 for mask in self.masks)

    @cached_property
    def _structure(self) -> dict[Hashable, Any]:
        return {}

    def once(self, key: Hashable, make: Callable[[], Kept]) -> Kept:
        """What ``make`` finds, kept under ``key``: for what depends on operators, edges and :attr:`emptied`, on no other mask."""
        if key not in self._structure:
            self._structure[key] = make()
        return cast("Kept", self._structure[key])

    def tiles(self, tile_out: int, tile_in: int) -> FloatArray:
        """Tiles of ``tile_out x tile_in`` weight elements that hold work: all of a dense weight, else the occupied ones."""
        occupied = {mask: mask.occupied_tiles(tile_out, tile_in) for mask in set(self.masks) if mask is not None}
        whole = (np.ceil(self.n / tile_out) * np.ceil(self.k / tile_in)).tolist()
        return np.array(
            [dense if mask is None else occupied[mask] for dense, mask in zip(whole, self.masks, strict=True)], dtype=np.float64
        )


def _zeros() -> FloatArray:
    return np.zeros(0)


def _as_wide(column: FloatArray, shape: tuple[int, ...]) -> FloatArray:
    return np.ascontiguousarray(np.broadcast_to(np.asarray(column, dtype=np.float64), shape))


@dataclass(frozen=True, kw_only=True, eq=False)
class Costs:
    """What a backend returns: one entry per operator in trace order.

    Parameters
    ----------
    cycles : cycles of the device's main clock, waiting included
    latency_s : seconds; rows sum to the total. ``gap_s`` is the part of it in which the device waits for the host
    compute_j, onchip_j, offchip_j, static_j : joules by cause; their sum is the operator's energy
    dram_bytes : bytes to and from off-chip memory
    executed_macs : MACs the machine performs, padding of its skip unit included, never less than the kept MACs
    bound : limiting resource of each operator: "compute", "memory", "launch", "host", "vector", "none", ...
    kernel : name of the kernel or the unit that runs it; like ``bound`` (n_ops,) also in a sweep, where designs agree
    fused_into : row whose kernel carries this operator's cost; its own row where it is not fused
    array_cycles, busy_array_cycles : cycles of all compute arrays together until the one with the most work is done, and those
        of them in which they work; zeros where a backend does not share work among arrays
    components_j : joules by hardware component, whose sum is the operator's energy too; empty where a backend does not tell
    """

    cycles: FloatArray
    latency_s: FloatArray
    compute_j: FloatArray
    onchip_j: FloatArray
    offchip_j: FloatArray
    static_j: FloatArray
    dram_bytes: FloatArray
    executed_macs: FloatArray
    bound: TextArray
    kernel: TextArray
    fused_into: IntArray
    gap_s: FloatArray = field(default_factory=_zeros)
    array_cycles: FloatArray = field(default_factory=_zeros)
    busy_array_cycles: FloatArray = field(default_factory=_zeros)
    components_j: Mapping[str, FloatArray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Give every numeric column the shape of the widest: (n_ops,), or (designs, n_ops) in a sweep."""
        for name in ("gap_s", "array_cycles", "busy_array_cycles"):
            if getattr(self, name).size == 0:
                object.__setattr__(self, name, np.zeros_like(self.latency_s))
        numeric = [item.name for item in fields(self) if item.name not in {"bound", "kernel", "fused_into", "components_j"}]
        shape = np.broadcast_shapes(*(np.shape(getattr(self, name)) for name in numeric))
        for name in numeric:
            object.__setattr__(self, name, _as_wide(getattr(self, name), shape))
        parts = {name: _as_wide(joules, shape) for name, joules in self.components_j.items()}
        object.__setattr__(self, "components_j", parts)

    @property
    def energy_j(self) -> FloatArray:
        """Energy of each operator: the sum of its four causes."""
        return self.compute_j + self.onchip_j + self.offchip_j + self.static_j


@dataclass(frozen=True, kw_only=True, eq=False)
class Occupation:
    """When one unit of a machine works for each operator, in seconds; what the timeline draws.

    Parameters
    ----------
    what : one sentence: what the unit is and what its busy time means
    busy_s : (n_ops,) seconds it works for the operator; not what it waits
    start_s : (n_ops,) seconds from the start of the operator's own slice to the first work; negative where it runs beside an
        earlier operator
    """

    what: str
    busy_s: FloatArray
    start_s: FloatArray


_MOST: Mapping[str, float] = {"bytes_per_s": 1e16, "_j": 1e-6, "_w": 1e5, "_hz": 1e12, "_s": 1.0}
"""Largest plausible value of one event, board, clock, fixed time or memory, by the unit that ends a field's name."""


class Parameters(BaseModel):
    """Base of what a backend wants from a card: its fields and tables, in SI units."""

    model_config = {"extra": "forbid", "frozen": True, "strict": True, "arbitrary_types_allowed": True, "allow_inf_nan": False}

    @field_validator("*")
    @classmethod
    def _in_its_unit(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuse a number that no machine has in the unit its field's name ends in: most likely another prefix was meant."""
        name = info.field_name or ""
        most = next((limit for unit, limit in _MOST.items() if re.search(rf"{unit}(_per_\w+)?$", name)), None)
        numbers = value.values() if isinstance(value, dict) else [value]
        found = [number for number in numbers if isinstance(number, (int, float)) and most is not None and number > most]
        if found:
            raise ValueError(f"{found[0]:g} is beyond any machine's in SI units (at most {most:g}); check the unit")
        return value


class Backend(Protocol):
    """Pure map from operators to costs. Does no I/O, keeps no state and prints nothing (an adapter may cache).

    ``kinds`` lists operator kinds or whole families it models; ``free`` lists kinds or families that cost nothing on
    purpose, each with the reason. Anything else is refused before :meth:`cost` is called. A backend may also have
    ``warnings(workload, parameters, options) -> list[str]``: lines about what the user would not expect, such as a layer
    that pruning makes slower; ``choices``: which of attention and sparse_kernel it heeds (others are told to change
    nothing); ``grouped``: fields that are numbers but choices, so that a sweep takes them one by one;
    ``simulated_modes``: modes in which a point takes a simulation of seconds to minutes;
    ``units(workload, parameters, options) -> Mapping[str, Occupation]``: when each unit works, of one design; and
    ``skip_unit(workload, parameters, options) -> tuple[int, int] | None``: (out, in) weights that the machine skips as one
    where all are pruned, the largest it can use where it has several sizes; None where it skips nothing.
    """

    name: ClassVar[str]
    modes: ClassVar[tuple[str, ...]]
    parameters: ClassVar[type[Parameters]]

    def kinds(self, mode: str) -> frozenset[str]:
        """Kinds and families modelled in ``mode``."""
        ...

    def free(self, mode: str) -> Mapping[str, str]:
        """Kinds and families that cost nothing in ``mode``, each with the reason."""
        ...

    def cost(self, workload: Workload, parameters: Any, options: Options) -> Costs:
        """Cost of every operator; ``parameters`` is this backend's resolved :class:`Parameters`."""
        ...


def shared(names: TextArray) -> TextArray:
    """Texts of shape (designs, n_ops) as (n_ops,) where all designs agree: most do, and texts take more room than numbers."""
    alike = names.ndim == 1 or bool((names == names[0]).all())
    return cast("TextArray", names[0]) if alike and names.ndim > 1 else names


def by_key(table: Mapping[str, Any], keys: TextArray, field: str) -> FloatArray:
    """``table[key]`` for every key: (n_ops,), or (designs, n_ops) where an entry is an array of shape (designs, 1).

    Raises
    ------
    HwmodelError
        A key that the card's ``field`` has no entry for.
    """
    found: FloatArray = np.zeros(keys.shape)
    for key in np.unique(keys).tolist():
        if key not in table:
            listed = ", ".join(sorted(table))
            raise HwmodelError(f"{field} has no entry for {key!r}, only for {listed}; set {field}.{key}, for example with --set")
        found = np.where(keys == key, table[key], found)
    return found


def evaluate(backend: Backend, workload: Workload, parameters: Any, options: Options) -> Costs:
    """Refuse what the backend cannot model, then cost every row.

    Raises
    ------
    UnsupportedOperatorError
        Lists every unknown kind with its count.
    """
    known = backend.kinds(options.mode) | backend.free(options.mode).keys()
    pairs = zip(workload.kind.tolist(), workload.family.tolist(), strict=True)
    unknown = Counter(kind for kind, family in pairs if kind not in known and family not in known)
    if unknown:
        listed = ", ".join(f"{kind} x{count}" for kind, count in unknown.most_common())
        raise UnsupportedOperatorError(f"backend {backend.name!r} has no model for {listed}; it knows {', '.join(sorted(known))}")
    return backend.cost(workload, parameters, options)
