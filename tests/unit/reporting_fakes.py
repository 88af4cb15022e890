"""A small ViT by hand and four make-believe machines, so that reporting is tested without any backend."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

import hwmodel as hw
from hwmodel.backends.base import Costs, Options, Workload
from hwmodel.backends.cards import Card
from hwmodel.backends.estimates import Estimate
from hwmodel.ir.masks import BlockMask, Mask, expected_mask
from hwmodel.ir.operators import Operator
from hwmodel.ir.trace import Trace
from hwmodel.reporting.variants import Variant

TOKENS, HEADS, HEAD = 197, 12, 64


def _encoder(block: int, width: int, batch: int) -> list[Operator]:
    m, root = TOKENS * batch, f"blocks.{block}"

    def linear(name: str, role: str, k: int, n: int) -> Operator:
        return hw.matmul(name=f"{root}.{name}", role=role, m=m, k=k, n=n, block=block)

    attention = {"block": block, "attention_group": f"{root}.attn", "fused_in_source": True}
    heads = batch * HEADS
    return [
        hw.layernorm(name=f"{root}.norm1", rows=m, cols=width, block=block),
        linear("attn.qkv", "qkv", width, 3 * width),
        hw.matmul(name=f"{root}.attn.scores", role="scores", batch=heads, m=TOKENS, k=HEAD, n=TOKENS, **attention),
        hw.softmax(name=f"{root}.attn.softmax", rows=heads * TOKENS, cols=TOKENS, **attention),
        hw.matmul(name=f"{root}.attn.context", role="context", batch=heads, m=TOKENS, k=TOKENS, n=HEAD, **attention),
        linear("attn.proj", "proj", width, width),
        hw.elementwise("add", name=f"{root}.add1", elements=m * width, inputs=2, block=block),
        hw.layernorm(name=f"{root}.norm2", rows=m, cols=width, block=block),
        linear("mlp.fc1", "fc1", width, 4 * width),
        hw.gelu(name=f"{root}.mlp.act", elements=m * 4 * width, block=block),
        linear("mlp.fc2", "fc2", 4 * width, width),
        hw.elementwise("add", name=f"{root}.add2", elements=m * width, inputs=2, block=block),
    ]


def vit(blocks: int = 2, width: int = 192, batch: int = 1, model: str = "vit_by_hand") -> Trace:
    """A ViT of so many encoder blocks, attention spelled out."""
    rows = [hw.matmul(name="patch_embed.proj", role="patch_embed", m=196 * batch, k=768, n=width)]
    for block in range(blocks):
        rows += _encoder(block, width, batch)
    rows.append(hw.matmul(name="head", role="head", m=batch, k=width, n=1000))
    shape = (batch, 3, 224, 224)
    return Trace(model=model, operators=tuple(rows), batch=batch, input_shape=shape, versions={"torch": "2.13.0"})


def pruned(trace: Trace, density: float, block: tuple[int, int] = (32, 32), *, stored: bool = False) -> Trace:
    """Every encoder layer with weights masked: by an expectation, or by a stored mask drawn from a fixed seed."""
    random = np.random.default_rng(7)

    def mask(operator: Operator) -> Mask:
        shape = (operator.n, operator.k)
        if not stored:
            return expected_mask(shape, block, density)
        grid = BlockMask.full(shape, block).kept.shape
        return BlockMask(shape, block, random.random(grid) < density)

    rows = [
        operator.replace(mask=mask(operator)) if operator.parameter and operator.block is not None else operator
        for operator in trace.operators
    ]
    return trace.replace(operators=tuple(rows))


def sourced(value: Any, fidelity: str = "published") -> dict[str, Any]:
    """One entry of a card's parameters."""
    return {"value": value, "fidelity": fidelity, "source": "made up for a test, https://example.org/sheet"}


def score(quantity: str, mode: str, dtypes: list[str], **changes: Any) -> dict[str, Any]:
    """One line of a scoreboard."""
    line = {
        "quantity": quantity, "mode": mode, "dtypes": dtypes, "against": "held-out rows", "rows": 31, "median": 0.051,
        "mean": 0.062, "p90": 0.12, "max": 0.21, "bias": -0.01, "band": True,
    }  # fmt: skip
    return line | changes


def card(name: str, *, scores: list[dict[str, Any]] | None = None, fidelity: str = "calibrated", **changes: Any) -> Card:
    """A card that no backend has to know."""
    trust = {"latency": fidelity, "energy": "assumed", "reason": "made up for a test"}
    document = {
        "schema_version": 1,
        "name": name,
        "title": f"A machine called {name}",
        "backend": "none",
        "dtypes": ["fp16"],
        "default_dtype": "fp16",
        "default_mode": "full",
        "parameters": {"clock_hz": sourced(1e9), "dram_bytes_per_s": sourced(25.6e9, "assumed")},
        "fidelity": {"full": trust, "compiled": trust, "engine": trust},
        "scores": scores or [],
    }
    return Card.model_validate(document | changes)


