"""The Dash application: which control changes what."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from importlib.resources import files
from typing import Any

from dash import Dash, Input, Output, ctx, html, no_update
from dash import State as Held
from dash.exceptions import PreventUpdate

from hwmodel.errors import HwmodelError
from hwmodel.reporting.breakdown import ROLES
from hwmodel.reporting.style import colour, css_variables, role_token
from hwmodel.ui import page, saving
from hwmodel.ui.machines import default_modes
from hwmodel.ui.opening import opened
from hwmodel.ui.state import State, search_of
from hwmodel.ui.workbench import Workbench

_REBUILDING = ("model", "device", "mode", "power")
"""Choices on which it depends what the other controls may be."""


def _values(moving: Collection[str]) -> dict[str, Any]:
    """The values of all controls; a callback runs when one of ``moving`` changes."""
    return {name: (Input if name in moving else Held)(name, "value") for name in page.KNOBS}


_MOVE_POINTS = {"density", "heads", "tokens"}
"""Controls that leave machine, batch and dense model alone, so that the titles of the figures stay."""

_VALUES = _values(page.KNOBS)
_BUILT = Held("built", "data")
_READINGS = {name: Output(f"value-{name}", "children") for name in page.SLIDERS}
_DRAGGED = {name: Input(name, "drag_value") for name in page.SLIDERS}
_SHOWN = {
    "numbers": Output("numbers", "children"),
    "roofline": Output("roofline", "figure"),
    "pareto": Output("pareto", "figure"),
    "move_roofline": Output("roofline", "animate"),
    "move_pareto": Output("pareto", "animate"),
    "position": Output("position", "children"),
}
_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>{%metas%}<meta name="viewport" content="width=device-width, initial-scale=1"><title>{%title%}</title>{%css%}
<style>:root {LIGHT} @media (prefers-color-scheme: dark) {:root {DARK}} {POINTS}</style></head>
<body>{%app_entry%}<footer>{%config%}{%scripts%}{%renderer%}</footer></body>
</html>"""


def make_app(bench: Workbench) -> Dash:
    """The application over a workbench; it takes everything from this machine and nothing from another."""
    app = Dash(
        "hwmodel", title="hwmodel explorer", update_title="", serve_locally=True, assets_folder=str(files("hwmodel.ui") / "assets"),
        suppress_callback_exceptions=True, include_assets_files=True,
    )  # fmt: skip
    light, dark = (f"{{{css_variables(dark=night)}}}" for night in (False, True))
    app.index_string = _PAGE.replace("{LIGHT}", light).replace("{DARK}", dark).replace("{POINTS}", _point_colours())
    app.layout = page.layout
    _connect_address(app, bench)
    _connect_answer(app, bench)
    _connect_saving(app, bench)
    return app


def _point_colours() -> str:
    """CSS that puts the page's colour of a role in place of the one that plotly wrote into a point."""
    tokens = [role_token(role) for role in ROLES]
    written = [tuple(int(colour(token)[at : at + 2], 16) for at in (1, 3, 5)) for token in tokens]
    return " ".join(
        f'.point[style*="rgb({red}, {green}, {blue})"] {{fill: var(--{token}) !important}}'
        for token, (red, green, blue) in zip(tokens, written, strict=True)
    )


def _connect_address(app: Dash, bench: Workbench) -> None:
    """The address makes the controls; the controls write the address.

    ``address`` is read and ``bookmark`` written, or else every answer would wait for the address. ``written`` holds what was
    written last, so that moving a slider does not make the controls anew, and going back or choosing a machine does; ``built``
    holds what the controls were made for.
    """

    @app.callback(
        Output("controls", "children"), Output("notice", "children"), Output("built", "data"),
        Input("address", "search"), Input("written", "data"),
    )  # fmt: skip
    def build(search: str | None, written: dict[str, Any] | None) -> tuple[Any, Any, str]:
        chosen = ctx.triggered_id == "written"
        if written and (not written["new_controls"] if chosen else written["search"] == search):
            raise PreventUpdate
        wanted = written["search"] if written and chosen else search or ""
        state, notes = opened(bench, wanted)
        return page.controls(bench, state), [html.P(f"{note[0].upper()}{note[1:]}.") for note in notes], wanted

    @app.callback(Output("written", "data"), inputs={"values": _VALUES, "built": _BUILT}, prevent_initial_call=True)
    def write(values: dict[str, Any], built: str | None) -> dict[str, Any]:
        before, _ = opened(bench, built)
        moved = bool(_moved(before, values))
        state = adapted(bench, before, values) if moved else page.state_of(bench, values)
        return {"search": search_of(state), "new_controls": moved}

    @app.callback(Output("bookmark", "search"), Input("written", "data"), prevent_initial_call=True)
    def show(written: dict[str, Any]) -> str:
        return str(written["search"])


