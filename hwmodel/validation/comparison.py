"""Every shipped measured operator against its prediction, next to what a naive estimate says.

Files that hold whole models or sparse kernels are the scoreboard's business: :mod:`hwmodel.validation.scoreboard`.
"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hwmodel.backends.cards import Card, Score
from hwmodel.backends.estimates import estimate
from hwmodel.backends.registry import get_backend
from hwmodel.content import content_folder
from hwmodel.errors import HwmodelError
from hwmodel.ir.operators import Operator
from hwmodel.ir.trace import Trace
from hwmodel.validation.baselines import roofline, two_parameters
from hwmodel.validation.measured import COLUMNS, MeasuredRow, Timed, read_measured, timed
from hwmodel.validation.statistics import Errors, errors_of

FloatArray = npt.NDArray[np.float64]

METRICS = {"latency": "latency", "kernel_time": "latency", "gpu_avg_power": "power"}
PROTOCOLS = {
    "host wall clock": "host", "host clock": "host", "unlocked": "host", "CUDA graph": "CUDA graph", "profiler": "profiler",
    "CUDA events": "CUDA events", "best 5 of": "CUDA events", "STREAM": "STREAM",
    "steady loop": "steady loop", "CPU timer": "CPU timer",
}  # fmt: skip
"""How a row was timed, by the first of these words in its conditions or its device."""
_HOST_MODES = ("device+host", "eager")
"""Modes that price a program as its host sees it: each operator is then a trace of its own."""


@dataclass(frozen=True, kw_only=True)
class Group:
    """Rows of one device, format, operator class, protocol and side of the split, and how far predictions are off.

    ``roofline`` and ``baseline`` are None for power, and where the card states no peak or too few rows were fitted.
    """

    device: str
    dtype: str
    operator: str
    protocol: str
    mode: str
    quantity: str
    split: str
    errors: Errors
    roofline: Errors | None
    baseline: Errors | None

    def document(self) -> dict[str, Any]:
        """As plain JSON values."""
        whole = asdict(self)
        return whole | {
            name: found.document() if found else None
            for name, found in (("errors", self.errors), ("roofline", self.roofline), ("baseline", self.baseline))
        }


@dataclass(frozen=True, kw_only=True)
class LeftOut:
    """Rows of a file that no single dense operator predicts, and why."""

    device: str
    file: str
    rows: int
    reason: str


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """All groups, what was left out, and the stored lines of the scoreboard as (card, line)."""

    groups: tuple[Group, ...]
    left_out: tuple[LeftOut, ...]
    scores: tuple[tuple[str, Score], ...]

    def document(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {
            "groups": [group.document() for group in self.groups],
            "left_out": [asdict(one) for one in self.left_out],
            "scoreboard": [{"device": card} | score.model_dump() for card, score in self.scores],
        }


@dataclass(frozen=True)
class _Row:
    """A measured row with its operator and the mode that prices it."""

    row: MeasuredRow
    timed: Timed
    mode: str
    protocol: str

    @property
    def operator(self) -> Operator:
        return self.timed.operator

    @property
    def quantity(self) -> str:
        return METRICS[self.row.metric]

    @property
    def key(self) -> tuple[str, str, str, str, str]:
        return self.row.dtype, operator_class(self.operator), self.protocol, self.mode, self.quantity


def compare(cards: Iterable[Card]) -> Comparison:
    """Predict every measured row beside these shipped cards.

    Raises
    ------
    HwmodelError
        A measured file that does not read.
    """
    groups: list[Group] = []
    left_out: list[LeftOut] = []
    scores: list[tuple[str, Score]] = []
    for card in cards:
        rows: list[_Row] = []
        for path in sorted((content_folder("simulators") / card.name).glob("*.csv")):
            if _is_measured(path):
                found, reasons = _readable(read_measured(path), card)
                rows += found
                left_out += [LeftOut(device=card.name, file=path.name, rows=count, reason=why) for why, count in reasons.items()]
        groups += _groups(card, rows)
        scores += [(card.name, score) for score in card.scores]
    return Comparison(groups=tuple(groups), left_out=tuple(left_out), scores=tuple(scores))


def _is_measured(path: Path) -> bool:
    with path.open(encoding="utf-8", newline="") as lines:
        return set(COLUMNS) <= set(next(csv.reader(lines), []))


def _readable(rows: Sequence[MeasuredRow], card: Card) -> tuple[list[_Row], Counter[str]]:
    """Rows that one operator predicts, and counts of the reasons why others are not."""
    found: list[_Row] = []
    reasons: Counter[str] = Counter()
    for row in rows:
        reason = _excluded(row, card)
        try:
            one = None if reason else timed(row)
        except (HwmodelError, ValueError):
            one, reason = None, "whole models: see the scoreboard"
        if one is None:
            reasons[reason] += 1
        else:
            protocol = protocol_of(row)
            found.append(_Row(row, one, _mode(row, card, protocol), protocol))
    return found, reasons


def _excluded(row: MeasuredRow, card: Card) -> str:
    """Why a row is no single dense operator on this card; "" where it is one."""
    if row.metric not in METRICS:
        return f"{row.metric}: not predicted per operator"
    if row.dtype not in card.dtypes:
        return f"{row.dtype}: the card has no peak for it"
    if "tensor_parallel" in row.conditions or "cores)" in row.device:
        return "several cores at once"
    return "sparse kernels: see the scoreboard" if "spmm" in row.model_or_op else ""


def protocol_of(row: MeasuredRow) -> str:
    """How a row was timed: rows of different protocols are never mixed."""
    told = f"{row.conditions};{row.device};{row.framework}"
    return next((name for word, name in PROTOCOLS.items() if word in told), "not recorded")


def _mode(row: MeasuredRow, card: Card, protocol: str) -> str:
    """The execution mode that a protocol measures, in the power mode that the row's device names ("... (50W, ...)")."""
    modes = get_backend(card.backend).modes
    default = "kernel" if "kernel" in modes else card.split_mode(None)[0]
    execution = next((mode for mode in _HOST_MODES if mode in modes), default) if protocol == "host" else default
    power = next((name for name in card.power_modes if name.lower() in row.device.lower()), None)
    return f"{execution}+{power}" if power else execution


