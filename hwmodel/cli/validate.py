"""`hwmodel validate`."""

from __future__ import annotations

from typing import Annotated

import typer

from hwmodel.cli.options import AsJson
from hwmodel.cli.printing import print_json, print_line, print_wide


def validate(
    *,
    device: Annotated[str | None, typer.Option("--device", help="device names, separated by commas (default: all)")] = None,
    as_json: AsJson = False,
) -> None:
    """Predict every measured row that hwmodel ships, next to the naive roofline and to a fitted two-parameter baseline."""
    from hwmodel.backends.cards import load_card, shipped_cards
    from hwmodel.validation.comparison import compare

    names = [name.strip() for name in (device or "").split(",") if name.strip()]
    found = compare([load_card(name) for name in names] if names else list(shipped_cards().values()))
    if as_json:
        print_json(found.document())
        return
    from hwmodel.validation.tables import groups_table, left_out_table, scores_table

    print_wide(groups_table(found), scores_table(found), left_out_table(found))
    if not (found.groups or found.scores or found.left_out):
        print_line(f"no measured rows are shipped for {device}")
