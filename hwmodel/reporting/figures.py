"""The figures of a report: numbers in, a matplotlib figure out. No pyplot, no global state, nothing to close.

Every function takes the machines (or a trace) and returns a Figure in the light colours of :mod:`hwmodel.reporting.style`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import ceil, isfinite
from typing import TYPE_CHECKING

import numpy as np

from hwmodel.reporting.breakdown import (
    ROLES,
    Account,
    account,
    by_encoder_block,
    executed_share,
    group_of,
    kept_weights,
    latency_by_role,
    layers,
    roofline_points,
)
from hwmodel.reporting.ceilings import Ceilings, ceilings_of
from hwmodel.reporting.style import bare, colour, device_token, new_figure, role_token, themed
from hwmodel.reporting.units import percent, prefix_of, ratio, si
from hwmodel.reporting.variants import Case, Machine, quotient, speed_up

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from hwmodel.ir.trace import Trace

_LOG_SPAN = 25.0
"""Largest over smallest bar beyond which an axis is logarithmic."""


_LABEL = 26
"""Characters of a label beside a plot."""


def _rows(machines: Sequence[Machine], first: int = 0) -> Iterator[tuple[float, Machine, Case]]:
    """Heights of grouped bars from the top: one per variant from the ``first``, a gap and a heading between machines."""
    height = 0.0
    for machine in machines:
        height -= 0.35
        for case in machine.cases[first:]:
            height -= 1.0
            yield height, machine, case
        height -= 0.55


def _bar_height(machines: Sequence[Machine], per_row: float = 0.26, first: int = 0) -> float:
    rows = sum(len(machine.cases) - first + 0.9 for machine in machines)
    return max(1.5, per_row * rows + 0.75)


def _short(label: str) -> str:
    """A label cut to what fits beside a plot."""
    return label if len(label) <= _LABEL else f"{label[: _LABEL - 1]}…"


def _label_rows(axes: Axes, machines: Sequence[Machine], first: int = 0) -> None:
    """Variants as tick labels and machines as headings over their bars."""
    rows = list(_rows(machines, first))
    axes.set_yticks([height for height, _, _ in rows], [_short(case.variant) for _, _, case in rows])
    axes.set_ylim(rows[-1][0] - 0.75, 0.15)
    axes.spines["left"].set_visible(False)
    axes.grid(visible=True, axis="x")
    for height, machine, case in rows:
        if case is machine.cases[first]:
            _heading(axes, height + 0.72, machine, case)


def _heading(axes: Axes, height: float, machine: Machine, case: Case) -> None:
    axes.annotate(
        f"{machine.label} ({case.terms})", (0, height), xycoords=("axes fraction", "data"), va="center", ha="left", weight="bold"
    )


def _scale(axes: Axes, values: Sequence[float], unit: str, what: str, *, axis: str = "x", log: bool = False) -> float:
    """Label an axis in a unit people read and return the factor that takes SI values there."""
    finite = [value for value in values if isfinite(value) and value > 0]
    worth, prefix = prefix_of(max(finite, default=1.0))
    label = f"{what} ({prefix}{unit}{', log scale' if log else ''})"
    (axes.set_xlabel if axis == "x" else axes.set_ylabel)(label)
    return 1.0 / worth


@dataclass(frozen=True)
class _Quantity:
    """What a panel of bars shows: the name, the summary's field, the unit, and how a gain is called."""

    name: str
    column: str
    unit: str
    gain: str

    def of(self, case: Case) -> float:
        return float(case.summary[self.column])


_LATENCY = _Quantity("latency", "latency_s", "s", "faster")
_ENERGY = _Quantity("energy", "energy_j", "J", "less")


@themed
def latency_and_energy(machines: Sequence[Machine]) -> Figure:
    """Latency and energy of every variant, grouped by machine; whiskers where an error was measured."""
    figure = new_figure(_bar_height(machines))
    left, right = figure.subplots(1, 2, sharey=True)
    _quantity_panel(left, machines, _LATENCY)
    _quantity_panel(right, machines, _ENERGY)
    _label_rows(left, machines)
    right.tick_params(labelleft=False)
    right.grid(visible=True, axis="x")
    right.spines["left"].set_visible(False)
    return figure


