"""The closed form, the adapter and its cache against the real SCALE-Sim package."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hwmodel.backends import scale_sim, systolic
from hwmodel.backends.base import Options, Workload
from hwmodel.backends.cards import read_card
from hwmodel.backends.scale_sim import Product
from hwmodel.content import content_folder
from hwmodel.errors import HwmodelError
from hwmodel.ir.masks import BlockMask, ExpectedMask
from hwmodel.ir.operators import matmul, softmax
from hwmodel.ir.trace import Trace

pytest.importorskip("scalesim", reason="the SCALE-Sim package is not installed")
pytestmark = pytest.mark.peer

DATAFLOWS = ("ws", "os", "is")
DEIT_TINY = {  # (m, k, n) at 197 tokens, width 192, 3 heads
    "patch_embed": (196, 768, 192), "qkv": (197, 192, 576), "scores": (197, 64, 197), "context": (197, 197, 64),
    "proj": (197, 192, 192), "fc1": (197, 192, 768), "fc2": (197, 768, 192), "head": (1, 192, 1000),
}  # fmt: skip
EDGES = [*itertools.product((1, 7, 8, 9), repeat=3), (1, 40, 1), (40, 1, 1), (1, 1, 40), (17, 23, 31), (5, 64, 3)]
ARRAYS = [(8, 8), (4, 16), (16, 4), (1, 1), (1, 5), (5, 1)]


def closed_form(product: Product, **extra: Any) -> int:
    p = product
    return int(systolic.compute_cycles(m=p.m, k=p.k, n=p.n, rows=p.rows, cols=p.cols, dataflow=p.dataflow, **extra))


@pytest.mark.parametrize("dataflow", DATAFLOWS)
@pytest.mark.parametrize("array", ARRAYS)
def test_closed_form_equals_the_demand_of_every_edge_shape(array: tuple[int, int], dataflow: str) -> None:
    products = [Product(*shape, *array, dataflow) for shape in EDGES]
    assert [closed_form(product) for product in products] == [scale_sim.demand_cycles(product) for product in products]


@pytest.mark.parametrize("dataflow", DATAFLOWS)
@pytest.mark.parametrize("shape", DEIT_TINY.values(), ids=DEIT_TINY)
def test_closed_form_equals_every_deit_tiny_product(shape: tuple[int, int, int], dataflow: str) -> None:
    product = Product(*shape, 128, 128, dataflow)
    assert closed_form(product) == scale_sim.demand_cycles(product)


@pytest.mark.parametrize("dataflow", DATAFLOWS)
@pytest.mark.parametrize("shape", [(1, 1, 1), (20, 40, 30), (9, 8, 7), (33, 16, 17), (1, 24, 24)])
@pytest.mark.parametrize("array", [(8, 8), (4, 16)])
def test_whole_simulation_agrees_in_every_column(shape: tuple[int, int, int], array: tuple[int, int], dataflow: str) -> None:
    product = Product(*shape, *array, dataflow)
    layer = scale_sim._layer(product)
    layer.run()
    _, cycles, stalls, overall, mapping, compute = layer.get_compute_report_items()
    detail = layer.get_detail_report_items()
    arguments = {**dict(zip("mkn", shape, strict=True)), "rows": array[0], "cols": array[1], "dataflow": dataflow}
    assert (cycles, stalls) == (closed_form(product), 0)
    assert 100 * systolic.overall_utilisation(**arguments) == pytest.approx(overall, rel=1e-12)
    assert 100 * systolic.mapping_efficiency(**arguments) == pytest.approx(mapping, rel=1e-12)
    assert 100 * systolic.compute_utilisation(**arguments) == pytest.approx(compute, rel=1e-12)
    assert [int(count) for count in systolic.access_counts(**arguments)] == [int(count) for count in detail[2::3]]


@pytest.mark.parametrize("dataflow", DATAFLOWS)
def test_simulate_reports_what_the_package_reports(dataflow: str) -> None:
    product = Product(20, 40, 30, 8, 8, dataflow)
    result = scale_sim.simulate(product)
    words = systolic.access_counts(m=20, k=40, n=30, rows=8, cols=8, dataflow=dataflow)
    assert result == scale_sim.Result(closed_form(product), 0, *(int(count) for count in words))


def test_one_multiplier_on_one_product_does_not_divide_by_zero() -> None:
    """os on a 1x1 array with m = k = n = 1: R + C + K - 2 - 1 = 0 cycles, where the package's own report divides by zero."""
    assert (
        scale_sim.simulate(Product(1, 1, 1, 1, 1, "os")).compute_cycles
        == closed_form(Product(1, 1, 1, 1, 1, "os"))
        == 1 + 1 + 1 - 2 - 1
    )


