"""What ``loop_digits.py`` found: rows, tables for a README, sentences from the numbers, and the figure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import pandas as pd

from hwmodel.reporting.style import colour, device_token, figure_file, new_figure, themed

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FLOPS, POWER, AWARE = "FLOPs-aware", "power term", "whole units"
METHODS = (FLOPS, POWER, AWARE)
EQUAL_FLOPS, LAGRANGIAN = "equal FLOPs", "lagrangian"
POINTS = 100
"""Percentage points of one."""
COLUMNS = 4
"""Panels beside each other in the figure."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One allocation of one trained model.

    Parameters
    ----------
    model, seed, machine, block, budget, method : what was done; ``budget`` is the share of the dense linear layers
    masks : digest of the masks
    flops, energy : shares of the dense linear layers that are left; energy is None where no machine was asked
    before, after : top-1 before and after fine-tuning; None where the budget cannot be met
    reason : why not
    """

    model: str
    seed: int
    machine: str
    block: int
    budget: float
    method: str
    masks: str = ""
    flops: float | None = None
    energy: float | None = None
    before: float | None = None
    after: float | None = None
    reason: str = ""


def frame_of(rows: Sequence[Row]) -> pd.DataFrame:
    """One line per row."""
    return pd.DataFrame([asdict(row) for row in rows]).astype(dict.fromkeys(("flops", "energy", "before", "after"), float))


def by_case(frame: pd.DataFrame) -> pd.DataFrame:
    """Equal energy: per model, machine, block, budget (index) and seed (rows) top-1 after tuning by method, and the gain.

    ``gain``, in points, is that of the machine-aware way over ``FLOPs-aware``: ``whole units`` where the machine skips larger
    units than a block, else ``power term``. ``same``: FLOPs-aware and power term chose the same masks.
    """
    own = frame[frame.machine != EQUAL_FLOPS]
    after, masks = (by_method(own, name).reindex(columns=list(METHODS)) for name in ("after", "masks"))
    gain = POINTS * (after[AWARE].fillna(after[POWER]) - after[FLOPS])
    same = masks[FLOPS].eq(masks[POWER]) & gain.notna()
    return after.astype(float).assign(gain=gain, same=same).reset_index("seed")


def by_method(frame: pd.DataFrame, name: str) -> pd.DataFrame:
    """One column per method, in rows of model, machine, block, budget and seed, in the order of the frame."""
    keys = ["model", "machine", "block", "budget", "seed"]
    columns = {method: frame[frame.method == method].set_index(keys)[name] for method in dict.fromkeys(frame.method)}
    return pd.DataFrame(columns).reindex(pd.MultiIndex.from_frame(frame[keys].drop_duplicates()))


def spread(values: pd.Series, unit: float = POINTS, *, of: int | None = None) -> str:
    """Mean and sample standard deviation over seeds, in points; with their number where it is less than ``of``."""
    known = values.dropna() * unit
    if known.empty:
        return "-"
    told = f"{known.mean():.1f}" + (f" ± {known.std(ddof=1):.1f}" if len(known) > 1 else "")
    return told if of is None or len(known) == of else f"{told} ({len(known)} of {of} seeds)"


def energy_table(frame: pd.DataFrame) -> str:
    """Equal energy, as a Markdown table."""
    lines = [
        f"| model | machine | block | energy left | {FLOPS} | {POWER} | {AWARE} | gain, points | FLOPs left |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for (model, machine, block, budget), case in by_case(frame).groupby(level=[0, 1, 2, 3], sort=False):
        chosen = frame[(frame.model == model) & (frame.machine == machine) & (frame.block == block) & (frame.budget == budget)]
        kept = " / ".join(
            f"{chosen[chosen.method == m].flops.mean():.0%}" for m in METHODS if chosen[chosen.method == m].flops.notna().any()
        )
        cells = [spread(case[method], of=len(case)) for method in METHODS]
        lines.append(f"| {model} | {machine} | {block}x{block} | {budget:.0%} | {' | '.join(cells)} | {_gain(case)} | {kept} |")
    return "\n".join(lines)


def solver_table(frame: pd.DataFrame) -> str:
    """Equal FLOPs, as a Markdown table."""
    own = frame[frame.machine == EQUAL_FLOPS]
    methods = list(dict.fromkeys(own.method))
    lines = [f"| model | block | FLOPs budget | {' | '.join(methods)} |", "|---" * (3 + len(methods)) + "|"]
    for (model, block, budget), case in own.groupby(["model", "block", "budget"], sort=False):
        cells = [_at_flops(case[case.method == method]) for method in methods]
        lines.append(f"| {model} | {block}x{block} | {budget:.0%} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _gain(case: pd.DataFrame) -> str:
    """Points gained, or why there are none to tell."""
    if case.gain.isna().all():
        return "not reachable"
    return "same masks" if case.same.all() and case[AWARE].isna().all() else spread(case.gain, 1.0)


def _at_flops(runs: pd.DataFrame) -> str:
    """Top-1, and the FLOPs that are really left: a solver may not spend all it is given."""
    told = spread(runs.after, of=len(runs))
    return told if runs.flops.isna().all() else f"{told} at {runs.flops.mean():.1%}"


def sentences(frame: pd.DataFrame) -> list[str]:
    """What the experiment says, from its own rows."""
    return [*_machines(by_case(frame)), *_whole_units(by_case(frame)), *_unreachable(frame), *_solvers(frame)]


def _machines(cases: pd.DataFrame) -> Iterator[str]:
    """Per model and machine, the gain at the tightest budget of the most tried block size."""
    for (model, machine), own in cases.groupby(level=[0, 1], sort=False):
        reached = own[own.gain.notna()]
        if reached.empty:
            yield f"{machine}, {model}: no budget is within reach."
            continue
        block = reached.index.get_level_values("block").value_counts().index[0]
        budget = reached.xs(block, level="block").index.get_level_values("budget").min()
        at = reached.xs((block, budget), level=("block", "budget"))
        same = int(reached.same.sum())
        yield (
            f"{machine}, {model}, {block}x{block} blocks at {budget:.0%} of the energy: {spread(at[FLOPS])} FLOPs-aware, "
            f"{spread(at[AWARE].fillna(at[POWER]))} machine-aware, {at.gain.mean():+.1f} points; in {same} of {len(reached)} "
            f"allocations here the power term changes no mask."
        )


def _whole_units(cases: pd.DataFrame) -> Iterator[str]:
    both = cases[cases[AWARE].notna() & cases[POWER].notna()]
    if len(both):
        more = POINTS * (both[AWARE] - both[POWER])
        yield (
            f"Ranking by whole units beside the power term: {more.mean():+.1f} points on average after tuning, "
            f"{more.min():+.1f} to {more.max():+.1f} in {len(both)} pairs."
        )


def _unreachable(frame: pd.DataFrame) -> Iterator[str]:
    for (model, machine), own in frame[frame.reason != ""].groupby(["model", "machine"], sort=False):
        told = ", ".join(
            dict.fromkeys(f"{block}x{block} at {budget:.0%}" for block, budget in zip(own.block, own.budget, strict=True))
        )
        yield f"{machine}, {model}: not reachable: {told} ({own.reason.iloc[0]})."


def _solvers(frame: pd.DataFrame) -> Iterator[str]:
    own = frame[frame.machine == EQUAL_FLOPS]
    wide = by_method(own, "after")
    for method in (name for name in wide.columns if name != LAGRANGIAN):
        gain = POINTS * (wide[LAGRANGIAN] - wide[method])
        yield (
            f"Equal FLOPs: lagrangian over {method!r} {gain.mean():+.1f} points on average, "
            f"{gain.min():+.1f} to {gain.max():+.1f} in {len(gain)} pairs."
        )


@themed
def as_figure(frame: pd.DataFrame, suffix: str = ".svg") -> bytes:
    """Top-1 after tuning against the energy left, one panel per machine, model and block; then the solvers at equal FLOPs."""
    panels = _panels(frame)
    rows = -(-len(panels) // COLUMNS)
    figure = new_figure(2.3 * rows + 0.6, 11.0)
    grid = figure.subplots(rows, COLUMNS, sharey=True, squeeze=False)
    for axes in grid.ravel()[len(panels) :]:
        axes.set_visible(False)
    for axes, (place, own) in zip(grid.ravel(), panels.items(), strict=False):
        machine, model, block = place
        _panel(axes, own)
        axes.set_title(f"{machine}, {model}, {block}x{block}", fontsize=9)
        axes.set_xlabel("FLOPs left (%)" if machine == EQUAL_FLOPS else "energy left (%)")
        axes.legend(fontsize=6)
    for row in grid:
        row[0].set_ylabel("top-1 after tuning (%)")
    return figure_file(figure, suffix)


def _panels(frame: pd.DataFrame) -> dict[tuple[str, str, int], pd.DataFrame]:
    """Runs at the block that was tried most, and at the smallest one where a machine skips larger units; equal FLOPs last."""
    usual, least = int(frame.block.value_counts().index[0]), int(frame.block.min())
    drawn = frame[frame.after.notna()]
    coarse = set(drawn[drawn.method == AWARE].machine)
    keys = drawn[["machine", "model", "block"]].drop_duplicates().itertuples(index=False, name=None)
    chosen = [key for key in keys if key[2] == usual or (key[2] == least and key[0] in coarse)]
    chosen.sort(key=lambda key: (key[0] == EQUAL_FLOPS, key[2] != usual, key[1]))
    groups = dict(list(drawn.groupby(["machine", "model", "block"], sort=False)))
    return {key: groups[key] for key in chosen}


def _panel(axes: Axes, own: pd.DataFrame) -> None:
    for number, (method, runs) in enumerate(own.groupby("method", sort=False)):
        found = runs.groupby("budget").after.agg(["mean", "std"]).fillna(0.0) * POINTS
        x = POINTS * found.index.to_numpy()
        axes.errorbar(
            x, found["mean"], found["std"], color=colour(device_token(number)), marker="o", markersize=3, capsize=2, label=method
        )
    axes.set_xticks(sorted(POINTS * own.budget.unique()))
    axes.grid(axis="both", which="major")
