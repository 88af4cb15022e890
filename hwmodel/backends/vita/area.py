"""Silicon area by component."""

from __future__ import annotations

from hwmodel.backends.base import Number
from hwmodel.backends.vita.parameters import Design


def areas_mm2(design: Design) -> dict[str, Number]:
    """Area of each component in square millimetres, a number or an array of shape (designs, 1); empty where the card has none.

    ``interconnect`` is what a floor plan loses between the others: buses, DMA, pads and white space, as a share of them.
    """
    parameters, pes = design.parameters, design.pes
    if parameters.mac_mm2 is None:
        return {}
    parts: dict[str, Number] = {
        "mac": pes * design.pe.macs * parameters.mac_mm2,
        "pe_buffer": pes * parameters.pe_buffer_bytes * parameters.sram_mm2_per_byte,
        "global_buffer": parameters.buffer_bytes * parameters.sram_mm2_per_byte,
        "special_functions": parameters.sfu_elements_per_cycle * parameters.sfu_mm2_per_lane,
        "control": parameters.control_mm2,
    }
    return parts | {"interconnect": sum(parts.values()) * parameters.interconnect_share}
