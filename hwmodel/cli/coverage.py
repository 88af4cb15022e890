"""`hwmodel trace --all`: which models of timm extract."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from hwmodel.cli.inputs import check_output
from hwmodel.cli.printing import print_json, print_line, print_wide, progress

AllModels = Annotated[bool, typer.Option("--all", help="trace every timm model, family by family, and print which ones extract")]
Family = Annotated[str | None, typer.Option("--family", help="--all, for names or timm modules like this alone, as 'swin*'")]
Workers = Annotated[int | None, typer.Option("--workers", min=1, help="--all, in this many processes (default: one)")]


def print_coverage(pattern: str | None, output: str | None, workers: int | None, *, as_json: bool) -> None:
    """Print the coverage table, as JSON where asked for, and write it to ``output`` (.json)."""
    from hwmodel.files import write_file
    from hwmodel.validation.coverage import coverage

    if output is not None:
        check_output(output, (".json",))
    with progress() as tell:
        found = coverage(pattern or "*", workers=workers or 1, tell=tell)
    document = found.document()
    if output is not None:
        write_file(output, json.dumps(document, indent=1) + "\n")
    if as_json:
        print_json(document)
        return
    from hwmodel.validation.tables import coverage_table

    print_wide(coverage_table(found))
    print_line(f"{document['extracted']} of {document['names']} names extract")
