"""Which heads or tokens go under a loss budget: those whose predicted harm is least for what they save on a machine.

Harms are predicted changes of the loss, below zero taken as zero, and are added: what two removals do to each other is left out,
which is much where many go (on digits, 6 to 10 of 16 heads cost 7 to 40 times the sum). A budget that must hold is
:func:`hwmodel.pruning.gates.loss_budget.within_measured_loss`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from itertools import count
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from hwmodel.errors import HwmodelError, UnknownNameError

FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]
IntArray = npt.NDArray[np.int64]
Scope = Literal["global", "block", "symmetric"]
_ROUNDING = 1e-12


@dataclass(frozen=True, eq=False)
class Selection:
    """What stays.

    Parameters
    ----------
    present : (blocks, units) whether a block has the unit at all
    kept : (blocks, units) whether a unit stays in a block
    loss : predicted change of the loss, summed over what goes
    saved : cost that goes with it, in the unit of the costs given
    """

    present: BoolArray
    kept: BoolArray
    loss: float
    saved: float

    @property
    def counts(self) -> IntArray:
        """(blocks,) units that stay in each block."""
        found: IntArray = np.count_nonzero(self.kept, axis=1)
        return found

    @property
    def by_block(self) -> dict[int, tuple[int, ...]]:
        """Units that stay, by block that has units, none where all of them go.

        For heads it is what :func:`hwmodel.pruning.gates.heads.remove_heads` takes, which refuses a block that keeps none.
        """
        blocks = np.flatnonzero(self.present.any(axis=1)).tolist()
        return {block: tuple(np.flatnonzero(self.kept[block]).tolist()) for block in blocks}


def select(
    scores: npt.ArrayLike,
    saved: npt.ArrayLike,
    budget: float,
    *,
    scope: Scope = "global",
    lasting: bool = False,
    always: int = 0,
    blocks: Collection[int] | None = None,
    least: int = 1,
) -> Selection:
    """Remove units in the order of predicted harm per saved cost while the harms' sum stays within a budget.

    Parameters
    ----------
    scores : (blocks, units) predicted change of the loss on removal (``HeadScores.static``, ``TokenScores.static`` or
        ``.ranked``); NaN where a block has no such unit
    saved : (blocks,) or (blocks, units) cost that one unit less saves within that block; what saves nothing stays, except
        with ``scope`` "symmetric", where harm alone counts
    budget : largest sum of harms: of all blocks, or of each one with ``scope`` "block"
    scope : "global": one order over all blocks; "block": one per block; "symmetric": the same share of every block's units
        goes, the least harmful first, as large a share as the budget allows. Where units that last are missing from some blocks
        (NaN), those blocks may lose more, and a larger share may fit than the one found
    lasting : a unit that goes is gone in every later block too, as tokens are: it then saves their costs as well, does the harm
        of the block where it leaves, and where the budget allows more it leaves earlier instead (steepest descent along the
        lower convex hull of each unit's harm over its saved cost)
    always : the first units of every block stay (class token and other prefix tokens)
    blocks : where units may leave; every block where None
    least : units, those of ``always`` not counted, that stay at least in every block that has them

    Raises
    ------
    HwmodelError
        Shapes that do not fit, a budget or number of units below zero, an unknown block or scope.
    """
    scores, saved = np.asarray(scores, np.float64), np.asarray(saved, np.float64)
    if scores.ndim != 2 or saved.shape not in {scores.shape[:1], scores.shape}:
        raise HwmodelError(
            f"select: scores must be (blocks, units) and saved per block or unit, got {scores.shape} and {saved.shape}"
        )
    if not np.isfinite(saved).all():
        raise HwmodelError("select: saved costs must be finite")
    if not budget >= 0:
        raise HwmodelError(f"select: the budget must be a loss of at least 0, got {budget}")
    if always < 0 or least < 0:
        raise HwmodelError(f"select: always and least must be at least 0, got {always} and {least}")
    if scope not in get_args(Scope):
        raise UnknownNameError("scope", scope, get_args(Scope))
    unknown = sorted(set(blocks or ()) - set(range(len(scores))))
    if unknown:
        raise HwmodelError(f"select: block {unknown[0]!r} is not one of 0-{len(scores) - 1}")
    task = _Task.of(scores, saved, lasting=lasting, always=always, blocks=blocks, least=least)
    return {"global": _globally, "block": _per_block, "symmetric": _symmetrically}[scope](task, budget)


@dataclass(frozen=True, eq=False)
class _Task:
    """Arrays of shape (blocks, units).

    Parameters
    ----------
    present : the unit exists
    movable : it may leave at this block
    harm : of leaving at this block
    gain : cost saved within this block
    total : cost saved by leaving at this block, later ones included where leaving lasts
    """

    present: BoolArray
    movable: BoolArray
    harm: FloatArray
    gain: FloatArray
    total: FloatArray
    lasting: bool
    always: int
    least: int

    @classmethod
    def of(
        cls, scores: FloatArray, saved: FloatArray, *, lasting: bool, always: int, blocks: Collection[int] | None, least: int
    ) -> _Task:
        present = ~np.isnan(scores)
        allowed = np.isin(np.arange(len(scores)), list(range(len(scores)) if blocks is None else blocks))
        movable = present & allowed[:, None] & (np.arange(scores.shape[1]) >= always)
        gain = np.where(present, saved if saved.ndim == 2 else saved[:, None], 0.0)
        total = gain[::-1].cumsum(axis=0)[::-1] if lasting else gain
        harm = np.where(movable, np.maximum(scores, 0.0), np.inf)
        return cls(present, movable, harm, gain, total, lasting, always, least)

    def end(self, block: int) -> int:
        """The block ahead of which a unit that leaves at ``block`` is missed."""
        return len(self.present) if self.lasting else block + 1

    def counted(self, kept: BoolArray) -> IntArray:
        """(blocks,) units that may not all leave."""
        found: IntArray = np.count_nonzero(kept[:, self.always :], axis=1)
        return found

    def selection(self, kept: BoolArray, loss: float) -> Selection:
        return Selection(self.present, kept, loss, float(self.gain[self.present & ~kept].sum()))


@dataclass(frozen=True, order=True)
class _Step:
    """A unit that leaves at ``block`` and was there until the one ahead of ``end``; steps are in order of harm per saved cost.

    ``turn`` counts the steps of a unit: of those at one price, no later one comes ahead of an earlier one.
    """

    price: float
    turn: int
    block: int
    unit: int
    end: int
    harm: float


def _steps(task: _Task) -> Iterator[_Step]:
    """For every unit, leaving at ever earlier blocks along the lower hull of harm over saved cost, or at one block alone."""
    for block, unit in zip(*np.nonzero(task.movable), strict=True):
        if not task.lasting and task.total[block, unit] > 0:
            harm = float(task.harm[block, unit])
            yield _Step(harm / task.total[block, unit], 0, int(block), int(unit), int(block) + 1, harm)
    for unit in range(task.harm.shape[1]) if task.lasting else ():
        yield from _hull(task.harm[:, unit], task.total[:, unit], unit)


def _hull(harm: FloatArray, saved: FloatArray, unit: int) -> Iterator[_Step]:
    """From staying for good to leaving earliest: each step the block with the least harm per saved cost from the last one."""
    at, done, gained, price = len(harm), 0.0, 0.0, 0.0
    for turn in count():
        more = np.flatnonzero((saved[:at] > gained) & np.isfinite(harm[:at]))
        if not len(more):
            return
        prices = (harm[more] - done) / (saved[more] - gained)
        best = int(more[prices == prices.min()][0])
        price = max(price, float(prices.min()))  # never falls along a hull, but by rounding
        yield _Step(price, turn, best, unit, at, float(harm[best]) - done)
        at, done, gained = best, float(harm[best]), float(saved[best])


def _globally(task: _Task, budget: float) -> Selection:
    kept, loss, stuck = task.present.copy(), 0.0, set[tuple[int, int]]()
    counts = task.counted(kept)
    for step in sorted(_steps(task)):
        place, missed = (-1 if task.lasting else step.block, step.unit), slice(step.block, step.end)
        here = kept[missed, step.unit]
        if place in stuck or (counts[missed][here] <= task.least).any():
            stuck.add(place)
            continue
        if loss + step.harm > budget * (1 + _ROUNDING):
            break
        counts[missed] -= here
        kept[missed, step.unit] = False
        loss += step.harm
    return task.selection(kept, loss)


def _leaving(task: _Task, kept: BoolArray, block: int, units: IntArray) -> IntArray:
    """Those of some units that may leave at a block, one after the other, while it and the blocks behind keep enough."""
    counts, missed, leaving = task.counted(kept)[block : task.end(block)], kept[block : task.end(block)], []
    for unit in units.tolist():
        here = missed[:, unit]
        if (counts[here] > task.least).all():
            counts -= here
            leaving.append(unit)
    return np.array(leaving, np.int64)


def _per_block(task: _Task, budget: float) -> Selection:
    """Every block with a budget of its own, front to back."""
    kept, loss = task.present.copy(), 0.0
    for block in range(len(kept)):
        harm, total = task.harm[block], task.total[block]
        units = np.flatnonzero(kept[block] & task.movable[block] & (total > 0))
        order = _leaving(task, kept, block, units[np.argsort(harm[units] / total[units], kind="stable")])
        spent = np.cumsum(harm[order])
        going = order[np.isfinite(spent) & (spent <= budget * (1 + _ROUNDING))]
        kept[block : task.end(block), going] = False
        loss += float(harm[going].sum())
    return task.selection(kept, loss)


def _symmetrically(task: _Task, budget: float) -> Selection:
    """The largest share that fits: where every block has all units, the harm of a share never falls as the share grows."""
    sizes = set(task.counted(task.present).tolist()) - {0}
    shares = np.unique([went / size for size in sizes for went in range(max(size - task.least, 0) + 1)] or [0.0])
    low, high = 0, len(shares)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if _share(task, shares[middle]).loss <= budget * (1 + _ROUNDING) else (low, middle)
    return _share(task, shares[low])


def _share(task: _Task, share: float) -> Selection:
    """The selection in which every block that may lose units has lost this share of them, rounded down."""
    kept, loss = task.present.copy(), 0.0
    for block in np.flatnonzero(task.movable.any(axis=1)).tolist():
        whole, left = (int(task.counted(where)[block]) for where in (task.present, kept))
        target = max(task.least, whole - int(share * whole + _ROUNDING))
        harm, units = task.harm[block], np.flatnonzero(kept[block] & task.movable[block])
        order = units[np.argsort(harm[units], kind="stable")]
        going = _leaving(task, kept, block, order)[: max(0, left - target)]
        kept[block : task.end(block), going] = False
        loss += float(harm[going].sum())
    return task.selection(kept, loss)
