"""Measured operators as one table that a backend prices in one call."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from hwmodel.backends.base import BoolArray, FloatArray, IntArray, Options, Workload, evaluate
from hwmodel.backends.cards import Card
from hwmodel.backends.registry import get_backend
from hwmodel.errors import HwmodelError
from hwmodel.ir.operators import Operator
from hwmodel.ir.trace import Trace
from hwmodel.validation.measured import MeasuredRow, read_measured, timed

LATENCIES = ("latency", "kernel_time")
LEAST_FIT_ROWS, LEAST_HELD_OUT_ROWS = 8, 3
HELD_OUT_OF = 3
CHUNK = 20_000
"""Operators times designs priced in one call: bounds the memory."""
FAR_OFF = 200.0
"""Measured over predicted time that no constant explains: a wrong prefix of the unit is a factor of 1000."""
WHOLE_MODEL = "image"
"""Shapes of rows that timed a whole model begin with it."""


class Latencies(Protocol):
    """What a fit needs to know of measured rows; see :class:`Observations`."""

    @property
    def of(self) -> IntArray: ...
    @property
    def measured_s(self) -> FloatArray: ...
    @property
    def held_out(self) -> BoolArray: ...
    def predict(self, card: Card, mode: str, overrides: Mapping[str, Any] | None = None) -> FloatArray: ...


@dataclass(frozen=True, eq=False)
class Observations:
    """Latencies of operators, the host's share that a row's protocol holds taken off.

    Arrays have shape (n_rows,); ``of`` leads from a row to its distinct operator.
    """

    workload: Workload
    of: IntArray
    measured_s: FloatArray
    held_out: BoolArray

    def predict(self, card: Card, mode: str, overrides: Mapping[str, Any] | None = None) -> FloatArray:
        """Seconds of each distinct operator: (n_ops,), or (designs, n_ops) where ``overrides`` holds arrays (designs,).

        All operators are priced as one trace without edges, in pieces where there are many designs.
        """
        designs = max([len(value) for value in (overrides or {}).values() if np.ndim(value)], default=0)
        if not designs:
            return self._price(card, mode, overrides or {})
        step = max(1, CHUNK // max(len(self.workload), 1))
        pieces = []
        for first in range(0, designs, step):
            part = {path: value[first : first + step] if np.ndim(value) else value for path, value in (overrides or {}).items()}
            count = min(step, designs - first)
            pieces.append(np.broadcast_to(self._price(card, mode, part), (count, len(self.workload))))
        return np.concatenate(pieces)

    def _price(self, card: Card, mode: str, overrides: Mapping[str, Any]) -> FloatArray:
        execution, _ = card.split_mode(mode)
        costs = evaluate(get_backend(card.backend), self.workload, card.resolve(mode, overrides), Options(mode=execution))
        return costs.latency_s

    @cached_property
    def dtypes(self) -> list[str]:
        """Formats of the rows, sorted."""
        return sorted(set(self.workload.dtype.tolist()))


def read_rows(path: str | Path, *, dtype: str | None = None, device: str | None = None) -> list[MeasuredRow]:
    """Latency rows of a measured file, of one format and one device where asked for.

    Raises
    ------
    HwmodelError
        A file that cannot be read, or rows of several devices where none is chosen.
    """
    rows = [row for row in read_measured(path) if row.metric in LATENCIES]
    rows = [row for row in rows if (dtype is None or row.dtype == dtype) and (device is None or row.device == device)]
    devices = Counter(row.device for row in rows)
    if len(devices) > 1:
        listed = ", ".join(f"{name!r} ({count})" for name, count in devices.most_common(5))
        raise HwmodelError(f"{path}: rows of several devices: {listed}; choose one with --rows-of")
    return rows


def check_dtypes(rows: Sequence[MeasuredRow], card: Card, path: str | Path) -> None:
    """Raise :class:`HwmodelError` for rows in a format that the card has no peak for."""
    strangers = Counter(row.dtype for row in rows if row.dtype not in card.dtypes)
    if strangers:
        listed = ", ".join(f"{count} rows in {dtype}" for dtype, count in strangers.most_common())
        known = ", ".join(card.dtypes)
        raise HwmodelError(f"{path}: {listed}, for which card {card.name} has no peak (it has {known}); choose rows with --dtype")


def observations(rows: Sequence[MeasuredRow], card: Card, path: str | Path) -> Observations:
    """The operators among ``rows``; what is held out is the file's own split, or every third shape where it has only one.

    Raises
    ------
    HwmodelError
        Too few rows to fit or to score, a format the card has no peak for, or a shape nobody can read.
    """
    chosen = [row for row in rows if not row.shape.startswith(WHOLE_MODEL)]
    check_dtypes(chosen, card, path)
    held_out = _held_out(chosen)
    fit, held = int((~held_out).sum()), int(held_out.sum())
    if fit < LEAST_FIT_ROWS or held < LEAST_HELD_OUT_ROWS:
        raise HwmodelError(
            f"{path}: {fit} operator latencies to fit and {held} held out, expected at least {LEAST_FIT_ROWS} and "
            f"{LEAST_HELD_OUT_ROWS}; measure more shapes, for example with --grid"
        )
    return observed(chosen, card, held_out)


def observed(rows: Sequence[MeasuredRow], card: Card, held_out: BoolArray) -> Observations:
    """Rows of operators as :class:`Observations`; ``held_out``: (n_rows,), those that no fit may see."""
    numbers: dict[Operator, int] = {}
    known = [timed(row) for row in rows]
    of = np.array([numbers.setdefault(one.operator, len(numbers)) for one in known], dtype=np.int64)
    workload = Workload.of(Trace.from_operators(numbers), dtype=None, default_dtype=card.default_dtype)
    measured = np.array([(row.value - one.host_s) / one.times for row, one in zip(rows, known, strict=True)])
    return Observations(workload, of, measured, held_out)


def _held_out(rows: Sequence[MeasuredRow]) -> BoolArray:
    splits = {row.split for row in rows}
    if len(splits) == 2:
        return np.array([row.split == "held-out" for row in rows], dtype=np.bool_)
    shapes = sorted({(row.model_or_op, row.shape, row.batch) for row in rows}, key=_digest)
    chosen = set(shapes[::HELD_OUT_OF])
    return np.array([(row.model_or_op, row.shape, row.batch) in chosen for row in rows], dtype=np.bool_)


def _digest(key: tuple[str, str, int]) -> str:
    return hashlib.sha256(repr(key).encode()).hexdigest()


def check_separable(found: Observations, card: Card, mode: str) -> None:
    """Raise :class:`HwmodelError` where the price of an operator depends on what else is in the trace, or is zero.

    Modes with a host floor or one dispatch per program price whole programs; nothing can be fitted to single operators.
    """
    together = found.predict(card, mode)
    if (free := np.flatnonzero(together <= 0)).size:
        operator = found.workload.trace.operators[int(free[0])]
        raise HwmodelError(f"{card.name} in mode {mode} prices {operator.kind} at nothing; remove its rows or choose another mode")
    last = len(together) - 1
    for place in sorted({0, last // 2, last}):
        alone = Observations(
            Workload.of(
                Trace.from_operators([found.workload.trace.operators[place]]), dtype=None, default_dtype=card.default_dtype
            ),
            *_nothing(),
        ).predict(card, mode)
        if abs(float(alone[0]) / float(together[place]) - 1) > 1e-6:
            raise HwmodelError(
                f"mode {mode} of {card.name} prices whole programs, not single operators; choose another with --mode"
            )


def check_plausible(found: Observations, card: Card, mode: str, path: str | Path) -> None:
    """Raise :class:`HwmodelError` where most rows are hundreds of times what the card says: another unit, or another machine."""
    ratio = float(np.median(found.measured_s / found.predict(card, mode)[found.of]))
    if not 1 / FAR_OFF < ratio < FAR_OFF:
        raise HwmodelError(
            f"{path}: its rows take {ratio:.3g} times what {card.name} says (median); check the column unit, and that "
            f"{card.name} is the card of that machine"
        )


def _nothing() -> tuple[IntArray, FloatArray, npt.NDArray[np.bool_]]:
    return np.zeros(0, dtype=np.int64), np.zeros(0), np.zeros(0, dtype=np.bool_)
