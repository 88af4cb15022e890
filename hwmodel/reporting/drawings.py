"""The figures of a report in the order of the page: what each is called, how it is drawn, and how it is read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any

from hwmodel.reporting import figures, helpers, interactive, layer_figures, mask_figure, roofline_figure, style
from hwmodel.reporting.break_even import Curve, break_even_chart, break_even_words, curves
from hwmodel.reporting.breakdown import ROLES, by_role, layers
from hwmodel.reporting.variants import Machine, Variant

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Progress = Callable[[str], None]
"""Called with what is about to be done."""


def silent(step: str) -> None:
    """Progress that nobody watches."""


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """A figure of the page.

    Parameters
    ----------
    name : anchor, and the name of its file
    heading, caption : what stands above and below
    svg : drawn by matplotlib, an element of the page
    file : the same as a file for a paper, empty where none was asked for
    plots : plotly documents that take its place on a screen; none where it stays as drawn
    legend : what the colours of ``plots`` mean, (label, colour token)
    """

    name: str
    heading: str
    caption: str
    svg: str
    file: bytes = b""
    plots: Sequence[interactive.Document] = ()
    legend: Sequence[tuple[str, str]] = ()

    def places(self) -> dict[str, int]:
        """Id and height in pixels of the element for each interactive figure."""
        return {f"{self.name}-plot-{order}": plot["layout"]["height"] for order, plot in enumerate(self.plots)}


@dataclass(frozen=True, kw_only=True)
class _Planned:
    name: str
    heading: str
    caption: str | Callable[[], str]
    draw: Callable[[], Figure | None]
    plots: Callable[[], Sequence[interactive.Document]] = field(default=tuple)
    legend: Sequence[tuple[str, str]] = ()


def drawings(
    variants: Sequence[Variant],
    machines: Sequence[Machine],
    progress: Progress,
    *,
    static: bool,
    suffix: str = "",
    helped: bool = False,
) -> list[Drawing]:
    """Every figure of the page, each drawn once; without interactive ones where ``static``.

    ``suffix`` (".pdf") asks for files too. ``helped``: :mod:`hwmodel.reporting.helpers` draw them.
    """
    plan = _plan(variants, machines)
    if not helped:
        return _drawn(plan, progress, static=static, suffix=suffix)
    progress(f"drawing {len(plan)} figures")
    found = {one.name: one for one in helpers.shared(partial(_drawn, progress=silent, static=static, suffix=suffix), plan)}
    return [found[one.name] for one in plan if one.name in found]


def _drawn(plan: Sequence[_Planned], progress: Progress, *, static: bool, suffix: str) -> list[Drawing]:
    found = []
    for one in plan:
        progress(f"drawing {one.heading[0].lower()}{one.heading[1:]}")
        figure = one.draw()
        if figure is not None:
            caption = one.caption if isinstance(one.caption, str) else one.caption()
            svg = style.to_svg(figure, one.name, one.heading)
            plots = () if static else tuple(one.plots())
            file = style.paper_file(figure, suffix) if suffix else b""
            told = {"name": one.name, "heading": one.heading, "caption": caption}
            found.append(Drawing(**told, svg=svg, file=file, plots=plots, legend=one.legend))
    return found


def _plan(variants: Sequence[Variant], machines: Sequence[Machine]) -> list[_Planned]:
    legend = _role_legend(machines)
    plan = [
        _Planned(
            name="bars", heading="Latency and energy", caption=_bars_caption(machines),
            draw=lambda: figures.latency_and_energy(machines),
        ),
        *_pruning_plan(machines),
        _Planned(
            name="roles", heading="By layer type", caption=_ROLES_CAPTION, draw=lambda: figures.stacked_by_role(machines),
            plots=lambda: interactive.roles(machines), legend=legend,
        ),
        _Planned(
            name="blocks", heading="Along the network", caption=_blocks_caption(machines),
            draw=lambda: layer_figures.encoder_blocks(machines), plots=lambda: interactive.encoder_blocks(machines), legend=legend,
        ),
        _Planned(
            name="roofline", heading="Rooflines", caption=_ROOFLINE_CAPTION,
            draw=lambda: roofline_figure.rooflines(machines), plots=lambda: interactive.rooflines(machines), legend=legend,
        ),
        _Planned(
            name="executed", heading="Effective work", caption=_WORK_CAPTION, draw=lambda: figures.effective_work(machines),
        ),
    ]  # fmt: skip
    for place, variant in enumerate(variants):
        plan += _variant_plan(place, variant, machines)
    return plan


def _role_legend(machines: Sequence[Machine]) -> list[tuple[str, str]]:
    """The roles that cost anything, with their colours."""
    parts = [by_role(case, column) for machine in machines for case in machine.cases for column in ("latency_s", "energy_j")]
    return [(ROLES[role], style.role_token(role)) for role in ROLES if any(part[role] > 0 for part in parts)]


def _pruning_plan(machines: Sequence[Machine]) -> list[_Planned]:
    """What only a comparison has."""
    if not machines[0].pairs:
        return []
    return [
        _Planned(
            name="losses", heading="Where the saved MACs went", caption=_LOSSES_CAPTION,
            draw=lambda: figures.where_the_gain_went(machines),
        ),
        _Planned(
            name="break-even", heading="Break-even: where pruning starts to pay",
            caption=lambda: _break_even_caption(_curves(tuple(machines))),
            draw=lambda: break_even_chart(found) if (found := _curves(tuple(machines))) else None,
            plots=lambda: interactive.break_even(_curves(tuple(machines))),
        ),
    ]  # fmt: skip


@lru_cache(maxsize=1)
def _curves(machines: tuple[Machine, ...]) -> list[list[Curve]]:
    """Priced once for chart, plots and words."""
    return curves(machines)


def _break_even_caption(found: Sequence[Sequence[Curve]]) -> str:
    words = " ".join(f"{finding.lead}: {finding.text}" for finding in break_even_words(found))
    return f"{_BREAK_EVEN_CAPTION} {words}"


def _variant_plan(place: int, variant: Variant, machines: Sequence[Machine]) -> list[_Planned]:
    """Work, densities and masks of one variant, where pruning changed any."""
    plan = []
    cases = [(machine, machine.cases[place]) for machine in machines]
    if place and layers(variant.trace):
        plan.append(
            _Planned(
                name=f"work-{place}", heading=f"Work by layer: {variant.label}", caption=_LAYERS_CAPTION,
                draw=lambda: layer_figures.work_by_layer(cases), plots=lambda: interactive.work(place, machines),
            )
        )  # fmt: skip
    operators = mask_figure.pictured(variant.trace)
    if operators:
        plan += [
            _Planned(
                name=f"density-{place}", heading=f"Kept density by layer: {variant.label}", caption=_DENSITY_CAPTION,
                draw=lambda: layer_figures.kept_density(variant.trace), plots=lambda: interactive.density(variant),
                legend=layer_figures.density_legend(layers(variant.trace)),
            ),
            _Planned(
                name=f"masks-{place}", heading=f"Block masks: {variant.label}", caption=mask_figure.caption(operators),
                draw=lambda: mask_figure.mask_pictures(operators),
            ),
        ]  # fmt: skip
    return plan


def plot_documents(found: Sequence[Drawing]) -> dict[str, Any]:
    """The interactive figures by the id of their element."""
    return {place: plot for one in found for place, plot in zip(one.places(), one.plots, strict=True)}


def _bars_caption(machines: Sequence[Machine]) -> str:
    hollow = f"Hollow: {machines[0].baseline.variant}. " if machines[0].pairs else ""
    bands = [case.estimate.error_band(name) for machine in machines for case in machine.cases for name in ("latency", "energy")]
    whiskers = "Whiskers: nine in ten of the measured rows that were held out lie this close (p90). " if any(bands) else ""
    return f"{hollow}{whiskers}Bars without a whisker have no measured error."


def _blocks_caption(machines: Sequence[Machine]) -> str:
    order = f"{layer_figures.variant_order(machines[0].cases)} " if machines[0].pairs else ""
    outside = "Operators outside the encoder blocks (patch embedding, final norm, head) are not shown."
    return f"{order}Waiting stands with what waits. {outside}"


_LOSSES_CAPTION = (
    "Latency of each pruned variant in percent of the dense one's on the same machine. Blue is what would be left if time followed "
    "the kept MACs; everything after it is why it does not. Operator by operator, matched by name; the parts sum to the latency."
)
_BREAK_EVEN_CAPTION = (
    "The same layers pruned in the same blocks to other densities, each placement of the kept blocks as likely; large marks: the "
    "variant itself. Below 1× pruning costs time."
)
_ROLES_CAPTION = (
    "A fused kernel's cost stands with the operator it starts from. Each machine has its own scale. Attention is scores, "
    "softmax and context; waiting is time in which the device waits for the host, its energy stands with what waits."
)
_WORK_CAPTION = (
    "Solid: executed MACs that are kept. Hatched: executed beyond them, for the machine skips whole units of its own (a "
    "PE block, a systolic tile, a GPU tile) or pads edges."
)
_LAYERS_CAPTION = (
    "Dense: MACs of the unpruned layer. Nominal: by weights that are kept. Effective: in blocks that are not empty, where weights "
    "were read. Marks: what each machine executes; above the bar is work that is pruned and done all the same."
)
_ROOFLINE_CAPTION = (
    "One marker per kernel that multiplies (alike ones merged where drawn), its area the share of the latency; hollow where dense, "
    "filled where pruned. Waiting for the host is left out. Lines are drawn only where the card states the number: the peak of its "
    "multipliers in this number format, and the bandwidth of its off-chip memory; they are the baseline's, and a recipe that asks "
    "for another design point may lie above them."
)
_DENSITY_CAPTION = "Kept weights of each prunable layer, in execution order."
