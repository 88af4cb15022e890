"""Where time, energy and MACs of a case go. Plain numbers for words and figures; every part sums to its total."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from hwmodel.backends.base import FloatArray
from hwmodel.ir.operators import Operator
from hwmodel.ir.trace import Trace
from hwmodel.reporting.variants import Case

if TYPE_CHECKING:
    import pandas as pd

WAITING = "waiting"
ROLES: Mapping[str, str] = {
    "qkv": "qkv",
    "attention": "attention",
    "proj": "proj",
    "fc1": "fc1",
    "fc2": "fc2",
    "ends": "embedding, head",
    "products": "other products",
    "vector": "norms, adds, moves",
    WAITING: "waiting for the host",
}
"""Groups of operators in the order they are stacked, with what a reader calls them."""

_ATTENTION_ROLES = {"scores", "context", "attention"}
_ATTENTION_KINDS = {"attention", "softmax"}


def group_of(operator: Operator) -> str:
    """Key of :data:`ROLES` for one operator."""
    if operator.attention_group or operator.role in _ATTENTION_ROLES or operator.kind in _ATTENTION_KINDS:
        return "attention"
    if operator.role in {"qkv", "proj", "fc1", "fc2"}:
        return operator.role
    if operator.role in {"patch_embed", "head"}:
        return "ends"
    return "products" if operator.family == "product" else "vector"


def groups(trace: Trace) -> list[str]:
    """:func:`group_of` every operator, in trace order."""
    return [group_of(operator) for operator in trace.operators]


def sums_by_role(trace: Trace, column: FloatArray) -> dict[str, float]:
    """Sums of one number per operator by key of :data:`ROLES`."""
    parts = dict.fromkeys(ROLES, 0.0)
    for role, value in zip(groups(trace), column.tolist(), strict=True):
        parts[role] += value
    return parts


def latency_by_role(case: Case) -> dict[str, float]:
    """Seconds by key of :data:`ROLES`; waiting is its own part, so the parts sum to the latency."""
    costs = case.estimate.costs
    parts = sums_by_role(case.trace, costs.latency_s - costs.gap_s)
    parts[WAITING] = float(costs.gap_s.sum())
    return parts


def by_role(case: Case, column: str) -> dict[str, float]:
    """``latency_s`` or ``energy_j`` by key of :data:`ROLES`; the energy of waiting stands with what waits."""
    if column == "latency_s":
        return latency_by_role(case)
    return sums_by_role(case.trace, case.frame[column].to_numpy())


def latency_by_bound(case: Case, rows: Sequence[int] | None = None) -> dict[str, float]:
    """Seconds of some rows (all where None) by limiting resource, largest first; waiting counts for the host."""
    costs = case.estimate.costs
    parts: dict[str, float] = {}
    for row in range(len(case.trace)) if rows is None else rows:
        gap, bound = float(costs.gap_s[row]), str(costs.bound[row])
        parts["host"] = parts.get("host", 0.0) + gap
        parts[bound] = parts.get(bound, 0.0) + float(costs.latency_s[row]) - gap
    return dict(sorted(((bound, seconds) for bound, seconds in parts.items() if seconds > 0), key=lambda item: -item[1]))


def by_encoder_block(case: Case, column: str) -> pd.DataFrame:
    """``latency_s`` or ``energy_j`` by encoder block (rows) and role (columns, as stacked); empty where there are no blocks."""
    frame = case.frame[["block", column]].assign(role=groups(case.trace))
    inside = frame[frame["block"].notna()].astype({"block": int})
    table = inside.pivot_table(index="block", columns="role", values=column, aggfunc="sum", fill_value=0.0)
    return table[[role for role in ROLES if role in table.columns]]


@dataclass(frozen=True, kw_only=True)
class Account:
    """How a pruned variant's seconds come about, from the baseline's; the four parts sum to its latency.

    Parameters
    ----------
    kept_s : baseline time of pruned operators, times the share of their MACs that is kept: what remains at best
    untouched_s : baseline time of operators that the recipe does not prune
    coarse_s : baseline time of MACs that are pruned and still executed, because the machine skips in coarser units
    rest_s : what else the pruned variant takes: launches, waiting, memory, kernel overhead. Negative where it gains more
    """

    kept_s: float
    untouched_s: float
    coarse_s: float
    rest_s: float

    @property
    def latency_s(self) -> float:
        """The pruned variant's latency."""
        return self.kept_s + self.untouched_s + self.coarse_s + self.rest_s


def _work(operator: Operator) -> float:
    """What pruning may take away from an operator: kept MACs, or elements where it has none."""
    return operator.kept_macs or float(operator.elements)


def kept_work(operator: Operator, before: Operator) -> float:
    """Share of an operator's work that is left, against the same operator of the baseline; at most 1."""
    return min(_work(operator) / _work(before), 1.0) if _work(before) else 1.0


