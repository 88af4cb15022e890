"""The GPU backend: kernels planned from the trace, priced once per distinct kernel, written back to their rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Final

import numpy as np

from hwmodel.backends.base import BoolArray, Costs, FloatArray, IntArray, Occupation, Options, TextArray, Workload, by_key
from hwmodel.backends.gpu import fusion
from hwmodel.backends.gpu.attention import GENERATIONS, Attentions, attention_seconds
from hwmodel.backends.gpu.fusion import Kernel, plan
from hwmodel.backends.gpu.lowering import CHEAP_SHARE, AttentionColumns, Lowered, Lowering, ProductColumns, StreamColumns
from hwmodel.backends.gpu.parameters import GpuParameters, arithmetic
from hwmodel.backends.gpu.power import Energies, capped
from hwmodel.backends.gpu.products import TILES, Products, product_seconds
from hwmodel.backends.gpu.sparse import SEMI_ENERGY, SEMI_STRUCTURED, SIDES, occupied_share, skip_unit, sparse_seconds
from hwmodel.backends.gpu.vector import Streams, stream_seconds
from hwmodel.ir.masks import Mask

FAMILIES: Final = frozenset({"product", "attention", "rowwise", "elementwise", "movement", "reduction"})
IMPLICIT: Final = {"patchify": "the patch convolution reads the image in place (implicit GEMM)"}
FRAMEWORK: Final = frozenset({"eager", "compiled"})
"""Modes in which PyTorch hands operators over one by one; its 2:4 products copy their result there."""
DOMINANT: Final = 0.5
"""A resource that takes this part of a row's time is what bounds it."""


@dataclass(frozen=True, eq=False)
class Priced:
    """Kernels of one table: arrays of shape (n,) or (designs, n)."""

    row: IntArray
    seconds: FloatArray
    energies: Energies
    dram_bytes: FloatArray
    executed_share: FloatArray
    bound: TextArray
    kernel: TextArray


class Gpu:
    """A GPU as its card describes it. Modes: ``kernel``, ``eager``, ``compiled``, ``engine`` (see ``fusion``)."""

    name: ClassVar[str] = "gpu"
    modes: ClassVar[tuple[str, ...]] = fusion.MODES
    parameters: ClassVar[type[GpuParameters]] = GpuParameters
    choices: ClassVar[frozenset[str]] = frozenset({"attention", "sparse_kernel"})

    def kinds(self, mode: str) -> frozenset[str]:
        """Every family, in every mode."""
        return FAMILIES

    def free(self, mode: str) -> Mapping[str, str]:
        """Unrolling the image into patches is free in whole models; in mode ``kernel`` it is a copy like any other."""
        return {} if mode == "kernel" else IMPLICIT

    def cost(self, workload: Workload, parameters: GpuParameters, options: Options) -> Costs:
        """Cost of every operator; see :class:`hwmodel.backends.base.Costs`."""
        asked = ("gpu kernels", options.mode, options.attention)
        kernels = workload.once(asked, lambda: plan(workload, options.mode, options.attention))
        priced = _price(workload, kernels, parameters, options)
        return _Ledger(workload, kernels, parameters, options).settle(priced)

    def units(self, workload: Workload, parameters: GpuParameters, options: Options) -> Mapping[str, Occupation]:
        """When launches, arithmetic units and DRAM work for each operator, of one design."""
        from hwmodel.backends.gpu.occupation import occupations

        asked = ("gpu kernels", options.mode, options.attention)
        kernels = workload.once(asked, lambda: plan(workload, options.mode, options.attention))
        return occupations(
            workload, _lowered(workload, kernels, parameters, options), self.cost(workload, parameters, options), parameters
        )

    def skip_unit(self, workload: Workload, parameters: GpuParameters, options: Options) -> tuple[int, int]:
        """The largest blocks that block-sparse kernels skip; they skip smaller ones at a lower rate."""
        return SIDES[0], SIDES[0]

    def warnings(self, workload: Workload, parameters: GpuParameters, options: Options) -> list[str]:
        """Pruned layers whose sparse kernel is slower than the dense one, with the break-even density."""
        from hwmodel.backends.gpu.advice import find_slow_layers, told

        return told(find_slow_layers(workload, parameters, options.mode), forced=options.sparse_kernel == "always")