def _quantity_panel(axes: Axes, machines: Sequence[Machine], quantity: _Quantity) -> None:
    values = [quantity.of(case) for _, _, case in _rows(machines)]
    positive = [value for value in values if isfinite(value) and value > 0]
    log = bool(positive) and max(positive) / min(positive) > _LOG_SPAN
    factor = _scale(axes, values, quantity.unit, f"{quantity.name} per batch", log=log)
    if log:
        axes.set_xscale("log")
        axes.set_xlim(min(positive) * factor / 4, max(positive) * factor * 20)
        _plain_log_ticks(axes)
    else:
        axes.set_xlim(0, max(positive, default=1.0) * factor * 1.45)
    for height, machine, case in _rows(machines):
        _quantity_bar(axes, (height, factor), machine, case, quantity)


def _plain_log_ticks(axes: Axes) -> None:
    from matplotlib.ticker import FuncFormatter, NullFormatter

    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _quantity_bar(axes: Axes, at: tuple[float, float], machine: Machine, case: Case, quantity: _Quantity) -> None:
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
    _note(axes, reach * factor, height, text)


def _note(axes: Axes, x: float, y: float, text: str) -> None:
    """Text to the right of a point, on a patch of the page's colour so that lines do not cross it."""
    back = {"facecolor": colour("paper"), "edgecolor": "none", "pad": 0.8}
    axes.annotate(text, (x, y), xytext=(5, 0), textcoords="offset points", va="center", color=colour("ink"), bbox=back)


def spread(places: Sequence[float], gap: float, top: float) -> list[float]:
    """The places moved to lie ``gap`` apart in the order they have, none above ``top``."""
    moved = list(places)
    order = sorted(range(len(places)), key=lambda index: places[index])
    for lower, upper in pairwise(order):
        moved[upper] = max(moved[upper], moved[lower] + gap)
    ceiling = top
    for index in reversed(order):
        moved[index] = min(moved[index], ceiling)
        ceiling = moved[index] - gap
    return moved


@themed
def latency_by_role_stack(machines: Sequence[Machine]) -> Figure:
    """Latency of every variant stacked by what the operators do; one scale per machine, for they differ by orders."""
    count = len(machines)
    variants = len(machines[0].cases)
    figure = new_figure(count * (0.30 * variants + 0.62) + 0.55)
    panels = figure.subplots(count, 1, squeeze=False)[:, 0]
    for axes, machine in zip(panels, machines, strict=True):
        _role_panel(axes, machine)
    present = {role for machine in machines for case in machine.cases for role, part in latency_by_role(case).items() if part > 0}
    _legend(figure, [(ROLES[role], role_token(role)) for role in ROLES if role in present])
    return figure


def _role_panel(axes: Axes, machine: Machine) -> None:
    longest = max(case.latency_s for case in machine.cases)
    factor = _scale(axes, [longest], "s", "latency")
    for height, case in enumerate(reversed(machine.cases)):
        _stack(axes, height, [(role, part * factor) for role, part in latency_by_role(case).items()], longest * factor)
        gain = speed_up(case, machine.reference(case))
        text = si(case.latency_s, "s") + ("" if case is machine.baseline else f" · {ratio(gain)} faster")
        _note(axes, case.latency_s * factor, height, text)
    axes.set_yticks(range(len(machine.cases)), [_short(case.variant) for case in reversed(machine.cases)])
    axes.set_xlim(0, longest * factor * 1.17)
    axes.set_title(f"{machine.label} ({machine.baseline.terms})")
    axes.grid(visible=True, axis="x")
    axes.spines["left"].set_visible(False)


def _stack(axes: Axes, height: float, parts: Sequence[tuple[str, float]], whole: float) -> None:
    start = 0.0
    for role, part in parts:
        room = part / whole if whole else 0.0
        _segment(axes, height, (start, part), role_token(role), _SHORT.get(role, role) if room > _ROOM.get(role, 0.06) else "")
        start += part


_SHORT = {"ends": "emb., head", "products": "products", "vector": "norms, adds"}
_ROOM = {
    "attention": 0.08,
    "ends": 0.09,
    "products": 0.08,
    "vector": 0.1,
    "waiting": 0.07,
    "proj": 0.035,
    "fc1": 0.03,
    "fc2": 0.03,
    "qkv": 0.03,
}
"""Share of the axis that a segment needs before its name fits inside."""


def _segment(axes: Axes, height: float, span: tuple[float, float], token: str, text: str) -> None:
    """One part of a stacked bar from its start, so wide; named inside where there is a text."""
    start, width = span
    if width <= 0:
        return
    axes.barh(height, width, 0.78, left=start, facecolor=colour(token), edgecolor=colour("paper"), linewidth=0.8)
    if text:
        axes.text(start + width / 2, height, text, ha="center", va="center", color=colour(f"on-{token}"), fontsize=7.5)


