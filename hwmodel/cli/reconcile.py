"""`hwmodel trace MODEL --reconcile`: our count beside other counters."""

from __future__ import annotations

from typing import Annotated

import typer

from hwmodel.cli.printing import print_json, print_wide
from hwmodel.errors import HwmodelError

Reconcile = Annotated[bool, typer.Option("--reconcile", help="MACs beside those of the other counters that are installed, and why")]


def print_reconciliation(model: str, batch: int | None, image_size: int | None, as_json: bool) -> None:
    """Print the counts by kind and the reason for each difference."""
    from hwmodel.ir.storage import is_trace_file
    from hwmodel.validation.reconcile import reconcile

    if is_trace_file(model):
        raise HwmodelError(f"{model}: --reconcile runs other counters on the model itself; give its timm name")
    found = reconcile(model, batch=batch or 1, image_size=image_size)
    if as_json:
        print_json(found.document())
        return
    from hwmodel.validation.tables import counts_table, differences_table

    print_wide(counts_table(found), differences_table(found))