def _price(workload: Workload, kernels: list[Kernel], gpu: GpuParameters, options: Options) -> list[Priced]:
    """Price the three tables."""
    asked = ("gpu columns", options.mode, options.attention, gpu.attention_kernel)
    lowered = workload.once(asked, lambda: _lowered(workload, kernels, gpu, options))
    return [
        _price_products(lowered.products, workload, gpu, options),
        _price_attentions(lowered.attentions, gpu, burst=options.mode == "kernel"),
        _price_streams(lowered.streams, gpu),
    ]


def _lowered(workload: Workload, kernels: list[Kernel], gpu: GpuParameters, options: Options) -> Lowered:
    """The three tables without what is free in this mode."""
    free = IMPLICIT if options.mode != "kernel" else {}
    kinds = workload.kind
    charged = [kernel for kernel in kernels if kinds[kernel.row] not in free]
    return Lowering(workload, options.mode, GENERATIONS[gpu.attention_kernel].cache_slow).lower(charged)


def _distinct(*columns: FloatArray | IntArray | BoolArray) -> tuple[IntArray, IntArray]:
    """Index of the first of every distinct entry, and which of them each entry equals."""
    keys = np.stack([column.astype(np.float64) for column in columns], axis=1)
    if len(keys) == 0:
        return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
    _, first, inverse = np.unique(keys, axis=0, return_index=True, return_inverse=True)
    return first, inverse.reshape(-1)


def _codes(texts: TextArray) -> IntArray:
    codes: IntArray = np.unique(texts, return_inverse=True)[1].reshape(-1)
    return codes


_NOTHING: Final = 1e-12
"""Share of a weight with nothing kept whose kernel still runs: it carries a residual that is alive."""


def _price_products(table: ProductColumns, workload: Workload, gpu: GpuParameters, options: Options) -> Priced:
    masks = [workload.masks[row] for row in table.row.tolist()]
    known: dict[Mask | None, tuple[float, int, int]] = {None: (1.0, 64, 64)}
    known |= {mask: (occupied_share(mask), *skip_unit(mask)) for mask in set(masks) if mask is not None}
    share, out, depth = np.array([known[mask] for mask in masks], dtype=np.float64).reshape(-1, 3).T
    share = np.where(table.fused, np.maximum(share, _NOTHING), share)
    masked = np.array([mask is not None for mask in masks], dtype=np.bool_)
    operators = workload.trace.operators
    semi = np.array([operators[row].sparsity == SEMI_STRUCTURED for row in table.row.tolist()], dtype=np.bool_)
    weights = (workload.weight_elements * workload.weight_element_bytes)[table.row]
    columns = (
        table.batch, table.m, table.k, table.n, table.element_bytes, table.moved_bytes, share, out, depth, masked, semi, weights,
    )  # fmt: skip
    first, inverse = _distinct(*columns, _codes(table.dtype))
    picked = [column[first].astype(np.float64) for column in columns]
    return _spread(_products(picked, table.dtype[first], gpu, options), table.row, inverse)


def _products(columns: list[FloatArray], dtypes: TextArray, gpu: GpuParameters, options: Options) -> Priced:
    """Distinct products: dense kernel, sparse kernel, the choice between them."""
    batch, m, k, n, size, moved, share, out, depth, masked, semi, weights = columns
    formats = arithmetic(dtypes)
    rate = by_key(gpu.macs_per_clock_sm, formats, "macs_per_clock_sm")
    right = np.where(weights > 0, weights / np.maximum(batch * k * n, 1.0), size)
    products = Products(batch, m, k, n, size, moved, rate, formats == "fp32", np.minimum(right, size))
    seconds, tile = product_seconds(products, gpu)
    mac_j = by_key(gpu.mac_j, formats, "mac_j") * batch * m * k * n
    burst = options.mode == "kernel"
    dense, dense_energies = capped(seconds, _energies(mac_j, moved, moved, gpu), gpu, burst=burst)
    shorter, kept = sparse_seconds(products, seconds, (share, out, depth, semi), weights, gpu, copies=options.mode in FRAMEWORK)
    alive = np.where(share > 0, 1.0, 0.0)
    work = np.where(semi > 0, SEMI_ENERGY, share)
    sparse, sparse_energies = capped(shorter, _energies(mac_j * work, kept, kept, gpu), gpu, burst=burst)
    better = (sparse <= dense) & (_joules(sparse, sparse_energies, gpu) <= _joules(dense, dense_energies, gpu))
    use = ((masked + semi) > 0) & (better | (options.sparse_kernel == "always") | (share == 0))
    energies = Energies(
        *(alive * np.where(use, a, b) for a, b in zip(_causes(sparse_energies), _causes(dense_energies), strict=True))
    )
    chosen = np.where(use, sparse, dense)
    crossed = np.where(use, kept, moved)
    memory = crossed / (gpu.dram_bytes_per_s * gpu.dram_efficiency)
    return Priced(
        row=np.arange(len(batch)), seconds=chosen, energies=energies, dram_bytes=alive * crossed,
        executed_share=np.where(use, np.where(semi > 0, 0.5, np.where(share > _NOTHING, share, 0.0)), 1.0),
        bound=_bound(chosen, memory, np.asarray(gpu.launch_cycles / gpu.clock_hz), "compute"),
        kernel=_product_names(tile, _first_design(use), share, semi),
    )  # fmt: skip


