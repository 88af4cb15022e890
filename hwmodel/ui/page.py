"""The page itself: its controls, and an answer as elements. Every control has a label with its unit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dash import dcc, html

from hwmodel.reporting.breakdown import ROLES
from hwmodel.ui import machines, views
from hwmodel.ui.figures import pareto, roofline
from hwmodel.ui.state import BANDWIDTHS, BATCHES, BLOCKS, RULES, State
from hwmodel.ui.workbench import Answer, Grid, Workbench

CHOICES = ("model", "device", "mode", "power", "block", "lie")
SLIDERS = ("density", "heads", "tokens", "batch", "array", "bandwidth")
KNOBS = (*CHOICES, *SLIDERS)
SAVED = {
    "recipe": "how the model is pruned, for --recipe (.toml)",
    "card": "the machine with its array and bandwidth as set here, for --device (.toml)",
    "report": "dense beside this state, one HTML file",
}
"""What a state can be saved as, with what each is for."""
_PLOT: Any = {"displayModeBar": False}
_MOVE: Any = {"mode": "immediate", "frame": {"duration": 0, "redraw": False}, "transition": {"duration": 0}}
"""Plotly's way to move points and axes at once and leave all else of a figure, titles included, as it stands."""
_BATCH_TRIED = 64
"""Batch at which a field that a machine depends on shows it, hosts and launches being hidden behind the work."""


def layout() -> Any:
    """The empty page."""
    return html.Main(
        [
            dcc.Location(id="bookmark", refresh=False),
            dcc.Location(id="address", refresh=False),
            dcc.Store(id="written"),
            dcc.Store(id="built"),
            html.H1("hwmodel explorer"),
            html.P("What a Vision Transformer costs on a machine while you prune the one and change the other.", className="lead"),
            html.Div(id="notice", role="alert"),
            html.Div([html.Div(id="controls", className="controls"), _results()], className="columns"),
        ]
    )


def _results() -> Any:
    return html.Div(
        [
            html.Div(id="refusal", role="alert"),
            html.Div(id="numbers"),
            html.Div(
                [
                    _panel("Roofline", _graph("roofline"), "Rings: dense. Filled: this state; the area is the share of the time."),
                    _panel("Pareto position", _graph("pareto"), html.Span(id="position")),
                ],
                className="panels",
            ),
            _legend(),
            _saving(),
        ],
        id="results",
    )


def _graph(name: str) -> Any:
    return dcc.Graph(id=name, config=_PLOT, animation_options=_MOVE, responsive=True, style={"height": "300px"})


def _panel(heading: str, body: Any, caption: Any = None) -> Any:
    return html.Section([html.H2(heading), body, *([] if caption is None else [html.P(caption, className="caption")])])


def _legend() -> Any:
    return html.Ul([html.Li(name, className=f"role-{role}") for role, name in ROLES.items()], className="legend")


def _saving() -> Any:
    buttons = [html.Button(f"Save as {what}", id=f"save-{what}", title=told) for what, told in SAVED.items()]
    return html.Div([*buttons, html.Span(id="saved", role="status"), dcc.Download(id="file")], className="saving")


def controls(bench: Workbench, state: State) -> list[Any]:
    """Every control at its place for a state; what does not apply is greyed out, with the reason."""
    told = readings(bench, state)
    model, card = bench.models.get(state.model), bench.card(state.device)
    tried = model.batches.at(_BATCH_TRIED)
    array, power = machines.array_of(card, state.power), tuple(card.power_modes)
    sizes = list(array.sizes) if array else [""]
    models = dict.fromkeys([*bench.models.names, state.model])
    unpruned = "" if model.prunable else "no prunable layer is known in this model"
    return [
        html.H2("Model"),
        _choice("model", "Model", {name: name for name in models}, state.model),
        _slider(
            "density", "Density", told, span=(0, 1, 0.01), value=state.density, marks={0: "0", 0.5: "0.5", 1: "1"}, blocked=unpruned
        ),
        _choice("block", "Block shape, out × in", {shape: shape.replace("x", " × ") for shape in BLOCKS}, state.block, unpruned),
        _choice("lie", "Kept blocks lie", dict(RULES), state.lie, unpruned),
        _count("heads", "Heads per block", told, state.heads, model.heads),
        _count("tokens", f"Patch tokens from block {model.thinned_from} on", told, state.tokens, model.tokens),
        _steps("batch", "Batch", told, list(map(str, BATCHES)), str(state.batch), blocked=model.batches.fixed),
        html.H2("Machine"),
        _choice("device", "Device", {name: name for name in bench.devices}, state.device),
        _choice("mode", "Execution mode", {mode: mode for mode in machines.modes_of(card)}, state.mode),
        _choice("power", "Power mode", {one: one for one in power or ("",)}, state.power, "" if power else "this card has one"),
        _steps(
            "array", f"Array size ({array.what})" if array else "Array size", told,
            [size or "own" for size in sizes], state.array or "own",
            blocked=machines.array_blocked(card, state, tried),
        ),
        _steps(
            "bandwidth", "Off-chip bandwidth (× the card's)", told,
            [f"{factor:g}" for factor in BANDWIDTHS], f"{state.bandwidth:g}",
            blocked=machines.bandwidth_blocked(card, state, tried),
        ),
    ]  # fmt: skip


def _field(name: str, label: str, contents: Sequence[Any], blocked: str) -> Any:
    reason = [html.P(f"Cannot be moved: {blocked}.", className="blocked")] if blocked else []
    named: Any = {"role": "group", "aria-labelledby": f"label-{name}"}
    parts = [html.Label(label, htmlFor=name, id=f"label-{name}"), *contents, *reason]
    return html.Div(parts, className="field" + (" off" if blocked else ""), **named)


