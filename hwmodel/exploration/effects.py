"""Which knob matters: shares of a quantity's variance, alone and in pairs, and what one knob is worth at values of another.

Positive quantities are taken as logarithms, so an effect is a factor and a product of independent effects has no interaction.
Missing values (a knob that a card does not have) are left out knob by knob.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from hwmodel.exploration.quantities import Goal

if TYPE_CHECKING:
    import pandas as pd

LEVELS = 8
"""Bins of equal count that a knob with many values (a search's range) is cut into."""


@dataclass(frozen=True)
class Effect:
    """What a knob, or a pair of knobs, does to a quantity.

    Parameters
    ----------
    knobs : one name, or two
    share : of the variance; for two, what both explain together beyond each alone
    factor : the largest mean of a level over the smallest (a difference where the quantity is not positive); 1 for pairs
    """

    knobs: tuple[str, ...]
    share: float
    factor: float


def varied(frame: pd.DataFrame, names: Sequence[str]) -> list[str]:
    """The columns among ``names`` that take more than one value."""
    return [name for name in names if name in frame and len(frame[name].dropna().unique()) > 1]


def effects(frame: pd.DataFrame, knobs: Sequence[str], quantity: str) -> list[Effect]:
    """Main effects of every knob, then the interactions of all pairs, the largest share first.

    Shares are exact for a full grid, where they add up to 1 with the interactions of three and more; for a search they are
    those of the trials it made.
    """
    levels = {name: _levels(frame[name]) for name in knobs}
    values, logarithmic = _scale(frame[quantity].to_numpy(np.float64))
    singles = {name: _explained(values, (levels[name],)) for name in knobs}
    main = [Effect((name,), share, _factor(values, levels[name], logarithmic)) for name, share in singles.items()]
    pairs = [
        Effect(pair, max(0.0, _explained(values, (levels[pair[0]], levels[pair[1]])) - singles[pair[0]] - singles[pair[1]]), 1.0)
        for pair in combinations(knobs, 2)
    ]
    return sorted(main, key=lambda effect: -effect.share) + sorted(pairs, key=lambda effect: -effect.share)


def _scale(values: npt.NDArray[np.float64]) -> tuple[npt.NDArray[np.float64], bool]:
    known = values[np.isfinite(values)]
    logarithmic = bool(known.size and (known > 0).all())
    return (np.log(values) if logarithmic else values), logarithmic


def _levels(column: pd.Series[Any]) -> npt.NDArray[np.int64]:
    """A whole number per level, -1 where the value is missing."""
    import pandas as pd

    if pd.api.types.is_numeric_dtype(column) and column.nunique() > 4 * LEVELS:
        column = pd.qcut(column, LEVELS, labels=False, duplicates="drop")
    codes: npt.NDArray[np.int64] = pd.factorize(column, sort=False)[0].astype(np.int64)
    return codes


def _means(
    values: npt.NDArray[np.float64], level: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Mean and count of each level."""
    count = np.bincount(level).astype(np.float64)
    total = np.bincount(level, weights=values)
    present = count > 0
    return total[present] / count[present], count[present]


def _explained(values: npt.NDArray[np.float64], levels: tuple[npt.NDArray[np.int64], ...]) -> float:
    """Variance between the levels' means over the whole variance, where every knob has a value."""
    known = np.isfinite(values) & np.logical_and.reduce([level >= 0 for level in levels])
    chosen = values[known]
    if chosen.size == 0 or np.ptp(chosen) == 0:
        return 0.0
    joint = np.zeros(known.sum(), dtype=np.int64)
    for level in levels:
        joint = joint * (level.max() + 1) + level[known]
    means, count = _means(chosen, joint)
    return float((count * (means - chosen.mean()) ** 2).sum() / ((chosen - chosen.mean()) ** 2).sum())


def _factor(values: npt.NDArray[np.float64], level: npt.NDArray[np.int64], logarithmic: bool) -> float:
    known = np.isfinite(values) & (level >= 0)
    if not known.any():
        return 1.0
    means, _ = _means(values[known], level[known])
    spread = float(means.max() - means.min())
    return float(np.exp(spread)) if logarithmic else spread


def worth(frame: pd.DataFrame, quantity: str, knob: str, by: str, goal: Goal = "min") -> pd.DataFrame:
    """How many times better each value of ``knob`` is than its largest, at each value of ``by``: a table knob x by.

    Where the columns of the table are equal the two knobs do not interact. Geometric mean over everything else.

    Raises
    ------
    ValueError
        A quantity that is not positive throughout.
    """
    values = frame[quantity].to_numpy(np.float64)
    if not (values > 0).all():
        raise ValueError(f"{quantity} is not positive throughout, so no factors can be told")
    table = frame.assign(_log=np.log(values)).pivot_table(index=knob, columns=by, values="_log", aggfunc="mean", observed=True)
    reference = table.loc[table.index.max()]
    gain: pd.DataFrame = np.exp(reference - table if goal == "min" else table - reference)
    return gain
