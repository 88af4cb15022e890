"""Operators without products: elementwise, row-wise, reductions, data movement. Pure formulas on arrays."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np

from hwmodel.backends.base import FloatArray
from hwmodel.backends.gpu.parameters import GpuParameters
from hwmodel.ir.kinds import MOVEMENT, REDUCTION, ROWWISE, TRANSCENDENTAL

GATES: Final = frozenset({"silu", "gelu", "gelu_tanh", "quick_gelu", "sigmoid"})
GATED: Final = "gated"
"""Physics of one of :data:`GATES` with two operands: an activation times a gate in one kernel."""

LAUNCH_SHARE: Final = {"layernorm": 2.35, "groupnorm": 2.35, "softmax": 1.35, "log_softmax": 1.35}
"""Launch latency relative to a product kernel's; Vidur A100 at few tokens: layernorm 6.9 us with its row."""
PLAIN_LAUNCH_SHARE: Final = 0.73
"""Anything else: 1.9-2.0 us for GELU and add in the same rows; rmsnorm and gated activations as well, once their one row
has its own time."""

CHEAP_TRANSCENDENTALS: Final = frozenset({"exp", "sqrt", "rsqrt", "sigmoid", "silu", "log", "log2", "quick_gelu"})
ISSUE: Final = {"plain": 24.0, "cheap": 8.0, "transcendental": 2.7, "norm": 3.5, "rmsnorm": 1.7, "gated": 1.38,
                "softmax": 1.9, "reduction": 12.0}  # fmt: skip
"""Elements one SM processes per clock. GELU: 330-390 G/s on A100 (FlagPerf, LLMCompass, Vidur); softmax: LLMCompass;
rmsnorm and gated activations, kernels of serving runtimes that load one value at a time: Vidur (vLLM)."""
BLOCK_PER_ROW: Final = frozenset({"layernorm", "rmsnorm"})
"""Kinds whose kernels give every row to one block of threads, so fewer rows than SMs leave SMs without work. Gated
activations are written that way as well."""

OVERLAP: Final = 6.0
"""p-norm of instruction issue and memory time (GELU on three A100 boards: 328, 390 and 333 G/s)."""
NORM_OVERLAP: Final = 2.0
"""Same for layernorm and gated activations, whose few blocks per SM read, compute and write in turn."""
RMSNORM_OVERLAP: Final = 1.0
"""None: one block of 1024 threads reads its row, waits for the sum of squares, and only then writes (Vidur rmsnorm, fit
rows: mean error 9.0 %, against 9.8 % with the overlap of layernorm and its own best rate)."""
L2_FADE: Final = 2.0
"""Working sets above the resident share miss more and more, all of it at (1 + L2_FADE) times the share (Vidur adds)."""
L2_KEPT: Final = 0.6
"""Part of the resident share that even a large working set saves: reads of what was just written, writes that drain behind
the next kernel (Vidur adds of 100 to 800 MB)."""
NORM_ROW_BYTES: Final = 14000.0
"""Above this row length layernorm reads its input a second time (NeuSight: 2560 columns of fp32 do not, 4096 do)."""
SOFTMAX_ROW_BYTES: Final = 34000.0
"""Same for softmax (NeuSight: 8192 columns of fp32 do not, 10240 do)."""
SOFTMAX_THIRD_READ_BYTES: Final = 49152.0
"""Beyond 48 KiB a softmax row leaves shared memory: maximum, sum and result read it one after the other."""
SOFTMAX_THREADS: Final = 1024
SOFTMAX_VECTOR_BYTES: Final = 16
SOFTMAX_PARTIAL_FACTOR: Final = 1.33
"""A block of threads, a power of two at most 1024, that sweeps a row of more than 1024 values twice and idles in part
of the second sweep (NeuSight: 1280, 1600, 2560, 3072 columns; 2048 and 4096 do not)."""
SOFTMAX_ODD_FACTOR: Final = 1.5
"""Softmax over rows that are no multiple of 16 bytes: facts/modelling.md."""


def issue_rate(kind: str) -> float:
    """Elements per clock and SM of one operator kind."""
    if kind in {"softmax", "log_softmax"}:
        return ISSUE["softmax"]
    if kind == GATED:
        return ISSUE["gated"]
    if kind in ROWWISE:
        return ISSUE["rmsnorm" if kind == "rmsnorm" else "norm"]
    if kind in REDUCTION or kind in MOVEMENT:
        return ISSUE["reduction"]
    if kind in CHEAP_TRANSCENDENTALS:
        return ISSUE["cheap"]
    return ISSUE["transcendental"] if kind in TRANSCENDENTAL else ISSUE["plain"]


