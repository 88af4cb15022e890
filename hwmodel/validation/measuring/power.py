"""Board power of an NVIDIA GPU through NVML, where the extra ``measure`` (nvidia-ml-py) and a driver are present."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NamedTuple

SAMPLE_S = 0.02
SETTLE_S = 1.0
"""Left out at the start: most boards since Ampere report the mean of the last second (NVML, nvmlDeviceGetPowerUsage)."""


class Power(NamedTuple):
    """Mean board power of a steady loop, and what one call took of it."""

    watts: float
    joules_per_call: float
    how: str


class Meter:
    """Reads one board. Make it with :func:`meter`."""

    def __init__(self, nvml: Any, handle: Any) -> None:
        self._nvml, self._handle = nvml, handle

    def watts(self) -> float:
        """Board power now; RuntimeError where the board does not tell."""
        try:
            return float(self._nvml.nvmlDeviceGetPowerUsage(self._handle)) / 1e3
        except self._nvml.NVMLError as error:
            raise RuntimeError(f"NVML: {error}") from error

    def joules(self) -> float | None:
        """Energy since the driver was loaded; None where the board does not count (before Volta)."""
        try:
            return float(self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._handle)) / 1e3
        except self._nvml.NVMLError:
            return None

    def steady(self, burst: Callable[[], int], seconds: float) -> Power:
        """Power while ``burst`` runs over and over; it returns how many calls it did and waits until they are done.

        From the board's energy counter where it has one, else the mean of its power readings.
        """
        _until(time.perf_counter() + SETTLE_S, burst)
        with _Sampler(self.watts) as sampler:
            before, start = self.joules(), time.perf_counter()
            calls = _until(start + seconds, burst)
            took, after = time.perf_counter() - start, self.joules()
        if before is not None and after is not None and after > before:
            return Power((after - before) / took, (after - before) / calls, "NVML energy counter")
        watts = sampler.mean()
        return Power(watts, watts * took / calls, "NVML power readings")


def _until(end: float, burst: Callable[[], int]) -> int:
    calls = burst()
    while time.perf_counter() < end:
        calls += burst()
    return calls


class _Sampler:
    """Reads power in a thread of its own until the block ends."""

    def __init__(self, read: Callable[[], float]) -> None:
        self._read, self._found, self._end = read, [read()], threading.Event()
        self._thread = threading.Thread(target=self._loop, daemon=True)

    def _loop(self) -> None:
        with suppress(RuntimeError):  # the first reading was good; a board that is lost shows elsewhere
            while not self._end.wait(SAMPLE_S):
                self._found.append(self._read())

    def __enter__(self) -> _Sampler:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()

    def mean(self) -> float:
        return sum(self._found) / len(self._found)


def meter(uuid: str) -> Meter | None:
    """The meter of a CUDA device, by its UUID; None where NVML does not know it: its order of boards is not CUDA's."""
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return None
    try:
        return Meter(pynvml, pynvml.nvmlDeviceGetHandleByUUID(uuid.encode()))
    except pynvml.NVMLError:
        return None
