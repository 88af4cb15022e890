"""The two interactive figures, as plain plotly documents with the same few traces in every state.

Colours come from the page: a trace's uid names its colour there, and a point's own colour stands for the role's token.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from math import ceil, floor, log10
from typing import Any

from hwmodel.reporting.breakdown import ROLES
from hwmodel.reporting.ceilings import Ceilings, ceilings_of
from hwmodel.reporting.interactive import NO_TRAFFIC, SYMBOLS, Document
from hwmodel.reporting.style import colour, role_token
from hwmodel.reporting.units import percent, prefix_of, si
from hwmodel.reporting.variants import Case
from hwmodel.ui.views import Dot, dots
from hwmodel.ui.workbench import Answer, Grid


def _layout(x: Document, y: Document) -> Document:
    axes = {"zeroline": False, "automargin": False, "fixedrange": True, "ticklabelstandoff": 5}
    return {
        "xaxis": axes | x,
        "yaxis": axes | y,
        "margin": {"l": 56, "r": 12, "t": 8, "b": 44},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"family": "system-ui, sans-serif", "size": 12},
        "showlegend": False,
        "hovermode": "closest",
        "uirevision": "kept",
    }


def roofline(answer: Answer) -> Document:
    """Achieved MAC/s by layer type over MACs per byte, dense as rings, with the ceilings that the card states."""
    dense, now = dots(answer.dense), dots(answer.now)
    ceilings = ceilings_of(Case("now", answer.now))
    placed = [*dense, *now]
    if not placed:
        return {"data": [], "layout": _layout({"visible": False}, {"visible": False}) | {"annotations": [NO_TRAFFIC]}}
    x = _decades([dot.macs_per_byte for dot in placed])
    y = _decades([*(dot.macs_per_s for dot in placed), *([ceilings.macs_per_s] if ceilings.macs_per_s else [])])
    lines = _ceiling_lines(ceilings, 10.0 ** x[0], 10.0 ** x[1], 10.0 ** y[1])
    layout = _layout(
        {"type": "log", "title": {"text": "executed MACs per byte off-chip"}, "range": x, "dtick": 1},
        {"type": "log", "title": {"text": "achieved MAC/s"}, "range": y, "dtick": 1, "exponentformat": "SI"},
    )  # fmt: skip
    return {"data": [*lines, _rings(dense), _filled(now)], "layout": layout}


def _decades(values: Sequence[float]) -> list[int]:
    """Powers of ten with room around all values; whole ones, so that axes rest while a slider moves the dots."""
    return [floor(log10(min(values) / 2)), ceil(log10(max(values) * 2))]


def _ceiling_lines(ceilings: Ceilings, low: float, high: float, top: float) -> list[Document]:
    """Peak and bandwidth, each empty where the card does not state it."""
    peak, bandwidth = _line("peak", [], [], ""), _line("bandwidth", [], [], "")
    if ceilings.macs_per_s:
        text = f"peak {si(ceilings.macs_per_s, 'MAC/s')}<br>{ceilings.macs_from}"
        peak = _line("peak", [low, high], [ceilings.macs_per_s] * 2, text)
    if ceilings.bytes_per_s:
        last = min(high, top / ceilings.bytes_per_s)
        text = f"{si(ceilings.bytes_per_s, 'B/s')}<br>{ceilings.bytes_from}"
        bandwidth = _line("bandwidth", [low, last], [low * ceilings.bytes_per_s, last * ceilings.bytes_per_s], text)
    return [peak, bandwidth]


def _line(uid: str, x: Sequence[float], y: Sequence[float], text: str) -> Document:
    return {
        "type": "scatter", "mode": "lines", "uid": uid, "x": list(x), "y": list(y), "line": {"width": 1.5},
        "hovertemplate": f"{text}<extra></extra>",
    }  # fmt: skip


def _rings(dense: Sequence[Dot]) -> Document:
    texts = [f"{ROLES[dot.role]}, dense: {si(dot.macs_per_s, 'MAC/s')}" for dot in dense]
    return _cloud("dense", dense, texts, line={"width": 1.5})


def _filled(now: Sequence[Dot]) -> Document:
    texts = [f"{ROLES[dot.role]}: {si(dot.macs_per_s, 'MAC/s')}, {percent(dot.share)} of the time" for dot in now]
    return _cloud("now", now, texts, color=[colour(role_token(dot.role)) for dot in now])


def _cloud(uid: str, placed: Sequence[Dot], texts: Sequence[str], **marker: Any) -> Document:
    return {
        "type": "scatter", "mode": "markers", "uid": uid,
        "x": [dot.macs_per_byte for dot in placed], "y": [dot.macs_per_s for dot in placed],
        "marker": {"size": [_size(dot) for dot in placed], "symbol": [_symbol(dot) for dot in placed], "opacity": 1} | marker,
        "text": list(texts), "hovertemplate": "%{text}<extra></extra>",
    }  # fmt: skip


def _size(dot: Dot) -> float:
    """Diameter in pixels; the area follows the share of the latency."""
    return 8 + 24 * float(min(dot.share, 1.0) ** 0.5)


def _symbol(dot: Dot) -> str:
    return SYMBOLS[list(ROLES).index(dot.role)]


def pareto(answer: Answer, grid: Grid | None) -> Document:
    """Latency over kept work: the grid, the front among it, and the current state."""
    answers = () if grid is None else grid.answers
    longest = max(one.now.latency_s for one in (*answers, answer))
    worth, prefix = prefix_of(answer.dense.latency_s)
    data = [*_neighbours(grid, worth), _scatter("current", [answer], worth, "this state") | {"cliponaxis": False}]
    layout = _layout(
        {"title": {"text": "kept work (% of the dense model's MACs)"}, "range": [-3, 104]},
        {"title": {"text": f"latency ({prefix}s)"}, "range": [0, 1.08 * longest / worth], "rangemode": "tozero"},
    )
    return {"data": data, "layout": layout}


@lru_cache(maxsize=64)
def _neighbours(grid: Grid | None, worth: float) -> tuple[Document, Document]:
    """The grid and the front among it; empty while they are being priced."""
    answers, front = ((), ()) if grid is None else (grid.answers, grid.front)
    return _scatter("grid", answers, worth, ""), _scatter("front", front, worth, "on the front") | {"mode": "lines+markers"}


def _scatter(uid: str, answers: Sequence[Answer], worth: float, what: str) -> Document:
    return {
        "type": "scatter", "mode": "markers", "uid": uid,
        "x": [100 * one.kept_share for one in answers], "y": [one.now.latency_s / worth for one in answers],
        "marker": {"size": 16 if uid == "current" else 7, "symbol": "diamond" if uid == "current" else "circle"},
        "text": [f"{_named(one)}{', ' + what if what else ''}" for one in answers],
        "hovertemplate": "%{text}<extra></extra>",
    }  # fmt: skip


def _named(answer: Answer) -> str:
    state = answer.state
    cost = f"{si(answer.now.latency_s, 's')}, {si(answer.now.energy_j, 'J')}"
    return f"density {state.density:g}, {state.tokens or 'all'} tokens: {cost}"
