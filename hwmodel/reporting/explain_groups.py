"""Group by group: what limits its operators, and why pruning them did or did not save time on this machine."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from hwmodel.backends.base import Backend
from hwmodel.backends.estimates import Estimate, estimate
from hwmodel.backends.gpu.advice import SlowLayer, slow_layers
from hwmodel.backends.registry import backend_names, get_backend
from hwmodel.ir.masks import Mask
from hwmodel.reporting.breakdown import ROLES, WAITING, Change, changes, groups, latency_by_bound
from hwmodel.reporting.units import percent, si
from hwmodel.reporting.variants import Case, quotient
from hwmodel.reporting.words import NEAR, listed, resource

Reason = Literal[
    "not-pruned", "no-time", "gains", "masks-unused", "skip-unit-too-coarse", "above-break-even",
    "memory-bound", "launch-bound", "host-bound", "vector-bound", "fixed-cost",
]  # fmt: skip
WHOLE = 0.995
"""Share of the dense MACs from which on nothing is skipped."""
_BY_BOUND: Mapping[str, Reason] = {
    "memory": "memory-bound", "launch": "launch-bound", "host": "host-bound", "vector": "vector-bound",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Group:
    """One group of operators (a key of :data:`hwmodel.reporting.breakdown.ROLES`), dense and as it is.

    Parameters
    ----------
    operators, pruned : how many there are in the dense model, and how many of them pruning touched
    dense_s, latency_s : their seconds before and after
    kept, executed : share of the work of the pruned ones that is left, and of their MACs that is executed, weighted by time
    bounds : seconds by limiting resource, largest first
    reason, text : why pruning did or did not help, as a key and in words
    """

    group: str
    operators: int
    pruned: int
    dense_s: float
    latency_s: float
    kept: float
    executed: float
    bounds: Mapping[str, float]
    reason: Reason
    text: str


@dataclass(frozen=True, eq=False)
class Comparison:
    """A version of a model on a machine, against the dense one on the same design."""

    case: Case
    dense: Case

    @property
    def backend(self) -> Backend | None:
        """The model of the machine, None where it is not installed."""
        name = self.case.card.backend
        return get_backend(name) if name in backend_names() else None

    @property
    def changes_anything(self) -> bool:
        """Whether anything was pruned."""
        return any(change.kept < 1.0 for change in self.changes)

    @cached_property
    def unit(self) -> tuple[int, int] | None:
        """(out, in) weights that the machine skips as one; None where it skips nothing or does not say."""
        tell = getattr(self.backend, "skip_unit", None)
        if tell is None:
            return None
        now = self.case.estimate
        found: tuple[int, int] | None = tell(now.workload, now.card.resolve(now.mode, now.overrides), now.options)
        return found

    @cached_property
    def changes(self) -> list[Change]:
        """What pruning did to every operator of the dense model."""
        return changes(self.case, self.dense)

    @cached_property
    def slow(self) -> dict[str, SlowLayer]:
        """Pruned layers whose sparse kernel loses to the dense one, by name; empty where there are no two kernels."""
        return {layer.name: layer for layer in slow_layers(self.case.estimate)}

    @cached_property
    def forced(self) -> Estimate:
        """The same estimate with the sparse kernel wherever there is one."""
        now = self.case.estimate
        return estimate(
            now.trace, device=now.card, mode=now.mode, dtype=now.dtype, overrides=now.overrides, attention=now.options.attention,
            scope=now.options.scope, sparse_kernel="always",
        )  # fmt: skip

    @cached_property
    def two_kernels(self) -> bool:
        """Whether the machine chooses between a dense and a sparse kernel."""
        return self.case.card.backend == "gpu"


@dataclass(frozen=True, eq=False)
class _Pruned:
    """The pruned operators of one group, with sums over them."""

    of: Comparison
    rows: Sequence[Change]

    @cached_property
    def bounds(self) -> Mapping[str, float]:
        return latency_by_bound(self.of.case, [row.now for row in self.rows if row.now is not None])

    @cached_property
    def before_s(self) -> float:
        return float(sum(self.of.dense.estimate.costs.latency_s[row.before] for row in self.rows))

    @cached_property
    def now_s(self) -> float:
        return float(sum(self.of.case.estimate.costs.latency_s[row.now] for row in self.rows if row.now is not None))

    def _mean(self, value: Callable[[Change], float]) -> float:
        seconds = [float(self.of.dense.estimate.costs.latency_s[row.before]) for row in self.rows]
        weights = seconds if sum(seconds) > 0 else [1.0] * len(seconds)
        return sum(weight * value(row) for weight, row in zip(weights, self.rows, strict=True)) / sum(weights)

    @cached_property
    def kept(self) -> float:
        return self._mean(lambda row: row.kept)

    @cached_property
    def executed(self) -> float:
        return self._mean(lambda row: row.executed)

    @cached_property
    def masks(self) -> list[Mask]:
        found = [self.of.case.trace.operators[row.now].mask for row in self.rows if row.now is not None]
        return [mask for mask in found if mask is not None]

    @cached_property
    def slow(self) -> list[SlowLayer]:
        names = [self.of.dense.trace.operators[row.before].name for row in self.rows]
        return [self.of.slow[name] for name in names if name in self.of.slow]

    @property
    def bound(self) -> str:
        return next((name for name in self.bounds if name != "none"), "none")

    @cached_property
    def reason(self) -> Reason:
        """The main reason; see the module :mod:`hwmodel.reporting.explain` for what each means."""
        if self.before_s <= 0:
            return "no-time"
        if self.now_s * NEAR <= self.before_s * self.kept:
            return "gains"
        if self.executed >= WHOLE and (self.masks or self._patterned):
            return self._why_whole()
        coarse_s, rest_s = self.before_s * (self.executed - self.kept), self.now_s - self.before_s * self.executed
        return "skip-unit-too-coarse" if coarse_s > max(rest_s, 0.0) else _BY_BOUND.get(self.bound, "fixed-cost")

    @property
    def _patterned(self) -> bool:
        operators = self.of.case.trace.operators
        return any(operators[row.now].sparsity is not None for row in self.rows if row.now is not None)

    def _why_whole(self) -> Reason:
        """Why the machine multiplies everything although blocks are pruned."""
        if not self.of.two_kernels:
            return "masks-unused" if self.of.unit is None or not self.masks else "skip-unit-too-coarse"
        if self.bound == "host":
            return "host-bound"
        first = self.slow[0] if self.slow else None
        coarse = first is not None and first.break_even is not None and first.kept < first.break_even <= first.occupied
        return "skip-unit-too-coarse" if coarse else "above-break-even"

    def busy_s(self, estimate: Estimate) -> float:
        """Seconds that the kernels of these operators run, waiting left out."""
        rows = [row.now for row in self.rows if row.now is not None]
        return float((estimate.costs.latency_s - estimate.costs.gap_s)[rows].sum())

    @cached_property
    def forced_s(self) -> float:
        """The same with sparse kernels everywhere, whatever they cost."""
        return self.busy_s(self.of.forced)


def explain_groups(comparison: Comparison) -> list[Group]:
    """One :class:`Group` for each group of operators that takes time, in the order of the model's parts."""
    now, before = groups(comparison.case.trace), groups(comparison.dense.trace)
    found = [_group(comparison, key, now, before) for key in ROLES if key != WAITING]
    return [group for group in found if group is not None]


