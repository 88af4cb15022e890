"""Estimates as Chrome trace events, which Perfetto (ui.perfetto.dev) and chrome://tracing open: one process per estimate.

Source of the format: "Trace Event Format", Google, 2016: ``ph`` X (complete slice), C (counter), M (metadata); ``ts`` and
``dur`` in microseconds.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hwmodel.backends.base import FloatArray, Occupation
from hwmodel.backends.registry import backend_names, get_backend
from hwmodel.errors import HwmodelError
from hwmodel.ir.operators import Operator
from hwmodel.reporting.breakdown import ROLES, group_of
from hwmodel.reporting.timeline_clock import Clock, windows
from hwmodel.reporting.variants import Case

Event = dict[str, Any]
OPERATORS = "operators"
MAIN_TRACK = (
    "The main sequence: every operator for as long as it takes, waiting included; these slices add up to the latency. "
    "Operators that another one's kernel carries, or that run beside it, have no slice here."
)


@dataclass(frozen=True, eq=False)
class Process:
    """One estimate as a process. ``number`` counts from the top, with leading noughts where others have more digits.

    Perfetto puts processes with more slices first, then orders by name. So the name begins with the number, and operators that
    take time in another version on the same device (``shown``) have a slice here too, if need be of no length. A track
    with the number of its process comes first.
    """

    number: str
    shown: frozenset[str]
    case: Case
    clock: Clock
    units: Mapping[str, Occupation]

    @classmethod
    def of(cls, number: str, case: Case, shown: frozenset[str]) -> Process:
        """Lay the operators of ``case`` one after the other."""
        return cls(number, shown, case, Clock.of(case.estimate.costs.latency_s), _units(case))

    @property
    def pid(self) -> int:
        """Number of the process and of its main track; units follow."""
        return 100 * int(self.number)

    @property
    def name(self) -> str:
        """What a reader calls it: device, variant, mode and number format."""
        return f"{self.number}. {self.case.card.name}: {self.case.variant} ({self.case.terms})"

    def events(self) -> list[Event]:
        """Names first, then the main sequence, the units and the counters."""
        tracks = [OPERATORS, *self.units]
        slices = self._operators()
        for tid, occupation in enumerate(self.units.values(), start=self.pid + 1):
            slices += self._unit(tid, occupation)
        return [*self._names(tracks), *slices, *self._counters()]

    def _names(self, tracks: Sequence[str]) -> list[Event]:
        summary = self.case.summary
        told = f"{summary['latency_s'] * 1e3:.4g} ms, {summary['energy_j'] * 1e3:.4g} mJ"
        named = [
            self._metadata("process_name", {"name": self.name}),
            self._metadata("process_labels", {"labels": told}),
            self._metadata("process_sort_index", {"sort_index": int(self.number)}),
        ]
        for tid, track in enumerate(tracks, start=self.pid):
            named.append(self._metadata("thread_name", {"name": track}, tid))
            named.append(self._metadata("thread_sort_index", {"sort_index": tid - self.pid}, tid))
        return named

    def _metadata(self, what: str, args: Mapping[str, Any], tid: int = 0) -> Event:
        return {"ph": "M", "name": what, "pid": self.pid, "tid": tid, "ts": 0, "args": dict(args)}

    def _slice(self, tid: int, operator: Operator, edges_ns: tuple[float, float], args: Mapping[str, Any]) -> Event:
        start, end = edges_ns
        return {
            "ph": "X", "name": operator.name, "cat": ROLES[group_of(operator)], "pid": self.pid, "tid": tid, "ts": start / 1e3,
            "dur": (end - start) / 1e3, "args": dict(args),
        }  # fmt: skip

    def _operators(self) -> list[Event]:
        carried, edges = self._carried(), self.clock.edges_ns.tolist()
        events = []
        for row, operator in enumerate(self.case.trace.operators):
            if operator.name not in self.shown:
                continue
            args = _shape(operator) | self._limits(row) | ({"carries": carried[row]} if row in carried else {})
            events.append(self._slice(self.pid, operator, (edges[row], edges[row + 1]), args))
        return events

    def _carried(self) -> dict[int, list[str]]:
        """Names of the operators that each kernel carries besides its own."""
        found: dict[int, list[str]] = {}
        for row, into in enumerate(self.case.estimate.costs.fused_into.tolist()):
            if into != row:
                found.setdefault(into, []).append(self.case.trace.operators[row].name)
        return found

    def _limits(self, row: int) -> dict[str, Any]:
        """What the operator costs and what limits it."""
        costs = self.case.estimate.costs
        text = {"limited_by": str(costs.bound[row]), "kernel": str(costs.kernel[row])}
        columns = ("latency_s", "gap_s", "energy_j", "dram_bytes", "executed_macs", "cycles")
        return text | {name: float(getattr(costs, name)[row]) for name in columns}

    def _unit(self, tid: int, occupation: Occupation) -> list[Event]:
        """Slices of one unit, one after the other: it serves one operator at a time."""
        latency_s = self.case.estimate.costs.latency_s
        free = 0.0
        events = []
        for row in np.flatnonzero(occupation.busy_s > 0).tolist():
            operator, busy_s = self.case.trace.operators[row], float(occupation.busy_s[row])
            start = max(self.clock.at_ns(row, float(occupation.start_s[row])), free)
            free = start + round(busy_s * 1e9)
            share = {"share_of_its_slice": busy_s / float(latency_s[row])} if latency_s[row] > 0 else {}
            events.append(self._slice(tid, operator, (start, free), {"busy_s": busy_s} | share))
        return events

    def _counters(self) -> list[Event]:
        """Mean power and DRAM bandwidth over each window; their integrals are the totals."""
        costs = self.case.estimate.costs
        events = []
        for name, unit, column in (("power", "W", costs.energy_j), ("DRAM bandwidth", "B/s", costs.dram_bytes)):
            steps = [(start, amount / (end - start) * 1e9) for start, end, amount in windows(self.clock, self.units, column)]
            for ts, value in [*steps, *([(self.clock.end_ns, 0.0)] if steps else [])]:
                events.append(
                    {"ph": "C", "name": f"{name} ({unit})", "pid": self.pid, "tid": 0, "ts": ts / 1e3, "args": {unit: value}}
                )
        return events

    def about(self) -> dict[str, Any]:
        """Totals with their fidelity, and what each track and counter means."""
        tracks = {OPERATORS: MAIN_TRACK} | {name: occupation.what for name, occupation in self.units.items()}
        summary = {key: value for key, value in self.case.summary.items() if key != "error_band"}
        band = self.case.estimate.error_band()
        return {
            "process": self.name,
            "variant": self.case.variant,
            **summary,
            "error_band": band.model_dump() if band else None,
            "tracks": tracks,
            "counters": "mean over an operator, or over the operators whose work overlaps",
            "without_slice": self._without_slice(),
        }

    def _without_slice(self) -> dict[str, str]:
        """Operators that have no slice in the main sequence, and why."""
        costs, operators = self.case.estimate.costs, self.case.trace.operators
        beside = np.zeros(len(operators), dtype=np.bool_)
        for occupation in self.units.values():
            beside |= occupation.busy_s > 0
        found = {}
        for row, operator in enumerate(operators):
            if operator.name in self.shown:
                continue
            into = int(costs.fused_into[row])
            carried = f"carried by {operators[into].name}"
            found[operator.name] = carried if into != row else "runs beside others" if beside[row] else "costs no time"
        return found


def _units(case: Case) -> Mapping[str, Occupation]:
    """What the backend tells about its units; units that never work are left out."""
    tell = getattr(get_backend(case.card.backend), "units", None) if case.card.backend in backend_names() else None
    if tell is None:
        return {}
    estimate = case.estimate
    found: Mapping[str, Occupation] = tell(
        estimate.workload, case.card.resolve(estimate.mode, estimate.overrides), estimate.options
    )
    return {name: occupation for name, occupation in found.items() if _works(occupation.busy_s)}


def _takes_time(case: Case) -> list[str]:
    """Operators with time of their own.

    Raises
    ------
    HwmodelError
        A sweep over designs, which has no single timeline.
    """
    latency_s = case.estimate.costs.latency_s
    if latency_s.ndim != 1:
        raise HwmodelError(f"{case.card.name}: a sweep over designs has no single timeline; draw one design")
    return [one.name for one, seconds in zip(case.trace.operators, latency_s.tolist(), strict=True) if seconds > 0]


def _works(busy_s: FloatArray) -> bool:
    return bool((busy_s > 0).any())


def _shape(operator: Operator) -> dict[str, Any]:
    """Shape as the operator has it, and how its weight is pruned."""
    names = ("batch", "m", "k", "n") if operator.family in {"product", "attention"} else ("elements", "cols")
    found: dict[str, Any] = {"kind": operator.kind, "role": operator.role}
    found |= {name: getattr(operator, name) for name in names if getattr(operator, name)}
    if operator.mask is not None:
        out, depth = operator.mask.block
        found |= {"block_shape": f"{out}x{depth}", "kept_blocks": operator.mask.kept_fraction}
    if operator.sparsity is not None:
        found["sparsity"] = operator.sparsity
    return found


def timeline(cases: Iterable[Case]) -> dict[str, Any]:
    """The trace-event document of some cases, in their order from top to bottom.

    Raises
    ------
    HwmodelError
        No case, or a sweep over designs.
    """
    drawn = list(cases)
    shown: dict[str, set[str]] = {}
    for case in drawn:
        shown.setdefault(case.card.name, set()).update(_takes_time(case))
    digits = len(str(len(drawn)))
    processes = [
        Process.of(f"{place:0{digits}}", case, frozenset(shown[case.card.name])) for place, case in enumerate(drawn, start=1)
    ]
    if not processes:
        raise HwmodelError("a timeline needs at least one estimate")
    return {
        "traceEvents": [event for process in processes for event in process.events()],
        "displayTimeUnit": "ns",
        "otherData": {"made_by": "hwmodel", "estimates": [process.about() for process in processes]},
    }


def timeline_text(document: Mapping[str, Any]) -> str:
    """The document as JSON, one event per line; the same document gives the same text."""
    lines = ",\n".join(json.dumps(event, allow_nan=False) for event in document["traceEvents"])
    rest = json.dumps({name: value for name, value in document.items() if name != "traceEvents"}, allow_nan=False)
    return f'{{"traceEvents": [\n{lines}\n],\n{rest[1:]}\n'
