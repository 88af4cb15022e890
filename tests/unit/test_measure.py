"""Measuring: what is timed, how its row reads back, and what is kept when something goes wrong."""

from __future__ import annotations

import sys
from collections.abc import Callable
from itertools import count
from math import ceil
from pathlib import Path
from types import ModuleType

import pytest
import torch
from examples import vit
from hypothesis import given
from strategies import operators

import hwmodel as hw
from hwmodel import cli
from hwmodel.errors import HwmodelError, UnknownNameError, UnsupportedOperatorError
from hwmodel.validation.measured import COLUMNS, MeasuredRow, operator_of, read_measured, shape_of
from hwmodel.validation.measuring import machines
from hwmodel.validation.measuring.machines import CudaDevice, Processor, Timing, machine, summary
from hwmodel.validation.measuring.power import Meter, Power, meter
from hwmodel.validation.measuring.programs import program, running
from hwmodel.validation.measuring.session import measure, split_of
from hwmodel.validation.measuring.tasks import Task, tasks_of_grid, tasks_of_trace, whole_model

GRID = "m=3,5 k=8 n=8,16"


def read_back(operator: hw.Operator) -> hw.Operator:
    name, shape = shape_of(operator)
    row = MeasuredRow(
        source="", device="", dtype=operator.dtype or "", framework="", model_or_op=name, shape=shape, batch=1,
        metric="latency", value=1.0, conditions="", split="fit",
    )  # fmt: skip
    return operator_of(row)


BY_HAND = [
    hw.matmul(m=197, k=192, n=576, dtype="fp32"),
    hw.matmul(m=197, k=192, n=576, dtype="fp32", parameter=False),
    hw.matmul(batch=36, m=197, k=64, n=197, dtype="fp16"),
    hw.matmul(batch=4, m=49, k=9, n=1, dtype="fp32", parameter=True),
    hw.attention(batch=2, heads=12, queries=197, keys=197, head_dim=64, dtype="bf16"),
    hw.attention(batch=2, heads=12, queries=1, keys=197, head_dim=64, kv_heads=4, causal=True, dtype="bf16"),
    hw.softmax(rows=2364, cols=197, dtype="fp32"),
    hw.layernorm(rows=394, cols=768, dtype="fp32"),
    hw.gelu(elements=4096, dtype="fp16"),
    hw.elementwise("add", elements=4096, inputs=2, dtype="fp32"),
    hw.elementwise("mul", elements=4096, inputs=1, dtype="fp32"),
    hw.elementwise("where", elements=4096, inputs=3, dtype="fp32"),
    hw.movement("copy", elements=4096, dtype="fp32"),
    hw.reduction("mean", inputs=4096, outputs=64, dtype="fp32"),
]


@pytest.mark.parametrize("operator", BY_HAND, ids=lambda operator: " ".join(shape_of(operator)))
def test_a_row_reads_back_as_its_operator(operator: hw.Operator) -> None:
    assert read_back(operator) == operator


@given(operators())
def test_any_operator_reads_back_but_for_what_no_kernel_knows(operator: hw.Operator) -> None:
    bare = operator.replace(name="", role="", block=None, mask=None, attention_group=None, dense_macs=None, constant=False)
    found = read_back(operator.replace(dtype="bf16")).replace(role="", fused_in_source=False)
    assert found == bare.replace(dtype="bf16", weight_dtype=None, fused_in_source=False)


def test_a_trace_is_its_distinct_operators() -> None:
    trace = vit(192, depth=3)
    tasks = tasks_of_trace(trace)
    by_name = {(task.name, task.shape): task.count for task in tasks}
    assert len(by_name) == len(tasks)
    assert by_name["linear", "M197xN576xK192"] == 3
    assert by_name["attention", "heads3 seq197 headdim64"] == 3
    assert not any(task.name in {"softmax", "patchify"} for task in tasks)
    math = {(task.name, task.shape): task.count for task in tasks_of_trace(trace, attention_choice="math")}
    assert math["softmax", "rows591xcols197"] == 3
    assert ("attention", "heads3 seq197 headdim64") not in math


