"""How traces and estimates show themselves in a notebook: ``_repr_html_``, ``.plot.roofline()``, ``.plot.breakdown()``.

Figures are drawn into the axes given, or into new ones of pyplot's, so that a notebook shows them; the axes are returned.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from hwmodel.errors import HwmodelError
from hwmodel.reporting.breakdown import ROLES, by_encoder_block, by_role, groups, layers
from hwmodel.reporting.figure_parts import scale, segment
from hwmodel.reporting.figures import ENERGY, LATENCY, role_panel
from hwmodel.reporting.layer_figures import block_panel, density_panel
from hwmodel.reporting.roofline_figure import roofline_panel
from hwmodel.reporting.style import role_token, themed
from hwmodel.reporting.tables import band_text, images
from hwmodel.reporting.units import percent, si
from hwmodel.reporting.variants import Case

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from hwmodel.backends.estimates import Estimate
    from hwmodel.ir.trace import Trace

_TABLE = """<table><caption style="text-align: left">{{ caption }}</caption>
<thead><tr>{% for head in heads %}<th>{{ head }}</th>{% endfor %}</tr></thead>
<tbody>{% for row in rows %}<tr>{% for cell in row %}<td>{{ cell }}</td>{% endfor %}</tr>{% endfor %}</tbody></table>"""


def _table(caption: str, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    from jinja2 import Environment

    return Environment(autoescape=True).from_string(_TABLE).render(caption=caption, heads=heads, rows=rows)


def _axes(ax: Axes | None, height: float) -> Axes:
    if ax is not None:
        return ax
    from matplotlib import pyplot

    made: Axes = pyplot.subplots(figsize=(7.2, height), layout="constrained")[1]
    return made


class TracePlots:
    """``trace.plot``: what a model consists of."""

    def __init__(self, trace: Trace) -> None:
        self._trace = trace

    def html(self) -> str:
        """A table of the operators by role: how many, their MACs, and what pruning leaves of them."""
        rows = [[ROLES[role], str(count), si(macs), si(kept)] for role, count, macs, kept in self._by_role()]
        trace = self._trace
        total = ["all", str(len(trace)), si(trace.macs), si(trace.kept_macs)]
        return _table(f"{trace.model}, {images(trace.batch)}", ["operators", "count", "MACs", "MACs kept"], [*rows, total])

    def _by_role(self) -> list[tuple[str, int, float, float]]:
        rows = list(zip(groups(self._trace), self._trace.operators, strict=True))
        sums = []
        for role in ROLES:
            mine = [operator for group, operator in rows if group == role]
            if mine:
                sums.append((role, len(mine), float(sum(one.macs for one in mine)), float(sum(one.kept_macs for one in mine))))
        return sums

    @themed
    def breakdown(self, ax: Axes | None = None) -> Axes:
        """MACs stacked by role: of the dense model, and those that pruning leaves."""
        axes = _axes(ax, 1.8)
        parts = [part for part in self._by_role() if part[2]]
        factor = scale(axes, [float(self._trace.macs)], "MAC", "multiply-accumulates per batch")
        for height, place in ((1, 2), (0, 3)):
            start = 0.0
            for part in parts:
                width = part[place] * factor  # type: ignore[operator]
                segment(axes, height, (start, width), role_token(part[0]), "")
                start += width
        axes.set_yticks([1, 0], ["dense", "kept"])
        axes.set_title(f"{self._trace.model}, {images(self._trace.batch)}")
        _role_legend(axes, [part[0] for part in parts])
        return axes

    @themed
    def density(self, ax: Axes | None = None) -> Axes:
        """Kept weights of every prunable layer."""
        axes = _axes(ax, 2.6)
        density_panel(axes, layers(self._trace))
        axes.set_title(self._trace.model)
        return axes

    def roofline(self, device: str, ax: Axes | None = None, **choices: Any) -> Axes:
        """The roofline on one machine; ``choices`` are those of :func:`hwmodel.estimate`."""
        from hwmodel.backends.estimates import estimate

        return EstimatePlots(estimate(self._trace, device=device, **choices)).roofline(ax)


class EstimatePlots:
    """``estimate.plot``: where time and energy go on one machine."""

    def __init__(self, estimate: Estimate) -> None:
        if estimate.costs.latency_s.ndim != 1:
            raise HwmodelError("a sweep over designs has no single figure or table; take one design at a time")
        self._case = Case(estimate.trace.model, estimate)

    @property
    def _title(self) -> str:
        return f"{self._case.variant} on {self._case.card.name} ({self._case.terms})"

    def html(self) -> str:
        """A table of latency and energy by role, with the totals and how far to trust them."""
        case = self._case
        latency, energy = by_role(case, "latency_s"), by_role(case, "energy_j")
        rows = [
            [
                ROLES[role],
                si(latency[role], "s"),
                percent(latency[role] / case.latency_s if case.latency_s else None),
                si(joules, "J"),
            ]
            for role, joules in energy.items()
            if latency[role] or joules
        ]
        total = ["all", si(case.latency_s, "s"), "", si(case.energy_j, "J")]
        trust = "; ".join(
            f"{what} {case.summary['fidelity'][what]}, error {band_text(case.estimate.error_band(what))}"
            for what in ("latency", "energy")
        )
        heads = ["operators", "latency", "share", "energy"]
        return _table(f"{self._title}, {images(case.trace.batch)}: {trust}", heads, [*rows, total])

    @themed
    def roofline(self, ax: Axes | None = None) -> Axes:
        """Achieved MAC/s of every kernel against MACs per byte of off-chip traffic, under what the card states."""
        axes = _axes(ax, 4.2)
        roofline_panel(axes, [self._case], self._title)
        roles = [role for role in ROLES if role in {group for group, one in self._grouped() if one.macs}]
        _role_legend(axes, roles)
        return axes

    def _grouped(self) -> zip[tuple[str, Any]]:
        return zip(groups(self._case.trace), self._case.trace.operators, strict=True)

    @themed
    def breakdown(
        self, ax: Axes | None = None, *, by: Literal["role", "block"] = "role", of: Literal["latency", "energy"] = "latency"
    ) -> Axes:
        """Latency or energy stacked by role: as one bar, or one per encoder block.

        Raises
        ------
        HwmodelError
            Another choice, or a trace without encoder blocks to break down by.
        """
        if by not in {"role", "block"} or of not in {"latency", "energy"}:
            raise HwmodelError(f"breakdown by {by!r} of {of!r}: expected by role or block, of latency or energy")
        quantity = LATENCY if of == "latency" else ENERGY
        if by == "block" and by_encoder_block(self._case, quantity.column).empty:
            raise HwmodelError(f"{self._case.variant}: has no encoder blocks to break down by")
        axes = _axes(ax, 1.6 if by == "role" else 3.2)
        if by == "role":
            role_panel(axes, [self._case], quantity)
            axes.set_yticks([])
        else:
            block_panel(axes, [self._case], quantity.column)
            axes.set_xlabel("encoder block")
        axes.set_title(self._title)
        parts = by_role(self._case, quantity.column)
        _role_legend(axes, [role for role, part in parts.items() if part > 0])
        return axes


def _role_legend(axes: Axes, roles: Sequence[str]) -> None:
    """What the colours mean, beside the axes."""
    from matplotlib.patches import Patch

    from hwmodel.reporting.style import colour

    handles = [Patch(facecolor=colour(role_token(role)), label=ROLES[role]) for role in roles]
    axes.legend(handles=handles, loc="upper left", bbox_to_anchor=(1.01, 1.0), borderaxespad=0.0)
