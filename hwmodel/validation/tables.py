"""Comparisons and calibrations as tables for the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich import box
from rich.table import Table
from rich.text import Text

from hwmodel.validation.statistics import Errors

if TYPE_CHECKING:
    from hwmodel.validation.calibration.calibrate import Calibration, Side
    from hwmodel.validation.comparison import Comparison
    from hwmodel.validation.coverage import Coverage
    from hwmodel.validation.cross_checks import CrossCheck
    from hwmodel.validation.reconcile import Reconciliation

NOTHING = "-"


def _table(title: str, columns: Sequence[str], left: int) -> Table:
    """An empty table whose first ``left`` columns are text and whose others are numbers."""
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for place, name in enumerate(columns):
        table.add_column(name, justify="left" if place < left else "right", overflow="fold")
    return table


def _add(table: Table, *texts: str) -> None:
    table.add_row(*(Text(text) for text in texts))


def _percent(value: float) -> str:
    return f"{value * 100:.1f} %"


def _signed(value: float) -> str:
    return f"{value * 100:+.1f} %"


def _rank(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.3f}"


def _two(errors: Errors | None) -> tuple[str, str]:
    return (NOTHING, NOTHING) if errors is None else (_percent(errors.median), _percent(errors.p90))


def groups_table(found: Comparison) -> Table:
    """One row per group: the model's errors, then the roofline's and the two-parameter baseline's."""
    columns = (
        "device", "dtype", "operator", "protocol", "quantity", "split", "rows", "median", "p90", "max", "bias", "rank",
        "roofline median", "p90", "baseline median", "p90",
    )  # fmt: skip
    table = _table("Measured operators: |predicted / measured - 1|", columns, left=6)
    for group in found.groups:
        errors = group.errors
        sizes = (_percent(errors.median), _percent(errors.p90), _percent(errors.max))
        figures = (*sizes, _signed(errors.bias), _rank(errors.spearman))
        names = (group.device, group.dtype, group.operator, group.protocol, group.quantity, group.split, str(errors.rows))
        _add(table, *names, *figures, *_two(group.roofline), *_two(group.baseline))
    return table


def scores_table(found: Comparison) -> Table:
    """The stored lines of the scoreboard, whole models among them."""
    columns = ("device", "mode", "dtypes", "quantity", "against", "rows", "median", "mean", "p90", "max", "bias", "rank")
    table = _table("Scoreboard as stored beside the cards (recomputed by analysis/scoreboard.py)", columns, left=5)
    for card, score in found.scores:
        sizes = (_percent(value) for value in (score.median, score.mean, score.p90, score.max))
        names = (card, score.mode, " ".join(score.dtypes), score.quantity, score.against)
        _add(table, *names, str(score.rows), *sizes, _signed(score.bias), _rank(score.rank))
    return table


def cross_checks_table(found: Sequence[CrossCheck]) -> Table:
    """Errors with the constants that ship beside those with constants refitted on other rows alone."""
    columns = ("question", "fitted on", "scored on", "rows", "shipped median", "mean", "p90", "refitted median", "mean", "p90")
    table = _table("Cross-checks: constants refitted elsewhere, then scored", columns, left=3)
    for one in found:
        sizes = [_percent(size) for side in (one.shipped, one.refitted) for size in (side.median, side.mean, side.p90)]
        _add(table, one.question, one.fitted_on, one.scored_on, str(one.shipped.rows), *sizes)
    return table


def left_out_table(found: Comparison) -> Table:
    """Rows that are no single operators, and why: nothing is missing without a word."""
    table = _table("Rows not predicted here", ("device", "file", "reason", "rows"), left=3)
    for one in found.left_out:
        _add(table, one.device, one.file, one.reason, str(one.rows))
    return table


def fields_table(found: Calibration) -> Table:
    """What moved: before, after, and the bounds; a mark where a bound was reached."""
    table = _table(
        f"Fitted numbers of {found.card.name}, mode {found.mode}", ("field", "before", "after", "least", "greatest"), left=1
    )
    for one in found.free:
        value = found.values[one.path]
        mark = " (at its bound)" if value in (one.low, one.high) else ""
        _add(table, one.path, f"{one.start:.4g}", f"{value:.4g}{mark}", f"{one.low:.4g}", f"{one.high:.4g}")
    return table


def sides_table(found: Calibration) -> Table:
    """Errors before and after on the fitted rows, the held-out rows, and whole models."""
    columns = ("rows", "card", "count", "p25", "median", "p75", "p90", "max", "mean", "bias", "rank", "within 10 %")
    table = _table("Errors of latency: |predicted / measured - 1|", columns, left=2)
    sides: list[tuple[str, Side | None]] = [
        ("fitted", found.fit), ("held out", found.held_out), ("whole models, never fitted", found.models),
    ]  # fmt: skip
    for name, side in sides:
        if side is None:
            continue
        for card, errors, spread in (("before", side.before, side.spread_before), ("after", side.after, side.spread_after)):
            quantiles = spread.quantiles
            sizes = (quantiles["p25"], errors.median, quantiles["p75"], errors.p90, errors.max, errors.mean)
            last = (_signed(errors.bias), _rank(errors.spearman), _percent(spread.within["10%"]))
            _add(table, name, card, str(errors.rows), *map(_percent, sizes), *last)
    return table


def coverage_table(found: Coverage) -> Table:
    """One row per family of timm: names, extracted ones, the smallest and largest trace, and why names fail."""
    table = _table("Models of timm that extract", ("family", "names", "extracted", "operators", "GMAC", "failed"), left=1)
    for family in found.families:
        operators = _range([str(one.operators) for one in sorted(family.extracted, key=lambda one: one.operators)])
        gmacs = _range([f"{one.macs / 1e9:.3g}" for one in sorted(family.extracted, key=lambda one: one.macs)])
        failed = "\n".join(f"{one.name}: {one.reason}" for one in family.failed) or NOTHING
        _add(table, family.name, str(len(family.models)), str(len(family.extracted)), operators, gmacs, failed)
    return table


def _range(texts: Sequence[str]) -> str:
    """First and last of sorted figures."""
    if not texts:
        return NOTHING
    return texts[0] if texts[0] == texts[-1] else f"{texts[0]} to {texts[-1]}"


def counts_table(found: Reconciliation) -> Table:
    """One row per kind of operator: our MACs, then each counter's."""
    columns = ("MACs", "hwmodel", *(f"{one.counter} {one.version}" for one in found.columns))
    table = _table(f"{found.trace.model}, batch {found.trace.batch}: MACs as each counter sees them", columns, left=1)
    for kind, macs in found.macs.items():
        _add(table, kind, f"{macs:,}", *(f"{one.macs[kind]:,}" for one in found.columns))
    _add(table, "all", f"{found.trace.macs:,}", *(f"{one.total:,}" for one in found.columns))
    return table


def differences_table(found: Reconciliation) -> Table:
    """One row per counter, kind and reason; a counter that failed has its own words."""
    table = _table("Differences from hwmodel", ("counter", "kind", "reason", "modules", "MACs"), left=3)
    for column in found.columns:
        for one in column.differences:
            _add(table, column.counter, one.kind, one.reason, str(one.cells), f"{one.macs:+,}")
    for counter, words in found.failed.items():
        _add(table, counter, NOTHING, f"failed: {words}", NOTHING, NOTHING)
    return table
