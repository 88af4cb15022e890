"""Machines that run calls and tell how long they took: this processor, or a CUDA device."""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable, Sequence
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol

from hwmodel.errors import HwmodelError, UnknownNameError
from hwmodel.validation.measuring.power import Power, meter
from hwmodel.validation.measuring.programs import Call

if TYPE_CHECKING:
    import torch

WARM_UP_RUNS = 3
LEAST_RUNS, MOST_RUNS = 7, 1000
SAMPLE_S = 100e-6
"""Calls shorter than this are timed several at a time: the clock's own cost stays below a percent."""
GRAPH_S = 2e-3
"""Calls of one CUDA graph together take about this long: its launch is a small part."""
MOST_COPIES = 200
PROTOCOLS = ("graph", "events")


class Timing(NamedTuple):
    """Seconds of one call: median, 10th and 90th percentile over ``runs`` samples."""

    seconds: float
    low: float
    high: float
    runs: int


class Machine(Protocol):
    """What :func:`hwmodel.validation.measuring.session.measure` needs of a machine.

    ``title`` names it in the file, ``protocol`` says how it times, ``device`` is PyTorch's name of it, and
    ``meters_power`` tells whether :meth:`power` ever finds any.
    """

    title: str
    protocol: str
    device: str

    @property
    def meters_power(self) -> bool: ...

    def time(self, call: Call, seconds: float) -> Timing:
        """Time a call for about ``seconds``."""
        ...

    def power(self, call: Call, seconds: float) -> Power | None:
        """Power of the call in a steady loop; None where nothing measures it."""
        ...

    def alive(self) -> bool:
        """Whether the machine still computes."""
        ...


def summary(samples: Sequence[float]) -> Timing:
    """Order statistics of samples in seconds."""
    ordered = sorted(samples)
    last = len(ordered) - 1
    return Timing(statistics.median(ordered), ordered[round(0.1 * last)], ordered[round(0.9 * last)], len(ordered))


def _runs(one: float, seconds: float) -> int:
    return min(max(ceil(seconds / max(one, 1e-9)), LEAST_RUNS), MOST_RUNS)


class Processor:
    """This processor, by its own clock, with warm caches."""

    device = "cpu"
    meters_power = False

    def __init__(self, title: str = "host-cpu", clock: Callable[[], float] = time.perf_counter) -> None:
        import torch

        self.title, self._clock = title, clock
        self.protocol = f"CPU timer, {torch.get_num_threads()} threads, {_processor_name()}"

    def _timed(self, call: Call, repeats: int) -> float:
        start = self._clock()
        for _ in range(repeats):
            call()
        return (self._clock() - start) / repeats

    def time(self, call: Call, seconds: float) -> Timing:
        """Warm up, then take samples for about ``seconds``."""
        one = min(self._timed(call, 1) for _ in range(WARM_UP_RUNS))
        repeats = max(1, ceil(SAMPLE_S / max(one, 1e-9)))
        return summary([self._timed(call, repeats) for _ in range(_runs(one * repeats, seconds))])

    def power(self, call: Call, seconds: float) -> Power | None:
        """Not measured."""
        return None

    def alive(self) -> bool:
        """Always."""
        return True


def _processor_name() -> str:
    """As the system tells it, without marks that a conditions field cannot hold."""
    names = []
    info = Path("/proc/cpuinfo")
    if info.is_file():
        names = [line.partition(":")[2] for line in info.read_text(encoding="utf-8").splitlines() if line.startswith("model name")]
    return (names or [platform.processor() or platform.machine()])[0].strip().replace(";", " ")


class CudaDevice:
    """A CUDA device, on its own clock.

    Protocol ``graph`` replays a CUDA graph of many calls: no launch gap, operands stay in the L2. ``events`` times single
    calls between two events, the L2 flushed before each.
    """

    def __init__(self, device: str, protocol: str = "graph") -> None:
        import torch

        if protocol not in PROTOCOLS:
            raise UnknownNameError("protocol", protocol, PROTOCOLS)
        if not torch.cuda.is_available():
            raise HwmodelError(f"--on {device}: PyTorch sees no CUDA device here; leave --on out to time the processor")
        index = torch.device(device).index or 0
        if index >= torch.cuda.device_count():
            raise HwmodelError(f"--on {device}: there are only {torch.cuda.device_count()} CUDA devices")
        torch.cuda.set_device(index)
        self.device, self._graph = f"cuda:{index}", protocol == "graph"
        properties = torch.cuda.get_device_properties(index)
        self.title = properties.name
        self.protocol = "CUDA graph" if self._graph else "CUDA events, L2 flushed"
        self._flush = torch.empty(2 * max(properties.L2_cache_size, 1 << 25), dtype=torch.int8, device=self.device)
        self._meter = meter(f"GPU-{properties.uuid}")

    @property
    def meters_power(self) -> bool:
        """Whether NVML knows this board."""
        return self._meter is not None

    def time(self, call: Call, seconds: float) -> Timing:
        """Warm up, then take samples for about ``seconds``."""
        one = min(self._between(call) for _ in range(WARM_UP_RUNS))
        if not self._graph:
            return summary([self._between(call, flush=True) for _ in range(_runs(one, seconds))])
        copies = min(max(1, ceil(GRAPH_S / max(one, 1e-9))), MOST_COPIES)
        replay = self._captured(call, copies).replay
        first = self._between(replay)
        return summary([self._between(replay) / copies for _ in range(_runs(first, seconds))])

    def _between(self, call: Call, *, flush: bool = False) -> float:
        """Seconds on the device between two events around a call."""
        import torch

        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        if flush:
            self._flush.zero_()
        start.record()
        call()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end)) * 1e-3

    def _captured(self, call: Call, copies: int) -> torch.cuda.CUDAGraph:
        """A CUDA graph of ``copies`` calls; warmed up on a stream of its own, as capture demands."""
        import torch

        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP_RUNS):
                call()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for _ in range(copies):
                call()
        return graph

    def power(self, call: Call, seconds: float) -> Power | None:
        """Board power of a steady loop by NVML; None where it is missing."""
        import torch

        if self._meter is None:
            return None
        one = min(self._between(call) for _ in range(WARM_UP_RUNS))
        copies = min(max(1, ceil(GRAPH_S / max(one, 1e-9))), MOST_COPIES)
        replay = self._captured(call, copies).replay

        def burst() -> int:
            for _ in range(10):
                replay()
            torch.cuda.synchronize()
            return 10 * copies

        return self._meter.steady(burst, seconds)

    def alive(self) -> bool:
        """Whether a small sum still comes out."""
        import torch

        try:
            return bool(torch.ones(8, device=self.device).sum().item() == 8.0)
        except RuntimeError:
            return False


def machine(on: str | None = None, protocol: str | None = None) -> Machine:
    """The machine to time on: ``cpu``, ``cuda`` or ``cuda:1``; CUDA where there is one if None.

    ``protocol`` is a CUDA device's, the first of :data:`PROTOCOLS` where None.

    Raises
    ------
    HwmodelError
        A device that does not exist here, or a protocol that it does not have.
    """
    import torch

    if on is None:
        on = "cuda" if torch.cuda.is_available() else "cpu"
    if on == "cpu":
        if protocol is not None:
            raise HwmodelError(f"--protocol {protocol}: for CUDA devices; the processor is timed by its own clock")
        return Processor()
    if on.partition(":")[0] != "cuda" or not (on == "cuda" or on[5:].isdigit()):
        raise UnknownNameError("machine", on, ("cpu", "cuda", "cuda:1"))
    return CudaDevice(on, protocol or PROTOCOLS[0])
