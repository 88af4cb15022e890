"""The allocation problem: layers with their distortion, costs that may not exceed limits, and what a solver returns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from hwmodel.allocation.layers import FloatArray, IntArray, Layer
from hwmodel.errors import HwmodelError, suggestion
from hwmodel.ir.masks import BlockMask

if TYPE_CHECKING:
    import pandas as pd

SLACK = 1e-9
"""Part of a limit by which rounding may exceed it."""


class InfeasibleError(HwmodelError):
    """A budget that no choice of points meets; the message says what can be reached."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Cost:
    """One additive cost of all choices.

    Parameters
    ----------
    name : what is counted and where: "flops", "energy_j on vita/chip"
    curves : per layer (points,), in the order of the layers and of their points
    rest : the same cost of everything that is not chosen
    dense : the whole model's cost with nothing pruned
    source : where the figures come from, with their fidelity
    """

    name: str
    curves: tuple[FloatArray, ...]
    rest: float
    dense: float
    source: str

    def total(self, points: Sequence[int] | IntArray) -> float:
        """Cost of the whole model at one point per layer."""
        return self.rest + float(sum(curve[point] for curve, point in zip(self.curves, points, strict=True)))

    def scaled(self, factor: float) -> Cost:
        """``factor`` times this cost."""
        curves = tuple(factor * curve for curve in self.curves)
        return replace(self, curves=curves, rest=factor * self.rest, dense=factor * self.dense)

    def plus(self, other: Cost, name: str) -> Cost:
        """The sum of two costs of the same layers."""
        curves = tuple(mine + theirs for mine, theirs in zip(self.curves, other.curves, strict=True))
        source = self.source if self.source == other.source else f"{self.source}; {other.source}"
        return Cost(name=name, curves=curves, rest=self.rest + other.rest, dense=self.dense + other.dense, source=source)


@dataclass(frozen=True, kw_only=True, eq=False)
class Limit:
    """A cost that may not exceed a value.

    Parameters
    ----------
    cost, most : ``cost.total(points) <= most``
    asked : the budget in the user's words
    quotient : where average power is limited, energy and latency: ``cost`` is then energy less the power times latency
    """

    cost: Cost
    most: float
    asked: str
    quotient: tuple[Cost, Cost] | None = None

    def told(self, points: Sequence[int] | IntArray) -> str:
        """What a choice costs, beside the dense model."""
        if self.quotient is not None:
            above, below = self.quotient
            return f"{above.total(points) / below.total(points):.4g} W of {above.dense / below.dense:.4g} W"
        total = self.cost.total(points)
        return f"{total:.6g} of {self.cost.dense:.6g} ({total / (self.cost.dense or 1.0):.1%})"


@dataclass(frozen=True, kw_only=True, eq=False)
class Problem:
    """Choose one point per layer with least total distortion, every limit kept.

    Parameters
    ----------
    layers : what may be pruned
    limits : at least one
    term : a cost that is added to the distortion, as the LSP paper adds its weighted power (Eq. 9)
    floor, cap : smallest and largest fraction of blocks that a layer keeps, by glob over layer names; later globs win.
        At least one block is kept wherever ``floor`` says nothing: a layer without any is a branch that is gone. One that
        had none to begin with stays as it is

    Raises
    ------
    HwmodelError
        Costs that do not fit the layers, unknown globs, fractions outside [0, 1], a layer without a point left.
    """

    layers: tuple[Layer, ...]
    limits: tuple[Limit, ...]
    term: Cost | None = None
    floor: Mapping[str, float] | float | None = None
    cap: Mapping[str, float] | float | None = None

    def __post_init__(self) -> None:
        if not self.layers or not self.limits:
            raise HwmodelError("an allocation needs at least one layer and one budget")
        names = self.names
        if len(set(names)) != len(names):
            raise HwmodelError(f"layer {next(name for name in names if names.count(name) > 1)!r} is given twice")
        points = [len(layer.pruned) for layer in self.layers]
        for cost in [*(limit.cost for limit in self.limits), *([self.term] if self.term else [])]:
            if [len(curve) for curve in cost.curves] != points:
                raise HwmodelError(f"{cost.name}: its curves do not have the points of the layers")
            if not all(np.isfinite(curve).all() for curve in cost.curves) or not np.isfinite([cost.rest, cost.dense]).all():
                raise HwmodelError(f"{cost.name}: costs must be finite")
        for layer, allowed in zip(self.layers, self.allowed, strict=True):
            if not allowed.any():
                raise InfeasibleError(f"{layer.name}: no point of its curve keeps a fraction of blocks within floor and cap")

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the layers."""
        return tuple(layer.name for layer in self.layers)

    @cached_property
    def allowed(self) -> tuple[Any, ...]:
        """Per layer (points,) bool: which points floors and caps allow."""
        floors, caps = self._bounds(self.floor, "floor"), self._bounds(self.cap, "cap")
        found = []
        for layer, floor, cap in zip(self.layers, floors, caps, strict=True):
            kept = layer.blocks - layer.pruned
            enough = kept >= (min(1, kept.max()) if floor is None else floor * layer.blocks - SLACK)
            found.append(enough & (cap is None or kept <= cap * layer.blocks + SLACK))
        return tuple(found)

    def _bounds(self, bounds: Mapping[str, float] | float | None, what: str) -> list[float | None]:
        rules = bounds if isinstance(bounds, Mapping) else {} if bounds is None else {"*": bounds}
        for glob, share in rules.items():
            if not any(fnmatchcase(name, glob) for name in self.names):
                raise HwmodelError(f"{what}: {glob!r} matches no layer; {suggestion(glob, self.names)}")
            if not 0.0 <= share <= 1.0:
                raise HwmodelError(f"{what}: {glob}: {share:g} is outside [0, 1]: it is a fraction of blocks kept")
        matching = [[share for glob, share in rules.items() if fnmatchcase(name, glob)] for name in self.names]
        return [shares[-1] if shares else None for shares in matching]

    @cached_property
    def objective(self) -> tuple[FloatArray, ...]:
        """Per layer (points,) what is minimised: the distortion's running maximum, and the term."""
        if self.term is None:
            return tuple(layer.envelope for layer in self.layers)
        return tuple(layer.envelope + curve for layer, curve in zip(self.layers, self.term.curves, strict=True))

    def value(self, points: IntArray) -> float:
        """The objective of a choice."""
        return float(sum(curve[point] for curve, point in zip(self.objective, points, strict=True)))

    def holds(self, points: IntArray) -> bool:
        """Whether every limit is kept, to rounding."""
        return all(limit.cost.total(points) <= limit.most + SLACK * abs(limit.cost.dense) for limit in self.limits)


