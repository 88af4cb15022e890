"""What commands say about dead work: what `--drop-dead` dropped, or what it would."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hwmodel.extraction.whatif.dead_work import DeadWork
    from hwmodel.ir.trace import Trace


def living(traced: Trace, drop_dead: bool, label: str = "") -> Trace:
    """The trace as it is, or where asked for without its dead work, each drop told on standard error."""
    if not drop_dead:
        return traced
    from hwmodel.extraction.whatif.dead_work import drop_dead_work, unprovable

    trace, dropped = drop_dead_work(traced)
    where = f"{label}: " if label else ""
    for found in dropped:
        sys.stderr.write(
            f"hwmodel: {where}dropped at {found.name}: {found.what}, {found.macs / 1e6:.2f} MMAC and {found.weights:.0f} weights; "
            f"{found.reason}\n"
        )
    unknown = unprovable(traced)
    if unknown:
        sys.stderr.write(
            f"hwmodel: {where}of {len(unknown)} layers only a density is known ({unknown[0]}, ...), from which nothing follows\n"
        )
    elif not dropped:
        sys.stderr.write(f"hwmodel: {where}no dead work found\n")
    return trace


def further_savings(traced: Trace) -> str:
    """One line on what `--drop-dead` would drop, "" where nothing follows from the masks."""
    from hwmodel.extraction.whatif.dead_work import drop_dead_work

    dropped = drop_dead_work(traced).dropped
    if not dropped:
        return ""
    return (
        f"further savings possible: {_total(dropped)} of dead work at {len(dropped)} places, "
        f"such as {dropped[0].what} at {dropped[0].name}; --drop-dead drops it"
    )


def _total(dropped: Sequence[DeadWork]) -> str:
    macs, weights = sum(found.macs for found in dropped), sum(found.weights for found in dropped)
    return f"{macs / 1e6:.2f} MMAC and {weights:.0f} weights"
