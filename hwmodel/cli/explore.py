"""`hwmodel explore`."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hwmodel.cli.options import AsJson
from hwmodel.cli.printing import print_json, print_line, print_wide

if TYPE_CHECKING:
    from hwmodel.exploration.explore import Progress
    from hwmodel.exploration.results import Results

MOST_ROWS = 20
SECONDS_BETWEEN_LINES = 10.0


def explore(
    study: Annotated[str, typer.Argument(help="the study, a TOML file")],
    *,
    output: Annotated[str, typer.Option("-o", "--output", help="folder of the results; the same command goes on where it stopped")],
    workers: Annotated[
        int | None, typer.Option("--workers", min=1, help="processes on this machine (default: this one alone)")
    ] = None,
    cluster: Annotated[str | None, typer.Option("--cluster", help="a Dask scheduler, tcp://HOST:8786")] = None,
    yes: Annotated[bool, typer.Option("--yes", help="price more points than the study's limit")] = False,
    plots: Annotated[bool, typer.Option(help="draw figures into the folder")] = True,
    as_json: AsJson = False,
) -> None:
    """Price every point of a study, or search its space, and show the Pareto front.

    A study is a TOML file: python -m pydoc hwmodel.exploration.study shows all of it, analysis/studies has examples.
    """
    from hwmodel.exploration.explore import explore as run
    from hwmodel.exploration.study_files import load_study
    from hwmodel.files import write_file

    asked = load_study(study)
    with _progress(asked.name) as tell:
        found = run(asked, output, workers=workers, cluster=cluster, yes=yes, progress=tell)
    front = found.front()
    files = [f"{output}/front.csv"]
    write_file(files[0], front.to_csv(index=False, lineterminator="\n"))
    if plots:
        from hwmodel.exploration.plots import write_figures

        files += [str(path) for path in write_figures(found, output)]
    if as_json:
        print_json({"study": asked.name, "points": len(found), "front": _rows(found), "files": files})
        return
    print_wide(_table(found))
    print_line(f"{len(found)} points in {output}/points, {len(front)} on the front; {', '.join(files)}")


def _rows(found: Results) -> list[dict[str, Any]]:
    """The front as plain values, missing ones as None."""
    front = found.front().astype(object)
    rows = front.where(front.notna(), None).to_dict("records")
    return [{str(name): value.item() if hasattr(value, "item") else value for name, value in row.items()} for row in rows]


def _table(found: Results) -> Any:
    """The front: what varies, the objectives, the knees; at most :data:`MOST_ROWS` rows, knees among them."""
    from hwmodel.exploration.plots import knobs_of, objective_axes
    from hwmodel.reporting.tables import new_table, plain_row

    front, objectives = found.front(), objective_axes(found)
    units = dict.fromkeys(knobs_of(found, found.frame())) | {axis.name: axis.unit for axis in objectives}
    every = -(-len(front) // MOST_ROWS)
    shown = front[(front.reset_index().index % max(every, 1) == 0) | front.knee.notna().to_numpy()]
    part = "" if len(shown) == len(front) else f" ({len(shown)} of {len(front)} points)"
    table = new_table(f"{found.study.title or found.study.name}: Pareto front{part}", [*units, "knee"], left=0)
    for row in shown[[*units, "knee"]].itertuples(index=False):
        plain_row(table, *(_cell(value, unit) for value, unit in zip(row, [*units.values(), None], strict=True)))
    return table


def _cell(value: Any, unit: str | None) -> str:
    """A value as people read it: with a prefix where it has a unit (quantities without one have an empty one)."""
    import pandas as pd

    from hwmodel.reporting.units import si, significant

    if pd.isna(value):
        return ""
    if not isinstance(value, float):
        return str(value)
    if unit is None:
        return f"{value:.4g}"
    return si(value, unit) if unit else significant(value)


@contextmanager
def _progress(name: str) -> Iterator[Progress]:
    """Points done, rate and time left on standard error: a bar on a terminal, a line now and then elsewhere."""
    from rich.console import Console

    if Console(stderr=True).is_terminal:
        with _bar(name) as tell:
            yield tell
    else:
        yield _lines(name)


@contextmanager
def _bar(name: str) -> Iterator[Progress]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn(name), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(name, total=None, rate="")

        def tell(done: int, total: int) -> None:
            speed = bar.tasks[0].speed
            bar.update(task, completed=done, total=total, rate=f"{speed:,.0f} points/s" if speed else "")

        yield tell


def _lines(name: str) -> Progress:
    began: list[tuple[float, int]] = []
    told = [0.0]

    def tell(done: int, total: int) -> None:
        now = time.monotonic()
        if not began:
            began.append((now, done))
        elif now - told[0] < SECONDS_BETWEEN_LINES and done < total:
            return
        told[0] = now
        rate = (done - began[0][1]) / max(now - began[0][0], 1e-9)
        left = f", {rate:,.1f} points/s, {(total - done) / rate:,.0f} s left" if rate > 0 else ""
        sys.stderr.write(f"hwmodel: {name}: {done} of {total} points{left}\n")

    return tell
