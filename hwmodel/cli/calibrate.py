"""`hwmodel calibrate`."""

from __future__ import annotations

from typing import Annotated

import typer

from hwmodel.cli.options import AsJson
from hwmodel.cli.printing import print_json, print_line, print_wide


def calibrate(
    measured: Annotated[str, typer.Argument(help="a file that `hwmodel measure` wrote, or one in its layout")],
    *,
    device: Annotated[str, typer.Option("--device", help="the card to start from: a name or a file")],
    output: Annotated[str, typer.Option("-o", "--output", help="the new card, NAME.toml")],
    fields: Annotated[
        str | None, typer.Option("--fit", help="FIELD or FIELD.KEY,... (default: what is calibrated or assumed)")
    ] = None,
    mode: Annotated[str | None, typer.Option("--mode", help="mode the rows were taken in")] = None,
    dtype: Annotated[str | None, typer.Option("--dtype", help="only rows in this number format")] = None,
    rows_of: Annotated[str | None, typer.Option("--rows-of", help="only rows of this device, where the file has several")] = None,
    as_json: AsJson = False,
) -> None:
    """Fit a card's free constants to measured operators and write a new card, with its error on rows that were held out."""
    from hwmodel.backends.cards import load_card
    from hwmodel.validation.calibration.calibrate import calibrate as run
    from hwmodel.validation.calibration.calibrate import check_card_output, name_from, write_card

    check_card_output(output)
    card = load_card(device)
    names = [name.strip() for name in (fields or "").split(",") if name.strip()]
    found = run(measured, card, name=name_from(output, card), mode=mode, fields=names, dtype=dtype, device=rows_of)
    write_card(found, output)
    if as_json:
        print_json(found.document())
        return
    from hwmodel.validation.tables import fields_table, sides_table

    print_wide(fields_table(found), sides_table(found))
    print_line(f"card {found.card.name} written to {output}")
