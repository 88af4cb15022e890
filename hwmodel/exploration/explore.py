"""Runs a study: what is missing is priced, wherever there are workers, and kept piece by piece."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from hwmodel.exploration.dataset import Dataset, as_table, opened, schema
from hwmodel.exploration.engines import Engine, choose
from hwmodel.exploration.pricing import price_chunk
from hwmodel.exploration.problem import Problem, prepare
from hwmodel.exploration.results import Results
from hwmodel.exploration.study import Study, StudyError
from hwmodel.exploration.study_files import load_study

Progress = Callable[[int, int], None]
"""Called with (points done, points in all)."""
MOST_IN_MEMORY = 20_000_000


def explore(
    study: Study | str | Path,
    folder: str | Path | None = None,
    *,
    workers: int | None = None,
    cluster: str | None = None,
    yes: bool = False,
    progress: Progress | None = None,
) -> Results:
    """Price every point of a grid, or search a space, and keep all of it.

    Parameters
    ----------
    study : a study, or its file
    folder : where results are kept, and taken up again; nowhere but in memory where None
    workers : processes on this machine; this one alone where None
    cluster : address of a Dask scheduler, "tcp://HOST:8786" (extra ``cluster``)
    yes : price more points than the study's ``limit``
    progress : called with points done and points in all

    Raises
    ------
    StudyError
        A study that nothing fits, more points than its limit, a folder of another study, constraints that leave nothing.
    HwmodelError
        A folder that cannot be written, workers that cannot be reached. What was priced until then is kept.
    """
    study = study if isinstance(study, Study) else load_study(study)
    engine = choose(workers, cluster)
    problem = prepare(study)
    _check_size(problem, yes)
    tell = progress or (lambda done, total: None)
    with ExitStack() as stack:
        dataset = None
        if folder is not None:
            dataset = stack.enter_context(opened(folder, study, dict(problem.digests), problem.fingerprint))
        if study.method == "search":
            from hwmodel.exploration.search import search

            found = search(problem, dataset, engine, tell)
        else:
            found = _grid(problem, dataset, engine, tell)
    found.check_feasible()
    return found


def _check_size(problem: Problem, yes: bool) -> None:
    study = problem.study
    points = study.search.trials if study.method == "search" else problem.size
    if points > study.limit and not yes:
        cases = f"{len(problem.cases)} case" + ("s" if len(problem.cases) != 1 else "")
        listed = " x ".join(f"{len(axis.points())} {axis.title}" for axis in study.vary if axis.enumerable)
        raise StudyError(
            f"{study.name}: {points} points ({cases}; {listed}) are more than limit = {study.limit}; "
            "pass --yes to price them all, vary less, or set method = 'search'"
        )


def _grid(problem: Problem, dataset: Dataset | None, engine: Engine, tell: Progress) -> Results:
    """Every chunk that is not there yet, in any order; the result is the same however often it was interrupted."""
    import pyarrow as pa

    layout = schema(problem.study, problem.fingerprint)
    there = [chunk for chunk in problem.chunks if dataset is not None and dataset.holds(chunk.number, len(chunk))]
    known = {chunk.number for chunk in there}
    missing = [chunk for chunk in problem.chunks if chunk.number not in known]
    done = sum(map(len, there))
    tell(done, problem.size)
    tables = {}
    for chunk, columns in engine.run(price_chunk, problem, missing):
        table = as_table(columns, layout)
        if dataset is None:
            tables[chunk.number] = table
        else:
            dataset.write(chunk.number, table)
        done += len(chunk)
        tell(done, problem.size)
    numbers = [chunk.number for chunk in problem.chunks]
    whole = dataset.table(numbers) if dataset else pa.concat_tables([tables[number] for number in numbers]).unify_dictionaries()
    return Results(problem.study, whole)