def _product_names(tile: IntArray, sparse: FloatArray, share: FloatArray, semi: FloatArray) -> TextArray:
    names = np.array([f"gemm-{int(rows)}x{int(cols)}" for rows, cols in TILES])[tile]
    return np.where(share == 0, "skipped", np.where(sparse, np.where(semi > 0, "sparse-2:4", "block-sparse"), names))


def _price_attentions(table: AttentionColumns, gpu: GpuParameters, *, burst: bool) -> Priced:
    columns = (table.batch, table.m, table.k, table.n, table.element_bytes, table.moved_bytes)
    first, inverse = _distinct(*columns, table.causal, _codes(table.dtype))
    batch, m, k, n, size, moved = (column[first] for column in columns)
    causal = table.causal[first]
    formats = arithmetic(table.dtype[first])
    rate = by_key(gpu.macs_per_clock_sm, formats, "macs_per_clock_sm")
    seconds = attention_seconds(Attentions(batch, m, k, n, causal, size, moved, rate), gpu)
    pairs = batch * m * n * np.where(causal, 0.5, 1.0)
    compute_j = by_key(gpu.mac_j, formats, "mac_j") * 2 * pairs * k + pairs * CHEAP_SHARE * gpu.transcendental_j
    seconds, energies = capped(seconds, _energies(compute_j, moved, moved, gpu), gpu, burst=burst)
    memory = moved / (gpu.dram_bytes_per_s * gpu.dram_efficiency)
    bound = _bound(seconds, memory, np.asarray(gpu.launch_cycles / gpu.clock_hz), "compute")
    ones = np.ones(len(first))
    kernel = np.full(len(first), "fused-attention")
    return _spread(Priced(np.arange(len(first)), seconds, energies, moved, ones, bound, kernel), table.row, inverse)


def _price_streams(table: StreamColumns, gpu: GpuParameters) -> Priced:
    columns = (
        table.issue, table.rows, table.moved_bytes, table.launch, table.slow, table.overlap, table.operations,
        table.transcendentals,
    )  # fmt: skip
    first, inverse = _distinct(*columns)
    issue, rows, moved, launch, slow, overlap, operations, special = (column[first] for column in columns)
    seconds, dram = stream_seconds(Streams(issue, rows, moved, launch, slow, overlap), gpu)
    compute_j = operations * gpu.operation_j + special * gpu.transcendental_j
    seconds, energies = capped(seconds, _energies(compute_j, moved, dram, gpu), gpu, slows=False)
    memory = moved / (gpu.dram_bytes_per_s * gpu.dram_efficiency)
    bound = _bound(seconds, memory, launch * gpu.launch_cycles / gpu.clock_hz, "vector")
    ones = np.ones(len(first))
    kernel = np.full(len(first), "stream")
    return _spread(Priced(np.arange(len(first)), seconds, energies, dram, ones, bound, kernel), table.row, inverse)


def _energies(compute_j: FloatArray, moved: FloatArray, dram: FloatArray, gpu: GpuParameters) -> Energies:
    return Energies(compute_j, moved * gpu.onchip_j_per_byte, dram * gpu.dram_j_per_byte)


def _causes(energies: Energies) -> tuple[FloatArray, FloatArray, FloatArray]:
    return energies.compute_j, energies.onchip_j, energies.offchip_j


def _joules(seconds: FloatArray, energies: Energies, gpu: GpuParameters) -> FloatArray:
    compute_j, onchip_j, offchip_j = _causes(energies)
    return seconds * gpu.static_w + compute_j + onchip_j + offchip_j


def _first_design(array: FloatArray) -> FloatArray:
    first: FloatArray = array[0] if array.ndim == 2 else array
    return first


