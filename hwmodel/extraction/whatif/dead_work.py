"""What follows from the masks of a trace: heads and hidden units without a way in or out, and branches that are gone whole.

Every step keeps the network's function: what a dropped part still contributes is a constant, which the bias of the
product behind it takes over. Shapes shrink by whole mask blocks only, so a head or unit that shares a block with a
living one stays, and so that rows of operands stay aligned; its blocks are then pruned from the masks instead.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import gcd
from typing import NamedTuple

import numpy as np

from hwmodel.extraction.recording.flow import Flow
from hwmodel.extraction.whatif.bottlenecks import MOVES, Bottleneck, bottlenecks, flow_of, has_bias
from hwmodel.extraction.whatif.mask_slices import IN, OUT, certainly_pruned, cut_blocks, sliced, tightened
from hwmodel.extraction.whatif.structure import rescaled, reshaped
from hwmodel.ir.masks import BoolArray, ExpectedMask
from hwmodel.ir.operators import Operator
from hwmodel.ir.trace import Trace

_ALIGNMENT = 32
"""Values: a width that is a multiple of this stays one (16 bytes of the narrowest format), as tensor cores need it."""
_SCALES = frozenset({"mul", *MOVES})
"""Rows that turn a constant per channel into another, and zero into zero."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadWork:
    """One thing that computes nothing the result needs.

    Parameters
    ----------
    name : operator that it ends in ("blocks.10.attn.proj")
    what : "2 of 12 heads", "all 3072 hidden units and the branch around them", ...
    reason : why its result is zero or a constant
    macs, weights : kept MACs and kept weights that go with it
    """

    name: str
    what: str
    reason: str
    macs: float
    weights: float


class LivingWork(NamedTuple):
    """A trace without its dead work, and what was dropped."""

    trace: Trace
    dropped: tuple[DeadWork, ...]


def drop_dead_work(trace: Trace) -> LivingWork:
    """The trace that computes the same results without what its masks make useless.

    A head is dead where all columns of the output projection that read it are pruned, or all its value rows: softmax
    rows sum to one, so its result is the bias of its values. A hidden unit is dead where its column of fc2 is
    pruned, or its rows of fc1. Where all of a branch is dead, it goes from its norm to the residual addition, which
    adds a vector then, or goes too where no bias is left. Heads whose keys alone are pruned stay: they average.

    Parameters
    ----------
    trace : with masks; one without edges (made by hand) proves nothing and comes back as it is. Of a mask of which
        only a density is known nothing is provable, unless it keeps no block at all

    Returns
    -------
    LivingWork
        ``kept_macs`` never rises. Operators that vanish take their ``macs`` along; shrunk ones remember theirs.
    """
    flow = flow_of(trace)
    changed: dict[int, Operator] = {}
    gone: set[int] = set()
    bypassed: set[int] = set()
    dropped: list[DeadWork] = []
    for found in bottlenecks(trace):
        verdict = _Verdict.of(trace.operators, found)
        if not verdict.dead.any():
            continue
        ending = _ending(flow, found, verdict) if verdict.removed.all() else None
        if ending is not None:
            vanished = _unread(flow, {found.taker, *ending.passed})
            gone |= vanished
            (bypassed.add(ending.addition) if ending.width == 0 else changed.update(_adds_vector(flow, ending)))
            dropped.append(_finding(trace, found, verdict, {}, vanished))
            continue
        smaller = _shrunk(trace.operators, found, verdict)
        if smaller:
            changed |= smaller
            dropped.append(_finding(trace, found, verdict, smaller, set()))
    return LivingWork(_rebuilt(trace, changed, gone, bypassed) if dropped else trace, tuple(dropped))


def unprovable(trace: Trace) -> list[str]:
    """Names of operators of whose mask only a density is known, so that nothing follows from it."""
    return [
        operator.name
        for operator in trace.operators
        if isinstance(mask := operator.mask, ExpectedMask) and 0 < mask.kept_blocks < mask.total_blocks
    ]


@dataclass(frozen=True, eq=False)
class _Verdict:
    """Of one bottleneck: which channels and units are dead, for which reason, and which units can go."""

    silent: BoolArray  # (channels,) nothing reads it
    fixed: BoolArray  # (channels,) it is the same for every token
    dead: BoolArray  # (channels,)
    units: BoolArray  # (units,) dead ones
    removed: BoolArray  # (units,) those whose removal cuts no block

    @classmethod
    def of(cls, operators: Sequence[Operator], found: Bottleneck) -> _Verdict:
        silent = certainly_pruned(operators[found.taker], IN)
        fixed = np.full_like(silent, found.folds)
        for maker in found.makers:
            pruned, made = certainly_pruned(operators[maker.row], OUT), maker.channel >= 0
            np.logical_and.at(fixed, maker.channel[made], pruned[made])
        dead = silent | fixed
        units: BoolArray = np.logical_and.reduce(dead.reshape(found.units, -1), axis=1)
        return cls(silent, fixed, dead, units, _removable(operators, found, units))


