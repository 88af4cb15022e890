"""ViTA: a RISC-V accelerator whose processing element multiplies one weight block by one token vector per cycle.

Mode ``paper`` is what LSP's Table 5 timed: layers with weights only, on one PE. Mode ``full`` is one PE with attention,
the special-function unit, on-chip buffer and DRAM around it. Sources and assumptions are in ``simulators/vita``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np
from pydantic import Field

from hwmodel.backends.base import Costs, FloatArray, IntArray, Number, Options, Parameters, Workload, by_key
from hwmodel.errors import HwmodelError

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
_PE = r"^([1-9]\d*)x([1-9]\d*)$"
Shape = Annotated[str, Field(pattern=_PE)]

Counts = IntArray | FloatArray

_PASSES: Mapping[str, int] = {
    "softmax": 2, "log_softmax": 2, "layernorm": 2, "rmsnorm": 2, "groupnorm": 2, "l2norm": 2,
    "attention": 2,
}  # fmt: skip
"""Passes of the special-function unit over its input: statistics, then normalisation (of attention: its softmax). Every other
kind takes one."""


class VitaParameters(Parameters):
    """The numbers of one PE and its surroundings."""

    clock_hz: Annotated[float, Field(ge=1e6, le=1e11)]
    pe: Shape | None = None
    paper_pe_by_width: dict[str, Shape]
    cycles_per_layer: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    sfu_elements_per_cycle: Positive
    buffer_bytes: Positive
    dram_bytes_per_s: Annotated[float, Field(ge=1e6, le=1e14)]
    mac_j: dict[str, Positive]
    onchip_j_per_mac: Positive
    sfu_j_per_element: Positive
    dram_j_per_byte: Positive
    static_w_per_mac: Annotated[float, Field(ge=0, allow_inf_nan=False)]


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


def choose_pe(workload: Workload, parameters: VitaParameters) -> ProcessingElement:
    """The PE of this design point: told by ``pe``, else by the recipe, else inferred from the model's width.

    The width is the number of output features of the patch embedding, or the input features of the first qkv layer.

    Raises
    ------
    HwmodelError
        Where nobody told it and LSP's Table 5 implies none for this width.
    """
    told = parameters.pe or workload.trace.design.get("vita", {}).get("pe")
    if told:
        return ProcessingElement.parse(told)
    width = _width(workload)
    known = parameters.paper_pe_by_width
    if str(width) not in known:
        listed = ", ".join(f"{key}: {value}" for key, value in known.items())
        raise HwmodelError(f"vita: no PE is known for a model of width {width} (known: {listed}); tell one with --set pe=OUTxIN")
    return ProcessingElement.parse(known[str(width)])


def _width(workload: Workload) -> int:
    """Width of the model, 0 where no operator tells it."""
    roles = workload.role.tolist()
    if "patch_embed" in roles:
        return int(workload.n[roles.index("patch_embed")])
    return int(workload.k[roles.index("qkv")]) if "qkv" in roles else 0


def product_cycles(m: Counts, batch: Counts, occupied_tiles: FloatArray, cycles_per_layer: Number) -> FloatArray:
    """Cycles of products on one PE, one token vector per cycle and occupied weight tile.

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
        Cycles of the PE clock.

    Notes
    -----
    Source: inferred from LSP Table 5 (all twelve rows within 5 %, dense within 0.3 %). Tokens are not padded. Ignores
    the imbalance between PEs (there is one) and block index decoding beyond the fixed cost.
    """
    streaming = batch * m * occupied_tiles
    cycles: FloatArray = streaming + np.where(streaming > 0, cycles_per_layer, 0.0)
    return cycles


def special_function_cycles(passes: IntArray, elements: IntArray, elements_per_cycle: Number) -> FloatArray:
    """Cycles of softmax, normalisation, GELU, residuals and data movement on the one special-function unit.

    ``passes`` and ``elements`` have shape (n_ops,). Assumes full lanes and no overlap with products. Source: DATE 2024
    names one unit shared by the three functions; its rate is not published.
    """
    cycles: FloatArray = passes * elements / elements_per_cycle
    return cycles


def dram_traffic(workload: Workload, weight_share: FloatArray, buffer_bytes: Number) -> FloatArray:
    """Bytes each operator moves to and from DRAM.

    Kept weights are read once per layer. An activation tensor stays on chip where one image head (or one whole layer)
    of it fits half the buffer, the other half being filled meanwhile; what does not fit is read and written in DRAM.

    Parameters
    ----------
    weight_share : (n_ops,)
        Share of the weight that is kept.
    buffer_bytes : bytes
        On-chip activation buffer.
    """
    weights = workload.weight_elements * workload.weight_element_bytes * weight_share
    pieces = np.maximum(workload.batch, 1)
    read = workload.input_elements * workload.activation_bytes
    written = workload.output_elements * workload.activation_bytes
    half = np.asarray(buffer_bytes) / 2
    spilled = np.where(read / pieces > half, read, 0.0) + np.where(written / pieces > half, written, 0.0)
    traffic: FloatArray = weights + spilled
    return traffic


class Vita:
    """The ViTA backend; see the module's text."""

    name: ClassVar[str] = "vita"
    modes: ClassVar[tuple[str, ...]] = ("paper", "full")
    parameters: ClassVar[type[Parameters]] = VitaParameters

    def kinds(self, mode: str) -> frozenset[str]:
        """Products in both modes; everything in ``full``."""
        everything = {"product", "attention", "rowwise", "elementwise", "movement", "reduction"}
        return frozenset({"product"} if mode == "paper" else everything)

    def free(self, mode: str) -> Mapping[str, str]:
        """In ``paper``, what LSP's Table 5 left out."""
        reason = "LSP Table 5 timed layers with weights only"
        families = ("attention", "rowwise", "elementwise", "movement", "reduction")
        return dict.fromkeys(families, reason) if mode == "paper" else {}

    def cost(self, workload: Workload, parameters: VitaParameters, options: Options) -> Costs:
        """Cost of every operator on one PE. It has one way to do attention and skips every empty tile of its shape.

        Attention written by hand is what it stands for: two products on the PE, and a softmax between them. What does not
        depend on the input is computed before deployment and costs nothing.
        """
        pe = choose_pe(workload, parameters)
        full = options.mode == "full"
        product, attention = workload.family == "product", workload.family == "attention"
        arrays = ~workload.constant & ((product & (full | workload.parameter)) | (attention & full))
        special = ~workload.constant & ~product & full
        tiles, whole = _tiles(workload, pe)
        tiles = tiles * arrays
        passes = special * np.array([_PASSES.get(kind, 1) for kind in workload.kind.tolist()])
        kept = np.divide(tiles, whole, out=np.ones_like(tiles), where=workload.parameter & (whole > 0))
        alive = full & ((tiles > 0) | special)
        traffic = alive * dram_traffic(workload, kept, parameters.buffer_bytes)
        fixed = parameters.cycles_per_layer * np.where(attention, 2, 1)
        products = product_cycles(workload.m, workload.batch, tiles, fixed)
        functions = special_function_cycles(passes, workload.elements, parameters.sfu_elements_per_cycle)
        busy = products + functions
        transfer = traffic / parameters.dram_bytes_per_s * parameters.clock_hz
        cycles = np.maximum(busy, transfer)
        executed = workload.batch * workload.m * tiles * pe.macs
        special_j = passes * workload.elements * parameters.sfu_j_per_element
        mac_j = by_key(parameters.mac_j, workload.dtype, "mac_j")
        static_w = parameters.static_w_per_mac * pe.macs if options.scope == "board" else 0.0
        limit = np.where(transfer > busy, "memory", np.where(functions > products, "vector", "compute"))
        return Costs(
            cycles=cycles,
            latency_s=cycles / parameters.clock_hz,
            compute_j=executed * mac_j,
            onchip_j=executed * parameters.onchip_j_per_mac + special_j,
            offchip_j=traffic * parameters.dram_j_per_byte,
            static_j=cycles / parameters.clock_hz * static_w,
            dram_bytes=traffic,
            executed_macs=executed,
            bound=np.where(cycles > 0, limit, "none"),
            kernel=np.where(arrays, f"pe {pe.out}x{pe.in_}", np.where(special, "special functions", "not timed")),
            fused_into=np.arange(len(workload)),
        )


def _tiles(workload: Workload, pe: ProcessingElement) -> tuple[FloatArray, FloatArray]:
    """PE tiles of each right operand that hold work, and all of them; attention by hand counts scores and context."""
    dense = np.ceil(workload.n / pe.out) * np.ceil(workload.k / pe.in_)
    context = np.ceil(workload.k / pe.out) * np.ceil(workload.n / pe.in_)
    whole: FloatArray = np.where(workload.family == "attention", dense + context, dense)
    return np.where(workload.family == "product", workload.tiles(pe.out, pe.in_), whole), whole
