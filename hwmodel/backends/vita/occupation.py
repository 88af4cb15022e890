"""When PEs, special-function unit and DRAM work for each operator: what the timeline draws beside the operators."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from hwmodel.backends.base import Costs, FloatArray, IntArray, Occupation
from hwmodel.backends.vita.machine import Run
from hwmodel.backends.vita.parameters import VitaParameters
from hwmodel.backends.vita.units import NOBODY, Units


def of_paper(costs: Costs, parameters: VitaParameters) -> Mapping[str, Occupation]:
    """Mode ``paper``: the PE works whenever a layer's fixed cycles are over."""
    fixed = np.where(costs.cycles > 0, parameters.cycles_per_layer, 0.0)
    told = "The PE: one token vector per cycle and kept tile, after the fixed cycles of a layer."
    busy = (costs.cycles - fixed) / parameters.clock_hz
    return {"PE": Occupation(what=told, busy_s=busy, start_s=np.asarray(fixed / parameters.clock_hz))}


def occupations(units: Units, run: Run, pes: float, parameters: VitaParameters) -> Mapping[str, Occupation]:
    """Modes ``full`` and ``chip``. A special function begins with the first finished row (or head) of the product it follows.

    Its own slice holds only the cycles that it adds, so it starts before that slice.
    """
    of_unit = units.of_unit
    begin = np.cumsum(run.cycles[of_unit]) - run.cycles[of_unit]
    after = _followed(units)
    beside = after != np.arange(len(of_unit))
    setup, first = run.products.setup[of_unit], run.products.first[of_unit]
    start = begin[after] + setup[after] + np.where(beside, first[after], 0.0)

    def told(what: str, cycles: FloatArray) -> Occupation:
        busy, offset = _by_operator(units, begin, start, cycles[of_unit])
        return Occupation(what=what, busy_s=busy / parameters.clock_hz, start_s=offset / parameters.clock_hz)

    share = "The PE works on its tiles" if pes == 1 else f"{pes:.0f} PEs work on their tiles: the mean of all"
    return {
        "PE": told(f"{share}; drawn from the end of the layer's set-up.", np.asarray(run.busy_pe_cycles / pes)),
        "special functions": told(
            "The special-function unit, beside the products before and after it where it may run there.", run.function_cycles
        ),
        "DMA (DRAM)": told("Transfers between DRAM and the chip at full bandwidth.", run.transfer_cycles),
    }


def _followed(units: Units) -> IntArray:
    """(units,) the unit whose first results start each special function; its own number where it waits for none."""
    latest: dict[int, int] = {}
    found = np.arange(len(units.of_unit))
    for place, distinct in enumerate(units.of_unit.tolist()):
        product = int(units.after[distinct])
        if product != NOBODY:
            found[place] = latest[product]
        latest[distinct] = place
    return found


def _by_operator(units: Units, begin: FloatArray, start: FloatArray, cycles: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Busy cycles of every operator, and from when on counted from its first unit."""
    if not len(units.starts):
        return np.zeros(0), np.zeros(0)
    earliest = np.minimum.reduceat(np.where(cycles > 0, start, np.inf), units.starts)
    busy: FloatArray = np.add.reduceat(cycles, units.starts)
    return busy, np.where(busy > 0, earliest - begin[units.starts], 0.0)