def _group(comparison: Comparison, key: str, now: Sequence[str], before: Sequence[str]) -> Group | None:
    case, dense = comparison.case, comparison.dense
    rows = [row for row, name in enumerate(now) if name == key]
    all_changes = [change for change in comparison.changes if before[change.before] == key]
    dense_s = float(sum(dense.estimate.costs.latency_s[change.before] for change in all_changes))
    latency_s = float(case.estimate.costs.latency_s[rows].sum()) if rows else 0.0
    touched = [change for change in all_changes if change.kept < 1.0]
    if latency_s <= 0 and dense_s <= 0 and not touched:
        return None
    bounds = latency_by_bound(case, rows)
    pruned = _Pruned(comparison, touched)
    reason: Reason = pruned.reason if touched else "not-pruned"
    return Group(
        group=ROLES[key], operators=len(all_changes), pruned=len(touched), dense_s=dense_s, latency_s=latency_s,
        kept=pruned.kept if touched else 1.0, executed=pruned.executed if touched else 1.0, bounds=bounds, reason=reason,
        text=f"{_limit(bounds, latency_s)}{_WHY[reason](pruned)}",
    )  # fmt: skip


def _limit(bounds: Mapping[str, float], latency_s: float) -> str:
    """Limited by what, for how much of its time."""
    parts = [
        f"{resource(name)} ({percent(s / latency_s)})" for name, s in bounds.items() if name != "none" and s >= 0.1 * latency_s
    ]
    return f"limited by {listed(parts)}. " if parts else ""


