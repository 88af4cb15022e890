"""The points of a study: cases (a model, a recipe, a device, a mode), each with the axes that vary there, and a number per point.

Points are numbered case by case; within a case the axes that need another trace turn slowest, then choices that a backend
cannot take as arrays, then the card fields that it can: so a run of consecutive numbers is a few calls with long arrays.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod

import numpy as np
import numpy.typing as npt

from hwmodel.exploration.axes import Axis, Value

Settings = dict[str, Value]
"""Value of each axis, by its title."""


@dataclass(frozen=True)
class Case:
    """One model with one recipe on one machine (a device in a mode), by their places in the study.

    ``slow`` axes get a call per value, ``fast`` ones are arrays of one call.
    """

    model: int
    recipe: str
    machine: int
    slow: tuple[Axis, ...]
    fast: tuple[Axis, ...]
    simulated: bool

    @property
    def axes(self) -> tuple[Axis, ...]:
        """All that varies here."""
        return self.slow + self.fast

    @cached_property
    def slow_values(self) -> tuple[tuple[Value, ...], ...]:
        return tuple(axis.points() for axis in self.slow)

    @cached_property
    def fast_values(self) -> tuple[tuple[Value, ...], ...]:
        return tuple(axis.points() for axis in self.fast)

    @property
    def designs(self) -> int:
        """Points of one call."""
        return prod(len(values) for values in self.fast_values)

    @property
    def calls(self) -> int:
        """Settings of the slow axes."""
        return prod(len(values) for values in self.slow_values)

    @property
    def size(self) -> int:
        """Points of the case."""
        return self.calls * self.designs

    def setting(self, call: int) -> Settings:
        """Values of the slow axes in one call."""
        places = np.unravel_index(call, [len(values) for values in self.slow_values]) if self.slow else ()
        return {axis.title: values[at] for axis, values, at in zip(self.slow, self.slow_values, places, strict=True)}

    def arrays(self, start: int, stop: int) -> dict[str, npt.NDArray[np.float64]]:
        """Values of the fast axes at designs ``start`` to ``stop`` of one call."""
        if not self.fast:
            return {}
        places = np.unravel_index(np.arange(start, stop), [len(values) for values in self.fast_values])
        columns = zip(self.fast, self.fast_values, places, strict=True)
        return {axis.title: np.array(values, dtype=np.float64)[at] for axis, values, at in columns}


@dataclass(frozen=True)
class Chunk:
    """Points ``start`` to ``stop`` of one case, counted within it; ``first`` is the number of the first in the study."""

    number: int
    case: int
    start: int
    stop: int
    first: int

    def __len__(self) -> int:
        return self.stop - self.start

    @property
    def points(self) -> npt.NDArray[np.int64]:
        """Numbers of its points in the study."""
        return np.arange(self.first, self.first + len(self), dtype=np.int64)


POINTS_PER_CHUNK = 16_384
CALLS_PER_CHUNK = 64


def chunks(cases: Sequence[Case]) -> Iterator[Chunk]:
    """The study in pieces of bounded size, each a file of its own; a simulation is a piece by itself."""
    number = first = 0
    for index, case in enumerate(cases):
        size = _chunk_size(case)
        for start in range(0, case.size, size):
            stop = min(start + size, case.size)
            yield Chunk(number, index, start, stop, first + start)
            number += 1
        first += case.size


def _chunk_size(case: Case) -> int:
    if case.simulated:
        return 1
    return (
        POINTS_PER_CHUNK
        if case.designs >= POINTS_PER_CHUNK
        else case.designs * min(CALLS_PER_CHUNK, POINTS_PER_CHUNK // case.designs)
    )


def calls_of(case: Case, chunk: Chunk) -> Iterator[tuple[Settings, Mapping[str, npt.NDArray[np.float64]], int]]:
    """(setting of the slow axes, arrays of the fast ones, designs) of every call in a chunk."""
    at = chunk.start
    while at < chunk.stop:
        call, design = divmod(at, case.designs)
        end = min(case.designs, design + chunk.stop - at)
        yield case.setting(call), case.arrays(design, end), end - design
        at += end - design
