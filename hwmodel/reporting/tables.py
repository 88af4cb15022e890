"""Tables for the terminal. The only place besides the report where prefixed units appear."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from hwmodel.reporting.breakdown import ROLES, groups, kept_weights
from hwmodel.reporting.units import SPACE, percent, ratio, si
from hwmodel.reporting.variants import Case, energy_gain, is_dense, on_design_of, speed_up
from hwmodel.reporting.words import design_text

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text

    from hwmodel.backends.cards import Card, Score
    from hwmodel.backends.estimates import Estimate
    from hwmodel.backends.families import FamilyEstimate
    from hwmodel.ir.trace import Trace

NOT_MEASURED = "not measured"


def new_table(title: str, columns: Sequence[str], left: int) -> Table:
    """An empty table whose first ``left`` columns are text and whose others are numbers."""
    from rich import box
    from rich.table import Table

    table = Table(
        title=title,
        title_justify="left",
        title_style="bold",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )
    for place, name in enumerate(columns):
        table.add_column(name, justify="left" if place < left else "right", overflow="fold")
    return table


def _cells(*texts: str) -> list[object]:
    """Cells as plain text: a name in brackets is no markup."""
    from rich.text import Text

    return [Text(text) for text in texts]


def plain_row(table: Table, *texts: str) -> None:
    """Add a row whose cells are plain text: a name in brackets is no markup."""
    table.add_row(*_cells(*texts))  # type: ignore[arg-type]


def devices_table(cards: Sequence[Card]) -> Table:
    """One row per machine: names, default mode and number format, all formats, and the measured error of latencies."""
    columns = ["device", "what it is", "default", "number formats", "measured error (median)"]
    table = new_table("Machines", columns, left=len(columns))
    for card in cards:
        names = "\n".join([card.name, *(f"= {alias}" for alias in card.aliases)])
        plain_row(table, names, card.title, f"{card.default_mode}\n{card.default_dtype}", " ".join(card.dtypes), _card_scores(card))
    return table


def _card_scores(card: Card) -> str:
    """The scores that give estimates their band, one line each."""
    lines = [
        f"{score.quantity} {score.mode}: {percent(score.median, 1)} of {score.rows} rows"
        for score in card.scores
        if score.band and score.quantity == "latency"
    ]
    return "\n".join(lines) or NOT_MEASURED


def band_text(score: Score | None) -> str:
    """An error band in a few words, or "not measured"."""
    if score is None:
        return NOT_MEASURED
    return f"±{percent(score.median, 1)} median, {percent(score.p90, 1)} p90 of {score.rows}{SPACE}rows"


def estimates_table(estimates: Sequence[Estimate], labels: Sequence[str] | None = None) -> Table:
    """One row per estimate, grouped by device; below, how far to trust each device's numbers.

    Speed-up and energy ratio are against the first unpruned estimate of the same device and batch among those given,
    on the design point of the pruned one (ViTA's PE); "-" where there is none. ``labels``, one per estimate, names the
    variants; by default "dense" or the share of the MACs that is kept, after the model's name where the models differ.

    Raises
    ------
    ValueError
        For a sweep, whose totals are arrays, or where labels and estimates differ in number.
    """
    columns = ["device, mode", "variant", "latency", "energy", "power", "MACs", "faster", "less\nenergy"]
    table = new_table(_title(estimates), columns, left=2)
    names = _variant_names(estimates) if labels is None else labels
    cases = [Case(name, estimate) for name, estimate in zip(names, estimates, strict=True)]
    groups_of_cases: dict[str, list[Case]] = {}
    notes: list[str] = []
    for case in cases:
        groups_of_cases.setdefault(case.card.name, []).append(case)
    for mine in groups_of_cases.values():
        references = [_baseline(case, mine) for case in mine]
        for place, case, reference in zip(_places(mine), mine, references, strict=True):
            _estimate_row(table, place, case, reference)
            notes += [] if reference is None or reference in mine else [f"{case.card.name}: {design_text(case, reference)}"]
        table.add_section()
    table.caption = _plain_text([*notes, *_component_lines(cases), *_trust_lines(cases)])
    return table


def families_table(found: Sequence[FamilyEstimate]) -> Table:
    """One row per device and batch: mean, p95 and worst over images, or over batches padded to their longest image."""
    columns = [
        "device, mode",
        "one pass",
        *(f"{name}\n{part}" for name in ("latency", "energy") for part in ("mean", "p95", "worst")),
    ]
    heads = dict.fromkeys(f"{one.family.model}, tokens depend on the image" for one in found)
    table = new_table("; ".join(heads), columns, left=2)
    cases = [Case("", one.estimates[0]) for one in found]
    for case, one in zip(cases, found, strict=True):
        batch = one.family.batch
        spreads = [(one.latency_s, "s"), (one.energy_j, "J")]
        numbers = [si(value, unit) for spread, unit in spreads for value in (spread.mean, spread.p95, spread.worst)]
        padded = "" if batch == 1 else ", padded"
        plain_row(table, f"{case.card.name}\n{case.terms}", images(batch) + padded, *numbers)
    table.caption = _plain_text(_trust_lines(cases))
    return table


def _plain_text(lines: Sequence[str]) -> Text:
    from rich.text import Text

    return Text("\n".join(lines), style="not italic")


def _title(estimates: Sequence[Estimate]) -> str:
    heads = dict.fromkeys(f"{one.trace.model}, {images(one.trace.batch)}" for one in estimates)
    return f"{'; '.join(heads)}; latency and energy per batch, MACs as executed"


def images(count: int) -> str:
    """ "1 image", "8 images"."""
    return f"{count}{SPACE}image" + ("" if count == 1 else "s")


def _variant_names(estimates: Sequence[Estimate]) -> list[str]:
    several = len({estimate.trace.model for estimate in estimates}) > 1
    return [(f"{one.trace.model}, " if several else "") + _pruning_text(one.trace) for one in estimates]


def _pruning_text(trace: Trace) -> str:
    return "dense" if is_dense(trace) else f"{percent(trace.kept_macs / trace.macs, 1)} kept"


def _baseline(case: Case, same_device: Sequence[Case]) -> Case | None:
    """The first unpruned case of the same device and batch on the design point of ``case``, where that is a pruned one."""
    if is_dense(case.trace):
        return None
    dense = next((one for one in same_device if is_dense(one.trace) and one.trace.batch == case.trace.batch), None)
    return None if dense is None else on_design_of(case, dense)


def _places(cases: Sequence[Case]) -> list[str]:
    """First cells of one device's rows: its name, then mode and format, repeated only where they change."""
    name, terms = cases[0].card.name, [case.terms for case in cases]
    if len(cases) > 1 and len(set(terms)) == 1:
        return [name, terms[0], *[""] * (len(cases) - 2)]
    later = ["" if now == before else now for before, now in pairwise(terms)]
    return [f"{name}\n{terms[0]}", *later]


def _estimate_row(table: Table, place: str, case: Case, baseline: Case | None) -> None:
    gains = ["-", "-"] if baseline is None else [ratio(speed_up(case, baseline)), ratio(energy_gain(case, baseline))]
    plain_row(table, place, case.variant, *_totals(case), *gains)


def _totals(case: Case) -> list[str]:
    power, macs = case.summary["average_power_w"], case.summary["executed_macs"]
    return [si(case.latency_s, "s"), si(case.energy_j, "J"), si(power, "W"), si(macs)]


def _trust_lines(cases: Sequence[Case]) -> list[str]:
    """One line per device, terms and quantity: scope, fidelity and error band."""
    lines: dict[str, None] = {}
    for case in cases:
        for quantity in ("latency", "energy"):
            scope = f" ({case.summary['energy_scope']})" if quantity == "energy" else ""
            band = band_text(case.estimate.error_band(quantity))
            lines[f"{case.card.name}, {case.terms}: {quantity}{scope} {case.summary['fidelity'][quantity]}, error {band}"] = None
    return list(lines)


def _component_lines(cases: Sequence[Case]) -> list[str]:
    """One line per case whose machine tells its parts: energy by component, the largest first, area, and the idle share."""
    lines = []
    for case in cases:
        told = case.estimate.by_component()
        if not told:
            continue
        parts = sorted(told["energy_by_component_j"].items(), key=lambda part: -part[1])
        shares = ", ".join(f"{name} {percent(joules / case.energy_j)}" for name, joules in parts if joules > 0)
        area, idle = sum(told["area_mm2"].values()), percent(told["idle_share"], 1)
        lines.append(f"{case.card.name}, {case.terms}, {case.variant}: energy {shares}; area {area:.2f} mm2; PEs idle {idle}")
    return lines


def trace_table(trace: Trace) -> Table:
    """Operators of a trace by what they do: how many, their MACs as the dense model executes them, kept MACs, weights."""
    columns = ["operators", "count", "MACs", "MACs kept", "kept", "weights", "weights kept"]
    table = new_table(f"{trace.model}, {images(trace.batch)}", columns, left=1)
    rows = list(zip(groups(trace), trace.operators, strict=True))
    for key, label in ROLES.items():
        mine = [operator for group, operator in rows if group == key]
        if mine:
            plain_row(table, label, *_sums(trace.replace(operators=tuple(mine), edges=())))
    table.add_section()
    plain_row(table, "all", *_sums(trace))
    return table


def _sums(trace: Trace) -> list[str]:
    weights = sum(operator.weight_elements for operator in trace.operators)
    kept = weights - sum((1 - kept_weights(one)) * one.batch * one.n * one.k for one in trace.operators if one.parameter)
    share = percent(trace.kept_macs / trace.macs, 1) if trace.macs else "-"
    return [str(len(trace)), si(trace.macs), si(trace.kept_macs), share, si(weights), si(kept)]
