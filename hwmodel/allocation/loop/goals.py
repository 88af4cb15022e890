"""What an allocation has to reach, as one value: budgets, bounds, the solver, and when the loop is closed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from hwmodel.allocation.budgets import Budget, device_shares, limits
from hwmodel.allocation.costs import Machine, flop_cost
from hwmodel.allocation.layers import Layer
from hwmodel.allocation.loop.bases import Base, CostsOfDevice
from hwmodel.allocation.loop.curve_layers import RATIOS, BlockCurve, layers_of
from hwmodel.allocation.problem import Allocation, Limit, Problem
from hwmodel.allocation.solvers.menu import Menu
from hwmodel.allocation.solvers.solve import SOLVERS, solve
from hwmodel.errors import HwmodelError, UnknownNameError
from hwmodel.ir.masks import Shape, grid_shape
from hwmodel.ir.operators import Operator
from hwmodel.ir.trace import Trace

_COUNTED = frozenset({"flops", "flops-total"})


@dataclass(frozen=True, kw_only=True)
class Goal:
    """What the pruned model may cost, and how that is reached.

    Parameters
    ----------
    budgets : all of them hold; of several devices each one, or their mean by ``weights``, one per device
    solver, settings : by name, with its own keyword arguments (see :func:`hwmodel.allocation.solvers.solve.solve`)
    floor, cap : smallest and largest fraction of blocks that a layer keeps, for all or by glob
    whole_units : rank by whole skip units too where a budget is on a machine that skips coarser than a block
    ratios : pruning ratios per layer at most; None takes every count of blocks
    tolerance : part by which promised and delivered costs may differ
    rounds : of pruning, saving, reading back and comparing, at most
    steps : on the way to the budgets, evenly in their logarithm; sensitivities are made anew around the masks of each
    part : of the way to the budgets

    Raises
    ------
    HwmodelError
        No budget, an unknown solver, weights without a budget on what devices say, a tolerance or a number of rounds that makes
        no sense.
    """

    budgets: tuple[Budget, ...]
    solver: str = "lagrangian"
    settings: Mapping[str, Any] = field(default_factory=dict)
    floor: Mapping[str, float] | float | None = None
    cap: Mapping[str, float] | float | None = None
    weights: tuple[float, ...] | None = None
    whole_units: bool = True
    ratios: int | None = RATIOS
    tolerance: float = 0.01
    rounds: int = 4
    steps: int = 1
    part: float = 1.0

    def __post_init__(self) -> None:
        if not self.budgets:
            raise HwmodelError("an allocation needs a budget, for example flops=0.5 or latency=2ms")
        if self.solver not in SOLVERS:
            raise UnknownNameError("solver", self.solver, SOLVERS)
        if self.steps < 1 or (self.steps > 1 and any(budget.quantity == "power" for budget in self.budgets)):
            raise HwmodelError(f"steps {self.steps}: expected at least 1, and one for a budget on average power")
        if not 0 < self.tolerance < 1 or self.rounds < 1 or (self.ratios is not None and self.ratios < 2):
            raise HwmodelError(
                f"tolerance {self.tolerance:g}, rounds {self.rounds}, ratios {self.ratios}: expected in (0, 1), >= 1, >= 2"
            )
        if self.weights is not None and not self.on_machines:
            raise HwmodelError(f"weights {list(self.weights)}: no budget of {self.told} is on what devices say; leave weights out")

    @classmethod
    def of(cls, budget: str | Budget | Sequence[str | Budget], **options: Any) -> Goal:
        """A goal with budgets in the user's words: "flops=0.5", ["latency=2ms", "energy=60%"]."""
        asked = [budget] if isinstance(budget, str | Budget) else list(budget)
        return cls(budgets=tuple(Budget.parse(one) if isinstance(one, str) else one for one in asked), **options)

    @property
    def on_machines(self) -> bool:
        """Whether a budget is on what a device says, rather than counted."""
        return any(budget.quantity not in _COUNTED for budget in self.budgets)

    def check_devices(self, count: int) -> None:
        """Refuse a number of devices that the budgets or the weights do not fit.

        Raises
        ------
        HwmodelError
            A budget that needs a device where none is given, or another number of weights.
        """
        if self.on_machines and not count:
            raise HwmodelError(f"budget {self.told}: name a device")
        if self.weights is not None:
            device_shares(self.weights, count)

    @property
    def told(self) -> str:
        """The budgets in the user's words."""
        return ", ".join(map(str, self.budgets))

    def step(self, number: int) -> Goal:
        """The goal of a step, from 1."""
        return self if number == self.steps else replace(self, part=number / self.steps)

    def layers(self, curves: Mapping[str, BlockCurve], trace: Trace, machines: Sequence[Machine]) -> tuple[Layer, ...]:
        """The layers with the rankings that this goal can use."""
        aware = self.whole_units and self.on_machines and self.solver != "paper"
        units: list[Shape] = [unit for machine in machines if (unit := machine.skip_unit) is not None] if aware else []
        return layers_of(curves, trace, units=units, ratios=self.ratios)

    def limits(
        self, layers: Sequence[Layer], trace: Trace, costs: Sequence[CostsOfDevice], origin: Trace | None = None
    ) -> tuple[Limit, ...]:
        """What all budgets together stand for.

        Parameters
        ----------
        trace : of the model that the layers are of; what its other layers have lost already counts
        costs : of the layers, one mapping per device; shares are of their dense costs
        origin : the model that shares of FLOPs are of; ``trace`` where None

        Raises
        ------
        HwmodelError
            A budget that needs a device where none is given.
        """
        found: list[Limit] = []
        for budget in self.budgets:
            if budget.quantity in _COUNTED:
                found += [_of(origin or trace, budget, limit) for limit in limits(budget, layers, trace=trace)]
            else:
                found += limits(budget, layers, costs=costs, weights=self.weights)
        return tuple(map(self._eased, found))

    def device_limits(self, costs: Sequence[CostsOfDevice]) -> tuple[Limit, ...]:
        """The limits on what devices say, of costs without choices: is a finished model within budget?"""
        asked = [budget for budget in self.budgets if budget.quantity not in _COUNTED]
        return tuple(self._eased(limit) for budget in asked for limit in limits(budget, (), costs=costs, weights=self.weights))

    def _eased(self, limit: Limit) -> Limit:
        dense = limit.cost.dense
        return limit if self.part == 1.0 else replace(limit, most=dense * (limit.most / dense) ** self.part)

    def check_reachable(self, base: Base, names: Sequence[str], block: Shape) -> None:
        """Refuse, before any sensitivity is made, bounds that fit no layer and a budget that one block per layer would not meet.

        Raises
        ------
        InfeasibleError
            The message says what can be reached. What floors leave is for the solver to say.
        HwmodelError
            A floor or cap outside [0, 1], or for a layer that is not there.
        """
        chosen = set(names)
        operators = [operator for operator in base.trace.operators if operator.name in chosen]
        layers = tuple(_unranked(operator, block) for operator in operators)
        free = Limit(cost=flop_cost(layers), most=np.inf, asked="nothing")
        Problem(layers=layers, limits=(free,), floor=self.floor, cap=self.cap)
        if self.floor is None:
            ends = tuple(_unranked(operator, block, ends=True) for operator in operators)
            Menu.of(Problem(layers=ends, limits=self.limits(ends, base.trace, base.costs(ends), base.origin)))

    def solved(
        self, layers: tuple[Layer, ...], trace: Trace, costs: Sequence[CostsOfDevice], origin: Trace | None = None
    ) -> Allocation:
        """The choice with least distortion that keeps the budgets; parameters as :meth:`limits`.

        Raises
        ------
        InfeasibleError
            Budgets that no choice meets; the message says what can be reached.
        """
        problem = Problem(layers=layers, limits=self.limits(layers, trace, costs, origin), floor=self.floor, cap=self.cap)
        return solve(problem, self.solver, **self.settings)


def _of(origin: Trace, budget: Budget, limit: Limit) -> Limit:
    """The limit with its share, and what is told of it, of the FLOPs of ``origin``."""
    dense = flop_cost((), origin, total=budget.quantity == "flops-total").dense
    return replace(limit, cost=replace(limit.cost, dense=dense), most=budget.value * dense if budget.share else budget.value)


def _unranked(operator: Operator, block: Shape, *, ends: bool = False) -> Layer:
    """A layer without sensitivities; ``ends``: with two points alone, whole and down to one block."""
    shape = operator.n, operator.k
    out, depth = grid_shape(shape, block)
    counts = np.arange(out * depth + 1)
    counts = counts[[0, -2]] if ends and len(counts) > 2 else counts
    return Layer.of(
        operator.name, shape=shape, block=block, rows=operator.m, order=np.arange(out * depth), pruned=counts,
        delta=np.zeros(len(counts)),
    )  # fmt: skip