def _left(pruned: _Pruned) -> str:
    time = quotient(pruned.now_s, pruned.before_s)
    return f"{percent(pruned.kept)} of the work is left, {percent(time)} of the time"


def _blocks(masks: Sequence[Mask]) -> str:
    return listed(list(dict.fromkeys(f"{out}x{depth}" for out, depth in (mask.block for mask in masks))))


def _coarse(pruned: _Pruned) -> str:
    """How many of the machine's units still hold a kept block."""
    slow = pruned.slow if pruned.of.two_kernels else []
    units = {layer.unit for layer in slow} or ({pruned.of.unit} if pruned.of.unit else set())
    told = listed([f"{out}x{depth}" for out, depth in sorted(units)])
    occupied = sum(layer.occupied for layer in slow) / len(slow) if slow else occupied_share(pruned.masks, pruned.of.unit)
    return (
        f"{_left(pruned)}: the machine skips {told} weights at once, coarser than blocks of {_blocks(pruned.masks)}, and "
        f"{percent(occupied)} of these units hold a kept block, so {percent(pruned.executed)} of the MACs are executed."
    )


def occupied_share(masks: Sequence[Mask], unit: tuple[int, int] | None) -> float:
    """Units that hold a kept block over all units, of all masks together; 1 where nothing is skipped."""
    if unit is None or not masks:
        return 1.0
    out, depth = unit
    total = sum(-(-mask.shape[0] // out) * -(-mask.shape[1] // depth) for mask in masks)
    return float(sum(mask.occupied_tiles(out, depth) for mask in masks)) / total


def _above(pruned: _Pruned) -> str:
    slow = pruned.slow
    known = [layer.break_even for layer in slow if layer.break_even is not None]
    dense_s = sum(layer.dense_s for layer in slow) or pruned.busy_s(pruned.of.case.estimate)
    times = (sum(layer.sparse_s for layer in slow) or pruned.forced_s) / dense_s
    even = f", which wins below {percent(min(known))} of its blocks only" if known else ""
    return f"{_left(pruned)}: above break-even. The sparse kernel would take {times:.2f} times as long as the dense one{even}."


def _masks_unused(pruned: _Pruned) -> str:
    what = "masks are" if pruned.masks else "N:M pattern is"
    return f"{_left(pruned)}: the {what} not used. This machine, in this mode, multiplies the zeros all the same."


def _fixed(pruned: _Pruned) -> str:
    return f"{_left(pruned)}: what remains runs at a lower rate (fixed costs of each layer, part-filled units, kernel overhead)."


def _bound_text(pruned: _Pruned) -> str:
    seconds = pruned.bounds[pruned.bound]
    return f"{_left(pruned)}: {_BOUND_WORDS[pruned.reason]} for {si(seconds, 's')}, which pruned MACs do not shorten."


_BOUND_WORDS: Mapping[Reason, str] = {
    "memory-bound": "memory-bound", "launch-bound": "launch-bound", "host-bound": "waiting for the host",
    "vector-bound": "bound by the vector unit",
}  # fmt: skip
_WHY: Mapping[Reason, Callable[[_Pruned], str]] = {
    "not-pruned": lambda _: "Not pruned.",
    "no-time": lambda _: "Pruned, but it takes no time in this mode to begin with.",
    "gains": lambda pruned: f"{_left(pruned)}: what was pruned turns into time.",
    "masks-unused": _masks_unused,
    "skip-unit-too-coarse": _coarse,
    "above-break-even": _above,
    "memory-bound": _bound_text,
    "launch-bound": _bound_text,
    "host-bound": _bound_text,
    "vector-bound": _bound_text,
    "fixed-cost": _fixed,
}
