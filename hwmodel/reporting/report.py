"""One self-contained HTML page that compares variants of a model on several machines."""

from __future__ import annotations

import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any

from hwmodel.files import check_writable, write_file
from hwmodel.reporting import figures, mask_figure, style, words
from hwmodel.reporting.export import csv_text
from hwmodel.reporting.tables import band_text
from hwmodel.reporting.units import percent, ratio, si
from hwmodel.reporting.variants import Case, Machine, Variant, energy_gain, machines_of, speed_up

__all__ = ["Variant", "csv_text", "report_html", "write_report"]

Progress = Callable[[str], None]
"""Called with what is about to be done."""

_CSP = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


@dataclass(frozen=True)
class Drawing:
    """A figure of the page: anchor, heading, SVG, and what a reader should know to read it."""

    name: str
    heading: str
    svg: str
    caption: str


def write_report(variants: Sequence[Variant], path: str | Path, progress: Progress | None = None) -> None:
    """Write the page that compares ``variants`` (the dense one first) to ``path``.

    The page needs no network, prints, and follows the reader's light or dark setting. The same input gives the same
    bytes. ``progress`` is called with a few words before each figure.

    Raises
    ------
    HwmodelError
        Variants that cannot be compared (see :func:`hwmodel.reporting.variants.machines_of`), or a path that cannot be
        written; the path is checked before anything is drawn.
    """
    check_writable(path)
    write_file(path, report_html(variants, progress))


def report_html(variants: Sequence[Variant], progress: Progress | None = None) -> str:
    """The page as text; see :func:`write_report`."""
    machines = machines_of(variants)
    page = _template().render(
        csp=_CSP,
        light=style.css_variables(dark=False),
        dark=style.css_variables(dark=True),
        title=" and ".join(dict.fromkeys(variant.trace.model for variant in variants)),
        labels=[variant.label for variant in variants],
        subject=words.subject(variants),
        scope=", ".join(dict.fromkeys(case.summary["energy_scope"] for machine in machines for case in machine.cases)),
        summary=words.summary(machines),
        limits=words.limits(machines),
        losses=words.losses(machines),
        caveats=words.caveats(machines),
        machines=[(machine, _trust(machine), [_result_row(case, machine) for case in machine.cases]) for machine in machines],
        drawings={drawing.name: drawing for drawing in _drawings(variants, machines, progress or (lambda step: None))},
        cards=[_card_section(machine) for machine in machines],
        versions=_versions(variants),
        tone=style.device_token,
    )
    return str(page)


def _template() -> Any:
    from jinja2 import Environment, StrictUndefined

    source = files("hwmodel.reporting").joinpath("report.html.j2").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(source)


def _versions(variants: Sequence[Variant]) -> dict[str, str]:
    """What made the page and the traces, by name."""
    ours = {"hwmodel": version("hwmodel"), "matplotlib": version("matplotlib"), "numpy": version("numpy")}
    traced = {name: text for variant in variants for name, text in variant.trace.versions.items()}
    return dict(sorted({"python": platform.python_version(), **ours, **traced}.items()))


def _trust(machine: Machine) -> list[str]:
    """Fidelity and measured error on one machine, by variant only where they differ."""
    lines: dict[str, list[str]] = {}
    for case in machine.cases:
        bands = [
            f"{name} {case.summary['fidelity'][name]}, error {band_text(case.estimate.error_band(name))}"
            for name in ("latency", "energy")
        ]
        lines.setdefault("; ".join(bands), []).append(case.variant)
    return [text if len(lines) == 1 else f"{words.listed(names)}: {text}" for text, names in lines.items()]


def _result_row(case: Case, machine: Machine) -> dict[str, Any]:
    """One line of the table of results, as text."""
    summary, base = case.summary, case is machine.baseline
    return {
        "variant": case.variant,
        "terms": case.terms,
        "latency": si(case.latency_s, "s"),
        "speed_up": "" if base else ratio(speed_up(case, machine.reference(case))),
        "energy": si(case.energy_j, "J"),
        "energy_gain": "" if base else ratio(energy_gain(case, machine.reference(case))),
        "power": si(summary["average_power_w"], "W"),
        "macs": si(summary["executed_macs"], "MAC"),
        "traffic": si(summary["dram_bytes"], "B"),
        "options": _options_text(case),
    }


def _options_text(case: Case) -> str:
    """Choices that are not the default."""
    options = case.estimate.options
    chosen = {"attention": (options.attention, "source"), "sparse kernel": (options.sparse_kernel, "auto")}
    return ", ".join(f"{name} {value}" for name, (value, default) in chosen.items() if value != default)


def _drawings(variants: Sequence[Variant], machines: Sequence[Machine], progress: Progress) -> list[Drawing]:
    """Every figure of the page, each drawn once."""
    found = []
    for name, heading, draw, caption in _plan(variants, machines):
        progress(f"drawing {heading[0].lower()}{heading[1:]}")
        figure = draw()
        if figure is not None:
            found.append(Drawing(name, heading, style.to_svg(figure, name, heading), caption))
    return found


_Planned = tuple[str, str, Callable[[], Any], str]


