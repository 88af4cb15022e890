"""Modes ``full`` and ``chip``: one design, or many at once, on the distinct units of a workload."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hwmodel.backends.base import BoolArray, FloatArray, IntArray, Options, TextArray, Workload
from hwmodel.backends.vita.balance import Jobs, Shares, jobs_of
from hwmodel.backends.vita.energy import Energy, energy
from hwmodel.backends.vita.memory import demand_of, streams
from hwmodel.backends.vita.parameters import Design, ProcessingElement, VitaParameters
from hwmodel.backends.vita.schedule import Pipeline, Work, fastest_order
from hwmodel.backends.vita.timing import ProductTime, exposed_cycles, product_time, special_passes
from hwmodel.backends.vita.units import Units, units_of

_NO_JOBS = Jobs(0.0, 0)


@dataclass(frozen=True, eq=False, kw_only=True)
class Run:
    """What each distinct unit costs; (n,) or (designs, n).

    ``pe_cycles`` is the time that PEs work or wait for the longest share, all PEs together; ``busy_pe_cycles`` the part of it
    in which they work. ``starved`` units wait for a supplier of data. ``products`` and ``function_cycles`` are what the PEs and
    the special-function unit take for each unit, ``transfer_cycles`` what DRAM takes.
    """

    cycles: FloatArray
    energy: Energy
    dram_bytes: FloatArray
    executed_macs: FloatArray
    pe_cycles: FloatArray
    busy_pe_cycles: FloatArray
    starved: BoolArray
    products: ProductTime
    function_cycles: FloatArray
    transfer_cycles: FloatArray

    def bound(self, product: BoolArray) -> TextArray:
        """What limits each unit: "compute", "memory" (PEs or the special functions wait for data), "vector" or "none"."""
        busy = np.where(self.starved, "memory", np.where(product, "compute", "vector"))
        limits: TextArray = np.where(self.cycles > 0, busy, "none")
        return limits


@dataclass(frozen=True, eq=False)
class Prepared:
    """A workload laid out for one shape of PE; what a design does not change."""

    units: Units
    pe: ProcessingElement
    shares: Shares
    paired: Shares
    all_jobs: IntArray

    @classmethod
    def of(cls, workload: Workload, pe: ProcessingElement) -> Prepared:
        """Break the workload into units and fold their masks onto the PE."""
        units = units_of(workload)
        own = units.workload
        live = (own.family == "product") & ~own.constant
        jobs = tuple(jobs_of(own, row, pe) if live[row] else _NO_JOBS for row in range(len(units)))
        rows = np.where(own.parameter, -(-own.n // pe.out), 1)
        paired = Shares(tuple(jobs[product] for product in units.after[units.paired]))
        return cls(units, pe, Shares(jobs), paired, rows * own.batch * live)

    def run(self, parameters: VitaParameters, options: Options) -> Run:
        """Price every distinct unit; see :mod:`hwmodel.backends.vita.timing` and :mod:`hwmodel.backends.vita.energy`."""
        own, pe = self.units.workload, self.pe
        design = Design.of(pe, parameters, options.mode)
        longest, tied, first = self.shares.on(design.pes)
        first = np.where(self.shares.count < self.all_jobs, 0.0, first)
        work = Work(self.shares.tiles, self.shares.count, self.all_jobs, design.pes, longest, tied, first)
        product = own.family == "product"
        functions = np.where(own.constant, 0, special_passes(own) * own.elements).astype(np.float64)
        alive = ~own.constant & (~product | (work.tiles > 0))
        demand = demand_of(own, design, work.tiles, np.ceil(work.rows / design.pes), alive, self.units.pieces)
        pipeline = Pipeline.of(own, work, demand, design)
        cycles_per_byte = np.asarray(parameters.clock_hz) / parameters.dram_bytes_per_s
        function = self.units.beside(demand.weight_bytes + demand.read_bytes + demand.written_bytes)
        passes, beside = fastest_order(pipeline, demand, function, cycles_per_byte)
        moved = streams(demand, work.tiles, passes, beside)
        times = beside * cycles_per_byte, function * cycles_per_byte
        products = product_time(pipeline, work, demand, passes, *times, parameters.cycles_per_layer)
        busy = functions / parameters.sfu_elements_per_cycle
        transfer = moved.dram_bytes * cycles_per_byte
        exposed = exposed_cycles(self.units, self.paired.narrower(design.pes), work, products, busy, transfer)
        cycles = np.where(product, products.setup + products.running, exposed)
        executed = work.tiles * own.m * pe.macs
        leaking = options.scope == "board"
        spent = energy(own, moved, design, executed=executed, functions=functions, cycles=cycles, leaking=leaking)
        return Run(
            cycles=cycles, energy=spent, dram_bytes=moved.dram_bytes, executed_macs=executed,
            pe_cycles=design.pes * longest * own.m, busy_pe_cycles=work.tiles * own.m,
            starved=np.where(product, products.starved, transfer > busy), products=products, function_cycles=busy,
            transfer_cycles=transfer,
        )  # fmt: skip
