"""Walks along the rows of a recording: who feeds whom, and the nearest products in either direction."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cached_property

from hwmodel.extraction.recording.graph import Record

Test = Callable[[Record], bool]

_LIGHT = frozenset({"elementwise", "movement", "rowwise"})


def is_weighted(record: Record) -> bool:
    """A product by a parameter that is computed for every image."""
    return record.operator.family == "product" and record.operator.parameter and not record.operator.constant


def is_depthwise(record: Record) -> bool:
    """A grouped convolution: it mixes pixels, not features, so walks look through it."""
    return record.operator.kind == "conv" and record.operator.batch > 1


def is_linear(record: Record) -> bool:
    """A weighted matrix product."""
    return is_weighted(record) and record.operator.kind == "matmul"


def is_light(record: Record) -> bool:
    """A row between products that keeps its tensor's meaning."""
    return record.operator.family in _LIGHT or is_depthwise(record)


class Flow:
    """Rows with their producers and consumers."""

    def __init__(self, records: tuple[Record, ...]) -> None:
        self.records = records

    @cached_property
    def consumers(self) -> tuple[frozenset[int], ...]:
        """Per row, the rows that read it."""
        found: list[set[int]] = [set() for _ in self.records]
        for index, record in enumerate(self.records):
            for producer in record.producers:
                found[producer].add(index)
        return tuple(map(frozenset, found))

    def back(self, start: Iterable[int], *, stop: Test, through: Test) -> list[int]:
        """Nearest rows satisfying ``stop`` at or before ``start``, walking only over rows satisfying ``through``."""
        return self._walk(start, lambda index: self.records[index].producers, stop, through)

    def forward(self, start: Iterable[int], *, stop: Test, through: Test) -> list[int]:
        """Nearest rows satisfying ``stop`` at or after ``start``."""
        return self._walk(start, lambda index: self.consumers[index], stop, through)

    def _walk(self, start: Iterable[int], step: Callable[[int], Iterable[int]], stop: Test, through: Test) -> list[int]:
        queue, seen, found = sorted(start), set(start), []
        for index in queue:
            record = self.records[index]
            if stop(record):
                found.append(index)
            elif through(record):
                fresh = sorted(set(step(index)) - seen)
                seen.update(fresh)
                queue.extend(fresh)
        return found

    def reached(self, first: int, last: int, through: Test = lambda record: True) -> set[int]:
        """Rows up to ``last`` that depend on ``first`` over rows satisfying ``through``; ``first`` is one of them."""
        found = {first}
        for index in range(first + 1, last + 1):
            if (index == last or through(self.records[index])) and self.records[index].producers & found:
                found.add(index)
        return found

    def between(self, first: int, last: int, through: Test) -> frozenset[int]:
        """Rows on a path from ``first`` to ``last`` over rows satisfying ``through``, both ends left out."""
        needed = {last}
        for index in sorted(self.reached(first, last, through), reverse=True):
            if self.consumers[index] & needed:
                needed.add(index)
        return frozenset(needed - {first, last})
