"""Estimates: one row per operator in trace order, and totals that are exactly the rows' sums."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hwmodel.backends.base import AttentionChoice, Costs, FloatArray, Options, Scope, SparseChoice, Workload, evaluate
from hwmodel.backends.cards import Card, Fidelity, Score, load_card
from hwmodel.backends.registry import get_backend
from hwmodel.errors import HwmodelError, UnknownNameError
from hwmodel.ir.accessors import ESTIMATE_PLOTS
from hwmodel.ir.dtypes import check_dtype
from hwmodel.ir.trace import Trace

if TYPE_CHECKING:
    import pandas as pd

SCHEMA_VERSION = 1
_CHOICES = {
    "attention": ("source", "math", "fused"),
    "sparse_kernel": ("auto", "always"),
    "scope": ("board", "dynamic", "lsp"),
}


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Estimate:
    """What one trace costs on one device (or on several designs of it).

    ``latency_s`` and ``energy_j`` are for the whole batch; in a sweep every total has shape (designs,).

    Parameters
    ----------
    workload : the operators priced, with their number formats
    card : the device
    mode : execution mode, with the power mode after "+" where the card has some
    dtype : number format that operators without their own were priced in
    costs : one entry per operator
    options : attention, sparse kernel and energy scope asked for
    overrides : fields of the card that were replaced
    """

    workload: Workload
    card: Card
    mode: str
    dtype: str
    costs: Costs
    options: Options
    overrides: Mapping[str, Any]
    plot = ESTIMATE_PLOTS

    def _repr_html_(self) -> str:
        return str(self.plot.html())

    def __repr__(self) -> str:
        """One line; :meth:`frame` has the operators."""
        where = f"{self.trace.model} on {self.device}, {self.mode}, {self.dtype}, batch {self.trace.batch}"
        if self.costs.latency_s.ndim != 1:
            return f"<Estimate of {where}: {len(self.costs.latency_s)} designs>"
        return f"<Estimate of {where}: {self.latency_s:.4g} s, {self.energy_j:.4g} J, latency {self.fidelity['latency']}>"

    @property
    def trace(self) -> Trace:
        """The trace that was priced."""
        return self.workload.trace

    @property
    def device(self) -> str:
        """Name of the card."""
        return self.card.name

    def _total(self, column: FloatArray) -> Any:
        total = column.sum(axis=-1)
        return float(total) if total.ndim == 0 else total

    @property
    def latency_s(self) -> Any:
        """Seconds for the whole batch: the sum of the rows' ``latency_s``, gaps included."""
        return self._total(self.costs.latency_s)

    @property
    def energy_j(self) -> Any:
        """Joules for the whole batch, in the scope of ``options.scope``."""
        return self._total(self.costs.energy_j)

    @property
    def average_power_w(self) -> Any:
        """Energy over latency, in the same scope; 0 where nothing runs."""
        latency = np.asarray(self.latency_s)
        power = np.divide(self.energy_j, latency, out=np.zeros_like(latency), where=latency > 0)
        return float(power) if power.ndim == 0 else power

    @property
    def cycles(self) -> Any:
        """Cycles of the device's main clock."""
        return self._total(self.costs.cycles)

    @property
    def dram_bytes(self) -> Any:
        """Bytes to and from off-chip memory."""
        return self._total(self.costs.dram_bytes)

    @property
    def executed_macs(self) -> Any:
        """MACs that the machine performs."""
        return self._total(self.costs.executed_macs)

    @property
    def execution_mode(self) -> str:
        """The mode without the power mode."""
        return self.options.mode

    @property
    def _request(self) -> Request:
        return Request(workload=self.workload, card=self.card, mode=self.mode, dtype=self.dtype, options=self.options)

    @property
    def fidelity(self) -> dict[str, Fidelity]:
        """How far to trust latency and energy; "assumed" where card fields were overridden by hand."""
        return self._request.fidelity(self.overrides)

    def error_band(self, quantity: str = "latency") -> Score | None:
        """The scoreboard's line for this mode and dtype; None where nothing was measured, or the card was overridden."""
        if self.overrides:
            return None
        return next((score for score in self.card.scores if self._covers(score) and score.quantity == quantity), None)

    def _covers(self, score: Score) -> bool:
        return score.band and score.mode == self.execution_mode and self.dtype in score.dtypes

    @cached_property
    def warnings(self) -> list[str]:
        """Lines about what a user would not expect, such as layers that pruning makes slower; of a sweep, its first design."""
        backend = get_backend(self.card.backend)
        tell = getattr(backend, "warnings", None)
        own = [] if tell is None else tell(self.workload, self.card.resolve(self.mode, self.overrides), self.options)
        return [*_idle_choices(self.options, getattr(backend, "choices", frozenset())), *own]

    @property
    def energy_by_component_j(self) -> dict[str, Any]:
        """Joules by hardware component, which sum to ``energy_j``; empty where the backend does not tell."""
        return {name: self._total(joules) for name, joules in self.costs.components_j.items()}

    @property
    def idle_share(self) -> Any:
        """Share of their time that compute arrays wait for the one with the most work; 0 where there is one, or none is told."""
        whole, busy = (np.asarray(self._total(column)) for column in (self.costs.array_cycles, self.costs.busy_array_cycles))
        share = 1 - np.divide(busy, whole, out=np.ones_like(whole), where=whole > 0)
        return float(share) if share.ndim == 0 else share

    @property
    def area_mm2(self) -> dict[str, Any]:
        """Silicon area by component in square millimetres; empty where the backend does not tell."""
        return self._request.area_mm2(self.overrides)

    @cached_property
    def _names(self) -> list[str]:
        return [operator.name for operator in self.trace.operators]

    def frame(self) -> pd.DataFrame:
        """One row per operator, index ``name``.

        Columns: kind, role, block (missing outside the encoder), macs (dense model), executed_macs, latency_s (gap
        included), gap_s, energy_j and its four causes, dram_bytes, cycles, bound, kernel, fused_into (name of the row that
        carries the cost, or None).

        Raises
        ------
        ValueError
            For a sweep: take one design's arrays from ``costs`` instead.
        """
        import pandas as pd

        index = pd.Index(self._names, name="name")
        columns = self._columns()
        columns["block"] = pd.array(columns["block"], dtype="Int64")
        columns["fused_into"] = pd.Series(columns["fused_into"], index=index, dtype=object)
        return pd.DataFrame(columns, index=index)

    def _columns(self) -> dict[str, Any]:
        costs, operators = self.costs, self.trace.operators
        if costs.latency_s.ndim != 1:
            raise ValueError("a sweep over designs has no single frame; read the arrays in costs")
        own = np.arange(len(operators))
        return {
            "kind": self.workload.kind.tolist(),
            "role": self.workload.role.tolist(),
            "block": [operator.block for operator in operators],
            "macs": [operator.macs for operator in operators],
            "executed_macs": costs.executed_macs,
            "latency_s": costs.latency_s,
            "gap_s": costs.gap_s,
            "energy_j": costs.energy_j,
            "compute_j": costs.compute_j,
            "onchip_j": costs.onchip_j,
            "offchip_j": costs.offchip_j,
            "static_j": costs.static_j,
            "dram_bytes": costs.dram_bytes,
            "cycles": costs.cycles,
            "bound": costs.bound.tolist(),
            "kernel": costs.kernel.tolist(),
            "fused_into": [
                None if row == into else self._names[into] for row, into in zip(own, costs.fused_into.tolist(), strict=True)
            ],
        }

    def summary(self) -> dict[str, Any]:
        """Totals as plain values, the first line of every output."""
        band = self.error_band()
        return {
            "model": self.trace.model,
            "device": self.device,
            "mode": self.mode,
            "batch": self.trace.batch,
            "dtype": self.dtype,
            "latency_s": self.latency_s,
            "energy_j": self.energy_j,
            "average_power_w": self.average_power_w,
            "cycles": self.cycles,
            "macs": self.trace.macs,
            "executed_macs": self.executed_macs,
            "dram_bytes": self.dram_bytes,
            "energy_scope": self.options.scope,
            "fidelity": self.fidelity,
            "error_band": band.model_dump() if band else None,
        }

    def by_component(self) -> dict[str, Any]:
        """What a backend that knows its machine's parts tells: joules and area by component, and the idle share of its arrays."""
        if not self.costs.components_j:
            return {}
        return {"energy_by_component_j": self.energy_by_component_j, "area_mm2": self.area_mm2, "idle_share": self.idle_share}

    def document(self) -> dict[str, Any]:
        """The whole estimate as plain JSON values: the summary, warnings, one object per operator, and versions.

        Where the backend tells them: ``energy_by_component_j`` (sums to ``energy_j``), ``area_mm2`` by component, ``idle_share``.
        """
        columns = {name: column.tolist() if isinstance(column, np.ndarray) else column for name, column in self._columns().items()}
        rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
        operators = [{"name": name, **row} for name, row in zip(self._names, rows, strict=True)]
        return (
            self.summary()
            | self.by_component()
            | {
                "warnings": self.warnings,
                "operators": operators,
                "schema_version": SCHEMA_VERSION,
                "versions": {"hwmodel": version("hwmodel"), "python": platform.python_version(), **self.trace.versions},
            }
        )


