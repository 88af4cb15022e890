"""The inner loop for one model structure: solve, prune, save, read back, compare, and rebuild the costs until promises hold."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from hwmodel.allocation.costs import QUANTITIES, Machine, flop_cost
from hwmodel.allocation.layers import Layer
from hwmodel.allocation.loop.around import costs_around
from hwmodel.allocation.loop.bases import Base, CostsOfDevice, Pricer
from hwmodel.allocation.loop.curve_layers import BlockCurve
from hwmodel.allocation.loop.goals import Goal
from hwmodel.allocation.power import Departure, departures
from hwmodel.allocation.problem import Allocation, Cost
from hwmodel.backends.estimates import Estimate
from hwmodel.ir.trace import Trace
from hwmodel.pruning.blocks.masking import apply_masks
from hwmodel.pruning.live_models import LiveModel


@dataclass(frozen=True, kw_only=True)
class Check:
    """One cost of the whole model: as the table promised it before pruning, and as the reloaded checkpoint has it.

    Parameters
    ----------
    name : "latency_s on vita/full", "flops of linear layers"
    unit : "s", "J" or "FLOP"
    promised, delivered : in that unit
    dense : the unpruned model's
    source : where both come from, with their fidelity
    """

    name: str
    unit: str
    promised: float
    delivered: float
    dense: float
    source: str

    @property
    def gap(self) -> float:
        """Part of the promise by which it was missed, either way."""
        return abs(self.delivered / self.promised - 1.0) if self.promised else float(self.delivered != self.promised)


@dataclass(frozen=True, kw_only=True, eq=False)
class Round:
    """One time through the loop.

    Parameters
    ----------
    number : from 1
    allocation : what the solver chose
    trace : of the pruned model, extracted afresh from its checkpoint
    estimates : of that trace, one per device
    checks : promised against delivered
    excess : largest part of a device's budget by which the delivered model is above it; 0 where every one is kept
    """

    number: int
    allocation: Allocation
    trace: Trace
    estimates: tuple[Estimate, ...]
    checks: tuple[Check, ...]
    excess: float

    @cached_property
    def gap(self) -> float:
        """Largest gap between promised and delivered."""
        return max(check.gap for check in self.checks)


@dataclass(frozen=True, kw_only=True, eq=False)
class Closing:
    """All rounds of the loop on one structure, and what holds for them together.

    Parameters
    ----------
    machines : the devices, with the unpruned model
    rounds : in their order
    chosen : the round that counts: the last where it converged, else the best
    converged : promised and delivered are within tolerance on every device, and budgets are kept to the same tolerance
    departures : per device, by layer, how far Eq. 7 of the LSP paper is from the device's energy; without layers that had lost
        blocks to begin with, or that cost the device nothing
    """

    machines: tuple[Machine, ...]
    rounds: tuple[Round, ...]
    chosen: Round
    converged: bool
    departures: tuple[Mapping[str, Departure], ...]


def close(
    live: LiveModel,
    curves: Mapping[str, BlockCurve],
    pricers: Sequence[Pricer],
    goal: Goal,
    checkpoint: Path,
    *,
    origin: Trace | None = None,
    tell: Callable[[Round], None] = lambda _: None,
) -> Closing:
    """Allocate blocks until what the cost table promises is what the reloaded checkpoint delivers.

    Parameters
    ----------
    live : the model with its weights
    curves : its sensitivity curves, by operator name
    checkpoint : where the pruned weights are saved in every round; those of the chosen round stay
    origin : the model that shares of a budget are of, where ``live`` has lost heads or tokens already
    tell : called after every round

    Raises
    ------
    InfeasibleError
        A budget that cannot be met; the message says what can.
    HwmodelError
        Curves, budgets or devices that do not fit each other.
    """
    base = Base.of(live, curves.keys(), pricers, checkpoint, origin)
    bench = _Bench(live=live, base=base, pricers=tuple(pricers), goal=goal, checkpoint=checkpoint)
    layers = goal.layers(curves, base.trace, base.machines)
    tables = base.costs(layers)
    told = tuple(_departures(layers, table["energy_j"]) for table in tables)
    rounds: list[Round] = []
    for number in range(1, goal.rounds + 1):
        allocation = goal.solved(layers, base.trace, tables, base.origin)
        now = bench.delivered(number, allocation, tables)
        rounds.append(now)
        tell(now)
        if bench.holds(now) or number == goal.rounds:
            break
        pairs = zip(base.machines, now.estimates, strict=True)
        tables = base.shares([costs_around(machine, layers, allocation.points, estimate) for machine, estimate in pairs])
    best = min(rounds, key=lambda one: (not bench.holds(one), max(one.gap, one.excess)))
    if best is not rounds[-1]:
        bench.save(best.allocation)
    return Closing(machines=base.unpruned, rounds=tuple(rounds), chosen=best, converged=bench.holds(best), departures=told)


def _departures(layers: Sequence[Layer], cost: Cost) -> dict[str, Departure]:
    pairs = zip(layers, cost.curves, strict=True)
    whole = [(layer, curve) for layer, curve in pairs if layer.pruned.min() == 0 and curve[layer.pruned.argmin()] > 0]
    if not whole:
        return {}
    found = departures([layer for layer, _ in whole], replace(cost, curves=tuple(curve for _, curve in whole)))
    return {one.name: one for one in found}


@dataclass(frozen=True, kw_only=True, eq=False)
class _Bench:
    """Where choices are put to the test: one structure, its devices, and the file that weights go through."""

    live: LiveModel
    base: Base
    pricers: tuple[Pricer, ...]
    goal: Goal
    checkpoint: Path

    def holds(self, one: Round) -> bool:
        """Whether promises and budgets are kept to the tolerance."""
        return max(one.gap, one.excess) <= self.goal.tolerance

    def save(self, allocation: Allocation) -> None:
        """Write the weights with the pruned blocks zeroed."""
        pruned = apply_masks(self.live.module, allocation.masks)
        self.live.holding(pruned).save(self.checkpoint)

    def delivered(self, number: int, allocation: Allocation, tables: Sequence[CostsOfDevice]) -> Round:
        """Prune, save, read back and price."""
        self.save(allocation)
        trace = self.live.reloaded(self.checkpoint)
        estimates = tuple(pricer(trace) for pricer in self.pricers)
        checks = [*self._counted(allocation, trace), *_priced(allocation, tables, estimates)]
        excess = max((0.0, *_excesses(self.goal, tables, estimates)))
        return Round(number=number, allocation=allocation, trace=trace, estimates=estimates, checks=tuple(checks), excess=excess)

    def _counted(self, allocation: Allocation, trace: Trace) -> Iterator[Check]:
        """FLOPs as the budgets count them; those of linear layers where no budget does."""
        asked = {budget.quantity for budget in self.goal.budgets}
        for total in [False] * ("flops" in asked or "flops-total" not in asked) + [True] * ("flops-total" in asked):
            table = flop_cost(allocation.problem.layers, self.base.trace, total=total)
            found = flop_cost((), trace, total=total).rest
            yield Check(
                name=table.name, unit="FLOP", promised=table.total(allocation.points), delivered=found,
                dense=flop_cost((), self.base.origin, total=total).rest, source=table.source,
            )  # fmt: skip


def _priced(allocation: Allocation, tables: Sequence[CostsOfDevice], estimates: Sequence[Estimate]) -> Iterator[Check]:
    for table, estimate in zip(tables, estimates, strict=True):
        for quantity in QUANTITIES:
            cost = table[quantity]
            yield Check(
                name=cost.name, unit="s" if quantity == "latency_s" else "J", promised=cost.total(allocation.points),
                delivered=float(getattr(estimate, quantity)), dense=cost.dense, source=cost.source,
            )  # fmt: skip


def _excesses(goal: Goal, tables: Sequence[CostsOfDevice], estimates: Sequence[Estimate]) -> Iterator[float]:
    """Part of each device budget by which the delivered model is above it; negative below."""
    found = [
        {name: replace(table[name], curves=(), rest=float(getattr(estimate, name))) for name in QUANTITIES}
        for table, estimate in zip(tables, estimates, strict=True)
    ]
    for limit in goal.device_limits(found):
        spent = limit.cost.rest
        yield spent / limit.most - 1.0 if limit.quotient is None else spent / (limit.quotient[0].rest - spent)
