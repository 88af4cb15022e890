"""Rooflines: achieved MAC/s of every kernel against MACs per byte of off-chip traffic."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil
from typing import TYPE_CHECKING

import numpy as np

from hwmodel.reporting.breakdown import ROLES, group_of, roofline_points
from hwmodel.reporting.ceilings import Ceilings, ceilings_of
from hwmodel.reporting.figure_parts import legend
from hwmodel.reporting.style import bare, colour, new_figure, role_token, themed
from hwmodel.reporting.units import prefix_of, si
from hwmodel.reporting.variants import Case, Machine

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@themed
def rooflines(machines: Sequence[Machine]) -> Figure:
    """Achieved MAC/s of every kernel against MACs per byte of off-chip traffic, one panel per machine."""
    columns = min(2, len(machines))
    rows = ceil(len(machines) / columns)
    figure = new_figure(3.7 * rows + 0.4)
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes, machine in zip(panels, machines, strict=False):
        roofline_panel(axes, machine.cases, f"{machine.label} ({machine.baseline.terms})")
    for axes in panels[len(machines) :]:
        axes.set_axis_off()
    roles = {group_of(operator) for machine in machines for operator in machine.baseline.trace.operators if operator.macs}
    legend(figure, [(ROLES[role], role_token(role)) for role in ROLES if role in roles])
    return figure


def roofline_panel(axes: Axes, cases: Sequence[Case], title: str) -> None:
    """Kernels of some cases on one machine, the first hollow where there are several, under the machine's ceilings."""
    clouds = [roofline_points(case) for case in cases]
    axes.set_title(title)
    drawn = [cloud[np.isfinite(cloud["macs_per_byte"])] for cloud in clouds]
    if not any(len(cloud) for cloud in drawn):
        bare(axes)
        axes.set_xticks([])
        axes.set_yticks([])
        axes.text(0.5, 0.5, "this mode counts no off-chip traffic", transform=axes.transAxes, ha="center", color=colour("muted"))
        return
    axes.set_xscale("log")
    axes.set_yscale("log")
    _limits(axes, drawn, ceilings_of(cases[0]))
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
        back = {"facecolor": colour("paper"), "edgecolor": "none", "pad": 0.5}
        axes.annotate(
            f"peak {si(peak, 'MAC/s')}", (high, peak), xytext=(-3, 4), textcoords="offset points", ha="right",
            color=colour("muted"), bbox=back,
        )  # fmt: skip
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
