"""What a report compares: versions of one model (the dense one first) on the same machines."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from hwmodel.errors import HwmodelError

if TYPE_CHECKING:
    import pandas as pd

    from hwmodel.backends.cards import Card
    from hwmodel.backends.estimates import Estimate
    from hwmodel.ir.trace import Trace


@dataclass(frozen=True, eq=False)
class Variant:
    """One version of a model, priced on some machines.

    Parameters
    ----------
    label : what a reader calls it: "dense", "LSP 32x32"
    trace : its operators
    estimates : what it costs, one per machine; every variant of a report has the same machines in the same order
    """

    label: str
    trace: Trace
    estimates: Sequence[Estimate]

    @property
    def kept_share(self) -> float:
        """MACs that are left over the dense model's; 1 where there is none to begin with."""
        return self.trace.kept_macs / self.trace.macs if self.trace.macs else 1.0


@dataclass(frozen=True, eq=False)
class Case:
    """One variant on one machine."""

    variant: str
    estimate: Estimate

    @cached_property
    def summary(self) -> dict[str, Any]:
        """Totals of the estimate."""
        return self.estimate.summary()

    @cached_property
    def frame(self) -> pd.DataFrame:
        """One row per operator."""
        return self.estimate.frame()

    @property
    def trace(self) -> Trace:
        """The operators priced."""
        return self.estimate.trace

    @property
    def card(self) -> Card:
        """The machine."""
        return self.estimate.card

    @property
    def latency_s(self) -> float:
        """Seconds for the whole batch."""
        return float(self.summary["latency_s"])

    @property
    def energy_j(self) -> float:
        """Joules for the whole batch."""
        return float(self.summary["energy_j"])

    @property
    def mode(self) -> str:
        """Execution mode, with the power mode after "+"."""
        return str(self.summary["mode"])

    @property
    def dtype(self) -> str:
        """Number format of operators without their own."""
        return str(self.summary["dtype"])

    @property
    def terms(self) -> str:
        """Mode and number format: "engine+30w, fp16"."""
        return f"{self.mode}, {self.dtype}"

    @property
    def power_mode(self) -> str | None:
        """Power mode, where the card has some."""
        return next((part for part in self.mode.split("+") if part in self.card.power_modes), None)


@dataclass(frozen=True, eq=False)
class Machine:
    """One machine with every variant priced on it, the baseline first.

    Parameters
    ----------
    label : what a reader calls it
    index : its place in the report, which decides its colour
    cases : one per variant
    references : for each case, what its ratios are taken against: the first variant, on the design point of the case
    """

    label: str
    index: int
    cases: tuple[Case, ...]
    references: tuple[Case, ...]

    @property
    def baseline(self) -> Case:
        """The first variant as it was priced."""
        return self.cases[0]

    @property
    def pairs(self) -> tuple[tuple[Case, Case], ...]:
        """Every variant after the first, with its reference."""
        return tuple(zip(self.cases, self.references, strict=True))[1:]

    def reference(self, case: Case) -> Case:
        """What ratios of ``case`` are taken against."""
        return self.references[self.cases.index(case)]

    @property
    def card(self) -> Card:
        """The machine's description."""
        return self.baseline.card


def on_design_of(case: Case, baseline: Case) -> Case:
    """The baseline on the design point that the recipe of ``case`` asks for (ViTA's PE); itself where that is its own.

    A speed-up from a larger machine is none of pruning's, so the baseline is priced again under the same choices.
    """
    backend = case.card.backend
    asked, had = (dict(one.trace.design.get(backend, {})) for one in (case, baseline))
    if asked == had:
        return baseline
    design = {**baseline.trace.design, backend: asked}
    return priced_again(baseline, baseline.trace.replace(design=design))


def priced_again(case: Case, trace: Trace) -> Case:
    """Another trace priced as ``case`` was: the same machine, mode, number format and choices."""
    from hwmodel.backends.estimates import estimate

    first, options = case.estimate, case.estimate.options
    again = estimate(
        trace, device=first.card, mode=case.mode, dtype=case.dtype, overrides=first.overrides, attention=options.attention,
        sparse_kernel=options.sparse_kernel, scope=options.scope,
    )  # fmt: skip
    return Case(case.variant, again)


def quotient(above: float, below: float) -> float | None:
    """``above / below``; None where that is no number."""
    return above / below if below > 0 and np.isfinite(above) and np.isfinite(below) else None


def speed_up(case: Case, baseline: Case) -> float | None:
    """How many times faster than the baseline; None where one of them takes no time."""
    return quotient(baseline.latency_s, case.latency_s)


def energy_gain(case: Case, baseline: Case) -> float | None:
    """How many times less energy than the baseline; None where one of them has none."""
    return quotient(baseline.energy_j, case.energy_j)


def is_dense(trace: Trace) -> bool:
    """Whether no operator lost work to pruning."""
    return all(one.mask is None and one.sparsity is None and one.dense_macs is None for one in trace.operators)


def machines_of(variants: Sequence[Variant]) -> tuple[Machine, ...]:
    """The machines of a report, each with all variants.

    Raises
    ------
    HwmodelError
        No variant or no machine; variants that differ in batch or machines; an estimate of another trace or of
        a sweep over designs.
    """
    _check(variants)
    names = _machine_labels(variants[0].estimates)
    return tuple(_machine(name, index, variants) for index, name in enumerate(names))


def _machine(label: str, index: int, variants: Sequence[Variant]) -> Machine:
    cases = tuple(Case(variant.label, variant.estimates[index]) for variant in variants)
    return Machine(label, index, cases, tuple(on_design_of(case, cases[0]) for case in cases))


def _machine_labels(estimates: Sequence[Estimate]) -> list[str]:
    """Device names, with the mode where one device is priced in several, numbered where even that repeats."""
    devices = Counter(estimate.card.name for estimate in estimates)
    labels = [
        estimate.card.name if devices[estimate.card.name] == 1 else f"{estimate.card.name} {estimate.summary()['mode']}"
        for estimate in estimates
    ]
    repeated, seen = Counter(labels), Counter[str]()
    numbered = []
    for label in labels:
        seen[label] += 1
        numbered.append(label if repeated[label] == 1 else f"{label} #{seen[label]}")
    return numbered


def _check(variants: Sequence[Variant]) -> None:
    if not variants or not variants[0].estimates:
        raise HwmodelError("a report needs at least one variant priced on at least one device")
    first = variants[0]
    devices = [estimate.card.name for estimate in first.estimates]
    for variant in variants:
        found = [estimate.card.name for estimate in variant.estimates]
        if found != devices:
            raise HwmodelError(f"{variant.label}: priced on {', '.join(found)}, but {first.label} on {', '.join(devices)}")
        if variant.trace.batch != first.trace.batch:
            raise HwmodelError(f"{variant.label}: batch {variant.trace.batch}, but {first.label} has batch {first.trace.batch}")
        for estimate in variant.estimates:
            _check_estimate(variant, estimate)


def _check_estimate(variant: Variant, estimate: Estimate) -> None:
    if estimate.costs.latency_s.ndim != 1:
        raise HwmodelError(f"{variant.label} on {estimate.card.name}: a sweep over designs; report one design at a time")
    if estimate.trace is not variant.trace and estimate.trace.operators != variant.trace.operators:
        raise HwmodelError(f"{variant.label} on {estimate.card.name}: the estimate prices another trace")
