"""General-purpose processors: a multi-core roofline of few constants, for PyTorch in eager mode on the machine at hand.

Its first use is the loop measure, calibrate, predict on a machine without accelerator.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar, Final, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from hwmodel.backends.base import (
    BoolArray,
    Costs,
    FloatArray,
    IntArray,
    Occupation,
    Options,
    Parameters,
    TextArray,
    Workload,
    by_key,
)
from hwmodel.ir.kinds import TRANSCENDENTAL

Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(gt=0, le=1)]
Work = Literal["plain", "special", "norm"]

FAMILIES: Final = frozenset({"product", "attention", "rowwise", "elementwise", "movement", "reduction"})
IMPLICIT: Final = {"patchify": "the patch convolution reads the image in place"}
GRAIN: Final = 32768.0
"""Elements below which PyTorch stays on one core (``at::internal::GRAIN_SIZE``, ATen/Parallel.h)."""


class CpuParameters(Parameters):
    """Resolved numbers of one processor, SI units."""

    cores: Positive
    clock_hz: Positive
    macs_per_cycle_core: dict[str, Positive]
    """Peak multiply-accumulates per cycle and core, by dtype."""
    product_efficiency: Share
    """Part of that peak which matrix products reach."""
    elements_per_cycle_core: dict[Work, Positive]
    """``plain`` arithmetic and reductions, ``special`` functions and softmax, ``norm``: layernorm and its kin."""
    cache_bytes: Positive
    """Last-level cache."""
    cache_bytes_per_s_core: Positive
    dram_bytes_per_s: Positive
    operator_s: NonNegative
    """Dispatch of one operator: Python, ATen, allocation, waking the other cores."""
    idle_w: NonNegative
    static_w: NonNegative
    """Package power while any operator runs, before the first operation or byte; idle included."""
    mac_j: dict[str, Positive]
    element_j: NonNegative
    cache_j_per_byte: NonNegative
    dram_j_per_byte: NonNegative

    @model_validator(mode="after")
    def _budget(self) -> Self:
        if self.idle_w > self.static_w:
            raise ValueError(f"need idle_w <= static_w, got {self.idle_w} and {self.static_w}")
        return self


@dataclass(frozen=True, eq=False)
class _Calls:
    """What every row asks of the machine: columns of shape (n_ops,), zero where another row's kernel carries it.

    ``calls``: operators dispatched. ``macs`` executed. ``plain``, ``special``, ``norm``: elements by sort of work.
    ``moved_bytes``: every operand and result once.
    """

    calls: FloatArray
    macs: FloatArray
    plain: FloatArray
    special: FloatArray
    norm: FloatArray
    moved_bytes: FloatArray
    fused_into: IntArray

    def moved(self, rows: IntArray, into: int, moved_bytes: float) -> _Calls:
        """The same with the work of ``rows`` done by row ``into`` in one call that moves ``moved_bytes``."""
        columns = {name: getattr(self, name).copy() for name in ("calls", "macs", "plain", "special", "norm", "moved_bytes")}
        for column in columns.values():
            total = column[rows].sum()
            column[rows] = 0.0
            column[into] = total
        columns["calls"][into], columns["moved_bytes"][into] = 1.0, moved_bytes
        fused_into = self.fused_into.copy()
        fused_into[rows] = into
        return replace(self, **columns, fused_into=fused_into)


class Cpu:
    """Multi-core roofline. Mode ``eager``: one call per operator, attention fused where the source says so.

    Masks are not skipped: PyTorch multiplies the zeros. Only a weight without any kept block costs nothing.
    """

    name: ClassVar[str] = "cpu"
    modes: ClassVar[tuple[str, ...]] = ("eager",)
    parameters: ClassVar[type[CpuParameters]] = CpuParameters
    choices: ClassVar[frozenset[str]] = frozenset({"attention"})

    def kinds(self, mode: str) -> frozenset[str]:
        """Every family."""
        return FAMILIES

    def free(self, mode: str) -> Mapping[str, str]:
        """Unrolling an image into patches: the convolution does it."""
        return IMPLICIT

    def cost(self, workload: Workload, parameters: CpuParameters, options: Options) -> Costs:
        """Cost of every operator; see :class:`hwmodel.backends.base.Costs`."""
        calls = _fused(_calls(workload, options.attention), workload, options.attention)
        return _costs(calls, workload, parameters, options)

    def units(self, workload: Workload, parameters: CpuParameters, options: Options) -> Mapping[str, Occupation]:
        """When the host dispatches, the cores compute and DRAM moves bytes, of one design."""
        calls = _fused(_calls(workload, options.attention), workload, options.attention)
        compute, _, dram_bytes = times(calls, workload, parameters)
        overhead = np.asarray(calls.calls * parameters.operator_s)
        return {
            "dispatch": Occupation(
                what="Python and PyTorch dispatch the operator; nothing else runs meanwhile.",
                busy_s=overhead, start_s=np.zeros_like(overhead),
            ),
            "cores": Occupation(
                what="All cores: arithmetic of the operator at the rate the card reaches.", busy_s=compute, start_s=overhead
            ),
            "DRAM": Occupation(
                what="Bytes beyond the last-level cache at the card's bandwidth, drawn from when the cores start.",
                busy_s=np.asarray(dram_bytes / parameters.dram_bytes_per_s), start_s=overhead,
            ),
        }  # fmt: skip


def _costs(calls: _Calls, workload: Workload, cpu: CpuParameters, options: Options) -> Costs:
    compute, memory, dram_bytes = times(calls, workload, cpu)
    overhead = calls.calls * cpu.operator_s
    latency = overhead + np.maximum(compute, memory)
    elements = calls.plain + calls.special + calls.norm
    static_w = cpu.static_w - (0.0 if options.scope == "board" else cpu.idle_w)
    kernel = _kernels(workload)
    return Costs(
        cycles=latency * cpu.clock_hz,
        latency_s=latency,
        compute_j=calls.macs * by_key(cpu.mac_j, workload.dtype, "mac_j") + elements * cpu.element_j,
        onchip_j=calls.moved_bytes * cpu.cache_j_per_byte,
        offchip_j=dram_bytes * cpu.dram_j_per_byte,
        static_j=latency * static_w,
        dram_bytes=dram_bytes,
        executed_macs=np.where(_empty(workload), 0.0, workload.shape_macs),
        bound=_bounds(overhead, compute, memory)[calls.fused_into],
        kernel=kernel[calls.fused_into],
        fused_into=calls.fused_into,
    )


def times(calls: _Calls, workload: Workload, cpu: CpuParameters) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Compute and memory seconds and DRAM bytes of each row: (n_ops,) or (designs, n_ops).

    Notes
    -----
    Roofline (Williams, Waterman and Patterson, CACM 52(4), 2009) over all cores; elementwise work below :data:`GRAIN`
    elements a core stays on fewer. The first ``cache_bytes`` of what an operator touches move at cache speed, the rest
    at DRAM speed. Ignores vector remainders, NUMA, turbo clocks and what an earlier operator left in the cache.
    """
    rates = cpu.elements_per_cycle_core
    elements = calls.plain / rates["plain"] + calls.special / rates["special"] + calls.norm / rates["norm"]
    touched = calls.plain + calls.special + calls.norm
    whole = calls.macs > 0
    cores = np.where(whole, cpu.cores, np.clip(touched / GRAIN, np.minimum(1.0, cpu.cores), cpu.cores))
    peak = by_key(cpu.macs_per_cycle_core, workload.dtype, "macs_per_cycle_core") * cpu.product_efficiency
    compute: FloatArray = (calls.macs / peak + elements) / (cores * cpu.clock_hz)
    dram_bytes = np.maximum(calls.moved_bytes - cpu.cache_bytes, 0.0)
    cached = calls.moved_bytes - dram_bytes
    memory: FloatArray = cached / (cpu.cache_bytes_per_s_core * cores) + dram_bytes / cpu.dram_bytes_per_s
    return compute, memory, dram_bytes