def _bound(seconds: FloatArray, memory: FloatArray, launch: FloatArray, otherwise: str) -> TextArray:
    """What bounds each kernel, in the first design of a sweep."""
    whole = np.broadcast_arrays(seconds, memory, launch)
    time, memory, launch = (_first_design(array) for array in whole)
    rest = np.where(memory > DOMINANT * time, "memory", otherwise)
    return np.where(launch > DOMINANT * time, "launch", rest)


def _spread(distinct: Priced, row: IntArray, inverse: IntArray) -> Priced:
    """Entries of the whole table from those of the distinct kernels."""
    causes = Energies(*(cause[..., inverse] for cause in _causes(distinct.energies)))
    return Priced(
        row, distinct.seconds[..., inverse], causes, distinct.dram_bytes[..., inverse],
        distinct.executed_share[..., inverse], distinct.bound[inverse], distinct.kernel[inverse],
    )  # fmt: skip


@dataclass(frozen=True, eq=False)
class _Ledger:
    """Adds priced kernels up on the rows that pay, with gaps and static energy."""

    workload: Workload
    kernels: list[Kernel]
    gpu: GpuParameters
    options: Options

    def settle(self, priced: list[Priced]) -> Costs:
        """The columns of :class:`Costs`."""
        busy = self._sum(priced, lambda table: table.seconds)
        gap = self._gaps(busy)
        latency = busy + gap
        idle = self.gpu.idle_w if self.options.scope != "board" else 0.0
        fused_into, bound, kernel = self._labels(priced)
        return Costs(
            cycles=latency * self.gpu.clock_hz,
            latency_s=latency,
            gap_s=gap,
            compute_j=self._sum(priced, lambda table: table.energies.compute_j),
            onchip_j=self._sum(priced, lambda table: table.energies.onchip_j),
            offchip_j=self._sum(priced, lambda table: table.energies.offchip_j),
            static_j=latency * (self.gpu.static_w - idle),
            dram_bytes=self._sum(priced, lambda table: table.dram_bytes),
            executed_macs=self._executed(priced[0]),
            bound=np.where(_first_design(gap) > DOMINANT * _first_design(latency), "host", bound),
            kernel=kernel,
            fused_into=fused_into,
        )

    def _sum(self, priced: list[Priced], column: Callable[[Priced], FloatArray]) -> FloatArray:
        parts = [(table.row, column(table)) for table in priced]
        shape = np.broadcast_shapes(*(values.shape[:-1] for _, values in parts))
        total: FloatArray = np.zeros((*shape, len(self.workload)))
        for row, values in parts:
            into: Any = (..., row)  # a row may pay for several kernels
            np.add.at(total, into, values)
        return total

    def _gaps(self, busy: FloatArray) -> FloatArray:
        """Seconds in which the device waits for the host.

        Whole models leave a short gap between kernels. In eager mode the host dispatches one operator at a time while the
        device works: a forward pass takes the longer of the two, and what is missing is shared among the operators that
        ended before the host was ready for the next, in proportion.
        """
        if self.options.mode == "kernel":
            return np.zeros_like(busy)
        gap = np.where(busy > 0, self.gpu.kernel_gap_s, 0.0)
        if self.options.mode != "eager":
            return gap
        host = np.where(busy > 0, self.gpu.host_operator_s, 0.0)
        short = np.maximum(host - busy - gap, 0.0)
        missing = np.maximum((host - busy - gap).sum(axis=-1, keepdims=True), 0.0)
        whole = np.maximum(short.sum(axis=-1, keepdims=True), np.finfo(np.float64).tiny)
        waits: FloatArray = gap + short / whole * missing
        return waits

    def _labels(self, priced: list[Priced]) -> tuple[IntArray, TextArray, TextArray]:
        """Row that pays, limiting resource and kernel name of every row."""
        count = len(self.workload)
        fused_into = np.arange(count)
        for entry in self.kernels:
            fused_into[list(entry.members)] = entry.row
        bound = np.full(count, "none", dtype="<U16")
        kernel = np.full(count, "none", dtype="<U24")
        for table in reversed(priced):
            bound[table.row], kernel[table.row] = table.bound, table.kernel
        return fused_into, bound[fused_into], kernel[fused_into]

    def _executed(self, products: Priced) -> FloatArray:
        """MACs the machine performs, on each operator's own row: all of a dense kernel's, else those of occupied units."""
        share: FloatArray = np.ones((*products.executed_share.shape[:-1], len(self.workload)))
        share[..., products.row] = products.executed_share
        executed: FloatArray = np.maximum(self.workload.shape_macs * share, self.workload.kept_macs)
        return executed