def _choice(name: str, label: str, options: dict[Any, str], value: str, blocked: str = "") -> Any:
    listed = [{"label": text or "none", "value": key} for key, text in options.items()]
    found = dcc.Dropdown(id=name, options=listed, value=value, clearable=False, searchable=len(listed) > 8, disabled=bool(blocked))
    return _field(name, label, [found], blocked)


def _slider(
    name: str, label: str, told: Mapping[str, str], *,
    span: tuple[float, float, float], value: float, marks: dict[float, str], blocked: str,
) -> Any:  # fmt: skip
    low, high, step = span
    slider = dcc.Slider(
        id=name, min=low, max=high, step=step, value=value, marks=marks, disabled=bool(blocked), updatemode="mouseup",
        allow_direct_input=False,
    )  # fmt: skip
    return _field(name, label, [html.Output(told[name], id=f"value-{name}"), slider], blocked)


def _count(name: str, label: str, told: Mapping[str, str], value: int, limit: tuple[int, str]) -> Any:
    """A slider up to the count of ``limit``, which also says why it cannot be moved."""
    top, blocked = max(limit[0], 2), limit[1]
    return _slider(name, label, told, span=(1, top, 1), value=value or top, marks={1: "1", top: str(top)}, blocked=blocked)


def _steps(name: str, label: str, told: Mapping[str, str], texts: Sequence[str], value: str, *, blocked: str) -> Any:
    """A slider over a list: its value is the place in it."""
    place = texts.index(value) if value in texts else 0
    every = 2 if len(texts) > 8 else 1
    marks: dict[float, str] = {at: text for at, text in enumerate(texts) if at % every == 0 and len(texts[-1]) < 6}
    ends: dict[float, str] = {0: texts[0], len(texts) - 1: texts[-1]} if len(texts) > 1 else {0: texts[0]}
    span = (0, max(len(texts) - 1, 1), 1)
    return _slider(name, label, told, span=span, value=place, marks=marks or ends, blocked=blocked)


def state_of(bench: Workbench, values: dict[str, Any]) -> State:
    """The state that the values of all controls (by name) stand for."""
    model, card = bench.models.get(values["model"]), bench.card(values["device"])
    array = machines.array_of(card, values["power"])
    sizes = list(array.sizes) if array else [""]
    return State(
        model=values["model"], device=values["device"], mode=values["mode"], power=values["power"] or "",
        block=values["block"], lie=values["lie"],
        density=round(float(values["density"]), 2),
        heads=_fewer(values["heads"], *model.heads),
        tokens=_fewer(values["tokens"], *model.tokens),
        batch=model.first.batch if model.batches.fixed else BATCHES[int(values["batch"])],
        array=sizes[min(int(values["array"]), len(sizes) - 1)],
        bandwidth=BANDWIDTHS[int(values["bandwidth"])],
    )  # fmt: skip


def _fewer(value: float, most: int, blocked: str) -> int:
    """A count that stays; 0 where all stay."""
    return 0 if blocked or value >= most else int(value)


def readings(bench: Workbench, state: State) -> dict[str, str]:
    """What stands beside the label of every slider: its value in words."""
    model, card = bench.models.get(state.model), bench.card(state.device)
    return {
        "density": f"{state.density:.0%} of blocks kept",
        "heads": f"{state.heads or model.heads[0]} of {model.heads[0]}",
        "tokens": f"{state.tokens or model.tokens[0]} of {model.tokens[0]}",
        "batch": f"{state.batch} image{'s' if state.batch > 1 else ''}",
        "array": state.array or machines.own_size(card, state),
        "bandwidth": machines.bandwidth_text(card, state),
    }


def shown(answer: Answer, grid: Grid | None) -> dict[str, Any]:
    """An answer as the properties of the page's elements."""
    return {
        "numbers": _numbers(answer),
        "roofline": roofline(answer),
        "pareto": pareto(answer, grid),
        "position": "Pricing its neighbours ..." if grid is None else views.position(answer, grid),
    }


def _numbers(answer: Answer) -> list[Any]:
    """Totals and bars in as few elements as they need: the browser visits every element at every move."""
    latency = [html.H2("Latency by layer type"), *(_bar(bar, "latency") for bar in views.latency_bars(answer))]
    energy = [html.H2("Energy by layer type"), *(_bar(bar, "energy") for bar in views.energy_bars(answer))]
    return [
        html.Div([html.P(f"{total.value}\n{total.name}\n{total.beside}") for total in views.totals(answer)], className="totals"),
        html.P(views.trust(answer), className="trust"),
        html.Div([html.Section(latency), html.Section(energy)], className="panels"),
    ]


def _bar(bar: views.Bar, what: str) -> Any:
    """A line of text over a strip, which is a background of hard colour stops."""
    told = [f"{ROLES[role]} {text}" for role, _, text in bar.parts]
    named: Any = {"role": "img", "aria-label": f"{what}, {bar.name}, {bar.total}: {', '.join(told)}"}
    strip = {"backgroundImage": f"linear-gradient(to right, {', '.join(_stops(bar))})"}
    return html.Div(f"{bar.name}: {bar.total}", className="bar", title="\n".join(told), style=strip, **named)


def _stops(bar: views.Bar) -> list[str]:
    """Every part in its colour with a line after it, then the empty rest; the strip is as long as the dense model's whole."""
    widest, end, stops = max(1.0, sum(share for _, share, _ in bar.parts)), 0.0, []
    for role, share, _ in bar.parts:
        start, end = end, end + 100 * share / widest
        edge = f"max({start:.2f}%, {end:.2f}% - 1px)"
        stops += [f"var(--role-{role}) {start:.2f}% {edge}", f"var(--paper) {edge} {end:.2f}%"]
    return [*stops, f"var(--grid) {end:.2f}%"]
