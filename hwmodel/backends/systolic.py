"""SCALE-Sim's arithmetic in closed form, and the TPU backend.

A product is (m, k) x (k, n) on an array of ``rows`` x ``cols`` multipliers. The three dataflows keep one operand in the
array and stream another through it:

=========  ====================================  ======================  =========
dataflow   folds (tiles of the kept operand)     cycles per fold         streamed
=========  ====================================  ======================  =========
``ws``     ceil(k / rows) * ceil(n / cols)       2 rows + cols + m - 2   m
``is``     ceil(k / rows) * ceil(m / cols)       2 rows + cols + n - 2   n
``os``     ceil(m / rows) * ceil(n / cols)       rows + cols + k - 2     k
=========  ====================================  ======================  =========

Under ``ws``, ``rows`` cycles shift the weights in, ``m`` rows stream, ``rows - 1`` and ``cols - 1`` cycles are skew; ``is``
swaps the roles of the operands; ``os`` loads nothing first. Folds never overlap, and an edge fold costs a whole one.

Source: SCALE-Sim 3.0.0 and 2.0.2, equal to every run without stalls (``tests/peers/test_scale_sim*.py``). The ``os`` form
of the paper (Samajdar et al., ISPASS 2020) has 2 rows where the tool has one, and the tool of that time counted otherwise:
rule ``ispass-2020`` of :func:`compute_cycles`. Outside the closed form: memory, so no stalls, no prefetch and no bandwidth.
All functions broadcast; integer inputs give int64 outputs.

What pruning can skip. Under ``ws`` a weight tile without a kept block is never loaded, so ``k`` kept tiles cost
``k * p - 1`` cycles. Under ``os`` and ``is`` weights stream past what stays: an empty tile is a bubble in a stream that
other tiles share, so nothing is skipped and a mask is charged in full (rows of ``k`` that no output of a fold uses could be
left out, which is gathering, not tile skipping). N:M sparsity is not offered either: SCALE-Sim's layer-wise mode keeps the
first N of every M rows for all columns alike, its row-wise mode ignores the given N:M and always halves the rows, and
neither can hold a block mask.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, ClassVar, Literal, NamedTuple, get_args

import numpy as np
import numpy.typing as npt

from hwmodel.backends.base import Costs, FloatArray, Occupation, Options, TextArray, Workload, shared
from hwmodel.backends.tpu import cores, ispass2020, occupation, paper_fit, programs, silicon
from hwmodel.backends.tpu.energy import Joules, joules
from hwmodel.backends.tpu.parameters import TpuParameters

Dataflow = Literal["ws", "os", "is"]
Rule = Literal["scale-sim", "ispass-2020"]
Counting = Literal["scale-sim", "corrected"]
Array = npt.NDArray[Any]

NOT_MODELLED: Mapping[str, str] = MappingProxyType(
    dict.fromkeys(("rowwise", "elementwise", "movement", "reduction"), "SCALE-Sim models matrix products only")
)

_ONE_ARRAY = frozenset({"systolic", "scale-sim", "paper-fit"})


def folds(*, m: Any, k: Any, n: Any, rows: Any, cols: Any, dataflow: str) -> Array:
    """Tiles of the operand that stays in the array, edge tiles counted whole."""
    if not (_positive(rows) and _positive(cols)):
        raise ValueError(f"an array needs at least one row and one column, got {rows} x {cols}")
    side, other = {"ws": (k, n), "is": (k, m), "os": (m, n)}[_checked(dataflow)]
    tiles: Array = _ceil_divide(side, rows) * _ceil_divide(other, cols) * (_streamed(m, k, n, dataflow) > 0)
    return tiles


def cycles_per_fold(*, m: Any, k: Any, n: Any, rows: Any, cols: Any, dataflow: str) -> Array:
    """Cycles from the first weight (or operand) shifted in to the last output shifted out."""
    rows = _plain(rows)
    overhead = rows + _plain(cols) - 2 if _checked(dataflow) == "os" else 2 * rows + _plain(cols) - 2
    cycles: Array = overhead + _streamed(m, k, n, dataflow)
    return cycles


def compute_cycles(
    *, m: Any, k: Any, n: Any, rows: Any, cols: Any, dataflow: str, occupied_tiles: Any = None, rule: Rule = "scale-sim"
) -> Array:
    """SCALE-Sim's total compute cycles of (m, k) x (k, n), one layer each.

    Parameters
    ----------
    m, k, n : sizes of the product; arrays broadcast. A product with a zero among them costs zero
    rows, cols : multipliers of the array
    dataflow : "ws", "os" or "is"
    occupied_tiles : ``ws`` only. Tiles of ``cols`` outputs by ``rows`` inputs that hold a kept block; ``None`` is dense.
        A fraction is an expectation over masks that keep at least one block
    rule : "scale-sim" is versions 2.0.2 and 3.0.0; "ispass-2020" the first version, dense only (edge folds are clipped,
        so it matters *which* tiles are kept)

    Returns
    -------
    broadcast shape, int64 for integers
        ``folds * cycles_per_fold - 1``: the index of the last cycle, which is what the tool prints. Durations are one
        cycle longer. Zero kept tiles cost zero, not less. The first version prints durations.

    Raises
    ------
    ValueError
        Another dataflow or rule, an array without multipliers, more occupied tiles than tiles, or ``occupied_tiles``
        where the weights stream or under "ispass-2020".

    Notes
    -----
    ``k`` kept tiles cost ``k * p - 1`` wherever they lie. Under ``os`` and ``is`` the weights pass through the array: an
    empty weight tile leaves a bubble in somebody else's stream, and only the number of rows left *per fold* (not the
    number of tiles) could shorten it, so a tile count is refused there.
    """
    tiles = folds(m=m, k=k, n=n, rows=rows, cols=cols, dataflow=dataflow)
    if rule != "scale-sim":
        return _first_version(rule, occupied_tiles, m=m, k=k, n=n, rows=rows, cols=cols, dataflow=dataflow)
    if occupied_tiles is not None:
        tiles = _occupied(occupied_tiles, tiles, dataflow)
    per_fold = cycles_per_fold(m=m, k=k, n=n, rows=rows, cols=cols, dataflow=dataflow)
    cycles: Array = tiles * per_fold - np.minimum(tiles, 1)
    return cycles


def overall_utilisation(*, m: Any, k: Any, n: Any, rows: Any, cols: Any, dataflow: str) -> FloatArray:
    """MACs of the dense product over multipliers times :func:`compute_cycles`, a fraction (the tool prints percent).

    The cycles are one short, so this can exceed 1 (``os``, 1x1 array, m=2, k=n=1: 2.0). NaN where they are zero; there
    the tool divides by zero.
    """
    cycles = np.asarray(compute_cycles(m=m, k=k, n=n, rows=rows, cols=cols, dataflow=dataflow), dtype=np.float64)
    return _ratio(np.asarray(m, dtype=np.float64) * k * n, cycles * rows * cols)


def mapping_efficiency(*, m: Any, k: Any, n: Any, rows: Any, cols: Any, dataflow: str) -> FloatArray:
    """Multipliers that hold an operand, averaged over folds: a fraction (the tool prints percent). NaN without work."""
    kept = {"ws": np.asarray(k) * n, "is": np.asarray(m) * k, "os": np.asarray(m) * n}[_checked(dataflow)]
    tiles = np.asarray(folds(m=m, k=k, n=n, rows=rows, cols=cols, dataflow=dataflow), dtype=np.float64)
    return _ratio(kept, tiles * rows * cols)


def compute_utilisation(*, m: Any, k: Any, n: Any, rows: Any, cols: Any, dataflow: str) -> FloatArray:
    """The tool's third utilisation: mapping efficiency times the share of a fold in which operands stream.

    Its fold is ``cols - 1`` cycles too long under ``ws`` and ``is`` (the skew counts twice), so it is *below*
    :func:`overall_utilisation`; reproduced as it is.
    """
    mapped = mapping_efficiency(m=m, k=k, n=n, rows=rows, cols=cols, dataflow=dataflow)
    length = cycles_per_fold(m=m, k=k, n=n, rows=rows, cols=cols, dataflow=dataflow)
    twice = 0 if dataflow == "os" else np.asarray(cols) - 1
    utilisation: FloatArray = mapped * _streamed(m, k, n, dataflow) / (length + twice)
    return utilisation


class AccessCounts(NamedTuple):
    """Words that move in one product, as SCALE-Sim counts them (one word is one element)."""

    ifmap_sram_reads: Array
    filter_sram_reads: Array
    ofmap_sram_writes: Array
    ifmap_dram_reads: Array
    filter_dram_reads: Array
    ofmap_dram_writes: Array


def access_counts(*, m: Any, k: Any, n: Any, rows: Any, cols: Any, dataflow: str, counting: Counting = "scale-sim") -> AccessCounts:
    """SRAM and DRAM accesses of one dense product. Inputs are called ifmap, weights filter, outputs ofmap.

    Notes
    -----
    ``counting="scale-sim"`` is the tool's own: partial sums of every fold of ``k`` are written, to DRAM too, and never read
    back; ``os`` writes ``rows + cols`` words too many per fold in SRAM (its issue 166). ``"corrected"`` sends only results
    to DRAM and drops those words. DRAM reads hold while each operand fits half of its SRAM. Source: SCALE-Sim 3.0.0,
    150 random cases without a difference.
    """
    if counting not in get_args(Counting):
        raise ValueError(f"counting must be 'scale-sim' or 'corrected', got {counting!r}")
    m, k, n = np.broadcast_arrays(m, k, n)
    tiles = folds(m=m, k=k, n=n, rows=rows, cols=cols, dataflow=dataflow)
    row_folds, col_folds = _ceil_divide(k, rows), _ceil_divide(n, cols)
    tools = counting == "scale-sim"
    if dataflow == "ws":
        sram = (m * k * col_folds, k * n, m * n * row_folds)
    elif dataflow == "is":
        sram = (m * k, k * n * _ceil_divide(m, cols), m * n * row_folds)
    else:
        extra = tiles * (np.asarray(rows) + cols) if tools else 0
        sram = (m * k * col_folds, k * n * _ceil_divide(m, rows), m * n + extra)
    results = m * n * (row_folds if tools and dataflow != "os" else 1)
    work = _has_work(m, k, n)
    return AccessCounts(*(np.where(work, count, 0) for count in (*sram, m * k, k * n, results)))


def _first_version(rule: str, occupied_tiles: Any, **shape: Any) -> Array:
    if rule not in get_args(Rule):
        raise ValueError(f"rule must be 'scale-sim' or 'ispass-2020', got {rule!r}")
    if occupied_tiles is not None:
        raise ValueError("occupied_tiles needs rule 'scale-sim': in the first version an edge tile costs less than a whole one")
    return ispass2020.cycles(**shape)


def _occupied(occupied: Any, whole: Array, dataflow: str) -> Array:
    """``occupied`` where it makes sense, rounding of expectations trimmed; zero where the product is empty."""
    if dataflow != "ws":
        raise ValueError(f"occupied_tiles needs dataflow 'ws': under {dataflow!r} weights stream and no tile can be skipped")
    tiles = np.asarray(occupied)
    if np.any((whole > 0) & (tiles > whole * (1 + 1e-9))) or np.any(tiles < 0):
        raise ValueError("occupied_tiles must be between 0 and all tiles; are rows and cols (in x out) swapped?")
    trimmed: Array = np.minimum(tiles, whole)
    return trimmed


def _checked(dataflow: str) -> str:
    if dataflow not in get_args(Dataflow):
        raise ValueError(f"dataflow must be 'ws', 'os' or 'is', got {dataflow!r}")
    return dataflow


def _streamed(m: Any, k: Any, n: Any, dataflow: str) -> Array:
    """Length of the operand that streams through one fold."""
    return np.asarray({"ws": m, "is": n, "os": k}[_checked(dataflow)])


def _plain(value: Any) -> Any:
    """Plain numbers as they are, which is several times faster than arrays of one; the rest as arrays."""
    return value if isinstance(value, int | float) else np.asarray(value)


def _positive(count: Any) -> bool:
    return count >= 1 if isinstance(count, int | float) else bool(np.all(np.asarray(count) >= 1))


def _ceil_divide(count: Any, unit: Any) -> Array:
    divided: Array = -(-np.asarray(count) // _plain(unit))
    return divided


def _ratio(part: Array, whole: Array) -> FloatArray:
    """``part / whole``, NaN where ``whole`` is zero."""
    part, whole = np.broadcast_arrays(part, whole)
    ratio: FloatArray = np.divide(part, whole, out=np.full(part.shape, np.nan), where=whole > 0)
    return ratio


def _has_work(m: Any, k: Any, n: Any) -> Array:
    nonzero: Array = (np.asarray(m) > 0) & (np.asarray(k) > 0) & (np.asarray(n) > 0)
    return nonzero


class Tpu:
    """TPU cores and plain systolic arrays.

    Modes
    -----
    ``device`` : the silicon: every array of one core, weights loaded behind streaming, HBM, vector unit, fused epilogues
    ``device+host`` : the same with the dispatch that a clock on the host sees, once per compiled program
    ``systolic`` : one array, closed form, equal to SCALE-Sim; vector operators are outside that model and cost nothing
    ``scale-sim`` : the cycles of ``systolic`` from the SCALE-Sim package itself, results kept on disk
    ``paper-fit`` : a curve through LSP Table 6, not a machine (:mod:`hwmodel.backends.tpu.paper_fit`)

    A weight tile is skipped only where every block in it is pruned; attention is never fused.
    """

    name: ClassVar[str] = "tpu"
    modes: ClassVar[tuple[str, ...]] = ("device", "device+host", "systolic", "scale-sim", "paper-fit")
    parameters: ClassVar[type[TpuParameters]] = TpuParameters
    simulated_modes: ClassVar[frozenset[str]] = frozenset({"scale-sim"})
    grouped: ClassVar[frozenset[str]] = frozenset({"cores"})

    def kinds(self, mode: str) -> frozenset[str]:
        """Families modelled in ``mode``."""
        if mode == "paper-fit":
            return frozenset({"product"})
        products = frozenset({"product", "attention"})
        return products if mode in _ONE_ARRAY else products | NOT_MODELLED.keys()

    def free(self, mode: str) -> Mapping[str, str]:
        """Families that cost nothing in ``mode``, each with the reason."""
        if mode == "paper-fit":
            return dict.fromkeys(("attention", "conv", *NOT_MODELLED), paper_fit.REASON)
        return NOT_MODELLED if mode in _ONE_ARRAY else {}

    def cost(self, workload: Workload, parameters: TpuParameters, options: Options) -> Costs:
        """Cost of every operator."""
        return _costs(workload, parameters, options)[0]

    def units(self, workload: Workload, parameters: TpuParameters, options: Options) -> Mapping[str, Occupation]:
        """When arrays, vector unit, memory and host work for each operator, of one design."""
        costs = self.cost(workload, parameters, options)
        if options.mode in _ONE_ARRAY:
            return occupation.of_array(costs)
        ran = _Ran.of(workload, parameters)
        return occupation.of_core(silicon.spread(ran.longest, ran.place), costs)

    def skip_unit(self, workload: Workload, parameters: TpuParameters, options: Options) -> tuple[int, int] | None:
        """(outputs, inputs) of one array; nothing is skipped on one array that keeps no weights."""
        if options.mode in _ONE_ARRAY and parameters.dataflow != "ws" and options.mode != "paper-fit":
            return None
        return int(parameters.array_cols), int(parameters.array_rows)


def energy_by_unit(workload: Workload, parameters: TpuParameters, options: Options) -> Joules:
    """Joules of each operator split into systolic arrays, vector unit, on-chip memory, HBM and static power.

    The rows of :class:`Costs` hold the first two as one cause, ``compute_j``.
    """
    return _costs(workload, parameters, options)[1]


def _costs(workload: Workload, parameters: TpuParameters, options: Options) -> tuple[Costs, Joules]:
    price = array_costs if options.mode in _ONE_ARRAY else device_costs
    return price(workload, parameters, options)


def array_costs(workload: Workload, parameters: TpuParameters, options: Options) -> tuple[Costs, Joules]:
    """Costs on one array without memory: mode ``systolic``, ``scale-sim`` with the package's own cycles, or ``paper-fit``.

    Batched products are layers of their own, as in SCALE-Sim. Under ``os`` and ``is`` a mask is charged in full.
    Energy takes SCALE-Sim's access counts (partial sums to DRAM included) times the card's energy per byte.
    """
    p = parameters
    rows, place = np.unique(workload.alike, return_inverse=True)
    few = workload.only(rows)
    parts = (silicon.first_products(few, p), silicon.second_products(few, p))
    if options.mode == "paper-fit":
        parts = (paper_fit.only_covered(parts[0], few), paper_fit.only_covered(parts[1], few))
    cycles, macs, onchip, dram = (
        sum(column) for column in zip(*(_array_work(part, p, options.mode) for part in parts), strict=True)
    )
    latency_s = np.asarray(cycles / np.asarray(p.clock_hz))
    energy = joules(
        latency_s=latency_s, macs=macs, vector_ops=np.zeros(len(few)), onchip_bytes=onchip, dram_bytes=dram,
        parameters=p, scope=options.scope,
    )  # fmt: skip
    unit = "curve" if options.mode == "paper-fit" else f"systolic-{p.dataflow}"
    bound, kernel = (shared(np.where(latency_s > 0, name, "none")) for name in ("compute", unit))
    cycles, latency_s, macs, dram, bound, kernel = (
        np.take(column, place, axis=-1) for column in (cycles, latency_s, macs, dram, bound, kernel)
    )
    energy = Joules(*(np.take(column, place, axis=-1) for column in energy))
    costs = Costs(
        cycles=cycles, latency_s=latency_s, compute_j=energy.compute, onchip_j=energy.onchip, offchip_j=energy.offchip,
        static_j=energy.static, dram_bytes=dram, executed_macs=macs, bound=bound, kernel=kernel,
        fused_into=np.arange(len(workload), dtype=np.int64),
    )  # fmt: skip
    return costs, energy


def _array_work(products: silicon.Products, parameters: TpuParameters, mode: str) -> tuple[FloatArray, ...]:
    """Cycles, MACs performed, SRAM bytes and DRAM bytes of products on one array."""
    p, w = parameters, products
    dataflow = "ws" if mode == "paper-fit" else p.dataflow
    shape: dict[str, Any] = {
        "m": w.m, "k": w.k, "n": w.n, "rows": p.array_rows, "cols": p.array_cols, "dataflow": dataflow,
    }  # fmt: skip
    skips = dataflow == "ws"
    tiles = np.where(_has_work(w.m, w.k, w.n), w.tiles, 0.0) if skips else folds(**shape)
    if mode == "scale-sim":
        layer = _package_cycles(shape, w, tiles)
    elif mode == "paper-fit":
        layer = paper_fit.cycles(w, tiles, cycles_per_fold(**shape))
    else:
        layer = compute_cycles(**shape, occupied_tiles=tiles if skips else None)
    words = access_counts(**shape)
    used, share = w.batch * (tiles > 0), w.share if skips else 1.0
    onchip = share * ((words.ifmap_sram_reads + words.ofmap_sram_writes) * w.left_bytes + words.filter_sram_reads * w.right_bytes)
    dram = words.ifmap_dram_reads * w.left_bytes + share * (
        words.filter_dram_reads * w.right_bytes + words.ofmap_dram_writes * w.left_bytes
    )
    streamed = np.asarray(_streamed(w.m, w.k, w.n, dataflow), dtype=np.float64)
    macs = np.asarray(w.batch * tiles * p.array_rows * p.array_cols, dtype=np.float64) * streamed
    return w.batch * layer, macs, used * onchip, used * dram


def _package_cycles(shape: dict[str, Any], products: silicon.Products, tiles: Array | None) -> FloatArray:
    """Cycles of one product each from the SCALE-Sim package; what is not a product is not run."""
    from hwmodel.backends import scale_sim

    return scale_sim.layer_cycles(**shape, used=products.batch > 0, tiles=tiles)


def device_costs(workload: Workload, parameters: TpuParameters, options: Options) -> tuple[Costs, Joules]:
    """Costs on the cores of the real machine: modes ``device`` and ``device+host``.

    The core with the most images decides the time of every row; events of all cores are added up, static power is the
    chip's. The host dispatches to all cores at once.
    """
    p, ran = parameters, _Ran.of(workload, parameters)
    place, leaders, longest = ran.place, ran.leaders, ran.longest
    work = silicon.spread(ran.total, place)
    bound = np.take(shared(programs.bound_by(longest, ran.device_s)), place, axis=-1)
    worked = np.atleast_2d(longest.compute_s + longest.memory_s + longest.vector_s)
    runs = np.asarray((worked > 0).any(axis=0))[place]
    device_s = np.take(ran.device_s, place, axis=-1)
    gap_s = np.zeros_like(device_s)
    if options.mode == "device+host":
        gap_s = programs.host_gap_s(device_s, workload, p)
        bound = np.where(gap_s > device_s, "host", bound)
    latency_s = device_s + gap_s
    energy = joules(
        latency_s=latency_s, macs=work.macs, vector_ops=work.vector_ops, onchip_bytes=work.vmem_bytes,
        dram_bytes=work.dram_bytes, parameters=p, scope=options.scope,
    )  # fmt: skip
    costs = Costs(
        cycles=latency_s * p.clock_hz, latency_s=latency_s, gap_s=gap_s, compute_j=energy.compute, onchip_j=energy.onchip,
        offchip_j=energy.offchip, static_j=energy.static, dram_bytes=work.dram_bytes, executed_macs=work.macs,
        bound=bound, kernel=_kernels(workload, runs, leaders), fused_into=leaders,
    )  # fmt: skip
    return costs, energy


class _Ran(NamedTuple):
    """What all cores do for each distinct kernel, and what the core with the most images does and how long it takes."""

    total: silicon.Work
    longest: silicon.Work
    device_s: FloatArray
    place: npt.NDArray[np.int64]
    leaders: npt.NDArray[np.int64]

    @classmethod
    def of(cls, workload: Workload, parameters: TpuParameters) -> _Ran:
        p = parameters
        leaders = workload.once(("tpu kernels", p.lowering), lambda: programs.kernel_leaders(workload, p.lowering))
        rows, place = programs.distinct_kernels(workload, leaders)
        few, alone = workload.only(rows), programs.alone(workload)[rows]
        ran = [
            (count, *_core_work(cores.part(few, images), place[leaders[rows]], alone, p))
            for images, count in cores.shares(workload.trace.batch, p)
        ]
        _, longest, device_s = ran[0]
        return cls(silicon.total([(count, work) for count, work, _ in ran]), longest, device_s, place, leaders)


def _core_work(
    workload: Workload, leaders: npt.NDArray[np.int64], alone: npt.NDArray[np.bool_], parameters: TpuParameters
) -> tuple[silicon.Work, FloatArray]:
    """What one core does for each kernel, and the seconds it takes; rows ``alone`` are programs by themselves."""
    p = parameters
    rows = np.arange(len(workload), dtype=np.int64)
    parts = (
        silicon.product_work(silicon.first_products(workload, p), p),
        silicon.vector_work(workload, leaders != rows, programs.extra_operand_bytes(workload), alone, p),
        silicon.product_work(silicon.second_products(workload, p), p),
    )
    work = programs.merged(parts, leaders)
    in_turn = sum(programs.kernel_s(part) for part in parts)
    device_s = np.where(workload.family == "attention", in_turn, programs.kernel_s(work))
    return work, device_s + programs.exposed_s(work, workload, alone, p)


def _kernels(workload: Workload, runs: npt.NDArray[np.bool_], leaders: npt.NDArray[np.int64]) -> TextArray:
    """Unit that runs each row's kernel: "mxu", "vpu", "dma" where values only move, "none" where nothing runs."""
    unit = {"product": "mxu", "attention": "mxu", "movement": "dma"}
    names = np.array([unit.get(family, "vpu") for family in workload.family.tolist()], dtype=np.str_)
    own: TextArray = np.where(runs, names, "none")
    return own[leaders]
