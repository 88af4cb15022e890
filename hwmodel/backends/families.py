"""What a model costs whose number of tokens depends on the image: every count is priced, then averaged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate
from math import fsum
from pathlib import Path
from typing import Any

from hwmodel.backends.cards import Card
from hwmodel.backends.estimates import Estimate, estimate
from hwmodel.errors import HwmodelError
from hwmodel.ir.token_counts import TraceFamily

_ROUNDING = 1e-12
"""How far below 0.95 a sum of probabilities may end that is 0.95 but for binary rounding."""
SPREAD_OF = ("latency_s", "energy_j", "executed_macs", "dram_bytes")
"""Totals of an estimate that are told as mean, p95 and worst."""


@dataclass(frozen=True)
class Spread:
    """One quantity over the passes of a distribution.

    Parameters
    ----------
    mean : expected value; over many passes, their sum divided by their number
    p95 : the smallest value that at least 95 % of the passes do not exceed
    worst : the largest value
    """

    mean: float
    p95: float
    worst: float

    @classmethod
    def of(cls, values: Sequence[float], probability: Sequence[float]) -> Spread:
        """Summarise ``values``, each of its probability."""
        ranked = sorted(zip(values, probability, strict=True))
        reached = accumulate(share for _, share in ranked)
        p95 = next(value for (value, _), sum_so_far in zip(ranked, reached, strict=True) if sum_so_far >= 0.95 - _ROUNDING)
        return cls(fsum(value * share for value, share in ranked), p95, ranked[-1][0])


@dataclass(frozen=True, eq=False, repr=False)
class FamilyEstimate:
    """Estimates of all traces of a family on one device.

    Parameters
    ----------
    family : the traces and the distribution over them
    estimates : one per trace
    """

    family: TraceFamily
    estimates: tuple[Estimate, ...]

    def __repr__(self) -> str:
        first = self.estimates[0]
        where = f"{self.family.model} on {first.device}, {first.mode}, {first.dtype}, batch {self.family.batch}"
        spread = self.latency_s
        return f"<FamilyEstimate of {where}: {spread.mean:.4g} s mean, {spread.p95:.4g} s p95, {spread.worst:.4g} s worst>"

    def spread(self, quantity: str) -> Spread:
        """Mean, p95 and worst of a total of :class:`Estimate`, such as "latency_s" or "dram_bytes"."""
        return Spread.of([float(getattr(one, quantity)) for one in self.estimates], self.family.distribution.probability)

    @property
    def latency_s(self) -> Spread:
        """Seconds of one pass, of the whole batch."""
        return self.spread("latency_s")

    @property
    def energy_j(self) -> Spread:
        """Joules of one pass, of the whole batch."""
        return self.spread("energy_j")

    def rows(self) -> list[dict[str, Any]]:
        """Token counts, probability and totals of every row of the distribution."""
        distribution = self.family.distribution
        told = zip(distribution.counts, distribution.probability, self.estimates, strict=True)
        return [
            {"tokens": list(counts), "probability": share, **{name: float(getattr(one, name)) for name in SPREAD_OF}}
            for counts, share, one in told
        ]

    def summary(self) -> dict[str, Any]:
        """What was priced, and mean, p95 and worst of the totals."""
        first = self.estimates[0].summary()
        same = ("model", "device", "mode", "batch", "dtype", "energy_scope", "fidelity", "error_band", "macs")
        return {name: first[name] for name in same} | {name: asdict(self.spread(name)) for name in SPREAD_OF}

    def document(self) -> dict[str, Any]:
        """The summary, every row, warnings and versions as plain JSON values; operators are in each estimate's own document."""
        first = self.estimates[0].document()
        warnings = list(dict.fromkeys(line for one in self.estimates for line in one.warnings))
        kept = {name: first[name] for name in ("schema_version", "versions")}
        return self.summary() | {"rows": self.rows(), "warnings": warnings} | kept


def estimate_family(family: TraceFamily, *, device: str | Path | Card, **options: Any) -> FamilyEstimate:
    """Price every trace of a family on a device; ``options`` are those of :func:`hwmodel.estimate`.

    Latency is a staircase over token counts, so the price of the mean count is not the mean price: this is the latter.

    Raises
    ------
    HwmodelError
        As :func:`hwmodel.estimate`; a sweep, which has several designs.
    """
    found = tuple(estimate(trace, device=device, **options) for trace in family.traces)
    if found[0].costs.latency_s.ndim != 1:
        raise HwmodelError("a distribution of token counts is priced on one design at a time: give single values in overrides")
    return FamilyEstimate(family, found)
