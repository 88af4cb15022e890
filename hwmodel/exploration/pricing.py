"""Prices points of a study in array form: one call per trace and choice, card fields as arrays."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from hwmodel.backends.estimates import Request
from hwmodel.errors import HwmodelError
from hwmodel.exploration.axes import CARD, Value
from hwmodel.exploration.evaluate import Totals
from hwmodel.exploration.problem import Problem
from hwmodel.exploration.quantities import Column, Columns, derived, proxy_column, satisfied
from hwmodel.exploration.space import Case, Chunk, calls_of
from hwmodel.exploration.study import StudyError


def price_chunk(problem: Problem, chunk: Chunk) -> Columns:
    """All columns of the points of a chunk, in order."""
    case = problem.cases[chunk.case]
    parts = [price(problem, case, setting, arrays, designs) for setting, arrays, designs in calls_of(case, chunk)]
    return {"point": chunk.points} | joined(parts)


def joined(parts: list[Columns]) -> Columns:
    """Columns of several calls, one after the other."""
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def price(problem: Problem, case: Case, setting: Mapping[str, Value], arrays: Mapping[str, Column], designs: int) -> Columns:
    """One call: the columns of ``designs`` points that share a trace and its choices.

    Raises
    ------
    StudyError
        What this case cannot take, with the setting it was found at.
    """
    machine = problem.machines[case.machine]
    try:
        overrides = machine.overrides(case.axes, {**setting, **arrays})
        evaluator = machine.evaluator(problem.trace(case, setting), problem.study, problem.choices(case, setting))
        totals = evaluator.totals(overrides)
    except HwmodelError as error:
        told = ", ".join(f"{name} = {value}" for name, value in setting.items())
        raise StudyError(": ".join(filter(None, (told, problem.place(case), str(error))))) from error
    request = evaluator.request
    columns = _named(problem, case, {**setting, **arrays}, request) | _quantities(request, overrides, totals)
    wide = {name: _wide(values, designs) for name, values in columns.items()}
    if problem.accuracy is not None:
        wide["accuracy"] = np.array([problem.accuracy.look_up(point) for point in _points(wide, designs)])
    return _judged(problem, request, overrides, wide)


def _named(problem: Problem, case: Case, values: Mapping[str, Any], request: Request) -> dict[str, Any]:
    """What each point is: its case, the value of every axis (None where its card has no such field)."""
    head = {
        "model": problem.study.models[case.model].title,
        "recipe": case.recipe,
        "device": problem.machines[case.machine].title,
        "mode": request.mode,
        "batch": request.workload.trace.batch,
        "dtype": request.dtype,
    }
    return head | {axis.title: values.get(axis.title) for axis in problem.study.vary if axis.title not in head}


def _quantities(request: Request, overrides: Mapping[str, Any], totals: Totals) -> Columns:
    trace, designs = request.workload.trace, len(totals)
    areas = request.area_mm2(overrides).values()
    silicon = sum(np.asarray(area, dtype=np.float64) for area in areas) if areas else np.nan
    alike = {"macs": trace.macs, "kept_macs": trace.kept_macs, "batch": trace.batch, "area_mm2": silicon}
    priced = {name: getattr(totals, name) for name in ("latency_s", "energy_j", "cycles", "dram_bytes", "executed_macs")}
    columns = derived(priced | {name: _wide(np.asarray(value, dtype=np.float64), designs) for name, value in alike.items()})
    del columns["batch"]
    return columns


def _wide(value: Any, designs: int) -> Column:
    """A column of ``designs`` entries from a value or an array; text and None as objects."""
    if value is None or isinstance(value, str):
        return np.full(designs, value, dtype=object)
    return np.ascontiguousarray(np.broadcast_to(np.asarray(value), designs))


def _points(columns: Columns, designs: int) -> Iterator[dict[str, Any]]:
    return ({name: values[row] for name, values in columns.items()} for row in range(designs))


def _judged(problem: Problem, request: Request, overrides: Mapping[str, Any], columns: Columns) -> Columns:
    """With card fields and proxies that the study speaks of, whether all constraints hold, and the fidelity."""
    study, parameters = problem.study, request.card.resolve(request.mode, overrides)
    designs = len(columns["latency_s"])

    def column(name: str) -> Column:
        return columns[name].astype(np.float64) if name in columns else _field(parameters, name.removeprefix(CARD), designs)

    asked = [*(o.quantity for o in study.objectives), *(c.quantity for c in study.constraints)]
    proxies = {proxy.name: _wide(proxy_column(proxy, column), designs) for proxy in study.proxies}
    fields = {name: column(name) for name in asked if name.startswith(CARD)}
    columns = columns | proxies | fields
    met = [satisfied(constraint, columns[constraint.quantity]) for constraint in study.constraints]
    verdict = np.logical_and.reduce(met) if met else np.ones(designs, dtype=np.bool_)
    fidelity = {f"{what}_fidelity": _wide(level, designs) for what, level in request.fidelity(overrides).items()}
    return columns | {"feasible": verdict} | fidelity


def _field(parameters: Any, name: str, designs: int) -> Column:
    """A card field as a column; NaN on cards that have none."""
    field, _, key = name.partition(".")
    value = getattr(parameters, field, None)
    value = value.get(key) if key and isinstance(value, dict) else value
    if value is None or isinstance(value, str | bool | dict | list):
        return _wide(np.nan, designs)
    return _wide(np.ravel(np.asarray(value, dtype=np.float64)), designs)
