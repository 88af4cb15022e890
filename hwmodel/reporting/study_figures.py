"""Figures of a study: the scatter with its front, parallel coordinates, heat maps, sensitivity, and how knobs interact.

They take frames of points, one row per point, and :class:`Axis` for what a column is; nothing here prices anything.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np

from hwmodel.reporting.style import colour, device_token, new_figure, themed
from hwmodel.reporting.units import si

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_DOTS = 20_000
MOST_LINES = 300
MOST_LABELS = 8


@dataclass(frozen=True)
class Axis:
    """A column to draw: its name, its unit, and which way is better ("" where neither is)."""

    name: str
    unit: str = ""
    goal: str = ""

    @property
    def label(self) -> str:
        """Name and unit, and the better direction where there is one."""
        better = {"min": ", less is better", "max": ", more is better"}.get(self.goal, "")
        unit = f" ({self.unit}{better})" if self.unit else (f" ({better[2:]})" if better else "")
        return f"{self.name}{unit}"


def _figure(height: float, width: float = 10.0) -> Figure:
    figure = new_figure(height, width)
    figure.set_facecolor(colour("paper"))
    return figure


def log_scale(axes: Axes, which: str, values: Any) -> None:
    """A logarithmic axis ("x" or "y") with plain numbers, 1, 2, 5, 10 or decades, where positive values span more than three."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    known = np.asarray(values, dtype=np.float64)
    known = known[np.isfinite(known)]
    if known.size == 0 or known.min() <= 0 or known.max() < 3 * known.min():
        return
    (axes.set_xscale if which == "x" else axes.set_yscale)("log")
    axis = axes.xaxis if which == "x" else axes.yaxis
    few = known.max() < 100 * known.min()
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if few else (1.0,)))
    axis.set_major_formatter(FuncFormatter(_plain_number))
    axis.set_minor_formatter(NullFormatter())


def _plain_number(value: float, _: object = None) -> str:
    return f"{value:.4g}"


def _groups(frame: pd.DataFrame, by: str | None) -> list[str]:
    """The values of a column as labels; one without a name where there is no column."""
    if by is None:
        return [""]
    return [str(value) for value in sorted(frame[by].dropna().unique(), key=_order)]


def _order(value: Any) -> tuple[int, Any]:
    return (1, str(value)) if isinstance(value, str) else (0, value)


