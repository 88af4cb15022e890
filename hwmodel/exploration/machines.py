"""A card in one mode with the fields a study sets, and what the axes of the study mean on it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from hwmodel.backends.cards import Card
from hwmodel.backends.registry import get_backend
from hwmodel.errors import HwmodelError
from hwmodel.exploration.axes import CARD, Axis, Value
from hwmodel.exploration.evaluate import Evaluator
from hwmodel.exploration.study import Study, StudyError
from hwmodel.ir.trace import Trace


@dataclass(frozen=True)
class Machine:
    """One device of a study in one mode; ``fixed`` are the card fields that the study replaces at every point."""

    card: Card
    mode: str
    title: str
    fixed: Mapping[str, Value]

    @cached_property
    def _values(self) -> dict[str, Any]:
        """The card's values in this mode, entries of its tables by dotted name."""
        values = self.card.values(self.card.split_mode(self.mode)[1])
        tables = {name: value for name, value in values.items() if isinstance(value, dict)}
        return {**values, **{f"{name}.{key}": item for name, table in tables.items() for key, item in table.items()}}

    @cached_property
    def fields(self) -> frozenset[str]:
        """Fields of the backend, and entries of the card's tables by dotted name."""
        return frozenset(get_backend(self.card.backend).parameters.model_fields) | self._values.keys()

    def has(self, name: str) -> bool:
        """Whether a field exists here, or is an entry that a table of the card may get."""
        return name in self.fields or ("." in name and name.rpartition(".")[0] in self.fields)

    def takes(self, axis: Axis) -> bool:
        """Whether an axis means something here: all its card fields exist."""
        return all(not knob.startswith(CARD) or self.has(knob.removeprefix(CARD)) for knob in axis.knob)

    @property
    def simulated(self) -> bool:
        """Whether a point takes a simulation of seconds to minutes, so that each is worth a piece of its own."""
        modes: frozenset[str] = getattr(get_backend(self.card.backend), "simulated_modes", frozenset())
        return self.card.split_mode(self.mode)[0] in modes

    def overrides(self, axes: Sequence[Axis], values: Mapping[str, Any]) -> dict[str, Any]:
        """Card fields at the given values of axes (a number each, or arrays), by title.

        Raises
        ------
        StudyError
            An axis that multiplies the card's own value where there is none.
        """
        turned = [(knob.removeprefix(CARD), axis) for axis in axes for knob in axis.knob if knob.startswith(CARD)]
        return {**self.fixed} | {
            name: values[axis.title] * self._number(name) if axis.relative else values[axis.title]
            for name, axis in turned
            if axis.title in values
        }

    def _number(self, name: str) -> float:
        found = {**self._values, **self.fixed}.get(name)
        if not isinstance(found, int | float) or isinstance(found, bool):
            raise StudyError(
                f"card.{name} is relative, but {self.card.name} has no number of its own there; give the values themselves"
            )
        return found

    def takes_arrays(self, axis: Axis, study: Study, trace: Trace) -> bool:
        """Whether the backend prices two values of a card field at once as it does one by one, to the last bit.

        Choices (text, switches) never; for numbers the backend is asked: some are choices in disguise, as a number of cores.
        """
        names = {knob.removeprefix(CARD) for knob in axis.knob if knob.startswith(CARD)}
        told: frozenset[str] = getattr(get_backend(self.card.backend), "grouped", frozenset())
        if not axis.numeric or self.simulated or len(names) < len(axis.knob) or names & told:
            return False
        ends: list[Any] = sorted(axis.samples())[:: len(axis.samples()) - 1 or 1]
        singles = [self._totals(axis, end, study, trace) for end in ends]
        try:
            both = self._totals(axis, np.array(ends, dtype=np.float64), study, trace)
        except (HwmodelError, TypeError, ValueError):
            return False
        return np.array_equal(both, np.concatenate(singles, axis=1))

    def _totals(self, axis: Axis, value: Any, study: Study, trace: Trace) -> Any:
        """Seconds, joules and bytes, shape (3, designs)."""
        found = self.evaluator(trace, study, {"dtype": study.dtype}).totals(self.overrides((axis,), {axis.title: value}))
        return np.stack([found.latency_s, found.energy_j, found.dram_bytes])

    def evaluator(self, trace: Trace, study: Study, choices: Mapping[str, Any]) -> Evaluator:
        """The trace on this machine under the study's options, ``choices`` (dtype, attention, sparse_kernel) in their place."""
        options: dict[str, Any] = {"dtype": study.dtype, "attention": study.attention, "sparse_kernel": study.sparse_kernel}
        return Evaluator(trace, device=self.card, mode=self.mode, scope=study.scope, **options | dict(choices))