def test_masks_make_no_other_operator() -> None:
    assert len(tasks_of_trace(vit(192, depth=1))) == len(tasks_of_trace(vit(192, depth=2).replace(model="another"))), (
        "blocks of one shape are timed once"
    )


def test_a_grid_counts_ranges_with_their_ends() -> None:
    tasks = tasks_of_grid("m=64:192:64 k=8 n=8,16 batch=1,3", dtype="bf16")
    assert len(tasks) == 3 * 2 * 2
    assert {task.name for task in tasks} == {"linear", "bmm"}
    assert {task.dtype for task in tasks} == {"bf16"}


@pytest.mark.parametrize(
    ("grid", "told"),
    [
        ("m=1 k=2", "n missing"),
        ("m=1 k=2 n=3 q=4", "q=4"),
        ("m=1 k=2 n=3 m=4", "once"),
        ("m=0 k=2 n=3", "'0' must be a positive whole number"),
        ("m=9:1:1 k=2 n=3", "'9:1:1'"),
        ("m=1.5 k=2 n=3", "'1.5'"),
        ("m=1:1000:1 k=1:1000:1 n=1:1000:1", "split the grid"),
        ("", "m, k, n missing"),
    ],
)
def test_grids_that_cannot_be(grid: str, told: str) -> None:
    with pytest.raises(HwmodelError, match="grid") as raised:
        tasks_of_grid(grid)
    assert told in str(raised.value)


# --- programs -----------------------------------------------------------------------------------------------------


def one(operator: hw.Operator) -> Task:
    name, shape = shape_of(operator)
    return Task(name=name, shape=shape, dtype=operator.dtype or "fp32", operator=operator)


@pytest.mark.parametrize(
    ("operator", "shape"),
    [
        (hw.matmul(m=5, k=8, n=16, dtype="fp32"), (5, 16)),
        (hw.matmul(m=5, k=8, n=16, dtype="fp32").replace(weight_elements=8 * 16 + 16), (5, 16)),
        (hw.matmul(m=5, k=8, n=16, dtype="amp-bf16"), (5, 16)),
        (hw.matmul(batch=3, m=5, k=8, n=16, dtype="bf16"), (3, 5, 16)),
        (hw.attention(batch=1, heads=4, queries=5, keys=7, head_dim=8, kv_heads=2, dtype="fp32"), (1, 4, 5, 8)),
        (hw.softmax(rows=4, cols=6, dtype="fp32"), (4, 6)),
        (hw.layernorm(rows=4, cols=6, dtype="fp32"), (4, 6)),
        (hw.gelu(elements=24, dtype="fp32"), (24,)),
        (hw.elementwise("exp", elements=24, dtype="fp32"), (24,)),
        (hw.elementwise("add", elements=24, inputs=2, dtype="fp32"), (1, 24)),
        (hw.elementwise("mul", elements=24, dtype="fp32"), (24,)),
        (hw.elementwise("add", elements=24, dtype="fp32").replace(weight_elements=6), (4, 6)),
        (hw.movement("copy", elements=128, dtype="fp32"), (1, 2, 64)),
        (hw.movement("concat", elements=24, dtype="fp32").replace(input_elements=20, weight_elements=4), (24,)),
        (hw.movement("roll", elements=128, dtype="fp32"), (2, 64)),
        (hw.reduction("mean", inputs=24, outputs=6, dtype="fp32"), (6,)),
        (hw.reduction("max", inputs=24, outputs=1, dtype="fp32"), (1,)),
    ],
    ids=lambda value: " ".join(shape_of(value)) if isinstance(value, hw.Operator) else "",
)
def test_programs_compute_what_the_operator_says(operator: hw.Operator, shape: tuple[int, ...]) -> None:
    with running("fp32"):
        result = program(one(operator), "cpu")()
    assert isinstance(result, torch.Tensor)
    assert tuple(result.shape) == shape
    assert result.numel() == operator.output_elements
    assert result.dtype == (torch.float32 if operator.dtype == "fp32" else torch.bfloat16)
    assert torch.isfinite(result).all()


