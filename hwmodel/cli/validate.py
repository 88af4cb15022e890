"""`hwmodel validate`."""

from __future__ import annotations

from typing import Annotated

import typer

from hwmodel.cli.options import AsJson
from hwmodel.cli.printing import print_json, print_line, print_wide, progress


def validate(
    *,
    device: Annotated[str | None, typer.Option("--device", help="device names, separated by commas (default: all)")] = None,
    as_json: AsJson = False,
) -> None:
    """Predict every measured row that hwmodel ships, next to the naive roofline and to a fitted two-parameter baseline."""
    from hwmodel.backends.cards import load_card, shipped_cards
    from hwmodel.validation.comparison import compare
    from hwmodel.validation.cross_checks import cross_checks

    names = [name.strip() for name in (device or "").split(",") if name.strip()]
    cards = [load_card(name) for name in names] if names else list(shipped_cards().values())
    with progress() as step:
        step(f"predicting the measured rows of {len(cards)} cards")
        found = compare(cards)
        refitted = cross_checks(cards, step)
    if as_json:
        print_json(found.document() | {"cross_checks": [check.document() for check in refitted]})
        return
    from hwmodel.validation.tables import cross_checks_table, groups_table, left_out_table, scores_table

    print_wide(groups_table(found), scores_table(found), cross_checks_table(refitted), left_out_table(found))
    if not (found.groups or found.scores or found.left_out):
        print_line(f"no measured rows are shipped for {device}")
