"""Where pruning makes a layer slower on a GPU: sparse against dense kernels, layer by layer, with the break-even density."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import numpy as np

from hwmodel.backends.base import FloatArray, Options, Workload, by_key
from hwmodel.backends.gpu.backend import Gpu
from hwmodel.backends.gpu.parameters import GpuParameters, arithmetic
from hwmodel.backends.gpu.products import Products
from hwmodel.backends.gpu.sparse import break_even, occupied_share, skip_unit

if TYPE_CHECKING:
    from hwmodel.backends.estimates import Estimate


@dataclass(frozen=True, kw_only=True)
class SlowLayer:
    """A pruned layer whose sparse kernel is slower than its dense one. Times in seconds, densities in [0, 1].

    ``kept``: blocks the mask keeps. ``occupied``: units of ``unit`` (out, in) weights that the kernel cannot skip, at
    least ``kept``. ``break_even``: occupied density below which the sparse kernel wins at full clock (under the board limit
    it may win earlier, for it draws less); None for 2:4 weights.
    """

    name: str
    kept: float
    unit: tuple[int, int]
    occupied: float
    dense_s: float
    sparse_s: float
    break_even: float | None

    @property
    def _alike(self) -> tuple[str, tuple[int, int], bool]:
        """Layers with the same key are told in one line: the name without its numbers, the unit, the kind of sparsity."""
        return re.sub(r"\d+", "*", self.name), self.unit, self.break_even is None


def told(layers: Sequence[SlowLayer], *, forced: bool) -> list[str]:
    """One line for each set of like layers, such as ``blocks.*.mlp.fc1``, that a person can act on.

    ``forced``: the sparse kernels were asked for whatever they cost; otherwise these layers run dense.
    """
    sets: dict[object, list[SlowLayer]] = {}
    for layer in layers:
        sets.setdefault(layer._alike, []).append(layer)
    return [_line(mine, "it runs sparse all the same" if forced else "it runs dense") for mine in sets.values()]


def _line(layers: Sequence[SlowLayer], consequence: str) -> str:
    first = layers[0]
    name = first.name if len(layers) == 1 else f"{_common([one.name for one in layers])} ({len(layers)} layers)"
    times = f"{_span([one.sparse_s / one.dense_s for one in layers], '.2f')} times the dense kernel's time"
    if first.break_even is None:
        return f"{name}: its 2:4 kernel takes {times}; {consequence}"
    out, depth = first.unit
    return (
        f"{name}: the block-sparse kernel takes {times} at {_span([one.occupied for one in layers], '.0%')} of {out}x{depth} "
        f"units occupied ({_span([one.kept for one in layers], '.0%')} of blocks kept); {consequence}, "
        f"and breaks even at {_span([one.break_even or 0.0 for one in layers], '.0%')}"
    )


def _common(names: Sequence[str]) -> str:
    """The glob of names that differ in their numbers only: a star where they do."""
    parts = zip(*(re.split(r"(\d+)", name) for name in names), strict=True)
    return "".join(part[0] if len(set(part)) == 1 else "*" for part in parts)


def _span(values: Sequence[float], spec: str) -> str:
    ends = dict.fromkeys(format(value, spec) for value in (min(values), max(values)))
    return " to ".join(ends)


def slow_layers(estimate: Estimate) -> list[SlowLayer]:
    """Layers of an estimate on a GPU that pruning does not speed up, in trace order; empty on other backends.

    Of a sweep, in its first design.
    """
    if estimate.card.backend != Gpu.name:
        return []
    gpu = estimate.card.resolve(estimate.mode, dict(estimate.overrides))
    return find_slow_layers(estimate.workload, cast("GpuParameters", gpu), estimate.options.mode)


def find_slow_layers(workload: Workload, gpu: GpuParameters, mode: str) -> list[SlowLayer]:
    """:func:`slow_layers` for a workload and resolved parameters of one design."""
    rows = [row for row, one in enumerate(workload.trace.operators) if one.sparsity or (one.mask and one.mask.kept_blocks)]
    if not rows:
        return []
    dense_trace = workload.trace.replace(operators=tuple(one.replace(mask=None, sparsity=None) for one in workload.trace.operators))
    dense_s = _seconds(Workload(dense_trace, workload.dtype, workload.weight_dtype), gpu, mode)
    sparse_s = _seconds(workload, gpu, mode)
    return [_layer(workload, row, gpu, float(dense_s[row]), float(sparse_s[row])) for row in rows if sparse_s[row] > dense_s[row]]


def _seconds(workload: Workload, gpu: GpuParameters, mode: str) -> FloatArray:
    latency_s = Gpu().cost(workload, gpu, Options(mode=mode, sparse_kernel="always")).latency_s
    first: FloatArray = np.atleast_2d(latency_s)[0]
    return first


def _layer(workload: Workload, row: int, gpu: GpuParameters, dense_s: float, sparse_s: float) -> SlowLayer:
    one = workload.trace.operators[row]
    if one.mask is None:
        share = one.kept_share
        return SlowLayer(
            name=one.name, kept=share, unit=(1, 4), occupied=share, dense_s=dense_s, sparse_s=sparse_s, break_even=None
        )
    unit = skip_unit(one.mask)
    return SlowLayer(
        name=one.name, kept=one.mask.kept_fraction, unit=unit, occupied=occupied_share(one.mask), dense_s=dense_s,
        sparse_s=sparse_s, break_even=_break_even(workload, row, unit, gpu),
    )  # fmt: skip


def _break_even(workload: Workload, row: int, unit: tuple[int, int], gpu: GpuParameters) -> float:
    formats = arithmetic(workload.dtype[[row]])
    rate = by_key(gpu.macs_per_clock_sm, formats, "macs_per_clock_sm")
    batch, m, k, n = (column[[row]].astype(np.float64) for column in (workload.batch, workload.m, workload.k, workload.n))
    size = workload.activation_bytes[[row]]
    products = Products(batch, m, k, n, size, np.zeros(1), rate, formats == "fp32")
    out, depth = (np.array([float(side)]) for side in unit)
    return float(np.ravel(break_even(out, depth, products, gpu))[0])
