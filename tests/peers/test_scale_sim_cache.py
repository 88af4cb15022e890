"""Bad luck with the SCALE-Sim engine: spoilt files, other versions, shapes on which the package fails, sudden death."""

from __future__ import annotations

import json
import logging
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

import hwmodel as hw
from hwmodel.backends import scale_sim, systolic
from hwmodel.backends.scale_sim import Product
from hwmodel.errors import HwmodelError

pytest.importorskip("scalesim", reason="the SCALE-Sim package is not installed")
pytestmark = pytest.mark.peer

SMALL = [Product(5, 9, 4, 4, 4, "ws"), Product(5, 9, 4, 4, 4, "os"), Product(6, 9, 4, 4, 4, "is")]


def closed_form(p: Product) -> int:
    return int(systolic.compute_cycles(m=p.m, k=p.k, n=p.n, rows=p.rows, cols=p.cols, dataflow=p.dataflow))


def notes(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


def test_a_file_cut_short_is_told_and_made_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (first,) = scale_sim.run(SMALL[:1], folder=tmp_path)
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()
    assert notes(caplog) == [], "a missing result is no news"
    path.write_bytes(whole[: len(whole) // 2])
    assert scale_sim.run(SMALL[:1], folder=tmp_path) == [first]
    assert path.read_bytes() == whole
    (note,) = notes(caplog)
    assert f"{path.name}: cannot be read" in note
    assert "to be made again" in note


@pytest.mark.parametrize(("field", "value"), [("scalesim", "2.0.2"), ("schema", 0)])
def test_another_version_is_told_and_made_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, field: str, value: object
) -> None:
    (first,) = scale_sim.run(SMALL[:1], folder=tmp_path)
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()
    document = json.loads(whole)
    document["key"][field] = value
    document["result"]["compute_cycles"] += 1
    path.write_text(json.dumps(document))
    assert scale_sim.run(SMALL[:1], folder=tmp_path) == [first]
    assert path.read_bytes() == whole
    (note,) = notes(caplog)
    assert f"{field} {value!r} is not" in note
    caplog.clear()
    scale_sim.run(SMALL[:1], folder=tmp_path)
    assert notes(caplog) == []


def test_a_failing_shape_costs_no_other_result(tmp_path: Path) -> None:
    """The package refuses sizes below 1; the largest MAC count runs first and the least last, one process at a time."""
    first, last = Product(-90, -90, 90, 4, 4, "ws"), Product(0, 4, 4, 4, 4, "ws")
    told: list[tuple[int, int]] = []
    with pytest.raises(HwmodelError) as caught:
        scale_sim.run([last, *SMALL, first], folder=tmp_path, workers=1, progress=lambda done, total: told.append((done, total)))
    message = str(caught.value)
    assert "\n" not in message
    assert f"{first}: " in message
    assert f"{last}: " in message
    assert "3 of 5 results are kept" in message
    assert "Error" in message, "the package's own message is shown"
    assert len(list(tmp_path.iterdir())) == 3
    assert told[-1] == (3, 5)
    assert [result.compute_cycles for result in scale_sim.run(SMALL, folder=tmp_path)] == [closed_form(p) for p in SMALL]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dataflow": "xs"}, "'ws', 'os' or 'is', got 'xs'"),
        ({"rows": 0}, "got 0 x 4"),
        ({"cols": 0}, "got 4 x 0"),
        ({"ofmap_kb": 0}, "1 kB"),
    ],
)
def test_impossible_machines_are_refused_before_anything_runs(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Product(**{"m": 4, "k": 4, "n": 4, "rows": 4, "cols": 4, "dataflow": "ws"} | changes)


def start(folder: Path, products: Sequence[Product]) -> subprocess.Popen[str]:
    code = f"from hwmodel.backends.scale_sim import Product, run; run({list(products)!r}, folder={str(folder)!r}, workers=2)"
    return subprocess.Popen([sys.executable, "-c", code], text=True)


@pytest.mark.slow
def test_killed_at_random_moments_it_resumes(tmp_path: Path) -> None:
    """Whatever a kill leaves behind is whole, and is not made again; two killers share the folder."""
    products = [Product(60, 96, width, 16, 16, "ws") for width in range(60, 84)]
    moments = random.Random(4)
    kept: dict[str, bytes] = {}
    for _ in range(6):
        victims = [start(tmp_path, products), start(tmp_path, products[::-1])]
        time.sleep(moments.uniform(0.3, 2.5))
        for victim in victims:
            victim.send_signal(signal.SIGKILL)
            victim.wait()
        now = {path.name: path.read_bytes() for path in tmp_path.glob("*.json")}
        assert kept.items() <= now.items()
        assert all(json.loads(content)["result"]["stall_cycles"] == 0 for content in now.values())
        kept = now
    results = scale_sim.run(products, folder=tmp_path, workers=2)
    assert [result.compute_cycles for result in results] == [closed_form(product) for product in products]


@pytest.mark.slow
def test_whole_deit_tiny_in_a_minute_and_at_once_from_the_cache(tmp_path: Path) -> None:
    """On two cores, below a gigabyte; two processes, the larger of which counts (resident, in KiB on Linux)."""
    trace = hw.trace("deit_tiny_patch16_224")
    seconds = []
    for _ in range(2):
        started = time.perf_counter()
        with scale_sim.settings(folder=tmp_path, workers=2):
            cycles = hw.estimate(trace, device="tpu-v3", mode="scale-sim").cycles
        seconds.append(time.perf_counter() - started)
        assert cycles == 360_342, "published total of a real run"
    assert seconds[0] < 60
    assert seconds[1] < 1
    assert 2 * resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss < 1 << 20
