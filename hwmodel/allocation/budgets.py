"""Budgets in the user's words, ``flops=0.5`` or ``latency=3ms``, as limits on costs of one device or of several."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import reduce
from math import inf
from typing import Literal

from hwmodel.allocation.costs import Machine, Quantity, flop_cost
from hwmodel.allocation.layers import Layer
from hwmodel.allocation.problem import Cost, Limit
from hwmodel.errors import HwmodelError, UnknownNameError
from hwmodel.ir.trace import Trace

Budgeted = Literal["flops", "flops-total", "latency", "energy", "power"]
_UNITS: Mapping[str, Mapping[str, float]] = {
    "flops": {"FLOPs": 1.0, "MFLOPs": 1e6, "GFLOPs": 1e9},
    "flops-total": {"FLOPs": 1.0, "MFLOPs": 1e6, "GFLOPs": 1e9},
    "latency": {"s": 1.0, "ms": 1e-3, "us": 1e-6},
    "energy": {"J": 1.0, "mJ": 1e-3, "uJ": 1e-6},
    "power": {"W": 1.0, "mW": 1e-3},
}
_QUANTITIES: Mapping[str, Quantity] = {"latency": "latency_s", "energy": "energy_j"}


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What the pruned model may cost.

    Parameters
    ----------
    quantity : "flops" of linear layers as LSP counts them, "flops-total" of every product, "latency", "energy", or "power":
        energy over latency
    value : in FLOPs (two per multiply-accumulate), seconds, joules, watts; or the share of the dense model's where ``share``
    share : whether ``value`` is relative
    """

    quantity: Budgeted
    value: float
    share: bool

    @classmethod
    def parse(cls, text: str) -> Budget:
        """``QUANTITY=SHARE`` (0.5 or 50%) or ``QUANTITY=VALUE UNIT`` (3ms, 40mJ, 12W, 8.8GFLOPs).

        Raises
        ------
        HwmodelError
            Anything else; the message names quantity and units.
        """
        quantity, _, told = (part.strip() for part in text.partition("="))
        if quantity not in _UNITS:
            raise UnknownNameError("budget", quantity, _UNITS)
        found = re.fullmatch(r"([0-9.]+(?:[eE][-+]?[0-9]+)?)\s*([A-Za-z%]*)", told)
        units = {"": 1.0, "%": 0.01, **_UNITS[quantity]}
        try:
            number, unit = float(found[1]) if found else 0.0, found[2] if found else ""
        except ValueError:
            number, unit = 0.0, ""
        if number <= 0 or unit not in units:
            listed = ", ".join(_UNITS[quantity])
            raise HwmodelError(f"budget {text!r}: expected a positive share such as 0.5 or 50%, or a value in {listed}")
        share = unit in {"", "%"}
        value = float(Decimal(repr(number)) * Decimal(repr(units[unit])))
        if share and value > 1:
            raise HwmodelError(f"budget {text!r}: a number without a unit is a share of the dense model, at most 1")
        return cls(quantity=quantity, value=value, share=share)  # type: ignore[arg-type]

    def __str__(self) -> str:
        """As :meth:`parse` reads it."""
        number = repr(float(self.value)).removesuffix(".0")
        return f"{self.quantity}={number}" + ("" if self.share else next(iter(_UNITS[self.quantity])))


def limits(
    budget: Budget | str,
    layers: Sequence[Layer],
    *,
    trace: Trace | None = None,
    machines: Sequence[Machine] = (),
    costs: Sequence[Mapping[Quantity, Cost]] | None = None,
    weights: Sequence[float] | None = None,
) -> tuple[Limit, ...]:
    """The limits that a budget stands for.

    Parameters
    ----------
    trace : the model, needed for ``flops-total``; its other linear layers count in ``flops`` too
    machines : devices that ``latency``, ``energy`` and ``power`` are of
    costs : one mapping per device in place of pricing ``machines``, for example from cost tables
    weights : of the devices: their weighted mean meets the budget, which is one on latency or energy. None: every one meets it
        (the worst case does)

    Raises
    ------
    HwmodelError
        A budget that needs a device or a trace that is not given, or weights that do not fit.
    """
    asked = Budget.parse(budget) if isinstance(budget, str) else budget
    if asked.quantity in {"flops", "flops-total"}:
        if asked.quantity == "flops-total" and trace is None:
            raise HwmodelError(f"budget {asked}: needs the model's trace, of which every product counts")
        if weights is not None:
            raise HwmodelError(f"budget {asked}: is not of devices, so weights mean nothing; leave them out")
        return (_limit(flop_cost(layers, trace, total=asked.quantity == "flops-total"), asked),)
    priced = [machine.costs(layers) for machine in machines] if costs is None else list(costs)
    if not priced:
        raise HwmodelError(f"budget {asked}: name a device")
    if asked.quantity == "power":
        if weights is not None:
            raise HwmodelError(f"budget {asked}: average powers of several devices have no weighted mean here; leave weights out")
        return tuple(_power(one["energy_j"], one["latency_s"], asked) for one in priced)
    chosen = [one[_QUANTITIES[asked.quantity]] for one in priced]
    return tuple(_limit(cost, asked) for cost in chosen) if weights is None else (_mean(chosen, weights, asked),)


def _limit(cost: Cost, budget: Budget) -> Limit:
    return Limit(cost=cost, most=budget.value * cost.dense if budget.share else budget.value, asked=str(budget))


def _power(energy: Cost, latency: Cost, budget: Budget) -> Limit:
    """Energy over latency at most P, which is linear in the choice: energy less P times latency at most 0."""
    watts = budget.value * energy.dense / latency.dense if budget.share else budget.value
    name = f"{energy.name} over latency"
    less = energy.plus(latency.scaled(-watts), name)
    cost = Cost(name=name, curves=less.curves, rest=less.rest, dense=energy.dense, source=less.source)
    return Limit(cost=cost, most=0.0, asked=str(budget), quotient=(energy, latency))


def device_shares(weights: Sequence[float], devices: int) -> list[float]:
    """Weights of devices as parts of their sum.

    Raises
    ------
    HwmodelError
        Another number of weights than devices, a negative one, or none above 0.
    """
    if len(weights) != devices or not min(weights, default=-1.0) >= 0 or not 0 < sum(weights) < inf:
        raise HwmodelError(f"weights {list(weights)}: expected {devices} values that are not negative, one per device")
    return [weight / sum(weights) for weight in weights]


def _mean(costs: Sequence[Cost], weights: Sequence[float], budget: Budget) -> Limit:
    shares = device_shares(weights, len(costs))
    parts = [cost.scaled(share / cost.dense if budget.share else share) for cost, share in zip(costs, shares, strict=True)]
    name = " + ".join(f"{share:.3g} x {cost.name}" for cost, share in zip(costs, shares, strict=True))
    return _limit(reduce(lambda one, other: one.plus(other, name), parts), budget)
