"""Estimates as CSV: one row per operator and device, in SI units."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

    from hwmodel.backends.estimates import Estimate

_HEAD = ("model", "device", "mode", "dtype", "batch")


def csv_text(estimates: Sequence[Estimate], labels: Sequence[str] | None = None) -> str:
    """One row per (estimate, operator): model, device, mode, dtype, batch, name and the columns of ``frame()``.

    SI units; numbers as the shortest text that reads back equal, so sums of a column equal the totals. ``labels``, one
    per estimate, adds a first column ``variant`` that tells pruned versions of one model apart. Missing cells are empty.

    Raises
    ------
    ValueError
        For a sweep, which has no single frame.
    """
    import pandas as pd

    if not estimates:
        return ""
    names = [None] * len(estimates) if labels is None else labels
    tables = [_table(estimate, label) for estimate, label in zip(estimates, names, strict=True)]
    return str(pd.concat(tables, ignore_index=True).to_csv(index=False, lineterminator="\n"))


def _table(estimate: Estimate, label: str | None) -> pd.DataFrame:
    frame = estimate.frame().reset_index()
    frame["block"] = frame["block"].astype("Int64")
    summary = estimate.summary()
    for place, name in enumerate(_HEAD):
        frame.insert(place, name, summary[name])
    if label is not None:
        frame.insert(0, "variant", label)
    return frame
