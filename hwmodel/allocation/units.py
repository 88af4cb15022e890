"""Machine-aware rankings: where a machine skips units coarser than a block, prune so that whole units empty.

Choosing blocks one by one leaves a block in almost every unit, and the machine computes them all. A layer that may choose
between block by block, whole units, and mixtures of both lets the allocator trade distortion against true cost.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from hwmodel.allocation.layers import FloatArray, IntArray, Layer, common_unit
from hwmodel.allocation.problem import Allocation, InfeasibleError, Problem
from hwmodel.allocation.solvers.solve import solve
from hwmodel.errors import HwmodelError
from hwmodel.ir.masks import Shape, grid_shape

MIXTURES = (0.25, 0.5, 0.75)


def unit_of_block(shape: Shape, block: Shape, unit: Shape) -> IntArray:
    """(blocks,) which unit each block lies in, in row order; where blocks straddle units, units are joined until none does."""
    whole = common_unit(block, unit)
    rows, cols = grid_shape(shape, block)
    row, col = (np.arange(count) * size // side for count, size, side in zip((rows, cols), block, whole, strict=True))
    across = int(col[-1]) + 1
    return np.add.outer(row * across, col).ravel().astype(np.int64)


def unit_order(scores: FloatArray, *, shape: Shape, block: Shape, unit: Shape, whole: float = 1.0) -> IntArray:
    """Blocks in the order of pruning, so that units empty one after the other, those with the least total score first.

    Parameters
    ----------
    scores : (blocks,) what pruning each block costs, additive
    whole : share of the units that empty as a whole; the blocks of the others follow one by one, by score
    """
    where = unit_of_block(shape, block, unit)
    totals = np.bincount(where, weights=scores)
    rank = np.empty(len(totals), dtype=np.int64)
    rank[np.argsort(totals, kind="stable")] = np.arange(len(totals))
    place = np.minimum(rank[where], round(whole * len(totals)))
    return np.lexsort((np.arange(len(scores)), scores, place)).astype(np.int64)


def machine_aware(
    layer: Layer,
    scores: Sequence[float] | FloatArray,
    unit: Shape | None,
    *,
    delta_of: Callable[[IntArray], FloatArray] | None = None,
    mixtures: Sequence[float] = MIXTURES,
) -> Layer:
    """``layer`` with rankings added by which whole skip units empty. What it could do before, it still can.

    Parameters
    ----------
    scores : (blocks,) of the same unit as the layer's distortion: what pruning each block alone costs
    unit : (out, in) weights that the machine skips as one (``Machine.skip_unit``); where it is no coarser than the block, or
        None, the layer is returned as it is
    delta_of : distortion along an order, for every count of pruned blocks; None sums the scores (separable distortion)
    mixtures : shares of the units that empty whole before single blocks follow

    Raises
    ------
    HwmodelError
        Scores that are not one finite value per block.
    """
    found = np.asarray(scores, dtype=np.float64)
    if found.shape != (layer.blocks,) or not np.isfinite(found).all():
        raise HwmodelError(f"{layer.name}: expected a finite score for each of {layer.blocks} blocks")
    if unit is None or common_unit(layer.block, unit) == layer.block:
        return layer
    where = unit_of_block(layer.shape, layer.block, unit)
    sum_up = delta_of or (lambda order: np.concatenate([[0.0], np.cumsum(found[order])]))

    def ranked(whole: float) -> Layer:
        order = unit_order(found, shape=layer.shape, block=layer.block, unit=unit, whole=whole)
        emptied = np.cumsum([0, *np.bincount(where)[_in_turn(where, order)]])[: round(whole * (where.max() + 1)) + 1]
        counts = np.unique(np.concatenate([emptied, layer.pruned[layer.pruned > emptied[-1]]]))
        return Layer.of(
            layer.name, shape=layer.shape, block=layer.block, rows=layer.rows, order=order, pruned=counts,
            delta=np.asarray(sum_up(order), dtype=np.float64)[counts], unit=common_unit(layer.block, unit),
        )  # fmt: skip

    return Layer.joined(layer, *(ranked(whole) for whole in (*mixtures, 1.0)))


def _in_turn(where: IntArray, order: IntArray) -> IntArray:
    """Units in the order in which their first block is pruned."""
    _, first = np.unique(where[order], return_index=True)
    return where[order][np.sort(first)]


@dataclass(frozen=True, kw_only=True, eq=False)
class Comparison:
    """Block by block against machine-aware within the same limits. ``naive`` is None where it cannot meet them: see ``reason``."""

    naive: Allocation | None
    aware: Allocation
    reason: str = ""

    @property
    def saved(self) -> float | None:
        """Part of the naive ranking's distortion that the machine-aware one avoids; None where there is no naive solution."""
        if self.naive is None or self.naive.objective <= 0:
            return None
        return 1.0 - self.aware.objective / self.naive.objective


def compare(naive: Problem, aware: Problem, solver: str = "lagrangian") -> Comparison:
    """Solve both problems, which have the same limits over differently ranked layers."""
    chosen = solve(aware, solver)
    try:
        return Comparison(naive=solve(naive, solver), aware=chosen)
    except InfeasibleError as error:
        return Comparison(naive=None, aware=chosen, reason=str(error))
