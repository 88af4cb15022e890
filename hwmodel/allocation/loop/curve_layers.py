"""Sensitivity curves of a real model as the layers of an allocation, ranked by every skip unit that is to count."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Protocol

import numpy as np

from hwmodel.allocation.layers import FloatArray, IntArray, Layer
from hwmodel.allocation.units import machine_aware
from hwmodel.errors import HwmodelError, UnknownNameError
from hwmodel.ir.masks import Shape
from hwmodel.ir.trace import Trace

RATIOS = 101
"""Pruning ratios per layer, as many as the LSP paper samples."""
_LEFT_OUT = frozenset({"patch_embed", "head"})


class BlockCurve(Protocol):
    """What is known of one layer's weight blocks, as ``hwmodel.pruning`` makes it.

    ``order`` (blocks,) prunes first what comes first, ``delta`` (blocks + 1,) is the distortion along it, ``scores``
    (blocks,) what pruning each block alone costs, ``delta_of`` the distortion along any other order, and ``already_pruned``
    how many blocks at the start of the order hold no weight to begin with: they cannot come back.
    """

    @property
    def name(self) -> str: ...
    @property
    def shape(self) -> Shape: ...
    @property
    def block(self) -> Shape: ...
    @property
    def order(self) -> IntArray: ...
    @property
    def delta(self) -> FloatArray: ...
    @property
    def scores(self) -> FloatArray: ...
    @property
    def already_pruned(self) -> int: ...
    def delta_of(self, order: IntArray) -> FloatArray: ...


def prunable(trace: Trace) -> tuple[str, ...]:
    """Names of the products with a weight that lose blocks unless told otherwise.

    All but patch embedding, classifier, and what a deployed model computes once: there is nothing to save in it.
    """
    products = [one for one in trace.operators if one.family == "product" and one.parameter and not one.constant]
    return tuple(one.name for one in products if one.batch == 1 and one.role not in _LEFT_OUT)


def layers_of(
    curves: Mapping[str, BlockCurve], trace: Trace, *, units: Sequence[Shape] = (), ratios: int | None = RATIOS
) -> tuple[Layer, ...]:
    """The layers of an allocation, in the order of the trace.

    Parameters
    ----------
    curves : by operator name
    trace : of the model without sparsity, which says how many rows each weight multiplies
    units : (out, in) skip units of machines; each coarser than the block adds rankings by which whole ones empty
    ratios : pruning ratios at most of the block-by-block ranking; every count of blocks where None

    Raises
    ------
    UnknownNameError
        A curve of a layer that the trace does not have.
    HwmodelError
        A curve of a weight with another shape, or none at all.
    """
    operators = {operator.name: operator for operator in trace.operators}
    for name in curves.keys() - operators.keys():
        raise UnknownNameError(f"layer of {trace.model}", name, operators)
    found = []
    for name in (name for name in operators if name in curves):
        curve = curves[name]
        counts = _counts(curve, ratios)
        layer = Layer.of(
            name, shape=curve.shape, block=curve.block, rows=operators[name].m,
            order=curve.order, delta=curve.delta[counts], pruned=counts,
        )  # fmt: skip
        for unit in dict.fromkeys(units):
            layer = machine_aware(layer, curve.scores, unit, delta_of=curve.delta_of)
        found.append(_gone_first(layer, curve.order[: curve.already_pruned]))
    if not found:
        raise HwmodelError(f"{trace.model}: no layer has a sensitivity curve, so there is nothing to prune")
    return tuple(found)


def _counts(curve: BlockCurve, ratios: int | None) -> IntArray:
    """Counts of pruned blocks to choose from: those at the ratios that are not behind, what is gone already, and all but one."""
    blocks = len(curve.delta) - 1
    even = np.linspace(0, blocks, blocks + 1 if ratios is None else ratios)
    grid = np.unique(np.rint(even).astype(np.int64))
    grid = np.append(grid, blocks - 1)
    return np.union1d([curve.already_pruned], grid[grid > curve.already_pruned])


def _gone_first(layer: Layer, gone: IntArray) -> Layer:
    """The layer with the blocks that are gone already ahead in every ranking: its masks never hold one of them."""
    rankings, pruned = [], layer.pruned.copy()
    for number, ranking in enumerate(layer.rankings):
        here = np.isin(ranking.order, gone)
        rankings.append(replace(ranking, order=np.concatenate([ranking.order[here], ranking.order[~here]])))
        others = np.concatenate([[0], np.cumsum(~here)])
        where = layer.ranking == number
        pruned[where] = len(gone) + others[pruned[where]]
    return replace(layer, rankings=tuple(rankings), pruned=pruned)