@pytest.mark.slow
@pytest.mark.parametrize("dataflow", DATAFLOWS)
@pytest.mark.parametrize("shape", DEIT_TINY.values(), ids=DEIT_TINY)
def test_whole_simulation_of_every_deit_tiny_product(shape: tuple[int, int, int], dataflow: str) -> None:
    product = Product(*shape, 128, 128, dataflow)
    result = scale_sim.simulate(product)
    assert (result.compute_cycles, result.stall_cycles) == (closed_form(product), 0)


def skipping_folds(product: Product, kept: np.ndarray[Any, np.dtype[np.bool_]]) -> int:
    """The package with the folds of empty weight tiles taken out of its demand: one layer, the tiles where they lie."""
    layer = scale_sim._layer(product)
    base = type(layer.compute_system)

    class Skipping(base):  # type: ignore[misc, valid-type]
        def get_demand_matrices(self) -> tuple[Any, ...]:
            matrices = super().get_demand_matrices()
            per_fold = len(matrices[0]) // kept.size
            alive = np.repeat(kept.ravel(), per_fold)  # folds lie column tile by column tile, as kept[(out, in)] does
            return tuple(matrix[alive] for matrix in matrices)

    layer.compute_system = Skipping()
    layer.run()
    return int(layer.get_compute_report_items()[1])


@pytest.mark.parametrize("count", [1, 2, 5, 11, 12])
def test_kept_tiles_cost_k_p_minus_one_wherever_they_lie(count: int) -> None:
    """3 x 4 tiles of 8 x 8; p = 2 * 8 + 8 + m - 2. Whole tiles, ragged ones too, in one layer of the package."""
    product = Product(19, 30, 22, 8, 8, "ws")  # ceil(22 / 8) = 3 column tiles, ceil(30 / 8) = 4 row tiles
    kept = np.zeros(12, dtype=np.bool_)
    kept[np.random.default_rng(count).permutation(12)[:count]] = True
    mask = BlockMask((22, 30), (8, 8), kept.reshape(3, 4))
    assert mask.occupied_tiles(8, 8) == count
    expected = count * (2 * 8 + 8 + 19 - 2) - 1
    assert closed_form(product, occupied_tiles=mask.occupied_tiles(8, 8)) == expected
    assert skipping_folds(product, mask.kept) == expected
    left = scale_sim.simulate(scale_sim._left(product, count))
    assert left.compute_cycles == expected


def test_one_run_per_kept_tile_restarts_cold() -> None:
    """Every kept tile as a layer of its own is one cycle shorter each: k * (p - 1), the other honest reading."""
    one = scale_sim.simulate(Product(19, 8, 8, 8, 8, "ws")).compute_cycles
    assert 5 * one == 5 * (2 * 8 + 8 + 19 - 2) - 5 == closed_form(Product(19, 30, 22, 8, 8, "ws"), occupied_tiles=5) + 1 - 5


# --- the cache ---------------------------------------------------------------------------------------------------

SMALL = [Product(5, 9, 4, 4, 4, "ws"), Product(5, 9, 4, 4, 4, "os"), Product(6, 9, 4, 4, 4, "is")]


def no_child(*_: Any) -> Any:
    raise AssertionError("a simulation was started")


