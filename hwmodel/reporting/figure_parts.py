"""What the figures of a report share: rows of bars, labels, scales, legends. No pyplot, no global state, nothing to close."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from math import isfinite
from typing import TYPE_CHECKING

from hwmodel.reporting.style import colour
from hwmodel.reporting.units import prefix_of
from hwmodel.reporting.variants import Case, Machine

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_LABEL = 26
"""Characters of a label beside a plot."""


def bar_rows(machines: Sequence[Machine], first: int = 0) -> Iterator[tuple[float, Machine, Case]]:
    """Heights of grouped bars from the top: one per variant from the ``first``, a gap and a heading between machines."""
    height = 0.0
    for machine in machines:
        height -= 0.35
        for case in machine.cases[first:]:
            height -= 1.0
            yield height, machine, case
        height -= 0.55


def bar_height(machines: Sequence[Machine], per_row: float = 0.26, first: int = 0) -> float:
    """Inches for the rows of :func:`bar_rows`."""
    rows = sum(len(machine.cases) - first + 0.9 for machine in machines)
    return max(1.5, per_row * rows + 0.75)


def short(label: str) -> str:
    """A label cut to what fits beside a plot."""
    return label if len(label) <= _LABEL else f"{label[: _LABEL - 1]}…"


def label_rows(axes: Axes, machines: Sequence[Machine], first: int = 0) -> None:
    """Variants as tick labels and machines as headings over their bars."""
    rows = list(bar_rows(machines, first))
    axes.set_yticks([height for height, _, _ in rows], [short(case.variant) for _, _, case in rows])
    axes.set_ylim(rows[-1][0] - 0.75, 0.15)
    axes.spines["left"].set_visible(False)
    axes.grid(visible=True, axis="x")
    for height, machine, case in rows:
        if case is machine.cases[first]:
            heading(axes, height + 0.72, machine, case)


def heading(axes: Axes, height: float, machine: Machine, case: Case) -> None:
    """A machine's name and terms over its bars."""
    axes.annotate(
        f"{machine.label} ({case.terms})", (0, height), xycoords=("axes fraction", "data"), va="center", ha="left", weight="bold"
    )


def scale(axes: Axes, values: Sequence[float], unit: str, what: str, *, axis: str = "x", log: bool = False) -> float:
    """Label an axis in a unit people read and return the factor that takes SI values there."""
    finite = [value for value in values if isfinite(value) and value > 0]
    worth, prefix = prefix_of(max(finite, default=1.0))
    label = f"{what} ({prefix}{unit}{', log scale' if log else ''})"
    (axes.set_xlabel if axis == "x" else axes.set_ylabel)(label)
    return 1.0 / worth


def note(axes: Axes, x: float, y: float, text: str) -> None:
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


def segment(axes: Axes, height: float, span: tuple[float, float], token: str, text: str) -> None:
    """One part of a stacked bar from its start, so wide; named inside where there is a text."""
    start, width = span
    if width <= 0:
        return
    axes.barh(height, width, 0.78, left=start, facecolor=colour(token), edgecolor=colour("paper"), linewidth=0.8)
    if text:
        axes.text(start + width / 2, height, text, ha="center", va="center", color=colour(f"on-{token}"), fontsize=7.5)


def legend(figure: Figure, entries: Sequence[tuple[str, str]], columns: int = 9) -> None:
    """A legend above the panels: (label, colour token) of each entry."""
    from matplotlib.patches import Patch

    handles = [Patch(facecolor=colour(token), label=label) for label, token in entries]
    figure.legend(
        handles=handles, loc="outside upper left", ncols=min(columns, len(handles)), handlelength=1.0, handleheight=1.0,
        columnspacing=1.2, handletextpad=0.5, borderaxespad=0.2,
    )  # fmt: skip


def block_ticks(axes: Axes, blocks: Sequence[int | None]) -> None:
    """One tick under the middle of each encoder block, a line between blocks."""
    middles, labels = [], []
    for block in dict.fromkeys(block for block in blocks if block is not None):
        rows = [row for row, found in enumerate(blocks) if found == block]
        middles.append((rows[0] + rows[-1]) / 2)
        labels.append(str(block))
        axes.axvline(rows[0] - 0.5, color=colour("grid"), linewidth=0.7)
    axes.set_xticks(middles, labels)
    axes.set_xlabel("encoder block, layers in execution order")
