"""Prices points of a study in array form: one call per trace and choice, card fields as arrays, slices that bound memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from hwmodel.backends.estimates import Estimate
from hwmodel.errors import HwmodelError
from hwmodel.exploration.problem import Problem
from hwmodel.exploration.quantities import Column, Columns, derived, proxy_column, satisfied
from hwmodel.exploration.space import Case, Chunk, calls_of
from hwmodel.exploration.study import CARD, StudyError, Value

MEMORY_BYTES = 96 * 2**20
"""About what one slice may take."""
BYTES_PER_ENTRY = 8 * 64
"""Of one operator of one design: what a backend holds at once, in 8-byte numbers."""


def price_chunk(problem: Problem, chunk: Chunk) -> Columns:
    """All columns of the points of a chunk, in order."""
    case = problem.cases[chunk.case]
    most = max(1, MEMORY_BYTES // (BYTES_PER_ENTRY * max(case.operators, 1)))
    parts = [price(problem, case, setting, arrays, designs) for setting, arrays, designs in calls_of(case, chunk, most)]
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
    try:
        found = _estimated(problem, case, setting, arrays)
    except HwmodelError as error:
        told = ", ".join(f"{name} = {value}" for name, value in setting.items())
        raise StudyError(": ".join(filter(None, (told, problem.place(case), str(error))))) from error
    columns = _named(problem, case, {**setting, **arrays}, found) | _quantities(found)
    wide = {name: _wide(values, designs) for name, values in columns.items()}
    if problem.accuracy is not None:
        wide["accuracy"] = np.array([problem.accuracy.look_up(point) for point in _points(wide, designs)])
    return _judged(problem, found, wide, designs)


def _estimated(problem: Problem, case: Case, setting: Mapping[str, Value], arrays: Mapping[str, Column]) -> Estimate:
    machine = problem.machines[case.machine]
    overrides = machine.overrides(case.axes, {**setting, **arrays})
    return machine.estimate(problem.trace(case, setting), problem.study, problem.choices(case, setting), overrides)


def _named(problem: Problem, case: Case, values: Mapping[str, Any], found: Estimate) -> dict[str, Any]:
    """What each point is: its case, the value of every axis (None where its card has no such field)."""
    head = {
        "model": problem.study.models[case.model].title,
        "recipe": case.recipe,
        "device": problem.machines[case.machine].title,
        "mode": found.mode,
        "batch": found.trace.batch,
        "dtype": found.dtype,
    }
    return head | {axis.title: values.get(axis.title) for axis in problem.study.vary if axis.title not in head}


def _quantities(found: Estimate) -> Columns:
    trace = found.trace
    raw = {
        "latency_s": found.latency_s, "energy_j": found.energy_j, "cycles": found.cycles, "dram_bytes": found.dram_bytes,
        "macs": trace.macs, "kept_macs": trace.kept_macs, "executed_macs": found.executed_macs, "batch": trace.batch,
    }  # fmt: skip
    areas = found.area_mm2.values()
    silicon = sum(np.asarray(area, dtype=np.float64) for area in areas) if areas else np.nan
    arrays = np.broadcast_arrays(*(np.ravel(np.asarray(value, dtype=np.float64)) for value in (*raw.values(), silicon)))
    columns = derived(dict(zip((*raw, "area_mm2"), arrays, strict=True)))
    del columns["batch"]
    return columns


def _wide(value: Any, designs: int) -> Column:
    """A column of ``designs`` entries from a value or an array; text and None as objects."""
    if value is None or isinstance(value, str):
        return np.full(designs, value, dtype=object)
    return np.ascontiguousarray(np.broadcast_to(np.asarray(value), designs))


def _points(columns: Columns, designs: int) -> Iterator[dict[str, Any]]:
    return ({name: values[row] for name, values in columns.items()} for row in range(designs))


def _judged(problem: Problem, found: Estimate, columns: Columns, designs: int) -> Columns:
    """With card fields and proxies that the study speaks of, whether all constraints hold, and the fidelity."""
    study, parameters = problem.study, found.card.resolve(found.mode, found.overrides)

    def column(name: str) -> Column:
        return columns[name].astype(np.float64) if name in columns else _field(parameters, name.removeprefix(CARD), designs)

    asked = [*(o.quantity for o in study.objectives), *(c.quantity for c in study.constraints)]
    proxies = {proxy.name: _wide(proxy_column(proxy, column), designs) for proxy in study.proxies}
    fields = {name: column(name) for name in asked if name.startswith(CARD)}
    columns = columns | proxies | fields
    met = [satisfied(constraint, columns[constraint.quantity]) for constraint in study.constraints]
    verdict = np.logical_and.reduce(met) if met else np.ones(designs, dtype=np.bool_)
    fidelity = {f"{what}_fidelity": _wide(level, designs) for what, level in found.fidelity.items()}
    return columns | {"feasible": verdict} | fidelity


def _field(parameters: Any, name: str, designs: int) -> Column:
    """A card field as a column; NaN on cards that have none."""
    field, _, key = name.partition(".")
    value = getattr(parameters, field, None)
    value = value.get(key) if key and isinstance(value, dict) else value
    if value is None or isinstance(value, str | bool | dict | list):
        return _wide(np.nan, designs)
    return _wide(np.ravel(np.asarray(value, dtype=np.float64)), designs)
