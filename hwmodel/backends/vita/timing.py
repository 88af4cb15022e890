"""Cycles: products on the processing elements (PEs), special functions beside or after them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hwmodel.backends.base import BoolArray, FloatArray, IntArray, Number, Workload
from hwmodel.backends.vita.balance import Narrower
from hwmodel.backends.vita.memory import Demand
from hwmodel.backends.vita.schedule import Pipeline, Work, largest
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
class ProductTime:
    """Cycles of each product: ``setup`` before anything runs, then ``running``; ``starved`` where PEs wait for a supplier.

    ``first`` of the running cycles pass until a first row (or head) is finished. They would be ``shared`` if the DMA had to move
    the activations of the function beside the product too. ``groups`` of tokens run one after the other at the least.
    """

    pipeline: Pipeline
    groups: FloatArray
    setup: FloatArray
    running: FloatArray
    first: FloatArray
    shared: FloatArray
    starved: BoolArray

    @property
    def total(self) -> FloatArray:
        """Cycles from start to end."""
        cycles: FloatArray = self.setup + self.running
        return cycles


def product_time(  # noqa: PLR0917
    pipeline: Pipeline, work: Work, demand: Demand, passes: FloatArray, beside: FloatArray, function: FloatArray, setup: Number
) -> ProductTime:
    """Cycles of products whose tiles stream through double buffers.

    The set-up of a layer hands every PE its first row; later rows cost the core their dispatch. The core reads the block lists
    ahead, so every server can serve first the PE with the most blocks left. With a cycles of the slowest supplier and c of
    arithmetic per visit, the last PE then ends after

        fill + max over v of [a * (visits that have v - 1 others or more behind them on their PE) + c * v]

    which is convex in v and so largest at an end: ``tied`` PEs wait for their first tile and then work without a pause, or the
    slowest server never pauses and one visit of arithmetic is left when it is done.

    Parameters
    ----------
    passes : groups of tokens
    beside, function : DRAM cycles of the product's activations and of those of the function beside it
    setup : cycles per layer

    Notes
    -----
    Own derivation; ``tests/peers/vita_machine.py`` is the same machine as an event loop. Layers do not overlap: weights of
    the next one are not fetched early.
    """
    alive = work.tiles > 0
    worked, starved = pipeline.worked, pipeline.starved(passes, beside)
    running = np.where(alive, np.maximum(worked, starved), 0.0)
    first = pipeline.filling + work.first * pipeline.tokens
    return ProductTime(
        pipeline=pipeline,
        groups=demand.groups,
        setup=np.where(alive, setup, 0.0),
        running=running,
        first=np.where(work.first > 0, np.minimum(first, running), 0.0),
        shared=np.where(alive, pipeline.running(passes, beside + function), function),
        starved=alive & (starved > worked),
    )


def exposed_cycles(  # noqa: PLR0917
    units: Units, narrower: Sequence[Narrower], work: Work, products: ProductTime, busy: FloatArray, transfer: FloatArray
) -> FloatArray:
    """Cycles that each special function adds to what the products beside it take; all of its own where it stands alone.

    Between products A and B it takes A's rows as they are finished, and B begins when it is done, for a row of a weight reads
    every feature; B is set up meanwhile. Of heads of attention each has a function of its own, see :func:`_beside_heads`. A
    residual may be added before, while and after its product runs: ``max(A, function)``. The DMA moves the activations of a
    function that leave the chip as it moves those of A.

    Parameters
    ----------
    narrower : shares of the products that feed a function beside the next one, on 1, 2, 3, ... PEs up to the most of any design
    busy, transfer : cycles of the special-function unit and of DRAM, by unit
    """
    alone = np.maximum(busy, transfer)
    ended = np.maximum(busy, products.shared[..., units.after])
    beside = np.where(units.after == NOBODY, alone, ended - products.running[..., units.after])
    if len(units.paired):
        late = _late(units, narrower, work, products, busy)
        beside = np.broadcast_to(beside, (*late.shape[:-1], len(units))).copy()
        beside[..., units.paired] = late
    return beside


def _late(units: Units, narrower: Sequence[Narrower], work: Work, products: ProductTime, busy: FloatArray) -> FloatArray:
    """Cycles by which functions between two products delay the second, beyond its set-up; (paired,) or (designs, paired)."""
    busy = busy[..., units.paired]
    first, second = units.after[units.paired], units.before[units.paired]
    heads = ~units.workload.parameter[first] & ~units.workload.parameter[second]
    beside_heads = _beside_heads(work, products, busy, first, second) - products.running[..., second]
    beside_heads = np.maximum(beside_heads, products.shared[..., first])
    begun = _begun(units, narrower, work, products, busy, products.setup[..., second])
    setup = products.setup[..., second]
    ready = products.running[..., first] + setup
    return np.maximum(np.where(heads, beside_heads, begun) - ready, 0.0)


def _begun(  # noqa: PLR0917
    units: Units, narrower: Sequence[Narrower], work: Work, products: ProductTime, own: FloatArray, setup: FloatArray
) -> FloatArray:
    """When the second product may begin: cycles from the end of the first one's set-up.

    It is set up after the first and waits for the function of each of its rows, first come first served. That works without a
    pause from the end of some row on: the latest of ``end of the row + functions of all rows that end with it or later``. Rows
    without a kept block are there from the start. So that rows end early, the servers go round the PEs; the core shares the
    product among as few of them as is best, or lets the function wait for all of the product.
    """
    first = units.after[units.paired]
    pipeline, groups, running = products.pipeline.take(first), products.groups[..., first], products.shared[..., first]
    each = own / np.maximum(work.all_rows, 1)[first]
    least = np.maximum(running + np.maximum(each, setup), own)
    earliest = running + np.maximum(own, setup)
    filling, pause, tokens, tile = pipeline.filling, pipeline.pause, pipeline.tokens, pipeline.tile(groups)
    for pes, one in enumerate(narrower, 1):
        ends = [filling + (place - 1) * pause + tiles * tokens for place, tiles, _ in one.starts]
        ends += [filling + brought * tile + tiles * tokens for brought, tiles, _ in one.levels]
        done = np.maximum(least, largest(*ends) + np.maximum(each, setup))
        for tiles, left, _ in one.finished:
            done = np.maximum(done, filling + tiles * tokens + left * each)
        for brought, left, width in one.supplied:
            last = np.maximum(tokens, width * tile * (1 - 1 / groups) + tokens / groups)
            done = np.maximum(done, filling + brought * tile + last + left * each)
        earliest = np.where(pes <= work.pes, np.minimum(earliest, done), earliest)
    return np.where(work.tiles[first] > 0, earliest, np.maximum(own, running))


def _beside_heads(work: Work, products: ProductTime, own: FloatArray, first: IntArray, second: IntArray) -> FloatArray:
    """When attention ends: heads of the first product wait for a PE, then for their softmax, then for a PE again.

    The latest of ``first head + function + last head``; ``product + turn + last head``, for the heads of the last turn end
    together; and ``first head + turn + product``, for those of the first turn wait for each other's function.
    """
    running = products.running[..., second]
    ready, last = products.first[..., first], products.first[..., second]
    turn = own * np.divide(work.tied, work.rows, out=np.zeros_like(work.tied), where=work.rows > 0)[..., first]
    return largest(ready + own + last, products.running[..., first] + turn + last, ready + turn + running)
