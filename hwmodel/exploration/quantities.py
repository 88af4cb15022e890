"""What a point of a study is judged by: quantities with their goal, constraints, and the user's proxies, as columns."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import prod
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from hwmodel.exploration.study import Constraint, Objective, Proxy

Column = npt.NDArray[Any]
Columns = dict[str, Column]
Goal = Literal["min", "max"]


@dataclass(frozen=True)
class Quantity:
    """A column of every dataset: which way is better, its unit, and what it is."""

    goal: Goal
    unit: str
    text: str


QUANTITIES: Mapping[str, Quantity] = {
    "latency_s": Quantity("min", "s", "time of the whole batch"),
    "energy_j": Quantity("min", "J", "energy of the whole batch, in the study's scope"),
    "average_power_w": Quantity("min", "W", "energy over time"),
    "energy_delay_js": Quantity("min", "J s", "energy times time of the whole batch"),
    "images_per_s": Quantity("max", "/s", "throughput"),
    "images_per_s_per_w": Quantity("max", "/s/W", "throughput per watt, which is images per joule"),
    "cycles": Quantity("min", "cycles", "cycles of the device's main clock"),
    "dram_bytes": Quantity("min", "B", "bytes to and from off-chip memory"),
    "macs": Quantity("min", "MAC", "multiply-accumulates of the dense model"),
    "kept_macs": Quantity("max", "MAC", "multiply-accumulates left after pruning: a proxy of accuracy"),
    "kept_share": Quantity("max", "", "kept MACs over dense MACs (the share of FLOPs is the same): a proxy of accuracy"),
    "executed_macs": Quantity("min", "MAC", "multiply-accumulates the machine performs"),
    "area_mm2": Quantity("min", "mm2", "silicon area, where the backend tells it"),
    "accuracy": Quantity("max", "", "the user's own figure"),
}


def derived(raw: Columns) -> Columns:
    """All quantities from what a backend returns per design, and from the trace.

    ``raw`` has latency_s, energy_j, cycles, dram_bytes, executed_macs, macs, kept_macs and batch, each of shape (designs,).
    """
    latency_s, energy_j, batch = raw["latency_s"], raw["energy_j"], raw["batch"]
    return raw | {
        "average_power_w": _ratio(energy_j, latency_s, nothing=0.0),
        "energy_delay_js": energy_j * latency_s,
        "images_per_s": _ratio(batch, latency_s),
        "images_per_s_per_w": _ratio(batch, energy_j),
        "kept_share": _ratio(raw["kept_macs"], raw["macs"], nothing=1.0),
    }


def _ratio(part: Column, whole: Column, nothing: float = np.nan) -> Column:
    ratio: Column = np.divide(part, whole, out=np.full(np.shape(whole), nothing), where=whole > 0)
    return ratio


def proxy_column(proxy: Proxy, column: Callable[[str], Column]) -> Column:
    """The sum of weighted products; missing (NaN) where one of its columns is."""
    total: Column = np.asarray(sum(term.weight * prod(column(name) for name in term.of) for term in proxy.terms))
    return total


def satisfied(constraint: Constraint, column: Column) -> npt.NDArray[np.bool_]:
    """Which points meet a constraint; a missing value does not."""
    values = np.asarray(column, dtype=np.float64)
    meets = np.isfinite(values)
    if constraint.min is not None:
        meets = meets & (values >= constraint.min)
    if constraint.max is not None:
        meets = meets & (values <= constraint.max)
    return meets


def violations(constraints: Sequence[Constraint], columns: Mapping[str, Column]) -> npt.NDArray[np.float64]:
    """How far each point is beyond each bound, relative to it: shape (points, constraints), 0 or less where it is met."""
    found = []
    for constraint in constraints:
        values = np.asarray(columns[constraint.quantity], dtype=np.float64)
        over = -np.inf if constraint.max is None else (values - constraint.max) / (abs(constraint.max) or 1.0)
        under = -np.inf if constraint.min is None else (constraint.min - values) / (abs(constraint.min) or 1.0)
        found.append(np.nan_to_num(np.maximum(over, under), nan=1e9, posinf=1e9, neginf=-1e9))
    return np.stack(found, axis=-1) if found else np.zeros((len(next(iter(columns.values()))), 0))


def emptying(constraints: Sequence[Constraint], met: npt.NDArray[np.bool_]) -> str:
    """In words, which constraints leave no point: the smallest sets that do, with how many each leaves alone.

    ``met`` has shape (points, constraints), at least one of which must fail everywhere together.
    """
    for size in range(1, len(constraints) + 1):
        guilty = [group for group in combinations(range(len(constraints)), size) if not met[:, group].all(axis=1).any()]
        if guilty:
            told = [" together with ".join(_left(constraints[one], met[:, one]) for one in group) for group in guilty[:3]]
            return "; ".join(told)
    raise ValueError("the constraints leave points")


def _left(constraint: Constraint, met: npt.NDArray[np.bool_]) -> str:
    return f"{constraint} (met by {int(met.sum())} of {len(met)})"


def contradictions(constraints: Sequence[Constraint]) -> list[str]:
    """Pairs (or single ones) that exclude each other whatever the points are."""
    told = []
    for name in dict.fromkeys(constraint.quantity for constraint in constraints):
        own = [constraint for constraint in constraints if constraint.quantity == name]
        lows = [constraint.min for constraint in own if constraint.min is not None]
        highs = [constraint.max for constraint in own if constraint.max is not None]
        if lows and highs and max(lows) > min(highs):
            told.append(f"{name} must be at least {max(lows):g} and at most {min(highs):g}, which leaves nothing")
    return told


def goal_of(objective: Objective) -> Goal:
    """Which way an objective goes: as told, else as its quantity does, else down."""
    known = QUANTITIES.get(objective.quantity)
    return objective.goal or (known.goal if known else "min")


def losses(objectives: Sequence[Objective], columns: Mapping[str, Column]) -> npt.NDArray[np.float64]:
    """The objectives as numbers to minimise, shape (points, objectives)."""
    signs = [1.0 if goal_of(objective) == "min" else -1.0 for objective in objectives]
    return np.stack(
        [sign * np.asarray(columns[o.quantity], dtype=np.float64) for sign, o in zip(signs, objectives, strict=True)], -1
    )