def test_copies_really_copy() -> None:
    with running("fp32"):
        for elements in (128, 37824, 997):
            result = program(one(hw.movement("copy", elements=elements, dtype="fp32")), "cpu")()
            assert isinstance(result, torch.Tensor)
            assert result.is_contiguous() and result.numel() == elements


def test_tf32_is_on_for_its_own_rows_only() -> None:
    before = torch.backends.cuda.matmul.allow_tf32
    for dtype, expected in (("tf32", True), ("fp32", False)):
        with running(dtype):
            assert torch.backends.cuda.matmul.allow_tf32 is expected
    assert torch.backends.cuda.matmul.allow_tf32 is before


@pytest.mark.parametrize(
    "operator",
    [
        hw.elementwise("where", elements=8, inputs=3, dtype="fp32"),
        hw.movement("sort", elements=8, dtype="fp32"),
        hw.reduction("mean", inputs=9, outputs=2, dtype="fp32"),
        hw.elementwise("nothing_like_it", elements=8, dtype="fp32"),
    ],
    ids=lambda operator: operator.kind,
)
def test_what_no_call_does_is_refused(operator: hw.Operator) -> None:
    with pytest.raises(UnsupportedOperatorError):
        program(one(operator), "cpu")


# --- machines -----------------------------------------------------------------------------------------------------


def test_order_statistics() -> None:
    assert summary([float(value) for value in range(11)]) == Timing(5.0, 1.0, 9.0, 11)


def test_the_processor_repeats_short_calls_within_one_sample() -> None:
    now, calls = [0.0], [0]

    def call() -> None:
        calls[0] += 1
        now[0] += 2**-20  # about a microsecond, and exact

    timing = Processor(clock=lambda: now[0]).time(call, seconds=0.01)
    repeats = ceil(machines.SAMPLE_S * 2**20)
    assert timing.seconds == timing.low == timing.high == 2**-20
    assert timing.runs == ceil(0.01 * 2**20 / repeats), "samples of 100 us for 0.01 s"
    assert calls[0] == machines.WARM_UP_RUNS + timing.runs * repeats


def test_slow_calls_still_get_the_least_number_of_runs() -> None:
    clock = count(step=1.0)
    assert Processor(clock=lambda: next(clock)).time(lambda: None, seconds=0.1) == Timing(1.0, 1.0, 1.0, machines.LEAST_RUNS)


class FakeEvent:
    now = 0.0

    def __init__(self, enable_timing: bool = False) -> None:
        self.at = 0.0

    def record(self) -> None:
        self.at = FakeEvent.now

    def synchronize(self) -> None:
        pass

    def elapsed_time(self, other: FakeEvent) -> float:
        return (other.at - self.at) * 1e3


class FakeGraph:
    """Remembers the calls of its capture and replays their time."""

    cost = 0.0

    def replay(self) -> None:
        FakeEvent.now += self.cost


class Nothing:
    def __init__(self, *_: object) -> None:
        self.start = FakeEvent.now

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        pass

    def wait_stream(self, _: object) -> None:
        pass


class Capture(Nothing):
    def __init__(self, graph: FakeGraph) -> None:
        super().__init__()
        self.graph = graph

    def __exit__(self, *_: object) -> None:
        self.graph.cost = FakeEvent.now - self.start


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """A pretended CUDA device whose kernel takes 10 us; the kernel."""
    properties = type("Properties", (), {"name": "Pretended GPU", "L2_cache_size": 1 << 20, "uuid": "1-2"})
    replaced = {
        "is_available": lambda: True, "device_count": lambda: 1, "set_device": lambda index: None, "Event": FakeEvent,
        "get_device_properties": lambda index: properties, "Stream": Nothing, "current_stream": Nothing, "stream": Nothing,
        "CUDAGraph": FakeGraph, "graph": Capture, "synchronize": lambda: None,
    }  # fmt: skip
    for name, value in replaced.items():
        monkeypatch.setattr(torch.cuda, name, value)
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *sizes, **options: empty(1))

    def kernel() -> None:
        FakeEvent.now += 10e-6

    return kernel


