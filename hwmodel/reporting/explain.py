"""Why a model costs what it costs on a machine: what limits it, what pruning did there, and what would help.

Reasons of a group of operators: ``gains`` (time fell with the work), ``skip-unit-too-coarse`` (the units that the machine skips
still hold kept blocks), ``above-break-even`` (a sparse kernel would be slower), ``masks-unused`` (zeros are multiplied),
``memory-bound``, ``launch-bound``, ``host-bound``, ``vector-bound`` (what limits it does not shrink with MACs), ``fixed-cost`` (the
MACs that remain run at a lower rate), ``not-pruned``, ``no-time``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from hwmodel.backends.estimates import Estimate
from hwmodel.errors import HwmodelError
from hwmodel.ir.trace import Trace
from hwmodel.reporting.breakdown import account
from hwmodel.reporting.explain_groups import Comparison, Group, Reason, explain_groups
from hwmodel.reporting.explain_trials import HELPS, AtBatch, Price, Trial, Untried, try_changes
from hwmodel.reporting.tables import band_text
from hwmodel.reporting.units import percent, ratio, si
from hwmodel.reporting.variants import Case, Variant, energy_gain, is_dense, machines_of, quotient, speed_up
from hwmodel.reporting.words import Finding, images_word, limits, listed


@dataclass(frozen=True, kw_only=True)
class Explanation:
    """What is told about one model on one machine.

    Parameters
    ----------
    comparison : the version explained and the dense one it is held against; the same case twice where nothing is pruned
    findings : sentences on the whole model
    groups : one entry for each group of operators
    trials : changes that were tried, those that ask least of the model first
    untried : changes that could not be tried, and why
    """

    comparison: Comparison
    findings: tuple[Finding, ...]
    groups: tuple[Group, ...]
    trials: tuple[Trial, ...]
    untried: tuple[Untried, ...]

    @property
    def smallest(self) -> Trial | None:
        """The change that asks least of the model among those that help, None where none does."""
        return next((trial for trial in self.trials if trial.helps), None)

    def lines(self) -> Iterator[tuple[str, str]]:
        """(heading, text): what a reader is shown, in order."""
        for finding in self.findings:
            yield finding.lead, finding.text
        case = self.comparison.case
        for group in self.groups:
            pruned = f"{group.pruned} of {group.operators} pruned, " if group.pruned else ""
            share = percent(quotient(group.latency_s, case.latency_s))
            yield f"{group.group} ({pruned}{si(group.latency_s, 's')}, {share})", group.text
        yield (
            "Smallest change that helps",
            self.smallest.text if self.smallest else f"none of those tried helps by {percent(HELPS - 1)}.",
        )
        for trial in self.trials:
            if trial is not self.smallest:
                yield "Tried", trial.text
        for untried in self.untried:
            yield f"Not tried, {untried.kind}", f"{untried.why}."

    def document(self) -> dict[str, Any]:
        """Everything as plain JSON values."""
        case, dense = self.comparison.case, self.comparison.dense
        place = ("model", "device", "mode", "batch", "dtype", "latency_s", "energy_j", "energy_scope", "fidelity", "error_band")
        return {
            **{name: case.summary[name] for name in place},
            "dense_latency_s": dense.latency_s,
            "dense_energy_j": dense.energy_j,
            "faster": speed_up(case, dense),
            "less_energy": energy_gain(case, dense),
            "kept_macs_share": quotient(case.trace.kept_macs, dense.trace.kept_macs),
            "skip_unit": self.comparison.unit,
            "findings": [asdict(finding) for finding in self.findings],
            "groups": [asdict(group) for group in self.groups],
            "smallest_change": self.smallest.kind if self.smallest else None,
            "tried": [asdict(trial) for trial in self.trials],
            "not_tried": [asdict(untried) for untried in self.untried],
            "warnings": case.estimate.warnings,
        }


def explain(present: Estimate, dense: Estimate, price: Price, *, at_batch: AtBatch | None = None) -> Explanation:
    """Explain an estimate against the dense model's on the same machine.

    Parameters
    ----------
    present, dense : what the two versions cost; the same where nothing is pruned
    price : how a changed trace is priced: same device, mode, number format and choices
    at_batch : the two versions at another batch; None where they cannot be made

    Raises
    ------
    HwmodelError
        Estimates on different machines, or of a sweep over designs.
    """
    if present.card.name != dense.card.name or present.mode != dense.mode:
        told = " and ".join(f"{one.card.name} {one.mode}" for one in (dense, present))
        raise HwmodelError(f"the two estimates are of different machines ({told}); price both on one")
    variants = [Variant("dense", dense.trace, (dense,)), Variant("pruned", present.trace, (present,))]
    machine = machines_of(variants)[0]
    case, reference = machine.cases[1], machine.references[1]
    comparison = Comparison(case, reference)
    tried = try_changes(comparison, price, at_batch)
    groups = explain_groups(comparison)
    pruned = comparison.changes_anything
    limit = limits([machine if pruned else machines_of(variants[:1])[0]])[0]
    return Explanation(
        comparison=comparison,
        findings=(
            _headline(case, reference),
            Finding("What limits it", limit.text),
            *([Finding("What pruning did", _outcome(comparison, groups))] if pruned else []),
        ),
        groups=tuple(groups),
        trials=tuple(one for one in tried if isinstance(one, Trial)),
        untried=tuple(one for one in tried if isinstance(one, Untried)),
    )


def without_masks(trace: Trace) -> Trace:
    """The dense model behind a saved trace, as far as it is known: no masks and patterns, the shapes as they are."""
    return trace.replace(operators=tuple(one.replace(mask=None, sparsity=None) for one in trace.operators))


def _headline(case: Case, dense: Case) -> Finding:
    """Cost, gain, and how far to trust them."""
    lead = f"{case.trace.model} on {case.card.name} ({case.terms})"
    cost = f"{si(case.latency_s, 's')} and {si(case.energy_j, 'J')} for {images_word(case.trace.batch)}"
    if case.estimate is dense.estimate or is_dense(case.trace):
        gain = ", nothing pruned"
    else:
        fewer = quotient(dense.trace.kept_macs, case.trace.kept_macs)
        gain = (
            f"; dense {si(dense.latency_s, 's')} and {si(dense.energy_j, 'J')}: {ratio(speed_up(case, dense))} faster and "
            f"{ratio(energy_gain(case, dense))} less energy for {ratio(fewer)} fewer MACs"
        )
    trust = "; ".join(f"{quantity} {_trust(case, quantity)}" for quantity in ("latency", "energy"))
    return Finding(lead, f"{cost}{gain}. Fidelity: {trust}.")


def _trust(case: Case, quantity: str) -> str:
    return f"{case.estimate.fidelity[quantity]}, error {band_text(case.estimate.error_band(quantity))}"


_OUTCOMES: Mapping[Reason, str] = {
    "gains": "time fell with the work in {}",
    "skip-unit-too-coarse": "the machine's skip unit is too coarse for the blocks of {}",
    "above-break-even": "{} kept too much: above break-even",
    "masks-unused": "zeros are multiplied all the same in {}",
    "memory-bound": "{} wait for off-chip memory",
    "launch-bound": "{} are as short as a launch",
    "host-bound": "{} wait for the host",
    "vector-bound": "{} wait for the vector unit",
    "fixed-cost": "what is left of {} runs at a lower rate",
    "no-time": "{} took no time before",
}


def _outcome(comparison: Comparison, groups: Sequence[Group]) -> str:
    """Reasons over all groups, and where the time is now."""
    case, dense = comparison.case, comparison.dense
    by_reason: dict[Reason, list[str]] = {}
    for group in sorted(groups, key=lambda one: -one.latency_s):
        if group.pruned:
            by_reason.setdefault(group.reason, []).append(group.group)
    reasons = "; ".join(_OUTCOMES[reason].format(listed(names)) for reason, names in by_reason.items())
    parts = account(case, dense)
    best = quotient(dense.latency_s, parts.kept_s + parts.untouched_s)
    limit = (
        f" {si(parts.untouched_s, 's')} were never pruned: had every pruned MAC saved its time, it would be {ratio(best)} faster."
    )
    return f"{reasons}.{limit if best else ''}"
