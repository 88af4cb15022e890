"""How fast the masks of a checkpoint of more than 1 GB are found, and in how much memory. Run with ``make bench``.

Meant to stay under 10 s and 2 GB. The assertion that holds on any machine is a ratio inside one run: finding the masks
takes less than twenty times as long as reading the file and asking which values are zero.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

MODEL = "vit_large_patch16_224"
WRITE = """
import sys, torch
from safetensors.torch import save_file
from hwmodel.extraction import zoo
torch.manual_seed(0)
model = zoo.build(sys.argv[2], device="cpu").state_dict()
for name, weight in model.items():
    if weight.dim() == 2 and weight.shape[0] % 32 == 0 and weight.shape[1] % 32 == 0:
        kept = torch.rand(weight.shape[0] // 32, weight.shape[1] // 32) < 0.4
        weight *= kept.repeat_interleave(32, 0).repeat_interleave(32, 1)
save_file(model, sys.argv[1]) if sys.argv[1].endswith(".safetensors") else torch.save(model, sys.argv[1])
"""
READ = """
import json, resource, sys, time, torch
from hwmodel.extraction.weights.checkpoints import open_checkpoint
from hwmodel.extraction.weights.block_shapes import explaining_mask
from hwmodel.extraction.weights.stored_weights import StoredWeights
import safetensors
start, cpu = time.perf_counter(), time.process_time()
stored = StoredWeights(open_checkpoint(sys.argv[1]))
found = {}
for name, shape in stored.shapes.items():
    if len(shape) == 2 and min(shape) > 1:
        nonzero = stored.read(name).nonzero
        mask = None if nonzero.all() else explaining_mask(nonzero)
        if mask is not None:
            found[mask.block] = found.get(mask.block, 0) + 1
found_s = time.perf_counter() - start
cpu_s = time.process_time() - cpu
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
start = time.perf_counter()
tensors = open_checkpoint(sys.argv[1])
zeros = sum(int((tensors.load(name) == 0).sum()) for name in tensors.shapes)
read_s = time.perf_counter() - start
json.dump([found_s, cpu_s, read_s, peak, {f"{out}x{inner}": count for (out, inner), count in found.items()}], sys.stdout)
"""


@pytest.mark.slow
@pytest.mark.parametrize("ending", ["safetensors", "pt"])
def test_masks_of_a_large_checkpoint(benchmark, tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"large.{ending}"
    subprocess.run([sys.executable, "-c", WRITE, str(path), MODEL], check=True)
    size = path.stat().st_size
    command = [sys.executable, "-W", "ignore", "-c", READ, str(path)]
    done = benchmark.pedantic(lambda: subprocess.run(command, check=True, capture_output=True, text=True), rounds=1)
    found_s, cpu_s, read_s, peak_bytes, blocks = json.loads(done.stdout)
    benchmark.extra_info.update(size_bytes=size, found_s=found_s, cpu_s=cpu_s, read_s=read_s, peak_bytes=peak_bytes)
    assert blocks == {"32x32": 4 * 24}
    assert size > 1e9
    assert peak_bytes < 2e9
    assert found_s < 20 * read_s