@dataclass(frozen=True, kw_only=True, eq=False)
class Allocation:
    """One point per layer.

    Parameters
    ----------
    problem : what was solved
    solver : by which name
    points : (layers,) index of the chosen point of each layer
    bound : no choice that keeps the limits has a smaller objective; None where the solver proves nothing
    settings : what the solver was told and found: multipliers, weights, search limits
    """

    problem: Problem
    solver: str
    points: IntArray
    bound: float | None
    settings: Mapping[str, Any]

    @property
    def distortion(self) -> float:
        """Total distortion of the chosen points, each layer's running maximum."""
        return float(sum(layer.envelope[point] for layer, point in self._chosen))

    @property
    def objective(self) -> float:
        """What was minimised: the distortion, and the problem's term where it has one."""
        return self.problem.value(self.points)

    @property
    def gap(self) -> float | None:
        """Part of the objective by which it may at most be above the least possible; None without a bound."""
        if self.bound is None:
            return None
        return min(1.0, max(0.0, 1.0 - self.bound / self.objective)) if self.objective > 0 else 0.0

    @cached_property
    def density(self) -> dict[str, float]:
        """Fraction of blocks kept, by layer."""
        return {layer.name: float(layer.density[point]) for layer, point in self._chosen}

    @cached_property
    def masks(self) -> dict[str, BlockMask]:
        """Kept blocks of every layer that loses some, as ``hw.prune`` takes them; a layer without a mask runs its dense kernel."""
        return {layer.name: layer.mask(point) for layer, point in self._chosen if layer.pruned[point]}

    @property
    def costs(self) -> dict[str, float]:
        """Promised cost of the whole model, by name of the cost."""
        return {limit.cost.name: limit.cost.total(self.points) for limit in self.problem.limits}

    @property
    def _chosen(self) -> list[tuple[Layer, int]]:
        return list(zip(self.problem.layers, self.points.tolist(), strict=True))

    def frame(self) -> pd.DataFrame:
        """One row per layer, index ``name``: blocks, kept_blocks, density, delta, and a column per limited cost."""
        import pandas as pd

        rows = [
            {"blocks": layer.blocks, "kept_blocks": layer.blocks - int(layer.pruned[point]), "density": float(layer.density[point]),
             "delta": float(layer.envelope[point])}
            | {limit.cost.name: float(limit.cost.curves[row][point]) for limit in self.problem.limits}
            for row, (layer, point) in enumerate(self._chosen)
        ]  # fmt: skip
        return pd.DataFrame(rows, index=pd.Index(self.problem.names, name="name"))

    def __str__(self) -> str:
        """One line per limit, then distortion and gap."""
        kept = self.problem.limits
        lines = [f"{limit.asked}: {limit.told(self.points)}, {limit.cost.name} [{limit.cost.source}]" for limit in kept]
        told = "no bound" if self.gap is None else f"gap to the least possible at most {self.gap:.2%}"
        return "\n".join([*lines, f"{self.solver}: distortion {self.distortion:.6g}, {told}"])
