"""What would help: changes tried one by one on the same machine, the smallest first, each priced and none assumed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from hwmodel.backends.estimates import Estimate
from hwmodel.ir.masks import Mask, expected_mask
from hwmodel.ir.operators import Operator
from hwmodel.ir.trace import Trace
from hwmodel.reporting.breakdown import latency_by_bound, layers
from hwmodel.reporting.explain_groups import WHOLE, Comparison
from hwmodel.reporting.units import percent, ratio
from hwmodel.reporting.variants import quotient

Kind = Literal["clustered-blocks", "coarser-blocks", "lower-density", "pruned-blocks", "larger-batch"]
Price = Callable[[Trace], Estimate]
AtBatch = Callable[[int], tuple[Trace, Trace]]
"""The dense model and its present version at another batch."""
HELPS = 1.05
"""Gain from which on a change counts as help."""
BATCHES = (2, 8, 32)
_MARGIN = 0.01
_BELOW = 0.9
_STEPS = 10
_FIXED = ("launch", "host", "memory")


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One change and what it is estimated to bring over the present version; per image where the batch changes.

    Parameters
    ----------
    kind, text : which change, as a key and in words
    settings : what was tried, as plain values
    latency_s, energy_j : of the changed version, whole batch
    faster, less_energy : present over changed; 1 is no gain, None where one of them is nothing
    pruning_faster : dense over changed, both with the same batch: what pruning is worth then; None where nothing is pruned
    helps : whether what pruning is worth grew by :data:`HELPS`; where nothing was pruned, whether it is so much faster
    """

    kind: Kind
    text: str
    settings: Mapping[str, Any]
    latency_s: float
    energy_j: float
    faster: float | None
    less_energy: float | None
    pruning_faster: float | None
    helps: bool


@dataclass(frozen=True)
class Untried:
    """A change that cannot be tried here, and why."""

    kind: Kind
    why: str


def try_changes(comparison: Comparison, price: Price, at_batch: AtBatch | None) -> list[Trial | Untried]:
    """Every change in the order of what it asks of a model: where blocks lie, their shape, their number, the batch."""
    bench = _Bench(comparison, price)
    masks = [bench.clustered(), bench.coarser(), bench.lower()] if bench.masked else [bench.pruned()]
    return [*masks, bench.larger_batch(at_batch)]


