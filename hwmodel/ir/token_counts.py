"""How many tokens stay, where that depends on the image: a joint distribution over the points where tokens are dropped."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from math import fsum, prod
from typing import Any

import numpy as np
import numpy.typing as npt

from hwmodel.errors import HwmodelError
from hwmodel.ir.trace import Trace

_TOLERANCE = 1e-6
"""How far from 1 given probabilities may sum; they are then divided by their sum."""
_MOST_CELLS = 10_000
"""Distinct padded shapes that :meth:`TokenDistribution.longest_of` lists before it refuses."""

Counts = tuple[int, ...]


@dataclass(frozen=True)
class TokenDistribution:
    """Rows of token counts, one count per point, each with its probability. Points are in execution order.

    One row is one sort of image, so points need not be independent: :meth:`independent` says so where they are.

    Parameters
    ----------
    counts : rows of counts, one per point; plain numbers where there is one point
    probability : of each row, positive and summing to 1; rows of equal counts are added up

    Raises
    ------
    HwmodelError
        Rows of different lengths, counts below 1, or probabilities that are negative or do not sum to 1.
    """

    counts: tuple[Counts, ...]
    probability: tuple[float, ...]

    def __init__(self, counts: Sequence[int] | Sequence[Sequence[int]], probability: Sequence[float]) -> None:
        rows = [_row(row) for row in counts]
        shares = [float(share) for share in probability]
        _check(rows, shares)
        total = fsum(shares)
        merged: dict[Counts, list[float]] = {}
        for row, share in zip(rows, shares, strict=True):
            merged.setdefault(row, []).append(share / total)
        likely = sorted((row, fsum(parts)) for row, parts in merged.items() if fsum(parts) > 0)
        object.__setattr__(self, "counts", tuple(row for row, _ in likely))
        object.__setattr__(self, "probability", tuple(share for _, share in likely))

    @classmethod
    def measured(cls, samples: npt.ArrayLike) -> TokenDistribution:
        """Every image as likely: ``samples`` has shape (images,), or (images, points)."""
        found = np.asarray(samples)
        if found.ndim not in {1, 2} or not found.size:
            raise HwmodelError(f"measured token counts: expected (images,) or (images, points), got shape {found.shape}")
        rows = found.reshape(len(found), -1).tolist()
        return cls(rows, [1 / len(rows)] * len(rows))

    @classmethod
    def independent(cls, *points: TokenDistribution) -> TokenDistribution:
        """All points together where none tells anything about another."""
        rows = list(product(*(zip(point.counts, point.probability, strict=True) for point in points)))
        joined = [tuple(count for counts, _ in row for count in counts) for row in rows]
        return cls(joined, [prod(share for _, share in row) for row in rows])

    @property
    def points(self) -> int:
        """Places where tokens are dropped."""
        return len(self.counts[0])

    @property
    def mean(self) -> tuple[float, ...]:
        """Mean count of each point. The cost of the mean is not the mean of the costs."""
        return tuple(fsum(row[point] * share for row, share in self._items()) for point in range(self.points))

    def _items(self) -> Sequence[tuple[Counts, float]]:
        return list(zip(self.counts, self.probability, strict=True))

    def longest_of(self, images: int) -> TokenDistribution:
        """The largest count of each point among ``images`` independent images: what a padded batch of them pays.

        Exact: with F the joint distribution function, P(all maxima <= t) = F(t) ** images; differences of that over the
        grid of counts give the probability of each padded shape (for one point, the law of the largest order statistic).

        Raises
        ------
        HwmodelError
            More padded shapes than can be priced one by one.
        """
        if images == 1:
            return self
        levels = [sorted({row[point] for row in self.counts}) for point in range(self.points)]
        if prod(map(len, levels)) > _MOST_CELLS:
            shapes = " x ".join(str(len(level)) for level in levels)
            raise HwmodelError(f"a padded batch has {shapes} possible token counts, too many to price; group counts first")
        mass = np.zeros([len(level) for level in levels])
        for row, share in self._items():
            mass[tuple(level.index(count) for level, count in zip(levels, row, strict=True))] = share
        for axis in range(self.points):
            mass = np.cumsum(mass, axis=axis)
        mass = np.minimum(mass, 1.0) ** images
        for axis in range(self.points):
            mass = np.diff(mass, axis=axis, prepend=0.0)
        return TokenDistribution(list(product(*levels)), np.where(mass > 1e-15, mass, 0.0).ravel().tolist())


def _row(row: Any) -> Counts:
    values = row if isinstance(row, Sequence | np.ndarray) else (row,)
    if not all(float(value).is_integer() and value >= 1 for value in values):
        raise HwmodelError(f"token counts must be whole numbers of at least 1, found {row!r}")
    return tuple(int(value) for value in values)


def _check(rows: Sequence[Counts], shares: Sequence[float]) -> None:
    if not rows or len(rows) != len(shares):
        raise HwmodelError(f"a distribution needs one probability per row of counts, found {len(rows)} and {len(shares)}")
    if len({len(row) for row in rows}) > 1 or not rows[0]:
        raise HwmodelError("every row of token counts needs one count per point")
    if not all(0 <= share <= 1 for share in shares):
        raise HwmodelError(f"probabilities must lie in [0, 1], found {min(shares)} to {max(shares)}")
    if abs(fsum(shares) - 1) > _TOLERANCE:
        raise HwmodelError(f"probabilities must sum to 1, found {fsum(shares):.9g}")


@dataclass(frozen=True)
class TraceFamily:
    """One trace per row of a distribution of token counts; what a model with data-dependent tokens executes.

    Parameters
    ----------
    distribution : of what one pass executes; for a padded batch, of the longest image at each point
    traces : one per row of ``distribution``, all at the same batch
    """

    distribution: TokenDistribution
    traces: tuple[Trace, ...]

    def __post_init__(self) -> None:
        if len(self.traces) != len(self.distribution.counts):
            raise ValueError(f"expected {len(self.distribution.counts)} traces, one per row of counts, got {len(self.traces)}")

    @property
    def model(self) -> str:
        """Name of the model."""
        return self.traces[0].model

    @property
    def batch(self) -> int:
        """Images of one forward pass."""
        return self.traces[0].batch