def operator_class(operator: Operator) -> str:
    """Operators that one line of the table takes together."""
    if operator.family == "product":
        return "batched product" if operator.batch > 1 else "product"
    if operator.family == "attention":
        return "causal attention" if operator.causal else "attention"
    return operator.kind if operator.family == "rowwise" else operator.family


def _groups(card: Card, rows: Sequence[_Row]) -> list[Group]:
    predicted = _predict(card, rows)
    found: list[Group] = []
    for key in sorted({one.key for one in rows}):
        chosen = np.array([one.key == key for one in rows])
        members = [one for one in rows if one.key == key]
        measured = np.array([one.row.value for one in members])
        fit = np.array([one.row.split == "fit" for one in members])
        power_mode = card.split_mode(key[3])[1]
        naive = roofline([one.operator for one in members], card, power_mode) if key[4] == "latency" else None
        fitted = None if naive is None else two_parameters(naive, measured, fit)
        for split, side in (("fit", fit), ("held-out", ~fit)):
            errors = errors_of(predicted[chosen][side], measured[side])
            if errors is not None:
                others = [None if other is None else errors_of(other[side], measured[side]) for other in (naive, fitted)]
                found.append(_group(card, key, split, errors, others))
    return found


def _group(card: Card, key: tuple[str, str, str, str, str], split: str, errors: Errors, others: Sequence[Errors | None]) -> Group:
    dtype, operator, protocol, mode, quantity = key
    return Group(
        device=card.name, dtype=dtype, operator=operator, protocol=protocol, mode=mode, quantity=quantity, split=split,
        errors=errors, roofline=others[0], baseline=others[1],
    )  # fmt: skip


def _predict(card: Card, rows: Sequence[_Row]) -> FloatArray:
    """Seconds or watts of each row; one call for each mode that prices operators by themselves."""
    predicted = np.zeros(len(rows))
    for mode in sorted({one.mode for one in rows}):
        places = np.flatnonzero([one.mode == mode for one in rows])
        together = card.split_mode(mode)[0] not in _HOST_MODES
        for part in [places] if together else places[:, None]:
            trace = Trace.from_operators(rows[place].operator for place in part.tolist())
            costs = estimate(trace, device=card, mode=mode).costs
            power = costs.energy_j / np.maximum(costs.latency_s, np.finfo(np.float64).tiny)
            wants_power = [rows[place].quantity == "power" for place in part.tolist()]
            seconds = [rows[place].timed.seconds(kernel_s) for place, kernel_s in zip(part.tolist(), costs.latency_s, strict=True)]
            predicted[part] = np.where(wants_power, power, seconds)
    return predicted
