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
            return self._alike(pes)
        ends, supplies = _scheduled(self.rows, pes)
        return Share(float(ends[-1]), float(np.sum(ends == ends[-1])), float(ends[0]), _corners(ends), _corners(supplies))

    def _alike(self, pes: int) -> Share:
        """Turns of jobs that end together; the last one may leave PEs idle, and those without a job in it are served last."""
        turns = -(-self.count // pes)
        tied = self.count - pes * (turns - 1) if self.count else 0
        together = [(tied, tied, self.count)]
        if turns > 1:
            together += [(tied + pes, pes, self.count - tied), (self.count, pes, pes)]
        supplies = []
        for brought, group, left in together:
            tiles = self.tiles * brought
            supplies += [Finish(tiles - max(group - 1, 0), float(left)), Finish(tiles, float(min(left - group + 1, left)))]
        last = (Finish(self.tiles * turns, float(tied)),) if turns > 1 else ()
        finishes = Finish(self.tiles, float(self.count)), *last
        return Share(self.tiles * turns, float(tied), self.tiles, finishes, tuple(supplies))


class Finish(NamedTuple):
    """A job that ends: tiles done (or brought) by then, and jobs that end with it or later."""

    tiles: float
    left: float


class Share(NamedTuple):
    """Tiles of the longest share, jobs that end with it, tiles of the job that is finished first, and the jobs whose end may
    settle when a function that follows them one by one is done: ``finishes`` where PEs never wait, ``supplies`` by the tiles that
    all PEs together have been brought by then.
    """

    longest: float
    tied: float
    first: float
    finishes: tuple[Finish, ...]
    supplies: tuple[Finish, ...]


class Narrower(NamedTuple):
    """:class:`Share` of several products on the same number of PEs: (n,), and ``finishes``, ``supplies`` corner by corner."""

    longest: FloatArray
    tied: FloatArray
    finishes: tuple[tuple[FloatArray, FloatArray], ...]
    supplies: tuple[tuple[FloatArray, FloatArray], ...]

    @classmethod
    def of(cls, shares: Sequence[Share]) -> Narrower:
        """The shares side by side."""
        longest, tied = (np.array([one[place] for one in shares]) for place in (0, 1))
        return cls(longest, tied, _side_by_side([one.finishes for one in shares]), _side_by_side([one.supplies for one in shares]))


def _side_by_side(found: Sequence[tuple[Finish, ...]]) -> tuple[tuple[FloatArray, FloatArray], ...]:
    """Corner by corner; a product with fewer corners than another repeats its last one."""
    most = max(map(len, found))
    padded = [corners + corners[-1:] * (most - len(corners)) for corners in found]
    columns = np.array(padded, dtype=np.float64).reshape(len(found), most, 2)
    return tuple((columns[:, corner, 0], columns[:, corner, 1]) for corner in range(most))


def _scheduled(rows: Sequence[int], pes: int) -> tuple[FloatArray, FloatArray]:
    """Tiles that the PE of each job has done when the job ends, under list scheduling, and tiles brought to all PEs by then.

    Suppliers serve the PE with the most tiles left, of several the first. Both ascending.
    """
    shares = [(0, pe) for pe in range(max(min(pes, len(rows)), 1))]
    ends, owners = [], []
    for tiles in rows:
        done, pe = shares[0]
        ends.append(done + tiles)
        owners.append(pe)
        heapq.heapreplace(shares, (ends[-1], pe))
    loads = np.zeros(len(shares))
    loads[owners] = ends
    behind = loads[owners] - ends
    longer = loads > behind[:, None]
    brought = np.maximum(loads - behind[:, None], 0).sum(axis=1)
    later = longer.sum(axis=1) - np.cumsum(longer, axis=1)[np.arange(len(rows)), owners]
    return np.sort(np.array(ends, dtype=np.float64)), np.sort(brought - later)


def _corners(ends: FloatArray) -> tuple[Finish, ...]:
    """Upper convex hull of all finishes: whatever a tile and a job's function take, the latest sum of both is at one of them."""
    hull: list[Finish] = []
    tiles, firsts = np.unique(ends, return_index=True)
    for new in map(Finish, tiles.tolist(), (len(ends) - firsts.astype(np.float64)).tolist()):
        while len(hull) > 1 and _is_below(hull[-1], hull[-2], new):
            hull.pop()
        hull.append(new)
    return tuple(hull)


def _is_below(middle: Finish, left: Finish, right: Finish) -> bool:
    """Whether a point is on or under the line between its neighbours."""
    rise = (right.left - left.left) * (middle.tiles - left.tiles)
    return (middle.left - left.left) * (right.tiles - left.tiles) <= rise


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

    def on(self, pes: Number) -> tuple[FloatArray, FloatArray, FloatArray]:
        """``longest``, ``tied`` and ``first`` of :class:`Share`: (n,), or (designs, n) where ``pes`` is (designs, 1)."""
        counts, where = np.unique(np.asarray(pes), return_inverse=True)
        figures = np.array([[one[:3] for one in self._shares(int(count))] for count in counts], dtype=np.float64)
        chosen = _by_design(figures.reshape(len(counts), len(self.jobs), 3), where, pes)
        return chosen[..., 0], chosen[..., 1], chosen[..., 2]

    def narrower(self, pes: Number, chosen: IntArray) -> list[Narrower]:
        """Shares of the ``chosen`` products on 1, 2, 3, ... PEs: up to the largest of ``pes``, or one for every job."""
        jobs = [self.jobs[row] for row in chosen]
        most = min(int(np.max(pes)), max((one.count for one in jobs), default=0))
        return [Narrower.of([self._shares(count)[row] for row in chosen]) for count in range(1, most + 1)]

    def _shares(self, pes: int) -> list[Share]:
        if pes not in self._known:
            self._known[pes] = [one.share(pes) for one in self.jobs]
        return self._known[pes]


def _by_design(figures: FloatArray, where: IntArray, pes: Number) -> FloatArray:
    """Figures of every count of PEs spread over the designs that have it; those of the only one where there is one design."""
    chosen: FloatArray = figures[0] if np.ndim(pes) == 0 else figures[where.reshape(-1)]
    return chosen