def _legend(figure: Figure, entries: Sequence[tuple[str, str]], columns: int = 9) -> None:
    from matplotlib.patches import Patch

    handles = [Patch(facecolor=colour(token), label=label) for label, token in entries]
    figure.legend(
        handles=handles, loc="outside upper left", ncols=min(columns, len(handles)), handlelength=1.0, handleheight=1.0,
        columnspacing=1.2, handletextpad=0.5, borderaxespad=0.2,
    )  # fmt: skip


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
    figure = new_figure(_bar_height(machines, 0.3, first=1) + 0.3)
    axes = figure.subplots()
    ends = [100.0]
    for height, machine, case in _rows(machines, first=1):
        reference = machine.reference(case)
        _loss_bar(axes, height, account(case, reference), reference.latency_s)
        ends.append(100 * (quotient(case.latency_s, reference.latency_s) or 0.0))
    _label_rows(axes, machines, first=1)
    axes.set_xlim(0, max(ends) * 1.2)
    axes.axvline(100, color=colour("muted"), linewidth=0.9, linestyle=(0, (4, 3)), zorder=0.6)
    axes.set_xlabel(f"latency (% of {_short(machines[0].baseline.variant)} on the same machine)")
    _legend(figure, [(text, token) for token, text in LOSSES.items()])
    return figure


def _loss_bar(axes: Axes, height: float, parts: Account, baseline_s: float) -> None:
    """Parts end to end; a negative rest is taken off the end, so the bar always ends at the latency."""
    if baseline_s <= 0:
        return
    sizes = [parts.kept_s, parts.untouched_s, parts.coarse_s, parts.rest_s]
    start, end = 0.0, 100 * parts.latency_s / baseline_s
    for token, size in zip(LOSSES, sizes, strict=True):
        width = min(100 * size / baseline_s, end - start)
        _segment(axes, height, (start, width), token, percent(width / 100) if width > 6 else "")
        start += max(width, 0.0)
    gain = quotient(baseline_s, parts.latency_s)
    _note(axes, end, height, f"{percent(end / 100)} · {ratio(gain)} faster")


@themed
def rooflines(machines: Sequence[Machine]) -> Figure:
    """Achieved MAC/s of every kernel against MACs per byte of off-chip traffic, one panel per machine."""
    columns = min(2, len(machines))
    rows = ceil(len(machines) / columns)
    figure = new_figure(3.7 * rows + 0.4)
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes, machine in zip(panels, machines, strict=False):
        _roofline_panel(axes, machine)
    for axes in panels[len(machines) :]:
        axes.set_axis_off()
    roles = {group_of(operator) for machine in machines for operator in machine.baseline.trace.operators if operator.macs}
    _legend(figure, [(ROLES[role], role_token(role)) for role in ROLES if role in roles])
    return figure


def _roofline_panel(axes: Axes, machine: Machine) -> None:
    clouds = [roofline_points(case) for case in machine.cases]
    axes.set_title(f"{machine.label} ({machine.baseline.terms})")
    drawn = [cloud[np.isfinite(cloud["macs_per_byte"])] for cloud in clouds]
    if not any(len(cloud) for cloud in drawn):
        bare(axes)
        axes.set_xticks([])
        axes.set_yticks([])
        axes.text(0.5, 0.5, "this mode counts no off-chip traffic", transform=axes.transAxes, ha="center", color=colour("muted"))
        return
    axes.set_xscale("log")
    axes.set_yscale("log")
    _limits(axes, drawn, ceilings_of(machine.baseline))
    for order, cloud in enumerate(drawn):
        _points(axes, cloud, hollow=order == 0 and len(drawn) > 1)
    axes.grid(visible=True, which="major", axis="both")
    axes.set_xlabel("executed MACs per byte of off-chip traffic (log scale)")


def _points(axes: Axes, cloud: pd.DataFrame, *, hollow: bool) -> None:
    """Markers whose area is the share of the latency: hollow for the baseline, filled for pruned variants."""
    for role, points in cloud.groupby("role", sort=False):
        tone = colour(role_token(str(role)))
        axes.scatter(
            points["macs_per_byte"], points["macs_per_s"], s=14 + 500 * points["share"], facecolor="none" if hollow else tone,
            edgecolor=tone, linewidth=1.2, alpha=0.9,
        )  # fmt: skip


