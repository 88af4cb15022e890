"""When each operator of a timeline starts and ends, in whole nanoseconds as viewers count; and the windows of its counters."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from hwmodel.backends.base import FloatArray, IntArray, Occupation


@dataclass(frozen=True, eq=False)
class Clock:
    """Edges of the slices of a main sequence, in nanoseconds: (n_ops + 1,).

    Whole ones, for viewers round start and length of a slice apart from each other and drop slices that then overlap
    (Perfetto's ``slice_drop_overlapping_complete_event``). The last edge is the exact total, so slices add up to it.
    """

    edges_ns: FloatArray

    @classmethod
    def of(cls, latency_s: FloatArray) -> Clock:
        """Slices of (n_ops,) seconds one after the other."""
        total = float(latency_s.sum()) * 1e9
        edges = np.minimum(np.round(np.concatenate([[0.0], np.cumsum(latency_s)]) * 1e9), np.floor(total))
        last = int(np.flatnonzero(latency_s > 0)[-1]) + 1 if total > 0 else len(edges)
        edges[last:] = total
        return cls(edges)

    @property
    def end_ns(self) -> float:
        """End of the last slice."""
        return float(self.edges_ns[-1])

    def at_ns(self, row: int, offset_s: float) -> float:
        """A time counted from the start of an operator, whole, never before the first one."""
        return max(float(np.floor(self.edges_ns[row] + offset_s * 1e9)), 0.0)


def windows(clock: Clock, units: Mapping[str, Occupation], amounts: FloatArray) -> Iterator[tuple[float, float, float]]:
    """(start, end, sum of ``amounts``) of runs of operators whose work overlaps, in order; together they are everything.

    An operator that runs beside others shares their window: its amount over its own few exposed cycles would be no rate.
    """
    if not clock.end_ns:
        return
    first = _window_of(clock, units)
    heads = np.unique(first)
    for head, following in zip(heads, [*heads[1:], len(first)], strict=True):
        yield float(clock.edges_ns[head]), float(clock.edges_ns[following]), float(amounts[head:following].sum())


def _window_of(clock: Clock, units: Mapping[str, Occupation]) -> IntArray:
    """(n_ops,) first row of the window of each row; windows without length join the one before, or the one after."""
    starts, ends = clock.edges_ns[:-1], clock.edges_ns[1:]
    rows = np.arange(len(starts))
    joined = ends <= starts
    for occupation in units.values():
        works = occupation.busy_s > 0
        begin = np.where(works, starts + occupation.start_s * 1e9, starts)
        finish = np.where(works, begin + occupation.busy_s * 1e9, ends)
        low = np.searchsorted(ends, begin + 1, side="right")
        high = np.searchsorted(starts, finish - 1, side="left")
        for row in np.flatnonzero(works & ((low < rows) | (high > rows + 1))).tolist():
            joined[low[row] + 1 : max(int(high[row]), row + 1)] = True
    joined[1 : int(np.argmax(ends > starts)) + 1] = True
    joined[0] = False
    return np.maximum.accumulate(np.where(joined, 0, rows))
