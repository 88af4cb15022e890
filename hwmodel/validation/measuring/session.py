"""The measuring session: one operator after the other, each kept as soon as it is done, and resumed where it stopped."""

from __future__ import annotations

import csv
import hashlib
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from hwmodel.errors import HwmodelError, UnsupportedOperatorError
from hwmodel.files import check_writable, write_file
from hwmodel.validation.measured import COLUMNS, read_measured
from hwmodel.validation.measuring.machines import Machine, Timing
from hwmodel.validation.measuring.power import Power
from hwmodel.validation.measuring.programs import check_timed, program, running
from hwmodel.validation.measuring.tasks import Task

Row = dict[str, str]
Progress = Callable[[str], None]
Key = tuple[str, ...]

HELD_OUT_OF = 3
"""One shape in so many is held out of calibration, by the digest of its text: a rerun decides the same."""


@dataclass(frozen=True, kw_only=True)
class Session:
    """What a session did.

    ``measured`` operators now, ``known`` before; ``left_out`` tells why others have no row.
    """

    rows: int
    measured: int
    known: int
    left_out: tuple[str, ...]


def split_of(name: str, shape: str, batch: int) -> str:
    """``held-out`` for a third of all shapes, ``fit`` for the rest; the same shape always on the same side."""
    digest = hashlib.sha256(f"{name} {shape} {batch}".encode()).digest()
    return "held-out" if digest[0] % HELD_OUT_OF == 0 else "fit"


def measure(
    tasks: Sequence[Task],
    output: str | Path,
    machine: Machine,
    *,
    title: str | None = None,
    seconds: float = 0.3,
    power_s: float = 0.0,
    progress: Progress = lambda text: None,
) -> Session:
    """Time every task that ``output`` does not hold yet, and keep each as soon as it is done.

    Parameters
    ----------
    output : CSV in the layout of :mod:`hwmodel.validation.measured`; rows that it holds are kept
    title : what the column ``device`` says; the machine's own name where None
    seconds, power_s : time spent on an operator's latency, and on its power (none where 0)
    progress : told one line per operator

    Raises
    ------
    HwmodelError
        A format PyTorch does not time, an output that cannot be written or read, or a machine that stopped answering:
        what was measured is kept, and the same call resumes.
    """
    for dtype in sorted({task.dtype for task in tasks}):
        check_timed(dtype)
    file = _File(check_writable(output), machine, title or machine.title)
    left_out: list[str] = []
    measured = 0
    for place, task in enumerate(tasks, start=1):
        where = f"{place}/{len(tasks)} {task.name} {task.shape} {task.dtype}"
        if file.holds(task):
            continue
        try:
            timing, power = _run(task, machine, seconds, power_s)
        except UnsupportedOperatorError as error:
            left_out.append(f"{task.name} {task.shape}: {error}")
        except RuntimeError as error:  # torch's own errors, out of memory and a lost device among them
            _check_alive(machine, error, file, place, len(tasks))
            left_out.append(f"{task.name} {task.shape}: {_first_line(error)}")
        else:
            measured += 1
            file.add(task, timing, power)
            progress(f"{where}: {timing.seconds * 1e6:.4g} us")
            continue
        progress(f"{where}: left out, {left_out[-1].partition(': ')[2]}")
    return Session(rows=file.count, measured=measured, known=len(tasks) - measured - len(left_out), left_out=tuple(left_out))


def _run(task: Task, machine: Machine, seconds: float, power_s: float) -> tuple[Timing, Power | None]:
    with running(task.dtype):
        call = program(task, machine.device)
        timing = machine.time(call, seconds)
        try:
            return timing, machine.power(call, power_s) if power_s > 0 else None
        except RuntimeError:
            if machine.alive():
                return timing, None  # the time stands, even where the board's sensor does not answer
            raise


def _check_alive(machine: Machine, error: Exception, file: _File, place: int, total: int) -> None:
    if not machine.alive():
        raise HwmodelError(
            f"{machine.title} stopped answering at operator {place} of {total} ({_first_line(error)}); {file.count} rows are kept "
            f"in {file.path}: run the same command again to resume"
        ) from error


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:160]


class _File:
    """The measured file: rows kept as text, written whole after every operator."""

    def __init__(self, path: Path, machine: Machine, title: str) -> None:
        import torch

        self.path, self._machine, self._title = path, machine, title
        self._framework = f"PyTorch {torch.__version__.partition('+')[0]} eager"
        self._rows: list[Row] = []
        if path.is_file():
            read_measured(path)  # refuse a file that is no measured file before anything is added to it
            with path.open(encoding="utf-8", newline="") as lines:
                self._rows = list(csv.DictReader(lines))
        self._known = {_key(row) for row in self._rows}

    @property
    def count(self) -> int:
        """Rows in the file."""
        return len(self._rows)

    def holds(self, task: Task) -> bool:
        """Whether this task was timed on this machine, by this protocol, before."""
        return _key(self._row(task, "latency", "1", "us", "")) in self._known

    def add(self, task: Task, timing: Timing, power: Power | None) -> None:
        """Append the rows of one task and write the file."""
        spread = f"median of {timing.runs};p10_us={timing.low * 1e6:.6g};p90_us={timing.high * 1e6:.6g};count={task.count}"
        if task.name == "conv":
            spread += ";timed as the product it is lowered to"
        new = [self._row(task, "latency", f"{timing.seconds * 1e6:.6g}", "us", spread)]
        if power is not None:
            new.append(self._row(task, "gpu_avg_power", f"{power.watts:.5g}", "W", f"steady loop;{power.how}"))
            new.append(self._row(task, "gpu_energy", f"{power.joules_per_call:.6g}", "J", f"steady loop;{power.how};per call"))
        self._rows += new
        self._known |= {_key(row) for row in new}
        text = io.StringIO()
        writer = csv.DictWriter(text, fieldnames=COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self._rows)
        write_file(self.path, text.getvalue())

    def _row(self, task: Task, metric: str, value: str, unit: str, conditions: str) -> Row:
        return {
            "source": "hwmodel measure",
            "device": self._title,
            "dtype": task.dtype,
            "framework": self._framework,
            "model_or_op": task.name,
            "shape": task.shape,
            "batch": str(task.batch),
            "metric": metric,
            "value": value,
            "unit": unit,
            "conditions": f"{self._machine.protocol};{conditions}",
            "split": split_of(task.name, task.shape, task.batch),
        }


def _key(row: Row) -> Key:
    """What makes a row the same measurement: everything but its value and statistics."""
    names = ("device", "dtype", "framework", "model_or_op", "shape", "batch", "metric")
    return (*(row[name] for name in names), row["conditions"].partition(";")[0])
