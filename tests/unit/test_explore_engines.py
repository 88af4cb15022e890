"""Engines: several processes and a Dask cluster give what one process gives, whatever dies on the way."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from study_examples import bytes_below, model_file, study

import hwmodel as hw
from hwmodel.exploration import engines, space
from hwmodel.exploration.engines import Cluster, Engine, EngineError, Processes, choose
from hwmodel.exploration.pricing import price_chunk
from hwmodel.exploration.problem import Problem, prepare
from hwmodel.exploration.space import Chunk
from hwmodel.exploration.study import Study, StudyError


@pytest.fixture
def example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Study:
    monkeypatch.setattr(space, "POINTS_PER_CHUNK", 5)
    return study(model_file(tmp_path))


def dies_once(problem: Problem, chunk: Chunk) -> dict[str, Any]:
    """Price a chunk; the first process that takes up chunk 3 is killed on the way."""
    mark = Path(problem.study.title)
    if chunk.number == 3 and not mark.exists():
        mark.write_text("died")
        os.kill(os.getpid(), signal.SIGKILL)
    return price_chunk(problem, chunk)


def always_dies(problem: Problem, chunk: Chunk) -> dict[str, Any]:
    os.kill(os.getpid(), signal.SIGKILL)
    return price_chunk(problem, chunk)


def refuses(problem: Problem, chunk: Chunk) -> dict[str, Any]:
    raise StudyError(f"chunk {chunk.number} cannot be priced")


def test_two_processes_write_the_same_bytes_as_one(example: Study, tmp_path: Path) -> None:
    hw.explore(example, tmp_path / "one")
    hw.explore(example, tmp_path / "two", workers=2)
    assert bytes_below(tmp_path / "one") == bytes_below(tmp_path / "two")


def test_a_worker_that_dies_costs_a_retry(example: Study, tmp_path: Path) -> None:
    problem = prepare(example.model_copy(update={"title": str(tmp_path / "mark")}))
    found = {chunk.number: columns for chunk, columns in Processes(2).run(dies_once, problem, problem.chunks)}
    assert (tmp_path / "mark").exists()
    assert sorted(found) == list(range(len(problem.chunks)))
    for chunk in problem.chunks:
        assert found[chunk.number]["latency_s"].tolist() == price_chunk(problem, chunk)["latency_s"].tolist()


def test_workers_that_keep_dying_end_the_run(example: Study) -> None:
    problem = prepare(example)
    with pytest.raises(EngineError, match="--workers 2: worker processes keep dying"):
        list(Processes(2).run(always_dies, problem, problem.chunks[:2]))


def test_an_error_in_a_worker_is_told_as_it_is(example: Study) -> None:
    problem = prepare(example)
    with pytest.raises(StudyError, match="chunk 0 cannot be priced"):
        list(Processes(2).run(refuses, problem, problem.chunks[:1]))


def waits(problem: Problem, chunk: Chunk) -> dict[str, Any]:
    """Half a second without work, as a simulation in a process of its own is for the one that waits for it."""
    began = time.time()
    time.sleep(0.5)
    return {"began": began, "ended": time.time()}


def most_at_once(engine: Engine, problem: Problem) -> int:
    """Pieces that are under way together."""
    times = [columns for _, columns in engine.run(waits, problem, problem.chunks[:8])]
    return max(sum(other["began"] <= one["began"] < other["ended"] for other in times) for one in times)


def test_each_worker_takes_a_piece_at_a_time(example: Study) -> None:
    problem = prepare(example)
    assert most_at_once(Processes(1), problem) == 1
    assert most_at_once(Processes(2), problem) == 2


# --- Dask -------------------------------------------------------------------------------------------------------------


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[tuple[str, list[subprocess.Popen[bytes]]]]:
    """A scheduler and two workers, started as a user would."""
    pytest.importorskip("distributed")
    address = f"tcp://127.0.0.1:{free_port()}"
    paths = os.pathsep.join(path for path in sys.path if path)
    places = {
        "cwd": tmp_path,
        "env": {**os.environ, "PYTHONPATH": paths},
        "stderr": subprocess.DEVNULL,
        "stdout": subprocess.DEVNULL,
    }
    dask = (sys.executable, "-m", "dask")
    scheduler: Any = [*dask, "scheduler", "--host", "127.0.0.1", "--port", address.rpartition(":")[2], "--no-dashboard"]
    worker: Any = [*dask, "worker", address, "--nworkers", "1", "--nthreads", "1", "--no-nanny", "--no-dashboard"]
    started = [subprocess.Popen(command, **places) for command in (scheduler, worker, worker)]
    try:
        yield address, started
    finally:
        for process in reversed(started):
            process.kill()
            process.wait()


def waited(address: str, workers: int) -> None:
    from distributed import Client

    with Client(address, timeout=60, set_as_default=False) as client:
        client.wait_for_workers(workers, timeout=60)


@pytest.mark.slow
def test_a_cluster_gives_the_same_results_though_a_worker_is_killed(
    example: Study, tmp_path: Path, cluster: tuple[str, list[subprocess.Popen[bytes]]]
) -> None:
    address, (_, *workers) = cluster
    waited(address, 2)

    def kill_one(done: int, total: int) -> None:
        if 20 <= done < 30:
            workers[0].kill()

    hw.explore(example, tmp_path / "cluster", cluster=address, progress=kill_one)
    assert workers[0].wait() == -signal.SIGKILL
    hw.explore(example, tmp_path / "one")
    assert bytes_below(tmp_path / "cluster") == bytes_below(tmp_path / "one")
    hw.explore(example, tmp_path / "again", cluster=address)  # with the worker that is left
    assert bytes_below(tmp_path / "again") == bytes_below(tmp_path / "one")


@pytest.mark.slow
def test_a_cluster_works_on_as_many_pieces_as_it_has_workers(
    example: Study, cluster: tuple[str, list[subprocess.Popen[bytes]]]
) -> None:
    address, (_, *workers) = cluster
    waited(address, 2)
    problem = prepare(example)
    assert most_at_once(Cluster(address), problem) == 2
    workers[0].kill()
    workers[0].wait()
    assert most_at_once(Cluster(address), problem) == 1


@pytest.mark.slow
def test_a_scheduler_without_workers_is_one_clear_error(
    example: Study, cluster: tuple[str, list[subprocess.Popen[bytes]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    address, (_, *workers) = cluster
    waited(address, 2)
    for worker in workers:
        worker.kill()
        worker.wait()
    monkeypatch.setattr(engines, "WORKERS_S", 1.0)
    started = time.monotonic()
    with pytest.raises(EngineError, match=f"the scheduler has no workers; start some with 'dask worker {address}'"):
        hw.explore(example, cluster=address)
    assert time.monotonic() - started < 30


@pytest.mark.slow
def test_a_scheduler_that_goes_away_is_one_clear_error_and_what_was_done_is_kept(
    example: Study, tmp_path: Path, cluster: tuple[str, list[subprocess.Popen[bytes]]]
) -> None:
    address, (scheduler, *_) = cluster
    waited(address, 2)

    def lose_it(done: int, total: int) -> None:
        if done >= 20:
            scheduler.kill()

    with pytest.raises(EngineError, match="the scheduler is gone; a results folder keeps what was priced"):
        hw.explore(example, tmp_path / "out", cluster=address, progress=lose_it)
    assert len(hw.load_results(tmp_path / "out")) >= 20
    hw.explore(example, tmp_path / "out")
    hw.explore(example, tmp_path / "one")
    assert bytes_below(tmp_path / "out") == bytes_below(tmp_path / "one")


@pytest.mark.parametrize("address", ["tcp://127.0.0.1:{port}", "nonsense://x"])
def test_a_scheduler_that_does_not_answer_is_one_clear_error(example: Study, tmp_path: Path, address: str) -> None:
    pytest.importorskip("distributed")
    there = address.format(port=free_port())
    started = time.monotonic()
    with pytest.raises(EngineError, match=f"--cluster {there}: no scheduler answers .*; start one with 'dask scheduler'"):
        hw.explore(example, tmp_path / "out", cluster=there)
    assert time.monotonic() - started < 60
    assert not list((tmp_path / "out").rglob("*.parquet"))


def test_one_engine_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose(3, None) == Processes(3)
    assert choose(None, "tcp://a:1") == Cluster("tcp://a:1")
    with pytest.raises(EngineError, match="choose one"):
        choose(2, "tcp://a:1")
    from importlib.metadata import PackageNotFoundError

    def missing(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr("hwmodel.exploration.engines.version", missing)
    with pytest.raises(EngineError, match=r"needs the extra 'cluster': pip install 'hwmodel\[cluster\]'"):
        choose(None, "tcp://a:1")