@dataclass(frozen=True, eq=False)
class _Bench:
    """Changed versions of one trace on one machine."""

    comparison: Comparison
    price: Price

    @property
    def trace(self) -> Trace:
        return self.comparison.case.trace

    @property
    def masked(self) -> list[Operator]:
        return [operator for operator in self.trace.operators if operator.mask is not None]

    def _trial(self, kind: Kind, what: str, priced: Estimate, settings: Mapping[str, Any], dense_s: float | None = None) -> Trial:
        """``dense_s``: seconds of the dense model at the trial's batch, the present one's where None."""
        case, dense = self.comparison.case, self.comparison.dense
        images = priced.trace.batch / case.trace.batch
        faster = quotient(case.latency_s * images, priced.latency_s)
        less = quotient(case.energy_j * images, priced.energy_j)
        worth = (
            quotient(dense.latency_s if dense_s is None else dense_s, priced.latency_s)
            if self.comparison.changes_anything
            else None
        )
        before = quotient(dense.latency_s, case.latency_s)
        gain = faster if worth is None or before is None else worth / before
        return Trial(
            kind=kind, settings=settings, latency_s=priced.latency_s, energy_j=priced.energy_j, faster=faster, less_energy=less,
            pruning_faster=worth, helps=(gain or 0.0) >= HELPS, text=f"{what}: {_gains(faster, less)}{_per(images, worth)}.",
        )  # fmt: skip

    def _masked(self, make: Callable[[Operator], Mask | None]) -> Trace:
        """Other masks on the layers for which ``make`` gives one, in place of a mask or of an N:M pattern."""
        made = ((one, make(one)) for one in self.trace.operators)
        return self.trace.replace(
            operators=tuple(one if mask is None else one.replace(mask=mask, sparsity=None) for one, mask in made)
        )

    def clustered(self) -> Trial | Untried:
        """As many blocks of the same shape, gathered in 128x128 clusters."""
        unit = self.comparison.unit
        if unit is None:
            return Untried("clustered-blocks", "this machine skips no part of a weight, wherever blocks lie")
        if not any(_smaller(one.mask.block, unit) for one in self.masked if one.mask):
            return Untried("clustered-blocks", f"blocks are no smaller than what the machine skips at once ({_x(unit)})")

        def gather(one: Operator) -> Mask | None:
            return one.mask and expected_mask(one.mask.shape, one.mask.block, one.mask.kept_fraction, "tile-clustered")

        what = 'the same number of the same blocks, gathered in 128x128 clusters (`expect = "tile-clustered"`)'
        return self._trial("clustered-blocks", what, self.price(self._masked(gather)), {"expect": "tile-clustered"})

    def coarser(self) -> Trial | Untried:
        """Blocks that the machine's skip unit divides, at the same density, lying anywhere."""
        unit = self.comparison.unit
        if unit is None:
            return Untried("coarser-blocks", "this machine skips no part of a weight, whatever the shape of its blocks")
        shapes = {one.mask.block: _coarser(one.mask.block, unit) for one in self.masked if one.mask}
        if all(before == after for before, after in shapes.items()):
            return Untried("coarser-blocks", f"blocks are whole multiples already of what the machine skips at once ({_x(unit)})")

        def coarsen(one: Operator) -> Mask | None:
            return one.mask and expected_mask(one.mask.shape, _within(shapes[one.mask.block], one), one.mask.kept_fraction)

        told = ", ".join(dict.fromkeys(map(_x, shapes.values())))
        what = f"blocks of {told}, which the machine skips at once, lying anywhere, at the same density"
        return self._trial("coarser-blocks", what, self.price(self._masked(coarsen)), {"block": told})

    def lower(self) -> Trial | Untried:
        """Just under the density at which the layers that run in full begin to gain."""
        operators = self.trace.operators
        losing = {
            operators[change.now].name
            for change in self.comparison.changes
            if change.now is not None and operators[change.now].mask and change.kept < 1.0 and change.executed >= WHOLE
        }
        if not losing:
            return Untried("lower-density", "every pruned layer skips work already: none is above its break-even density")
        if self.comparison.unit is None:
            return Untried("lower-density", "this machine skips no part of a weight, whatever its density")
        return self._below_break_even(losing)

    def _below_break_even(self, losing: set[str]) -> Trial | Untried:
        """Bisect the common factor on the densities of the layers in ``losing``."""
        kept = [one.mask.kept_fraction for one in self.masked if one.mask and one.name in losing]
        now_s, mean = self.comparison.case.latency_s, sum(kept) / len(kept)
        rows = [row for row, one in enumerate(self.trace.operators) if one.name in losing]
        enough = _MARGIN * float(self.comparison.case.estimate.costs.latency_s[rows].sum())

        def thinned(factor: float) -> Estimate:
            def thin(one: Operator) -> Mask | None:
                mask = one.mask
                if mask is None or one.name not in losing:
                    return mask
                return expected_mask(mask.shape, mask.block, mask.kept_fraction * factor)

            return self.price(self._masked(thin))

        low, high = 0.0, 1.0
        if now_s - float(thinned(1 / 64).latency_s) < enough:
            return Untried("lower-density", f"even {percent(mean / 64, 1)} of blocks would not make these layers faster")
        for _ in range(_STEPS):
            middle = (low + high) / 2
            low, high = (middle, high) if now_s - float(thinned(middle).latency_s) >= enough else (low, middle)
        even = low * mean
        what = (
            f"{len(losing)} layers run in full; they begin to gain at a density of {percent(even, 1)} (now {percent(mean, 1)}). "
            f"At {percent(_BELOW * even, 1)}, blocks lying anywhere"
        )
        settings = {"break_even_density": even, "density": _BELOW * even, "now": mean, "layers": len(losing)}
        return self._trial("lower-density", what, thinned(_BELOW * low), settings)

    def pruned(self) -> Trial | Untried:
        """Half of every layer's blocks, of the shape that the machine skips."""
        unit, found = self.comparison.unit, {one.name for one in layers(self.trace)}
        if unit is None or not found:
            why = "this machine skips no part of a weight" if found else "no layer has weights to prune"
            return Untried("pruned-blocks", why)

        def halve(one: Operator) -> Mask | None:
            return expected_mask((one.n, one.k), _within(unit, one), 0.5) if one.name in found else None

        patterned = " in place of N:M patterns" if any(one.sparsity for one in self.trace.operators) else ""
        what = f"pruning half of the {_x(unit)} blocks, which the machine skips at once, of every layer{patterned}"
        return self._trial("pruned-blocks", what, self.price(self._masked(halve)), {"block": _x(unit), "density": 0.5})

    def larger_batch(self, at_batch: AtBatch | None) -> Trial | Untried:
        """The smallest of :data:`BATCHES` times the images that helps, else the best of them."""
        case = self.comparison.case
        fixed = sum(seconds for bound, seconds in latency_by_bound(case).items() if bound in _FIXED)
        if fixed < 0.1 * case.latency_s:
            return Untried("larger-batch", "under a tenth of the time is launches, waiting or memory, which more images share")
        simulated = getattr(self.comparison.backend, "simulated_modes", ())
        if at_batch is None or case.estimate.execution_mode in simulated:
            why = "a saved trace has one batch; name the model instead" if at_batch is None else "this mode simulates every shape"
            return Untried("larger-batch", why)
        trials: list[Trial] = []
        for times in BATCHES:
            trials.append(self._at_batch(at_batch, times * case.trace.batch))
            if trials[-1].helps:
                break
        return max(trials, key=lambda trial: trial.pruning_faster or trial.faster or 0.0)

    def _at_batch(self, at_batch: AtBatch, batch: int) -> Trial:
        dense, present = (self.price(trace) for trace in at_batch(batch))
        return self._trial("larger-batch", f"batch {batch}", present, {"batch": batch}, dense_s=float(dense.latency_s))