def _plan(variants: Sequence[Variant], machines: Sequence[Machine]) -> list[_Planned]:
    """Anchor, heading, how to draw it and caption of every figure, in the order of the page."""
    plan: list[_Planned] = [
        ("bars", "Latency and energy", lambda: figures.latency_and_energy(machines), _bars_caption(machines)),
    ]
    if machines[0].pairs:
        plan.append(("losses", "Where the saved MACs went", lambda: figures.where_the_gain_went(machines), _LOSSES_CAPTION))
    plan += [
        ("roles", "Latency by layer type", lambda: figures.latency_by_role_stack(machines), _ROLES_CAPTION),
        ("work", "Effective work", lambda: figures.effective_work(machines), _WORK_CAPTION),
        ("blocks", "Along the network", lambda: figures.encoder_blocks(machines), _BLOCKS_CAPTION),
        ("roofline", "Rooflines", lambda: figures.rooflines(machines), _ROOFLINE_CAPTION),
    ]
    for place, variant in enumerate(variants):
        plan += _pruning_plan(place, variant, machines)
    return plan


def _pruning_plan(place: int, variant: Variant, machines: Sequence[Machine]) -> list[_Planned]:
    """Densities and masks of one variant, where it has any."""
    operators = mask_figure.pictured(variant.trace)
    if not operators:
        return []
    cases = [(machine, machine.cases[place]) for machine in machines] if place else []
    return [
        (
            f"density-{place}", f"Kept density by layer: {variant.label}",
            lambda: figures.kept_density(variant.trace, cases), _DENSITY_CAPTION,
        ),
        (
            f"masks-{place}", f"Block masks: {variant.label}",
            lambda: mask_figure.mask_pictures(operators), mask_figure.caption(operators),
        ),
    ]  # fmt: skip


def _bars_caption(machines: Sequence[Machine]) -> str:
    hollow = f"Hollow: {machines[0].baseline.variant}. " if machines[0].pairs else ""
    bands = [case.estimate.error_band(name) for machine in machines for case in machine.cases for name in ("latency", "energy")]
    whiskers = "Whiskers: nine in ten of the measured rows that were held out lie this close (p90). " if any(bands) else ""
    return f"{hollow}{whiskers}Bars without a whisker have no measured error."


_LOSSES_CAPTION = (
    "Latency of each pruned variant in percent of the dense one's on the same machine. Blue is what would be left if time followed "
    "the kept MACs; everything after it is why it does not. Operator by operator, matched by name; the parts sum to the latency."
)
_ROLES_CAPTION = (
    "A fused kernel's time stands with the operator it starts from. Each machine has its own scale. Attention is scores, "
    "softmax and context; waiting is time in which the device waits for the host."
)
_WORK_CAPTION = (
    "Solid: executed MACs that are kept. Hatched: executed beyond them, for the machine skips whole units of its own (a "
    "PE block, a systolic tile, a GPU tile) or pads edges."
)
_BLOCKS_CAPTION = "Operators outside the encoder blocks (patch embedding, final norm, head) are not shown."
_ROOFLINE_CAPTION = (
    "One marker per kind of kernel, its area the share of the latency; hollow where dense, filled where pruned. Waiting for the "
    "host is left out. Lines are drawn only where the card states the number: the peak of its multipliers in this number format, "
    "and the bandwidth of its off-chip memory."
)
_DENSITY_CAPTION = (
    "Bars: kept weights of each layer. Marks: MACs that each machine executes of the dense layer's; above the bar, work that is "
    "pruned and done all the same."
)


def _card_section(machine: Machine) -> dict[str, Any]:
    """What the page says about one machine: its numbers with their sources, and its measured errors."""
    card = machine.card
    case = machine.baseline
    return {
        "label": machine.label,
        "index": machine.index,
        "title": card.title,
        "reason": card.fidelity[case.mode.split("+")[0]].reason if case.mode.split("+")[0] in card.fidelity else "",
        "parameters": _parameter_rows(case),
        "scores": [_score_row(score) for score in card.scores],
    }


def _parameter_rows(case: Case) -> list[tuple[str, str, str, str]]:
    """Field, value, fidelity and source of every number used, the power mode's and the caller's in place."""
    power = case.card.power_modes[case.power_mode] if case.power_mode else {}
    rows = []
    for name, entry in (case.card.parameters | power).items():
        where = f"{entry.source} (power mode {case.power_mode})" if name in power else entry.source
        around = f" (between {_plain(entry.range[0])} and {_plain(entry.range[1])})" if entry.range else ""
        rows.append((name, _plain(entry.value) + around, str(entry.fidelity), where))
    changed = [
        (name, _plain(value), "assumed", "changed by hand for this report") for name, value in case.estimate.overrides.items()
    ]
    return rows + changed


def _plain(value: Any) -> str:
    """A card's value as text, in SI base units: 1.41e+09, "32x32", "int8: 1, fp16: 2"."""
    if isinstance(value, dict):
        return ", ".join(f"{name}: {_plain(item)}" for name, item in value.items())
    if isinstance(value, list):
        return ", ".join(map(_plain, value))
    return f"{value:.6g}" if isinstance(value, (int, float)) and not isinstance(value, bool) else str(value)


def _score_row(score: Any) -> dict[str, str]:
    row = {name: percent(getattr(score, name), 1) for name in ("median", "mean", "p90", "max", "bias")}
    return row | {
        "quantity": score.quantity,
        "mode": score.mode,
        "dtypes": ", ".join(score.dtypes) or "all",
        "against": score.against,
        "rows": str(score.rows),
        "band": "yes" if score.band else "no",
    }
