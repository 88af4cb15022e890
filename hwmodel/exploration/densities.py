"""The layers of one trace at many densities: masks exchanged on a prepared workload, everything else shared."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np

from hwmodel.backends.base import Costs, FloatArray, IntArray, evaluate
from hwmodel.backends.estimates import Estimate
from hwmodel.backends.registry import get_backend
from hwmodel.errors import HwmodelError
from hwmodel.ir.masks import Mask, Rule, Shape, expected_mask, grid_shape

Masks = dict[int, Mask | None]
_STACKED = ("latency_s", "energy_j", "dram_bytes", "executed_macs")


@dataclass(frozen=True, kw_only=True, eq=False)
class Priced:
    """All operators at every density: arrays of shape (densities, operators).

    ``rows`` are the layers, ``kept_blocks`` (densities, layers) and ``all_blocks`` (layers,) their blocks.
    """

    rows: Sequence[int]
    density: FloatArray
    latency_s: FloatArray
    energy_j: FloatArray
    dram_bytes: FloatArray
    executed_macs: FloatArray
    kept_macs: FloatArray
    kept_blocks: IntArray
    all_blocks: IntArray


def price(found: Estimate, rows: Sequence[int], block: Shape, densities: Sequence[float], expect: Rule) -> Priced:
    """Price the trace with all layers ``rows`` at each of ``densities`` in turn, as a recipe would prune them.

    Raises
    ------
    HwmodelError
        A block that is larger than a layer.
    """
    whole = _all_blocks(found, rows, block)
    kept = np.array([[round(density * total) for total in whole.tolist()] for density in densities], dtype=np.int64)
    cost, make = _coster(found, found.options.sparse_kernel), _maker(found, rows, block, expect)
    costs, kept_macs = [], []
    for density in densities:
        masks: Masks = {row: None if density == 1.0 else make(row, density) for row in rows}
        workload, priced = cost(masks)
        costs.append(priced)
        kept_macs.append(workload.kept_macs)
    return Priced(
        rows=rows, density=np.array(densities), kept_macs=np.stack(kept_macs), kept_blocks=kept, all_blocks=whole,
        **{name: np.stack([getattr(one, name) for one in costs]) for name in _STACKED},
    )  # fmt: skip


def break_even(found: Estimate, rows: Sequence[int], block: Shape, expect: Rule) -> FloatArray:
    """Largest kept fraction at which the sparse kernel, always taken, is no slower than the dense one: (layers,).

    By bisection over kept blocks, all layers at once, gaps left out; 1 where it never is slower, 0 where one kept block
    makes it so.
    """
    whole = _all_blocks(found, rows, block)
    cost, make = _coster(found, "always"), _maker(found, rows, block, expect)

    def busy(masks: Masks) -> FloatArray:
        costs = cost(masks)[1]
        return np.asarray((costs.latency_s - costs.gap_s)[list(rows)])

    def pays(kept: IntArray) -> np.ndarray[Any, np.dtype[np.bool_]]:
        shares = zip(rows, (kept / whole).tolist(), strict=True)
        return busy({row: make(row, share) for row, share in shares}) <= dense

    dense = busy(dict.fromkeys(rows))
    least, most = np.where(pays(whole), whole, 0), whole
    while (most - least > 1).any():
        middle = np.where(most - least > 1, (least + most) // 2, most)
        won = pays(middle)
        least, most = np.where(won, middle, least), np.where(won, most, middle)
    share: FloatArray = least / whole
    return share


def _coster(found: Estimate, sparse_kernel: Any) -> Callable[[Masks], tuple[Any, Costs]]:
    """Prices the estimate's trace under other masks: (workload, costs)."""
    backend = get_backend(found.card.backend)
    parameters = found.card.resolve(found.mode, found.overrides)
    options = replace(found.options, sparse_kernel=sparse_kernel)

    def cost(masks: Masks) -> tuple[Any, Costs]:
        workload = found.workload.masked(masks)
        return workload, evaluate(backend, workload, parameters, options)

    return cost


def _maker(found: Estimate, rows: Sequence[int], block: Shape, expect: Rule) -> Callable[[int, float], Mask]:
    """The expected mask of a row at a density; equal ones are one object, so their tiles are counted once."""
    shapes = {row: (found.trace.operators[row].n, found.trace.operators[row].k) for row in rows}
    make = cache(lambda shape, density: expected_mask(shape, block, density, expect))
    return lambda row, density: make(shapes[row], density)


def _all_blocks(found: Estimate, rows: Sequence[int], block: Shape) -> IntArray:
    """Blocks of every layer."""
    operators = [found.trace.operators[row] for row in rows]
    small = [operator for operator in operators if block[0] > operator.n or block[1] > operator.k]
    if small:
        first = small[0]
        raise HwmodelError(
            f"block {block[0]}x{block[1]} is larger than {first.name} ({first.n}x{first.k}, out x in)"
            + (f" and {len(small) - 1} more layers" if len(small) > 1 else "")
            + "; choose a smaller one, or leave those layers out"
        )
    return np.array([np.prod(grid_shape((operator.n, operator.k), block)) for operator in operators], dtype=np.int64)