def _empty(workload: Workload) -> BoolArray:
    return np.array([mask is not None and mask.kept_blocks == 0 for mask in workload.masks], dtype=np.bool_)


def _calls(workload: Workload, attention: str) -> _Calls:
    """Every operator by itself; a hand-made attention that runs unfused is three calls with its scores in memory."""
    family, kind = workload.family, workload.kind
    alive = np.where(_empty(workload) | np.isin(kind, list(IMPLICIT)), 0.0, 1.0)
    hand = family == "attention"
    unfused = hand & (attention == "math")
    special = np.isin(kind, [*TRANSCENDENTAL, "softmax", "log_softmax"]) | hand
    norm = (family == "rowwise") & ~special
    elements = alive * np.where(family == "product", 0, workload.elements)
    moved = (workload.input_elements + workload.output_elements) * workload.activation_bytes
    moved = moved + workload.weight_elements * workload.weight_element_bytes
    scores = 4.0 * workload.elements * workload.activation_bytes
    return _Calls(
        calls=alive * np.where(unfused, 3.0, 1.0),
        macs=alive * workload.shape_macs,
        plain=np.where(special | norm, 0.0, elements),
        special=np.where(special, elements, 0.0),
        norm=np.where(norm, elements, 0.0),
        moved_bytes=alive * (moved + np.where(unfused, scores, 0.0)),
        fused_into=np.arange(len(workload)),
    )


def _fused(calls: _Calls, workload: Workload, attention: str) -> _Calls:
    """Attention groups that run as one call: queries, keys, values and result move once, the scores stay in cache."""
    groups = workload.attention_group
    for group in sorted(set(groups.tolist()) - {""}):
        rows = np.flatnonzero(groups == group)
        products = rows[workload.family[rows] == "product"]
        in_source = bool(workload.fused_in_source[rows].any())
        if len(products) and (attention == "fused" or (attention == "source" and in_source)):
            first = products[0]
            sides = workload.m[first] + workload.n[first]
            moved = float(workload.batch[first] * 2 * workload.k[first] * sides * workload.activation_bytes[first])
            calls = calls.moved(rows, int(rows[0]), moved)
    return calls


def _kernels(workload: Workload) -> TextArray:
    """Name of each row's kernel; a pruned product says that its zeros are multiplied."""
    names = np.where(np.isin(workload.family, ("product", "attention")), workload.family, "vector").astype("<U24")
    names[[mask is not None for mask in workload.masks]] = "product, zeros included"
    names[_empty(workload)] = "skipped"
    return names


def _bounds(overhead: FloatArray, compute: FloatArray, memory: FloatArray) -> TextArray:
    """What takes the longest of each row, in the first design of a sweep."""
    columns = np.broadcast_arrays(overhead, compute, memory)
    first = np.stack([column[0] if column.ndim == 2 else column for column in columns])
    names = np.array(["host", "compute", "memory"])[first.argmax(axis=0)]
    return np.where(first.sum(axis=0) > 0, names, "none")
