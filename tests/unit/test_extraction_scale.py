"""Extraction of models too large to have weights here, and the same bytes from every run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import hwmodel as hw

MODEL = "xcit_nano_12_p16_224"
DEPTH, WIDTH, HIDDEN, HEADS, TOKENS = 48, 6144, 24576, 48, 257
"""ViT-22B: Dehghani et al. 2023, table 1; patches of 14 pixels, one class token."""

LARGE = f"""
import json, resource, torch
import hwmodel as hw
hw.trace("vit_tiny_patch16_224")
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
from timm.models.vision_transformer import VisionTransformer
with torch.device("meta"):
    model = VisionTransformer(patch_size=14, depth={DEPTH}, embed_dim={WIDTH}, num_heads={HEADS}, mlp_ratio={HIDDEN // WIDTH})
trace = hw.trace(model, example=torch.empty(1, 3, 224, 224, device="meta"))
grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
parameters = sum(tensor.numel() for tensor in model.parameters())
print(json.dumps([trace.macs, parameters, grown]))
"""


def _run(code: str, *arguments: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        check=True,
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | environment,
    )
    return done.stdout.strip()


def test_a_vit_of_22_billion_parameters_needs_no_memory_for_them() -> None:
    macs, parameters, grown_bytes = json.loads(_run(LARGE))
    assert parameters > 21e9
    patches = TOKENS - 1
    block = TOKENS * (4 * WIDTH**2 + 2 * WIDTH * HIDDEN) + 2 * TOKENS**2 * WIDTH
    assert macs == patches * 3 * 14**2 * WIDTH + DEPTH * block + WIDTH * 1000
    assert grown_bytes < 2 * WIDTH * HIDDEN  # less than one of the 96 MLP weights in 16 bits


def test_another_process_writes_the_same_bytes(tmp_path: Path) -> None:
    """Its string hashes, and with them the order of its sets, are others."""
    here, there = tmp_path / "here.json", tmp_path / "there.json"
    hw.save_trace(hw.trace(MODEL), here)
    seed = "2" if os.environ.get("PYTHONHASHSEED") == "1" else "1"
    _run("import sys, hwmodel as hw; hw.save_trace(hw.trace(sys.argv[1]), sys.argv[2])", MODEL, str(there), PYTHONHASHSEED=seed)
    assert here.read_bytes() == there.read_bytes()
