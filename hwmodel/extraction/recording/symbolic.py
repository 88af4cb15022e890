"""Exported programs whose token counts depend on the data: export leaves a symbol for each, which is set here to a count.

One export serves every count: only the sizes noted on the graph change, so each trace is exactly what a pass with these
counts executes, data-dependent scoring included.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any

from hwmodel.errors import HwmodelError
from hwmodel.ir.token_counts import Counts

if TYPE_CHECKING:
    from torch.export import ExportedProgram

Symbol = Any
"""A sympy symbol."""

_SYMBOLIC = ("SymInt", "SymBool", "SymFloat")


class SymbolicProgram:
    """An exported program and the symbols that the data decides, in the order in which the forward pass meets them."""

    def __init__(self, program: ExportedProgram, *, model: str) -> None:
        self._program, self._model = program, model
        self._results = {node: node.meta["val"] for node in program.graph.nodes if "val" in node.meta}
        self.symbols: tuple[Symbol, ...] = tuple(dict.fromkeys(chain.from_iterable(map(_free, self._results.values()))))

    def at(self, counts: Sequence[int]) -> ExportedProgram:
        """The program with ``counts`` in place of its symbols; one program, valid until the next call.

        Raises
        ------
        HwmodelError
            As many counts as there are not points, or counts that the model itself rules out.
        """
        if len(counts) != len(self.symbols):
            raise HwmodelError(
                f"{self._model}: {len(self.symbols)} token counts depend on the data, the distribution has {len(counts)} points"
            )
        known = dict(zip(self.symbols, counts, strict=True))
        for node, value in self._results.items():
            node.meta["val"] = _settled(value, known)
        self._check(known, tuple(counts))
        return self._program

    def _check(self, known: Mapping[Symbol, int], counts: Counts) -> None:
        """What the model asserts about its counts must hold."""
        for node in self._program.graph.nodes:
            if not getattr(node.target, "__name__", "").startswith("_assert_scalar"):
                continue
            asserted = node.args[0]
            if getattr(asserted, "meta", {}).get("val") is False:
                said = _told(self._results[asserted], known)
                raise HwmodelError(f"{self._model}: token counts {counts} contradict what the model asserts: {said}")


def _free(value: Any) -> list[Symbol]:
    """Symbols in an example result, sizes of tensors included."""
    if isinstance(value, list | tuple):
        return [symbol for item in value for symbol in _free(item)]
    if type(value).__name__ in _SYMBOLIC:
        return sorted(value.node.expr.free_symbols, key=str)
    return [symbol for size in getattr(value, "shape", ()) if type(size).__name__ == "SymInt" for symbol in _free(size)]


def _told(said: Any, known: Mapping[Symbol, int]) -> str:
    return f"{said.node.expr} with " + ", ".join(f"{symbol} = {count}" for symbol, count in known.items())


def _settled(value: Any, known: Mapping[Symbol, int]) -> Any:
    """An example result with its symbolic sizes and numbers replaced."""
    if isinstance(value, list | tuple):
        return type(value)(_settled(item, known) for item in value)
    if type(value).__name__ in _SYMBOLIC:
        return _number(value, known)
    sizes = getattr(value, "shape", ())
    if not any(type(size).__name__ == "SymInt" for size in sizes):
        return value
    import torch

    layout = ([_number(size, known) for size in sizes], [_number(step, known) for step in value.stride()])
    return torch.empty_strided(*layout, dtype=value.dtype, device="meta")


def _number(value: Any, known: Mapping[Symbol, int]) -> Any:
    """A symbolic number as a plain one; what still depends on something else stays."""
    if type(value).__name__ not in _SYMBOLIC:
        return value
    found = value.node.expr.subs(known)
    if found.free_symbols:
        return value
    return bool(found) if type(value).__name__ == "SymBool" else int(found)
