"""What changed between two estimates, for the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hwmodel.reporting.diff import Difference, Quantity, Row
from hwmodel.reporting.tables import new_table, plain_row
from hwmodel.reporting.units import percent, si

if TYPE_CHECKING:
    from rich.table import Table

_HEADS = ("operator", "change", "limited by", "latency before", "after", "more", "energy before", "after", "more")


def difference_table(found: Difference, on: Quantity, most: int) -> Table:
    """The ``most`` largest changes, the sum of the others, and the totals."""
    after = found.after
    title = f"{after.model} on {after.device}, {after.mode}, {after.dtype}, batch {after.batch}: what changed, by {on}"
    table = new_table(title, _HEADS, left=3)
    for row in found.rows[:most]:
        plain_row(table, row.name, row.change, _bound(row), *_cells(_sides(row)))
    rest = found.rows[most:]
    if rest:
        sums = [sum(column) for column in zip(*(_sides(row) for row in rest), strict=True)]
        plain_row(table, f"{len(rest)} more", "", "", *_cells(sums))
    table.add_section()
    same = "" if found.rows else "nothing changed"
    totals = [found.before.latency_s, found.after.latency_s, found.before.energy_j, found.after.energy_j]
    plain_row(table, "all operators", same, "", *_cells(totals))
    return table


def _bound(row: Row) -> str:
    return " -> ".join(dict.fromkeys(name for name in (row.bound_before, row.bound_after) if name))


def _sides(row: Row) -> list[float]:
    return [row.latency_s_before, row.latency_s_after, row.energy_j_before, row.energy_j_after]


def _cells(sides: list[float]) -> list[str]:
    latency_before, latency_after, energy_before, energy_after = sides
    return [
        *(si(latency_before, "s", 4), si(latency_after, "s", 4), more(latency_before, latency_after)),
        *(si(energy_before, "J", 4), si(energy_after, "J", 4), more(energy_before, energy_after)),
    ]


def more(before: float, after: float) -> str:
    """Growth with its sign: "+3.1 %", "-40.0 %", "new", "gone"."""
    if before == 0 or after == 0:
        return "new" if after > 0 else "gone" if before > 0 else ""
    growth = after / before - 1
    return ("-" if growth < 0 else "+" if growth > 0 else "") + percent(abs(growth), 1)
