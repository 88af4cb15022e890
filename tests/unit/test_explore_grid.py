"""Grids: every point priced in array form as the API prices it alone, kept in parts, taken up where a run stopped."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from study_examples import LAYERS, bytes_below, document, model_file, study

import hwmodel as hw
from hwmodel.exploration import explore as exploring
from hwmodel.exploration import space
from hwmodel.exploration.dataset import parts_of
from hwmodel.exploration.problem import prepare
from hwmodel.exploration.study import StudyError


@pytest.fixture
def model(tmp_path: Path) -> str:
    return model_file(tmp_path)


def alone(model: str, row: Any) -> hw.Estimate:
    """One point through the public API, without arrays."""
    trace = hw.prune(hw.load_trace(model), {name: {"block": (32, 32), "density": row.density} for name in LAYERS})
    overrides: dict[str, Any] = {"clock_hz": row.clock_hz}
    if row.device == "vita":
        overrides["pe"] = "16x16"
    else:
        own = hw.load_card("tpu-v3").values()["product_hbm_bytes_per_s"]
        overrides |= {"cores": int(row.cores), "product_hbm_bytes_per_s": row.bandwidth * own}
    return hw.estimate(trace, device=row.device, mode=row.mode, overrides=overrides)


def test_a_grid_equals_the_api_point_by_point_to_the_last_bit(model: str) -> None:
    frame = hw.explore(study(model)).frame()
    assert len(frame) == 5 * 3 + 5 * 2 * 3 * 2  # vita has neither cores nor HBM
    for row in frame.itertuples():
        one = alone(model, row)
        assert (row.latency_s, row.energy_j, row.cycles) == (one.latency_s, one.energy_j, one.cycles)
        assert (row.dram_bytes, row.executed_macs, row.kept_macs) == (one.dram_bytes, one.executed_macs, one.trace.kept_macs)
        assert row.average_power_w == one.average_power_w
        assert row.energy_delay_js == one.energy_j * one.latency_s
        assert row.images_per_s_per_w == 1 / one.energy_j
        assert (row.latency_fidelity, row.batch, row.dtype) == ("assumed", 1, one.dtype)


def test_points_are_numbered_and_distinct(model: str) -> None:
    frame = hw.explore(study(model)).frame()
    assert frame.point.tolist() == list(range(75))
    knobs = frame[["device", "mode", "clock_hz", "cores", "density", "bandwidth"]]
    assert not knobs.duplicated().any()
    assert set(frame.clock_hz) == {5e8, 8.75e8, 1.25e9, 1.625e9, 2e9}


def test_a_field_that_a_card_lacks_is_missing_there(model: str) -> None:
    frame = hw.explore(study(model)).frame()
    assert frame.groupby("device", observed=True).bandwidth.count().to_dict() == {"vita": 0, "tpu-v3": 60}
    assert frame.cores.dtype == "float64"  # whole numbers with missing ones, as pandas has them


def test_numbers_that_are_choices_are_priced_one_by_one(model: str) -> None:
    """``cores`` cannot be an array; the backend says so, and nobody lists it."""
    case = prepare(study(model)).cases[1]
    assert [axis.title for axis in case.slow] == ["density", "cores"]
    assert [axis.title for axis in case.fast] == ["clock_hz", "bandwidth"]


def test_slices_and_chunks_change_nothing(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = hw.explore(study(model)).table
    monkeypatch.setattr("hwmodel.exploration.evaluate._CHUNK_CELLS", 3 * 4)  # three designs of four operators
    monkeypatch.setattr(space, "POINTS_PER_CHUNK", 4)
    small = hw.explore(study(model), tmp_path / "small")
    assert len(parts_of(tmp_path / "small")) > 15
    assert small.table.drop_columns(["point"]).to_pylist() == whole.drop_columns(["point"]).to_pylist()
    assert small.table["point"].to_pylist() == whole["point"].to_pylist()


def test_recipe_knobs_and_choices_make_other_traces(model: str) -> None:
    varied = study(
        model,
        devices=[{"name": "a100-40gb", "modes": ["kernel", "compiled"]}],
        vary=[{"knob": "dtype", "values": ["fp16", "fp32"]}, {"knob": "block", "values": [[32, 32], "64x64"]}],
        pruning=[{"density": 0.1, "block": "16x16", "layers": ["fc1"]}],
    )
    frame = hw.explore(varied).frame()
    assert sorted(set(frame.block)) == ["32x32", "64x64"]
    for row in frame.itertuples():
        sides = tuple(int(side) for side in row.block.split("x"))
        trace = hw.prune(hw.load_trace(model), {"fc1": {"block": sides, "density": 0.1}})
        assert row.latency_s == hw.estimate(trace, device="a100-40gb", mode=row.mode, dtype=row.dtype).latency_s


def test_groups_of_layers_have_knobs_of_their_own(model: str) -> None:
    groups = [{"name": "a", "block": "32x32", "layers": "qkv"}, {"name": "m", "block": "32x32", "density": 0.5, "layers": "fc1"}]
    vary = [{"knob": "a.density", "values": [0.5, 1.0]}]
    frame = hw.explore(study(model, pruning=groups, vary=vary, devices=[{"name": "tpu-v3"}])).frame()
    assert frame["a.density"].tolist() == [0.5, 1.0]
    macs = 197 * 192 * np.array([576 * 0.5 + 768 * 0.5, 576 + 768 * 0.5])
    assert frame.kept_macs.tolist() == macs.tolist()


# --- constraints, proxies, accuracy ------------------------------------------------------------------------------------


def test_proxies_and_card_fields_are_columns_and_constraints_decide(model: str) -> None:
    varied = study(
        model,
        proxies=[{"name": "rate", "terms": [{"of": ["card.clock_hz", "card.cores"]}, {"weight": 2.0, "of": ["bandwidth"]}]}],
        constraints=[{"quantity": "rate", "max": 3e9}, {"quantity": "card.clock_hz", "min": 8e8}],
        objectives=["latency_s", {"quantity": "card.clock_hz", "goal": "min"}],
    )
    frame = hw.explore(varied).frame()
    tpu = frame[frame.device == "tpu-v3"]
    assert tpu.rate.tolist() == (tpu.clock_hz * tpu.cores + 2.0 * tpu.bandwidth).tolist()
    assert (tpu.feasible == ((tpu.rate <= 3e9) & (tpu.clock_hz >= 8e8))).all()
    assert not frame[frame.device == "vita"].feasible.any()  # it has no cores: the proxy is missing, and not met
    front = hw.explore(varied).front()
    assert front.feasible.all()
    assert set(front.columns) - set(frame.columns) == {"knee"}


def test_constraints_that_leave_nothing_are_told_after_all_points_are_kept(model: str, tmp_path: Path) -> None:
    slow = {"quantity": "latency_s", "max": 1e-12}
    with pytest.raises(StudyError, match=r"leave none of 75 points: latency_s <= 1e-12 \(met by 0 of 75\)"):
        hw.explore(study(model, constraints=[slow]), tmp_path / "out")
    assert len(hw.load_results(tmp_path / "out")) == 75


def test_the_smallest_set_of_constraints_that_leaves_nothing_is_named(model: str) -> None:
    both = [{"quantity": "bandwidth", "min": 0.1}, {"quantity": "density", "max": 0.3}, {"quantity": "kept_share", "min": 0.9}]
    with pytest.raises(StudyError, match=r"density <= 0.3 \(met by 25 of 75\) together with 0.9 <= kept_share \(met by 25 of 75\)"):
        hw.explore(study(model, constraints=both))


def test_accuracies_come_from_the_users_file(model: str, tmp_path: Path) -> None:
    path = tmp_path / "accuracy.csv"
    path.write_text("density,top1\n0.25,70.5\n0.50,78\n1,80\n")
    known = {"file": str(path), "column": "top1"}
    found = hw.explore(study(model, accuracy=known, objectives=["latency_s", "accuracy"]))
    assert found.frame().groupby("density").accuracy.unique().map(list).to_dict() == {0.25: [70.5], 0.5: [78.0], 1.0: [80.0]}
    assert set(found.front().density) == {0.25, 0.5, 1.0}
    path.write_text("density,top1\n0.24,1\n0.25,70.5\n0.50,78\n1,80\n")
    assert set(hw.explore(study(model, accuracy=known)).frame().accuracy) == {70.5, 78.0, 80.0}
    path.write_text("density,top1\n0.25,70.5\n")
    with pytest.raises(StudyError, match=r"accuracy.csv: no row for density = 0.5; add one"):
        hw.explore(study(model, accuracy=known))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("density,acc\n1,80\n", "no column 'top1', found density, acc"),
        ("depth,top1\n1,80\n", "found depth"),
        ("density,top1\n1,high\n", "line 2: top1 is 'high', expected a number"),
        ("density,top1\n1,80\n1.0,81\n", "line 3: a second row for 1"),
    ],
)
def test_a_wrong_accuracy_file_is_told(model: str, tmp_path: Path, text: str, told: str) -> None:
    path = tmp_path / "accuracy.csv"
    path.write_text(text)
    with pytest.raises(StudyError, match=told):
        prepare(study(model, accuracy={"file": str(path), "column": "top1"}))


# --- on disk ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(space, "POINTS_PER_CHUNK", 5)


@pytest.mark.usefixtures("small_chunks")
def test_a_run_goes_on_with_what_is_missing(model: str, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    hw.explore(study(model), first)
    hw.explore(study(model), second)
    whole = bytes_below(first)
    assert whole == bytes_below(second)
    parts = parts_of(second)
    assert len(parts) == 3 + 6 * 2
    parts[3].unlink()
    parts[5].write_bytes(parts[5].read_bytes()[:-9])  # cut short
    parts[7].write_bytes(parts[8].read_bytes()[:200])
    hw.explore(study(model, name="another"), tmp_path / "another")
    parts[9].write_bytes(parts_of(tmp_path / "another")[9].read_bytes())
    (second / "points" / ".part-000003.parquet.77.part").write_bytes(b"half")
    done: list[tuple[int, int]] = []
    hw.explore(study(model), second, progress=lambda *pair: done.append(pair))
    assert done == [(55, 75), (60, 75), (65, 75), (70, 75), (75, 75)]
    assert bytes_below(second) == whole
    assert pd.read_parquet(second / "points", engine="pyarrow", use_threads=False).shape[0] == 75


@pytest.mark.usefixtures("small_chunks")
def test_a_full_disk_is_one_clear_error_and_what_was_done_is_kept(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, count = Path.write_bytes, iter(range(100))

    def fills_up(path: Path, data: bytes) -> int:
        if next(count) > 4:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        return write(path, data)

    with monkeypatch.context() as full:
        full.setattr(Path, "write_bytes", fills_up)
        with pytest.raises(hw.HwmodelError, match=r"part-00000\d.parquet: cannot be written \(No space left on device\).*are kept"):
            hw.explore(study(model), tmp_path / "out")
    assert len(parts_of(tmp_path / "out")) == 4
    hw.explore(study(model), tmp_path / "out")
    hw.explore(study(model), tmp_path / "other")
    assert bytes_below(tmp_path / "out") == bytes_below(tmp_path / "other")


def test_a_folder_of_another_study_is_refused(model: str, tmp_path: Path) -> None:
    hw.explore(study(model), tmp_path / "out")
    before = bytes_below(tmp_path / "out")
    for changes, told in [
        ({"name": "another"}, "it holds study 'example'"),
        ({"dtype": "bf16"}, "study changed since"),
        ({"vary": [], "devices": [{"name": "vita", "set": {"pe": "16x16"}}]}, "study, cards, models changed since"),
    ]:
        with pytest.raises(StudyError, match=f"out: belongs to another study: {told}"):
            hw.explore(study(model, **changes), tmp_path / "out")
    assert bytes_below(tmp_path / "out") == before
    hw.explore(study(model, title="another title", limit=100), tmp_path / "out")


def test_a_changed_model_or_card_makes_another_study(model: str, tmp_path: Path) -> None:
    card = tmp_path / "my.toml"
    text = (Path(hw.__file__).parent.parent / "simulators" / "vita" / "card.toml").read_text(encoding="utf-8")
    card.write_text(text, encoding="utf-8")
    mine = study(model, devices=[{"name": str(card), "set": {"pe": "16x16"}}], vary=[])
    hw.explore(mine, tmp_path / "out")
    card.write_text(text.replace("value = 770", "value = 700"), encoding="utf-8")
    with pytest.raises(StudyError, match="belongs to another study: cards changed since"):
        hw.explore(mine, tmp_path / "out")
    card.write_text(text, encoding="utf-8")
    hw.save_trace(hw.Trace.from_operators([hw.matmul(m=1, k=32, n=32, name="qkv"), hw.matmul(m=1, k=32, n=32, name="fc1")]), model)
    with pytest.raises(StudyError, match="belongs to another study: models changed since"):
        hw.explore(mine, tmp_path / "out")


def test_folders_that_cannot_be_used_are_refused(model: str, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("")
    (tmp_path / "file").write_text("")
    for folder, told in [
        ("full", "not empty .it holds thesis.tex"),
        ("file", "file: cannot be made"),
        ("none/out", "folder '.*none' does not exist; create it first"),
    ]:
        with pytest.raises(hw.HwmodelError, match=told):
            hw.explore(study(model), tmp_path / folder)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "full", "tiny.json"]
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["thesis.tex"]


def test_two_runs_do_not_share_a_folder(model: str, tmp_path: Path) -> None:
    def meanwhile(done: int, total: int) -> None:
        if done == 0:
            with pytest.raises(StudyError, match="another run is writing its results here"):
                hw.explore(study(model), tmp_path / "out")

    hw.explore(study(model), tmp_path / "out", progress=meanwhile)


def test_more_points_than_the_limit_need_a_yes(model: str, tmp_path: Path) -> None:
    with pytest.raises(
        StudyError, match=r"75 points \(2 cases; 5 clock_hz x 2 cores x 3 density x 2 bandwidth\).*limit = 74; pass --yes"
    ):
        hw.explore(study(model, limit=74), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert len(hw.explore(study(model, limit=74), yes=True)) == 75


# --- killed -----------------------------------------------------------------------------------------------------------

RUN = """
import sys
from hwmodel.exploration import space
space.POINTS_PER_CHUNK = 5
import hwmodel as hw
from hwmodel.exploration.study import Study
hw.explore(Study.model_validate_json(sys.argv[1]), sys.argv[2], workers=int(sys.argv[3]) or None)
"""


def killed_and_resumed(model: str, folder: Path, times: int, workers: int = 0) -> dict[str, bytes]:
    """Kill a run ``times`` times, each after one more part was written, at a moment that differs from kill to kill."""
    varied = study(model, vary=[*document(model)["vary"], {"knob": "card.mxu_efficiency", "from": 0.5, "to": 0.9, "count": 16}])
    command = [sys.executable, "-c", RUN, varied.model_dump_json(by_alias=True), str(folder), str(workers)]
    moments = np.random.default_rng(times).uniform(0.0, 0.03, times)
    for number, moment in enumerate(moments.tolist()):
        process = subprocess.Popen(command, start_new_session=True)
        while process.poll() is None and len(list(folder.glob("points/part-*"))) <= number:
            time.sleep(0.002)
        time.sleep(moment)
        assert process.poll() is None, "the run ended before it could be killed"
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    subprocess.run(command, check=True)
    undisturbed = folder.with_name("undisturbed")
    hw.explore(varied, undisturbed)
    frame = hw.load_results(folder).frame(["point"])
    assert frame.point.tolist() == list(range(15 + 60 * 16))
    return bytes_below(undisturbed)


@pytest.mark.usefixtures("small_chunks")
def test_a_killed_grid_ends_with_the_same_bytes(model: str, tmp_path: Path) -> None:
    expected = killed_and_resumed(model, tmp_path / "killed", times=1)
    assert bytes_below(tmp_path / "killed") == expected


@pytest.mark.slow
@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("workers", [0, 2])
def test_a_grid_killed_twenty_times_ends_with_the_same_bytes(model: str, tmp_path: Path, workers: int) -> None:
    expected = killed_and_resumed(model, tmp_path / "killed", times=20, workers=workers)
    assert bytes_below(tmp_path / "killed") == expected


def test_an_interrupt_leaves_whole_parts(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(space, "POINTS_PER_CHUNK", 5)

    def stop(done: int, total: int) -> None:
        if done >= 20:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        exploring.explore(study(model), tmp_path / "out", progress=stop)
    assert len(hw.load_results(tmp_path / "out")) == 20
    assert not list((tmp_path / "out" / "points").glob(".*"))
