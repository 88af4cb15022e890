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
        if self.rows:
            ends, _ = _scheduled(self.rows, pes)
            return Share(float(max(ends)), float(ends.count(max(ends))), float(min(ends)))
        turns = -(-self.count // pes)
        return Share(self.tiles * turns, float(self.count - pes * (turns - 1)) if self.count else 0.0, self.tiles)

    def rounds(self, pes: int) -> Rounds:
        """How the jobs end where every server serves the PEs in turn, the one with the most tiles first."""
        if not self.count:
            return Rounds(*[((0.0, 0.0, 0.0),)] * 4)
        found, owners = _scheduled(self.rows or (self.tiles,) * self.count, pes)
        ends, loads = np.array(found), np.zeros(min(pes, self.count))
        np.maximum.at(loads, owners, ends)
        loads[::-1].sort()
        levels = np.unique([0.0, *loads[loads < loads[0]], max(loads[0] - 1, 0.0)])
        ends.sort()
        before = np.maximum(ends - 1, 0)
        left = np.arange(len(ends), 0.0, -1)
        return Rounds(
            starts=_corners(np.arange(1.0, len(loads) + 1), loads),
            levels=_corners(_brought(loads, levels), loads[0] - levels),
            finished=_corners(ends, left),
            supplied=_corners(_brought(loads, before), left, (loads > before[:, None]).sum(axis=1)),
        )


class Share(NamedTuple):
    """Tiles of the longest share, jobs that end with it, and tiles of the job that is finished first."""

    longest: float
    tied: float
    first: float


Corner = tuple[float, float, float]


class Rounds(NamedTuple):
    """What may settle when PEs and jobs end where servers go round; a job's function follows it, one by one.

    Parameters
    ----------
    starts : (place of a PE in the first round, its tiles, 0)
    levels : (tiles brought to all PEs in some whole rounds, tiles that the longest has left then, 0)
    finished : (tiles that a PE has worked off when a job ends, jobs that end then or later, 0)
    supplied : (tiles brought before the round of a job's last tile, jobs that end then or later, tiles of that round)
    """

    starts: tuple[Corner, ...]
    levels: tuple[Corner, ...]
    finished: tuple[Corner, ...]
    supplied: tuple[Corner, ...]


Columns = tuple[tuple[FloatArray, FloatArray, FloatArray], ...]


class Narrower(NamedTuple):
    """:class:`Rounds` of several products on the same number of PEs, corner by corner in arrays of shape (n,)."""

    starts: Columns
    levels: Columns
    finished: Columns
    supplied: Columns

    @classmethod
    def of(cls, found: Sequence[Rounds]) -> Narrower:
        """The products side by side; one with fewer corners than another repeats its last one."""
        return cls(*(_side_by_side(corners) for corners in zip(*found, strict=True)))


def _side_by_side(found: Sequence[tuple[Corner, ...]]) -> Columns:
    most = max(map(len, found))
    figures = np.array([corners + corners[-1:] * (most - len(corners)) for corners in found], dtype=np.float64)
    return tuple((one[:, 0], one[:, 1], one[:, 2]) for one in np.moveaxis(figures, 1, 0))


def _scheduled(rows: Sequence[float], pes: int) -> tuple[list[float], list[int]]:
    """Tiles that the PE of each job has done when the job ends, under list scheduling, and which PE that is."""
    shares = [(0.0, pe) for pe in range(max(min(pes, len(rows)), 1))]
    ends, owners = [], []
    for tiles in rows:
        done, pe = shares[0]
        ends.append(done + tiles)
        owners.append(pe)
        heapq.heapreplace(shares, (ends[-1], pe))
    return ends, owners


def _brought(loads: FloatArray, rounds: FloatArray) -> FloatArray:
    """Tiles that PEs with these loads have been brought after so many rounds of one tile each."""
    tiles: FloatArray = np.minimum(loads, rounds[:, None]).sum(axis=1)
    return tiles


def _corners(first: FloatArray, second: FloatArray, third: FloatArray | None = None) -> tuple[Corner, ...]:
    """Upper convex hull: at one of its points is the largest sum of both, whatever each is multiplied with; and their thirds."""
    beside = np.zeros(len(first)) if third is None else third
    hull: list[Corner] = []
    for place in np.lexsort((second, first)).tolist():
        new = float(first[place]), float(second[place]), float(beside[place])
        while hull and (hull[-1][1] <= new[1] or (len(hull) > 1 and _is_below(hull[-1], hull[-2], new))):
            hull.pop()
        hull.append(new)
    return tuple(hull)


def _is_below(middle: Corner, left: Corner, right: Corner) -> bool:
    """Whether a point is on or under the line between its neighbours."""
    return (middle[1] - left[1]) * (right[0] - left[0]) <= (right[1] - left[1]) * (middle[0] - left[0])


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
    def _rounds(self) -> dict[int, Narrower]:
        return {}

    @cached_property
    def tiles(self) -> FloatArray:
        """(n,) tiles that hold work."""
        return np.array([one.total for one in self.jobs])

    @cached_property
    def count(self) -> IntArray:
        """(n,) jobs that hold work."""
        return np.array([one.count for one in self.jobs], dtype=np.int64)

    def on(self, pes: Number) -> tuple[FloatArray, FloatArray, FloatArray]:
        """``longest``, ``tied`` and ``first`` of :class:`Share`: (n,), or (designs, n) where ``pes`` is (designs, 1)."""
        counts, where = np.unique(np.asarray(pes), return_inverse=True)
        figures = np.array([self._shares(int(count)) for count in counts], dtype=np.float64)
        chosen = _by_design(figures.reshape(len(counts), len(self.jobs), 3), where, pes)
        return chosen[..., 0], chosen[..., 1], chosen[..., 2]

    def narrower(self, pes: Number) -> list[Narrower]:
        """Rounds on 1, 2, 3, ... PEs: up to the largest of ``pes``, or one for every job."""
        most = min(int(np.max(pes)), max((one.count for one in self.jobs), default=0))
        for count in range(1, most + 1):
            if count not in self._rounds:
                self._rounds[count] = Narrower.of([one.rounds(count) for one in self.jobs])
        return [self._rounds[count] for count in range(1, most + 1)]

    def _shares(self, pes: int) -> list[Share]:
        if pes not in self._known:
            self._known[pes] = [one.share(pes) for one in self.jobs]
        return self._known[pes]


def _by_design(figures: FloatArray, where: IntArray, pes: Number) -> FloatArray:
    """Figures of every count of PEs spread over the designs that have it; those of the only one where there is one design."""
    chosen: FloatArray = figures[0] if np.ndim(pes) == 0 else figures[where.reshape(-1)]
    return chosen