def estimate(
    trace: Trace,
    machine: Card,
    *,
    mode: str = "full",
    rate: float = 1e12,
    bytes_per_s: float = 25.6e9,
    gap_s: float = 0.0,
    tile: int | None = None,
    power_w: float = 5.0,
    fused: bool = False,
    overrides: Mapping[str, Any] | None = None,
) -> Estimate:
    """Price a trace by a plain roofline; ``tile`` is the side of the skip unit, None where nothing can be skipped."""
    workload = Workload.of(trace, dtype=None, default_dtype="fp16")
    executed = workload.shape_macs.copy()
    for row, mask in enumerate(workload.masks):
        if mask is not None and tile is not None:
            whole = np.ceil(workload.n[row] / tile) * np.ceil(workload.k[row] / tile)
            executed[row] *= mask.occupied_tiles(tile, tile) / whole
    moved = 2.0 * (workload.input_elements + workload.output_elements + workload.weight_elements)
    compute, memory = executed / rate, moved / bytes_per_s
    busy, into = np.maximum(compute, memory), np.arange(len(trace))
    if fused:
        busy, moved, into = _fuse(trace, busy, moved, into)
    gaps = np.where(into == np.arange(len(trace)), gap_s, 0.0)
    latency = busy + gaps
    energy = latency * power_w / 4
    costs = Costs(
        cycles=latency * 1e9, latency_s=latency, gap_s=gaps, compute_j=energy, onchip_j=energy, offchip_j=energy, static_j=energy,
        dram_bytes=moved, executed_macs=executed, bound=np.where(compute >= memory, "compute", "memory").astype(np.str_),
        kernel=workload.kind, fused_into=into,
    )  # fmt: skip
    execution = next(part for part in mode.split("+") if part in machine.fidelity)
    return Estimate(
        workload=workload,
        card=machine,
        mode=mode,
        dtype="fp16",
        costs=costs,
        options=Options(mode=execution),
        overrides=overrides or {},
    )


def changed(one: Estimate, **columns: Any) -> Estimate:
    """The estimate with some columns of its costs replaced; a single value fills the column."""
    whole = {name: np.broadcast_to(value, len(one.trace)) for name, value in columns.items()}
    return replace(one, costs=replace(one.costs, **whole))


def _fuse(trace: Trace, busy: Any, moved: Any, into: Any) -> tuple[Any, Any, Any]:
    """Put the cost of softmax and context on the scores they follow."""
    for row, operator in enumerate(trace.operators):
        if operator.name.endswith(("softmax", "context")):
            lead = next(at for at, one in enumerate(trace.operators) if one.name == operator.name.rpartition(".")[0] + ".scores")
            busy[lead] += busy[row]
            moved[lead] += moved[row]
            busy[row] = moved[row] = 0.0
            into[row] = lead
    return busy, moved, into


GPU = card(
    "gpu-like",
    parameters={
        "clock_hz": sourced(1.41e9),
        "sm_count": sourced(108),
        "macs_per_clock_sm": sourced({"fp16": 1024, "fp32": 64}),
        "dram_bytes_per_s": sourced(1555e9),
    },
    scores=[score("latency", "compiled", ["fp16"]), score("power", "compiled", ["fp16"])],
)
TPU = card(
    "tpu-like",
    parameters={
        "array_rows": sourced(128),
        "array_cols": sourced(128),
        "mxus": sourced(2),
        "clock_hz": sourced(0.94e9),
        "product_hbm_bytes_per_s": sourced(396e9, "calibrated"),
    },
)
EDGE = card(
    "edge-like",
    power_modes={"30w": {"clock_hz": sourced(0.6e9)}, "maxn": {"clock_hz": sourced(1.3e9)}},
    parameters={
        "clock_hz": sourced(1.3e9),
        "sm_count": sourced(16),
        "macs_per_clock_sm": sourced({"fp16": 512}),
        "dram_bytes_per_s": sourced(204.8e9),
    },
)
PE = card("pe-like", fidelity="assumed")


def on_four_machines(trace: Trace) -> tuple[Estimate, ...]:
    """A trace priced on machines that differ as the real ones do."""
    return (
        estimate(trace, PE, tile=32, rate=1.0e12, power_w=0.8),
        estimate(trace, TPU, tile=128, rate=25e12, bytes_per_s=396e9, power_w=150),
        estimate(trace, GPU, mode="compiled", tile=64, rate=120e12, bytes_per_s=1300e9, gap_s=1.5e-6, power_w=220, fused=True),
        estimate(trace, EDGE, mode="engine+30w", tile=None, rate=8e12, bytes_per_s=160e9, gap_s=5e-6, power_w=25, fused=True),
    )


def variants(blocks: int = 2, width: int = 192, batch: int = 1, model: str = "vit_by_hand") -> list[Variant]:
    """A dense variant, one with expected and one with stored masks, on four machines."""
    dense = vit(blocks, width, batch, model)
    expected, stored = pruned(dense, 0.26), pruned(dense, 0.5, (64, 64), stored=True)
    named = {"dense": dense, "32x32 at 26 %": expected, "64x64 at 50 %": stored}
    return [Variant(label, trace, on_four_machines(trace)) for label, trace in named.items()]
