"""What one core's arrays, memory and vector unit spend on each operator: weights load behind streaming, nothing is skewed.

Constants and their evidence are in ``simulators/tpu-v3``. Arrays have shape (n_ops,), or (designs, n_ops) in a sweep.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from hwmodel.backends.base import BoolArray, FloatArray, IntArray, Number, TextArray, Workload, by_key
from hwmodel.backends.tpu.lowering import LOWERINGS
from hwmodel.backends.tpu.parameters import TpuParameters

_ACCUMULATOR_BYTES = 4.0
_MASTER_WEIGHT_BYTES = 4.0


@dataclass(frozen=True, kw_only=True, eq=False)
class Work:
    """What a set of operators asks of each resource. Every array has one entry per operator.

    Parameters
    ----------
    compute_s, memory_s, vector_s : seconds each resource is busy, in parallel with the others
    macs : multiply-accumulates performed, padding of weight tiles included
    vector_ops : vector instructions
    dram_bytes, vmem_bytes : bytes moved off chip and on chip
    """

    compute_s: FloatArray
    memory_s: FloatArray
    vector_s: FloatArray
    macs: FloatArray
    vector_ops: FloatArray
    dram_bytes: FloatArray
    vmem_bytes: FloatArray


def total(works: Sequence[tuple[int, Work]]) -> Work:
    """What several cores do together: (number of such cores, the work of one). Their seconds add up to busy time."""
    sums = {item.name: sum(count * getattr(work, item.name) for count, work in works) for item in fields(Work)}
    return Work(**{name: np.asarray(value) for name, value in sums.items()})


def spread(work: Work, place: IntArray) -> Work:
    """The work of every operator from that of the distinct ones: ``place`` names each operator's like among them."""
    return Work(**{item.name: np.take(getattr(work, item.name), place, axis=-1) for item in fields(Work)})


@dataclass(frozen=True, kw_only=True, eq=False)
class Products:
    """Products (m, k) x (k, n), ``batch`` of them; rows that are no product have batch 0.

    ``tiles`` are the weight tiles of one product that hold work, ``share`` the share of all its tiles; ``copies`` how
    many right operands there are; ``most_left`` the most elements that all left operands together occupy in memory.
    """

    batch: IntArray
    m: IntArray
    k: IntArray
    n: IntArray
    tiles: FloatArray
    share: FloatArray
    copies: IntArray
    most_left: FloatArray
    left_bytes: FloatArray
    right_bytes: FloatArray
    dtype: TextArray


def padded(count: Any, unit: Number) -> FloatArray:
    """``count`` rounded up to a multiple of ``unit``."""
    whole: FloatArray = np.ceil(count / np.asarray(unit)) * unit
    return whole


def occupied_tiles(workload: Workload, rows: Number, cols: Number) -> FloatArray:
    """Weight tiles of ``rows`` inputs by ``cols`` outputs that hold a kept block: all of them where dense.

    Shape (n_ops,), or (designs, n_ops); counted once per distinct array shape of a sweep.
    """
    shapes = np.stack([side.ravel() for side in np.broadcast_arrays(np.asarray(rows), np.asarray(cols))], axis=-1)
    distinct, row_of = np.unique(shapes, axis=0, return_inverse=True)
    tiles = np.stack([workload.tiles(int(out_side), int(in_side)) for in_side, out_side in distinct])
    chosen: FloatArray = tiles[row_of.ravel()] if np.ndim(rows) or np.ndim(cols) else tiles[0]
    return chosen


def first_products(workload: Workload, parameters: TpuParameters) -> Products:
    """Products and convolutions as they are, and the scores of attentions written by hand."""
    w, p = workload, parameters
    tiles = occupied_tiles(w, p.array_rows, p.array_cols)
    amp = np.char.startswith(w.weight_dtype, "amp-")
    weight_bytes = np.where(amp, _MASTER_WEIGHT_BYTES, w.weight_element_bytes)
    one_weight = w.parameter & (w.weight_elements < w.batch * w.k * w.n)
    return Products(
        batch=np.where(((w.family == "product") | (w.family == "attention")) & ~w.constant, w.batch, 0),
        m=w.m,
        k=w.k,
        n=w.n,
        tiles=tiles,
        share=_share(tiles, _all_tiles(w.k, w.n, p)),
        copies=np.where(one_weight, 1, w.batch),
        most_left=np.where(w.kind == "conv", w.input_elements, np.inf),
        left_bytes=w.activation_bytes,
        right_bytes=np.where(w.parameter, weight_bytes, w.activation_bytes),
        dtype=w.dtype,
    )


def second_products(workload: Workload, parameters: TpuParameters) -> Products:
    """The context products of attentions written by hand: (m queries, n keys) x (n keys, k head dimension)."""
    w = workload
    return Products(
        batch=np.where((w.family == "attention") & ~w.constant, w.batch, 0),
        m=w.m,
        k=w.n,
        n=w.k,
        tiles=_all_tiles(w.n, w.k, parameters),
        share=np.ones(len(w)),
        copies=w.batch,
        most_left=np.full(len(w), np.inf),
        left_bytes=w.activation_bytes,
        right_bytes=w.activation_bytes,
        dtype=w.dtype,
    )


def _all_tiles(k: IntArray, n: IntArray, parameters: TpuParameters) -> FloatArray:
    tiles: FloatArray = np.ceil(k / np.asarray(parameters.array_rows)) * np.ceil(n / np.asarray(parameters.array_cols))
    return tiles


