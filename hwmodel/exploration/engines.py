"""Where the pieces of a study are computed: in this process, in several on this machine (joblib), or on a Dask cluster.

Every engine runs the same function on the same pieces and hands results back as they are done, in any order; who calls
writes them down. A worker that dies costs its piece another try.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Generic, Protocol, TypeVar

from hwmodel.errors import HwmodelError
from hwmodel.exploration.problem import Problem
from hwmodel.exploration.quantities import Columns

Task = TypeVar("Task")
Work = Callable[[Problem, Any], Columns]
TRIES = 4
"""Deaths of workers in a row, without a piece done in between, after which a run gives up."""
CONNECT_S = 5.0
WORKERS_S = 15.0
PENDING_PER_THREAD = 3
KEPT = "a results folder keeps what was priced, and the same command goes on from there"


class EngineError(HwmodelError):
    """Workers or a cluster that cannot do the work."""


class Engine(Protocol):
    """Runs ``work`` on every task."""

    def run(self, work: Work, problem: Problem, tasks: Sequence[Task]) -> Iterator[tuple[Task, Columns]]:
        """Pairs of a task and its result, as they are done."""
        ...


@dataclass(frozen=True)
class InProcess:
    """One task after the other, here."""

    def run(self, work: Work, problem: Problem, tasks: Sequence[Task]) -> Iterator[tuple[Task, Columns]]:
        """In order."""
        for task in tasks:
            yield task, work(problem, task)


@dataclass(frozen=True)
class _Remote(Generic[Task]):
    """A task as it runs in a worker: with one simulation at a time, for the workers are the parallelism."""

    work: Work

    def __call__(self, problem: Problem, task: Task) -> tuple[Task, Columns]:
        from hwmodel.backends import scale_sim

        with scale_sim.settings(workers=1):
            return task, self.work(problem, task)


@dataclass(frozen=True)
class Processes:
    """``workers`` processes on this machine, through joblib."""

    workers: int

    def run(self, work: Work, problem: Problem, tasks: Sequence[Task]) -> Iterator[tuple[Task, Columns]]:
        """As they are done. What a worker that died had not handed back is done again by new ones.

        Raises
        ------
        EngineError
            Workers die again and again without getting anything done.
        """
        from joblib import Parallel, delayed
        from joblib.externals.loky.process_executor import BrokenProcessPool

        left = dict(enumerate(tasks))
        remote, deaths = _Remote[Any](_Numbered(work)), 0
        while left:
            try:
                pool = Parallel(n_jobs=self.workers, return_as="generator_unordered", pre_dispatch="3*n_jobs")
                for (number, task), columns in pool(delayed(remote)(problem, item) for item in list(left.items())):
                    del left[number]
                    deaths = 0
                    yield task, columns
            except BrokenProcessPool as error:
                deaths += 1
                if deaths == TRIES:
                    raise EngineError(
                        f"--workers {self.workers}: worker processes keep dying ({_first_line(error)}); try fewer"
                    ) from error


@dataclass(frozen=True)
class _Numbered:
    """``work`` on the task of a pair (number, task)."""

    work: Work

    def __call__(self, problem: Problem, item: tuple[int, Any]) -> Columns:
        return self.work(problem, item[1])


@dataclass(frozen=True)
class Cluster:
    """The workers of a Dask cluster, by the address of its scheduler."""

    address: str

    def run(self, work: Work, problem: Problem, tasks: Sequence[Task]) -> Iterator[tuple[Task, Columns]]:
        """As they are done; Dask gives the tasks of a worker that died to another.

        Raises
        ------
        EngineError
            No scheduler, no workers, workers without this version of hwmodel, or a connection that is lost on the way.
        """
        from distributed import as_completed
        from distributed.scheduler import KilledWorker

        with _connected(self.address) as client:
            remote, waiting = _Remote[Any](work), iter(tasks)

            def submit(task: Task) -> Any:
                return client.submit(remote, problem, task, pure=False, retries=TRIES)

            threads = max(1, sum(client.nthreads().values()))
            first = [submit(task) for _, task in zip(range(PENDING_PER_THREAD * threads), waiting, strict=False)]
            running: Any = as_completed(first, loop=client.loop)  # type: ignore[no-untyped-call]
            try:
                for future in running:
                    yield future.result()
                    future.release()
                    for task in waiting:
                        running.add(submit(task))
                        break
            except KilledWorker as error:
                raise EngineError(f"--cluster {self.address}: a piece killed each worker that took it up; {KEPT}") from error
            except (OSError, _lost()) as error:
                raise EngineError(f"--cluster {self.address}: the scheduler is gone; {KEPT}") from error


def _lost() -> type[BaseException]:
    """What Dask raises for futures whose scheduler is gone."""
    from distributed.client import FutureCancelledError

    return FutureCancelledError


@contextmanager
def _connected(address: str) -> Iterator[Any]:
    """A client of a scheduler whose workers have what they need."""
    import logging

    from distributed import Client

    for name in ("distributed", "distributed.comm", "distributed.client"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        client = Client(address, timeout=CONNECT_S, set_as_default=False)  # type: ignore[no-untyped-call]
    except (OSError, ValueError, TypeError) as error:
        told = f"no scheduler answers ({_first_line(error)})"
        raise EngineError(f"--cluster {address}: {told}; start one with 'dask scheduler', and give its tcp:// address") from error
    try:
        _check_workers(client, address)
        yield client
    finally:
        client.close(timeout=CONNECT_S)  # type: ignore[no-untyped-call]


def _check_workers(client: Any, address: str) -> None:
    try:
        client.wait_for_workers(1, timeout=WORKERS_S)
    except TimeoutError as error:
        raise EngineError(f"--cluster {address}: the scheduler has no workers; start some with 'dask worker {address}'") from error
    ours = _installed()
    try:
        found = client.run(_installed)
    except ModuleNotFoundError as error:
        raise EngineError(f"--cluster {address}: a worker has no hwmodel; install hwmodel {ours} there") from error
    for worker, theirs in sorted(found.items()):
        if theirs != ours:
            raise EngineError(f"--cluster {address}: worker {worker} has hwmodel {theirs}, this is {ours}; install the same")


def _installed() -> str:
    try:
        return version("hwmodel")
    except PackageNotFoundError:
        return "none"


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def choose(workers: int | None, cluster: str | None) -> Engine:
    """The engine that was asked for.

    Raises
    ------
    EngineError
        Both, or a cluster without the library for it.
    """
    if workers is not None and cluster is not None:
        raise EngineError("--workers and --cluster: choose one")
    if cluster is None:
        return InProcess() if workers is None else Processes(workers)
    try:
        version("distributed")
    except PackageNotFoundError as error:
        raise EngineError("--cluster needs the extra 'cluster': pip install 'hwmodel[cluster]'") from error
    return Cluster(cluster)
