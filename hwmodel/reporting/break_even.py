"""Speed-up against density: how much of the weights a machine must be spared before pruning pays there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hwmodel.backends.registry import backend_names
from hwmodel.ir.masks import expected_mask
from hwmodel.ir.trace import Trace
from hwmodel.reporting.style import colour, device_token, new_figure, themed
from hwmodel.reporting.units import percent
from hwmodel.reporting.variants import Case, Machine, priced_again, speed_up
from hwmodel.reporting.words import Finding, blocks_text, listed

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DENSITIES = tuple(step / 20 for step in range(1, 21))
PAYS = 1.01
"""A speed-up below this is none."""
_SIMULATED = {"scale-sim"}
"""Modes that run a simulator: too slow to price twenty times."""
_MARKS = "osD^vP*X"


@dataclass(frozen=True)
class Curve:
    """One variant's layers and blocks on one machine, at densities that it does not have.

    Parameters
    ----------
    machine : where
    case : the variant there
    densities : fraction of blocks kept in every masked layer
    speed_ups : times faster than the unpruned model on the same design point, for each density
    """

    machine: Machine
    case: Case
    densities: tuple[float, ...]
    speed_ups: tuple[float, ...]

    @property
    def break_even(self) -> float | None:
        """Density below which pruning pays, by a straight line between two priced ones; None where it never does."""
        paying = [gain >= PAYS for gain in self.speed_ups]
        if not paying or not paying[0]:
            return None
        last = paying.index(False) - 1 if False in paying else len(paying) - 1
        if last == len(paying) - 1:
            return self.densities[-1]
        (x0, x1), (y0, y1) = self.densities[last : last + 2], self.speed_ups[last : last + 2]
        return x0 + (x1 - x0) * (y0 - PAYS) / (y0 - y1)

    @property
    def density(self) -> float:
        """Fraction of blocks that the variant keeps in its masked layers."""
        masks = [operator.mask for operator in self.case.trace.operators if operator.mask is not None]
        return sum(mask.kept_weights for mask in masks) / sum(mask.shape[0] * mask.shape[1] for mask in masks)


def curves(machines: Sequence[Machine]) -> list[list[Curve]]:
    """One list of curves per variant that has block masks; variants with the same layers and blocks share the first one's."""
    found, seen = [], set()
    for place in range(1, len(machines[0].cases)):
        masked = _masked(machines[0].cases[place].trace)
        if masked and masked not in seen:
            seen.add(masked)
            found.append([_curve(machine, place) for machine in machines if _quick(machine)])
    return [one for one in found if one]


def _masked(trace: Trace) -> tuple[tuple[str, tuple[int, int]], ...]:
    return tuple((operator.name, operator.mask.block) for operator in trace.operators if operator.mask is not None)


def _quick(machine: Machine) -> bool:
    return machine.card.backend in backend_names() and machine.baseline.estimate.execution_mode not in _SIMULATED


def _curve(machine: Machine, place: int) -> Curve:
    case, reference = machine.cases[place], machine.references[place]
    gains = [speed_up(priced_again(case, at_density(case.trace, density)), reference) for density in DENSITIES]
    known = [(density, gain) for density, gain in zip(DENSITIES, gains, strict=True) if gain is not None]
    return Curve(machine, case, tuple(density for density, _ in known), tuple(gain for _, gain in known))


def at_density(trace: Trace, density: float) -> Trace:
    """The trace with so many blocks kept in every layer that has a mask, each placement as likely."""
    rows = [
        operator.replace(mask=expected_mask(operator.mask.shape, operator.mask.block, density)) if operator.mask else operator
        for operator in trace.operators
    ]
    return trace.replace(operators=tuple(rows))


@themed
def break_even_chart(found: Sequence[Sequence[Curve]]) -> Figure:
    """One panel per block shape: speed-up over density, a line per machine, the variant's own densities as large marks."""
    columns = min(2, len(found))
    lines = -(-len(found) // columns)
    figure = new_figure(3.1 * lines + 0.4)
    panels = figure.subplots(lines, columns, squeeze=False, sharey=True).ravel()
    for axes, mine in zip(panels, found, strict=False):
        _panel(axes, mine)
    for axes in panels[len(found) :]:
        axes.set_axis_off()
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper left", ncols=4, borderaxespad=0.2)
    return figure


def _panel(axes: Axes, found: Sequence[Curve]) -> None:
    axes.axhline(1.0, color=colour("muted"), linewidth=0.9, linestyle=(0, (4, 3)))
    for curve in found:
        tone, mark = colour(device_token(curve.machine.index)), _MARKS[curve.machine.index % len(_MARKS)]
        percents = [100 * density for density in curve.densities]
        axes.plot(percents, curve.speed_ups, color=tone, linewidth=1.5, marker=mark, markersize=3.5, label=curve.machine.label)
        own = speed_up(curve.case, curve.machine.reference(curve.case))
        if own is not None:
            axes.plot([100 * curve.density], [own], color=tone, marker=mark, markersize=9, markeredgecolor=colour("ink"))
    axes.set_yscale("log", base=2)
    axes.yaxis.set_major_formatter("{x:g}×")
    axes.set_xlim(0, 102)
    axes.grid(visible=True, axis="both")
    axes.set_xlabel("blocks kept in every pruned layer (%)")
    axes.set_ylabel("speed-up over dense (log scale)")
    axes.set_title(f"{blocks_text(found[0].case)} blocks")


def break_even_words(found: Sequence[Sequence[Curve]]) -> list[Finding]:
    """From which density on pruning pays, machine by machine."""
    return [Finding(f"{blocks_text(mine[0].case)} blocks", f"{listed([_words(curve) for curve in mine])}.") for mine in found]


def _words(curve: Curve) -> str:
    if curve.break_even is None:
        return f"on {curve.machine.label} at no density down to {percent(DENSITIES[0])}"
    if curve.break_even >= DENSITIES[-1]:
        return f"on {curve.machine.label} at any density"
    return f"on {curve.machine.label} below {percent(curve.break_even)} kept"
