"""When launches, arithmetic units and DRAM of a GPU work for each operator: what the timeline draws beside the kernels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import numpy as np

from hwmodel.backends.base import Costs, FloatArray, Occupation, Workload, by_key
from hwmodel.backends.gpu.attention import GENERATIONS
from hwmodel.backends.gpu.lowering import AttentionColumns, Lowered
from hwmodel.backends.gpu.parameters import GpuParameters, arithmetic

_LEAST: Final = "at its peak rate and full clock, the least time they take; drawn from the end of the launch, the rest is waiting."


def occupations(workload: Workload, lowered: Lowered, costs: Costs, gpu: GpuParameters) -> Mapping[str, Occupation]:
    """Every unit's work per operator, on the row whose kernel carries it.

    Launch seconds are those of :mod:`hwmodel.backends.gpu.products`, ``vector`` and ``attention``. Arithmetic and DRAM are
    counted at peak rate, so what is drawn is a lower bound of the time they work and never more than the slice.
    """
    launch = np.minimum(_launches(lowered, gpu, len(workload)), costs.latency_s - costs.gap_s)
    formats = arithmetic(workload.dtype)
    per_s = by_key(gpu.macs_per_clock_sm, formats, "macs_per_clock_sm") * gpu.sm_count * gpu.clock_hz
    multiply = _on_kernels(costs.executed_macs / per_s, costs)
    vector = _vector(lowered, gpu, len(workload))
    dram = np.minimum(costs.dram_bytes / gpu.dram_bytes_per_s, costs.latency_s - costs.gap_s)
    cuda = formats[costs.fused_into] == "fp32"

    def within(busy: FloatArray) -> FloatArray:
        """Start after the launch, or earlier where the model lets a kernel end sooner."""
        return np.maximum(np.minimum(launch, costs.latency_s - costs.gap_s - busy), 0.0)

    def told(what: str, busy: FloatArray) -> Occupation:
        return Occupation(what=what, busy_s=busy, start_s=within(busy))

    nothing = np.zeros(len(workload))
    return {
        "host gap": Occupation(
            what="The GPU waits for the host or between two kernels.", busy_s=costs.gap_s, start_s=costs.latency_s - costs.gap_s
        ),
        "launch": Occupation(what="Launch and drain of the operator's kernels.", busy_s=launch, start_s=nothing),
        "tensor cores": told(f"Executed MACs {_LEAST}", np.where(cuda, 0.0, multiply)),
        "CUDA cores (products)": told(f"Executed fp32 MACs {_LEAST}", np.where(cuda, multiply, 0.0)),
        "vector and special functions": told(f"Instructions without products, softmax included, {_LEAST}", vector),
        "DRAM": told(f"Bytes to and from DRAM {_LEAST} At most the slice: the L2 may serve part of them.", dram),
    }


def _on_kernels(values: FloatArray, costs: Costs) -> FloatArray:
    """Every row's value added to the row whose kernel carries it."""
    total = np.zeros_like(values)
    np.add.at(total, costs.fused_into, values)
    return total


def _launches(lowered: Lowered, gpu: GpuParameters, count: int) -> FloatArray:
    shares = np.zeros(count)
    np.add.at(shares, lowered.products.row, 1.0)
    np.add.at(shares, lowered.attentions.row, GENERATIONS[gpu.attention_kernel].launch)
    np.add.at(shares, lowered.streams.row, lowered.streams.launch)
    return shares * gpu.launch_cycles / gpu.clock_hz


def _vector(lowered: Lowered, gpu: GpuParameters, count: int) -> FloatArray:
    """Seconds of instructions of kernels without products, and of the exponentials inside fused attention."""
    cycles = np.zeros(count)
    np.add.at(cycles, lowered.streams.row, lowered.streams.issue)
    np.add.at(cycles, lowered.attentions.row, _exponentials(lowered.attentions) / gpu.exponentials_per_clock_sm)
    return cycles / (gpu.sm_count * gpu.clock_hz)


def _exponentials(heads: AttentionColumns) -> FloatArray:
    """One per query and key it sees."""
    return np.asarray(heads.batch * heads.m * heads.n * np.where(heads.causal, 0.5, 1.0), dtype=np.float64)