def test_second_call_runs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[int, int]] = []
    first = scale_sim.run([*SMALL, SMALL[0]], folder=tmp_path, workers=2, progress=lambda done, total: told.append((done, total)))
    assert told == [(0, 3), (1, 3), (2, 3), (3, 3)]
    assert first[0] == first[3]
    assert [result.compute_cycles for result in first[:3]] == [closed_form(product) for product in SMALL]
    monkeypatch.setattr(scale_sim, "_child", no_child)
    assert scale_sim.run([*SMALL, SMALL[0]], folder=tmp_path) == first
    assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"key": {}, "result": {}}', b"\xff\xfe", b"null"])
def test_broken_files_are_run_again(tmp_path: Path, content: bytes) -> None:
    (first,) = scale_sim.run(SMALL[:1], folder=tmp_path)
    (path,) = tmp_path.iterdir()
    good = path.read_bytes()
    path.write_bytes(content)
    assert scale_sim.run(SMALL[:1], folder=tmp_path) == [first]
    assert path.read_bytes() == good


def test_another_result_under_the_name_is_run_again(tmp_path: Path) -> None:
    (first,) = scale_sim.run(SMALL[:1], folder=tmp_path)
    (path,) = tmp_path.iterdir()
    document = json.loads(path.read_text())
    document["key"]["m"] += 1
    document["result"]["compute_cycles"] += 1
    path.write_text(json.dumps(document))
    assert scale_sim.run(SMALL[:1], folder=tmp_path) == [first]


class EnoughError(Exception):
    pass


def test_interrupted_run_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop_after_one(done: int, total: int) -> None:
        if done == 1:
            raise EnoughError

    with pytest.raises(EnoughError):
        scale_sim.run(SMALL, folder=tmp_path, workers=1, progress=stop_after_one)
    assert len(list(tmp_path.glob("*.json"))) == 1
    started: list[int] = []
    child = scale_sim._child
    monkeypatch.setattr(scale_sim, "_child", lambda: (started.append(1), child())[1])
    scale_sim.run(SMALL, folder=tmp_path, workers=1)
    assert len(started) == 2


def test_interrupt_ends_what_still_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop_after_one(done: int, total: int) -> None:
        if done == 1:
            raise EnoughError

    started: list[subprocess.Popen[str]] = []
    child = scale_sim._child
    monkeypatch.setattr(scale_sim, "_child", lambda: (started.append(child()), started[-1])[1])
    long = Product(197, 768, 768, 64, 64, "ws")  # seconds; the small one ends first
    with pytest.raises(EnoughError):
        scale_sim.run([long, SMALL[0]], folder=tmp_path, workers=2, progress=stop_after_one)
    assert sorted(process.returncode for process in started) == [-9, 0]


def script(folder: Path, products: Sequence[Product]) -> subprocess.Popen[str]:
    code = f"""
from hwmodel.backends.scale_sim import Product, run
for result in run({list(products)!r}, folder={str(folder)!r}, workers=1):
    print(result)
"""
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_killed_after_the_first_result_resumes(tmp_path: Path) -> None:
    slow = Product(197, 256, 256, 32, 32, "ws")  # about a second; smaller ones run after it
    killed = script(tmp_path, [slow, *(Product(150, 200, width, 32, 32, "ws") for width in range(100, 130))])
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("*.json")) and time.monotonic() < deadline:
        time.sleep(0.02)
    killed.kill()
    killed.communicate()
    done = {path.name: path.read_bytes() for path in tmp_path.glob("*.json")}
    assert 1 <= len(done) < 31
    assert scale_sim.run([slow], folder=tmp_path)[0].compute_cycles == closed_form(slow)
    assert done.items() <= {path.name: path.read_bytes() for path in tmp_path.glob("*.json")}.items()


