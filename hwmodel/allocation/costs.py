"""Cost curves of layers: multiply-accumulates as FLOPs, a tabulated curve, or true masks priced by a device's own backend."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

import numpy as np

from hwmodel.allocation.layers import FloatArray, Layer
from hwmodel.allocation.problem import Cost
from hwmodel.backends.base import Costs, evaluate
from hwmodel.backends.cards import Card
from hwmodel.backends.estimates import Estimate, estimate
from hwmodel.backends.registry import get_backend
from hwmodel.errors import HwmodelError, UnknownNameError, suggestion
from hwmodel.ir.masks import BlockMask, Mask, Shape
from hwmodel.ir.operators import Operator
from hwmodel.ir.trace import Trace

Quantity = Literal["latency_s", "energy_j"]
QUANTITIES: tuple[Quantity, ...] = get_args(Quantity)


class TabulatedCurves(Protocol):
    """What :meth:`hwmodel.CostTable.curves` returns: ``cost`` (layers, densities), ``density`` ascending up to 1."""

    @property
    def names(self) -> tuple[str, ...]: ...
    @property
    def density(self) -> FloatArray: ...
    @property
    def cost(self) -> FloatArray: ...
    @property
    def rest(self) -> float: ...


def flop_cost(layers: Sequence[Layer], trace: Trace | None = None, *, total: bool = False) -> Cost:
    """FLOPs (two per multiply-accumulate) of kept weights, ragged blocks by what they hold.

    Parameters
    ----------
    trace : the model, of which the operators that are not in ``layers`` count too; None counts the layers alone
    total : count every product; otherwise those with a weight, as LSP counts linear layers (attention's products left out), less
        what a deployed model computes once

    Raises
    ------
    HwmodelError
        A layer that the trace does not have, or has in another shape.
    """
    rest, counts = 0.0, [2 * layer.rows for layer in layers]
    if trace is not None:
        rows = matched(layers, trace)
        counts = [count * (total or not trace.operators[row].constant) for count, row in zip(counts, rows, strict=True)]
        others = [operator for row, operator in enumerate(trace.operators) if row not in set(rows)]
        rest = 2.0 * sum(operator.kept_macs for operator in others if total or (operator.parameter and not operator.constant))
    curves = tuple((count * layer.kept_weights).astype(np.float64) for count, layer in zip(counts, layers, strict=True))
    dense = rest + float(sum(count * layer.shape[0] * layer.shape[1] for count, layer in zip(counts, layers, strict=True)))
    name = "flops of all products" if total else "flops of linear layers"
    return Cost(name=name, curves=curves, rest=rest, dense=dense, source="counted from shapes and masks")


def table_cost(layers: Sequence[Layer], curves: TabulatedCurves, name: str, *, source: str = "cost table") -> Cost:
    """Costs read off a table's curves by density, linear between two entries; table layers that are not allocated stay dense.

    Raises
    ------
    HwmodelError
        A layer that the table does not have, or a density below the table's least.
    """
    place = {known: row for row, known in enumerate(curves.names)}
    found = []
    for layer in layers:
        if layer.name not in place:
            raise HwmodelError(f"layer {layer.name!r} is not in the cost table; {suggestion(layer.name, curves.names)}")
        if layer.density.min() < curves.density[0] - 1e-9:
            raise HwmodelError(
                f"{layer.name}: its curve goes down to density {layer.density.min():.3g}, the cost table to {curves.density[0]:g}; "
                "tabulate from density 0"
            )
        found.append(np.interp(layer.density, curves.density, curves.cost[place[layer.name]]))
    allocated = [place[layer.name] for layer in layers]
    others = np.delete(np.arange(len(curves.names)), allocated)
    rest = float(curves.rest + curves.cost[others, -1].sum())
    dense = float(curves.rest + curves.cost[:, -1].sum())
    return Cost(name=name, curves=tuple(found), rest=rest, dense=dense, source=source)


@dataclass(frozen=True, eq=False)
class Machine:
    """A device with a model on it: prices true masks. Made by :meth:`of`."""

    dense: Estimate

    @classmethod
    def of(cls, trace: Trace, *, device: str | Path | Card, **options: Any) -> Machine:
        """``trace`` with nothing pruned; ``options`` are those of :func:`hwmodel.estimate`: mode, dtype, overrides, scope, ...

        Raises
        ------
        HwmodelError
            What :func:`hwmodel.estimate` refuses, or a sweep over several designs.
        """
        found = estimate(trace, device=device, **options)
        if found.costs.latency_s.ndim != 1:
            raise HwmodelError(f"{found.device}: an allocation is for one design; give each overridden field one value")
        return cls(found)

    @property
    def label(self) -> str:
        """Device and mode."""
        return f"{self.dense.device}/{self.dense.mode}"

    @cached_property
    def skip_unit(self) -> Shape | None:
        """(out, in) weights that the machine skips as one; None where it skips nothing or does not say."""
        tell = getattr(get_backend(self.dense.card.backend), "skip_unit", None)
        if tell is None:
            return None
        now = self.dense
        unit: Shape | None = tell(now.workload, now.card.resolve(now.mode, now.overrides), now.options)
        return unit

    def price(self, masks: Mapping[str, Mask]) -> Costs:
        """Cost of every operator with some layers masked, the rest as in the trace.

        Raises
        ------
        UnknownNameError
            A name that the trace does not have.
        """
        rows = {operator.name: row for row, operator in enumerate(self.dense.trace.operators)}
        for name in masks.keys() - rows.keys():
            raise UnknownNameError(f"layer of {self.dense.trace.model}", name, rows)
        return self._priced({rows[name]: mask for name, mask in masks.items()})

    def _priced(self, masks: Mapping[int, Mask | None]) -> Costs:
        now = self.dense
        workload = now.workload.masked(masks)
        return evaluate(get_backend(now.card.backend), workload, now.card.resolve(now.mode, now.overrides), now.options)

    def costs(self, layers: Sequence[Layer]) -> dict[Quantity, Cost]:
        """Latency and energy of every layer at every point, with the very mask of that point.

        All layers are priced at their first points together, then at their second, and so on: a layer's cost is its own row in
        the model. What another layer's mask changes in it (a host that waits, a fused kernel) is the interaction that additive
        costs leave out; compare ``Cost.total`` with :meth:`price` of the chosen masks.
        """
        rows = matched(layers, self.dense.trace)
        width = max(len(layer.pruned) for layer in layers)
        found: dict[Quantity, list[FloatArray]] = {name: [np.empty(len(layer.pruned)) for layer in layers] for name in QUANTITIES}
        for point in range(width):
            here = [number for number, layer in enumerate(layers) if point < len(layer.pruned)]
            costs = self._priced({rows[number]: _mask(layers[number], point) for number in here})
            for name in QUANTITIES:
                column = getattr(costs, name)
                for number in here:
                    found[name][number][point] = column[rows[number]]
        return {name: self._cost(name, tuple(curves), rows) for name, curves in found.items()}

    def _cost(self, name: Quantity, curves: tuple[FloatArray, ...], rows: Sequence[int]) -> Cost:
        column: FloatArray = getattr(self.dense.costs, name)
        dense = float(column.sum())
        fidelity = self.dense.fidelity["latency" if name == "latency_s" else "energy"]
        rest = dense - float(column[list(rows)].sum())
        return Cost(name=f"{name} on {self.label}", curves=curves, rest=rest, dense=dense, source=fidelity)


def _mask(layer: Layer, point: int) -> BlockMask | None:
    """A point's mask; None, the dense kernel, where nothing is pruned."""
    return None if layer.pruned[point] == 0 else layer.mask(point)


def matched(layers: Sequence[Layer], trace: Trace) -> list[int]:
    """Rows of the layers in a trace.

    Raises
    ------
    HwmodelError
        A name that the trace does not have, or a product of another shape.
    """
    place = {operator.name: row for row, operator in enumerate(trace.operators)}
    for layer in layers:
        if layer.name not in place:
            raise UnknownNameError(f"layer of {trace.model}", layer.name, place)
        _check(layer, trace.operators[place[layer.name]])
    return [place[layer.name] for layer in layers]


def _check(layer: Layer, operator: Operator) -> None:
    mine, theirs = (layer.rows, *layer.shape), (operator.m, operator.n, operator.k)
    if mine != theirs or not operator.parameter:
        raise HwmodelError(f"{layer.name}: the layer has (rows, out, in) = {mine}, the trace's operator {theirs}")