@pytest.mark.parametrize(("protocol", "told"), [("graph", "CUDA graph"), ("events", "CUDA events, L2 flushed")])
def test_a_cuda_device_times_one_call(cuda: Callable[[], None], protocol: str, told: str) -> None:
    device = machine("cuda:0", protocol)
    assert (device.title, device.protocol, device.device) == ("Pretended GPU", told, "cuda:0")
    timing = device.time(cuda, seconds=0.1)
    assert timing.seconds == pytest.approx(10e-6)
    assert timing.runs >= machines.LEAST_RUNS
    assert device.power(cuda, seconds=0.1) is None, "no NVML here"


def test_cuda_devices_that_are_not_there(cuda: Callable[[], None]) -> None:
    with pytest.raises(HwmodelError, match="only 1 CUDA devices"):
        CudaDevice("cuda:3")
    with pytest.raises(UnknownNameError, match="protocol 'graphs'"):
        CudaDevice("cuda", "graphs")
    with pytest.raises(UnknownNameError, match="machine 'cuda:x'"):
        machine("cuda:x")


class FakeNvml(ModuleType):
    """A board that draws 250 W; ``counts`` says whether it counts energy."""

    class NVMLError(Exception):
        pass

    def __init__(self, *, counts: bool) -> None:
        super().__init__("pynvml")
        self.counts, self.seconds = counts, 0.0

    def nvmlInit(self) -> None:  # noqa: N802
        pass

    def nvmlDeviceGetHandleByUUID(self, uuid: bytes) -> str:  # noqa: N802
        if uuid != b"GPU-1":
            raise self.NVMLError
        return "board"

    def nvmlDeviceGetPowerUsage(self, handle: str) -> int:  # noqa: N802
        return 250_000

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: str) -> int:  # noqa: N802
        if not self.counts:
            raise self.NVMLError
        return round(self.seconds * 250e3)


@pytest.mark.parametrize(("counts", "how"), [(True, "NVML energy counter"), (False, "NVML power readings")])
def test_power_of_a_steady_loop(monkeypatch: pytest.MonkeyPatch, counts: bool, how: str) -> None:
    nvml = FakeNvml(counts=counts)
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    monkeypatch.setattr("hwmodel.validation.measuring.power.time.perf_counter", lambda: nvml.seconds)
    found = meter("GPU-1")
    assert isinstance(found, Meter)

    def burst() -> int:
        nvml.seconds += 0.1
        return 100

    assert found.steady(burst, 2.0) == Power(pytest.approx(250.0), pytest.approx(250.0 * 1e-3), how)


def test_no_meter_for_a_board_that_nvml_does_not_know(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its order of boards is not CUDA's, so a guess might read another one."""
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml(counts=True))
    assert meter("GPU-2") is None


