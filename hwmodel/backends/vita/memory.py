"""What moves: weights and activations between DRAM, global buffer and PE buffers, and what stays on the chip."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hwmodel.backends.base import BoolArray, FloatArray, IntArray, Number, Workload
from hwmodel.backends.vita.parameters import Design, ProcessingElement
from hwmodel.errors import HwmodelError

SUM_BYTES = 4
"""Bytes of one partial sum, int32 or fp32 whatever the operands are."""


@dataclass(frozen=True, eq=False)
class Demand:
    """What each unit needs to be moved, whatever the order of its loops; (n,) or (designs, n).

    Parameters
    ----------
    tile_bytes : weights (or keys, values) of one tile
    slice_bytes : inputs of one tile, all tokens
    fetch_bytes : DRAM bytes of one tile; 0 where the right operand is an activation
    weight_bytes : DRAM bytes of all kept weights, read once per group of tokens
    read_bytes, written_bytes : activations that come from and go to DRAM
    groups : groups of tokens that the buffer of a PE asks for
    small_groups : those that half of the global buffer asks for too, where inputs are past it
    turns : rows of blocks that the busiest PE works on one after the other
    """

    tile_bytes: FloatArray
    slice_bytes: FloatArray
    fetch_bytes: FloatArray
    weight_bytes: FloatArray
    read_bytes: FloatArray
    written_bytes: FloatArray
    groups: FloatArray
    small_groups: FloatArray
    turns: FloatArray


@dataclass(frozen=True, eq=False)
class Streams:
    """Bytes and passes of each unit; (n,) or (designs, n).

    Parameters
    ----------
    passes : groups of tokens in which a product runs; its kept tiles visit the PEs once per group
    visits : tiles that visit a PE, all groups together
    visit_bytes : weights (or keys, values) and inputs that a PE takes from the global buffer for one visit
    dram_bytes : all DRAM bytes, activations that leave the chip included
    """

    passes: FloatArray
    visits: FloatArray
    visit_bytes: FloatArray
    dram_bytes: FloatArray


def demand_of(  # noqa: PLR0917
    workload: Workload, design: Design, tiles: FloatArray, turns: FloatArray, alive: BoolArray, pieces: IntArray
) -> Demand:
    """What every unit needs.

    One half of the global buffer holds activations, the other the tiles that wait for a PE. A tensor of activations stays on
    the chip where one image head (or one whole layer) of it fits its half, else it is read and written in DRAM. Weights are
    read once per group of tokens: as many tokens as a PE's buffer has room for, or fewer.

    Parameters
    ----------
    tiles : (n,) PE-shaped tiles that hold work
    turns : rows of blocks that the busiest PE works on one after the other
    alive : (n,) units that run at all
    pieces : (n,) heads or layers of which one at a time has to fit the buffer

    Raises
    ------
    HwmodelError
        A buffer too small for one tile.
    """
    pe, parameters, width = design.pe, design.parameters, workload.activation_bytes
    half = np.asarray(parameters.buffer_bytes) / 2
    product = workload.family == "product"
    weight_width = np.where(workload.parameter, workload.weight_element_bytes, width)
    tile_bytes = np.where(product, pe.macs * weight_width, 0.0)
    groups = _groups(workload, design, tile_bytes, half, product & (tiles > 0))
    whole = np.maximum(np.ceil(workload.n / pe.out) * np.ceil(workload.k / pe.in_) * workload.batch, 1)
    stored = workload.weight_elements * workload.weight_element_bytes
    kept = alive * stored * np.where(workload.parameter, np.minimum(tiles / whole, 1.0), 1.0)
    read, written = (alive * moved for moved in spilled_bytes(workload, pieces, half))
    asked = np.minimum(np.ceil(workload.m * workload.k * width / half), np.maximum(workload.m, 1))
    return Demand(
        tile_bytes=tile_bytes,
        slice_bytes=workload.m * pe.in_ * width,
        fetch_bytes=np.where(product & workload.parameter, stored / whole, 0.0),
        weight_bytes=kept,
        read_bytes=read,
        written_bytes=written,
        groups=groups,
        small_groups=np.where(product, np.maximum(groups, asked), 1.0),
        turns=np.maximum(turns, 1),
    )


def streams(demand: Demand, tiles: FloatArray, passes: FloatArray, beside_bytes: FloatArray) -> Streams:
    """Traffic in so many groups of tokens, with so many bytes of activations to and from DRAM."""
    return Streams(
        passes=passes,
        visits=tiles * passes,
        visit_bytes=demand.tile_bytes + demand.slice_bytes / passes,
        dram_bytes=demand.weight_bytes * passes + beside_bytes,
    )


def spilled_bytes(workload: Workload, pieces: IntArray, half: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Bytes of activations (read from, written to) DRAM: tensors of which one piece does not fit ``half`` of the buffer."""
    read = workload.input_elements * workload.activation_bytes
    written = workload.output_elements * workload.activation_bytes
    return np.where(read / pieces > half, read, 0.0), np.where(written / pieces > half, written, 0.0)


def _groups(workload: Workload, design: Design, tile_bytes: FloatArray, half: FloatArray, products: BoolArray) -> FloatArray:
    """Groups of tokens of each product, as even as can be.

    A PE holds two tiles (one in use, one arriving) and per token its partial sums and two slices of input.
    """
    pe, parameters, width = design.pe, design.parameters, workload.activation_bytes
    token_bytes = pe.out * SUM_BYTES + 2 * pe.in_ * width
    _check(2 * tile_bytes + token_bytes, products, parameters.pe_buffer_bytes, "pe_buffer_bytes", pe)
    _check(2 * tile_bytes, products, half, "half of buffer_bytes", pe)
    at_once = np.maximum(np.floor((np.asarray(parameters.pe_buffer_bytes) - 2 * tile_bytes) / token_bytes), 1.0)
    groups = np.clip(np.ceil(workload.m / at_once), 1, np.maximum(workload.m, 1))
    least: FloatArray = np.where(products, groups, 1.0)
    return least


def _check(needed: FloatArray, products: BoolArray, given: Number | FloatArray, field: str, pe: ProcessingElement) -> None:
    """Raise :class:`HwmodelError` where a buffer is too small for what a PE needs of it at the least."""
    most, least = float(np.max(needed, where=products, initial=0.0)), float(np.min(given))
    if most > least:
        raise HwmodelError(
            f"vita: {field} is {least:g} bytes, too small for one block: a PE of {pe} needs at least {most:g} "
            "(two tiles, and one token's sums and inputs in the PE's own buffer)"
        )
