"""Cost curves rebuilt around the masks of the present: what additive curves left out is measured where the model is now."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hwmodel.allocation.costs import QUANTITIES, Machine, Quantity, matched
from hwmodel.allocation.layers import FloatArray, IntArray, Layer
from hwmodel.allocation.problem import Cost
from hwmodel.backends.estimates import Estimate
from hwmodel.ir.masks import Mask


def costs_around(machine: Machine, layers: Sequence[Layer], points: IntArray, now: Estimate) -> dict[Quantity, Cost]:
    """Latency and energy of every layer at every point while the others stay as they are now.

    Every second layer is moved at once, so that a layer's neighbours stand still. ``rest`` then takes what is left of the
    model's present cost: at ``points`` the total is exactly what the backend says of the present model.

    Parameters
    ----------
    machine : the device with the unpruned model
    layers, points : the choice that was made
    now : the device's estimate of the model that came of it
    """
    rows = matched(layers, machine.dense.trace)
    present: dict[str, Mask] = {operator.name: operator.mask for operator in now.trace.operators if operator.mask is not None}
    curves: dict[Quantity, list[FloatArray]] = {name: [np.empty(len(layer.pruned)) for layer in layers] for name in QUANTITIES}
    for first in (0, 1):
        moved = range(first, len(layers), 2)
        names = {layers[number].name for number in moved}
        still = {name: mask for name, mask in present.items() if name not in names}
        for point in range(max((len(layers[number].pruned) for number in moved), default=0)):
            here = [number for number in moved if point < len(layers[number].pruned)]
            costs = machine.price(still | _masks([layers[number] for number in here], point))
            for name in QUANTITIES:
                column: FloatArray = getattr(costs, name)
                for number in here:
                    curves[name][number][point] = column[rows[number]]
    return {name: _anchored(name, found, machine, points, now) for name, found in curves.items()}


def _masks(layers: Sequence[Layer], point: int) -> dict[str, Mask]:
    """Masks at a point of those layers that have lost a block there."""
    return {layer.name: layer.mask(point) for layer in layers if layer.pruned[point]}


def _anchored(name: Quantity, curves: Sequence[FloatArray], machine: Machine, points: IntArray, now: Estimate) -> Cost:
    total = float(getattr(now, name))
    chosen = float(sum(curve[point] for curve, point in zip(curves, points.tolist(), strict=True)))
    dense = float(getattr(machine.dense, name))
    source = machine.dense.fidelity["latency" if name == "latency_s" else "energy"]
    return Cost(name=f"{name} on {machine.label}", curves=tuple(curves), rest=total - chosen, dense=dense, source=source)
