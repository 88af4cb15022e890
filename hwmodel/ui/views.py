"""What an answer shows: totals as text, and time and energy by layer type. No browser is needed to look at it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from hwmodel.backends.estimates import Estimate
from hwmodel.reporting.breakdown import ROLES, latency_by_bound, latency_by_role, sums_by_role
from hwmodel.reporting.tables import band_text
from hwmodel.reporting.units import percent, ratio, si
from hwmodel.reporting.variants import Case, quotient
from hwmodel.ui.workbench import Answer, Grid


@dataclass(frozen=True)
class Total:
    """One figure at the head of the page: what it is, its value, and what it means beside the dense model."""

    name: str
    value: str
    beside: str


@dataclass(frozen=True)
class Bar:
    """One stacked bar.

    Parameters
    ----------
    name : "dense" or "now"
    total : the whole, as text with its unit
    parts : (key of ROLES, share of the dense model's whole, value as text), nothing left out but zeros
    """

    name: str
    total: str
    parts: tuple[tuple[str, float, str], ...]


def totals(answer: Answer) -> list[Total]:
    """Latency, energy, power, work and what limits it."""
    now, dense = answer.now, answer.dense
    bounds = latency_by_bound(Case("now", now))
    most = next(iter(bounds), "none")
    return [
        Total("Latency", si(now.latency_s, "s"), f"{_gain(dense.latency_s, now.latency_s)} faster than dense"),
        Total("Energy", si(now.energy_j, "J"), f"{_gain(dense.energy_j, now.energy_j)} less than dense"),
        Total("Average power", si(now.average_power_w, "W"), f"dense {si(dense.average_power_w, 'W')}"),
        Total("Kept work", percent(answer.kept_share), f"{si(now.trace.kept_macs, 'MAC')} of {si(now.trace.macs, 'MAC')}"),
        Total("Executed work", si(now.executed_macs, "MAC"), f"{si(now.dram_bytes, 'B')} off-chip"),
        Total("Mostly limited by", most, f"{percent(quotient(bounds.get(most, 0.0), now.latency_s))} of the time"),
    ]


def _gain(before: float, after: float) -> str:
    return ratio(quotient(before, after))


def trust(answer: Answer) -> str:
    """How far to trust the figures, in one sentence."""
    now = answer.now
    told = [f"{name} {now.fidelity[name]} (measured error: {band_text(now.error_band(name))})" for name in ("latency", "energy")]
    moved = f"; assumed, for the card was changed: {', '.join(now.overrides)}" if now.overrides else ""
    return f"{now.device}, {now.mode}, {now.dtype}, batch {now.trace.batch}: {'; '.join(told)}{moved}."


def latency_bars(answer: Answer) -> list[Bar]:
    """Latency of the dense model and of the state, by layer type."""
    dense, now = (latency_by_role(Case("", one)) for one in (answer.dense, answer.now))
    return _bars(dense, now, "s")


def energy_bars(answer: Answer) -> list[Bar]:
    """Energy of the dense model and of the state, by layer type."""
    dense, now = (sums_by_role(one.trace, one.costs.energy_j) for one in (answer.dense, answer.now))
    return _bars(dense, now, "J")


def _bars(dense: Mapping[str, float], now: Mapping[str, float], unit: str) -> list[Bar]:
    whole = sum(dense.values()) or 1.0
    return [
        Bar(
            name, si(sum(parts.values()), unit),
            tuple((role, value / whole, si(value, unit)) for role, value in parts.items() if value > 0),
        )
        for name, parts in (("dense", dense), ("now", now))
    ]  # fmt: skip


@dataclass(frozen=True)
class Dot:
    """One layer type in a roofline: executed MACs per byte off-chip, MACs per second, and its share of the latency."""

    role: str
    macs_per_byte: float
    macs_per_s: float
    share: float


@lru_cache(maxsize=128)
def dots(estimate: Estimate) -> tuple[Dot, ...]:
    """Layer types that multiply; a fused kernel's time and traffic stand with the operator that carries its cost.

    Layer types without off-chip traffic have no place on a roofline and are left out.
    """
    costs = estimate.costs
    carried = np.zeros((3, len(costs.latency_s)))
    for line, column in zip(carried, (costs.executed_macs, costs.dram_bytes, costs.latency_s - costs.gap_s), strict=True):
        np.add.at(line, costs.fused_into, column)
    macs, moved, busy = (sums_by_role(estimate.trace, np.where(carried[0] > 0, line, 0.0)) for line in carried)
    latency = float(costs.latency_s.sum())
    return tuple(
        Dot(role, macs[role] / moved[role], macs[role] / busy[role], busy[role] / latency)
        for role in ROLES
        if macs[role] > 0 and moved[role] > 0 and busy[role] > 0
    )


def position(answer: Answer, grid: Grid) -> str:
    """Where the state stands among its neighbours, in words."""
    better = grid.beats(answer)
    among = f"{len(grid.answers)} neighbours (densities and token counts, everything else as it is)"
    if not better:
        return f"On the front: none of {among} keeps as much work at as little time and energy."
    best = min(better, key=lambda other: other.now.latency_s)
    what = f"density {best.state.density:g}, {best.state.tokens or 'all'} tokens"
    return (
        f"Beaten by {len(better)} of {among}; fastest of them {what}: keeps {percent(best.kept_share)} of the work "
        f"in {si(best.now.latency_s, 's')} and {si(best.now.energy_j, 'J')}."
    )