def _limits(axes: Axes, drawn: Sequence[pd.DataFrame], ceilings: Ceilings) -> None:
    """Axis limits around the points and the peak, then the ceilings that the card states."""
    from matplotlib.ticker import FuncFormatter, NullFormatter

    x = np.concatenate([cloud["macs_per_byte"].to_numpy() for cloud in drawn])
    y = np.concatenate([cloud["macs_per_s"].to_numpy() for cloud in drawn])
    low_x, high_x = x.min() / 2.5, x.max() * 2.5
    top = max(y.max(), ceilings.macs_per_s or 0.0) * 3
    worth, prefix = prefix_of(top)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value / worth:g}"))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_ylabel(f"achieved {prefix}MAC/s (log scale)")
    axes.set_xlim(low_x, high_x)
    axes.set_ylim(y.min() / 3, top)
    _ceiling_lines(axes, low_x, high_x, ceilings)


def _ceiling_lines(axes: Axes, low: float, high: float, ceilings: Ceilings) -> None:
    peak, bandwidth = ceilings.macs_per_s, ceilings.bytes_per_s
    style = {"color": colour("muted"), "linewidth": 1.1}
    if peak:
        start = max(low, peak / bandwidth) if bandwidth else low
        axes.plot([start, high], [peak, peak], **style)  # type: ignore[arg-type]
        axes.annotate(
            f"peak {si(peak, 'MAC/s')}", (high, peak), xytext=(-3, 4), textcoords="offset points", ha="right", color=colour("muted")
        )
    if bandwidth:
        stop = min(high, peak / bandwidth) if peak else high
        axes.plot([low, stop], [low * bandwidth, stop * bandwidth], **style)  # type: ignore[arg-type]
        bottom, top = axes.get_ylim()
        begin, end = max(low, bottom / bandwidth), min(stop, top / bandwidth)
        if begin < end:
            middle = (begin * end) ** 0.5
            axes.annotate(
                f"memory {si(bandwidth, 'B/s')}", (middle, middle * bandwidth), xytext=(-6, 3), textcoords="offset points",
                ha="right", color=colour("muted"),
            )  # fmt: skip


@themed
def encoder_blocks(machines: Sequence[Machine]) -> Figure | None:
    """Latency and energy of each encoder block, one row of panels per machine; None where the trace has no blocks."""
    if by_encoder_block(machines[0].baseline).empty:
        return None
    figure = new_figure(1.75 * len(machines) + 0.2)
    panels = figure.subplots(len(machines), 2, squeeze=False)
    for (left, right), machine in zip(panels, machines, strict=True):
        _block_panel(left, machine, "latency_s", "s", "latency")
        _block_panel(right, machine, "energy_j", "J", "energy")
        left.set_title(f"{machine.label} ({machine.baseline.terms})")
    for axes in panels[-1]:
        axes.set_xlabel("encoder block")
    return figure