def launch_share(kind: str) -> float:
    """Launch latency of ``kind`` over that of a product kernel."""
    return LAUNCH_SHARE.get(kind, PLAIN_LAUNCH_SHARE)


def reads(kind: str, row_bytes: float) -> int:
    """Times a row-wise operator reads its input, more than once where a row does not fit on the SM."""
    if kind in {"softmax", "log_softmax"}:
        return 1 + (row_bytes > SOFTMAX_ROW_BYTES) + (row_bytes > SOFTMAX_THIRD_READ_BYTES)
    return 2 if kind in ROWWISE and row_bytes > NORM_ROW_BYTES else 1


def softmax_slow(cols: int, element_bytes: float) -> float:
    """Factor on a softmax whose rows suit its kernel badly: no multiple of 16 bytes, or threads that idle."""
    row_bytes = cols * element_bytes
    odd = SOFTMAX_ODD_FACTOR if row_bytes % SOFTMAX_VECTOR_BYTES else 1.0
    vectors = row_bytes / SOFTMAX_VECTOR_BYTES
    if cols <= SOFTMAX_THREADS or vectors >= SOFTMAX_THREADS:
        return odd
    return odd if vectors == 2 ** int(math.log2(vectors)) else max(odd, SOFTMAX_PARTIAL_FACTOR)


def overlap_of(kind: str) -> float:
    """p-norm of issue and memory time."""
    if kind == "rmsnorm":
        return RMSNORM_OVERLAP
    return NORM_OVERLAP if kind in ROWWISE | {GATED} and kind not in {"softmax", "log_softmax"} else OVERLAP


@dataclass(frozen=True, eq=False)
class Streams:
    """Columns of shape (n,): kernels that stream data once.

    ``issue``: SM cycles of instructions, all SMs together. ``rows``: blocks of threads they are shared among, zero where
    they spread evenly. ``moved_bytes``: all reads and writes. ``launch``: share of a
    product kernel's launch. ``slow``: factor on the time above launch. ``overlap``: p-norm of issue and memory time.
    """

    issue: FloatArray
    rows: FloatArray
    moved_bytes: FloatArray
    launch: FloatArray
    slow: FloatArray
    overlap: FloatArray


def dram_share(moved_bytes: FloatArray, gpu: GpuParameters) -> FloatArray:
    """Part of the bytes that DRAM serves: none while the working set fits the resident share of the L2.

    The L2 still holds what the kernel before wrote; a cold first kernel is dearer than this.
    """
    fill = moved_bytes / (gpu.l2_resident_share * gpu.l2_bytes)
    large = 1.0 - L2_KEPT / np.maximum(fill, 1.0)
    share: FloatArray = np.minimum(np.clip((fill - 1.0) / L2_FADE, 0.0, 1.0), large)
    return share


def stream_seconds(streams: Streams, gpu: GpuParameters) -> tuple[FloatArray, FloatArray]:
    """Device time and DRAM bytes of each kernel, both (n,) or (designs, n).

    Notes
    -----
    ``launch + slow * norm(issue, memory)`` with memory = DRAM part at DRAM rate + the rest at L2 rate. Where a block of
    threads takes a row, the SM with the most rows decides.
    """
    share = dram_share(streams.moved_bytes, gpu)
    dram = streams.moved_bytes * share
    memory = dram / (gpu.dram_bytes_per_s * gpu.dram_efficiency)
    l2 = (streams.moved_bytes - dram) / (gpu.l2_bytes_per_clock_sm * gpu.sm_count * gpu.clock_hz)
    per_sm = np.where(streams.rows > 0, np.ceil(streams.rows / gpu.sm_count) / np.maximum(streams.rows, 1.0), 1.0 / gpu.sm_count)
    issue = streams.issue * per_sm / gpu.clock_hz
    busy = (issue**streams.overlap + (memory + l2) ** streams.overlap) ** (1.0 / streams.overlap)
    seconds: FloatArray = streams.launch * gpu.launch_cycles / gpu.clock_hz + streams.slow * busy
    return seconds, dram
