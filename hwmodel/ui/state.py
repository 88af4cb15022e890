"""What a person has set on the page, and how the address bar spells it."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from math import isnan
from typing import Any
from urllib.parse import parse_qsl, urlencode

from hwmodel.ir.masks import Rule

BLOCKS = ("8x8", "16x16", "16x32", "32x16", "32x32", "32x64", "64x32", "64x64", "128x128")
"""Shapes of weight blocks to choose from, (out)x(in)."""
RULES: dict[Rule, str] = {"uniform": "anywhere", "row-clustered": "in rows", "tile-clustered": "in large tiles"}
"""How kept blocks lie, with what a reader calls it."""
BATCHES = (1, 2, 4, 8, 16, 32, 64, 128)
BANDWIDTHS = (0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 3.0, 4.0)
"""Off-chip bandwidth over the card's own."""


@dataclass(frozen=True, kw_only=True)
class State:
    """One state of the page.

    Parameters
    ----------
    model, device : names of a model and of a card
    mode : execution mode
    power : power mode, "" where the card has none
    batch : images per forward pass
    density : fraction of weight blocks kept in the encoder's layers, in [0, 1]
    block : shape of a block, "OUTxIN"
    lie : how kept blocks are expected to lie, a key of :data:`RULES`
    heads : attention heads that stay in every block; 0 for all
    tokens : patch tokens that stay from a third of the encoder on; 0 for all
    array : size of the compute array, "" for the card's own
    bandwidth : off-chip bandwidth over the card's own
    """

    model: str
    device: str
    mode: str
    power: str = ""
    batch: int = 1
    density: float = 0.5
    block: str = "32x32"
    lie: Rule = "uniform"
    heads: int = 0
    tokens: int = 0
    array: str = ""
    bandwidth: float = 1.0

    def but(self, **changes: Any) -> State:
        """A copy with some fields changed."""
        return replace(self, **changes)

    @property
    def full_mode(self) -> str:
        """Execution and power mode as :func:`hwmodel.estimate` takes them."""
        return f"{self.mode}+{self.power}" if self.power else self.mode


FIELDS = tuple(item.name for item in fields(State))


def search_of(state: State) -> str:
    """The state as the query of an address, defaults left out; always in the same order."""
    given = {item.name: getattr(state, item.name) for item in fields(State) if getattr(state, item.name) != item.default}
    return "?" + urlencode({name: f"{value:g}" if isinstance(value, float) else value for name, value in given.items()})


def asked_in(search: str | None) -> tuple[dict[str, str], list[str]]:
    """Field to text as an address spells it, and a note on every part that is none of ours; the last of two wins."""
    pairs = dict(parse_qsl((search or "").removeprefix("?"), keep_blank_values=True))
    strangers = [name for name in pairs if name not in FIELDS]
    notes = [f"the address asks for {name[:40]!r}, which this page does not know: left out" for name in strangers]
    return {name: text for name, text in pairs.items() if name in FIELDS}, notes


def nearest_number(name: str, text: str, allowed: tuple[float, float], default: float) -> tuple[float, list[str]]:
    """A number of the address within its limits, with a note where it had to be changed."""
    low, high = allowed
    try:
        value = float(text)
    except ValueError:
        return default, [f"{name} is {text[:40]!r} in the address, expected a number: taken as {default:g}"]
    if low <= value <= high:
        return value, []
    taken = default if isnan(value) else min(max(value, low), high)
    return taken, [f"{name} is {text[:40]} in the address, expected {low:g} to {high:g}: taken as {taken:g}"]


def one_of(name: str, text: str, known: tuple[str, ...], default: str) -> tuple[str, list[str]]:
    """A choice of the address, with a note where it does not exist."""
    if text in known:
        return text, []
    listed = ", ".join(item or "the card's own" for item in known)
    return default, [f"{name} is {text[:40]!r} in the address, expected {listed}: taken as {default or 'the own one'}"]
