"""What sensitivity curves of a DeiT-S cost: the goal is 64 images in under two minutes on two cores, in under 4 GB."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

RUN = """
import json, resource, sys, time
import torch
from hwmodel.extraction import zoo
from hwmodel.pruning.projections import sensitivity_curves

images = int(sys.argv[1])
torch.manual_seed(0)
model = zoo.build("deit_small_patch16_224", device="cpu")
started = time.process_time()
curves = sensitivity_curves(model, torch.randn(images, 3, 224, 224).split(16), block=(32, 32))
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
json.dump({"cpu_s": time.process_time() - started, "peak_bytes": peak, "layers": len(curves)}, sys.stdout)
"""


@pytest.mark.slow
def test_a_deit_s_in_time_and_memory() -> None:
    done = subprocess.run([sys.executable, "-c", RUN, "64"], capture_output=True, text=True, timeout=900, check=True)
    found = json.loads(done.stdout)
    print(found)
    assert found["layers"] == 50
    assert found["cpu_s"] < 2 * 120  # two cores for two minutes
    assert found["peak_bytes"] < 4e9
