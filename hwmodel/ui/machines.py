"""What the page may move on a machine: its modes, the size of its compute array, its off-chip bandwidth."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hwmodel.backends.cards import Card
from hwmodel.backends.estimates import estimate
from hwmodel.backends.registry import get_backend
from hwmodel.errors import HwmodelError
from hwmodel.ir.trace import Trace
from hwmodel.reporting.units import si
from hwmodel.ui.state import State

_BANDWIDTH = re.compile(r"(\w+_)?(dram|hbm)_bytes_per_s")
_SIDES = (32, 64, 128, 256, 512)
_SHAPES = ("8x8", "16x16", "16x32", "32x32", "32x64", "64x64", "64x128", "128x128")
_SCALES = (0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0)
_FAR = 1 / 16
"""Bandwidth over the card's own at which a machine that depends on it shows it."""


@dataclass(frozen=True)
class Array:
    """The field (or fields) that hold the size of a machine's compute array.

    Parameters
    ----------
    what : what a reader calls it, with its unit
    sizes : field values by the text that stands for them, in the order of the slider; "" is the card's own
    """

    what: str
    sizes: Mapping[str, Mapping[str, Any]]


def modes_of(card: Card) -> tuple[str, ...]:
    """Execution modes that answer in milliseconds; those that run a simulator are left out."""
    backend = get_backend(card.backend)
    slow: frozenset[str] = getattr(backend, "simulated_modes", frozenset())
    return tuple(mode for mode in backend.modes if mode not in slow)


def default_modes(card: Card) -> tuple[str, str]:
    """Execution and power mode that the card starts in; "" where it has no power modes."""
    mode, power = card.split_mode(None)
    return (mode if mode in modes_of(card) else modes_of(card)[0]), power or ""


def array_of(card: Card, power: str = "") -> Array | None:
    """The compute array of a card in a power mode; None where its backend has no such field."""
    known, values = get_backend(card.backend).parameters.model_fields, card.values(power or None)
    if "array_rows" in known:
        own = (values["array_rows"], values["array_cols"])
        sizes = {f"{side}x{side}": {"array_rows": side, "array_cols": side} for side in _SIDES if own != (side, side)}
        return Array("multipliers, rows x columns", _with_own(sizes, own[0] * own[1]))
    if "pe" in known:
        return Array("multipliers of one PE, out x in", {"": {}, **{shape: {"pe": shape} for shape in _SHAPES}})
    for field, what in (("sm_count", "streaming multiprocessors"), ("cores", "cores")):
        if field in known and isinstance(own_count := values.get(field), int | float):
            counts = [max(1, round(own_count * scale)) for scale in _SCALES]
            sizes = {str(count): {field: count} for count in counts if count != own_count}
            return Array(what, _with_own(sizes, own_count))
    return None


def _with_own(sizes: Mapping[str, Mapping[str, Any]], own: float) -> dict[str, Mapping[str, Any]]:
    """The card's own size at its place among the others."""

    def multipliers(text: str) -> float:
        first, _, second = text.partition("x")
        return float(first) * float(second or 1)

    smaller = {text: fields for text, fields in sizes.items() if multipliers(text) < own}
    return {**smaller, "": {}, **{text: fields for text, fields in sizes.items() if text not in smaller}}


def bandwidth_fields(card: Card, power: str = "") -> dict[str, float]:
    """Bytes per second of a card's off-chip memory, by field."""
    values = card.values(power or None)
    return {name: value for name, value in values.items() if _BANDWIDTH.fullmatch(name) and isinstance(value, int | float)}


def overrides_of(card: Card, state: State) -> dict[str, Any]:
    """Fields of the card that the state replaces."""
    array = array_of(card, state.power)
    found = dict(array.sizes[state.array]) if array and state.array else {}
    if state.bandwidth != 1:
        found |= {name: value * state.bandwidth for name, value in bandwidth_fields(card, state.power).items()}
    return found


def own_size(card: Card, state: State) -> str:
    """What the card's own array size is, in words."""
    values = card.values(state.power or None)
    if "array_rows" in values:
        return f"{values['array_rows']:g}x{values['array_cols']:g}"
    known = next((values[field] for field in ("sm_count", "cores") if field in values), None)
    return "the card's own" if known is None else f"{known:g}"


def bandwidth_text(card: Card, state: State) -> str:
    """The bandwidth that a state asks for."""
    found = bandwidth_fields(card, state.power)
    listed = " and ".join(dict.fromkeys(si(value * state.bandwidth, "B/s") for value in found.values()))
    return f"{listed} ({state.bandwidth:g}× the card's)" if listed else "not on this card"


def array_blocked(card: Card, state: State, dense: Trace) -> str:
    """Why the array size cannot be moved in this mode; "" where it can."""
    array = array_of(card, state.power)
    if array is None:
        return "this kind of card has no such field"
    tried = next((fields for text, fields in array.sizes.items() if text), {})
    return _without_effect(card, state, dense, tried)


def bandwidth_blocked(card: Card, state: State, dense: Trace) -> str:
    """Why the bandwidth cannot be moved in this mode; "" where it can."""
    found = bandwidth_fields(card, state.power)
    if not found:
        return "this card has no such field"
    return _without_effect(card, state, dense, {name: value * _FAR for name, value in found.items()})


def _without_effect(card: Card, state: State, dense: Trace, changed: Mapping[str, Any]) -> str:
    """Price the dense model with and without a change: a mode that prices both alike does not read the field."""
    try:
        after = estimate(dense, device=card, mode=state.full_mode, overrides=changed)
        before = estimate(dense, device=card, mode=state.full_mode)
    except HwmodelError as error:
        return "" if "pe" in changed else str(error)
    same = (before.latency_s, before.energy_j) == (after.latency_s, after.energy_j)
    return f"mode {state.mode} does not depend on it" if same else ""
