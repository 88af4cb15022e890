"""The ViTA backend: modes, costs by operator, area, and what a user should be warned about."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np

from hwmodel.backends.base import Costs, FloatArray, IntArray, Number, Occupation, Options, Parameters, TextArray, Workload, by_key
from hwmodel.backends.vita.area import areas_mm2
from hwmodel.backends.vita.machine import Prepared, Run
from hwmodel.backends.vita.notes import notes
from hwmodel.backends.vita.occupation import occupations, of_paper
from hwmodel.backends.vita.parameters import CHIP_MODE, Design, ProcessingElement, VitaParameters, choose_pe, count_pes
from hwmodel.backends.vita.timing import product_cycles

_FAMILIES = frozenset({"product", "attention", "rowwise", "elementwise", "movement", "reduction"})


class Vita:
    """The ViTA backend; see the package's text."""

    name: ClassVar[str] = "vita"
    modes: ClassVar[tuple[str, ...]] = ("paper", "full", CHIP_MODE)
    parameters: ClassVar[type[Parameters]] = VitaParameters

    def kinds(self, mode: str) -> frozenset[str]:
        """Products in every mode; everything in ``full`` and ``chip``."""
        return frozenset({"product"}) if mode == "paper" else _FAMILIES

    def free(self, mode: str) -> Mapping[str, str]:
        """In ``paper``, what LSP's Table 5 left out."""
        reason = "LSP Table 5 timed layers with weights only"
        return dict.fromkeys(sorted(_FAMILIES - {"product"}), reason) if mode == "paper" else {}

    def cost(self, workload: Workload, parameters: VitaParameters, options: Options) -> Costs:
        """Cost of every operator. It has one way to do attention and skips every empty tile of its shape.

        Attention written by hand is what it stands for: two products on the PEs, and a softmax between them. What does not
        depend on the input is computed before deployment and costs nothing.
        """
        pe = choose_pe(workload, parameters)
        if options.mode == "paper":
            return _paper(workload, parameters, options, pe)
        prepared = Prepared.of(workload, pe)
        return _by_operator(prepared, prepared.run(parameters, options), parameters)

    def units(self, workload: Workload, parameters: VitaParameters, options: Options) -> Mapping[str, Occupation]:
        """When PEs, special-function unit and DRAM work for each operator, of one design."""
        pe = choose_pe(workload, parameters)
        if options.mode == "paper":
            return of_paper(self.cost(workload, parameters, options), parameters)
        prepared = Prepared.of(workload, pe)
        pes = float(count_pes(pe, parameters, options.mode))
        return occupations(prepared.units, prepared.run(parameters, options), pes, parameters)

    def skip_unit(self, workload: Workload, parameters: VitaParameters, options: Options) -> tuple[int, int]:
        """(out, in) of the PE: a tile of its shape without a kept block is never visited."""
        pe = choose_pe(workload, parameters)
        return pe.out, pe.in_

    def warnings(self, workload: Workload, parameters: VitaParameters, options: Options) -> list[str]:
        """What the PE wastes: masks whose blocks it does not divide, layers smaller than it."""
        if not (workload.family == "product").any():
            return []
        return notes(workload, choose_pe(workload, parameters), timed=self.kinds(options.mode))

    def area_mm2(
        self, parameters: VitaParameters, *, mode: str = CHIP_MODE, workload: Workload | None = None
    ) -> Mapping[str, Number]:
        """Area by component: of the chip, or of one PE with everything around it in the other modes.

        ``workload`` tells the PE where the parameters do not, as in :meth:`cost`.
        """
        pe = choose_pe(workload, parameters)
        return areas_mm2(Design.of(pe, parameters, mode))

    def peak_macs_per_s(self, workload: Workload, parameters: VitaParameters, options: Options) -> Number:
        """MACs per second of all PEs of this mode."""
        pe = choose_pe(workload, parameters)
        return count_pes(pe, parameters, options.mode) * pe.macs * parameters.clock_hz


def _by_operator(prepared: Prepared, run: Run, parameters: VitaParameters) -> Costs:
    """Costs of distinct units spread over the operators they belong to."""
    units = prepared.units
    own = units.workload

    def summed(column: FloatArray) -> FloatArray:
        if not len(units):
            return np.zeros(column.shape)
        total: FloatArray = np.add.reduceat(column[..., units.of_unit], units.starts, axis=-1)
        return total

    names = np.where(own.constant, "not timed", np.where(own.family == "product", f"pe {prepared.pe}", "special functions"))
    return Costs(
        cycles=summed(run.cycles),
        latency_s=summed(run.cycles / parameters.clock_hz),
        compute_j=summed(run.energy.mac),
        onchip_j=summed(run.energy.onchip),
        offchip_j=summed(run.energy.dram),
        static_j=summed(run.energy.leakage),
        dram_bytes=summed(run.dram_bytes),
        executed_macs=summed(run.executed_macs),
        bound=_first(run.bound(own.family == "product"), units.of_unit, units.starts),
        kernel=_first(names, units.of_unit, units.starts),
        fused_into=np.arange(len(units.starts)),
        components_j={name: summed(joules) for name, joules in run.energy.components().items()},
        array_cycles=summed(run.pe_cycles),
        busy_array_cycles=summed(run.busy_pe_cycles),
    )


def _first(texts: TextArray, of_unit: IntArray, starts: IntArray) -> TextArray:
    """The text of each operator's first unit."""
    chosen: TextArray = texts[..., of_unit[starts]]
    return chosen


def _paper(workload: Workload, parameters: VitaParameters, options: Options, pe: ProcessingElement) -> Costs:
    """What LSP's Table 5 timed: layers with weights on one PE, no memory outside it."""
    arrays = (workload.family == "product") & workload.parameter & ~workload.constant
    tiles = workload.tiles(pe.out, pe.in_) * arrays
    cycles = product_cycles(workload.m, workload.batch, tiles, parameters.cycles_per_layer)
    executed = workload.batch * workload.m * tiles * pe.macs
    seconds = cycles / parameters.clock_hz
    return Costs(
        cycles=cycles,
        latency_s=seconds,
        compute_j=executed * by_key(parameters.mac_j, workload.dtype, "mac_j"),
        onchip_j=executed * parameters.onchip_j_per_mac,
        offchip_j=np.zeros(len(workload)),
        static_j=seconds * pe.macs * parameters.static_w_per_mac * (options.scope == "board"),
        dram_bytes=np.zeros(len(workload)),
        executed_macs=executed,
        bound=np.where(cycles > 0, "compute", "none"),
        kernel=np.where(arrays, f"pe {pe}", "not timed"),
        fused_into=np.arange(len(workload)),
    )
