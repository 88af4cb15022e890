"""Cycles: products on the processing elements (PEs), special functions beside or after them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hwmodel.backends.base import BoolArray, FloatArray, IntArray, Number, Workload
from hwmodel.backends.vita.memory import Streams
from hwmodel.backends.vita.parameters import Design
from hwmodel.backends.vita.units import NOBODY, Units

_PASSES = {"softmax": 2, "log_softmax": 2, "layernorm": 2, "rmsnorm": 2, "groupnorm": 2, "l2norm": 2}
"""Passes of the special-function unit over its input: statistics, then normalisation. Every other kind takes one."""


def product_cycles(m: IntArray, batch: IntArray, occupied_tiles: FloatArray, cycles_per_layer: Number) -> FloatArray:
    """Cycles of products on one PE in mode ``paper``: one token vector per cycle and occupied tile.

    Parameters
    ----------
    m : (n_ops,)
        Token vectors that pass each tile.
    batch : (n_ops,)
        Independent products.
    occupied_tiles : (n_ops,)
        PE-shaped tiles of the right operand that hold a kept block; all of them where dense.
    cycles_per_layer : cycles
        Fixed cost of a layer, paid once where anything is left of it.

    Returns
    -------
    (n_ops,) float64, or (designs, n_ops)

    Notes
    -----
    Source: inferred from LSP Table 5 (all twelve rows within 5 %, dense within 0.3 %). Tokens are not padded.
    """
    streaming = batch * m * occupied_tiles
    cycles: FloatArray = streaming + np.where(streaming > 0, cycles_per_layer, 0.0)
    return cycles


def special_passes(workload: Workload) -> IntArray:
    """(n,) passes of the special-function unit over each unit's elements; 0 for products."""
    return np.array(
        [0 if one.family == "product" else _PASSES.get(one.kind, 1) for one in workload.trace.operators], dtype=np.int64
    )


@dataclass(frozen=True, eq=False)
class Work:
    """What the PEs have to do for each product; (n,) or (designs, n).

    ``tiles`` and ``rows`` hold work (a head of attention is a row); ``longest`` is the largest share of tiles of one PE,
    ``tied`` PEs have as much, ``rest`` is the largest share once every PE has finished a row, ``first`` tiles has the row that
    is finished first: none where a row is empty, for its outputs are there from the start.
    """

    tiles: FloatArray
    rows: IntArray
    longest: FloatArray
    tied: FloatArray
    rest: FloatArray
    first: FloatArray


@dataclass(frozen=True, eq=False)
class ProductTime:
    """Cycles of each product: ``setup`` before anything runs, then ``running``; ``starved`` where PEs wait for a supplier.

    ``first`` of the running cycles pass until a first row (or head) is finished, ``last`` are left once its last input (or
    last head's) is there, DRAM is busy in ``transfer`` of them.
    """

    setup: FloatArray
    running: FloatArray
    first: FloatArray
    last: FloatArray
    transfer: FloatArray
    starved: BoolArray

    @property
    def total(self) -> FloatArray:
        """Cycles from start to end."""
        cycles: FloatArray = self.setup + self.running
        return cycles


def product_time(workload: Workload, work: Work, moved: Streams, design: Design) -> ProductTime:
    """Cycles of products whose tiles stream through double buffers.

    Four servers work in a pipeline on every tile: the core reads its index, the DMA brings it from DRAM, the port of the
    global buffer hands it to a PE with its input, the PE multiplies it with its tokens. The set-up of a layer hands every PE
    its first row; later rows cost the core their dispatch. The core reads the block lists ahead, so every server can serve
    first the PE with the most blocks left. With a cycles of the slowest of the first three and c of arithmetic per visit, the
    last PE then ends after

        fill + max over v of [a * (visits that have v - 1 others or more behind them on their PE) + c * v]

    which is convex in v and so largest at an end: ``tied`` PEs wait for their first tile and then work without a pause, or the
    slowest server never pauses and one visit of arithmetic is left when it is done.

    Notes
    -----
    Own derivation; ``tests/peers/vita_machine.py`` is the same machine as an event loop. Layers do not overlap: weights of
    the next one are not fetched early.
    """
    parameters = design.parameters
    bytes_per_cycle = parameters.dram_bytes_per_s / np.asarray(parameters.clock_hz)
    alive = work.tiles > 0
    fetch = moved.fetch_bytes / bytes_per_cycle
    port = moved.visit_bytes / parameters.buffer_bytes_per_cycle
    block = np.where(workload.parameter, parameters.cycles_per_block, 0.0)
    later_rows = np.maximum(work.rows - design.pes, 0)
    filling = block + fetch + port
    transfer = np.where(alive, moved.dram_bytes / bytes_per_cycle, 0.0)
    supplied = _largest(
        filling - fetch + transfer,
        filling - port + moved.visits * port,
        filling - block + moved.visits * block + later_rows * parameters.cycles_per_row,
    )
    tokens = workload.m / moved.passes
    starved = supplied + tokens
    worked = filling + np.maximum(work.tied - 1, 0) * _largest(fetch, port, block) + work.longest * workload.m
    running = np.where(alive, np.maximum(worked, starved), 0.0)
    begun = (work.longest - work.rest) * (1 - 1 / moved.passes)
    return ProductTime(
        setup=np.where(alive, parameters.cycles_per_layer, 0.0),
        running=running,
        first=np.where(work.first > 0, np.minimum(filling + work.first * workload.m, running), 0.0),
        last=np.minimum(np.where(workload.parameter, (work.rest + begun) * workload.m + tokens, work.first * workload.m), running),
        transfer=transfer,
        starved=alive & (starved > worked),
    )


def _largest(*terms: FloatArray) -> FloatArray:
    most = terms[0]
    for term in terms[1:]:
        most = np.maximum(most, term)
    return most


def exposed_cycles(units: Units, work: Work, products: ProductTime, busy: FloatArray, transfer: FloatArray) -> FloatArray:
    """Cycles that each special function adds to what the products beside it take; all of its own where it stands alone.

    Between products A and B it starts with A's first finished row (or head) and feeds B slice by slice. When the last slice
    comes, PEs have begun as many rows of B as there are PEs and have the others still to do, of heads the last one:
    ``max(A + B, first of A + function + last of B)``. Heads of the last turn of A end together, and those of the first turn
    of B wait for each other's function, which adds ``A + turn + last of B`` and ``first of A + turn + B``. A residual may be
    added before, while and after its product runs: ``max(A, function)``. DRAM serves one after the other.

    Parameters
    ----------
    busy, transfer : cycles of the special-function unit and of DRAM, by unit
    """
    own = np.maximum(busy, transfer)
    after, before = units.after, units.before
    running, first = products.running, products.first
    paired = before != NOBODY
    ready = np.where(paired, first[..., after], 0.0)
    last = np.where(paired, products.last[..., before], 0.0)
    end_a = running[..., after]
    whole_b = np.where(paired, running[..., before], 0.0)
    both = end_a + np.where(paired, products.setup[..., before], 0.0) + whole_b
    heads = paired & ~units.workload.parameter[after] & ~units.workload.parameter[before]
    turn = own * np.divide(work.tied, work.rows, out=np.zeros_like(work.tied), where=work.rows > 0)[..., after] * heads
    ends = _largest(ready + own + last, (end_a + turn + last) * heads, (ready + turn + whole_b) * heads)
    spare = (running - products.transfer)[..., after]
    beside = _largest(ends - both, transfer - spare, np.zeros_like(both))
    exposed: FloatArray = np.where(after == NOBODY, own, beside)
    return exposed
