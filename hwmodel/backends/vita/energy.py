"""Energy by component, from the card's tables: joules per event times events."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields

import numpy as np

from hwmodel.backends.base import FloatArray, Number, Workload, by_key
from hwmodel.backends.vita.memory import SUM_BYTES, Streams
from hwmodel.backends.vita.parameters import Design, VitaParameters


@dataclass(frozen=True, eq=False, kw_only=True)
class Energy:
    """Joules of each unit by component; (n,) or (designs, n)."""

    mac: FloatArray
    operands: FloatArray
    pe_buffer: FloatArray
    global_buffer: FloatArray
    special_functions: FloatArray
    control: FloatArray
    dram: FloatArray
    leakage: FloatArray

    @property
    def onchip(self) -> FloatArray:
        """Everything on the chip that is neither arithmetic nor leakage."""
        joules: FloatArray = self.operands + self.pe_buffer + self.global_buffer + self.special_functions + self.control
        return joules

    def components(self) -> Mapping[str, FloatArray]:
        """Joules by component's name."""
        return {item.name: getattr(self, item.name) for item in fields(self)}


def energy(
    workload: Workload,
    moved: Streams,
    design: Design,
    *,
    executed: FloatArray,
    functions: FloatArray,
    cycles: FloatArray,
    leaking: bool,
) -> Energy:
    """Energy of every unit.

    Parameters
    ----------
    executed : MACs performed, padding included
    functions : element passes of the special-function unit
    cycles : time of each unit; the control core and leakage are charged for all of it
    leaking : whether static power belongs to the energy scope asked for

    Notes
    -----
    A MAC reads two operands through registers and wires. A visit of a tile writes and reads its weights and inputs once in
    the PE's buffer and reads and writes one partial sum per token and output. The global buffer hands every visit its bytes
    and takes what the product writes; a special function reads its input and writes its output there; whatever goes to or
    comes from DRAM passes through it.
    """
    parameters, width = design.parameters, workload.activation_bytes
    product, alive = workload.family == "product", cycles > 0
    tokens = moved.visits * workload.m / moved.passes
    inner = 2 * (moved.visits * moved.visit_bytes + tokens * design.pe.out * SUM_BYTES)
    written = workload.output_elements * width * np.where(product, executed > 0, functions > 0)
    read = np.where(product, moved.visits * moved.visit_bytes, workload.input_elements * width * (functions > 0))
    outer = read + written + moved.dram_bytes
    seconds = cycles / parameters.clock_hz
    return Energy(
        mac=executed * by_key(parameters.mac_j, workload.dtype, "mac_j"),
        operands=executed * width * parameters.operand_j_per_byte,
        pe_buffer=np.where(product, inner, 0.0) * sram_j_per_byte(parameters, parameters.pe_buffer_bytes),
        global_buffer=outer * sram_j_per_byte(parameters, parameters.buffer_bytes),
        special_functions=functions * parameters.sfu_j_per_element,
        control=alive * cycles * parameters.control_j_per_cycle,
        dram=moved.dram_bytes * parameters.dram_j_per_byte,
        leakage=seconds * static_w(design) * leaking,
    )


def static_w(design: Design) -> Number:
    """Power of the chip while it does nothing: clock tree and leakage of the PEs, leakage of their buffers and the global one."""
    parameters, pes = design.parameters, design.pes
    buffers = pes * parameters.pe_buffer_bytes + parameters.buffer_bytes
    return pes * design.pe.macs * parameters.static_w_per_mac + buffers * parameters.sram_w_per_byte


def sram_j_per_byte(parameters: VitaParameters, capacity: Number) -> Number:
    """Energy of one byte read or written in a memory of ``capacity`` bytes.

    Between the card's points on a straight line in logarithms, beyond them the nearest point's.
    """
    points = sorted((float(size), joules) for size, joules in parameters.sram_j_per_byte.items())
    sizes = np.log([size for size, _ in points])
    if all(np.ndim(joules) == 0 for _, joules in points):
        found = np.exp(np.interp(np.log(capacity), sizes, np.log([joules for _, joules in points])))
        return float(found) if np.ndim(found) == 0 else found
    return _swept_points(np.log(capacity), sizes, [np.log(joules) for _, joules in points])


def _swept_points(place: Number, sizes: FloatArray, logs: list[FloatArray]) -> FloatArray:
    """The same where a point is swept: hat functions of the place, times the points."""
    hats = np.eye(len(sizes))
    found: FloatArray = np.exp(sum(np.interp(place, sizes, hat) * log for hat, log in zip(hats, logs, strict=True)))
    return found