def thinned(frame: pd.DataFrame, most: int = MOST_DOTS) -> pd.DataFrame:
    """At most about ``most`` rows, evenly spaced in the frame's order."""
    return frame if len(frame) <= most else frame.iloc[:: -(-len(frame) // most)]


@themed
def scatter(points: pd.DataFrame, front: pd.DataFrame, objectives: Sequence[Axis], by: str | None = None) -> Figure:
    """Every pair of the first three objectives: all points (grey beyond the constraints), the front, its knees (numbered)."""
    pairs = list(combinations(objectives[:3], 2))
    figure = _figure(4.6, 6.4 if len(pairs) == 1 else 4.4 * len(pairs))
    dots = thinned(points)
    panels = np.atleast_1d(figure.subplots(1, len(pairs)))
    for axes, (x, y) in zip(panels, pairs, strict=True):
        beyond = dots[~dots.feasible]
        if len(beyond):
            axes.scatter(
                beyond[x.name], beyond[y.name], s=5, color=colour("untouched"), alpha=0.3, lw=0, label="beyond constraints"
            )
        _dots(axes, dots[dots.feasible], front, (x, y), by)
        _front(axes, front, x, y, joined=len(objectives) == 2)
        axes.grid(visible=True, axis="both")
        axes.set(xlabel=x.label, ylabel=y.label)
        log_scale(axes, "x", points[x.name])
        log_scale(axes, "y", points[y.name])
    if by is not None:
        panels[0].legend(title=by, loc="best")
    shown = "" if len(dots) == len(points) else f", {len(dots)} of them drawn"
    projected = ", seen from three sides" if len(pairs) > 1 else ""
    figure.suptitle(
        f"{len(points)} points{shown}, {len(front)} on the front{projected}; knees numbered", x=0.01, ha="left", fontsize=9.5
    )
    return figure


def _dots(axes: Axes, dots: pd.DataFrame, front: pd.DataFrame, pair: tuple[Axis, Axis], by: str | None) -> None:
    """All points small, those of the front large and outlined, coloured by a knob."""
    x, y = (axis.name for axis in pair)
    for index, label in enumerate(_groups(dots, by)):
        tint = colour(device_token(index))
        for frame, style in (
            (dots, {"s": 5, "alpha": 0.35, "lw": 0}),
            (front, {"s": 20, "ec": colour("ink"), "lw": 0.7, "zorder": 3}),
        ):
            rows = frame if by is None else frame[frame[by].astype(str) == label]
            axes.scatter(rows[x], rows[y], color=tint, label=label if frame is front and label else None, **style)


def _front(axes: Axes, front: pd.DataFrame, x: Axis, y: Axis, *, joined: bool) -> None:
    """The line between the points of a front of two objectives, and the knees."""
    if joined:
        ordered = front.sort_values(x.name)
        axes.plot(ordered[x.name], ordered[y.name], color=colour("ink"), lw=0.9, drawstyle=_steps(x))
    for _, row in front[front.knee.notna()].iterrows():
        spot = (row[x.name], row[y.name])
        axes.plot(*spot, marker="o", ms=9, mfc="none", mec=colour("rest"), mew=1.5, zorder=4)
        axes.annotate(str(int(row.knee)), spot, xytext=(8, -9), textcoords="offset points", color=colour("rest"), weight="bold")


def _steps(x: Axis) -> str:
    """Between two points of the front only the corner that both beat is reached."""
    return "steps-post" if x.goal == "min" else "steps-pre"


@themed
def parallel(front: pd.DataFrame, axes_of: Sequence[Axis], colour_by: Axis) -> Figure:
    """One line per point of the front through its knobs and objectives; knees are bold."""
    from matplotlib import colormaps
    from matplotlib.colors import Normalize

    lines = thinned(front, MOST_LINES)
    figure = _figure(4.4, max(6.0, 1.5 * len(axes_of)))
    axes = figure.subplots()
    scaled = np.stack([_scaled(front[axis.name], lines[axis.name]) for axis in axes_of], axis=-1)
    tint, norm = colormaps["viridis_r"], Normalize(0, 1)
    shade = _scaled(front[colour_by.name], lines[colour_by.name])
    places = np.arange(len(axes_of))
    for row, (heights, level, knee) in enumerate(zip(scaled, shade, lines.knee.notna(), strict=True)):
        axes.plot(
            places, heights, color=tint(norm(level)), lw=2.6 if knee else 0.8, alpha=1.0 if knee else 0.55, zorder=3 if knee else 2
        )
        if knee:
            axes.annotate(
                str(int(lines.knee.iloc[row])), (places[-1], heights[-1]), xytext=(5, -3), textcoords="offset points", weight="bold"
            )
    for place, axis in zip(places, axes_of, strict=True):
        axes.axvline(float(place), color=colour("muted"), lw=0.8, zorder=1)
        _ends(axes, float(place), front[axis.name], axis.unit)
    axes.set_xticks(places, [axis.label.replace(" (", "\n(", 1) for axis in axes_of])
    axes.set_yticks([])
    axes.set_ylim(-0.1, 1.1)
    for spine in axes.spines.values():
        spine.set_visible(False)
    hidden = "" if len(lines) == len(front) else f", {len(lines)} of them drawn"
    axes.set_title(f"{len(front)} points of the front{hidden}, shaded by {colour_by.name} (dark: high); knees bold")
    return figure


def _scaled(whole: pd.Series[Any], some: pd.Series[Any]) -> Any:
    """Values from 0 to 1 along their own axis, on a log scale where they span decades; texts by their order."""
    if not _numeric(whole):
        ranks = {value: place for place, value in enumerate(sorted(map(str, whole.dropna().unique())))}
        return some.map(lambda value: ranks.get(str(value), np.nan)).to_numpy(np.float64) / max(1, len(ranks) - 1)
    numbers, chosen = whole.to_numpy(np.float64, na_value=np.nan), some.to_numpy(np.float64, na_value=np.nan)
    if np.nanmin(numbers) > 0 and np.nanmax(numbers) > 10 * np.nanmin(numbers):
        numbers, chosen = np.log(numbers), np.log(chosen)
    low, high = np.nanmin(numbers), np.nanmax(numbers)
    return (chosen - low) / (high - low if high > low else 1.0)


def _numeric(column: pd.Series[Any]) -> bool:
    return bool(column.dtype.kind in "iufb" and column.notna().any())


def _ends(axes: Axes, place: float, column: pd.Series[Any], unit: str) -> None:
    """What the lower and upper end of one axis stand for; every text where they are few."""
    if _numeric(column):
        low, high = column.min(), column.max()
        told = [si(end, unit) if unit else f"{end:.3g}" for end in (low, high)]
        texts = list(zip((0.0, 1.0), told, strict=True))[: 1 + (low < high)]
    else:
        names = sorted(map(str, column.dropna().unique()))
        texts = [(rank / max(1, len(names) - 1), name) for rank, name in enumerate(names)]
        texts = texts if len(texts) <= MOST_LABELS else [texts[0], texts[-1]]
    for height, text in texts:
        up = height == 1.0
        axes.annotate(
            text, (place, height), xytext=(0, 4 if up else -4), textcoords="offset points", ha="center",
            va="bottom" if up else "top", fontsize=7.5, color=colour("muted"), zorder=4,
            bbox={"fc": colour("paper"), "ec": "none", "pad": 0.6, "alpha": 0.8},
        )  # fmt: skip


@themed
def heat_maps(points: pd.DataFrame, across: str, down: str, quantities: Sequence[Axis]) -> Figure:
    """The best of each quantity at every pair of values of two knobs, whatever the other knobs are."""
    from matplotlib.colors import LogNorm

    figure = _figure(4.2, 5.2 * len(quantities))
    for axes, quantity in zip(np.atleast_1d(figure.subplots(1, len(quantities))), quantities, strict=True):
        best = points.pivot_table(
            index=down, columns=across, values=quantity.name, aggfunc="max" if quantity.goal == "max" else "min", observed=True
        )
        cells = best.to_numpy(np.float64)
        wide = np.nanmin(cells) > 0 and np.nanmax(cells) > 10 * np.nanmin(cells)
        image = axes.imshow(
            cells,
            origin="lower",
            aspect="auto",
            cmap="viridis" if quantity.goal == "max" else "viridis_r",
            norm=LogNorm() if wide else None,
        )
        _name_cells(axes, best)
        axes.set(xlabel=across, ylabel=down, title=f"best {quantity.label}")
        figure.colorbar(image, ax=axes, format=_plain_number)
        figure.axes[-1].minorticks_off()
    return figure


def _name_cells(axes: Axes, table: pd.DataFrame) -> None:
    """Values of the knobs along both sides, and the numbers themselves where there is room."""
    for values, set_ticks in ((table.columns, axes.set_xticks), (table.index, axes.set_yticks)):
        every = max(1, -(-len(values) // 10))
        set_ticks(range(0, len(values), every), [_short(value) for value in values[::every]])
    if table.size > 80:
        return
    cells = table.to_numpy(np.float64)
    middle = np.sqrt(np.nanmin(cells) * np.nanmax(cells)) if np.nanmin(cells) > 0 else np.nanmean(cells)
    dark_is_high = axes.images[0].get_cmap().name == "viridis_r"
    for (row, column), value in np.ndenumerate(cells):
        light = (value > middle) == dark_is_high
        axes.text(column, row, f"{value:.3g}", ha="center", va="center", fontsize=7, color="#ffffff" if light else colour("ink"))


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


@dataclass(frozen=True)
class Bar:
    """One bar of :func:`sensitivity`: a knob (or a pair), its share of the variance, and its factor (None for pairs)."""

    label: str
    share: float
    factor: float | None


@themed
def sensitivity(bars: Sequence[tuple[Axis, Sequence[Bar]]]) -> Figure:
    """Which knob matters for each quantity: shares of its variance; pairs beyond their single knobs, hatched."""
    longest = max(len(rows) for _, rows in bars)
    figure = _figure(1.2 + 0.3 * longest, 5.2 * len(bars))
    for axes, (quantity, rows) in zip(np.atleast_1d(figure.subplots(1, len(bars))), bars, strict=True):
        for place, bar in enumerate(rows):
            alone = bar.factor is not None
            axes.barh(
                place,
                bar.share,
                color=colour("kept") if alone else colour("untouched"),
                hatch=None if alone else "///",
                ec=colour("paper"),
            )
            told = f"{bar.share:.1%}" + (f", x{bar.factor:.3g}" if bar.factor is not None else "")
            axes.annotate(told, (bar.share, place), xytext=(4, 0), textcoords="offset points", va="center", fontsize=7.5)
        axes.set_yticks(range(len(rows)), [bar.label for bar in rows])
        axes.invert_yaxis()
        axes.set_xlim(0, 1.28)
        axes.set_xticks([0, 0.25, 0.5, 0.75, 1.0], ["0", "25 %", "50 %", "75 %", "100 %"])
        axes.set(xlabel="share of the variance of the logarithm", title=quantity.name)
    figure.suptitle(
        "Which knob matters (factor: worst level over best, on average); hatched: interaction of two",
        x=0.01,
        ha="left",
        fontsize=8.5,
    )
    return figure


@themed
def interactions(panels: Sequence[tuple[str, pd.DataFrame]], quantity: Axis) -> Figure:
    """What a knob is worth at each value of another: one panel per table of :func:`hwmodel.exploration.effects.worth`.

    Lines that lie on each other mean that the knobs do not interact.
    """
    figure = _figure(3.9, max(5.6, 3.9 * len(panels)))
    from matplotlib import colormaps

    all_axes = np.atleast_1d(figure.subplots(1, len(panels), sharey=True))
    for axes, (title, table) in zip(all_axes, panels, strict=True):
        tints = colormaps["viridis_r"](np.linspace(0.15, 0.95, len(table.columns)))
        for tint, value in zip(tints, table.columns, strict=True):
            axes.plot(range(len(table)), table[value], marker="o", ms=3.5, lw=1.6, color=tint, label=_short(value))
        axes.axhline(1.0, color=colour("muted"), lw=0.8, ls="--")
        every = max(1, -(-len(table) // 9))
        axes.set_xticks(range(0, len(table), every), [_short(value) for value in table.index[::every]])
        axes.set(xlabel=str(table.index.name), title=title)
        axes.grid(visible=True, axis="y")
    name = panels[0][1]
    all_axes[0].set_ylabel(f"{quantity.name}: times better than at {name.index.name} = {_short(name.index.max())}")
    figure.legend(*all_axes[0].get_legend_handles_labels(), title=str(name.columns.name), loc="outside right center")
    figure.suptitle(
        f"What {name.index.name} is worth at each {name.columns.name}; lines on each other: no interaction",
        x=0.01,
        ha="left",
        fontsize=8.5,
    )
    return figure