def _removable(operators: Sequence[Operator], found: Bottleneck, dead: BoolArray) -> BoolArray:
    """The most dead units that leave whole blocks and aligned widths; the last of them stay where some must."""
    channels = operators[found.taker].k // found.units
    step = gcd(operators[found.taker].k, _ALIGNMENT)
    removed = _uncut(operators, found, dead)
    while removed.any() and not removed.all() and int((~removed).sum()) * channels % step:
        removed = removed.copy()
        removed[np.flatnonzero(removed)[-1]] = False
        removed = _uncut(operators, found, removed)
    return removed


def _uncut(operators: Sequence[Operator], found: Bottleneck, removed: BoolArray) -> BoolArray:
    """``removed`` without units that share a block, of any weight, with one that stays."""
    cells = [(found.taker, np.repeat(np.arange(found.units), operators[found.taker].k // found.units), IN)]
    cells += [(maker.row, maker.unit, OUT) for maker in found.makers]
    while True:
        stays = removed.copy()
        for row, unit, axis in cells:
            stays[unit[cut_blocks(operators[row], stays[unit], axis)]] = False
        if (stays == removed).all():
            return removed
        removed = stays


@dataclass(frozen=True, kw_only=True)
class _Ending:
    """How a branch rejoins the residual stream: rows passed on the way, the addition, and the length of the vector it adds."""

    passed: tuple[int, ...]
    addition: int
    width: int


def _ending(flow: Flow, found: Bottleneck, verdict: _Verdict) -> _Ending | None:
    """The addition that ends a branch whose taker only returns its bias; None where it ends otherwise."""
    passed: list[int] = []
    row = found.taker
    while len(flow.consumers[row]) == 1:
        row = next(iter(flow.consumers[row]))
        operator = flow.records[row].operator
        varying = [producer for producer in flow.records[row].producers if not flow.records[producer].operator.constant]
        if operator.kind == "add" and _joins(flow, row, len(varying)):
            taker = flow.records[found.taker].operator
            zero = not has_bias(taker) and all(flow.records[index].operator.kind in _SCALES for index in passed)
            return _Ending(passed=tuple(passed), addition=row, width=0 if zero else taker.n)
        if len(varying) != 1 or not (operator.kind in _SCALES or operator.kind in {"layernorm", "rmsnorm"}):
            return None
        passed.append(row)
    return None


def _joins(flow: Flow, row: int, varying: int) -> bool:
    """Whether an addition joins two streams, one of which may be the model's input, which no row writes."""
    record = flow.records[row]
    from_input = len(record.producers) == 1 and record.operator.input_elements == 2 * record.operator.elements
    return varying == 2 or from_input


def _adds_vector(flow: Flow, ending: _Ending) -> dict[int, Operator]:
    """The residual addition, which now reads one stream and a vector of parameters."""
    operator = flow.records[ending.addition].operator
    smaller = operator.replace(
        input_elements=operator.elements, weight_elements=min(operator.weight_elements + ending.width, operator.elements)
    )
    return {ending.addition: smaller}


def _unread(flow: Flow, ends: set[int]) -> set[int]:
    """``ends`` and all rows before them that nothing else reads."""
    gone = set(ends)
    queue = sorted(ends)
    for row in queue:
        for producer in sorted(flow.records[row].producers - gone):
            if flow.consumers[producer] <= gone:
                gone.add(producer)
                queue.append(producer)
    return gone


def _shrunk(operators: Sequence[Operator], found: Bottleneck, verdict: _Verdict) -> dict[int, Operator]:
    """Every row that changes, with fewer units and fewer blocks."""
    keep = np.zeros_like(verdict.removed) if verdict.removed.all() else verdict.removed
    stays = ~keep
    channels = operators[found.taker].k // found.units
    changed = {row: _fewer(operators, found, row, int(stays.sum())) for row in (*found.inner, *found.batched)}
    changed[found.taker] = _cut(operators[found.taker], IN, np.repeat(stays, channels), verdict.dead)
    for maker in found.makers:
        made = maker.channel >= 0
        dead = verdict.units[maker.unit]
        dead[made] |= verdict.dead[maker.channel[made]]
        changed[maker.row] = _cut(operators[maker.row], OUT, stays[maker.unit], dead)
    return {row: operator for row, operator in changed.items() if operator != operators[row]}


def _cut(operator: Operator, axis: int, stays: BoolArray, dead: BoolArray) -> Operator:
    """A product without the rows or columns that go, and without the blocks of dead ones among those that stay."""
    whole = np.ones((operator.n, operator.k)[1 - axis], dtype=np.bool_)
    sides = (stays, whole) if axis == OUT else (whole, stays)
    corpses = (dead, ~whole) if axis == OUT else (~whole, dead)
    mask = sliced(tightened(operator.mask, *corpses), *sides)
    size = {"n" if axis == OUT else "k": int(stays.sum())}
    smaller = reshaped(operator.replace(mask=None), **size)
    return smaller.replace(mask=mask)


def _fewer(operators: Sequence[Operator], found: Bottleneck, row: int, kept: int) -> Operator:
    """A row between the products with ``kept`` of the units; parameters per unit or channel follow."""
    operator = operators[row]
    if kept == found.units:
        return operator
    if row in found.batched:
        return reshaped(operator, batch=operator.batch // found.units * kept)
    width = operators[found.taker].k
    smaller = rescaled(operator, found.units, kept)
    matrix = [found.units * operators[product].m * operators[product].n for product in found.batched]
    if operator.weight_elements in {found.units, width, *matrix}:
        smaller = smaller.replace(weight_elements=operator.weight_elements // found.units * kept)
    return smaller.replace(cols=width // found.units * kept) if operator.cols == width and not found.batched else smaller


def _finding(trace: Trace, found: Bottleneck, verdict: _Verdict, changed: Mapping[int, Operator], gone: set[int]) -> DeadWork:
    rows = {*changed, *gone}
    before = [trace.operators[row] for row in sorted(rows)]
    after = list(changed.values())
    count = found.units if gone else int(verdict.removed.sum()) % found.units
    return DeadWork(
        name=trace.operators[found.taker].name,
        what=_what(found, count, bool(gone)),
        reason=_reason(verdict),
        macs=sum(op.kept_macs for op in before) - sum(op.kept_macs for op in after),
        weights=sum(map(_kept_weights, before)) - sum(map(_kept_weights, after)),
    )


def _what(found: Bottleneck, count: int, whole: bool) -> str:
    if whole:
        return f"all {found.units} {found.noun} and the branch around them"
    return f"{count} of {found.units} {found.noun}" if count else "blocks of dead channels"


def _reason(verdict: _Verdict) -> str:
    """The reasons that occur, in words."""
    silent, fixed = bool(verdict.silent.any()), bool((verdict.fixed & ~verdict.silent).any())
    texts = ["the columns that read them are pruned"] * silent
    texts += ["the rows that make them are pruned, so that a constant is left, which the bias takes over"] * fixed
    return "; ".join(texts)


def _kept_weights(operator: Operator) -> float:
    if operator.family != "product" or not operator.parameter:
        return float(operator.weight_elements)
    if operator.mask is not None:
        return float(operator.mask.kept_weights)
    return operator.batch * operator.k * operator.n * operator.kept_share


def _rebuilt(trace: Trace, changed: Mapping[int, Operator], gone: set[int], bypassed: set[int]) -> Trace:
    """The trace without the rows that went; what a bypassed addition was read for comes from its living operand."""
    dead = gone | bypassed
    operators = {row: changed.get(row, operator) for row, operator in enumerate(trace.operators) if row not in dead}
    sources = _living_sources(trace, gone, bypassed)
    number = {row: index for index, row in enumerate(operators)}
    edges = {
        (number[source], number[consumer])
        for producer, consumer in trace.edges
        if consumer in number
        for source in sources[producer]
    }
    return trace.replace(operators=tuple(operators.values()), edges=tuple(sorted(edges)))


def _living_sources(trace: Trace, gone: set[int], bypassed: set[int]) -> list[set[int]]:
    """Per row, the living rows that its readers read now."""
    producers: list[set[int]] = [set() for _ in trace.operators]
    for producer, consumer in trace.edges:
        producers[consumer].add(producer)
    sources: list[set[int]] = []
    for row in range(len(trace.operators)):
        if row in gone:
            sources.append(set())
        elif row in bypassed:
            sources.append({source for producer in producers[row] for source in sources[producer]})
        else:
            sources.append({row})
    return sources
