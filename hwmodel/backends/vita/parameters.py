"""The numbers of a ViTA design and the shape and count of its processing elements (PEs)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from pydantic import Field

from hwmodel.backends.base import FloatArray, Number, Parameters, Workload
from hwmodel.errors import HwmodelError

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
_PE = r"^([1-9]\d*)x([1-9]\d*)$"
Shape = Annotated[str, Field(pattern=_PE)]

CHIP_MODE = "chip"


class VitaParameters(Parameters):
    """The numbers of a design. Energies are those of one event, areas in square millimetres; sources are on the card.

    A card without ``mac_mm2`` tells no area.
    """

    clock_hz: Annotated[float, Field(ge=1e6, le=1e11)]
    pe: Shape | None = None
    paper_pe_by_width: dict[str, Shape] = Field(default_factory=dict)
    chip_macs: Annotated[float, Field(ge=1, le=1e9)]
    pe_count: Annotated[float, Field(ge=1, le=1e6)] | None = None

    cycles_per_layer: NotNegative
    cycles_per_row: NotNegative
    cycles_per_block: NotNegative
    sfu_elements_per_cycle: Positive
    pe_buffer_bytes: Positive
    buffer_bytes: Positive
    buffer_bytes_per_cycle: Positive
    dram_bytes_per_s: Annotated[float, Field(ge=1e6, le=1e14)]

    mac_j: dict[str, Positive]
    onchip_j_per_mac: Positive
    operand_j_per_byte: NotNegative
    sram_j_per_byte: Annotated[dict[str, Positive], Field(min_length=1)]
    control_j_per_cycle: NotNegative
    sfu_j_per_element: Positive
    dram_j_per_byte: Positive
    static_w_per_mac: NotNegative
    sram_w_per_byte: NotNegative

    mac_mm2: Positive | None = None
    sram_mm2_per_byte: NotNegative = 0.0
    sfu_mm2_per_lane: NotNegative = 0.0
    control_mm2: NotNegative = 0.0
    interconnect_share: NotNegative = 0.0


@dataclass(frozen=True)
class ProcessingElement:
    """Shape of the PE: ``out`` x ``in_`` MACs in one cycle."""

    out: int
    in_: int

    @classmethod
    def parse(cls, text: str) -> ProcessingElement:
        """From "32x64", output side first."""
        found = re.fullmatch(_PE, text)
        if found is None:
            raise HwmodelError(f"vita: pe is {text!r}, expected OUTxIN, for example 32x64")
        return cls(int(found[1]), int(found[2]))

    @property
    def macs(self) -> int:
        """MACs per cycle."""
        return self.out * self.in_

    def __str__(self) -> str:
        return f"{self.out}x{self.in_}"


def choose_pe(workload: Workload | None, parameters: VitaParameters) -> ProcessingElement:
    """The PE of this design point: told by ``pe``, else by the recipe, else inferred from the model's width.

    The width is the number of output features of the patch embedding, or the input features of the first qkv layer.

    Raises
    ------
    HwmodelError
        Where nobody told it and LSP's Table 5 implies none for this width.
    """
    designed = {} if workload is None else workload.trace.design.get("vita", {})
    told = parameters.pe or designed.get("pe")
    if told:
        return ProcessingElement.parse(told)
    if workload is None:
        raise HwmodelError("vita: no model tells which PE is meant; tell one with --set pe=OUTxIN")
    width = _width(workload)
    known = parameters.paper_pe_by_width
    if str(width) not in known:
        listed = ", ".join(f"{key}: {value}" for key, value in known.items()) or "none"
        raise HwmodelError(f"vita: no PE is known for a model of width {width} (known: {listed}); tell one with --set pe=OUTxIN")
    return ProcessingElement.parse(known[str(width)])


def _width(workload: Workload) -> int:
    """Width of the model, 0 where no operator tells it."""
    roles = workload.role.tolist()
    if "patch_embed" in roles:
        return int(workload.n[roles.index("patch_embed")])
    return int(workload.k[roles.index("qkv")]) if "qkv" in roles else 0


def count_pes(pe: ProcessingElement, parameters: VitaParameters, mode: str) -> Number:
    """PEs of this design: one outside mode ``chip``; there ``pe_count``, else as many as ``chip_macs`` has room for.

    Raises
    ------
    HwmodelError
        A PE larger than the chip, a count that is not whole, or a count in a mode of one PE.
    """
    if mode != CHIP_MODE:
        if parameters.pe_count is not None:
            raise HwmodelError(f"vita: pe_count is for mode chip; mode {mode} has one PE")
        return 1.0
    if parameters.pe_count is None:
        count = np.floor_divide(parameters.chip_macs, pe.macs)
        if np.any(count < 1):
            least = float(np.min(parameters.chip_macs))
            raise HwmodelError(f"vita: a PE of {pe} has {pe.macs} MACs, more than the {least:g} of the chip (chip_macs)")
        return _as_number(count)
    if np.any(np.mod(parameters.pe_count, 1) != 0):
        raise HwmodelError("vita: pe_count must be a whole number of PEs")
    return parameters.pe_count


@dataclass(frozen=True, eq=False)
class Design:
    """The shape of a PE, how many there are, and all other numbers."""

    pe: ProcessingElement
    pes: Number
    parameters: VitaParameters

    @classmethod
    def of(cls, pe: ProcessingElement, parameters: VitaParameters, mode: str) -> Design:
        """The design of one mode; see :func:`count_pes`."""
        return cls(pe, count_pes(pe, parameters, mode), parameters)


def _as_number(value: FloatArray | np.float64) -> Number:
    return float(value) if np.ndim(value) == 0 else value
