"""The figures that compare variants machine by machine: numbers in, a matplotlib figure out.

Every function takes the machines and returns a Figure in the light colours of :mod:`hwmodel.reporting.style`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
from typing import TYPE_CHECKING

from hwmodel.reporting.breakdown import ROLES, Account, account, by_role
from hwmodel.reporting.figure_parts import bar_height, bar_rows, label_rows, legend, note, scale, segment, short
from hwmodel.reporting.style import colour, device_token, new_figure, role_token, themed
from hwmodel.reporting.units import percent, ratio, si
from hwmodel.reporting.variants import Case, Machine, quotient

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_LOG_SPAN = 25.0
"""Largest over smallest bar beyond which an axis is logarithmic."""


@dataclass(frozen=True)
class Quantity:
    """What a panel of bars shows: the name, the summary's field, the unit, and how a gain is called."""

    name: str
    column: str
    unit: str
    gain: str

    def of(self, case: Case) -> float:
        return float(case.summary[self.column])


LATENCY = Quantity("latency", "latency_s", "s", "faster")


ENERGY = Quantity("energy", "energy_j", "J", "less")


@themed
def latency_and_energy(machines: Sequence[Machine]) -> Figure:
    """Latency and energy of every variant, grouped by machine; whiskers where an error was measured."""
    figure = new_figure(bar_height(machines))
    left, right = figure.subplots(1, 2, sharey=True)
    _quantity_panel(left, machines, LATENCY)
    _quantity_panel(right, machines, ENERGY)
    label_rows(left, machines)
    right.tick_params(labelleft=False)
    right.grid(visible=True, axis="x")
    right.spines["left"].set_visible(False)
    return figure


def _quantity_panel(axes: Axes, machines: Sequence[Machine], quantity: Quantity) -> None:
    values = [quantity.of(case) for _, _, case in bar_rows(machines)]
    positive = [value for value in values if isfinite(value) and value > 0]
    log = bool(positive) and max(positive) / min(positive) > _LOG_SPAN
    factor = scale(axes, values, quantity.unit, f"{quantity.name} per batch", log=log)
    if log:
        axes.set_xscale("log")
        axes.set_xlim(min(positive) * factor / 4, max(positive) * factor * 20)
        _plain_log_ticks(axes)
    else:
        axes.set_xlim(0, max(positive, default=1.0) * factor * 1.6)
    for height, machine, case in bar_rows(machines):
        _quantity_bar(axes, (height, factor), machine, case, quantity)


def _plain_log_ticks(axes: Axes) -> None:
    from matplotlib.ticker import FuncFormatter, NullFormatter

    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _quantity_bar(axes: Axes, at: tuple[float, float], machine: Machine, case: Case, quantity: Quantity) -> None:
    """One bar with its value behind it; ``at`` is (height, factor of the axis). The baseline is hollow, others are solid."""
    (height, factor), value = at, quantity.of(case)
    if not (isfinite(value) and value > 0):
        text = "none" if value == 0 else "not modelled in this mode"
        axes.annotate(text, (0.01, height), xycoords=("axes fraction", "data"), va="center", color=colour("muted"))
        return
    tone, base = colour(device_token(machine.index)), case is machine.baseline
    face = colour("paper") if base and machine.pairs else tone
    axes.barh(height, value * factor, 0.74, facecolor=face, edgecolor=tone, linewidth=1.3)
    band = case.estimate.error_band(quantity.name)
    reach = value
    if band is not None:
        low, reach = value * max(1 - band.p90, 0.05), value * (1 + band.p90)
        axes.plot([low * factor, reach * factor], [height, height], color=colour("ink"), linewidth=1.1, marker="|", markersize=5)
    gain = quotient(quantity.of(machine.reference(case)), value)
    text = si(value, quantity.unit) + ("" if base else f" · {ratio(gain)} {quantity.gain}")
    note(axes, reach * factor, height, text)


@themed
def stacked_by_role(machines: Sequence[Machine]) -> Figure:
    """Latency and energy of every variant stacked by what the operators do; one scale per machine, for they differ by orders."""
    count, variants = len(machines), len(machines[0].cases)
    figure = new_figure(count * (0.30 * variants + 0.62) + 0.55)
    panels = figure.subplots(count, 2, squeeze=False)
    for (left, right), machine in zip(panels, machines, strict=True):
        role_panel(left, machine.cases, LATENCY)
        role_panel(right, machine.cases, ENERGY)
        left.set_title(f"{machine.label} ({machine.baseline.terms})")
        right.tick_params(labelleft=False)
    cases = [case for machine in machines for case in machine.cases]
    parts = [by_role(case, what.column) for case in cases for what in (LATENCY, ENERGY)]
    present = {role for found in parts for role, part in found.items() if part > 0}
    legend(figure, [(ROLES[role], role_token(role)) for role in ROLES if role in present])
    return figure