def _gains(faster: float | None, less_energy: float | None) -> str:
    """Both gains in words; within half a percent there is none."""
    if faster is None or less_energy is None:
        return "costs nothing that can be compared"
    speed = "no faster" if abs(faster - 1) < 0.005 else f"{ratio(faster)} faster" if faster > 1 else f"{ratio(1 / faster)} slower"
    if abs(less_energy - 1) < 0.005:
        return f"{speed}, as much energy"
    return f"{speed}, " + (f"{ratio(less_energy)} less energy" if less_energy > 1 else f"{ratio(1 / less_energy)} more energy")


def _per(images: float, worth: float | None) -> str:
    """What is told of a change of batch: gains are per image, and pruning is worth something else."""
    if images == 1:
        return ""
    return " per image" if worth is None else f" per image; pruning is worth {ratio(worth)} there"


def _smaller(block: tuple[int, int], unit: tuple[int, int]) -> bool:
    return block[0] < unit[0] or block[1] < unit[1]


def _coarser(block: tuple[int, int], unit: tuple[int, int]) -> tuple[int, int]:
    """The smallest whole multiple of ``unit`` that holds a block."""
    return -(-block[0] // unit[0]) * unit[0], -(-block[1] // unit[1]) * unit[1]


def _within(block: tuple[int, int], operator: Operator) -> tuple[int, int]:
    """A block no larger than the weight."""
    return min(block[0], operator.n), min(block[1], operator.k)


def _x(shape: Sequence[int]) -> str:
    return f"{shape[0]}x{shape[1]}"
