"""What a second worker is worth where each point is a simulation of a second, on joblib and on Dask (`make bench`).

Two workers cannot be worth more than two processors are at that moment, so two bare loops beside one are timed in turn with
the runs and printed beside them. What is asserted does not depend on what else the machine does: with two workers two points
are under way at once, and a point takes no more of a processor than with one.
"""

from __future__ import annotations

import math
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from study_examples import timed

import hwmodel as hw
from hwmodel.exploration.engines import Cluster, Engine, Processes
from hwmodel.exploration.problem import Problem, prepare
from hwmodel.exploration.study import Study

pytest.importorskip("scalesim", reason="the SCALE-Sim package is not installed")
ROUNDS, POINTS = 2, 4
LOOP = "for number in range(20_000_000): pass"


def simulations(trace: Path) -> Problem:
    """One product on arrays of nearly one size: a simulation of about a second each, none of which another has the result of."""
    sides = {"knob": ["card.array_rows", "card.array_cols"], "label": "side", "from": 48, "to": 65, "step": 1, "whole": True}
    devices = [{"name": "tpu-v3", "modes": ["scale-sim"]}]
    return prepare(Study.model_validate({"name": "scaling", "models": [{"name": str(trace)}], "devices": devices, "vary": [sides]}))


def loops(count: int) -> float:
    """Seconds for ``count`` loops, each in a process of its own."""
    began = time.perf_counter()
    running = [subprocess.Popen([sys.executable, "-c", LOOP]) for _ in range(count)]
    assert [process.wait() for process in running] == [0] * count
    return time.perf_counter() - began


def joblib_engines(_: ExitStack) -> dict[int, Engine]:
    return {count: Processes(count) for count in (1, 2)}


def dask_engines(stack: ExitStack) -> dict[int, Engine]:
    """Two clusters on this machine, of one worker and of two, each worker a process."""
    distributed = pytest.importorskip("distributed")
    settings = {"threads_per_worker": 1, "processes": True, "dashboard_address": None}
    clusters = {count: stack.enter_context(distributed.LocalCluster(n_workers=count, **settings)) for count in (1, 2)}
    return {count: Cluster(cluster.scheduler_address) for count, cluster in clusters.items()}


@pytest.fixture
def cold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty cache of simulations, which workers started from here on use."""
    monkeypatch.setenv("HWMODEL_CACHE_DIR", str(tmp_path / "cache"))
    yield tmp_path


@pytest.mark.slow
@pytest.mark.parametrize("engines", [joblib_engines, dask_engines])
def test_two_workers_against_one(
    cold: Path, capsys: pytest.CaptureFixture[str], benchmark: Any, engines: Callable[[ExitStack], dict[int, Engine]]
) -> None:
    """Points a second, one worker and two in turn, each on points that nobody has simulated."""
    trace = cold / "product.json"
    hw.save_trace(hw.Trace.from_operators([hw.matmul(m=197, k=192, n=576)], model="product"), trace)
    problem = simulations(trace)
    wall_s, loop_s = {1: 0.0, 2: 0.0}, {1: math.inf, 2: math.inf}
    cpu_s, under_way = {1: 0.0, 2: 0.0}, {1: 0.0, 2: 0.0}
    with ExitStack() as stack:
        found, fresh = engines(stack), iter(problem.chunks)

        def points(count: int) -> None:
            began, some = time.perf_counter(), [next(fresh) for _ in range(POINTS)]
            done = [columns for _, columns in found[count].run(timed, problem, some)]
            wall_s[count] += time.perf_counter() - began
            cpu_s[count] += sum(one["cpu_s"] for one in done) / (ROUNDS * POINTS)
            busy = sum(one["ended"] - one["began"] for one in done)
            under_way[count] += busy / (max(one["ended"] for one in done) - min(one["began"] for one in done)) / ROUNDS

        for count in (1, 2):
            list(found[count].run(timed, problem, [next(fresh)] * count))  # imports are done
        for _ in range(ROUNDS):
            for count in (1, 2):
                points(count)
                loop_s[count] = min(loop_s[count], loops(count) / count)
    benchmark.pedantic(lambda: None, rounds=1)
    worth, possible = (seconds[1] / seconds[2] for seconds in (wall_s, loop_s))
    with capsys.disabled():
        sys.stdout.write(
            f"\n{engines.__name__}: two workers {worth:.2f} times one where two bare loops are {possible:.2f} times one; "
            f"points under way {under_way[1]:.2f} and {under_way[2]:.2f}, each {cpu_s[1]:.2f} and {cpu_s[2]:.2f} s of a processor\n"
        )
    assert under_way[1] < 1.01
    assert under_way[2] > 1.6
    assert cpu_s[2] < 1.3 * cpu_s[1]