def test_two_processes_at_once(tmp_path: Path) -> None:
    both = [script(tmp_path, SMALL), script(tmp_path, SMALL)]
    answers = [process.communicate(timeout=120) for process in both]
    assert [process.returncode for process in both] == [0, 0], answers
    assert answers[0] == answers[1]
    assert answers[0][0].count("\n") == len(SMALL), "nothing but the results is printed"
    assert len(list(tmp_path.iterdir())) == 3, "no file is left half written"


def test_cache_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("HWMODEL_CACHE_DIR", raising=False)
    assert scale_sim.cache_folder() == tmp_path / "hwmodel" / "scale-sim"
    monkeypatch.setenv("HWMODEL_CACHE_DIR", str(tmp_path / "mine"))
    assert scale_sim.cache_folder() == tmp_path / "mine"
    assert not (tmp_path / "mine").exists()


def test_unusable_cache_folder_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(HwmodelError, match="HWMODEL_CACHE_DIR") as caught:
        scale_sim.run(SMALL[:1], folder=tmp_path / "file" / "below")
    assert "\n" not in str(caught.value)


def test_missing_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def missing(_: str) -> str:
        raise PackageNotFoundError

    monkeypatch.setattr(scale_sim, "version", missing)
    with pytest.raises(HwmodelError, match="pip install") as caught:
        scale_sim.run(SMALL, folder=tmp_path)
    assert "\n" not in str(caught.value)
    monkeypatch.setattr(scale_sim, "version", lambda _: "2.0.2")
    with pytest.raises(HwmodelError, match=r"found 2\.0\.2"):
        scale_sim.run(SMALL, folder=tmp_path)


def test_failure_of_the_package_names_the_product(tmp_path: Path) -> None:
    with pytest.raises(HwmodelError, match=r"Product\(m=0"):
        scale_sim.run([Product(0, 4, 4, 4, 4, "ws")], folder=tmp_path)


def test_importing_the_adapter_does_not_import_the_package() -> None:
    code = "import sys, hwmodel.backends.systolic, hwmodel.backends.scale_sim; print('scalesim' in sys.modules)"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment).stdout
        == "False\n"
    )


# --- the mode of the backend --------------------------------------------------------------------------------------


@pytest.mark.parametrize("dataflow", DATAFLOWS)
def test_mode_scale_sim_equals_mode_systolic(tmp_path: Path, dataflow: str, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = np.zeros((3, 3), dtype=np.bool_)
    kept[0, 1] = kept[2] = True
    trace = Trace.from_operators([
        matmul(m=19, k=24, n=24, mask=BlockMask((24, 24), (8, 8), kept)),
        matmul(m=19, k=24, n=24, name="expected", mask=ExpectedMask((24, 24), (4, 4), 5)),
        matmul(m=19, k=24, n=24, name="nothing left", mask=ExpectedMask((24, 24), (4, 4), 0)),
        matmul(m=11, k=10, n=9, batch=6, name="batched"),
        softmax(rows=10, cols=10),
    ])  # fmt: skip
    card = read_card(content_folder("simulators") / "tpu-v3" / "card.toml")
    parameters = card.resolve("systolic", {"array_rows": 8, "array_cols": 8, "dataflow": dataflow})
    workload = Workload.of(trace, dtype=None, default_dtype="bf16")
    closed = systolic.Tpu().cost(workload, parameters, Options(mode="systolic"))
    with scale_sim.settings(folder=tmp_path, workers=2):
        real = systolic.Tpu().cost(workload, parameters, Options(mode="scale-sim"))
        monkeypatch.setattr(scale_sim, "_child", no_child)
        again = systolic.Tpu().cost(workload, parameters, Options(mode="scale-sim"))
    np.testing.assert_allclose(real.cycles, closed.cycles, rtol=1e-12)
    np.testing.assert_array_equal(real.cycles, again.cycles)
    np.testing.assert_allclose(real.energy_j, closed.energy_j, rtol=1e-12)
    assert real.cycles[3] == 6 * closed_form(Product(11, 10, 9, 8, 8, dataflow))
    assert (real.cycles[2] == 0) == (dataflow == "ws")
    assert real.cycles[4] == 0
