"""How one ATen call becomes rows of a trace: the values a lowering sees, the rows it returns, and the registry.

A *lowering* is a small function from a :class:`Call` to a tuple of :class:`Row`. An empty tuple means that the call
costs nothing: its result is its first operand seen another way, and edges pass through it. A call without a lowering
is refused, never counted as zero. To teach hwmodel an operator of your own::

    from hwmodel.extraction.recording.lowering import LOWERINGS, Call, Row

    @LOWERINGS.lowers("mylib::frobnicate")
    def frobnicate(call: Call) -> tuple[Row, ...]:
        return (Row(hw.elementwise("frobnicate", elements=call.output.numel)),)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, TypeVar

from hwmodel.ir.operators import Operator

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Value:
    """A tensor of the graph: its layout and where it comes from, no data.

    Parameters
    ----------
    shape, stride : sizes and strides in elements
    dtype : torch's name without prefix ("float32", "int64")
    storage : number shared by all views of one memory
    producers : rows of the trace that wrote it; empty for inputs and parameters
    constant : depends on parameters and buffers only
    stored : is a parameter or buffer, perhaps seen through views
    source : name of the first parameter it derives from, of a buffer where there is no parameter, "" where neither
    learned : ``source`` names a parameter
    from_input : is the user's input, with no product since
    """

    shape: Shape
    stride: Shape
    dtype: str
    storage: int
    producers: frozenset[int] = frozenset()
    constant: bool = False
    stored: bool = False
    source: str = ""
    learned: bool = False
    from_input: bool = False

    @property
    def numel(self) -> int:
        """Elements of the shape."""
        return prod(self.shape)

    @property
    def distinct(self) -> int:
        """Elements in memory: an expanded dimension (stride 0) counts once."""
        return prod(size for size, step in zip(self.shape, self.stride, strict=True) if step or not size)


@dataclass(frozen=True, slots=True)
class Row:
    """One row of the trace to be.

    Parameters
    ----------
    operator : its ``name`` is the suffix wanted below the module path ("scores"); by default role or kind
    reads : values the row reads; None for every tensor operand of the call
    weight : the operand that is its weight, which names the row where it is a parameter
    chained : reads the result of the row before it, ahead of ``reads``
    """

    operator: Operator
    reads: tuple[Value, ...] | None = None
    weight: Value | None = None
    chained: bool = False


@dataclass(frozen=True, slots=True)
class Call:
    """One ATen call: name without namespace ``aten`` and overload, operands by their schema names, results."""

    name: str
    overload: str
    operands: Mapping[str, Any]
    outputs: tuple[Value, ...]

    def __getitem__(self, name: str) -> Any:
        return self.operands.get(name)

    def tensor(self, name: str) -> Value:
        """The operand ``name``, which must be a tensor."""
        value = self.operands[name]
        if not isinstance(value, Value):
            raise TypeError(f"{self.name}: operand {name!r} is {type(value).__name__}, expected a tensor")
        return value

    @property
    def tensors(self) -> tuple[Value, ...]:
        """Every tensor operand, those inside lists included, in order."""
        return tuple(_tensors(self.operands.values()))

    @property
    def in_place(self) -> bool:
        """Whether the call overwrites its first operand."""
        return self.name.endswith("_") and not self.name.endswith("__")

    @property
    def output(self) -> Value:
        """The first result."""
        return self.outputs[0]


def _tensors(values: Any) -> Iterator[Value]:
    for value in values:
        if isinstance(value, Value):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)


Lowering = Callable[[Call], tuple[Row, ...] | None]
"""None means that this form of the operator is not modelled: the call is refused."""
AnyLowering = TypeVar("AnyLowering", bound=Lowering)


class Registry:
    """Lowerings by operator name, each registered once."""

    def __init__(self) -> None:
        self._known: dict[str, Lowering] = {}

    def lowers(self, *names: str) -> Callable[[AnyLowering], AnyLowering]:
        """Register the decorated function for ``names`` ("softmax", or "mylib::op" outside ATen).

        An in-place spelling (trailing underscore) is found under its plain name.

        Raises
        ------
        ValueError
            A name that has a lowering already.
        """

        def register(lowering: AnyLowering) -> AnyLowering:
            for name in names:
                if name in self._known:
                    raise ValueError(f"operator {name!r} has a lowering already ({self._known[name].__name__})")
                self._known[name] = lowering
            return lowering

        return register

    def find(self, name: str) -> Lowering | None:
        """The lowering of ``name``; of its out-of-place form for a trailing underscore; None where unknown."""
        return self._known.get(name) or self._known.get(name.rstrip("_"))

    def names(self) -> tuple[str, ...]:
        """Every registered name, sorted."""
        return tuple(sorted(self._known))


LOWERINGS = Registry()
"""Every lowering hwmodel knows; :mod:`hwmodel.extraction.recording.aten` fills it."""

FREE: Mapping[str, str] = {
    **dict.fromkeys(
        (
            "_reshape_alias", "_unsafe_view", "alias", "as_strided", "broadcast_tensors", "broadcast_to", "chunk", "detach",
            "diagonal", "expand", "expand_as", "getitem", "imag", "lift_fresh", "mH", "mT", "matrix_H", "movedim", "narrow",
            "numpy_T", "permute", "real", "select", "slice", "split", "split_with_sizes", "squeeze", "swapaxes", "swapdims", "t",
            "tensor_split", "transpose", "unbind", "unfold", "unsqueeze", "view", "view_as", "view_as_complex", "view_as_real",
            "hsplit", "vsplit", "dsplit", "unsafe_chunk", "unsafe_split", "unsafe_split_with_sizes", "moveaxis", "T", "adjoint",
            "meshgrid", "positive", "atleast_1d", "atleast_2d", "atleast_3d", "resolve_conj", "resolve_neg",
        ),
        "a view: new strides over the same memory",
    ),
    **dict.fromkeys(
        ("alpha_dropout", "dropout", "feature_alpha_dropout", "feature_dropout", "native_dropout"),
        "the identity in eval mode",
    ),
    **dict.fromkeys(
        (
            "_assert_async", "_assert_scalar", "_assert_tensor_metadata", "sym_constrain_range", "sym_constrain_range_for_size",
            "sym_numel", "sym_size", "sym_storage_offset", "sym_stride", "is_same_size", "is_nonzero",
        ),
        "a check on the host: no tensor is computed",
    ),
    **dict.fromkeys(("lift_fresh_copy", "empty", "empty_like", "new_empty", "empty_strided"), "memory is named, none is written"),
}  # fmt: skip
"""Operators that cost nothing on purpose, with the reason."""