def _idle_choices(options: Options, honoured: frozenset[str]) -> list[str]:
    """One line for every kernel choice that was asked for and that a backend does not have."""
    asked = {name: getattr(options, name) for name in ("attention", "sparse_kernel")}
    idle = [name for name, choice in asked.items() if name not in honoured and choice != getattr(Options, name)]
    return [f"{name}={asked[name]!r} changes nothing here: this machine has one way to do it" for name in idle]


def estimate(
    trace: Trace,
    *,
    device: str | Path | Card,
    mode: str | None = None,
    dtype: str | None = None,
    overrides: Mapping[str, Any] | None = None,
    attention: AttentionChoice = "source",
    sparse_kernel: SparseChoice = "auto",
    scope: Scope = "board",
) -> Estimate:
    """Price a trace on a device.

    Parameters
    ----------
    trace : operators with their sparsity
    device : name, alias, path of a card file, or a card
    mode : execution mode, power mode or both ("engine+30w"); the card's default where None
    dtype : number format of operators that have none of their own; the trace's, then the card's default where None
    overrides : card fields to replace, by dotted name; arrays of shape (designs,) sweep
    attention : "source" | "math" | "fused"
    sparse_kernel : "auto" takes the cheaper of dense and sparse kernel, "always" shows the sparse one
    scope : "board" includes idle power; "dynamic" and "lsp" subtract it

    Raises
    ------
    HwmodelError
        Unknown device, mode, dtype, field or choice; or an operator the device's backend cannot model.
    """
    asked = Request.of(
        trace, device=device, mode=mode, dtype=dtype, attention=attention, sparse_kernel=sparse_kernel, scope=scope
    )  # fmt: skip
    return Estimate(
        workload=asked.workload, card=asked.card, mode=asked.mode, dtype=asked.dtype, costs=asked.costs(overrides or {}),
        options=asked.options, overrides=dict(overrides or {}),
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True, eq=False)
class Request:
    """A trace to be priced on a card, checked and with every choice settled; see :class:`Estimate` for the fields."""

    workload: Workload
    card: Card
    mode: str
    dtype: str
    options: Options

    @classmethod
    def of(
        cls,
        trace: Trace,
        *,
        device: str | Path | Card,
        mode: str | None = None,
        dtype: str | None = None,
        attention: AttentionChoice = "source",
        sparse_kernel: SparseChoice = "auto",
        scope: Scope = "board",
    ) -> Request:
        """Check what :func:`estimate` was asked, which takes the same arguments."""
        if not isinstance(trace, Trace):
            found = f"the name {trace!r}" if isinstance(trace, str) else type(trace).__name__
            raise HwmodelError(f"estimate prices a trace, got {found}; make one with hw.trace(...) or hw.load_trace(...)")
        card = device if isinstance(device, Card) else load_card(device)
        check_choices(attention=attention, sparse_kernel=sparse_kernel, scope=scope)
        execution, power = card.split_mode(mode)
        if dtype is not None:
            check_dtype(dtype)
        settled = dtype or trace.dtype or card.default_dtype
        workload = Workload.of(trace, dtype=dtype, default_dtype=card.default_dtype)
        stored = set(workload.weight_dtype.tolist()) - {"int8", "int4"}  # any machine widens integers that it cannot multiply
        for used in sorted({settled, *workload.dtype.tolist(), *stored}):
            card.check_dtype(used)
        options = Options(mode=execution, attention=attention, sparse_kernel=sparse_kernel, scope=scope)
        label = f"{execution}+{power}" if power else execution
        return cls(workload=workload, card=card, mode=label, dtype=settled, options=options)

    def costs(self, overrides: Mapping[str, Any]) -> Costs:
        """Cost of every operator, with some fields of the card replaced."""
        parameters = self.card.resolve(self.mode, overrides)
        return evaluate(get_backend(self.card.backend), self.workload, parameters, self.options)

    def fidelity(self, overrides: Mapping[str, Any]) -> dict[str, Fidelity]:
        """See :attr:`Estimate.fidelity`."""
        if overrides:
            return {"latency": "assumed", "energy": "assumed"}
        mode = self.card.fidelity[self.options.mode]
        return {"latency": mode.latency, "energy": mode.energy}

    def area_mm2(self, overrides: Mapping[str, Any]) -> dict[str, Any]:
        """See :attr:`Estimate.area_mm2`; arrays of shape (designs,) where overrides are arrays."""
        tell = getattr(get_backend(self.card.backend), "area_mm2", None)
        if tell is None:
            return {}
        parameters = self.card.resolve(self.mode, overrides)
        parts: dict[str, Any] = tell(parameters, mode=self.options.mode, workload=self.workload)
        return {name: float(area) if np.ndim(area) == 0 else np.asarray(area).reshape(-1) for name, area in parts.items()}


def check_choices(**chosen: str) -> None:
    """Raise :class:`UnknownNameError` for a choice of :func:`estimate` that does not exist."""
    for what, value in chosen.items():
        if value not in _CHOICES[what]:
            raise UnknownNameError(what, value, _CHOICES[what])
