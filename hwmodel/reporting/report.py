"""One self-contained HTML page that compares variants of a model on several machines."""

from __future__ import annotations

import gzip
import json
import platform
from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any

from hwmodel.errors import HwmodelError
from hwmodel.files import check_writable, write_file
from hwmodel.reporting import page_tables, style, words
from hwmodel.reporting.drawings import Drawing, Progress, drawings, plot_documents, silent
from hwmodel.reporting.export import csv_text
from hwmodel.reporting.page_tables import PageTable
from hwmodel.reporting.variants import Machine, Variant, machines_of

__all__ = ["FigureFolder", "Variant", "csv_text", "report_csv", "report_html", "write_report"]


@dataclass(frozen=True)
class FigureFolder:
    """Where figures go as files of their own, and in which format: "pdf", "png" or "svg".

    Raises
    ------
    HwmodelError
        A folder that is missing or cannot be written, or another format.
    """

    path: Path
    format: str

    def __post_init__(self) -> None:
        if self.format not in style.FILE_FORMATS:
            raise HwmodelError(f"figures: unknown format {self.format!r}: expected one of {', '.join(style.FILE_FORMATS)}")
        if not self.path.is_dir():
            raise HwmodelError(f"{self.path}: not a folder; figures go into one that exists")
        check_writable(self.path / f"figure.{self.format}")


def write_report(
    variants: Sequence[Variant],
    path: str | Path,
    progress: Progress | None = None,
    *,
    static: bool = False,
    figures: FigureFolder | None = None,
    helped: bool = False,
) -> None:
    """Write the page that compares ``variants`` (the dense one first) to ``path``.

    The page needs no network, prints, and follows the reader's light or dark setting. The same input gives the same
    bytes. ``static``: figures as SVG only, a small page. ``progress`` is called with a few words before each figure.
    ``helped``: two more processes draw them.

    Raises
    ------
    HwmodelError
        Variants that cannot be compared (see :func:`hwmodel.reporting.variants.machines_of`), or a path that cannot be
        written; paths are checked before anything is drawn.
    """
    check_writable(path)
    suffix = "" if figures is None else f".{figures.format}"
    machines = machines_of(variants)
    drawn = drawings(variants, machines, progress or silent, static=static, suffix=suffix, helped=helped)
    write_file(path, _page(variants, machines, drawn, static=static))
    if figures is not None:
        for drawing in drawn:
            write_file(figures.path / f"{drawing.name}{suffix}", drawing.file)


def report_html(variants: Sequence[Variant], progress: Progress | None = None, *, static: bool = False) -> str:
    """The page as text; see :func:`write_report`."""
    machines = machines_of(variants)
    return _page(variants, machines, drawings(variants, machines, progress or silent, static=static), static=static)


def report_csv(variants: Sequence[Variant]) -> str:
    """Every operator of every variant on every machine, as the page hands it out; see :func:`csv_text`."""
    labels = [variant.label for variant in variants for _ in variant.estimates]
    return csv_text([estimate for variant in variants for estimate in variant.estimates], labels)


def _page(variants: Sequence[Variant], machines: Sequence[Machine], drawn: Sequence[Drawing], *, static: bool) -> str:
    results = page_tables.results_table(machines)
    work = {f"work-{place}": page_tables.work_table(place, machines) for place in range(1, len(variants))}
    cards = [_card_section(machine) for machine in machines]
    tables = [results, *work.values(), *(table for card in cards for table in card["tables"])]
    scripts = _scripts(static=static)
    page = _template().render(
        csp=_content_policy(scripts),
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
        results=results,
        work=work,
        drawings={drawing.name: drawing for drawing in drawn},
        cards=cards,
        versions=_versions(variants, static=static),
        sheets=_sheets(tables, variants),
        plots=plot_documents(drawn),
        scripts=scripts,
    )
    return str(page)


def _template() -> Any:
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":"), "allow_nan": False}
    return environment.from_string(_asset("report.html.j2"))


def _asset(name: str) -> str:
    return files("hwmodel.reporting").joinpath(name).read_text(encoding="utf-8")


def _scripts(*, static: bool) -> list[str]:
    """The page's scripts in the order they run: sorting and downloads, then plotly and what draws with it."""
    if static:
        return [_asset("page.js")]
    from plotly.offline import get_plotlyjs

    return [_asset("page.js"), get_plotlyjs(), _asset("page_figures.js")]


def _content_policy(scripts: Sequence[str]) -> str:
    """Nothing is loaded from anywhere, and no script runs but ours, known by their hashes."""
    hashes = " ".join(f"'sha256-{b64encode(sha256(script.encode()).digest()).decode()}'" for script in scripts)
    return f"default-src 'none'; style-src 'unsafe-inline'; img-src data: blob:; script-src {hashes}"


def _sheets(tables: Sequence[PageTable], variants: Sequence[Variant]) -> str:
    """What can be downloaded, by name: every table, and every operator; as JSON, packed."""
    sheets = {"operators": report_csv(variants), **{table.name: table.csv() for table in tables}}
    return b64encode(gzip.compress(json.dumps(sheets).encode(), mtime=0)).decode()


def _versions(variants: Sequence[Variant], *, static: bool) -> dict[str, str]:
    """What made the page and the traces, by name."""
    drawn_with = ("hwmodel", "matplotlib", "numpy") if static else ("hwmodel", "matplotlib", "numpy", "plotly")
    traced = {name: text for variant in variants for name, text in variant.trace.versions.items()}
    return dict(sorted({"python": platform.python_version(), **{name: version(name) for name in drawn_with}, **traced}.items()))


def _card_section(machine: Machine) -> dict[str, Any]:
    """What the page says about one machine: its numbers with their sources, and its measured errors."""
    card = machine.card
    execution = machine.baseline.mode.split("+")[0]
    parameters, scores = page_tables.parameters_table(machine), page_tables.scores_table(machine)
    return {
        "label": machine.label,
        "token": style.device_token(machine.index),
        "title": card.title,
        "reason": card.fidelity[execution].reason if execution in card.fidelity else "",
        "parameters": parameters,
        "scores": scores,
        "tables": [parameters, *([scores] if scores.rows else [])],
    }
