"""Exported files, rerun by SCALE-Sim's own command line, give the cycles of modes ``systolic`` and ``scale-sim``."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import hwmodel as hw
from hwmodel.backends.scale_sim_export import FILES, Line, export
from hwmodel.cli import main
from hwmodel.errors import HwmodelError, UnknownNameError

pytest.importorskip("scalesim", reason="the SCALE-Sim package is not installed")
pytestmark = pytest.mark.peer

SMALL = {"array_rows": 8, "array_cols": 16}
KEPT = np.array([[1, 0, 1], [0, 0, 0], [1, 1, 0]], dtype=np.bool_)


def tiny_model() -> hw.Trace:
    """A pruned weight of 3 x 3 tiles of 16 x 8 (out x in), one that is gone, a dense one twice, heads, and a softmax."""
    return hw.Trace.from_operators([
        hw.matmul(m=19, k=24, n=44, name="fc1", mask=hw.BlockMask((44, 24), (16, 8), KEPT)),
        hw.matmul(m=19, k=24, n=44, name="gone", mask=hw.BlockMask((44, 24), (16, 8), np.zeros((3, 3), dtype=np.bool_))),
        hw.matmul(m=19, k=30, n=22, name="fc2"),
        hw.matmul(m=19, k=30, n=22, name="fc3"),
        hw.matmul(m=11, k=10, n=11, batch=6, name="scores"),
        hw.softmax(rows=66, cols=11, name="softmax"),
    ])  # fmt: skip


def rerun(folder: Path, *command: str) -> list[int]:
    """Total cycles by layer, as the package's command line reports them."""
    arguments = ["-c", "scale.cfg", "-t", "topology.csv", "-l", "layout.csv", "-i", "gemm", "-p", "out"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path or str(Path.cwd()) for path in sys.path)}
    subprocess.run(
        [sys.executable, *command, *arguments], cwd=folder, env=environment, check=True, capture_output=True, timeout=600
    )
    with (folder / "out" / "hwmodel" / "COMPUTE_REPORT.csv").open(encoding="utf-8") as report:
        return [int(float(row[" Total Cycles"])) for row in csv.DictReader(report)]


def by_row(folder: Path) -> dict[int, int]:
    with (folder / "layers.csv").open(encoding="utf-8") as lines:
        return {int(row["layer_id"]): int(row["cycles_per_run"]) for row in csv.DictReader(lines)}


def total(lines: list[Line], operator: str) -> int:
    return sum(line.runs * line.cycles for line in lines if line.operator == operator)


@pytest.mark.parametrize("dataflow", ["ws", "os", "is"])
def test_rerun_gives_the_same_cycles_layer_by_layer(tmp_path: Path, dataflow: str) -> None:
    settings = SMALL | {"dataflow": dataflow}
    trace = tiny_model()
    lines = export(trace, tmp_path, overrides=settings)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(FILES)
    expected = by_row(tmp_path)
    assert rerun(tmp_path, "-m", "hwmodel.backends.scale_sim") == [expected[row] for row in sorted(expected)]
    priced = hw.estimate(trace, device="tpu-v3", mode="systolic", overrides=settings).frame()["cycles"]
    assert {name: total(lines, name) for name in priced.index} == priced.to_dict()


@pytest.mark.parametrize(("method", "runs", "short"), [("joined", [4], 1), ("columns", [2, 2], 2), ("tiles", [1], 4)])
def test_what_is_left_of_a_pruned_weight(tmp_path: Path, method: str, runs: list[int], short: int) -> None:
    """4 of 9 tiles of p = 2 * 8 + 16 + 19 - 2 cycles, in 2 of 3 columns; one cycle short per layer."""
    lines = [line for line in export(tiny_model(), tmp_path, overrides=SMALL, method=method) if line.operator == "fc1"]
    assert total(lines, "fc1") == 4 * (2 * 8 + 16 + 19 - 2) - short
    assert {line.product.k for line in lines} == {8 * tiles for tiles in runs}
    expected = by_row(tmp_path)
    assert rerun(tmp_path, "run.py") == [expected[row] for row in sorted(expected)]
    assert f"method `{method}`" in (tmp_path / "README.md").read_text()


def test_expected_masks_are_rounded_and_told(tmp_path: Path) -> None:
    mask = hw.ExpectedMask((44, 24), (4, 4), 10)
    tiles = mask.occupied_tiles(16, 8)
    assert tiles != round(tiles)
    (line,) = export(hw.Trace.from_operators([hw.matmul(m=19, k=24, n=44, mask=mask)]), tmp_path, overrides=SMALL)
    assert line.product.k == 8 * round(tiles)
    assert line.kept_tiles == tiles
    assert "masks of 1 operators are only expected" in (tmp_path / "README.md").read_text()


def test_same_input_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        export(tiny_model(), tmp_path / name, overrides=SMALL)
    assert all((tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes() for name in FILES)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"device": "vita"}, "needs a systolic array"),
        ({"method": "rows"}, "unknown method 'rows'"),
        ({"overrides": {"array_rows": 0}}, "array_rows"),
        ({"overrides": {"dataflow": "xs"}}, "'ws', 'os' or 'is'"),
    ],
)
def test_bad_requests_are_one_line_and_write_nothing(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(HwmodelError, match=message) as caught:
        export(tiny_model(), tmp_path, **changes)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_folder_is_not_made(tmp_path: Path) -> None:
    with pytest.raises(HwmodelError, match="create it first"):
        export(tiny_model(), tmp_path / "missing")
    assert not (tmp_path / "missing").exists()
    with pytest.raises(HwmodelError, match="no product is left"):
        export(hw.Trace.from_operators([hw.softmax(rows=8, cols=8)]), tmp_path)
    with pytest.raises(UnknownNameError):
        export(tiny_model(), tmp_path, device="tpu-v99")


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hw.save_trace(tiny_model(), tmp_path / "trace.json")
    (tmp_path / "out").mkdir()
    with pytest.raises(SystemExit) as refused:
        main(["export-scalesim", str(tmp_path / "trace.json"), "-o", str(tmp_path / "missing")])
    assert refused.value.code == 2
    assert "create it first" in capsys.readouterr().err
    settings = [part for field, value in SMALL.items() for part in ("--set", f"{field}={value}")]
    main(["export-scalesim", str(tmp_path / "trace.json"), "-o", str(tmp_path / "out"), "--method", "tiles", *settings])
    assert "6 files written" in capsys.readouterr().out
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(FILES)


@pytest.mark.slow
def test_every_distinct_layer_of_deit_tiny(tmp_path: Path) -> None:
    lines = export(hw.trace("deit_tiny_patch16_224"), tmp_path)
    assert sum(line.runs * line.cycles for line in lines) == 360_342, "published total of a real run"
    expected = by_row(tmp_path)
    assert rerun(tmp_path, "-m", "hwmodel.backends.scale_sim") == [expected[row] for row in sorted(expected)]
    for trace in (tmp_path / "out").rglob("*.csv"):
        if "REPORT" not in trace.name:
            trace.unlink()
