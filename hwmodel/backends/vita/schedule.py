"""In which order a product runs: how many groups of tokens, and how often inputs that left the chip come back."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import numpy as np

from hwmodel.backends.base import BoolArray, FloatArray, IntArray, Number, Workload
from hwmodel.backends.vita.memory import Demand
from hwmodel.backends.vita.parameters import Design

_ALIKE = 1e-12
"""Relative difference below which two times are the same."""


@dataclass(frozen=True, eq=False)
class Work:
    """What the PEs have to do for each product; (n,) or (designs, n).

    ``tiles`` and ``rows`` hold work (a head of attention is a row), of ``all_rows``, on ``pes`` PEs; ``longest`` is the largest
    share of tiles of one PE, ``tied`` PEs have as much, ``first`` tiles has the row that is finished first: none where a row is
    empty, for its outputs are there from the start.
    """

    tiles: FloatArray
    rows: IntArray
    all_rows: IntArray
    pes: Number
    longest: FloatArray
    tied: FloatArray
    first: FloatArray


@dataclass(frozen=True, eq=False)
class Pipeline:
    """Cycles of a product's tiles on each server; (n,) or (designs, n).

    Four servers work on every tile: the core reads its index in ``block`` cycles, the DMA brings it in ``fetch``, the port of
    the global buffer hands it to a PE in ``hand`` and its inputs in ``stream``, and the PE multiplies it with its ``tokens``.
    The core spends ``dispatch`` on all later rows, the DMA ``weights`` per group of tokens.
    """

    block: FloatArray
    fetch: FloatArray
    hand: FloatArray
    stream: FloatArray
    tokens: FloatArray
    tiles: FloatArray
    longest: FloatArray
    tied: FloatArray
    dispatch: FloatArray
    weights: FloatArray

    @classmethod
    def of(cls, workload: Workload, work: Work, demand: Demand, design: Design) -> Pipeline:
        """Bytes and blocks in cycles of this design."""
        parameters = design.parameters
        bytes_per_cycle = parameters.dram_bytes_per_s / np.asarray(parameters.clock_hz)
        return cls(
            block=np.where(workload.parameter, parameters.cycles_per_block, 0.0),
            fetch=demand.fetch_bytes / bytes_per_cycle,
            hand=demand.tile_bytes / parameters.buffer_bytes_per_cycle,
            stream=demand.slice_bytes / parameters.buffer_bytes_per_cycle,
            tokens=workload.m.astype(np.float64),
            tiles=work.tiles,
            longest=work.longest,
            tied=work.tied,
            dispatch=np.maximum(work.rows - design.pes, 0) * parameters.cycles_per_row,
            weights=demand.weight_bytes / bytes_per_cycle,
        )

    @property
    def filling(self) -> FloatArray:
        """Until the first PE works."""
        cycles: FloatArray = self.block + self.fetch + self.hand
        return cycles

    @property
    def pause(self) -> FloatArray:
        """Between the first tiles of two PEs."""
        return largest(self.block, self.fetch, self.hand)

    @property
    def worked(self) -> FloatArray:
        """Until the last PE is done that never waits after its first tile."""
        cycles: FloatArray = self.filling + np.maximum(self.tied - 1, 0) * self.pause + self.longest * self.tokens
        return cycles

    def tile(self, groups: FloatArray) -> FloatArray:
        """The slowest supplier's cycles for one tile, all groups of tokens; without the core's dispatches."""
        return largest(groups * self.block, groups * self.fetch, groups * self.hand + self.stream)

    def starved(self, groups: FloatArray, beside: FloatArray) -> FloatArray:
        """Until a supplier that never pauses is done, and one visit of arithmetic after the core's or the DMA's last tile.

        ``beside``: cycles of the DMA for activations, which move in the gaps between weights and after them.
        """
        visits, last = self.tiles * groups, self.tokens / groups
        return largest(
            self.filling - self.block + visits * self.block + self.dispatch + last,
            self.filling - self.fetch + self.weights * groups + last,
            self.weights * groups + beside,
            self.filling - self.hand + visits * self.hand + self.tiles * self.stream,
        )

    def running(self, groups: FloatArray, beside: FloatArray) -> FloatArray:
        """Cycles of the product after its set-up; convex in ``groups``."""
        return np.maximum(self.worked, self.starved(groups, beside))

    def take(self, columns: IntArray) -> Pipeline:
        """The chosen products."""
        return replace(self, **{item.name: getattr(self, item.name)[..., columns] for item in fields(self)})

    def at(self, chosen: BoolArray) -> Pipeline:
        """The chosen entries, in one row."""
        columns = {item.name: getattr(self, item.name) for item in fields(self)}
        return replace(self, **{name: np.broadcast_to(column, chosen.shape)[chosen] for name, column in columns.items()})


def largest(*terms: FloatArray) -> FloatArray:
    """The largest of all terms, entry by entry."""
    most = terms[0]
    for term in terms[1:]:
        most = np.maximum(most, term)
    return most


def fastest_order(
    pipeline: Pipeline, demand: Demand, function_bytes: FloatArray, cycles_per_byte: Number
) -> tuple[FloatArray, FloatArray]:
    """Groups of tokens of each product and DRAM bytes of its activations, so that it ends as early as can be.

    It ends when the ``function_bytes`` that a special function beside it moves to and from DRAM are moved too.

    Where inputs do not fit their half of the buffer, groups are as small as that half asks for, or inputs are read again for
    each turn of rows over the PEs. Of orders that take equally long, the one that moves less. More room in a buffer only adds
    orders, so it never costs time.
    """
    once = demand.read_bytes + demand.written_bytes
    groups = _enough_groups(pipeline, demand.small_groups, (once + function_bytes) * cycles_per_byte)
    if not np.any(demand.read_bytes):
        return groups, np.broadcast_to(once, groups.shape)
    again = demand.read_bytes * demand.turns + demand.written_bytes
    fewer = _enough_groups(pipeline, demand.groups, (again + function_bytes) * cycles_per_byte)
    orders = (groups, once), (fewer, again)
    times = [pipeline.running(count, (moved + function_bytes) * cycles_per_byte) for count, moved in orders]
    less = demand.weight_bytes * fewer + again < demand.weight_bytes * groups + once
    better = (times[1] < times[0] * (1 - _ALIKE)) | (less & (times[1] <= times[0] * (1 + _ALIKE)))
    return np.where(better, fewer, groups), np.where(better, again, once)


def _enough_groups(pipeline: Pipeline, least: FloatArray, beside: FloatArray) -> FloatArray:
    """The smallest number of groups, ``least`` or more, from which on more groups do not end a product sooner; by bisection."""

    def improves(part: Pipeline, groups: FloatArray, moved: FloatArray) -> BoolArray:
        shorter: BoolArray = part.running(groups + 1, moved) < part.running(groups, moved) * (1 - _ALIKE)
        return shorter & (groups < part.tokens)

    wanting = improves(pipeline, least, beside)
    if not wanting.any():
        return np.broadcast_to(least, wanting.shape)
    part = pipeline.at(wanting)
    low, moved = (np.broadcast_to(one, wanting.shape)[wanting] for one in (least, beside))
    high = part.tokens
    while (low < high).any():
        middle = np.floor((low + high) / 2)
        more = improves(part, middle, moved)
        low, high = np.where(more, middle + 1, low), np.where(more, high, middle)
    found = np.broadcast_to(least, wanting.shape).copy()
    found[wanting] = low
    return found
