"""Which figures a study's results call for, and writing them beside the results."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from hwmodel.exploration.effects import effects, varied, worth
from hwmodel.exploration.quantities import QUANTITIES, goal_of
from hwmodel.exploration.results import Results
from hwmodel.exploration.study import PRUNING_KNOBS, Objective
from hwmodel.files import write_file
from hwmodel.reporting.study_figures import Axis, Bar, heat_maps, interactions, parallel, scatter, sensitivity
from hwmodel.reporting.style import figure_file

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

CASES = ("model", "recipe", "device", "mode")
MOST_BARS = 10
MOST_PANELS = 4
MOST_GROUPS = 8


def figures(results: Results) -> dict[str, Figure]:
    """Figures by name: front, parallel, sensitivity, heat, interactions; those that the study gives no data for are left out."""
    frame, front, axes = results.frame(), results.front(), objective_axes(results)
    if front.empty:
        return {}
    knobs = knobs_of(results, frame)
    found = {"front": scatter(frame, front, axes, _grouping(frame, knobs))} if len(axes) > 1 else {}
    if len(front) > 1 and len(knobs) + len(axes) > 2:
        found["parallel"] = parallel(front, [*(Axis(name) for name in knobs), *axes], axes[0])
    if knobs:
        found["sensitivity"] = sensitivity([(axis, _bars(frame, knobs, axis)) for axis in axes[:2]])
    pair = _strongest_numbers(frame, knobs, axes[0])
    if pair is not None:
        found["heat"] = heat_maps(frame, *pair, axes[:2])
    crossed = _crossed(results, frame, knobs, pair)
    if crossed is not None and (frame[axes[0].name] > 0).all():
        found["interactions"] = interactions(_panels(frame, axes[0], *crossed, knobs), axes[0])
    return found


def write_figures(results: Results, folder: str | Path, suffix: str = ".png") -> list[Path]:
    """Draw :func:`figures` into ``folder``; the files written."""
    paths = []
    for name, figure in figures(results).items():
        path = Path(folder) / f"{name}{suffix}"
        write_file(path, figure_file(figure, suffix))
        paths.append(path)
    return paths


def objective_axes(results: Results) -> list[Axis]:
    """The objectives as axes of a figure."""
    return [_axis(objective) for objective in results.study.objectives]


def _axis(objective: Objective) -> Axis:
    known = QUANTITIES.get(objective.quantity)
    return Axis(objective.quantity, known.unit if known else "", goal_of(objective))


def knobs_of(results: Results, frame: pd.DataFrame) -> list[str]:
    """What varies: the axes, and of model, recipe, device and mode those with values of their own.

    A mode that goes with its device is no knob of its own.
    """
    cases = varied(frame, CASES)
    own = [name for name in cases if not any(_same(frame, name, before) for before in cases[: cases.index(name)])]
    return [*own, *(name for name in varied(frame, [axis.title for axis in results.study.vary]) if name not in own)]


def _same(frame: pd.DataFrame, one: str, other: str) -> bool:
    """Whether two columns tell the same apart."""
    pairs = frame[[one, other]].drop_duplicates()
    return len(pairs) == frame[one].nunique() == frame[other].nunique()


def _grouping(frame: pd.DataFrame, knobs: list[str]) -> str | None:
    """What colours tell apart in the scatter: the first knob of few values."""
    return next((name for name in knobs if frame[name].nunique() <= MOST_GROUPS and frame[name].notna().all()), None)


def _bars(frame: pd.DataFrame, knobs: list[str], axis: Axis) -> list[Bar]:
    """All single knobs and the pairs that explain a percent or more, the largest first."""
    found = [effect for effect in effects(frame, knobs, axis.name) if len(effect.knobs) == 1 or effect.share >= 0.01]
    found.sort(key=lambda effect: -effect.share)
    return [Bar(" x ".join(one.knobs), one.share, one.factor if len(one.knobs) == 1 else None) for one in found[:MOST_BARS]]


def _numbers(frame: pd.DataFrame, knobs: list[str]) -> list[str]:
    return [name for name in knobs if frame[name].dtype.kind in "iuf"]


def _strongest_numbers(frame: pd.DataFrame, knobs: list[str], axis: Axis) -> tuple[str, str] | None:
    """The two numeric knobs with listed values that matter most."""
    listed = [name for name in _numbers(frame, knobs) if frame[name].nunique() <= 40]
    ranked = [effect.knobs[0] for effect in effects(frame, listed, axis.name) if len(effect.knobs) == 1]
    return (ranked[0], ranked[1]) if len(ranked) > 1 else None


def _crossed(results: Results, frame: pd.DataFrame, knobs: list[str], strongest: tuple[str, str] | None) -> tuple[str, str] | None:
    """Two knobs whose interaction is drawn: density by tokens or heads where they vary, else the two that matter most."""
    pruned = {
        field: axis.title for axis in results.study.vary for field in PRUNING_KNOBS if field == axis.knob[0].rpartition(".")[2]
    }
    ours = [pruned[name] for name in ("density", "keep", "tokens", "heads", "mlp") if pruned.get(name) in _numbers(frame, knobs)]
    listed = [name for name in ours if frame[name].nunique() <= 40]
    return (listed[0], listed[1]) if len(listed) > 1 else strongest


def _panels(frame: pd.DataFrame, axis: Axis, knob: str, by: str, knobs: list[str]) -> list[tuple[str, pd.DataFrame]]:
    """One table per device and mode; with a single one, per value of a further knob of few values."""
    known = frame[frame[knob].notna() & frame[by].notna()]
    further: list[str] = [name for name in ("device", "mode") if name in knobs]
    if not further:
        further = [name for name in knobs if name not in {knob, by} and known[name].nunique() <= MOST_PANELS][:1]
    if not further:
        return [("", worth(known, axis.name, knob, by, axis.goal or "min"))]  # type: ignore[arg-type]
    groups = list(known.groupby(further, observed=True))[:MOST_PANELS]
    return [(_titled(further, key), worth(rows, axis.name, knob, by, axis.goal or "min")) for key, rows in groups]  # type: ignore[arg-type]


def _titled(names: list[str], key: object) -> str:
    values = key if isinstance(key, tuple) else (key,)
    plain = {"device", "mode", "model", "recipe"}
    return ", ".join(str(value) if name in plain else f"{name} = {value}" for name, value in zip(names, values, strict=True))
