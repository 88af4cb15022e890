"""Operators of one trace as compiled programs: which rows share a kernel, how long a kernel takes, what the host adds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields

import numpy as np

from hwmodel.backends.base import BoolArray, FloatArray, IntArray, TextArray, Workload, by_key
from hwmodel.backends.tpu.lowering import LOWERINGS, LoweringName
from hwmodel.backends.tpu.parameters import TpuParameters
from hwmodel.backends.tpu.silicon import Work


def kernel_leaders(workload: Workload, lowering: LoweringName = "xla") -> IntArray:
    """Row whose kernel carries each row: (n_ops,) int64.

    An elementwise operator rides in the kernel of the product (or elementwise operator) whose output it reads, where
    nobody else reads that output: bias, GELU, scaling and residual additions of a compiled program. Where several
    operands qualify it rides with the latest. Row-wise operators and movements have kernels of their own. Under lowering
    ``op-by-op`` everything has.
    """
    if not LOWERINGS[lowering].fuses:
        return np.arange(len(workload), dtype=np.int64)
    family, constant = workload.family.tolist(), workload.constant.tolist()
    leaders = list(range(len(workload)))
    for row, producers in enumerate(workload.predecessors):
        if family[row] != "elementwise" or constant[row]:
            continue
        hosts = [
            producer
            for producer in producers
            if family[producer] in {"product", "elementwise"} and not constant[producer] and len(workload.successors[producer]) == 1
        ]
        if hosts:
            leaders[row] = leaders[max(hosts)]
    return np.array(leaders, dtype=np.int64)


def extra_operand_bytes(workload: Workload) -> FloatArray:
    """Bytes an operator reads besides one operand of its own size: what an epilogue still has to fetch."""
    others = np.maximum(workload.input_elements - workload.output_elements, 0)
    extra: FloatArray = others * workload.activation_bytes + workload.weight_elements * workload.weight_element_bytes
    return extra


def programs(workload: Workload) -> IntArray:
    """Program of each row, named by its first row: rows joined by edges, directly or not, are compiled together."""
    return workload.once("tpu programs", lambda: _joined(workload))


def _joined(workload: Workload) -> IntArray:
    first = list(range(len(workload)))

    def root(row: int) -> int:
        while first[row] != row:
            first[row] = first[first[row]]
            row = first[row]
        return row

    for producer, consumer in workload.trace.edges:
        one, other = sorted((root(producer), root(consumer)))
        first[other] = one
    return np.array([root(row) for row in range(len(workload))], dtype=np.int64)


def alone(workload: Workload) -> BoolArray:
    """Rows that are programs by themselves: nothing runs beside them and nothing is laid out for them."""
    program = programs(workload)
    single: BoolArray = np.bincount(program, minlength=len(workload))[program] == 1
    return single


def distinct_kernels(workload: Workload, leaders: IntArray) -> tuple[IntArray, IntArray]:
    """Rows of every distinct kernel once, ascending, and where among them each row finds its like.

    Kernels are alike where their members are, one by one, and both or neither are programs by themselves.
    """
    single, alike = alone(workload).tolist(), workload.alike.tolist()
    members: dict[int, list[int]] = {}
    for row, leader in enumerate(leaders.tolist()):
        members.setdefault(leader, []).append(row)
    first: dict[tuple[object, ...], list[int]] = {}
    like = np.empty(len(workload), dtype=np.int64)
    for leader, rows in members.items():
        like[rows] = first.setdefault((single[leader], *(alike[row] for row in rows)), rows)
    kept, place = np.unique(like, return_inverse=True)
    return kept, place


def summed_into(values: FloatArray, rows: IntArray) -> FloatArray:
    """Each entry of the last axis added to the entry that ``rows`` names; the others are zero."""
    total: FloatArray = np.zeros(values.shape)
    np.add.at(total.T, rows, values.T)
    return total


def merged(parts: Sequence[Work], leaders: IntArray) -> Work:
    """All parts together, moved to the rows whose kernels carry them."""
    sums = {item.name: sum(getattr(part, item.name) for part in parts) for item in fields(Work)}
    return Work(**{name: summed_into(np.asarray(value), leaders) for name, value in sums.items()})


def kernel_s(work: Work) -> FloatArray:
    """Seconds of each kernel: arrays, memory and vector unit work at the same time, the slowest decides."""
    longest: FloatArray = np.maximum(np.maximum(work.compute_s, work.memory_s), work.vector_s)
    return longest


def exposed_s(work: Work, workload: Workload, single: BoolArray, parameters: TpuParameters) -> FloatArray:
    """First loads and last stores of a product that is a program by itself (``single``): nothing runs beside them.

    At most half the on-chip memory, the buffer that must fill before the arrays start. Inside a compiled program
    weights are fetched while the operator before runs, so nothing is added.
    """
    waits = single & (workload.family == "product")
    buffer_s = parameters.vmem_bytes / 2 / np.asarray(parameters.product_hbm_bytes_per_s)
    exposed: FloatArray = np.where(waits, np.minimum(np.minimum(work.compute_s, work.memory_s), buffer_s), 0.0)
    return exposed


def host_gap_s(device_s: FloatArray, workload: Workload, parameters: TpuParameters) -> FloatArray:
    """What a host-side clock sees besides the device, once per program, on the program's first row.

    Dispatch by kind for a program of one operator, and a step for every limit that the program's device time passes
    (the host then waits in longer sleeps). A program that does nothing is not dispatched.
    """
    p = parameters
    program = programs(workload)
    total = summed_into(device_s, program)
    key = np.where(alone(workload) & np.isin(workload.kind, list(p.dispatch_s)), workload.kind, "program")
    gap = by_key(p.dispatch_s, key, "dispatch_s")
    for limit, step in zip(p.host_step_after_s, p.host_step_s, strict=True):
        gap = gap + np.where(total > limit, step, 0.0)
    return np.where(total > 0, gap, 0.0)


def bound_by(work: Work, device_s: FloatArray) -> TextArray:
    """Limiting resource of each kernel: "compute", "memory", "vector", or "none" where nothing runs."""
    choices = [work.compute_s, work.memory_s, work.vector_s]
    slowest = np.argmax(np.stack(np.broadcast_arrays(*choices)), axis=0)
    names: TextArray = np.array(["compute", "memory", "vector"])[slowest]
    return np.where(device_s > 0, names, "none")
