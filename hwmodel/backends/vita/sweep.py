"""Totals of very many designs at once, in little memory: distinct operators once, designs in chunks over threads."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from hwmodel.backends.base import FloatArray, IntArray, Options, Workload
from hwmodel.backends.cards import Card, load_card
from hwmodel.backends.vita.area import areas_mm2
from hwmodel.backends.vita.machine import Prepared, Run
from hwmodel.backends.vita.parameters import CHIP_MODE, Design, VitaParameters, choose_pe
from hwmodel.errors import HwmodelError
from hwmodel.ir.trace import Trace

_CHUNK = 4096


@dataclass(frozen=True, eq=False, kw_only=True)
class Totals:
    """One number per design, of shape (designs,).

    Parameters
    ----------
    latency_s, energy_j : for the whole batch, static energy included
    area_mm2 : of the PEs of this mode and everything around them; NaN where the card tells none
    idle_share : share of their time that PEs wait for the one with the most tiles
    dram_bytes : bytes to and from DRAM
    """

    latency_s: FloatArray
    energy_j: FloatArray
    area_mm2: FloatArray
    idle_share: FloatArray
    dram_bytes: FloatArray


def sweep(
    trace: Trace,
    designs: Mapping[str, Any],
    *,
    device: str | Path | Card = "vita",
    mode: str = CHIP_MODE,
    dtype: str | None = None,
    workers: int = 2,
) -> Totals:
    """Totals of a trace on many designs; equal to :func:`hwmodel.estimate` with the same overrides.

    Parameters
    ----------
    designs : card fields to replace: a number or text for all designs, or an array of shape (designs,)
    workers : threads; numpy lets go of the interpreter while it computes

    Raises
    ------
    HwmodelError
        A card of another backend, mode ``paper``, arrays of different lengths, or what :func:`hwmodel.estimate` refuses.
    """
    card = device if isinstance(device, Card) else load_card(device)
    if card.backend != "vita" or mode == "paper":
        raise HwmodelError(f"{card.name}: a sweep is for modes full and chip of a vita card; use hwmodel.estimate otherwise")
    card.split_mode(mode)
    swept = {name: np.asarray(value) for name, value in designs.items() if np.ndim(value)}
    fixed = {name: value for name, value in designs.items() if name not in swept}
    count = _count(card.name, swept)
    workload = Workload.of(trace, dtype=dtype, default_dtype=card.default_dtype)
    for used in sorted({*workload.dtype.tolist(), *workload.weight_dtype.tolist()}):
        card.check_dtype(used)
    first = card.resolve(mode, fixed | {name: values[:1] for name, values in swept.items()})
    prepared = Prepared.of(workload, choose_pe(workload, _narrow(first)))
    options = Options(mode=mode)

    def totals_of(start: int) -> Totals:
        chunk = {name: values[start : start + _CHUNK] for name, values in swept.items()}
        parameters = _narrow(card.resolve(mode, fixed | chunk))
        return _totals(prepared, parameters, options, min(_CHUNK, count - start))

    with ThreadPoolExecutor(workers) as pool:
        parts = list(pool.map(totals_of, range(0, count, _CHUNK)))
    return Totals(**{item.name: np.concatenate([getattr(part, item.name) for part in parts]) for item in fields(Totals)})


def _count(where: str, swept: Mapping[str, Any]) -> int:
    lengths = {name: len(values) for name, values in swept.items()}
    if not lengths or len(set(lengths.values())) > 1 or min(lengths.values()) == 0:
        listed = ", ".join(f"{name} has {length}" for name, length in lengths.items()) or "none is swept"
        raise HwmodelError(f"{where}: all swept fields need as many designs, one at least: {listed}")
    return next(iter(lengths.values()))


def _narrow(parameters: object) -> VitaParameters:
    assert isinstance(parameters, VitaParameters)
    return parameters


def _totals(prepared: Prepared, parameters: VitaParameters, options: Options, designs: int) -> Totals:
    run: Run = prepared.run(parameters, options)
    counts = prepared.units.count

    def total(column: FloatArray) -> FloatArray:
        return np.broadcast_to(_weighted(column, counts), (designs,))

    areas = areas_mm2(Design.of(prepared.pe, parameters, options.mode))
    area = sum(areas.values()) if areas else np.nan
    whole, busy = total(run.pe_cycles), total(run.busy_pe_cycles)
    return Totals(
        latency_s=total(run.cycles / parameters.clock_hz),
        energy_j=total(np.asarray(sum(run.energy.components().values()))),
        area_mm2=np.broadcast_to(np.reshape(area, -1), (designs,)),
        idle_share=1 - np.divide(busy, whole, out=np.ones(designs), where=whole > 0),
        dram_bytes=total(run.dram_bytes),
    )


def _weighted(column: FloatArray, counts: IntArray) -> FloatArray:
    """Sum over units, each as often as it occurs."""
    summed: FloatArray = column @ counts.astype(np.float64)
    return summed
