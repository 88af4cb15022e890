"""Many designs of one machine at once: a trace is prepared once, then priced in array form, chunk by chunk.

Totals of a design are equal, to the last bit, to those of :func:`hwmodel.estimate` for that design alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hwmodel.backends.base import FloatArray, IntArray
from hwmodel.backends.cards import Card
from hwmodel.backends.estimates import Request
from hwmodel.backends.registry import get_backend
from hwmodel.errors import HwmodelError
from hwmodel.ir.trace import Trace

_CHUNK_CELLS = 2**17
"""Designs times operators priced at once: a column of so many floats is 1 MiB, and a backend holds a few dozen of them."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Totals:
    """Totals of every design for the whole batch; each array has shape (designs,). Energy is also split by cause."""

    latency_s: FloatArray
    gap_s: FloatArray
    energy_j: FloatArray
    compute_j: FloatArray
    onchip_j: FloatArray
    offchip_j: FloatArray
    static_j: FloatArray
    cycles: FloatArray
    dram_bytes: FloatArray
    executed_macs: FloatArray

    def __len__(self) -> int:
        return len(self.latency_s)


TOTALS = tuple(item.name for item in fields(Totals))
"""Names of the quantities of :class:`Totals`."""


class Evaluator:
    """One trace on one card in one mode, prepared so that :meth:`totals` takes microseconds per design.

    ``choices`` are those of :func:`hwmodel.estimate`: mode, dtype, attention, sparse_kernel, scope.

    Raises
    ------
    HwmodelError
        Unknown device, mode, dtype or choice.
    """

    def __init__(self, trace: Trace, *, device: str | Path | Card, **choices: Any) -> None:
        self.request = Request.of(trace, device=device, **choices)
        self._chunk = max(_CHUNK_CELLS // max(len(trace), 1), 1)

    def totals(self, overrides: Mapping[str, Any] | None = None) -> Totals:
        """Price every design.

        Parameters
        ----------
        overrides : card field (dotted inside a table) to one value for all designs, or to an array of shape (designs,).
            Arrays of text ("os", "32x32") and of fields that cannot be computed with in array form (the TPU's ``cores``)
            are grouped: one pass for each distinct combination. Without any array there is one design.

        Raises
        ------
        HwmodelError
            A field the card does not have, a value outside its range, arrays of different lengths or without entries, or
            an operator the backend cannot model.
        """
        fixed, swept = self._sorted(overrides or {})
        designs = self._designs(swept)
        found = np.empty((len(TOTALS), designs))
        for rows, chosen in self._groups(swept, designs):
            for start in range(0, len(rows), self._chunk):
                some = rows[start : start + self._chunk]
                arrays = {name: values[some] for name, values in swept.items() if name not in chosen}
                costs = self.request.costs({**fixed, **chosen, **arrays})
                for line, name in zip(found, TOTALS, strict=True):
                    line[some] = getattr(costs, name).sum(axis=-1)
        return Totals(**dict(zip(TOTALS, found, strict=True)))

    def _sorted(self, overrides: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, npt.NDArray[Any]]]:
        """Fields with one value, and fields with one value per design (a field that is a list on the card is one value)."""
        values = self.request.card.values()
        swept = {
            name: np.asarray(value)
            for name, value in overrides.items()
            if np.ndim(value) and not isinstance(values.get(name.partition(".")[0]), list)
        }
        return {name: value for name, value in overrides.items() if name not in swept}, swept

    def _designs(self, swept: Mapping[str, npt.NDArray[Any]]) -> int:
        lengths = {name: array.size if array.ndim == 1 else -1 for name, array in swept.items()}
        if len(set(lengths.values())) > 1 or any(length < 1 for length in lengths.values()):
            listed = ", ".join(f"{name} has shape {array.shape}" for name, array in swept.items())
            raise HwmodelError(f"{self.request.card.name}: swept fields need one value for each of the designs: {listed}")
        return next(iter(lengths.values()), 1)

    def _groups(self, swept: Mapping[str, npt.NDArray[Any]], designs: int) -> Iterator[tuple[IntArray, dict[str, Any]]]:
        """Rows that share every choice, with the choices; ascending within a group."""
        apart: frozenset[str] = getattr(get_backend(self.request.card.backend), "grouped", frozenset())
        names = [name for name, array in swept.items() if array.dtype.kind not in "iuf" or name in apart]
        group = np.zeros(designs, dtype=np.int64)
        for name in names:
            codes = np.unique(swept[name], return_inverse=True)[1].reshape(-1)
            group = np.unique(np.stack([group, codes]), axis=1, return_inverse=True)[1].reshape(-1)
        for code in range(int(group.max()) + 1):
            rows = np.flatnonzero(group == code)
            yield rows, {name: swept[name][rows[0]].item() for name in names}


def totals(trace: Trace, *, device: str | Path | Card, overrides: Mapping[str, Any] | None = None, **choices: Any) -> Totals:
    """:meth:`Evaluator.totals` of a trace that is priced once."""
    return Evaluator(trace, device=device, **choices).totals(overrides)
