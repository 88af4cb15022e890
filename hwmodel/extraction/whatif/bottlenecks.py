"""Where a trace narrows to units that live or die alone: heads between qkv and proj, hidden units between fc1 and fc2.

A bottleneck is reported only where the edges prove it closed: nothing outside reads what its units compute, and no row
inside mixes one unit with another. Channels of a joint projection are taken as q, k, v one after another, each head by
head (timm's ``(3, heads, head_dim)``, torch's ``in_proj``); a packed gate as two halves.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from hwmodel.extraction.recording.flow import Flow
from hwmodel.extraction.recording.graph import Record
from hwmodel.extraction.whatif.structure import PROJECTIONS
from hwmodel.ir.masks import IntArray
from hwmodel.ir.operators import Operator
from hwmodel.ir.trace import Trace

MOVES = frozenset({"copy", "cast", "roll"})
"""Movements that keep every channel to itself."""
_INSIDE = MOVES | {"concat", "softmax"}
_KEEPS_ZERO = MOVES | {"mul", "gelu", "gelu_tanh", "quick_gelu", "silu", "relu", "relu6", "mish", "hardswish", "elu", "leaky_relu"}
_HEAD_FIRST = ("coatnet", "coatnext", "maxvit", "maxxvit", "levit")
"""timm families that lay a joint projection out head by head, q, k and v inside each (``head_first``)."""


@dataclass(frozen=True, eq=False)
class Maker:
    """A product that computes channels of the units.

    Parameters
    ----------
    row : of the trace
    unit : (n,) int, the unit that each output belongs to
    channel : (n,) int, the input channel of the taker that each output turns into; -1 for queries and keys
    """

    row: int
    unit: IntArray
    channel: IntArray


@dataclass(frozen=True, kw_only=True, eq=False)
class Bottleneck:
    """``units`` heads or hidden units: the products that make them, the one that takes them, and the rows between.

    ``folds`` says that a channel whose weights are all pruned is a constant that the taker's bias can hold.
    """

    noun: str
    makers: tuple[Maker, ...]
    taker: int
    units: int
    batched: tuple[int, ...] = ()
    inner: tuple[int, ...] = ()
    folds: bool = False

    @property
    def rows(self) -> tuple[int, ...]:
        """Every row whose shape follows the number of units."""
        return (*(maker.row for maker in self.makers), *self.inner, *self.batched, self.taker)


def flow_of(trace: Trace) -> Flow:
    """Walks along the edges of a trace."""
    producers: list[set[int]] = [set() for _ in trace.operators]
    for producer, consumer in trace.edges:
        producers[consumer].add(producer)
    return Flow(
        tuple(
            Record(operator=operator, module="", operands=(frozenset(rows),))
            for operator, rows in zip(trace.operators, producers, strict=True)
        )
    )


def bottlenecks(trace: Trace) -> Iterator[Bottleneck]:
    """Every closed bottleneck of a trace, in execution order; a trace without edges proves none."""
    flow = flow_of(trace)
    heads_apart = not trace.model.startswith(_HEAD_FIRST)
    for row, operator in enumerate(trace.operators):
        found = None
        if operator.role == "context" and heads_apart:
            found = _heads(flow, row)
        elif operator.role == "fc2" and operator.batch == 1:
            found = _hidden(flow, row)
        if found is not None:
            yield found


def _before(flow: Flow, row: int) -> tuple[set[int], set[int]]:
    """Rows without products that feed ``row``, and the products at which they start; constants left out."""
    inner: set[int] = set()
    ends: set[int] = set()
    queue = [row]
    for at in queue:
        for producer in sorted(flow.records[at].producers):
            operator = flow.records[producer].operator
            if operator.constant or producer in inner:
                continue
            (ends if operator.family == "product" else inner).add(producer)
            if operator.family != "product":
                queue.append(producer)
    return inner, ends


def _after(flow: Flow, row: int) -> tuple[set[int], set[int]]:
    """Channel-wise rows that read ``row``, and what reads them in the end."""
    inner: set[int] = set()
    ends: set[int] = set()
    queue = [row]
    for at in queue:
        for consumer in sorted(flow.consumers[at] - inner):
            operator = flow.records[consumer].operator
            if operator.kind in MOVES or operator.family == "elementwise":
                inner.add(consumer)
                queue.append(consumer)
            else:
                ends.add(consumer)
    return inner, ends


def _is_closed(flow: Flow, members: set[int], makers: Iterable[int], taker: int) -> bool:
    """Whether members are read by members and the taker only, and what is no maker reads members and constants only."""
    made = members - set(makers)
    outgoing = all(flow.consumers[row] <= members | {taker} for row in members)
    reads = {producer for row in made | {taker} for producer in flow.records[row].producers}
    return outgoing and all(row in members or flow.records[row].operator.constant for row in reads)


def _heads(flow: Flow, context: int) -> Bottleneck | None:
    """The heads of one attention, from its projections to its output projection."""
    middle, ends = _before(flow, context)
    scores = [row for row in ends if flow.records[row].operator.role == "scores"]
    last, takers = _after(flow, context)
    if len(scores) != 1 or len(takers) != 1:
        return None
    first, sources = _before(flow, scores[0])
    makers, inner, taker = (ends - set(scores)) | sources, first | middle | last, takers.pop()
    members = makers | inner | {scores[0], context}
    if not _is_closed(flow, members, makers, taker):
        return None
    operators = {row: flow.records[row].operator for row in members | {taker}}
    heads = _head_count(operators, scores[0], context, taker)
    letters = "".join(sorted(operators[row].role for row in makers))
    if not heads or sorted(letters) != list("kqv") or not all(_keeps_heads(operators[row], operators[context]) for row in inner):
        return None
    made = _projections(operators, makers, operators[scores[0]], operators[context], heads)
    if made is None:
        return None
    folds = all(operators[row].kind in MOVES for row in (last | _value_path(flow, context, middle, scores[0])))
    valued = [operators[maker.row] for maker in made if (maker.channel >= 0).any()]
    return Bottleneck(
        noun="heads", makers=made, taker=taker, units=heads, batched=(scores[0], context), inner=tuple(sorted(inner)),
        folds=folds and (has_bias(operators[taker]) or not any(map(has_bias, valued))),
    )  # fmt: skip


def _value_path(flow: Flow, context: int, middle: set[int], scores: int) -> set[int]:
    """Rows between the projections and the context that carry values rather than attention weights."""
    return middle - flow.reached(scores, context)


def _head_count(operators: dict[int, Operator], scores: int, context: int, taker: int) -> int:
    """Heads where all shapes agree on them, 0 where they do not."""
    first, second, last = operators[scores], operators[context], operators[taker]
    heads, rest = divmod(last.k, max(second.n, 1))
    queries = next((op.m for op in operators.values() if op.role in PROJECTIONS and "q" in op.role), 0)
    agree = (
        last.role == "proj" and last.parameter and last.batch == 1 and not rest and heads > 0
        and first.batch == second.batch and first.batch % max(heads, 1) == 0
        and (first.m, first.n) == (second.m, second.k) and first.batch * first.m == heads * queries
    )  # fmt: skip
    return heads if agree else 0


def _keeps_heads(operator: Operator, context: Operator) -> bool:
    """Whether a row between projections and proj leaves heads apart: no norm reaches across them."""
    if operator.kind == "softmax":
        return operator.cols == context.k
    if operator.family == "rowwise":
        return operator.cols > 0 and context.n % operator.cols == 0
    return operator.family == "elementwise" or operator.kind in _INSIDE


def _projections(
    operators: dict[int, Operator], makers: set[int], scores: Operator, context: Operator, heads: int
) -> tuple[Maker, ...] | None:
    """Which head and which channel each output of the projections belongs to; None where the widths do not say."""
    made = []
    for row in sorted(makers):
        operator, letters = operators[row], operators[row].role
        depths = [context.n if letter == "v" else scores.k for letter in sorted(letters, key="qkv".index)]
        if operator.n != heads * sum(depths) or operator.batch != 1 or not operator.parameter:
            return None
        unit = np.concatenate([np.repeat(np.arange(heads), depth) for depth in depths])
        values = heads * context.n if "v" in letters else 0
        channel = np.concatenate([np.full(operator.n - values, -1), np.arange(values)])
        made.append(Maker(row, unit, channel))
    return tuple(made)


def _hidden(flow: Flow, taker: int) -> Bottleneck | None:
    """The hidden units of one MLP, gates included."""
    inner, makers = _before(flow, taker)
    operators = {row: flow.records[row].operator for row in makers | inner | {taker}}
    hidden = operators[taker].k
    plain = all(operators[row].family == "elementwise" or operators[row].kind in MOVES for row in inner)
    fits = all(
        op.role == "fc1" and op.parameter and op.batch == 1 and op.n in {hidden, 2 * hidden}
        for op in map(operators.get, makers)
        if op
    )
    if not makers or not plain or not fits or not _is_closed(flow, makers | inner, makers, taker):
        return None
    made = tuple(Maker(row, *(np.arange(operators[row].n) % hidden,) * 2) for row in sorted(makers))
    zero = all(operators[row].kind in _KEEPS_ZERO for row in inner) and not any(has_bias(operators[row]) for row in makers)
    return Bottleneck(
        noun="hidden units", makers=made, taker=taker, units=hidden, inner=tuple(sorted(inner)),
        folds=zero or has_bias(operators[taker]),
    )  # fmt: skip


def has_bias(operator: Operator) -> bool:
    """Whether a product reads parameters beside its weight."""
    return operator.weight_elements > operator.batch * operator.k * operator.n
