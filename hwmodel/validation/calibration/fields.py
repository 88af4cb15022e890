"""Which numbers of a card may move in a calibration, and how far."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hwmodel.backends.cards import Card, Sourced
from hwmodel.backends.registry import get_backend
from hwmodel.errors import HwmodelError, UnknownNameError
from hwmodel.validation.calibration.observations import Latencies

REACH = 2.0
"""A calibrated constant without a range may move by this factor."""
FREE = ("calibrated", "assumed")
_ENERGY = re.compile(r"(_j|_w|_j_per_\w+|_w_per_\w+)$")
_PROBE = 1.05
_MATTERS = 1e-6
_LEAST = 1e-4
"""Where a range includes zero, the least value tried, relative to the greatest: constants move on a logarithmic scale."""


@dataclass(frozen=True, kw_only=True)
class Free:
    """One number that may move: a field, or an entry of a table as FIELD.KEY."""

    path: str
    start: float
    low: float
    high: float


def fields_named(card: Card, power_mode: str | None, names: Sequence[str]) -> list[Free]:
    """The numbers that ``names`` list; a table's name stands for all its entries.

    Raises
    ------
    UnknownNameError
        A field or an entry that does not exist.
    HwmodelError
        One that is not a number.
    """
    found: list[Free] = []
    for name in names:
        field, _, key = name.partition(".")
        model = get_backend(card.backend).parameters.model_fields
        if field not in model:
            raise UnknownNameError(f"field of {card.name}", field, model)
        entries = _entries(field, _values(card, power_mode).get(field))
        if key and key not in {entry for entry, _ in entries}:
            raise UnknownNameError(f"entry of {field}", key, [entry for entry, _ in entries])
        numbers = [(entry, value) for entry, value in entries if key in ("", entry)]
        if not numbers:
            raise HwmodelError(f"--fit {name}: is not a number, nothing can be fitted")
        found += [_free(card, power_mode, field, entry, value) for entry, value in numbers]
    return list({free.path: free for free in found}.values())


def fields_by_default(card: Card, mode: str, found: Latencies) -> list[Free]:
    """What the card or its backend calls calibrated, or assumed within a range, and what latency depends on.

    Energies and powers are left out: under a board limit they would bend to explain times.

    Raises
    ------
    HwmodelError
        Where nothing of the kind is left.
    """
    power_mode = card.split_mode(mode)[1]
    free = [
        _free(card, power_mode, field, key, value)
        for field, given in _values(card, power_mode).items()
        if not _ENERGY.search(field) and not _is_count(card, field) and _is_free(_sourced(card, power_mode, field))
        for key, value in _entries(field, given)
    ]
    mattering = [one for one, matters in zip(free, _influence(card, mode, found, free), strict=True) if matters]
    if not mattering:
        raise HwmodelError(
            f"{card.name} has no calibrated or assumed number that latency in mode {mode} depends on; name some with --fit"
        )
    return mattering


def _values(card: Card, power_mode: str | None) -> dict[str, Any]:
    """Values of the card, and its backend's defaults where the card is silent."""
    model = get_backend(card.backend).parameters.model_fields
    defaults = {name: info.default for name, info in model.items() if not info.is_required()}
    return defaults | card.values(power_mode)


def _sourced(card: Card, power_mode: str | None, field: str) -> Sourced | None:
    """The card's entry; None where the value is the backend's default."""
    entries = card.parameters | (card.power_modes[power_mode] if power_mode else {})
    return entries.get(field)


def _is_free(entry: Sourced | None) -> bool:
    """A backend's default is its family's calibrated constant. An assumption without a range is a choice."""
    return entry is None or (entry.fidelity in FREE and (entry.fidelity == "calibrated" or entry.range is not None))


def _entries(field: str, value: Any) -> list[tuple[str, float]]:
    """(key, number) of a table, ("", number) of a plain field, nothing where it is no number."""
    if isinstance(value, dict):
        return [(key, float(one)) for key, one in value.items() if _is_number(one)]
    return [("", float(value))] if _is_number(value) else []


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _free(card: Card, power_mode: str | None, field: str, key: str, value: float) -> Free:
    entry = _sourced(card, power_mode, field)
    stated = entry.range if entry else None
    low, high = stated or (value / REACH, value * REACH)
    least, greatest = _limits(card, field)
    high = min(high, greatest)
    low = max(low, least, high * _LEAST)
    if not low < high:
        raise HwmodelError(f"{card.name}: {field} may only move within {low:g} and {high:g}; give it a range")
    return Free(path=f"{field}.{key}" if key else field, start=min(max(value, low), high), low=low, high=high)


def _limits(card: Card, field: str) -> tuple[float, float]:
    """What the backend's own checks allow."""
    low, high = 0.0, float("inf")
    for limit in _metadata(get_backend(card.backend).parameters.model_fields[field].metadata):
        low = max([low, *(float(bound) for name in ("ge", "gt") if (bound := getattr(limit, name, None)) is not None)])
        high = min([high, *(float(bound) for name in ("le", "lt") if (bound := getattr(limit, name, None)) is not None)])
    return low, high


def _is_count(card: Card, field: str) -> bool:
    """Whole numbers of things are told, not fitted."""
    info = get_backend(card.backend).parameters.model_fields[field]
    return info.annotation is int or any(getattr(one, "multiple_of", None) is not None for one in _metadata(info.metadata))


def _metadata(items: Sequence[Any]) -> Iterator[Any]:
    for item in items:
        yield item
        yield from getattr(item, "metadata", ())


def _influence(card: Card, mode: str, found: Latencies, free: Sequence[Free]) -> list[bool]:
    """Whether moving each number by 5 % moves the latency of any operator."""
    if not free:
        return []
    plain = found.predict(card, mode, {one.path: one.start for one in free})
    designs = {}
    for place, one in enumerate(free):
        column = np.full(len(free), one.start)
        column[place] = one.start * _PROBE if one.start * _PROBE <= one.high else one.start / _PROBE
        designs[one.path] = column
    moved = np.abs(np.log(found.predict(card, mode, designs)) - np.log(plain))
    matters: list[bool] = (moved.max(axis=1) > _MATTERS).tolist()
    return matters