def _block_panel(axes: Axes, machine: Machine, column: str, unit: str, what: str) -> None:
    """One line per variant, named at its end."""
    lines = [by_encoder_block(case)[column] for case in machine.cases]
    largest = max(float(line.max()) for line in lines)
    factor = _scale(axes, [largest], unit, what, axis="y")
    top = 1.2 * factor * largest or 1.0
    tone, hollow = colour(device_token(machine.index)), len(lines) > 1
    for order, line in enumerate(lines):
        first = order == 0 and hollow
        axes.plot(
            line.index.astype(int), line * factor, color=tone, linewidth=1.5, markersize=4.5, marker=_MARKS[order % len(_MARKS)],
            markerfacecolor=colour("paper") if first else tone, linestyle=(0, (3, 2)) if first else "-",
        )  # fmt: skip
    axes.set_ylim(0, top)
    ends = spread([float(line.iloc[-1]) * factor for line in lines], 0.14 * top, top)
    for case, line, end in zip(machine.cases, lines, ends, strict=True):
        axes.annotate(
            _short(case.variant),
            (line.index[-1], end),
            xytext=(8, 0),
            textcoords="offset points",
            va="center",
            annotation_clip=False,
        )
    axes.margins(x=0.03)
    axes.grid(visible=True, axis="y")
    axes.set_xticks(lines[0].index.astype(int)[:: max(1, len(lines[0]) // 12)])


_MARKS = "os^Dvp*"


@themed
def effective_work(machines: Sequence[Machine]) -> Figure:
    """MACs that each machine executes, beside the dense model's and those that involve a kept weight."""
    figure = new_figure(_bar_height(machines, 0.27))
    axes = figure.subplots()
    traces = [case.trace for case in machines[0].cases]
    largest = max([float(traces[0].macs), *(float(case.summary["executed_macs"]) for m in machines for case in m.cases)])
    factor = _scale(axes, [largest], "MAC", "multiply-accumulates per batch")
    for height, machine, case in _rows(machines):
        _work_bar(axes, height, machine, case, factor)
    dense = traces[0].macs * factor
    axes.axvline(dense, color=colour("muted"), linewidth=0.9, linestyle=(0, (4, 3)))
    axes.annotate(
        "dense model", (dense, 0.1), xytext=(-4, 0), textcoords="offset points", va="top", ha="right", color=colour("muted")
    )
    axes.set_xlim(0, largest * factor * 1.3)
    _label_rows(axes, machines)
    return figure


def _work_bar(axes: Axes, height: float, machine: Machine, case: Case, factor: float) -> None:
    """Executed MACs: solid up to the kept ones, pale beyond them."""
    tone = colour(device_token(machine.index))
    executed, kept = float(case.summary["executed_macs"]), case.trace.kept_macs
    axes.barh(height, executed * factor, 0.74, facecolor="none", edgecolor=tone, linewidth=1.0, hatch="////")
    axes.barh(height, min(executed, kept) * factor, 0.74, facecolor=tone, edgecolor=tone, linewidth=1.0)
    more = quotient(executed, kept)
    _note(axes, executed * factor, height, si(executed, "MAC") + (f" · {ratio(more)} the kept" if more and more > 1.0005 else ""))


@themed
def kept_density(trace: Trace, cases: Sequence[tuple[Machine, Case]]) -> Figure:
    """Kept weights of each layer in execution order (the LSP paper's Figure 3); marks: what each machine executes."""
    operators = layers(trace)
    figure = new_figure(2.9)
    axes = figure.subplots()
    places = np.arange(len(operators))
    for role in dict.fromkeys(group_of(operator) for operator in operators):
        mine = [place for place, operator in enumerate(operators) if group_of(operator) == role]
        axes.bar(mine, [100 * kept_weights(operators[place]) for place in mine], 0.72, color=colour(role_token(role)))
    names = [operator.name for operator in operators]
    shares = [100 * np.array(executed_share(case, machine.reference(case), names)) for machine, case in cases]
    for order, ((machine, _), share) in enumerate(zip(cases, shares, strict=True)):
        tone, beside = colour(device_token(machine.index)), 0.8 * ((order + 0.5) / len(cases) - 0.5)
        axes.plot(
            places + beside, share, linestyle="none", marker="_", markersize=max(2.0, 8 / len(cases)), markeredgewidth=2, color=tone
        )
    axes.set_ylim(0, 104)
    axes.set_ylabel("share of the dense layer (%)")
    axes.set_xlim(-0.8, len(operators) - 0.2)
    _block_ticks(axes, [operator.block for operator in operators])
    _executed_labels(axes, [machine for machine, _ in cases], [float(np.nanmedian(share)) for share in shares])
    roles = {group_of(operator) for operator in operators}
    _legend(figure, [(ROLES[role], role_token(role)) for role in ROLES if role in roles])
    return figure


def _executed_labels(axes: Axes, machines: Sequence[Machine], medians: Sequence[float]) -> None:
    """Names of the machines' marks at the right, at the height of the median layer."""
    heights = [-place for place in spread([-median for median in medians], 9.0, 0.0)]
    for machine, median, height in zip(machines, medians, heights, strict=True):
        axes.annotate(
            "━ ", (1.0, height), xytext=(6, 0), xycoords=("axes fraction", "data"), textcoords="offset points", va="center",
            color=colour(device_token(machine.index)), annotation_clip=False,
        )  # fmt: skip
        axes.annotate(
            f"{machine.label} executes {percent(median / 100)}", (1.0, height), xytext=(18, 0), xycoords=("axes fraction", "data"),
            textcoords="offset points", va="center", annotation_clip=False,
        )  # fmt: skip


def _block_ticks(axes: Axes, blocks: Sequence[int | None]) -> None:
    """One tick under the middle of each encoder block, a line between blocks."""
    middles, labels = [], []
    for block in dict.fromkeys(block for block in blocks if block is not None):
        rows = [row for row, found in enumerate(blocks) if found == block]
        middles.append((rows[0] + rows[-1]) / 2)
        labels.append(str(block))
        axes.axvline(rows[0] - 0.5, color=colour("grid"), linewidth=0.7)
    axes.set_xticks(middles, labels)
    axes.set_xlabel("encoder block, layers in execution order")
