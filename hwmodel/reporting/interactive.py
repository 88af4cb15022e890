"""The interactive figures, as plain plotly documents. Colours are CSS variables: the page puts its own in their place."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from math import isfinite, log10
from typing import Any

from hwmodel.reporting.break_even import Curve
from hwmodel.reporting.breakdown import ROLES, by_encoder_block, by_role, group_of, kept_weights, kernels, layers
from hwmodel.reporting.ceilings import ceilings_of
from hwmodel.reporting.figures import ENERGY, LATENCY, Quantity
from hwmodel.reporting.layer_work import layer_work
from hwmodel.reporting.style import device_token, role_token
from hwmodel.reporting.units import percent, prefix_of, si
from hwmodel.reporting.variants import Case, Machine, Variant, speed_up
from hwmodel.reporting.words import blocks_text

Document = dict[str, Any]
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "triangle-down", "cross", "x", "star", "hexagon")
"""A marker per machine or variant, so that colour is not all that tells them apart."""


NO_TRAFFIC: Document = {
    "text": "this mode counts no off-chip traffic", "showarrow": False, "xref": "paper", "yref": "paper", "x": 0.5, "y": 0.5,
}  # fmt: skip
"""What stands in a roofline without dots."""

_UNTITLED = {"l": 60, "r": 16, "t": 16, "b": 48}


def tone(token: str) -> str:
    """A colour token as the page resolves it."""
    return f"var(--{token})"


def _figure(title: str, data: list[Document], x: Document, y: Document, **layout: Any) -> Document:
    axes = {
        "zeroline": False,
        "automargin": True,
        "gridcolor": tone("grid"),
        "linecolor": tone("muted"),
        "tickcolor": tone("muted"),
    }
    whole = {
        "title": {"text": f"<b>{escape(title, quote=False)}</b>", "x": 0.01, "xanchor": "left", "font": {"size": 13}},
        "xaxis": axes | x, "yaxis": axes | y, "height": 320, "margin": {"l": 60, "r": 16, "t": 36, "b": 48},
        "paper_bgcolor": "rgba(0,0,0,0)", "plot_bgcolor": "rgba(0,0,0,0)", "hovermode": "closest", "showlegend": False,
        "font": {"family": "system-ui, sans-serif", "size": 12, "color": tone("ink")},
        "hoverlabel": {"bgcolor": tone("paper"), "bordercolor": tone("muted"), "font": {"color": tone("ink")}},
        "legend": {"orientation": "h", "yanchor": "bottom", "y": 1.0, "x": 0.0},
    }  # fmt: skip
    return {"data": data, "layout": whole | layout}


def _axis(text: str, **more: Any) -> Document:
    return {"title": {"text": text}, **more}


def _prefixed(values: Sequence[float], unit: str, what: str) -> tuple[float, str]:
    """What one unit of an axis is worth, and its label."""
    worth, prefix = prefix_of(max([value for value in values if isfinite(value)], default=1.0) or 1.0)
    return worth, f"{what} ({prefix}{unit})"


def rooflines(machines: Sequence[Machine]) -> list[Document]:
    """One figure per machine: every kernel of every variant, hollow where unpruned, under the ceilings that its card states."""
    return [_roofline(machine) for machine in machines]


def _roofline(machine: Machine) -> Document:
    data = [_cloud(machine, case) for case in reversed(machine.cases)]
    xs = [x for cloud in data for x in cloud["x"]]
    if not xs:
        return _figure(_title(machine), [], {"visible": False}, {"visible": False}, annotations=[NO_TRAFFIC])
    ceilings, ends = ceilings_of(machine.baseline), [min(xs) / 3, max(xs) * 3]
    peak, bandwidth = ceilings.macs_per_s, ceilings.bytes_per_s
    lowest = min(y for cloud in data for y in cloud["y"]) / 3
    if peak:
        data.append(_ceiling(ends, [peak, peak], f"peak {si(peak, 'MAC/s')}<br>{ceilings.macs_from}"))
    if bandwidth:
        ridge = [ends[0], min(ends[1], peak / bandwidth) if peak else ends[1]]
        rising = [bandwidth * end for end in ridge]
        data.append(_ceiling(ridge, rising, f"memory {si(bandwidth, 'B/s')}<br>{ceilings.bytes_from}"))
    top = max([y for cloud in data for y in cloud["y"]]) * 2
    x = _axis("executed MACs per byte of off-chip traffic", type="log", range=[log10(end) for end in ends], dtick=1)
    y = _axis("achieved MAC/s", type="log", range=[log10(lowest), log10(top)], dtick=1, exponentformat="SI")
    return _figure(_title(machine), data, x, y, height=380)


def _title(machine: Machine) -> str:
    return f"{machine.label} ({machine.baseline.terms})"


def _cloud(machine: Machine, case: Case) -> Document:
    points = kernels(case)
    points = points[points["macs_per_byte"] < float("inf")]
    hollow, symbol = case is machine.baseline and bool(machine.pairs), SYMBOLS[machine.cases.index(case) % len(SYMBOLS)]
    tones = [tone(role_token(role)) for role in points["role"]]
    texts = [
        f"{escape(case.variant)}<br><b>{escape(str(name))}</b> ({ROLES[role]})<br>{percent(share, 1)} of the latency"
        for name, role, share in zip(points.index, points["role"], points["share"], strict=True)
    ]
    return {
        "type": "scatter", "mode": "markers", "text": texts,
        "x": points["macs_per_byte"].tolist(), "y": points["macs_per_s"].tolist(),
        "hovertemplate": "%{text}<br>%{x:.3g} MAC/B, %{y:.3s}MAC/s<extra></extra>",
        "marker": {
            "size": [6 + 40 * share**0.5 for share in points["share"]], "color": tones, "opacity": 0.85,
            "symbol": f"{symbol}-open" if hollow else symbol, "line": {"width": 1.2, "color": tones},
        },
    }  # fmt: skip


def _ceiling(x: list[float], y: list[float], text: str) -> Document:
    line = {"color": tone("muted"), "width": 1.5}
    return {"type": "scatter", "mode": "lines", "x": x, "y": y, "line": line, "hovertemplate": f"{text}<extra></extra>"}


def roles(machines: Sequence[Machine]) -> list[Document]:
    """Latency, then energy of every machine: a bar per variant, stacked by role."""
    return [_role_bars(machine, quantity) for machine in machines for quantity in (LATENCY, ENERGY)]


def _role_bars(machine: Machine, quantity: Quantity) -> Document:
    cases = machine.cases[::-1]
    worth, label = _prefixed([quantity.of(case) for case in cases], quantity.unit, quantity.name)
    parts = [by_role(case, quantity.column) for case in cases]
    names, heights = [escape(case.variant, quote=False) for case in cases], list(range(len(cases)))
    data = [
        {
            "type": "bar", "orientation": "h", "y": heights, "x": [part[role] / worth for part in parts], "name": ROLES[role],
            "marker": {"color": tone(role_token(role)), "line": {"width": 0.5, "color": tone("paper")}},
            "textposition": "none",
            "text": [f"{name}: {si(part[role], quantity.unit)}" for name, part in zip(names, parts, strict=True)],
            "hovertemplate": f"<b>{ROLES[role]}</b><br>%{{text}}<extra></extra>",
        }
        for role in ROLES
        if any(part[role] > 0 for part in parts)
    ]  # fmt: skip
    height = 110 + 34 * len(cases)
    ticks = {"tickvals": heights, "ticktext": names, "showgrid": False}
    return _figure(f"{_title(machine)}: {quantity.name}", data, _axis(label), ticks, barmode="stack", height=height)


def encoder_blocks(machines: Sequence[Machine]) -> list[Document]:
    """Latency, then energy of every machine: a bar per encoder block and variant, stacked by role; none without blocks."""
    if by_encoder_block(machines[0].baseline, "latency_s").empty:
        return []
    return [_block_bars(machine, quantity) for machine in machines for quantity in (LATENCY, ENERGY)]


def _block_bars(machine: Machine, quantity: Quantity) -> Document:
    tables = [by_encoder_block(case, quantity.column) for case in machine.cases]
    worth, label = _prefixed([float(table.sum(axis=1).max()) for table in tables], quantity.unit, quantity.name)
    width = 0.84 / len(tables)
    data = []
    for order, (case, table) in enumerate(zip(machine.cases, tables, strict=True)):
        places = [block + (order - (len(tables) - 1) / 2) * width for block in table.index.tolist()]
        for role in table.columns:
            texts = [f"{escape(case.variant)}, block {block}: {si(part, quantity.unit)}" for block, part in table[role].items()]
            data.append({
                "type": "bar", "x": places, "y": (table[role] / worth).tolist(), "width": 0.9 * width, "text": texts,
                "textposition": "none", "marker": {"color": tone(role_token(role))},
                "hovertemplate": f"<b>{ROLES[role]}</b><br>%{{text}}<extra></extra>",
            })  # fmt: skip
    x = _axis("encoder block", dtick=max(1, len(tables[0]) // 12))
    return _figure(f"{_title(machine)}: {quantity.name}", data, x, _axis(label), barmode="stack", height=260)


def work(place: int, machines: Sequence[Machine]) -> list[Document]:
    """MACs of each layer of one variant: dense, effective, nominal, and executed on each machine."""
    rows = layer_work([machine.cases[place] for machine in machines], [machine.references[place] for machine in machines])
    names = [escape(one.name, quote=False) for one in rows]
    worth, label = _prefixed([one.dense_macs for one in rows], "MAC", "work per batch")
    parts: list[tuple[str, list[float], Document]] = [
        ("dense", [one.dense_macs for one in rows], {"color": "rgba(0,0,0,0)", "line": {"width": 1, "color": tone("muted")}}),
        ("effective", [one.effective_macs for one in rows], {"color": tone("coarse")}),
        ("nominal", [one.nominal_macs for one in rows], {"color": tone("kept")}),
    ]
    data = [_work_trace(name, names, values, worth) | {"type": "bar", "marker": marker} for name, values, marker in parts]
    for order, machine in enumerate(machines):
        values = [one.executed_macs[order] for one in rows]
        symbol = f"{SYMBOLS[order % len(SYMBOLS)]}-open"
        marker = {"color": tone(device_token(machine.index)), "symbol": symbol, "size": 7}
        told = _work_trace(f"executed on {escape(machine.label, quote=False)}", names, values, worth)
        data.append(told | {"type": "scatter", "mode": "markers", "marker": marker})
    x = {"showticklabels": False, "title": {"text": "layers in execution order"}}
    y = _axis(label, rangemode="tozero")
    return [
        _figure(
            "", data, x | {"range": [-0.8, len(rows) - 0.2]}, y, barmode="overlay", showlegend=True, height=420, margin=_UNTITLED
        )
    ]


def _work_trace(name: str, names: list[str], values: list[float], worth: float) -> Document:
    texts = [si(value, "MAC") for value in values]
    hover = f"<b>%{{x}}</b><br>{name}: %{{text}}<extra></extra>"
    y = [value / worth for value in values]
    return {"name": name, "x": names, "y": y, "text": texts, "hovertemplate": hover} | (
        {"textposition": "none"} if not name.startswith("executed") else {}
    )


def density(variant: Variant) -> list[Document]:
    """Kept weights of each layer."""
    operators = layers(variant.trace)
    bars = {
        "type": "bar", "x": [escape(one.name, quote=False) for one in operators],
        "y": [100 * kept_weights(one) for one in operators],
        "marker": {"color": [tone(role_token(group_of(one))) for one in operators]},
        "hovertemplate": "<b>%{x}</b><br>%{y:.1f} % kept<extra></extra>",
    }  # fmt: skip
    x = {"showticklabels": False, "title": {"text": "layers in execution order"}}
    return [
        _figure("", [bars], x, _axis("kept weights (%)", range=[0, 104]), height=280, margin={"l": 60, "r": 16, "t": 16, "b": 48})
    ]


def break_even(found: Sequence[Sequence[Curve]]) -> list[Document]:
    """One figure per block shape: speed-up over density, a line per machine, the variant's own density as a large mark."""
    return [_speed_ups(mine) for mine in found]


