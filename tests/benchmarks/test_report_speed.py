"""How long `hwmodel report` takes from a cold start. Run with ``make bench``.

Meant to stay under 10 s on two free cores: DeiT-B, dense and pruned, on four devices, interactive figures included. The figure is
printed. What is asserted holds on a loaded machine too: the processor time of the command is under ten seconds.
"""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow
DEVICES = "vita,tpu-v3,a100-40gb,agx-orin-64gb"


def test_a_report_of_deit_base_on_four_devices(benchmark: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "report.html"
    command = ["report", "deit_base_patch16_224", "--device", DEVICES, "--recipe", "deit_base_lsp_b32x32", "-o", str(path)]
    program = f"from hwmodel.cli import main; main({command!r})"

    def run() -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    cpu_s = benchmark.pedantic(run, rounds=1)
    assert path.stat().st_size < 8_000_000
    with capsys.disabled():
        sys.stdout.write(
            f"\nreport of DeiT-B on four devices: {cpu_s:.1f} s of processor time, {path.stat().st_size / 1e6:.1f} MB\n"
        )
    assert cpu_s < 10