def _share(tiles: FloatArray, whole: FloatArray) -> FloatArray:
    tiles, whole = np.broadcast_arrays(tiles, whole)
    return np.divide(tiles, whole, out=np.ones(tiles.shape), where=whole > 0)


def product_work(products: Products, parameters: TpuParameters) -> Work:
    """What products cost on arrays that load the next weights while they stream.

    Per tile of weights ``max(pad(m), rows)`` cycles: ``rows`` of them would load the next tile. All arrays of the core
    share the tiles evenly. Memory moves each operand once, padded to sublanes and lanes as it lies in HBM; a pruned
    weight tile is neither loaded nor streamed.

    Source: fits of ``tpu_v3_ops.csv`` (simulators/tpu-v3/README.md). Ignores: uneven tile counts over the arrays, skew,
    operands read again because they exceed the on-chip memory.
    """
    p = parameters
    rows, cols = np.asarray(p.array_rows), np.asarray(p.array_cols)
    m, k, n = padded(products.m, p.sublanes), padded(products.k, cols), padded(products.n, cols)
    tiles = np.where(products.m > 0, products.batch * products.tiles, 0.0)
    passes = by_key(p.product_passes, products.dtype, "product_passes")
    compute_s = tiles * passes * np.maximum(m, rows) / (p.mxus * p.clock_hz * p.mxu_efficiency)
    left = np.minimum(products.batch * m * k, products.most_left) * products.left_bytes
    right = products.copies * padded(products.k, rows) * n * products.share * products.right_bytes
    result = products.batch * m * n * products.left_bytes
    dram = np.where(tiles > 0, left + right + result, 0.0)
    vmem = tiles * (m * (rows * products.left_bytes + cols * _ACCUMULATOR_BYTES) + rows * cols * products.right_bytes)
    macs = tiles * rows * cols * products.m
    return Work(
        compute_s=compute_s,
        memory_s=dram / p.product_hbm_bytes_per_s,
        vector_s=np.zeros_like(compute_s),
        macs=macs,
        vector_ops=np.zeros_like(compute_s),
        dram_bytes=dram,
        vmem_bytes=vmem,
    )


def vector_work(workload: Workload, fused: BoolArray, extra_bytes: FloatArray, alone: BoolArray, parameters: TpuParameters) -> Work:
    """What everything that is no product costs: passes over HBM beside instructions of the vector unit.

    Rows that ride in another kernel (``fused``) move only ``extra_bytes``, the operands which that kernel does not
    produce itself; rows ``alone`` are programs by themselves. The vector unit and what lies between its passes are 32
    bits wide: a 16-bit operator takes as long as a 32-bit one, in the measurements too; pure data movement keeps its
    own width.
    """
    p = parameters
    dram = np.where(fused, extra_bytes, _kernel_bytes(workload, alone, p))
    kind_or_family = np.where(np.isin(workload.kind, list(p.vector_ops)), workload.kind, workload.family)
    kind_or_family = np.where(workload.family == "attention", "softmax", kind_or_family)
    kind_or_family = np.where(np.isin(kind_or_family, list(p.vector_ops)), kind_or_family, "rowwise")
    values = np.where((workload.family == "product") | workload.constant, 0, workload.elements)
    ops = values * by_key(p.vector_ops, kind_or_family, "vector_ops")
    vector_s = ops / (p.vector_ops_per_cycle * np.asarray(p.clock_hz))
    zeros = np.zeros_like(vector_s)
    return Work(
        compute_s=zeros,
        memory_s=dram / p.vector_hbm_bytes_per_s,
        vector_s=vector_s,
        macs=zeros,
        vector_ops=ops,
        dram_bytes=dram,
        vmem_bytes=dram,
    )


def _kernel_bytes(workload: Workload, alone: BoolArray, parameters: TpuParameters) -> FloatArray:
    """Bytes that each operator that is no product moves to and from HBM in a kernel of its own."""
    p = parameters
    family = workload.family
    touched = workload.input_elements + workload.weight_elements + workload.output_elements
    element = np.asarray(p.vector_element_bytes)
    moved = np.where(family == "movement", touched * workload.activation_bytes, touched * element)
    moved = np.where((family == "rowwise") | (family == "attention"), _rowwise_bytes(workload, alone, p), moved)
    return np.where((family == "product") | workload.constant, 0.0, moved)


def _rowwise_bytes(workload: Workload, alone: BoolArray, parameters: TpuParameters) -> FloatArray:
    """Passes over HBM of operators on rows, padded to sublanes and lanes.

    Some kinds need fewer passes inside a compiled program; alone, they do for the first half of the on-chip memory's
    worth of elements only. An attention written by hand is a program. The card's ``lowering`` may say otherwise.
    """
    p, lowering = parameters, LOWERINGS[parameters.lowering]
    attention = workload.family == "attention"
    kind = np.where(attention, "softmax", workload.kind)
    kind = np.where(np.isin(kind, list(p.hbm_passes)), kind, "rowwise")
    passes = np.minimum(by_key(p.hbm_passes, kind, "hbm_passes"), lowering.most_passes)
    inside = p.hbm_passes | p.program_hbm_passes if lowering.fewer_passes else p.hbm_passes
    fewer = np.minimum(by_key(inside, kind, "program_hbm_passes"), passes)
    cols = np.maximum(workload.cols, 1)
    elements = padded(workload.elements / cols, p.sublanes) * padded(cols, p.array_cols)
    reach = p.vmem_bytes / 2 / np.asarray(p.vector_element_bytes)
    near = np.where(alone & ~attention, np.minimum(elements, reach), elements)
    whole: FloatArray = (passes * (elements - near) + fewer * near) * p.vector_element_bytes
    return whole
