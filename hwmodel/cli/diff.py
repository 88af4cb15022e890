"""`hwmodel diff`: what a change costs, and a check that it does not cost more than it may."""

from __future__ import annotations

import re
import sys
from typing import TYPE_CHECKING, Annotated, cast

import typer

from hwmodel.cli.inputs import unpruned_model
from hwmodel.cli.options import AsJson, Attention, Dtype, EnergyScope, Mode, Settings, SparseKernel
from hwmodel.cli.plan import Plan
from hwmodel.cli.printing import print_json, print_line, print_wide
from hwmodel.errors import HwmodelError, UnknownNameError

if TYPE_CHECKING:
    from hwmodel.reporting.diff import Difference, Quantity
    from hwmodel.reporting.priced import Priced

_SHOWN = 20


def diff(
    before: Annotated[str, typer.Argument(help="the cost to compare with: output of estimate --json, or a saved trace")],
    after: Annotated[str, typer.Argument(help="the cost now: output of estimate --json, or a saved trace")],
    *,
    fail_over: Annotated[str | None, typer.Option("--fail-over", help="exit with status 1 where cost grew by more, as 2%")] = None,
    on: Annotated[
        str, typer.Option("--on", help="latency or energy: what changes are sorted by and what may not grow")
    ] = "latency",
    rows: Annotated[int, typer.Option("--rows", min=0, help="changes to print; the rest is summed up")] = _SHOWN,
    device: Annotated[str | None, typer.Option("--device", help="where to price two saved traces")] = None,
    mode: Mode = None,
    dtype: Dtype = None,
    settings: Settings = None,
    attention: Attention = "source",
    sparse_kernel: SparseKernel = "auto",
    scope: EnergyScope = "board",
    as_json: AsJson = False,
) -> None:
    """Show what changed between two estimates, operator by operator; with --fail-over, a check for continuous integration."""
    from hwmodel.reporting.diff import differences

    if on not in ("latency", "energy"):
        raise UnknownNameError("quantity", on, ("latency", "energy"))
    quantity = cast("Quantity", on)
    limit = None if fail_over is None else _fraction(fail_over)
    plan = None
    if device is not None:
        plan = Plan(device, mode, settings, dtype, None, attention=attention, sparse_kernel=sparse_kernel, scope=scope)
    elif mode or settings or dtype or (attention, sparse_kernel, scope) != ("source", "auto", "board"):
        raise HwmodelError("--mode, --dtype, --set and the choices of kernels and scope are for pricing traces; give --device too")
    found = differences(_priced(before, plan), _priced(after, plan), on=quantity)
    if as_json:
        print_json([one.document(quantity) for one in found])
    else:
        _print(found, quantity, rows)
    if limit is not None and _too_dear(found, quantity, limit):
        sys.exit(1)


def _fraction(text: str) -> float:
    """``2%`` as 0.02. A bare number could be either, so it is refused."""
    told = re.fullmatch(r"(\d+(?:\.\d+)?)\s*%", text.strip())
    if told is None:
        raise HwmodelError(f"--fail-over {text}: expected a percentage of at least 0, such as 2%")
    return float(told[1]) / 100


def _priced(path: str, plan: Plan | None) -> list[Priced]:
    """A file of estimates, or a saved trace priced here."""
    from hwmodel.ir.storage import is_trace_file
    from hwmodel.reporting.priced import Priced, read_priced

    if plan is None:
        return read_priced(path)
    if not is_trace_file(path):
        raise HwmodelError(f"{path}: --device prices saved traces (.json, .parquet); compare estimates without it")
    return [Priced.model_validate(one.document()) for one in plan.estimates(unpruned_model(path, None, None, None, []))]


def _print(found: list[Difference], on: Quantity, most: int) -> None:
    from hwmodel.reporting.diff_table import difference_table

    for one in found:
        print_wide(difference_table(one, on, most))
        for what, was, now in one.settings:
            print_line(f"{one.device}: {what} differs: {was} before, {now} after")


def _too_dear(found: list[Difference], on: Quantity, limit: float) -> bool:
    """Tell on standard error where cost grew by more than allowed."""
    from hwmodel.reporting.diff import COLUMNS
    from hwmodel.reporting.diff_table import more
    from hwmodel.reporting.units import si

    grown = [one for one in found if one.grew(on, limit)]
    unit = "J" if on == "energy" else "s"
    for one in grown:
        was, now = (getattr(side, COLUMNS[on]) for side in (one.before, one.after))
        grown_by = f"{on} grew by {more(was, now).lstrip('+')}, more than {100 * limit:g} %"
        sys.stderr.write(f"hwmodel: {one.device}: {grown_by}: {si(was, unit, 4)} before, {si(now, unit, 4)} now\n")
    return bool(grown)