def role_panel(axes: Axes, cases: Sequence[Case], quantity: Quantity) -> None:
    """One bar per case, stacked by role, its total behind it."""
    totals = [quantity.of(case) for case in cases]
    longest = max([total for total in totals if isfinite(total)], default=0.0)
    factor = scale(axes, [longest], quantity.unit, quantity.name)
    for height, (case, total) in enumerate(zip(reversed(cases), reversed(totals), strict=True)):
        if not isfinite(total):
            axes.text(0, height, " not modelled in this mode", va="center", color=colour("muted"))
            continue
        start = 0.0
        for role, part in by_role(case, quantity.column).items():
            room = part / longest if longest else 0.0
            segment(axes, height, (start, part * factor), role_token(role), role if room > _ROOM.get(role, 1.0) else "")
            start += part * factor
        note(axes, total * factor, height, si(total, quantity.unit))
    axes.set_yticks(range(len(cases)), [short(case.variant) for case in reversed(cases)])
    axes.set_xlim(0, longest * factor * 1.2 or 1.0)
    axes.grid(visible=True, axis="x")
    axes.spines["left"].set_visible(False)


_ROOM = {"attention": 0.17, "proj": 0.08, "fc1": 0.07, "fc2": 0.07, "qkv": 0.07}
"""Share of the axis that a segment needs before its name fits inside; the others are named by the legend."""


LOSSES = {
    "kept": "work that is kept",
    "untouched": "operators the recipe does not prune",
    "coarse": "pruned, but executed all the same",
    "rest": "launches, waiting, memory, overhead",
}
"""Parts of an :class:`Account` with what a reader calls them."""


@themed
def where_the_gain_went(machines: Sequence[Machine]) -> Figure:
    """Latency of each pruned variant in percent of the baseline's, split by why it did not shrink further."""
    figure = new_figure(bar_height(machines, 0.3, first=1) + 0.3)
    axes = figure.subplots()
    ends = [100.0]
    for height, machine, case in bar_rows(machines, first=1):
        reference = machine.reference(case)
        _loss_bar(axes, height, account(case, reference), reference.latency_s)
        ends.append(100 * (quotient(case.latency_s, reference.latency_s) or 0.0))
    label_rows(axes, machines, first=1)
    axes.set_xlim(0, max(ends) * 1.3)
    axes.axvline(100, color=colour("muted"), linewidth=0.9, linestyle=(0, (4, 3)), zorder=0.6)
    axes.set_xlabel(f"latency (% of {short(machines[0].baseline.variant)} on the same machine)")
    legend(figure, [(text, token) for token, text in LOSSES.items()], columns=2)
    return figure


def _loss_bar(axes: Axes, height: float, parts: Account, baseline_s: float) -> None:
    """Parts end to end; a negative rest is taken off the end, so the bar always ends at the latency."""
    if baseline_s <= 0:
        return
    sizes = [parts.kept_s, parts.untouched_s, parts.coarse_s, parts.rest_s]
    start, end = 0.0, 100 * parts.latency_s / baseline_s
    for token, size in zip(LOSSES, sizes, strict=True):
        width = min(100 * size / baseline_s, end - start)
        segment(axes, height, (start, width), token, percent(width / 100) if width > 6 else "")
        start += max(width, 0.0)
    gain = quotient(baseline_s, parts.latency_s)
    note(axes, end, height, f"{percent(end / 100)} · {ratio(gain)} faster")


@themed
def effective_work(machines: Sequence[Machine]) -> Figure:
    """MACs that each machine executes, beside the dense model's and those that involve a kept weight."""
    figure = new_figure(bar_height(machines, 0.27))
    axes = figure.subplots()
    traces = [case.trace for case in machines[0].cases]
    largest = max([float(traces[0].macs), *(float(case.summary["executed_macs"]) for m in machines for case in m.cases)])
    factor = scale(axes, [largest], "MAC", "multiply-accumulates per batch")
    for height, machine, case in bar_rows(machines):
        _work_bar(axes, height, machine, case, factor)
    dense = traces[0].macs * factor
    axes.axvline(dense, color=colour("muted"), linewidth=0.9, linestyle=(0, (4, 3)))
    axes.annotate(
        "dense model", (dense, 0.1), xytext=(-4, 0), textcoords="offset points", va="top", ha="right", color=colour("muted")
    )
    axes.set_xlim(0, largest * factor * 1.3)
    label_rows(axes, machines)
    return figure


def _work_bar(axes: Axes, height: float, machine: Machine, case: Case, factor: float) -> None:
    """Executed MACs: solid up to the kept ones, pale beyond them."""
    tone = colour(device_token(machine.index))
    executed, kept = float(case.summary["executed_macs"]), case.trace.kept_macs
    axes.barh(height, executed * factor, 0.74, facecolor="none", edgecolor=tone, linewidth=1.0, hatch="////")
    axes.barh(height, min(executed, kept) * factor, 0.74, facecolor=tone, edgecolor=tone, linewidth=1.0)
    more = quotient(executed, kept)
    note(axes, executed * factor, height, si(executed, "MAC") + (f" · {ratio(more)} the kept" if more and more > 1.0005 else ""))
