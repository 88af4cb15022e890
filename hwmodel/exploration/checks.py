"""What a study says, held against the cards and quantities there are, before anything is priced."""

from __future__ import annotations

from collections.abc import Sequence

from hwmodel.errors import suggestion
from hwmodel.exploration.axes import CARD
from hwmodel.exploration.machines import Machine
from hwmodel.exploration.quantities import QUANTITIES, contradictions
from hwmodel.exploration.study import PRUNING_KNOBS, RUN_KNOBS, Study, StudyError

RESERVED = frozenset({"point", "model", "recipe", "device", "mode", "feasible", "knee", "latency_fidelity", "energy_fidelity"})
"""Columns of every dataset that are no quantities."""


def check_knobs(study: Study, machines: Sequence[Machine]) -> None:
    """Each knob exists, on some machine where it is a card field, and is turned by one axis only.

    Raises
    ------
    StudyError
        With the nearest names there are.
    """
    groups = [group.knob(field) for group in study.pruning for field in PRUNING_KNOBS]
    fields = sorted({f"{CARD}{name}" for machine in machines for name in machine.fields})
    seen: set[str] = set()
    for number, axis in enumerate(study.vary):
        for knob in axis.knob:
            where = f"vary.{number}.knob"
            if knob in PRUNING_KNOBS and knob not in groups:
                raise StudyError(f"{where}: {knob!r} prunes, and no [[pruning]] table without a name says of what; add one")
            if knob.startswith(CARD) and not any(machine.has(knob.removeprefix(CARD)) for machine in machines):
                raise StudyError(
                    f"{where}: no card of the study has a field {knob.removeprefix(CARD)!r}: {suggestion(knob, fields)}"
                )
            if not knob.startswith(CARD) and knob not in (*groups, *RUN_KNOBS):
                raise StudyError(f"{where}: unknown knob {knob!r}: {suggestion(knob, [*groups, *RUN_KNOBS, *fields])}")
            if knob in seen:
                raise StudyError(f"{where}: {knob!r} varies twice")
            seen.add(knob)
    for machine in machines:
        strangers = [name for name in machine.fixed if not machine.has(name)]
        if strangers:
            told = suggestion(strangers[0], machine.fields)
            raise StudyError(f"devices: {machine.title}: set: no field {strangers[0]!r}: {told}")


def check_quantities(study: Study) -> None:
    """Objectives, constraints and proxies speak of something that has numbers, and leave something over.

    Raises
    ------
    StudyError
        A quantity that does not exist, a name that stands for two things, bounds that exclude each other.
    """
    titles = [axis.title for axis in study.vary if axis.numeric]
    proxies = [proxy.name for proxy in study.proxies]
    known = [*QUANTITIES, *proxies, *titles]
    asked = {f"objectives.{i}.quantity": one.quantity for i, one in enumerate(study.objectives)}
    asked |= {f"constraints.{i}.quantity": one.quantity for i, one in enumerate(study.constraints)}
    terms = [(f"proxies.{i}.terms", name) for i, proxy in enumerate(study.proxies) for term in proxy.terms for name in term.of]
    for where, name in [*asked.items(), *terms]:
        if name not in known and not name.startswith(CARD):
            raise StudyError(f"{where}: unknown quantity {name!r}: {suggestion(name, known)} (a card's field is card.FIELD)")
        if name == "accuracy" and study.accuracy is None:
            raise StudyError(f"{where}: 'accuracy' needs an [accuracy] table with a file; 'kept_share' is a proxy without one")
    names = [*proxies, *(axis.title for axis in study.vary)]
    twice = sorted({name for name in names if names.count(name) > 1 or name in QUANTITIES or name in RESERVED})
    if twice:
        raise StudyError(f"{', '.join(twice)}: quantities, proxies and axes need names of their own; give a label")
    told = contradictions(study.constraints)
    if told:
        raise StudyError(f"constraints: {'; '.join(told)}")