def test_no_meter_without_nvml(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert meter("GPU-1") is None


# --- sessions -----------------------------------------------------------------------------------------------------


class Pretended:
    """A machine that takes a microsecond for everything, and is lost at one call where asked."""

    title, protocol, device, meters_power = "pretended", "pretended timer", "cpu", True

    def __init__(self, *, lost_at: int | None = None, broken_at: int | None = None, power: Power | None = None) -> None:
        self.calls, self.lost_at, self.broken_at, self._power = 0, lost_at, broken_at, power

    def time(self, call: Callable[[], object], seconds: float) -> Timing:
        self.calls += 1
        if self.calls in (self.lost_at, self.broken_at):
            raise RuntimeError("CUDA error: device-side trouble\nand a long explanation")
        call()
        return Timing(1e-6, 0.9e-6, 1.1e-6, 10)

    def power(self, call: Callable[[], object], seconds: float) -> Power | None:
        return self._power

    def alive(self) -> bool:
        return self.calls != self.lost_at


def test_rows_are_kept_and_known_ones_are_not_timed_again(tmp_path: Path) -> None:
    file, tasks = tmp_path / "measured.csv", tasks_of_grid(GRID)
    first = measure(tasks[:3], file, Pretended())
    before = file.read_bytes()
    again = Pretended()
    second = measure(tasks, file, again, progress=lambda text: None)
    assert (first.measured, second.measured, second.known, second.rows) == (3, 1, 3, 4)
    assert again.calls == 1
    assert file.read_bytes().startswith(before)
    assert measure(tasks, file, Pretended()).measured == 0
    assert file.read_text(encoding="utf-8").splitlines()[0] == ",".join(COLUMNS)
    assert [operator_of(row) for row in read_measured(file)] == [task.operator for task in tasks]
    assert [row.value for row in read_measured(file)] == pytest.approx([1e-6] * 4)


def test_an_operator_asked_for_twice_is_timed_once(tmp_path: Path) -> None:
    pretended = Pretended()
    done = measure([*tasks_of_grid(GRID), *tasks_of_grid(GRID)], tmp_path / "measured.csv", pretended)
    assert (pretended.calls, done.measured, done.known, done.rows) == (4, 4, 4, 4)


def test_another_machine_or_protocol_is_measured_anew(tmp_path: Path) -> None:
    file, tasks = tmp_path / "measured.csv", tasks_of_grid(GRID)
    measure(tasks, file, Pretended())
    assert measure(tasks, file, Pretended(), title="another").measured == 4
    other = Pretended()
    other.protocol = "another timer"
    assert measure(tasks, file, other).measured == 4


def test_a_machine_that_is_lost_keeps_what_it_did_and_resumes(tmp_path: Path) -> None:
    file, tasks = tmp_path / "measured.csv", tasks_of_grid(GRID)
    with pytest.raises(HwmodelError, match="stopped answering at operator 3 of 4") as raised:
        measure(tasks, file, Pretended(lost_at=3))
    assert "2 rows are kept" in str(raised.value) and "run the same command again" in str(raised.value)
    assert "long explanation" not in str(raised.value)
    assert len(read_measured(file)) == 2
    assert measure(tasks, file, Pretended()).measured == 2
    assert len(read_measured(file)) == 4


def test_one_operator_that_fails_is_left_out_and_told(tmp_path: Path) -> None:
    told: list[str] = []
    tasks = [*tasks_of_grid(GRID), one(hw.movement("sort", elements=8, dtype="fp32"))]
    done = measure(tasks, tmp_path / "measured.csv", Pretended(broken_at=2), progress=told.append)
    assert (done.measured, len(done.left_out), done.rows) == (3, 2, 3)
    assert "device-side trouble" in done.left_out[0] and "sort" in done.left_out[1]
    assert len(told) == 5


def test_power_rows_stand_beside_the_latency(tmp_path: Path) -> None:
    file = tmp_path / "measured.csv"
    done = measure(tasks_of_grid(GRID)[:1], file, Pretended(power=Power(250.0, 1e-3, "NVML energy counter")), power_s=1.0)
    assert done.rows == 3
    assert [(row.metric, row.value) for row in read_measured(file)][1:] == [("gpu_avg_power", 250.0), ("gpu_energy", 1e-3)]


def test_a_sensor_that_does_not_answer_costs_no_latency(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretended = Pretended()

    def silent(call: object, seconds: float) -> Power | None:
        raise RuntimeError("NVML: unknown error")

    monkeypatch.setattr(pretended, "power", silent)
    done = measure(tasks_of_grid(GRID), tmp_path / "measured.csv", pretended, power_s=1.0)
    assert (done.measured, done.rows, done.left_out) == (4, 4, ())


def test_the_split_is_by_shape_and_about_a_third() -> None:
    tasks = tasks_of_grid("m=1:300:1 k=8 n=8")
    held = [task for task in tasks if split_of(task.name, task.shape, 1) == "held-out"]
    assert 70 < len(held) < 130


def test_a_file_of_another_kind_is_never_overwritten(tmp_path: Path) -> None:
    file = tmp_path / "measured.csv"
    file.write_text("a,b\n1,2\n", encoding="utf-8")
    with pytest.raises(HwmodelError, match="the column 'unit' is missing"):
        measure(tasks_of_grid(GRID), file, Pretended())
    assert file.read_text(encoding="utf-8") == "a,b\n1,2\n"


GOOD = "s,d,fp32,f,linear,M1xN2xK3,1,latency,1.0,us,c,fit"


@pytest.mark.parametrize(
    ("row", "told"),
    [
        (GOOD.replace(",us,", ",W,"), "latency is in 'W', expected s or ms or us"),
        (GOOD.replace(",us,", ",minutes,"), "'minutes'"),
        (GOOD.replace("latency", "gpu_avg_power"), "gpu_avg_power is in 'us', expected W"),
        (GOOD.replace(",1.0,", ",-1.0,"), "expected a positive number"),
        (GOOD.replace(",1.0,", ",nan,"), "expected a positive number"),
        (GOOD.replace(",1.0,", ",fast,"), "'fast'"),
        (GOOD.replace(",fit", ",train"), "'train'"),
    ],
)
def test_rows_that_cannot_be(tmp_path: Path, row: str, told: str) -> None:
    file = tmp_path / "measured.csv"
    file.write_text(",".join(COLUMNS) + f"\n{GOOD}\n{row}\n", encoding="utf-8")
    with pytest.raises(HwmodelError, match=r"measured\.csv: line 3: ") as raised:
        read_measured(file)
    assert told in str(raised.value)


# --- the real thing -----------------------------------------------------------------------------------------------


def test_real_times_are_positive_and_read_back(tmp_path: Path) -> None:
    file = tmp_path / "measured.csv"
    tasks = [*tasks_of_grid("m=4 k=8 n=8"), one(hw.softmax(rows=4, cols=8, dtype="fp32"))]
    assert measure(tasks, file, machine("cpu"), seconds=0.002).measured == 2
    rows = read_measured(file)
    assert all(0 < row.value < 1 for row in rows)
    assert all("CPU timer" in row.conditions and row.device == "host-cpu" for row in rows)


def test_a_whole_model_is_a_row_of_its_own(tmp_path: Path) -> None:
    file = tmp_path / "measured.csv"
    task = whole_model("test_vit", batch=2, pixels=160, dtype="fp32")
    assert measure([task], file, machine("cpu"), seconds=0.002).measured == 1
    (row,) = read_measured(file)
    assert (row.model_or_op, row.shape, row.batch) == ("test_vit", "image160", 2)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["-o", "m.csv"], "give a model, a trace file, or --grid"),
        (["--grid", "m=1 k=2", "-o", "m.csv"], "n missing"),
        (["--grid", GRID, "-o", "none/m.csv"], "folder 'none' does not exist"),
        (["--grid", GRID, "-o", "m.txt"], "expected a file name that ends in .csv"),
        (["--grid", GRID, "--dtype", "int8", "-o", "m.csv"], "dtype int8"),
        (["--grid", GRID, "--dtype", "fp16", "--device", "host-cpu", "-o", "m.csv"], "dtype for host-cpu 'fp16'"),
        (["--grid", GRID, "--on", "tpu", "-o", "m.csv"], "unknown machine 'tpu'"),
        (["--grid", GRID, "--attention", "flash", "-o", "m.csv"], "unknown attention 'flash'"),
        (["--grid", GRID, "--whole", "-o", "m.csv"], "--whole"),
        (["--grid", GRID, "--on", "cpu", "--protocol", "events", "-o", "m.csv"], "--protocol events: for CUDA devices"),
        (["--grid", GRID, "--on", "cpu", "--power", "1", "-o", "m.csv"], "nothing measures power here"),
    ],
    ids=" ".join,
)
def test_bad_input_is_one_line(
    arguments: list[str], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        cli.main(["measure", *arguments])
    err = capsys.readouterr().err
    assert ended.value.code == 2
    assert told in err.splitlines()[-1]
    assert not list(tmp_path.iterdir())


def test_the_command_measures_a_saved_trace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    hw.save_trace(hw.Trace.from_operators([hw.matmul(m=4, k=8, n=8), hw.gelu(elements=64)]), "trace.json")
    command = ["measure", "trace.json", "--on", "cpu", "--seconds", "0.002", "-o", "m.csv"]
    cli.main(command)
    first = capsys.readouterr()
    assert "2 operators measured, 0 known before, 0 left out; 2 rows in m.csv" in first.out
    assert first.err.count("\n") == 2, "progress goes to standard error, a line for each operator"
    cli.main(command)
    assert "0 operators measured, 2 known before" in capsys.readouterr().out
