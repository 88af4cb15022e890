"""Roofline ceilings: what fields of the card say, or the backend works out from them. Where neither does, there is no line."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

from hwmodel.backends.registry import backend_names, get_backend
from hwmodel.reporting.variants import Case

_MEMORY_FIELDS = ("dram_bytes_per_s", "product_hbm_bytes_per_s")
_PEAK_FIELDS = (
    ("sm_count", "macs_per_clock_sm", "clock_hz"),
    ("array_rows", "array_cols", "mxus", "clock_hz"),
    ("cores", "macs_per_cycle_core", "clock_hz"),
)
_ONE_ARRAY_MODES = {"systolic", "scale-sim", "paper-fit"}


@dataclass(frozen=True)
class Ceilings:
    """What bounds a machine, None where its card does not say.

    Parameters
    ----------
    macs_per_s : peak multiply-accumulates per second in the number format of the case
    bytes_per_s : bandwidth of the off-chip memory
    macs_from, bytes_from : the fields of the card they come from
    """

    macs_per_s: float | None
    bytes_per_s: float | None
    macs_from: str
    bytes_from: str


def resolved_values(case: Case) -> dict[str, Any]:
    """Values of the card's fields in the case's power mode, the caller's overrides in their place."""
    values = dict(case.card.values(case.power_mode))
    for path, value in case.estimate.overrides.items():
        field, _, key = path.partition(".")
        values[field] = {**values.get(field, {}), key: value} if key else value
    return values


def ceilings_of(case: Case) -> Ceilings:
    """The ceilings that the card of ``case`` states in its power mode."""
    values = resolved_values(case)
    told = _told_peak(case)
    fields = next((names for names in _PEAK_FIELDS if all(name in values for name in names)), ())
    memory = next((name for name in _MEMORY_FIELDS if name in values), "")
    factors = [_number(values, name, case) for name in fields]
    known = [factor for factor in factors if factor is not None]
    complete = bool(fields) and len(known) == len(factors)
    return Ceilings(
        macs_per_s=prod(known) if complete else told,
        bytes_per_s=_number(values, memory, case) if memory else None,
        macs_from=" × ".join(fields) if complete else "all multipliers × clock_hz" if told else "",
        bytes_from=memory,
    )


def _told_peak(case: Case) -> float | None:
    """MACs per second of a backend that works its peak out, such as from the shape of its processing element."""
    known = case.card.backend in backend_names()
    tell = getattr(get_backend(case.card.backend), "peak_macs_per_s", None) if known else None
    if tell is None:
        return None
    estimate = case.estimate
    return float(tell(estimate.workload, case.card.resolve(estimate.mode, estimate.overrides), estimate.options))


def _number(values: Mapping[str, Any], name: str, case: Case) -> float | None:
    """One field as a number; tables by number format are read in the format of the case."""
    value = values[name]
    if name == "mxus" and case.mode in _ONE_ARRAY_MODES:
        return 1.0
    if isinstance(value, Mapping):
        value = value.get(case.dtype, value.get(case.dtype.removeprefix("amp-")))
    return float(value) if isinstance(value, (int, float)) else None
