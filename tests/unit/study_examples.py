"""A small model on disk and studies of it, for the tests of exploration."""

from __future__ import annotations

import resource
import time
from pathlib import Path
from typing import Any

import hwmodel as hw
from hwmodel.exploration.pricing import price_chunk
from hwmodel.exploration.problem import Problem
from hwmodel.exploration.space import Chunk
from hwmodel.exploration.study import Study

LAYERS = ("qkv", "fc1")


def model_file(folder: Path) -> str:
    """A saved trace of two products, a softmax and a layernorm, so that no model is extracted."""
    operators = [
        hw.matmul(m=197, k=192, n=576, name="qkv"),
        hw.softmax(rows=3 * 197, cols=197, name="softmax"),
        hw.layernorm(rows=197, cols=192, name="norm"),
        hw.matmul(m=197, k=192, n=768, name="fc1"),
    ]
    path = folder / "tiny.json"
    hw.save_trace(hw.Trace.from_operators(operators, model="tiny"), path)
    return str(path)


def document(model: str, **changes: Any) -> dict[str, Any]:
    """A study as a TOML file says it: 2 machines, density, a clock, a bandwidth that only one of them has by this name."""
    return {
        "name": "example",
        "models": [{"name": model, "label": "tiny"}],
        "devices": [{"name": "vita", "set": {"pe": "16x16"}}, {"name": "tpu-v3", "modes": ["device"]}],
        "pruning": [{"block": [32, 32], "layers": list(LAYERS)}],
        "vary": [
            {"knob": "card.clock_hz", "from": 5e8, "to": 2e9, "count": 5},
            {"knob": "card.cores", "values": [1, 2]},
            {"knob": "density", "values": [0.25, 0.5, 1.0]},
            {"knob": "card.product_hbm_bytes_per_s", "label": "bandwidth", "values": [0.5, 1.0], "relative": True},
        ],
    } | changes


def study(model: str, **changes: Any) -> Study:
    """The same, checked."""
    return Study.model_validate(document(model, **changes))


def timed(problem: Problem, chunk: Chunk) -> dict[str, Any]:
    """When a chunk was priced, and the seconds of processors that the programs it started took."""
    began, before = time.time(), resource.getrusage(resource.RUSAGE_CHILDREN)
    price_chunk(problem, chunk)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"began": began, "ended": time.time(), "cpu_s": cpu_s}


def bytes_below(folder: Path) -> dict[str, bytes]:
    """Every file of a folder by its path in it."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