def _moved(before: State, values: Mapping[str, Any]) -> list[str]:
    """Choices that differ from those the controls were built for."""
    return [name for name in _REBUILDING if (values[name] or "") != getattr(before, name)]


def _wait_for_controls(bench: Workbench, built: str | None, values: Mapping[str, Any]) -> None:
    """Answer nothing while controls of another model or machine are on their way."""
    if _moved(opened(bench, built)[0], values):
        raise PreventUpdate


def adapted(bench: Workbench, before: State, values: Mapping[str, Any]) -> State:
    """The state after another model, device or mode was chosen, with everything kept that means the same there."""
    moved = {name: values[name] for name in _moved(before, values)}
    kept = page.state_of(bench, {**values, **{name: getattr(before, name) for name in _REBUILDING}})
    changes: dict[str, Any] = dict(moved)
    if "device" in moved:
        mode, power = default_modes(bench.card(values["device"]))
        changes |= {"mode": mode, "power": power}
    if "device" in moved or "power" in moved:
        changes |= {"array": ""}
    if "model" in moved:
        model = bench.models.get(values["model"])
        changes |= {"heads": 0, "tokens": 0} | ({"batch": model.first.batch} if model.batches.fixed else {})
    return kept.but(**changes)


def _connect_answer(app: Dash, bench: Workbench) -> None:
    """Every move is priced; its neighbours are priced when the slider rests."""

    @app.callback(
        output={"shown": _SHOWN, "readings": _READINGS, "refusal": Output("refusal", "children")},
        inputs={"values": _VALUES, "dragged": _DRAGGED, "built": _BUILT, "refused": Held("refusal", "children")},
        prevent_initial_call=True,
    )
    def answer(values: dict[str, Any], dragged: dict[str, Any], built: str | None, refused: str | None) -> dict[str, Any]:
        _wait_for_controls(bench, built, values)
        state = page.state_of(bench, values | _in_hand(dragged))
        readings = {name: text if name in _moving() else no_update for name, text in page.readings(bench, state).items()}
        moves = _moving() <= _MOVE_POINTS
        try:
            found = page.shown(bench.answer(state), bench.known_grid(state)) | {"move_roofline": moves, "move_pareto": moves}
        except HwmodelError as error:
            unchanged = dict.fromkeys(_SHOWN, no_update)
            return {"shown": unchanged, "readings": readings, "refusal": f"Not priced, the figures are those before: {error}"}
        return {"shown": found, "readings": readings, "refusal": "" if refused else no_update}

    others = [name for name in page.KNOBS if name not in {"density", "tokens"}]

    @app.callback(
        Output("pareto", "figure", allow_duplicate=True), Output("position", "children", allow_duplicate=True),
        inputs={"values": _values(others), "built": _BUILT}, prevent_initial_call=True,
    )  # fmt: skip
    def price_neighbours(values: dict[str, Any], built: str | None) -> tuple[Any, Any]:
        _wait_for_controls(bench, built, values)
        state = page.state_of(bench, values)
        try:
            found = page.shown(bench.answer(state), bench.grid(state))
        except HwmodelError as error:  # the answer itself says why
            raise PreventUpdate from error
        return found["pareto"], found["position"]


def _moving() -> set[str]:
    """Controls that the running callback was called for. Each output that stays saves the browser a round through the page."""
    return {name.rpartition(".")[0] for name in ctx.triggered_prop_ids}


def _in_hand(dragged: Mapping[str, Any]) -> dict[str, Any]:
    """Values of the sliders that are being dragged right now."""
    triggered = set(ctx.triggered_prop_ids)
    return {
        name: value
        for name, value in dragged.items()
        if f"{name}.drag_value" in triggered and f"{name}.value" not in triggered and value is not None
    }


def _connect_saving(app: Dash, bench: Workbench) -> None:
    """Files are made here and downloaded by the browser; nothing is written on this machine."""

    @app.callback(
        output={"file": Output("file", "data"), "told": Output("saved", "children")},
        inputs={"clicks": [Input(f"save-{what}", "n_clicks") for what in page.SAVED]},
        state={"values": _values(())},
        running=[(Output(f"save-{what}", "disabled"), True, False) for what in page.SAVED],
        prevent_initial_call=True,
    )
    def save(clicks: list[int | None], values: dict[str, Any]) -> dict[str, Any]:
        if not any(clicks):
            raise PreventUpdate
        state = page.state_of(bench, values)
        try:
            name, content = saving.file_of(bench, state, str(ctx.triggered_id).removeprefix("save-"))
        except HwmodelError as error:
            return {"file": no_update, "told": f"Not saved: {error}"}
        return {"file": {"filename": name, "content": content, "type": "text/plain"}, "told": f"Saved as {name}"}
