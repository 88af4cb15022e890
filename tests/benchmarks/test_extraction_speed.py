"""How fast a model is extracted. Run with ``make bench``; seconds are for reading, the assertions are ratios in one run."""

from __future__ import annotations

import json
import subprocess
import sys

import hwmodel as hw

FRESH = """
import json, time
start = time.process_time()
import torch
imported = time.process_time()
import hwmodel as hw
hw.trace("deit_base_patch16_224")
print(json.dumps([imported - start, time.process_time() - imported]))
"""


def _fresh() -> tuple[float, float]:
    """Processor seconds of importing torch, and of the first extraction after it."""
    done = subprocess.run([sys.executable, "-c", FRESH], check=True, capture_output=True, text=True, timeout=120)
    torch_s, extraction_s = json.loads(done.stdout)
    return torch_s, extraction_s


def test_first_extraction_of_deit_base(benchmark) -> None:
    """timm, torchvision and torch.export are imported within: meant to stay under 1.5 s once torch is there."""
    torch_s, extraction_s = benchmark.pedantic(_fresh, rounds=3)
    benchmark.extra_info |= {"import_torch_s": torch_s, "first_extraction_s": extraction_s}
    assert extraction_s < 2.5 * torch_s


def test_next_extraction_of_deit_base(benchmark) -> None:
    hw.trace("deit_tiny_patch16_224")
    assert benchmark.pedantic(lambda: hw.trace("deit_base_patch16_224"), rounds=3).macs > 0