@dataclass(frozen=True)
class Change:
    """One operator of the baseline and what pruning did to it.

    Parameters
    ----------
    before : row in the baseline's trace
    now : row in the pruned trace, None where the operator is gone
    kept : share of its work that is left, in [0, 1]
    executed : share of its executed MACs that is left, not below ``kept``, at most 1
    """

    before: int
    now: int | None
    kept: float
    executed: float


def changes(case: Case, baseline: Case) -> list[Change]:
    """What pruning did to every operator of the baseline; operators are matched by name."""
    rows = {operator.name: row for row, operator in enumerate(case.trace.operators)}
    done, dense = case.estimate.costs.executed_macs, baseline.estimate.costs.executed_macs
    found = []
    for row, operator in enumerate(baseline.trace.operators):
        now = rows.get(operator.name)
        kept = 0.0 if now is None else kept_work(case.trace.operators[now], operator)
        executed = float(done[now] / dense[row]) if now is not None and dense[row] > 0 else kept
        found.append(Change(row, now, kept, min(max(executed, kept), 1.0)))
    return found


def account(case: Case, baseline: Case) -> Account:
    """Split the latency of ``case`` by why it did not shrink, operator by operator."""
    before = baseline.estimate.costs.latency_s.tolist()
    kept = untouched = coarse = 0.0
    for change in changes(case, baseline):
        seconds = before[change.before]
        if change.kept >= 1.0:
            untouched += seconds
        else:
            kept += seconds * change.kept
            coarse += seconds * (change.executed - change.kept)
    return Account(kept_s=kept, untouched_s=untouched, coarse_s=coarse, rest_s=case.latency_s - kept - untouched - coarse)


def untouched_by_role(case: Case, baseline: Case) -> dict[str, float]:
    """Baseline seconds of operators that kept all their work, by key of :data:`ROLES`, largest first."""
    seconds, roles = baseline.estimate.costs.latency_s.tolist(), groups(baseline.trace)
    parts: dict[str, float] = {}
    for change in changes(case, baseline):
        if change.kept >= 1.0:
            parts[roles[change.before]] = parts.get(roles[change.before], 0.0) + seconds[change.before]
    return dict(sorted(parts.items(), key=lambda item: -item[1]))


def roofline_points(case: Case) -> pd.DataFrame:
    """:func:`kernels`, those alike to four digits merged: their shares added, their ``count`` told."""
    return _merged(kernels(case))


def kernels(case: Case) -> pd.DataFrame:
    """Kernels that multiply, by the name of the operator each stands with.

    Columns: ``role``, ``macs_per_byte`` (executed MACs over DRAM bytes, infinite where nothing leaves the chip),
    ``macs_per_s`` (executed MACs over the time the kernel runs, waiting excluded), ``share`` of the latency.
    """
    frame = case.frame.assign(role=groups(case.trace), busy_s=case.frame["latency_s"] - case.frame["gap_s"])
    kernel = frame["fused_into"].where(frame["fused_into"].notna(), frame.index.to_series())
    lead = frame["executed_macs"].groupby(kernel).idxmax()
    sums = frame[["executed_macs", "dram_bytes", "busy_s"]].groupby(kernel).sum()
    sums["role"] = frame["role"].loc[lead.loc[sums.index]].to_numpy()
    sums = sums[(sums["executed_macs"] > 0) & (sums["busy_s"] > 0)]
    bytes_moved = sums["dram_bytes"].to_numpy()
    return sums[["role"]].assign(
        macs_per_byte=np.divide(sums["executed_macs"], bytes_moved, out=np.full(len(sums), np.inf), where=bytes_moved > 0),
        macs_per_s=sums["executed_macs"] / sums["busy_s"],
        share=sums["busy_s"] / case.latency_s,
    )


def _merged(points: pd.DataFrame) -> pd.DataFrame:
    """Points that agree to four digits as one, their shares added."""
    keys = [points["role"], *(points[column].map("{:.3e}".format) for column in ("macs_per_byte", "macs_per_s"))]
    grouped = points.groupby([key.to_numpy() for key in keys])
    merged = grouped.agg({"role": "first", "macs_per_byte": "first", "macs_per_s": "first", "share": "sum"})
    return merged.assign(count=grouped.size()).sort_values("share", ascending=False, kind="stable").reset_index(drop=True)


def layers(trace: Trace) -> list[Operator]:
    """Operators with weights that pruning can take: products with a parameter, in trace order."""
    return [operator for operator in trace.operators if operator.family == "product" and operator.parameter]


def kept_weights(operator: Operator) -> float:
    """Kept weights over all weights of a layer, in [0, 1]; 1 where dense."""
    return operator.mask.kept_weights / (operator.n * operator.k) if operator.mask else operator.kept_share


def executed_share(case: Case, baseline: Case, names: Iterable[str]) -> list[float]:
    """Executed MACs over the baseline's, for the operators named; NaN where the baseline has none."""
    now, before = (one.frame["executed_macs"] for one in (case, baseline))
    return [
        float(now[name] / before[name]) if name in now and name in before and before[name] > 0 else float("nan") for name in names
    ]
