"""How long `hwmodel report` takes from a cold start. Run with ``make bench``.

DeiT-B, dense and pruned, on four devices, interactive figures included: under 10 s on two free cores; the seconds are printed.
What is asserted on a loaded machine too are ratios inside one run: processor time under four times that of reading the model
alone, which is mostly importing torch, and the helpers that draw leave the first process less than three quarters of it.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow
DEVICES = "vita,tpu-v3,a100-40gb,agx-orin-64gb"


def test_a_report_of_deit_base_on_four_devices(benchmark: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "report.html"
    command = ["report", "deit_base_patch16_224", "--device", DEVICES, "--recipe", "deit_base_lsp_b32x32", "-o", str(path)]

    idle = os.getloadavg()[0] < (os.cpu_count() or 1) / 2
    report_s, report_cpu_s = benchmark.pedantic(cold_start, args=(command,), rounds=1)
    _, trace_cpu_s = cold_start(["trace", "deit_base_patch16_224", "-o", str(tmp_path / "trace.json")])
    size = path.stat().st_size / 1e6
    with capsys.disabled():
        sys.stdout.write(f"\nDeiT-B on four devices: {report_s:.1f} s, {report_cpu_s:.1f} s of processor time, {size:.1f} MB\n")
    assert size < 8
    assert report_cpu_s < 4 * trace_cpu_s
    if idle:
        assert report_s < 10


def test_helpers_leave_the_first_process_less_to_do(benchmark: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["report", "deit_base_patch16_224", "--device", DEVICES, "--recipe", "deit_base_lsp_b32x32", "-o"]
    alone_s = own_cpu_s([*command, str(tmp_path / "alone.html"), "--workers", "1"])
    helped_s = benchmark.pedantic(own_cpu_s, args=([*command, str(tmp_path / "helped.html")],), rounds=1)
    with capsys.disabled():
        sys.stdout.write(f"\nprocessor time of the first process: {helped_s:.1f} s helped, {alone_s:.1f} s alone\n")
    assert (tmp_path / "alone.html").read_bytes() == (tmp_path / "helped.html").read_bytes()
    assert helped_s < 0.75 * alone_s


def cold_start(command: list[str]) -> tuple[float, float]:
    """Seconds that a command takes in a process of its own: by the clock, and of processor time."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run([sys.executable, "-c", f"from hwmodel.cli import main; main({command!r})"], check=True, capture_output=True)
    after, took_s = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter() - start
    return took_s, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def own_cpu_s(command: list[str]) -> float:
    """Processor seconds that a command takes in its first process, those it starts left out."""
    script = f"import sys, time; from hwmodel.cli import main; main({command!r}); sys.stderr.write(f'\\n{{time.process_time()}}')"
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    return float(done.stderr.splitlines()[-1])
