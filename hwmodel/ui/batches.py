"""A dense trace at any batch from few extractions: every count of its operators is a straight line over the batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from hwmodel.ir.operators import Operator
from hwmodel.ir.trace import Trace

_COUNTS = ("batch", "m", "elements", "input_elements", "output_elements")
"""What more images can make larger; weights, widths and tokens stay."""
_TRIED = 5
"""Batch at which the line through batch 1 and 2 is held to an extraction."""


@dataclass(frozen=True)
class Batches:
    """Traces of one dense model by batch.

    Parameters
    ----------
    first : the trace at the smallest batch
    second : the trace at batch 2; None where the batch cannot be moved
    fixed : why the batch cannot be moved; "" where it can
    """

    first: Trace
    second: Trace | None
    fixed: str = ""

    @classmethod
    def of(cls, extract: Callable[[int], Trace]) -> Batches:
        """Extract at batch 1 and 2, and see whether the line through them meets a third extraction."""
        one, two = extract(1), extract(2)
        found = cls(one, two)
        if found._lines_up() and found.at(_TRIED) == extract(_TRIED):
            return found
        return cls(one, None, "operators of this model do not grow in a straight line with the batch")

    def _lines_up(self) -> bool:
        return self.second is not None and _names(self.first) == _names(self.second)

    def at(self, batch: int) -> Trace:
        """The trace at a batch; the only one there is where it cannot be moved."""
        if self.second is None or batch == self.first.batch:
            return self.first
        pairs = zip(self.first.operators, self.second.operators, strict=True)
        operators = tuple(_at(one, two, batch) for one, two in pairs)
        shape = (batch, *self.first.input_shape[1:]) if self.first.input_shape else ()
        return self.first.replace(operators=operators, batch=batch, input_shape=shape)


def _names(trace: Trace) -> list[str]:
    return [operator.name for operator in trace.operators]


def _at(one: Operator, two: Operator, batch: int) -> Operator:
    """The operator at a batch, from what it is at batch 1 and 2."""
    steps = {name: getattr(two, name) - getattr(one, name) for name in _COUNTS}
    return one.replace(**{name: getattr(one, name) + (batch - 1) * step for name, step in steps.items() if step})
