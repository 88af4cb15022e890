"""What a head or a token costs on a machine: encoder blocks with fewer of them, priced by its backend.

:func:`hwmodel.pruning.gates.selection.select` takes what one unit saves from ``UnitCosts.per_unit``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hwmodel.allocation.costs import QUANTITIES, Quantity
from hwmodel.allocation.layers import FloatArray, IntArray
from hwmodel.backends.cards import Card
from hwmodel.backends.estimates import estimate
from hwmodel.errors import HwmodelError, UnknownNameError
from hwmodel.extraction.whatif.pruning import prune
from hwmodel.extraction.whatif.recipes import EncoderRule, Recipe
from hwmodel.extraction.whatif.tokens import Tokens
from hwmodel.ir.trace import Trace

POINTS = 9
"""Counts that are priced where none are given, evenly spread from one unit to all."""


@dataclass(frozen=True, eq=False)
class UnitCosts:
    """Cost of every encoder block by how many units (heads, or patch tokens) it holds.

    Parameters
    ----------
    counts : (points,) ascending
    whole : (blocks,) units of every block in the model as it is
    cost : (blocks, points)
        A block's operators with that many units, in the model with as many everywhere
    rest : (points,) what lies outside the blocks, and the copy of the tokens that stay
    name : what is counted, and where: "energy_j on vita/full"
    source : fidelity of the figures
    """

    counts: IntArray
    whole: IntArray
    cost: FloatArray
    rest: FloatArray
    name: str
    source: str

    @property
    def per_unit(self) -> FloatArray:
        """(blocks,) saved by one unit less within the block, on average from the most priced to the fewest.

        An average, because costs come in steps: the next unit alone may save nothing, or a whole tile.
        """
        saved = self.cost[:, -1] - self.cost[:, 0]
        found: FloatArray = np.maximum(saved, 0.0) / np.maximum(np.minimum(self.whole, self.counts[-1]) - self.counts[0], 1)
        return found

    def total(self, counts: Sequence[int] | IntArray) -> float:
        """Cost of the model with a count of units in every block, linear between two priced counts.

        Raises
        ------
        HwmodelError
            Another number of counts than blocks, or a count outside those priced.
        """
        wanted = np.asarray(counts, np.float64)
        if wanted.shape != (len(self.cost),) or wanted.min() < self.counts[0] or wanted.max() > self.counts[-1]:
            raise HwmodelError(
                f"{self.name}: expected {len(self.cost)} counts within {self.counts[0]}-{self.counts[-1]}, got {list(counts)}"
            )
        blocks = sum(np.interp(count, self.counts, curve) for count, curve in zip(wanted, self.cost, strict=True))
        return float(blocks + np.interp(wanted[-1], self.counts, self.rest))


def heads_of(trace: Trace) -> dict[int, int]:
    """Heads by encoder block."""
    return {
        operator.block: operator.batch // trace.batch
        for operator in trace.operators
        if operator.role == "scores" and operator.block is not None
    }


def sums_by_block(trace: Trace, origin: Trace, values: FloatArray) -> FloatArray:
    """(1 + blocks,) what lies outside the encoder blocks, then each block's sum.

    Parameters
    ----------
    origin : the model that ``trace`` was pruned from; what pruning added to it (a copy of the tokens that stay) lies outside
    values : (operators,) of ``trace``
    """
    own = {operator.name: operator.block for operator in origin.operators}
    places = [own.get(operator.name) for operator in trace.operators]
    rows = [0 if place is None else place + 1 for place in places]
    return np.bincount(rows, weights=values, minlength=1 + _blocks(origin)).astype(np.float64)


def head_costs(
    trace: Trace,
    *,
    device: str | Path | Card,
    quantity: Quantity = "latency_s",
    counts: Sequence[int] | None = None,
    **options: Any,
) -> UnitCosts:
    """Blocks by how many heads they keep.

    Parameters
    ----------
    trace : of a ViT whose heads all see all tokens; blocks may have different numbers of heads, each keeps at most its own
    quantity : "latency_s" or "energy_j"
    counts : heads per block to price; nine spread evenly where None
    options : of :func:`hwmodel.estimate`: mode, dtype, overrides, ...

    Raises
    ------
    HwmodelError
        What :func:`hwmodel.prune` and :func:`hwmodel.estimate` refuse, windowed attention, or counts outside 1 to all.
    """
    heads = heads_of(trace)
    if not heads:
        raise HwmodelError(f"{trace.model}: its trace has no attention whose heads are known")

    def rules(count: int) -> list[dict[str, Any]]:
        return [{"blocks": str(block), "heads": count} for block, own in heads.items() if count < own]

    points = _points(counts, max(heads.values()), f"{trace.model}: heads")
    whole = [heads.get(block, 0) for block in range(_blocks(trace))]
    return _priced(trace, {count: rules(count) for count in points}, whole, quantity, device, **options)


def token_costs(
    trace: Trace,
    *,
    device: str | Path | Card,
    quantity: Quantity = "latency_s",
    counts: Sequence[int] | None = None,
    **options: Any,
) -> UnitCosts:
    """Blocks by how many patch tokens enter them; what chooses the tokens is not part of it (trace a model that does).

    Parameters
    ----------
    trace : of a ViT that keeps all its tokens
    quantity, options : as in :func:`head_costs`
    counts : patch tokens to price; nine spread evenly where None

    Raises
    ------
    HwmodelError
        What :func:`hwmodel.prune` and :func:`hwmodel.estimate` refuse, or counts outside 1 to all.
    """
    try:
        tokens = Tokens.of(trace)
    except ValueError as error:
        raise HwmodelError(f"{trace.model}: tokens cannot be dropped: {error}") from error
    first = min(operator.block for operator in trace.operators if operator.block is not None)
    points = _points(counts, tokens.patches, f"{trace.model}: patch tokens")
    rules = {count: [{"blocks": str(first), "tokens": count}] if count < tokens.patches else [] for count in points}
    return _priced(trace, rules, [tokens.patches] * _blocks(trace), quantity, device, **options)


def _blocks(trace: Trace) -> int:
    return 1 + max(operator.block for operator in trace.operators if operator.block is not None)


def _points(counts: Sequence[int] | None, most: int, what: str) -> list[int]:
    found = sorted({int(count) for count in (np.linspace(1, most, POINTS).round() if counts is None else counts)})
    if len(found) < 2 or found[0] < 1 or found[-1] > most:
        raise HwmodelError(f"{what}: expected two or more counts within 1-{most}, got {found}")
    return found


def _priced(
    trace: Trace,
    rules: Mapping[int, Sequence[Mapping[str, Any]]],
    whole: Sequence[int],
    quantity: Quantity,
    device: str | Path | Card,
    **options: Any,
) -> UnitCosts:
    """One estimate per count, its operators summed by encoder block."""
    if quantity not in QUANTITIES:
        raise UnknownNameError("quantity", quantity, QUANTITIES)
    columns, found = [], None
    for encoder in rules.values():
        recipe = Recipe(model=trace.model, source="what-if", encoder=tuple(map(EncoderRule.model_validate, encoder)))
        found = estimate(prune(trace, recipe), device=device, **options)
        if found.costs.latency_s.ndim != 1:
            raise HwmodelError(f"{found.device}: costs of units are for one design; give each overridden field one value")
        columns.append(sums_by_block(found.trace, trace, getattr(found.costs, quantity)))
    assert found is not None
    table = np.stack(columns, axis=1)
    return UnitCosts(
        counts=np.array(list(rules), np.int64),
        whole=np.array(whole, np.int64),
        cost=table[1:],
        rest=table[0],
        name=f"{quantity} on {found.device}/{found.mode}",
        source=found.fidelity["latency" if quantity == "latency_s" else "energy"],
    )
