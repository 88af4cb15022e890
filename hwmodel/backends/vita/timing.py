"""Cycles: products on the processing elements (PEs), special functions beside or after them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hwmodel.backends.base import BoolArray, FloatArray, IntArray, Number, Workload
from hwmodel.backends.vita.balance import Narrower
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

    ``tiles`` and ``rows`` hold work (a head of attention is a row), of ``all_rows``, on ``pes`` PEs; ``longest`` is the largest
    share of tiles of one PE, ``tied`` PEs have as much, ``first`` tiles has the row that is finished first: none where a row is
    empty, for its outputs are there from the start. ``narrower`` holds the shares of the products that feed a function beside
    the next one, on 1, 2, 3, ... PEs up to the most that any design has.
    """

    tiles: FloatArray
    rows: IntArray
    all_rows: IntArray
    pes: Number
    longest: FloatArray
    tied: FloatArray
    first: FloatArray
    narrower: Sequence[Narrower]


@dataclass(frozen=True, eq=False)
class ProductTime:
    """Cycles of each product: ``setup`` before anything runs, then ``running``; ``starved`` where PEs wait for a supplier.

    ``filling`` of the running cycles pass before the first PE works, ``first`` until a first row (or head) is finished; DRAM
    is busy in ``transfer`` of them. Suppliers alone would take ``supplied`` cycles, the slowest ``interval`` for each visit.
    """

    setup: FloatArray
    running: FloatArray
    filling: FloatArray
    first: FloatArray
    transfer: FloatArray
    interval: FloatArray
    supplied: FloatArray
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
    return ProductTime(
        setup=np.where(alive, parameters.cycles_per_layer, 0.0),
        running=running,
        filling=np.where(alive, filling, 0.0),
        first=np.where(work.first > 0, np.minimum(filling + work.first * workload.m, running), 0.0),
        transfer=transfer,
        interval=np.where(alive, (supplied - filling) / np.maximum(moved.visits, 1), 0.0),
        supplied=np.where(alive, starved, 0.0),
        starved=alive & (starved > worked),
    )


def _largest(*terms: FloatArray) -> FloatArray:
    most = terms[0]
    for term in terms[1:]:
        most = np.maximum(most, term)
    return most


def exposed_cycles(units: Units, work: Work, products: ProductTime, busy: FloatArray, transfer: FloatArray) -> FloatArray:
    """Cycles that each special function adds to what the products beside it take; all of its own where it stands alone.

    Between products A and B it takes A's rows as they are finished, and B begins when it is done, for a row of a weight reads
    every feature; B is set up meanwhile. Of heads of attention each has a function of its own, see :func:`_beside_heads`. A
    residual may be added before, while and after its product runs: ``max(A, function)``. DRAM serves one after the other.

    Parameters
    ----------
    busy, transfer : cycles of the special-function unit and of DRAM, by unit
    """
    own = np.maximum(busy, transfer)
    after = units.after
    idle = products.running - products.transfer
    beside = np.where(
        after == NOBODY, own, _largest(own - products.running[..., after], transfer - idle[..., after], np.zeros_like(own))
    )
    if len(units.paired):
        late = _late(units, work, products, own, transfer)
        beside = np.broadcast_to(beside, (*late.shape[:-1], len(units))).copy()
        beside[..., units.paired] = late
    return beside


def _late(units: Units, work: Work, products: ProductTime, own: FloatArray, transfer: FloatArray) -> FloatArray:
    """Cycles by which functions between two products delay the second, beyond its set-up; (paired,) or (designs, paired)."""
    own, transfer = own[..., units.paired], transfer[..., units.paired]
    first, second = units.after[units.paired], units.before[units.paired]
    heads = ~units.workload.parameter[first] & ~units.workload.parameter[second]
    beside_heads = _beside_heads(work, products, own, first, second) - products.running[..., second]
    begun = _begun(units, work, products, own, first, products.setup[..., second])
    done = np.where(heads, beside_heads, begun)
    ready = products.running[..., first] + products.setup[..., second]
    return _largest(done - ready, products.transfer[..., first] + transfer - ready, np.zeros_like(done))


def _begun(  # noqa: PLR0917
    units: Units, work: Work, products: ProductTime, own: FloatArray, first: IntArray, setup: FloatArray
) -> FloatArray:
    """When the second product may begin: cycles from the end of the first one's set-up.

    It is set up after the first and waits for the function of each of its rows, first come first served. That works without a
    pause from the end of some row on: the latest of ``end of the row + functions of all rows that end with it or later``. Rows
    without a kept block are there from the start. Where a supplier is the bound, PEs end their last rows one interval of the
    supplier after the other, and their functions queue: the core then shares the product among fewer PEs if that is earlier.
    """
    each = own / np.maximum(work.all_rows, 1)[first]
    together = np.maximum(each - products.interval[..., first], 0.0)
    filling, supplied, tokens = products.filling[..., first], products.supplied[..., first], units.workload.m[first]
    earliest = np.full(np.broadcast_shapes(own.shape, (*np.shape(work.pes)[:-1], 1)), np.inf)
    for pes, one in enumerate(work.narrower, 1):
        worked = filling + np.maximum(one.tied - 1, 0) * products.interval[..., first] + one.longest * tokens
        others = np.minimum(pes, np.maximum(work.rows[first], 1)) - 1
        done = _largest(own, np.maximum(worked, supplied) + np.maximum(each, setup), supplied + each + others * together)
        for tiles, left in one.finishes:
            done = np.maximum(done, filling + tiles * tokens + left * each)
        earliest = np.where(pes <= work.pes, np.minimum(earliest, done), earliest)
    return np.where(work.tiles[first] > 0, earliest, own)


def _beside_heads(work: Work, products: ProductTime, own: FloatArray, first: IntArray, second: IntArray) -> FloatArray:
    """When attention ends: heads of the first product wait for a PE, then for their softmax, then for a PE again.

    The latest of ``first head + function + last head``; ``product + turn + last head``, for the heads of the last turn end
    together; and ``first head + turn + product``, for those of the first turn wait for each other's function.
    """
    running = products.running[..., second]
    ready, last = products.first[..., first], products.first[..., second]
    turn = own * np.divide(work.tied, work.rows, out=np.zeros_like(work.tied), where=work.rows > 0)[..., first]
    return _largest(ready + own + last, products.running[..., first] + turn + last, ready + turn + running)
