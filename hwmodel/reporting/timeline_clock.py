"""When each operator of a timeline starts and ends, so that slices tile the time exactly; and the windows of its counters."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import frexp

import numpy as np

from hwmodel.backends.base import FloatArray, IntArray, Occupation

_BITS = 52


@dataclass(frozen=True, eq=False)
class Clock:
    """Edges of all slices in microseconds, (n_ops + 1,), on a binary grid so fine that the total loses nothing.

    A grid, because floating-point sums of neighbouring slices would overlap by their rounding, and viewers draw overlapping
    slices as nested. Its step is 2**-52 of the total: sums and differences of edges are exact.
    """

    edges_us: FloatArray
    step_us: float

    @classmethod
    def of(cls, latency_s: FloatArray) -> Clock:
        """Slices of (n_ops,) seconds one after the other."""
        ends = np.cumsum(latency_s) * 1e6
        total = float(latency_s.sum()) * 1e6
        step = 2.0 ** (frexp(total)[1] - _BITS)
        edges = np.round(np.concatenate([[0.0], ends[:-1], [total]][: len(latency_s) + 1]) / step) * step
        return cls(np.maximum.accumulate(edges), step)

    @property
    def end_us(self) -> float:
        """End of the last slice."""
        return float(self.edges_us[-1])

    def on_grid_us(self, time_us: float) -> float:
        """The nearest point of the grid."""
        return round(time_us / self.step_us) * self.step_us

    def slice_us(self, row: int) -> tuple[float, float]:
        """Start and end of an operator."""
        return float(self.edges_us[row]), float(self.edges_us[row + 1])

    def at_us(self, row: int, offset_s: float) -> float:
        """A time counted from the start of an operator, never before the first one."""
        return max(self.on_grid_us(float(self.edges_us[row]) + offset_s * 1e6), 0.0)


def windows(clock: Clock, units: Mapping[str, Occupation], amounts: FloatArray) -> Iterator[tuple[float, float, float]]:
    """(start, end, sum of ``amounts``) of runs of operators whose work overlaps, in order; together they are everything.

    An operator that runs beside others shares their window: its amount over its own few exposed cycles would be no rate.
    """
    first = _window_of(clock, units)
    heads = np.unique(first)
    for head, following in zip(heads, [*heads[1:], len(first)], strict=True):
        yield float(clock.edges_us[head]), float(clock.edges_us[following]), float(amounts[head:following].sum())


def _window_of(clock: Clock, units: Mapping[str, Occupation]) -> IntArray:
    """(n_ops,) first row of the window of each row; windows without length join the one before, or the one after."""
    starts, ends = clock.edges_us[:-1], clock.edges_us[1:]
    count = len(starts)
    if not clock.end_us:
        return np.zeros(0, dtype=np.int64)
    joined = ends <= starts
    joined[0] = False
    for occupation in units.values():
        works = occupation.busy_s > 0
        begin = np.where(works, starts + occupation.start_s * 1e6, starts)
        finish = np.where(works, begin + occupation.busy_s * 1e6, ends)
        low = np.searchsorted(ends, begin + clock.end_us * 1e-9, side="right")
        high = np.searchsorted(starts, finish - clock.end_us * 1e-9, side="left")
        for row in np.flatnonzero(works & ((low < np.arange(count)) | (high > np.arange(count) + 1))).tolist():
            joined[low[row] + 1 : max(int(high[row]), row + 1)] = True
    leading = int(np.argmax(ends > starts))
    joined[1 : leading + 1] = True
    return np.maximum.accumulate(np.where(joined, 0, np.arange(count)))
