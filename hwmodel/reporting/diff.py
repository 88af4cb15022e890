"""Two prices of the same model on the same devices: what changed, operator by operator, and whether cost grew."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import inf, isclose
from typing import Any, Literal

from hwmodel.errors import HwmodelError
from hwmodel.reporting.priced import Priced, PricedOperator

Quantity = Literal["latency", "energy"]
Change = Literal["added", "removed", "changed"]
COLUMNS = {"latency": "latency_s", "energy": "energy_j"}
SAME = 1e-9
"""Relative difference below which two numbers are the same: rounding of another numpy, no other cost."""
_MUST_AGREE = ("model", "device", "batch", "energy_scope")
_MAY_DIFFER = ("mode", "dtype", "fidelity", "versions")


@dataclass(frozen=True, kw_only=True)
class Row:
    """One operator whose cost changed; zeros on the side where it is not there.

    ``bound_before`` and ``bound_after`` name the limiting resource, "" where the operator is not there.
    """

    name: str
    change: Change
    latency_s_before: float
    latency_s_after: float
    energy_j_before: float
    energy_j_after: float
    bound_before: str
    bound_after: str

    def growth(self, on: Quantity) -> float:
        """Seconds or joules more than before."""
        column = COLUMNS[on]
        return float(getattr(self, f"{column}_after") - getattr(self, f"{column}_before"))


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Two estimates on one device.

    Parameters
    ----------
    before, after : the estimates
    rows : operators whose cost changed, largest change of the quantity asked for first
    settings : (what, before, after) of what else differs: mode, number format, fidelity, versions
    """

    before: Priced
    after: Priced
    rows: tuple[Row, ...]
    settings: tuple[tuple[str, str, str], ...]

    @property
    def device(self) -> str:
        """The device both were priced on."""
        return self.before.device

    def growth(self, on: Quantity) -> float:
        """Growth of the total over what it was: 0.02 is two percent more; infinite where nothing became something."""
        column = COLUMNS[on]
        was, now = (float(getattr(one, column)) for one in (self.before, self.after))
        if was == 0:
            return inf if now > 0 else 0.0
        return now / was - 1

    def grew(self, on: Quantity, limit: float) -> bool:
        """Whether the total grew by more than ``limit``, a fraction of what it was."""
        return self.growth(on) > limit + SAME

    def document(self, on: Quantity) -> dict[str, Any]:
        """Everything as plain JSON values; a growth from nothing is null."""
        totals = {
            f"{column}_{when}": getattr(one, column)
            for column in COLUMNS.values()
            for when, one in (("before", self.before), ("after", self.after))
        }
        growth = {f"{quantity}_growth": _finite(self.growth(quantity)) for quantity in ("latency", "energy")}
        place = {name: getattr(self.after, name) for name in ("model", "device", "mode", "batch", "dtype", "energy_scope")}
        settings = [dict(zip(("what", "before", "after"), one, strict=True)) for one in self.settings]
        return {**place, **totals, **growth, "sorted_by": on, "settings": settings, "operators": [asdict(row) for row in self.rows]}


def _finite(value: float) -> float | None:
    return None if value == inf else value


def differences(before: Sequence[Priced], after: Sequence[Priced], *, on: Quantity = "latency") -> list[Difference]:
    """Compare estimates one by one, in the order of the devices.

    Raises
    ------
    HwmodelError
        Estimates of different models, devices, batches or energy scopes: their costs say nothing about each other.
    """
    devices = [[one.device for one in side] for side in (before, after)]
    if devices[0] != devices[1]:
        told = " and ".join(", ".join(side) or "none" for side in devices)
        raise HwmodelError(f"the two files are priced on different devices ({told}); price both on the same ones")
    return [_difference(one, other, on) for one, other in zip(before, after, strict=True)]


def _difference(before: Priced, after: Priced, on: Quantity) -> Difference:
    for what in _MUST_AGREE:
        was, now = getattr(before, what), getattr(after, what)
        if was != now:
            told = f"{what.replace('_', ' ')} {was} and {now}"
            raise HwmodelError(f"the two estimates do not compare: {told}; price the same {what.replace('_', ' ')} twice")
    rows = sorted(_rows(before, after), key=lambda row: -abs(row.growth(on)))
    settings = [one for what in _MAY_DIFFER for one in _settings(what, getattr(before, what), getattr(after, what))]
    return Difference(before=before, after=after, rows=tuple(rows), settings=tuple(settings))


def _settings(what: str, was: Any, now: Any) -> list[tuple[str, str, str]]:
    """What differs; of a table, entry by entry."""
    if isinstance(was, dict):
        names = dict.fromkeys([*was, *now])
        return [
            (f"{what} {name}", was.get(name, "none"), now.get(name, "none")) for name in names if was.get(name) != now.get(name)
        ]
    return [] if was == now else [(what, str(was), str(now))]


def _rows(before: Priced, after: Priced) -> list[Row]:
    was, now = ({row.name: row for row in one.operators} for one in (before, after))
    found = [_row(name, was.get(name), now.get(name)) for name in dict.fromkeys([*was, *now])]
    return [row for row in found if row.change != "changed" or not _same(row)]


def _row(name: str, was: PricedOperator | None, now: PricedOperator | None) -> Row:
    return Row(
        name=name,
        change="added" if was is None else "removed" if now is None else "changed",
        latency_s_before=was.latency_s if was else 0.0,
        latency_s_after=now.latency_s if now else 0.0,
        energy_j_before=was.energy_j if was else 0.0,
        energy_j_after=now.energy_j if now else 0.0,
        bound_before=was.bound if was else "",
        bound_after=now.bound if now else "",
    )


def _same(row: Row) -> bool:
    return isclose(row.latency_s_before, row.latency_s_after, rel_tol=SAME) and isclose(
        row.energy_j_before, row.energy_j_after, rel_tol=SAME
    )
