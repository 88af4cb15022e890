"""`hwmodel devices`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hwmodel.cli.options import AsJson
from hwmodel.cli.printing import print_json, print_table

if TYPE_CHECKING:
    from hwmodel.backends.cards import Card


def devices(*, as_json: AsJson = False) -> None:
    """List the machines that hwmodel knows."""
    from hwmodel.backends.cards import listed_cards

    cards = listed_cards()
    if as_json:
        print_json([_summary(card) for card in cards])
        return
    from hwmodel.reporting.tables import devices_table

    print_table(devices_table(cards))


def _summary(card: Card) -> dict[str, Any]:
    return {
        "name": card.name,
        "aliases": card.aliases,
        "title": card.title,
        "backend": card.backend,
        "modes": list(card.fidelity),
        "power_modes": list(card.power_modes),
        "default_mode": card.default_mode,
        "dtypes": card.dtypes,
        "default_dtype": card.default_dtype,
        "scores": [score.model_dump() for score in card.scores],
    }
