"""What the machine runs: operators broken into units (attention by hand into three), identical ones once with a count.

A special function that stands between two products runs beside them; which product it waits for is settled here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from hwmodel.backends.base import BoolArray, FloatArray, IntArray, Workload
from hwmodel.ir.operators import Operator, matmul, softmax
from hwmodel.ir.trace import Trace

NOBODY = -1
_BETWEEN = frozenset({"elementwise"})
_BETWEEN_KINDS = frozenset({"softmax", "log_softmax"})


class _Beside(NamedTuple):
    """Units that a special function runs beside: the product it follows and the one it feeds, NOBODY where there is none."""

    after: int = NOBODY
    before: int = NOBODY


@dataclass(frozen=True, eq=False)
class Units:
    """Distinct units of a workload.

    Parameters
    ----------
    workload : one operator per distinct unit, in order of first appearance
    after, before : (n,) distinct unit that a special function follows and runs beside, and the one it feeds; NOBODY else
    count : (n,) how often each distinct unit occurs
    of_unit : (units,) distinct unit of every unit in execution order
    starts : (n_ops,) first unit of every operator
    """

    workload: Workload
    after: IntArray
    before: IntArray
    count: IntArray
    of_unit: IntArray
    starts: IntArray

    def __len__(self) -> int:
        return len(self.workload)

    @cached_property
    def paired(self) -> IntArray:
        """Units that stand between two products and run beside both."""
        rows: IntArray = (self.before != NOBODY).nonzero()[0]
        return rows

    @cached_property
    def pieces(self) -> IntArray:
        """(n,) independent parts of each unit: products of a batch, and the heads that a softmax follows."""
        own = self.workload
        headed = (self.after != NOBODY) & ~own.parameter[self.after]
        return np.maximum(np.where(headed, own.batch[self.after], own.batch), 1)

    def beside(self, column: FloatArray) -> FloatArray:
        """The figures of the special function that runs beside each product; 0 where there is none."""
        found = np.zeros(column.shape)
        followed = (self.after != NOBODY).nonzero()[0]
        found[..., self.after[followed]] = column[..., followed]
        return found

    @property
    def idle(self) -> BoolArray:
        """(n,) units that are computed before deployment."""
        return self.workload.constant


def units_of(workload: Workload) -> Units:
    """Break operators into units and find which are alike."""
    operators, owner = _lowered(workload)
    beside = _neighbours(operators, _edges(workload, owner))
    formats = [(str(workload.dtype[row]), str(workload.weight_dtype[row])) for row in owner]
    plain = _numbered([(*_content(one), *two) for one, two in zip(operators, formats, strict=True)])
    follower = {pair.after: plain[unit] for unit, pair in enumerate(beside)}
    keys = [
        (plain[unit], follower.get(unit), *(NOBODY if other == NOBODY else plain[other] for other in pair))
        for unit, pair in enumerate(beside)
    ]
    of_unit = _numbered(keys)
    first = _first(of_unit)
    partners = [[NOBODY if other == NOBODY else of_unit[other] for other in beside[unit]] for unit in first]
    pairs = np.array(partners, dtype=np.int64).reshape(len(first), 2)
    trace = Trace.from_operators([operators[unit].replace(name=f"unit_{unit}") for unit in first])
    text = np.array([formats[unit] for unit in first], dtype=np.str_).reshape(len(first), 2)
    starts = np.searchsorted(np.array(owner, dtype=np.int64), np.arange(len(workload)))
    return Units(
        workload=Workload(trace, text[:, 0], text[:, 1]), after=pairs[:, 0], before=pairs[:, 1],
        count=np.bincount(np.array(of_unit, dtype=np.int64), minlength=len(first)), of_unit=np.array(of_unit, dtype=np.int64),
        starts=starts,
    )  # fmt: skip


def _lowered(workload: Workload) -> tuple[list[Operator], list[int]]:
    """Units in execution order and the operator that each belongs to."""
    found: list[Operator] = []
    owner: list[int] = []
    for row, operator in enumerate(workload.trace.operators):
        parts = _attention_parts(operator) if operator.family == "attention" else [operator]
        found += parts
        owner += [row] * len(parts)
    return found, owner


def _attention_parts(operator: Operator) -> list[Operator]:
    """Scores, softmax and context of an attention written by hand; causal masks are not skipped."""
    batch, m, k, n = operator.batch, operator.m, operator.k, operator.n
    return [
        matmul(batch=batch, m=m, k=k, n=n, parameter=False, constant=operator.constant),
        softmax(rows=batch * m, cols=n, constant=operator.constant),
        matmul(batch=batch, m=m, k=n, n=k, parameter=False, constant=operator.constant),
    ]


def _edges(workload: Workload, owner: Sequence[int]) -> list[tuple[int, int]]:
    """(producer, consumer) between units: those of the trace, and those inside an attention."""
    firsts = np.searchsorted(owner, np.arange(len(workload) + 1)).tolist()
    inside = [(unit, unit + 1) for unit in range(len(owner) - 1) if owner[unit] == owner[unit + 1]]
    return sorted(inside + [(firsts[producer + 1] - 1, firsts[consumer]) for producer, consumer in workload.trace.edges])


def _neighbours(operators: Sequence[Operator], edges: Sequence[tuple[int, int]]) -> list[_Beside]:
    """Which products each special function runs beside, one entry per operator, in order.

    A product hides one of them at most, or less work could take longer.

    An elementwise function or a softmax whose only input is a product, and whose output a product reads, runs while the
    first is still at work and the second has begun. A residual sum runs beside the product it adds to.
    """
    inputs: list[list[int]] = [[] for _ in operators]
    outputs: list[list[int]] = [[] for _ in operators]
    for producer, consumer in edges:
        inputs[consumer].append(producer)
        outputs[producer].append(consumer)
    taken: set[int] = set()
    found = []
    for unit, operator in enumerate(operators):
        pair = _Beside()
        sources = [source for source in inputs[unit] if _free(operators, source, outputs, taken)]
        fed = [target for target in outputs[unit] if operators[target].family == "product" and target not in taken]
        if len(inputs[unit]) == len(sources) == 1 and fed and _streams(operator):
            pair = _Beside(sources[0], fed[0])
        elif operator.kind == "add" and sources:
            pair = _Beside(sources[-1])
        if pair.after != NOBODY:
            taken |= set(pair) - {NOBODY}
        found.append(pair)
    return found


def _free(operators: Sequence[Operator], source: int, outputs: Sequence[Sequence[int]], taken: set[int]) -> bool:
    """A product that only one unit reads and that hides nothing yet."""
    return operators[source].family == "product" and len(outputs[source]) == 1 and source not in taken


def _streams(operator: Operator) -> bool:
    return operator.family in _BETWEEN or operator.kind in _BETWEEN_KINDS


def _content(one: Operator) -> tuple[object, ...]:
    """All of an operator that costs depend on."""
    sizes = one.batch, one.m, one.k, one.n, one.elements, one.cols, one.input_elements, one.output_elements, one.weight_elements
    return (one.kind, *sizes, one.parameter, one.constant, one.mask)


def _numbered(keys: Sequence[object]) -> list[int]:
    """Each key as the number of its first appearance among distinct ones."""
    numbers: dict[object, int] = {}
    return [numbers.setdefault(key, len(numbers)) for key in keys]


def _first(numbers: Sequence[int]) -> list[int]:
    """Place of the first appearance of 0, 1, 2, ..."""
    places: dict[int, int] = {}
    for place, number in enumerate(numbers):
        places.setdefault(number, place)
    return list(places.values())