def _speed_ups(found: Sequence[Curve]) -> Document:
    data: list[Document] = []
    for curve in found:
        colour, symbol = tone(device_token(curve.machine.index)), SYMBOLS[curve.machine.index % len(SYMBOLS)]
        name = escape(curve.machine.label, quote=False)
        own = speed_up(curve.case, curve.machine.reference(curve.case))
        shared = {"type": "scatter", "hovertemplate": f"<b>{name}</b><br>%{{x:.0f}} % kept: %{{y:.2f}}×<extra></extra>"}
        data.append(shared | {
            "name": name, "mode": "lines+markers", "x": [100 * one for one in curve.densities], "y": list(curve.speed_ups),
            "line": {"color": colour}, "marker": {"symbol": symbol, "size": 5},
        })  # fmt: skip
        marker = {"color": colour, "symbol": symbol, "size": 13, "line": {"color": tone("ink"), "width": 1}}
        data.append(shared | {"mode": "markers", "x": [100 * curve.density], "y": [own], "marker": marker, "showlegend": False})
    x = _axis("blocks kept in every pruned layer (%)", range=[0, 102])
    y = _axis("speed-up over dense", type="log", dtick="D2", ticksuffix="×")
    title = f"{blocks_text(found[0].case)} blocks"
    return _figure(title, data, x, y, showlegend=True, height=400, margin={"l": 60, "r": 16, "t": 70, "b": 48})
