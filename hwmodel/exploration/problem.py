"""A study made ready: cards and traces read, every knob and value checked, the space cut into cases, a fingerprint of it all."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from itertools import product

from hwmodel.backends.cards import load_card
from hwmodel.errors import HwmodelError
from hwmodel.exploration.accuracy import AccuracyTable, read_accuracy
from hwmodel.exploration.axes import CARD, Axis, Value
from hwmodel.exploration.checks import check_knobs, check_quantities
from hwmodel.exploration.machines import Machine
from hwmodel.exploration.space import Case, Chunk, chunks
from hwmodel.exploration.study import DENSE, Study, StudyError
from hwmodel.exploration.variants import Variants, known_recipes
from hwmodel.ir.storage import trace_to_document
from hwmodel.ir.trace import Trace

CHOICES = frozenset({"dtype", "attention", "sparse_kernel"})
"""Knobs that are neither of the trace nor of the card."""


@dataclass(frozen=True)
class Problem:
    """All that is needed to price any point of a study; travels to workers."""

    study: Study
    machines: tuple[Machine, ...]
    variants: Variants
    cases: tuple[Case, ...]
    accuracy: AccuracyTable | None
    digests: Mapping[str, str]
    """Hashes of what decides the results: study, cards, models, accuracy, hwmodel."""

    @property
    def fingerprint(self) -> str:
        """One hash of them all."""
        return _hashed(dict(self.digests))

    @property
    def size(self) -> int:
        """Points of the grid."""
        return sum(case.size for case in self.cases)

    @cached_property
    def chunks(self) -> tuple[Chunk, ...]:
        """The grid in pieces; each is a file of the results."""
        return tuple(chunks(self.cases))

    def place(self, case: Case) -> str:
        """A case in words."""
        recipe = "" if case.recipe == DENSE else f" ({case.recipe})"
        machine = self.machines[case.machine]
        return f"{self.study.models[case.model].title}{recipe} on {machine.title}, {machine.mode}"

    def trace(self, case: Case, values: Mapping[str, Value]) -> Trace:
        """The trace of a case at these values of its axes."""
        turned = {knob: value for knob, value in knobs(case.axes, values).items() if knob not in CHOICES}
        return self.variants.trace(case.model, case.recipe, turned)

    def choices(self, case: Case, values: Mapping[str, Value]) -> dict[str, Value]:
        """Number format and kernels chosen at these values."""
        return {knob: value for knob, value in knobs(case.axes, values).items() if knob in CHOICES}


def knobs(axes: Sequence[Axis], values: Mapping[str, Value]) -> dict[str, Value]:
    """Values by knob, card fields left out."""
    return {knob: values[axis.title] for axis in axes for knob in axis.knob if axis.title in values and not knob.startswith(CARD)}


def prepare(study: Study) -> Problem:
    """Read and check everything a study names.

    Raises
    ------
    StudyError
        Knobs, fields, quantities or values that nothing has, constraints that exclude each other.
    HwmodelError
        Cards, recipes, models or modes that do not exist.
    """
    machines = tuple(_machines(study))
    check_knobs(study, machines)
    check_quantities(study)
    variants = Variants(study, known_recipes(study))
    accuracy = None if study.accuracy is None else read_accuracy(study.accuracy, study)
    cases = tuple(_cases(study, machines, variants))
    problem = Problem(study, machines, variants, cases, accuracy, {})
    _check_values(problem)
    return Problem(study, machines, variants, cases, accuracy, _digests(problem))


def _machines(study: Study) -> Iterator[Machine]:
    for device in study.devices:
        card = load_card(device.name)
        for mode in device.modes or (card.default_mode,):
            card.split_mode(mode)
            yield Machine(card, mode, device.label or card.name, device.set)


def _cases(study: Study, machines: Sequence[Machine], variants: Variants) -> Iterator[Case]:
    for number, model in enumerate(study.models):
        for recipe, place in product(model.recipes, range(len(machines))):
            yield _case(study, (number, recipe, place), machines[place], variants.base(number, recipe, {}))


def _case(study: Study, names: tuple[int, str, int], machine: Machine, dense: Trace) -> Case:
    """A case with the axes that mean something on its machine, sorted by how they are priced."""
    mine = [axis for axis in study.vary if machine.takes(axis)]
    fast = tuple(axis for axis in mine if machine.takes_arrays(axis, study, dense))
    slow = sorted((axis for axis in mine if axis not in fast), key=lambda axis: all(knob.startswith(CARD) for knob in axis.knob))
    return Case(*names, slow=tuple(slow), fast=fast, simulated=machine.simulated)


def _check_values(problem: Problem) -> None:
    """Each value of a card field, and the ends of every other axis, on every case."""
    for case in problem.cases:
        first = {axis.title: axis.samples()[0] for axis in case.axes}
        _check_point(problem, case, first, "")
        for axis in case.axes:
            ends = (axis.samples()[0], axis.samples()[-1])
            for value in axis.samples() if axis in case.fast else dict.fromkeys(ends):
                _check_point(problem, case, {**first, axis.title: value}, f"{axis.title} = {value}: ")


def _check_point(problem: Problem, case: Case, values: Mapping[str, Value], told: str) -> None:
    machine = problem.machines[case.machine]
    try:
        machine.card.resolve(machine.mode, machine.overrides(case.axes, values))
        dtype = problem.choices(case, values).get("dtype", problem.study.dtype)
        if dtype is not None:
            machine.card.check_dtype(str(dtype))
        problem.trace(case, values)
    except HwmodelError as error:
        raise StudyError(f"{told}{problem.place(case)}: {error}") from error


def _digests(problem: Problem) -> dict[str, str]:
    """The study without its texts and budgets, the cards' numbers, the traces as the recipes leave them."""
    study = problem.study
    budgets = {"title": True, "limit": True, "search": {"trials": True, "storage": True}, "accuracy": {"file": True}}
    firsts = {case: problem.trace(case, {axis.title: axis.samples()[0] for axis in case.axes}) for case in problem.cases}
    parts = {
        "study": study.model_dump(mode="json", exclude=budgets),  # type: ignore[arg-type]
        "cards": [machine.card.model_dump(mode="json", exclude={"title", "scores"}) for machine in problem.machines],
        "models": [{**trace_to_document(trace), "versions": {}} for trace in firsts.values()],
        "accuracy": None if problem.accuracy is None else problem.accuracy.digest,
        "hwmodel": version("hwmodel"),
    }
    return {name: _hashed(part) for name, part in parts.items()}


def _hashed(document: object) -> str:
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()
