"""Cost tables: what every prunable layer and encoder block costs on a device over density, block shape, tokens and heads.

A layer's cost is its own row *in the model*: the kernel that runs it, with whatever is fused into that kernel, while all
layers of the table have the same density and block shape. An encoder block's cost is the sum of its rows. Layers and blocks
overlap: add up one or the other. ``rest`` is the model less its layers. Where that does not depend on density the device is
additive: the layers' costs at any densities plus the rest are the cost of the whole model. How far it holds is
:meth:`hwmodel.exploration.costs.CostTable.interaction`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from hwmodel.backends.base import AttentionChoice, FloatArray, Scope, SparseChoice
from hwmodel.backends.cards import Card, load_card
from hwmodel.backends.estimates import Estimate, estimate
from hwmodel.errors import HwmodelError, suggestion
from hwmodel.exploration.cost_files import described
from hwmodel.exploration.costs import COLUMNS, CostTable
from hwmodel.exploration.densities import Priced, break_even, price
from hwmodel.exploration.hulls import Hulls
from hwmodel.extraction.whatif.pruning import prune
from hwmodel.extraction.whatif.recipes import EncoderRule, Recipe
from hwmodel.ir.masks import RULES, Rule, Shape
from hwmodel.ir.operators import Operator
from hwmodel.ir.trace import Trace

Many = Sequence[Any]


@dataclass(frozen=True, kw_only=True)
class Axes:
    """The values of every axis, checked; ``None`` for tokens, heads or dtype is what the trace has."""

    density: tuple[float, ...]
    block: tuple[Shape, ...]
    tokens: tuple[int | None, ...]
    heads: tuple[int | None, ...]
    dtype: tuple[str | None, ...]


def cost_table(
    trace: Trace | Sequence[Trace],
    *,
    device: str | Path | Card,
    density: float | Sequence[float],
    block: Shape | Sequence[Shape] = (32, 32),
    tokens: int | Sequence[int] | None = None,
    heads: int | Sequence[int] | None = None,
    dtype: str | Sequence[str] | None = None,
    layers: str | Sequence[str] = "*",
    expect: Rule = "uniform",
    mode: str | None = None,
    attention: AttentionChoice = "source",
    sparse_kernel: SparseChoice = "auto",
    scope: Scope = "board",
    overrides: Mapping[str, Any] | None = None,
) -> CostTable:
    """What each prunable layer and each encoder block costs on a device, at every point of the axes.

    Parameters
    ----------
    trace : of one model; several traces of it at different batch sizes make ``batch`` an axis
    density : fractions of weight blocks kept, in [0, 1]; 1, the dense kernel, is always added
    block : weight blocks (out, in)
    tokens : patch tokens that enter every encoder block
    heads : heads of every encoder block
    layers : globs over operator names; products with one weight each match, a mask that they carry is replaced
    expect : how kept blocks are expected to lie: "uniform", "row-clustered", "tile-clustered"
    dtype, mode, attention, sparse_kernel, scope, overrides : as for :func:`hwmodel.estimate`

    Raises
    ------
    HwmodelError
        A density outside [0, 1], a block larger than a layer, no prunable layer, or what :func:`hwmodel.estimate` refuses.
    """
    traces = (trace,) if isinstance(trace, Trace) else tuple(trace)
    card = device if isinstance(device, Card) else load_card(device)
    axes = Axes(
        density=_densities(density), block=_blocks(block), tokens=_many(tokens), heads=_many(heads), dtype=_many(dtype)
    )  # fmt: skip
    _check(traces, expect)
    choices = {"mode": mode, "attention": attention, "sparse_kernel": sparse_kernel, "scope": scope, "overrides": overrides}
    hulls, parts, found = Hulls(), [], None
    for variant, settled in _variants(traces, axes):
        found = estimate(variant, device=card, dtype=settled["dtype"], **choices)  # type: ignore[arg-type]
        if found.costs.latency_s.ndim != 1:
            raise HwmodelError(f"{card.name}: a cost table is of one design; give each overridden field one value")
        rows = prunable(variant, (layers,) if isinstance(layers, str) else layers)
        for shape in axes.block:
            priced = price(found, rows, shape, axes.density, expect)
            limits = break_even(found, rows, shape, expect)
            parts.append(_columns(found, priced, {**settled, "block_out": shape[0], "block_in": shape[1]}, limits, hulls))
    assert found is not None
    return CostTable(_frame(parts), described(traces, found, expect, layers))


def prunable(trace: Trace, globs: Sequence[str]) -> list[int]:
    """Rows of the products with one weight that match a glob.

    Raises
    ------
    HwmodelError
        A glob that matches none, or a trace without any.
    """
    rows = [row for row, operator in enumerate(trace.operators) if _has_weight(operator)]
    names = [trace.operators[row].name for row in rows]
    if not rows:
        raise HwmodelError(f"{trace.model} has no prunable layer: none of its {len(trace)} operators is a product with a weight")
    for glob in globs:
        if not any(fnmatchcase(name, glob) for name in names):
            raise HwmodelError(f"layers: {glob!r} matches no prunable layer of {trace.model}; {suggestion(glob, names)}")
    return [row for row, name in zip(rows, names, strict=True) if any(fnmatchcase(name, glob) for glob in globs)]


def _has_weight(operator: Operator) -> bool:
    product_of_weight = operator.family == "product" and operator.parameter and operator.batch == 1
    return product_of_weight and not operator.constant and operator.sparsity is None


def _many(values: Any) -> tuple[Any, ...]:
    """One value or several as a tuple, each once; None is one value."""
    several = tuple(values) if isinstance(values, Sequence) and not isinstance(values, str) else (values,)
    if not several:
        raise HwmodelError("an axis of the cost table is empty; leave it out or give it a value")
    return tuple(dict.fromkeys(several))


def _densities(values: float | Sequence[float]) -> tuple[float, ...]:
    """Ascending, each once to nine decimals, 1 among them."""
    found = {round(float(value), 9) for value in np.ravel(np.asarray(values, dtype=np.float64))}
    if not found:
        raise HwmodelError("density: expected at least one fraction in [0, 1]")
    outside = sorted(value for value in found if not 0.0 <= value <= 1.0)
    if outside:
        raise HwmodelError(f"density {outside[0]:g} is outside [0, 1]: it is the fraction of blocks kept")
    return tuple(sorted(found | {1.0}))


def _blocks(values: Shape | Sequence[Shape]) -> tuple[Shape, ...]:
    shapes = np.asarray(values)
    if shapes.dtype.kind not in "iu" or shapes.size == 0 or shapes.shape[-1:] != (2,) or shapes.ndim > 2 or shapes.min() < 1:
        raise HwmodelError(f"block {values!r}: expected (out, in) in weights, or several, such as [(32, 32), (64, 64)]")
    return tuple(dict.fromkeys((out, depth) for out, depth in shapes.reshape(-1, 2).tolist()))


def _check(traces: Sequence[Trace], expect: str) -> None:
    if expect not in RULES:
        raise HwmodelError(f"expect {expect!r}: expected one of {', '.join(RULES)}")
    if len({one.model for one in traces}) != 1 or len({one.batch for one in traces}) != len(traces):
        raise HwmodelError("a cost table needs traces of one model, each at another batch size")


def _variants(traces: Sequence[Trace], axes: Axes) -> Iterator[tuple[Trace, dict[str, Any]]]:
    """Every trace with the tokens and heads asked for, and the axes it stands for."""
    for trace, tokens, heads in product(traces, axes.tokens, axes.heads):
        pruned = _structured(trace, tokens, heads)
        for dtype in axes.dtype:
            yield pruned, {"batch": trace.batch, "tokens": tokens, "heads": heads, "dtype": dtype}


def _structured(trace: Trace, tokens: int | None, heads: int | None) -> Trace:
    if tokens is None and heads is None:
        return trace
    indices = sorted({operator.block for operator in trace.operators if operator.block is not None})
    if not indices:
        raise HwmodelError(f"{trace.model} has no encoder blocks, of which tokens or heads could be pruned")
    if any(value is not None and value < 1 for value in (tokens, heads)):
        raise HwmodelError(f"tokens and heads are counts of at least 1, found {tokens if heads is None else heads}")
    rule = EncoderRule(blocks=",".join(map(str, indices)), tokens=tokens, heads=heads)
    return prune(trace, Recipe(model=trace.model, source="cost table", encoder=(rule,)))


def _columns(
    found: Estimate, priced: Priced, point: dict[str, Any], limits: FloatArray, hulls: Hulls
) -> dict[str, np.ndarray[Any, Any]]:
    """The columns of one variant and block shape: curves of layers, encoder blocks, the rest and the model, one by one."""
    trace, rows, width = found.trace, priced.rows, len(priced.density)
    operators = trace.operators
    blocks = sorted({operator.block for operator in operators if operator.block is not None})
    members = [[row for row, operator in enumerate(operators) if operator.block == block] for block in blocks]
    others = [row for row in range(len(operators)) if row not in set(rows)]
    groups = [*([row] for row in rows), *members, others]

    def curves(column: FloatArray) -> FloatArray:
        """(curves, densities) from (densities, operators); the model's is the sum that an estimate shows."""
        return np.stack([*(column[:, group].sum(axis=1) for group in groups), column.sum(axis=-1)])

    def each(values: Sequence[Any]) -> np.ndarray[Any, Any]:
        return np.repeat(np.array(values, dtype=object), width)

    fill = [None] * (len(blocks) + 2)
    latency, energy = curves(priced.latency_s), curves(priced.energy_j)
    macs = np.array([sum(operators[row].macs for row in group) for group in groups] + [trace.macs], dtype=np.float64)
    latency_hull, latency_slope = hulls.of(priced.density, latency)
    energy_hull, energy_slope = hulls.of(priced.density, energy)
    kept = [*priced.kept_blocks.T.ravel().tolist(), *[None] * (width * len(fill))]
    columns = {
        "group": each(["layer"] * len(rows) + ["encoder block"] * len(blocks) + ["rest", "model"]),
        "name": each([*(operators[row].name for row in rows), *map(str, blocks), "rest", "model"]),
        "role": each([*(operators[row].role for row in rows), *[""] * len(fill)]),
        "density": np.tile(priced.density, len(latency)),
        "kept_blocks": np.array(kept, dtype=object),
        "all_blocks": each([*priced.all_blocks.tolist(), *fill]),
        "latency_s": latency.ravel(),
        "energy_j": energy.ravel(),
        "dram_bytes": curves(priced.dram_bytes).ravel(),
        "macs": np.repeat(macs, width),
        "kept_macs": curves(priced.kept_macs).ravel(),
        "executed_macs": curves(priced.executed_macs).ravel(),
        "latency_hull_s": latency_hull.ravel(),
        "latency_slope_s": latency_slope.ravel(),
        "energy_hull_j": energy_hull.ravel(),
        "energy_slope_j": energy_slope.ravel(),
        "break_even_density": np.repeat([*limits.tolist(), *[np.nan] * len(fill)], width),
    }
    alike = {**point, "dtype": found.dtype} | {f"{what}_fidelity": level for what, level in found.fidelity.items()}
    return columns | {name: np.full(latency.size, value, dtype=object) for name, value in alike.items()}


def _frame(parts: Sequence[Mapping[str, np.ndarray[Any, Any]]]) -> Any:
    """All columns, in the order of :data:`COLUMNS`, with their types."""
    from hwmodel.exploration.cost_files import typed

    return typed({name: np.concatenate([part[name] for part in parts]) for name in COLUMNS})
