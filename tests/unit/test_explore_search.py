"""Searches: seeded, resumable, the same on several workers, every finished trial kept."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from study_examples import document, model_file

import hwmodel as hw
from hwmodel.exploration.pricing import price
from hwmodel.exploration.results import Results
from hwmodel.exploration.study import Search, Study, StudyError

pytest.importorskip("optuna")

SPACE = [
    {"knob": "card.clock_hz", "from": 5e8, "to": 2e9},
    {"knob": "card.dram_bytes_per_s", "from": 1e9, "to": 1e11, "spacing": "log"},
    {"knob": "card.buffer_bytes", "from": 1e4, "to": 1e6, "whole": True},
    {"knob": "density", "values": [0.25, 0.5, 1.0]},
]


@pytest.fixture
def example(tmp_path: Path) -> dict[str, Any]:
    return document(
        model_file(tmp_path),
        method="search",
        devices=[{"name": "vita", "set": {"pe": "16x16"}}],
        vary=SPACE,
        objectives=["latency_s", "energy_j", "kept_share"],
        search={"trials": 24, "batch": 8},
    )


def search(example: dict[str, Any], folder: Path | None = None, *, workers: int | None = None, **changes: Any) -> Results:
    plan = {**example["search"], **changes}
    return hw.explore(Study.model_validate({**example, "search": plan}), folder, workers=workers)


def test_every_trial_is_a_row_that_the_api_confirms(example: dict[str, Any], tmp_path: Path) -> None:
    frame = search(example).frame()
    assert frame.point.tolist() == list(range(24))
    assert frame.clock_hz.between(5e8, 2e9).all()
    assert frame.clock_hz.head(8).nunique() == 8  # later generations mix the values of earlier ones
    for row in frame.head(5).itertuples():
        trace = hw.prune(
            hw.load_trace(example["models"][0]["name"]),
            {name: {"block": (32, 32), "density": row.density} for name in ("qkv", "fc1")},
        )
        fields = {"pe": "16x16"} | {name: getattr(row, name) for name in ("clock_hz", "dram_bytes_per_s", "buffer_bytes")}
        one = hw.estimate(trace, device="vita", overrides=fields)
        assert (row.latency_s, row.energy_j) == (one.latency_s, one.energy_j)


@pytest.mark.parametrize("sampler", ["nsga2", "tpe"])
def test_a_seed_decides_the_trials(example: dict[str, Any], sampler: str) -> None:
    first, again = (search(example, sampler=sampler, seed=3).table for _ in range(2))
    assert first.equals(again)
    assert not first.equals(search(example, sampler=sampler, seed=4).table)


def test_workers_change_nothing(example: dict[str, Any]) -> None:
    assert search(example, workers=2).table.equals(search(example).table)


def test_a_search_goes_on_and_keeps_every_finished_trial(
    example: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = iter(range(100))

    def dies(*given: Any) -> Any:
        if next(calls) == 4:
            raise KeyboardInterrupt
        return price(*given)

    with monkeypatch.context() as broken:
        broken.setattr("hwmodel.exploration.search.price", dies)
        with pytest.raises(KeyboardInterrupt):
            search(example, tmp_path / "out")
    import optuna

    storage = f"sqlite:///{tmp_path / 'out' / 'search.db'}"
    name = optuna.get_all_study_names(storage)[0]
    kept = [trial.params for trial in optuna.load_study(study_name=name, storage=storage).get_trials()]
    assert 8 < len(kept) < 16  # one whole batch, and what was done of the second
    found = search(example, tmp_path / "out").frame()
    assert len(found) == 24
    assert {params["clock_hz"] for params in kept} == set(found.clock_hz[: len(kept)])
    more = search(example, tmp_path / "out", trials=30).frame()
    assert more.clock_hz.tolist()[:24] == found.clock_hz.tolist()
    assert len(more) == len(hw.load_results(tmp_path / "out")) == 30


RUN = """
import sys
import hwmodel as hw
from hwmodel.exploration.study import Study
hw.explore(Study.model_validate_json(sys.argv[1]), sys.argv[2])
"""


@pytest.mark.slow
def test_a_search_that_is_killed_keeps_every_finished_trial(example: dict[str, Any], tmp_path: Path) -> None:
    """SIGKILL while a batch is being stored, four times."""
    plan = Study.model_validate({**example, "search": {"trials": 2000, "batch": 20}})
    folder, kept = tmp_path / "out", []
    command = [sys.executable, "-c", RUN, plan.model_dump_json(by_alias=True), str(folder)]
    for _ in range(4):
        process = subprocess.Popen(command)
        while process.poll() is None and len(stored_clocks(folder)) < len(kept) + 30:
            time.sleep(0.05)
        assert process.poll() is None, "the run ended before it could be killed"
        process.kill()
        process.wait()
        now = stored_clocks(folder)
        assert now[: len(kept)] == kept
        kept = now
    found = hw.explore(plan.model_copy(update={"search": Search(trials=len(kept) + 10, batch=20)}), folder).frame()
    assert found.clock_hz.tolist()[: len(kept)] == kept
    assert found.point.tolist() == list(range(len(kept) + 10))
    assert found.clock_hz.nunique() > 40


def stored_clocks(folder: Path) -> list[float]:
    """A knob of every trial in the storage, in the order they were asked for; none before the first is there."""
    if not (folder / "search.db").exists():
        return []
    with closing(sqlite3.connect(folder / "search.db")) as storage:
        try:
            rows = storage.execute("select key, value_json, trial_id from trial_user_attributes").fetchall()
        except sqlite3.OperationalError:  # no tables yet, or locked
            return []
    whole = {(trial, key): json.loads(value) for key, value, trial in rows}
    trials = sorted({trial for trial, key in whole if key == "row"}, key=lambda trial: whole.get((trial, "order"), [0, 0]))
    return [json.loads(whole[trial, "row"])["clock_hz"] for trial in trials]


def test_machines_that_share_a_storage_share_trials(example: dict[str, Any], tmp_path: Path) -> None:
    shared = f"sqlite:///{tmp_path / 'shared.db'}"
    first = search(example, tmp_path / "one", storage=shared, trials=16)
    second = search(example, tmp_path / "two", storage=shared, trials=24)
    assert (len(first), len(second)) == (16, 24)
    assert set(first.frame().clock_hz) < set(second.frame().clock_hz)


def test_constraints_steer_the_search(example: dict[str, Any]) -> None:
    limit = [{"quantity": "average_power_w", "max": 0.25}]
    free = search(example, trials=120, batch=20).frame().average_power_w
    found = search({**example, "constraints": limit}, trials=120, batch=20)
    late = found.frame().average_power_w.iloc[-60:]
    assert (late <= 0.25).mean() > (free.iloc[-60:] <= 0.25).mean()
    assert (found.front().average_power_w <= 0.25).all()


def test_a_search_finds_what_a_grid_finds(example: dict[str, Any]) -> None:
    """A higher clock and bandwidth never cost time here: the fastest trial approaches the corner of the space."""
    found = search({**example, "objectives": ["latency_s"]}, trials=200, batch=20, sampler="nsga2").frame()
    corner = {"pe": "16x16", "clock_hz": 2e9, "dram_bytes_per_s": 1e11, "buffer_bytes": 1e6}
    trace = hw.prune(
        hw.load_trace(example["models"][0]["name"]), {name: {"block": (32, 32), "density": 0.25} for name in ("qkv", "fc1")}
    )
    best = hw.estimate(trace, device="vita", overrides=corner).latency_s
    assert best <= found.latency_s.min() < 1.1 * best
    assert found.latency_s.iloc[-50:].mean() < found.latency_s.iloc[:50].mean()
    assert np.isfinite(found.latency_s).all()


def test_a_storage_that_cannot_be_opened_is_told(example: dict[str, Any], tmp_path: Path) -> None:
    for url in ("nonsense", f"sqlite:///{tmp_path}/none/search.db"):
        with pytest.raises(StudyError, match=r"search.storage: .*: cannot be opened \(.*\); expected a URL"):
            search(example, tmp_path / "out", storage=url)
