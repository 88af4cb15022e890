"""Our count of MACs beside the counters that people use, and for each difference the reason that the data shows.

Both sides are laid over the same cells, one per module and kind of operator. A cell where they differ is explained only
by something that reproduces the other figure exactly; what nothing reproduces is called unexplained.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from hwmodel.ir.operators import Operator
from hwmodel.ir.trace import Trace
from hwmodel.validation.counters import Counted, Inputs, count, installed

if TYPE_CHECKING:
    from torch import nn

KINDS = ("linear", "conv", "scores/context", "rest", "no product")
"""Products by a weight, convolutions, the two products of attention, products besides these, and what is none at all."""
UNEXPLAINED = "unexplained: no operator of ours, and no habit of the counter that is known here, gives this figure"
REFERENCE = "torch, math attention"
"""The counter that sees every product where it runs."""
MOST_PARAMETERS = 2**30
"""Up to here a model is built with weights, as users of the counters do; beyond it stays on the meta device."""

_LINEAR = frozenset({"addmm", "mm", "linear"})
_ACTIVATIONS = frozenset({"matmul", "bmm", "baddbmm", "einsum", "addbmm"})

Cell = tuple[str, str]
"""Module path and kind."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """MACs that a counter has more (or, negative, less) than we have, over ``cells`` cells of one kind, and why."""

    kind: str
    reason: str
    cells: int
    macs: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """One counter's figures by kind; the differences add up to its total less ours."""

    counter: str
    version: str
    macs: Mapping[str, int]
    differences: tuple[Difference, ...]
    unknown: Mapping[str, int]

    @property
    def total(self) -> int:
        """MACs of all kinds."""
        return sum(self.macs.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class Reconciliation:
    """Our MACs by kind, a column per counter that ran, and those that did not, with the reason."""

    trace: Trace
    macs: Mapping[str, int]
    columns: tuple[Column, ...]
    failed: Mapping[str, str] = field(default_factory=dict)

    def document(self) -> dict[str, Any]:
        """All of it as plain values."""
        return {
            "schema_version": 1, "model": self.trace.model, "batch": self.trace.batch, "macs": self.trace.macs,
            "kinds": dict(self.macs), "versions": dict(self.trace.versions), "counters": [_plain(one) for one in self.columns],
            "failed": dict(self.failed),
        }  # fmt: skip


def _plain(column: Column) -> dict[str, Any]:
    differences = [{"kind": one.kind, "macs": one.macs, "cells": one.cells, "reason": one.reason} for one in column.differences]
    return {
        "counter": column.counter, "version": column.version, "macs": column.total, "kinds": dict(column.macs),
        "differences": differences, "unknown_calls": dict(column.unknown),
    }  # fmt: skip


def reconcile(model: str | nn.Module, *, example: Any = None, batch: int = 1, image_size: int | None = None) -> Reconciliation:
    """Count a model with every counter that is installed; parameters as those of :func:`hwmodel.trace`.

    Raises
    ------
    HwmodelError
        What :func:`hwmodel.trace` refuses. A counter that fails is listed with its own words instead.
    """
    from hwmodel.extraction.models import trace

    traced = trace(model, batch=batch, image_size=image_size, example=example)
    module, inputs = _runnable(model, example, traced)
    counts, failed = _run_all(module, inputs)
    ours = _where_they_run(_ours(traced, dict(module.named_modules())), counts.get(REFERENCE))
    releases = installed()
    columns = tuple(_column(name, releases[name], counted, ours) for name, counted in counts.items())
    return Reconciliation(trace=traced, macs=_by_kind(_sums(ours)), columns=columns, failed=failed)


def _run_all(module: nn.Module, inputs: Inputs) -> tuple[dict[str, Counted], dict[str, str]]:
    """What each installed counter says, and the words with which others fail."""
    counts, failed = {}, {}
    for name in installed():
        try:
            counts[name] = count(name, module, inputs)
        except Exception as error:  # another tool's failure is a finding
            failed[name] = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    return counts, failed


def _runnable(model: str | nn.Module, example: Any, traced: Trace) -> tuple[nn.Module, Inputs]:
    """A model that the counters can run in eval mode, and its inputs."""
    import torch

    from hwmodel.extraction.recording.export import twin
    from hwmodel.extraction.zoo import build

    if not isinstance(model, str):
        like = next(model.parameters(), torch.empty(0))
        given = torch.zeros(traced.input_shape, dtype=like.dtype) if example is None else example
        values = (given,) if isinstance(given, torch.Tensor) else tuple(given)
        return twin(model), tuple(value.to(like.device) if isinstance(value, torch.Tensor) else value for value in values)
    height, width = traced.input_shape[-2:]
    empty = build(model, (height, width))
    parameters = sum(tensor.numel() for tensor in empty.parameters())
    device = "cpu" if parameters <= MOST_PARAMETERS else "meta"
    return (build(model, (height, width), device=device) if device == "cpu" else empty), (
        torch.zeros(traced.input_shape, device=device),
    )


def kind_of(operator: Operator) -> str:
    """One of :data:`KINDS`."""
    if operator.kind == "conv":
        return "conv"
    if operator.role in {"scores", "context"} or operator.kind == "attention":
        return "scores/context"
    return "linear" if operator.parameter else "rest"


def _ours(traced: Trace, modules: Mapping[str, object]) -> dict[Cell, list[Operator]]:
    """Our products by cell."""
    cells: defaultdict[Cell, list[Operator]] = defaultdict(list)
    for operator in traced.operators:
        if operator.macs:
            cells[_module_of(operator.name, modules), kind_of(operator)].append(operator)
    return dict(cells)


def _module_of(name: str, modules: Mapping[str, object]) -> str:
    """The innermost module that an operator's name lies in; a module called again has its operators numbered."""
    while name and name not in modules:
        stem, _, number = name.rpartition("_")
        name = stem if number.isdigit() and stem in modules else name.rpartition(".")[0]
    return name


def _where_they_run(ours: Mapping[Cell, list[Operator]], reference: Counted | None) -> dict[Cell, list[Operator]]:
    """Our cells, with a layer whose parameters another module's forward uses booked there, where torch saw them used."""
    if reference is None:
        return dict(ours)
    seen, _ = _theirs(reference, ours)
    cells: defaultdict[Cell, list[Operator]] = defaultdict(list)
    for (module, kind), rows in ours.items():
        around = (path for path in _ancestors(module) if (path, kind) in seen)
        cells[next(around, module), kind].extend(rows)
    return dict(cells)


def _ancestors(path: str) -> Iterator[str]:
    """``path`` and the modules around it, innermost first."""
    yield path
    while path:
        path = path.rpartition(".")[0]
        yield path


def _theirs(counted: Counted, ours: Mapping[Cell, object]) -> tuple[dict[Cell, int], dict[Cell, set[str]]]:
    """A counter's MACs by cell, and the operations it names there."""
    macs: Counter[Cell] = Counter()
    operations: defaultdict[Cell, set[str]] = defaultdict(set)
    for one in counted.counts:
        cell = one.module, _kind_of_operation(one.operation, (one.module, "scores/context") in ours)
        macs[cell] += one.macs
        operations[cell].add(one.operation)
    return dict(macs), dict(operations)


def _kind_of_operation(operation: str, in_attention: bool) -> str:
    """Kind of what a counter names; a product without a weight belongs to the attention of its module, if it has one."""
    plain = operation.removeprefix("aten.").lower()
    if "conv" in plain:
        return "conv"
    if plain in _LINEAR or "linear" in plain:
        return "linear"
    if plain in _ACTIVATIONS or "attention" in plain:
        return "scores/context" if in_attention else "rest"
    return "no product"


def _sums(cells: Mapping[Cell, Sequence[Operator]]) -> dict[Cell, int]:
    return {cell: sum(operator.macs for operator in rows) for cell, rows in cells.items()}


def _by_kind(cells: Mapping[Cell, int]) -> dict[str, int]:
    return {kind: sum(macs for (_, of), macs in cells.items() if of == kind) for kind in KINDS}


def _column(name: str, release: str, counted: Counted, ours: Mapping[Cell, Sequence[Operator]]) -> Column:
    theirs, operations = _theirs(counted, ours)
    return Column(
        counter=name,
        version=release,
        macs=_by_kind(theirs),
        differences=_differences(ours, theirs, operations, counted.unknown),
        unknown=counted.unknown,
    )


def _differences(
    ours: Mapping[Cell, Sequence[Operator]],
    theirs: Mapping[Cell, int],
    operations: Mapping[Cell, Iterable[str]],
    unknown: Mapping[str, int],
) -> tuple[Difference, ...]:
    """Cells that differ, gathered by kind and reason, in the order of the kinds."""
    macs: Counter[tuple[str, str]] = Counter()
    cells: Counter[tuple[str, str]] = Counter()
    sums = _sums(ours)
    balance = {module: _balance(module, sums, theirs) for module, _ in {*sums, *theirs}}
    for module, kind in dict.fromkeys((*ours, *theirs)):
        cell = module, kind
        seen = _Seen(
            module=module,
            rows=ours.get(cell, ()),
            macs=theirs.get(cell, 0),
            balance=balance[module],
            operations=sorted(operations.get(cell, ())),
            unknown=unknown,
        )
        more = seen.macs - sums.get(cell, 0)
        if more:
            reason = _reason(seen)
            macs[kind, reason] += more
            cells[kind, reason] += 1
    found = [Difference(kind=kind, reason=reason, cells=cells[kind, reason], macs=more) for (kind, reason), more in macs.items()]
    return tuple(sorted(found, key=lambda one: KINDS.index(one.kind)))


def _balance(module: str, ours: Mapping[Cell, int], theirs: Mapping[Cell, int]) -> int:
    """MACs that a counter has more than we have in one module, all kinds together."""
    return sum(theirs.get((module, kind), 0) - ours.get((module, kind), 0) for kind in KINDS)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Seen:
    """One cell as a counter sees it: our rows, its MACs and what it calls them, and what it has more in the whole module."""

    module: str
    rows: Sequence[Operator]
    macs: int
    balance: int
    operations: Sequence[str]
    unknown: Mapping[str, int]


def _reason(seen: _Seen) -> str:
    """Why a cell shows other MACs than ours."""
    if seen.balance == 0:
        return "the same products, counted under another kind"
    if not seen.rows:
        return f"counts {', '.join(seen.operations)} as MACs, where we see no product"
    if seen.macs == 0:
        return _absence(seen)
    return next((reason for reason, predicted in _HABITS.items() if predicted(seen.rows, seen.macs)), UNEXPLAINED)


def _absence(seen: _Seen) -> str:
    """Why nothing is counted where we have rows."""
    if all(row.fused_in_source for row in seen.rows):
        told = [f"{name} x{calls}" for name, calls in seen.unknown.items() if "attention" in name]
        says = f"; it says so: {', '.join(told)}" if told else "; it does not say so"
        return f"leaves out what scaled_dot_product_attention computes{says}"
    if all(row.constant for row in seen.rows):
        return "leaves out products of constants, which the model computes for every call"
    if not any(row.parameter and _is_layer(row, seen.module) for row in seen.rows):
        return "leaves out products that a forward pass writes out and no layer makes"
    return UNEXPLAINED


def _is_layer(row: Operator, module: str) -> bool:
    """Whether a row is all that its module computes, in one call of it or a later one."""
    return re.fullmatch(rf"{re.escape(module)}(_\d+)?", row.name) is not None


def _adds_biases(rows: Sequence[Operator], theirs: int) -> bool:
    return theirs == sum(row.macs + (row.output_elements if _has_bias(row) else 0) for row in rows)


def _has_bias(row: Operator) -> bool:
    return row.weight_elements > row.batch * row.k * row.n


def _uses_weights_less_often(rows: Sequence[Operator], theirs: int) -> bool:
    weights = sum(row.weight_elements for row in rows)
    return bool(weights) and theirs % weights == 0 and theirs < sum(row.macs for row in rows)


def _leaves_out_fused(rows: Sequence[Operator], theirs: int) -> bool:
    return theirs == sum(row.macs for row in rows if not row.fused_in_source)


def _leaves_out_constants(rows: Sequence[Operator], theirs: int) -> bool:
    return theirs == sum(row.macs for row in rows if not row.constant)


_HABITS: Mapping[str, Callable[[Sequence[Operator], int], bool]] = {
    "counts the addition of a bias as MACs too": _adds_biases,
    "counts each weight and bias once for each entry of the first dimension, not for each token": _uses_weights_less_often,
    "leaves out what scaled_dot_product_attention computes": _leaves_out_fused,
    "leaves out products of constants, which the model computes for every call": _leaves_out_constants,
}
"""Reasons for a figure other than ours, each with the test whether it gives exactly that figure."""
