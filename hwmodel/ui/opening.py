"""From an address to a state that exists: what is unknown or out of range is replaced, and told."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hwmodel.errors import HwmodelError
from hwmodel.ui import machines
from hwmodel.ui.state import BANDWIDTHS, BATCHES, BLOCKS, RULES, State, asked_in, nearest_number, one_of
from hwmodel.ui.workbench import Workbench


def opened(bench: Workbench, search: str | None) -> tuple[State, list[str]]:
    """The state that an address asks for, as near as it exists, with a note on everything that had to be changed."""
    asked, notes = asked_in(search)
    first = bench.models.names[0]
    model, device = asked.get("model", first), asked.get("device", bench.device)
    device = bench.aliases.get(device, device)
    try:
        bench.models.get(model)
    except HwmodelError as error:
        notes.append(f"{error}; {first} is shown")
        model = first
    device, told = one_of("device", device, bench.devices, bench.device)
    state = bench.default_state(model, device)
    state, more = _with_choices(bench, state, asked)
    state, still_more = _with_numbers(bench, state, asked)
    return state, notes + told + more + still_more


def _with_choices(bench: Workbench, state: State, asked: Mapping[str, str]) -> tuple[State, list[str]]:
    """Everything that is one of a list; the array's sizes depend on the power mode, so it comes last."""
    card = bench.card(state.device)
    notes: list[str] = []
    fixed = bench.models.get(state.model).batches.fixed
    lists: dict[str, tuple[str, ...]] = {
        "mode": machines.modes_of(card),
        "power": tuple(card.power_modes) or ("",),
        "block": BLOCKS,
        "lie": tuple(RULES),
        "batch": (str(state.batch),) if fixed else tuple(map(str, BATCHES)),
        "bandwidth": tuple(f"{factor:g}" for factor in BANDWIDTHS),
    }
    for name, known in lists.items():
        if name in asked:
            text, told = one_of(name, asked[name], known, f"{getattr(state, name)}".removesuffix(".0"))
            state = state.but(**{name: _typed(name, text)})
            notes += told
    if "array" in asked:
        array = machines.array_of(card, state.power)
        text, told = one_of("array", asked["array"], tuple(array.sizes) if array else ("",), "")
        state, notes = state.but(array=text), notes + told
    return state, notes


def _typed(name: str, text: str) -> Any:
    """A text of the address as the field holds it."""
    return {"batch": int, "bandwidth": float}.get(name, str)(text)


def _with_numbers(bench: Workbench, state: State, asked: Mapping[str, str]) -> tuple[State, list[str]]:
    """Everything that is a number within limits; counts that keep everything become 0, which says so on any model."""
    model = bench.models.get(state.model)
    notes: list[str] = []
    if "density" in asked:
        density, notes = nearest_number("density", asked["density"], (0, 1), state.density)
        state = state.but(density=round(density, 2))
    for name, (most, blocked) in (("heads", model.heads), ("tokens", model.tokens)):
        if asked.get(name, "0") == "0":
            continue
        if blocked:
            notes.append(f"{name} cannot be moved on {state.model} ({blocked}): all are kept")
            continue
        count, told = nearest_number(name, asked[name], (1, most), most)
        state = state.but(**{name: int(count) % most})
        notes += told
    return state, notes
