"""The tables of the page: what a reader sees, and the same cells as CSV in SI units."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import StringIO
from typing import Any

from hwmodel.backends.cards import Score
from hwmodel.reporting.layer_work import LayerWork, layer_work
from hwmodel.reporting.tables import NOT_MEASURED
from hwmodel.reporting.units import SPACE, percent, ratio, si
from hwmodel.reporting.variants import Case, Machine, energy_gain, speed_up


@dataclass(frozen=True)
class Cell:
    """One cell: the text a reader sees, and its columns of the CSV, the first of which it is sorted by."""

    text: str
    values: Mapping[str, Any]
    token: str = ""

    @property
    def key(self) -> float | None:
        """The number it is sorted by; None where it is sorted as text."""
        first = next(iter(self.values.values()))
        return float(first) if isinstance(first, (int, float)) and not isinstance(first, bool) else None


@dataclass(frozen=True)
class PageTable:
    """A table of the page.

    Parameters
    ----------
    name : its anchor, and the name of the file it is downloaded as
    heads : what stands over each cell, and whether that is a column of numbers
    rows : the cells, those of a column with the same CSV columns in every row
    """

    name: str
    heads: Sequence[tuple[str, bool]]
    rows: Sequence[Sequence[Cell]]

    def csv(self) -> str:
        """All cells as CSV: SI units, numbers as the shortest text that reads back equal, empty where there is none."""
        if not self.rows:
            return ""
        records = [{name: value for cell in row for name, value in cell.values.items()} for row in self.rows]
        text = StringIO()
        writer = csv.DictWriter(text, list(records[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(records)
        return text.getvalue()


def results_table(machines: Sequence[Machine]) -> PageTable:
    """One row per machine and variant: totals, factors against the baseline, how far to trust them."""
    compared = bool(machines[0].pairs)
    heads = {"device": False, "variant": False, "mode, format": False, "latency": True, "faster": True}
    heads |= {"latency rests on, error": False, "energy": True, "less energy": True, "energy rests on, error": False}
    heads |= {"power": True, "executed MACs": True, "off-chip traffic": True}
    shown = [(head, number) for head, number in heads.items() if compared or head not in {"faster", "less energy"}]
    rows = [_result_row(machine, case, compared=compared) for machine in machines for case in machine.cases]
    return PageTable("results", shown, rows)


def _result_row(machine: Machine, case: Case, *, compared: bool) -> list[Cell]:
    summary, base, reference = case.summary, case is machine.baseline, machine.reference(case)
    faster, less = (None if base else gain(case, reference) for gain in (speed_up, energy_gain))
    terms = ", ".join(filter(None, [case.terms, _options_text(case)]))
    cells = [
        Cell(machine.label, {"device": machine.label}, token=f"device-{machine.index}"),
        Cell(case.variant, {"variant": case.variant}),
        Cell(terms, {"mode": case.mode, "dtype": case.dtype}),
        Cell(si(case.latency_s, "s"), {"latency_s": case.latency_s}),
        Cell("" if base else ratio(faster), {"speed_up": faster}),
        _trust_cell(case, "latency"),
        Cell(si(case.energy_j, "J"), {"energy_j": case.energy_j}),
        Cell("" if base else ratio(less), {"energy_ratio": less}),
        _trust_cell(case, "energy"),
        Cell(si(summary["average_power_w"], "W"), {"average_power_w": summary["average_power_w"]}),
        Cell(si(summary["executed_macs"], "MAC"), {"executed_macs": summary["executed_macs"]}),
        Cell(si(summary["dram_bytes"], "B"), {"dram_bytes": summary["dram_bytes"]}),
    ]
    return [cell for cell in cells if compared or not {"speed_up", "energy_ratio"} & cell.values.keys()]


def _trust_cell(case: Case, quantity: str) -> Cell:
    """Fidelity and error band of one quantity."""
    score, fidelity = case.estimate.error_band(quantity), case.summary["fidelity"][quantity]
    names = (f"{quantity}_error_median", f"{quantity}_error_p90", f"{quantity}_error_rows")
    told = NOT_MEASURED if score is None else f"±{percent(score.median, 1)}, p90{SPACE}{percent(score.p90, 1)}"
    values = (None, None, None) if score is None else (score.median, score.p90, score.rows)
    return Cell(f"{fidelity}, {told}", {f"{quantity}_fidelity": fidelity, **dict(zip(names, values, strict=True))})


def _options_text(case: Case) -> str:
    """Choices that are not the default."""
    options = case.estimate.options
    chosen = {"attention": (options.attention, "source"), "sparse kernel": (options.sparse_kernel, "auto")}
    return ", ".join(f"{name} {value}" for name, (value, default) in chosen.items() if value != default)


def work_table(place: int, machines: Sequence[Machine]) -> PageTable:
    """Dense, nominal, effective and executed work of every prunable layer of one variant."""
    work = layer_work([machine.cases[place] for machine in machines], [machine.references[place] for machine in machines])
    labels = [machine.label for machine in machines]
    told = any(one.reason for one in work)
    heads = [("layer", False), ("block", True), ("pruned in", False), ("weights kept", True), ("dense", True), ("nominal", True)]
    heads += [("effective", True), *((f"executed on {label}", True) for label in labels)]
    rows = [_work_row(one, labels, told=told) for one in work]
    return PageTable(f"work-{place}-layers", heads + ([("why nothing is gained", False)] if told else []), rows)


def _work_row(one: LayerWork, labels: Sequence[str], *, told: bool) -> list[Cell]:
    block = "" if one.mask_block is None else f"{one.mask_block[0]}x{one.mask_block[1]}"
    return [
        Cell(one.name, {"layer": one.name, "role": one.role}),
        Cell("" if one.block is None else str(one.block), {"block": one.block}),
        Cell(block or "-", {"mask_block": block}),
        Cell(percent(one.kept_weights, 1), {"kept_weights": one.kept_weights}),
        Cell(si(one.dense_macs, "MAC"), {"dense_macs": one.dense_macs}),
        Cell(si(one.nominal_macs, "MAC"), {"nominal_macs": one.nominal_macs}),
        Cell(si(one.effective_macs, "MAC"), {"effective_macs": one.effective_macs}),
        *(
            Cell(si(macs, "MAC"), {f"executed_macs on {label}": macs})
            for label, macs in zip(labels, one.executed_macs, strict=True)
        ),
        *([Cell(one.reason, {"reason": one.reason})] if told else []),
    ]


def parameters_table(machine: Machine) -> PageTable:
    """Field, value, fidelity and source of every number used, the power mode's and the caller's in place."""
    case = machine.baseline
    power = case.card.power_modes[case.power_mode] if case.power_mode else {}
    rows = []
    for name, entry in (case.card.parameters | power).items():
        where = f"{entry.source} (power mode {case.power_mode})" if name in power else entry.source
        around = f" (between {_plain(entry.range[0])} and {_plain(entry.range[1])})" if entry.range else ""
        rows.append(_parameter_row(name, _plain(entry.value) + around, str(entry.fidelity), where))
    for name, value in case.estimate.overrides.items():
        rows.append(_parameter_row(name, _plain(value), "assumed", "changed by hand for this report"))
    heads = [("parameter", False), ("value", False), ("fidelity", False), ("source", False)]
    return PageTable(f"parameters-{machine.index}", heads, rows)


def _parameter_row(name: str, value: str, fidelity: str, source: str) -> list[Cell]:
    texts = {"parameter": name, "value": value, "fidelity": fidelity, "source": source}
    return [Cell(text, {column: text}) for column, text in texts.items()]


def _plain(value: Any) -> str:
    """A card's value as text, in SI base units: 1.41e+09, "32x32", "int8: 1, fp16: 2"."""
    if isinstance(value, dict):
        return ", ".join(f"{name}: {_plain(item)}" for name, item in value.items())
    if isinstance(value, list):
        return ", ".join(map(_plain, value))
    return f"{value:.6g}" if isinstance(value, (int, float)) and not isinstance(value, bool) else str(value)


_SHARES = ("median", "mean", "p90", "max", "bias")


def scores_table(machine: Machine) -> PageTable:
    """Measured errors of one machine, as its scoreboard has them."""
    texts = ("measured error", "mode", "formats", "against")
    heads = [*((text, False) for text in texts), ("rows", True), *((name, True) for name in _SHARES), ("gives the band", False)]
    return PageTable(f"scores-{machine.index}", heads, [_score_row(score) for score in machine.card.scores])


def _score_row(score: Score) -> list[Cell]:
    texts = {"quantity": score.quantity, "mode": score.mode, "dtypes": ", ".join(score.dtypes) or "all", "against": score.against}
    band = "yes" if score.band else "no"
    return [
        *(Cell(text, {name: text}) for name, text in texts.items()),
        Cell(str(score.rows), {"rows": score.rows}),
        *(Cell(percent(getattr(score, name), 1), {name: getattr(score, name)}) for name in _SHARES),
        Cell(band, {"band": band}),
    ]
