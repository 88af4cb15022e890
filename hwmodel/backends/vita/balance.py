"""How the rows of blocks of a product are shared out among processing elements (PEs), and how long the longest share is."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from hwmodel.backends.base import FloatArray, IntArray, Number, Workload
from hwmodel.backends.vita.parameters import ProcessingElement
from hwmodel.ir.masks import BlockMask


@dataclass(frozen=True, eq=False)
class Jobs:
    """Work of one product as jobs that each stay on one PE.

    Parameters
    ----------
    tiles : PE-shaped tiles of one job where all jobs are alike; else None
    count : number of jobs that hold work
    rows : (count,) tiles of each job in order, where they differ
    """

    tiles: float
    count: int
    rows: tuple[int, ...] = ()

    @property
    def total(self) -> float:
        """Tiles of all jobs."""
        return float(sum(self.rows)) if self.rows else self.tiles * self.count

    def share(self, pes: int) -> Share:
        """How the jobs lie on ``pes`` PEs.

        Jobs go out in order, each to the PE with the fewest tiles so far (list scheduling): more PEs, or fewer tiles in any
        job, never make the longest share longer.
        """
        if not self.rows:
            turns = -(-self.count // pes)
            tied = float(self.count - pes * (turns - 1)) if self.count else 0.0
            return Share(self.tiles * turns, tied, self.tiles * max(turns - 1, 0), self.tiles)
        shares = _scheduled(self.rows, pes)
        most = max(shares)
        rest = max(_scheduled(self.rows[pes:], pes))
        return Share(float(most), float(shares.count(most)), float(rest), float(min(self.rows[:pes])))


class Share(NamedTuple):
    """Tiles of the longest share, PEs with a share as long, the longest share once every PE has finished one job, and tiles
    of the job that is finished first.
    """

    longest: float
    tied: float
    rest: float
    first: float


def _scheduled(rows: Sequence[int], pes: int) -> list[int]:
    """Tiles of each PE under list scheduling."""
    shares = [0] * max(min(pes, len(rows)), 1)
    for tiles in rows:
        heapq.heapreplace(shares, shares[0] + tiles)
    return shares


def jobs_of(workload: Workload, row: int, pe: ProcessingElement) -> Jobs:
    """Jobs of the product in ``row``: one per row of blocks of a weight, one per head of an attention product.

    A head stays on one PE with its keys or values. Where only a density is known every row is expected to keep as much.
    """
    batch, n, k = int(workload.batch[row]), int(workload.n[row]), int(workload.k[row])
    rows, cols = -(-n // pe.out), -(-k // pe.in_)
    if not workload.parameter[row]:
        return Jobs(float(rows * cols), batch)
    mask = workload.masks[row]
    if mask is None:
        return Jobs(float(cols), batch * rows)
    if not isinstance(mask, BlockMask):
        return _alike(mask.occupied_tiles(pe.out, pe.in_), batch, rows)
    kept = mask.tile_occupancy(pe.out, pe.in_).sum(axis=1)
    alive = kept[kept > 0]
    if not alive.size or alive.min() == alive.max():
        return Jobs(float(alive[0]) if alive.size else 0.0, batch * alive.size)
    return Jobs(0.0, batch * alive.size, tuple(alive.tolist()) * batch)


def _alike(tiles: float, batch: int, rows: int) -> Jobs:
    """``tiles`` expected tiles spread evenly over ``rows`` rows."""
    return Jobs(tiles / rows, batch * rows if tiles else 0)


@dataclass(frozen=True, eq=False)
class Shares:
    """Jobs of several products, and their shares on any number of PEs. Remembers shares already worked out."""

    jobs: tuple[Jobs, ...]

    @cached_property
    def _known(self) -> dict[int, list[Share]]:
        return {}

    @cached_property
    def tiles(self) -> FloatArray:
        """(n,) tiles that hold work."""
        return np.array([one.total for one in self.jobs])

    @cached_property
    def count(self) -> IntArray:
        """(n,) jobs that hold work."""
        return np.array([one.count for one in self.jobs], dtype=np.int64)

    def on(self, pes: Number) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray]:
        """The four figures of :class:`Share`: each (n,), or (designs, n) where ``pes`` has shape (designs, 1)."""
        counts, where = np.unique(np.asarray(pes), return_inverse=True)
        figures = np.array([self._shares(int(count)) for count in counts], dtype=np.float64)
        figures = figures.reshape(len(counts), len(self.jobs), len(Share._fields))
        chosen = figures[0] if np.ndim(pes) == 0 else figures[where.reshape(-1)]
        return chosen[..., 0], chosen[..., 1], chosen[..., 2], chosen[..., 3]

    def _shares(self, pes: int) -> list[Share]:
        if pes not in self._known:
            self._known[pes] = [one.share(pes) for one in self.jobs]
        return self._known[pes]
