"""The figures along the network: encoder blocks stacked by role, work and kept density layer by layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from hwmodel.backends.base import FloatArray
from hwmodel.reporting.breakdown import ROLES, by_encoder_block, group_of, kept_weights, layers
from hwmodel.reporting.figure_parts import block_ticks, legend, scale, short
from hwmodel.reporting.layer_work import LayerWork, layer_work
from hwmodel.reporting.style import colour, device_token, new_figure, role_token, themed
from hwmodel.reporting.variants import Case, Machine

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.patches import PathPatch

    from hwmodel.ir.operators import Operator
    from hwmodel.ir.trace import Trace

_MARKS = "_ox+dv^*"
"""A marker per machine, so that colour is not all that tells them apart."""


@themed
def encoder_blocks(machines: Sequence[Machine]) -> Figure | None:
    """Latency and energy of each encoder block, stacked by role; None where the trace has no blocks."""
    if by_encoder_block(machines[0].baseline, "latency_s").empty:
        return None
    figure = new_figure(1.85 * len(machines) + 0.4)
    panels = figure.subplots(len(machines), 2, squeeze=False)
    for (left, right), machine in zip(panels, machines, strict=True):
        block_panel(left, machine.cases, "latency_s")
        block_panel(right, machine.cases, "energy_j")
        left.set_title(f"{machine.label} ({machine.baseline.terms})")
    for axes in panels[-1]:
        axes.set_xlabel("encoder block")
    roles = {role for machine in machines for case in machine.cases for role in by_encoder_block(case, "latency_s").columns}
    legend(figure, [(ROLES[role], role_token(role)) for role in ROLES if role in roles])
    return figure


def block_panel(axes: Axes, cases: Sequence[Case], column: str) -> None:
    """Per encoder block one stacked bar for each case, side by side in their order."""
    unit, what = ("s", "latency") if column == "latency_s" else ("J", "energy")
    tables = [by_encoder_block(case, column) for case in cases]
    tallest = float(max(table.sum(axis=1).max() for table in tables))
    factor = scale(axes, [tallest], unit, what, axis="y")
    width = 0.84 / len(cases)
    for order, table in enumerate(tables):
        places = table.index.to_numpy() + (order - (len(cases) - 1) / 2) * width
        start = np.zeros(len(table))
        for role in table.columns:
            part = table[role].to_numpy() * factor
            axes.add_patch(_bars(places, start, part, 0.9 * width, role))
            start += part
    axes.grid(visible=True, axis="y")
    blocks = tables[0].index
    axes.set_xlim(blocks[0] - 0.6, blocks[-1] + 0.6)
    axes.set_ylim(0, 1.05 * tallest * factor or 1.0)
    axes.set_xticks(blocks[:: max(1, len(blocks) // 12)])


def _bars(places: FloatArray, bottom: FloatArray, height: FloatArray, width: float, role: str) -> PathPatch:
    """All bars of one role as a single path: a page of thousands of rectangles would be a large one."""
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path

    left, right, top = places - width / 2, places + width / 2, bottom + height
    corners = np.stack([left, bottom, left, top, right, top, right, bottom, left, bottom], axis=1).reshape(-1, 2)
    codes = np.tile([Path.MOVETO, Path.LINETO, Path.LINETO, Path.LINETO, Path.CLOSEPOLY], len(places))
    return PathPatch(Path(corners, codes), facecolor=colour(role_token(role)), linewidth=0)


@themed
def work_by_layer(cases: Sequence[tuple[Machine, Case]]) -> Figure:
    """MACs of each layer: dense as an outline, nominal as a bar, what each machine executes as marks."""
    work = layer_work([case for _, case in cases], [machine.reference(case) for machine, case in cases])
    figure = new_figure(3.4)
    axes = figure.subplots()
    factor = scale(axes, [max(one.dense_macs for one in work)], "MAC", "work per batch", axis="y")
    _work_bars(axes, work, factor)
    places = np.arange(len(work))
    for order, (machine, _) in enumerate(cases):
        executed = factor * np.array([one.executed_macs[order] for one in work])
        axes.plot(
            places, executed, linestyle="none", marker=_MARKS[order % len(_MARKS)], markersize=5, markeredgewidth=1.3,
            markerfacecolor="none", color=colour(device_token(machine.index)), label=f"executed on {machine.label}",
        )  # fmt: skip
    axes.set_ylim(0, None)
    axes.set_xlim(-0.8, len(work) - 0.2)
    block_ticks(axes, [one.block for one in work])
    figure.legend(loc="outside upper left", ncols=4, columnspacing=1.2, handletextpad=0.5, borderaxespad=0.2)
    return figure


def _work_bars(axes: Axes, work: Sequence[LayerWork], factor: float) -> None:
    places = np.arange(len(work))
    dense = factor * np.array([one.dense_macs for one in work])
    nominal = factor * np.array([one.nominal_macs for one in work])
    effective = factor * np.array([one.effective_macs for one in work])
    axes.bar(places, dense, 0.8, facecolor="none", edgecolor=colour("muted"), linewidth=0.8, label="dense")
    if np.any(effective > nominal * 1.0005):
        axes.bar(places, effective, 0.8, facecolor=colour("coarse"), linewidth=0, label="effective: in kept blocks")
    axes.bar(places, nominal, 0.8, facecolor=colour("kept"), linewidth=0, label="nominal: kept weights")


@themed
def kept_density(trace: Trace) -> Figure:
    """Kept weights of each layer in execution order (the LSP paper's Figure 3)."""
    figure = new_figure(2.6)
    axes = figure.subplots()
    operators = layers(trace)
    density_panel(axes, operators)
    legend(figure, density_legend(operators))
    return figure


def density_legend(operators: Sequence[Operator]) -> list[tuple[str, str]]:
    """What the colours of the bars mean, (label, colour token)."""
    roles = {group_of(operator) for operator in operators}
    return [(ROLES[role], role_token(role)) for role in ROLES if role in roles]


def density_panel(axes: Axes, operators: Sequence[Operator]) -> None:
    """One bar per layer, coloured by role."""
    tones = [colour(role_token(group_of(operator))) for operator in operators]
    axes.bar(range(len(operators)), [100 * kept_weights(operator) for operator in operators], 0.78, color=tones)
    axes.set_ylim(0, 104)
    axes.set_ylabel("kept weights (%)")
    axes.set_xlim(-0.8, len(operators) - 0.2)
    axes.grid(visible=True, axis="y")
    block_ticks(axes, [operator.block for operator in operators])


def variant_order(cases: Sequence[Case]) -> str:
    """Which bar of a group is which variant: "From left to right: dense, LSP 32x32"."""
    return f"From left to right: {', '.join(short(case.variant) for case in cases)}."
