"""The power term of the LSP paper (Eq. 7, 8) with its constant from a device, and how far it departs from that device.

    P_i = p_m * (M_i / b_m) * (1 - alpha_i) * (out_i / block_out) * (in_i / block_in)

``p_m`` is the cost of one product of a block with ``b_m`` rows of activations. The paper leaves it open, the same for all layers.
With one block size the term is FLOPs in other units: under a FLOPs budget it is constant where the budget is used up, so no
weight on it can move the optimum. It says more than FLOPs only where ``departures`` are not zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hwmodel.allocation.layers import FloatArray, Layer
from hwmodel.allocation.problem import Cost
from hwmodel.errors import HwmodelError


def block_products(layer: Layer, block_rows: int) -> float:
    """Products of one block with ``block_rows`` rows of activations in the dense layer, ceilings dropped as the paper does."""
    (out, depth), (block_out, block_in) = layer.shape, layer.block
    return layer.rows / block_rows * (out / block_out) * (depth / block_in)


def block_cost(layers: Sequence[Layer], cost: Cost, *, block_rows: int = 1) -> float:
    """``p_m`` of a device: what makes Eq. 8 of the dense layers equal to the device's own cost of them together.

    Parameters
    ----------
    cost : with a point of every layer at which nothing is pruned (joules for the paper's meaning)

    Raises
    ------
    HwmodelError
        A layer whose curve has no dense point.
    """
    dense = sum(float(curve[_dense_point(layer)]) for layer, curve in zip(layers, cost.curves, strict=True))
    return dense / sum(block_products(layer, block_rows) for layer in layers)


def power_cost(layers: Sequence[Layer], per_block: float, *, block_rows: int = 1, rest: float = 0.0) -> Cost:
    """Eq. 8 as a cost: ``per_block`` is ``p_m``, ``rest`` what everything else costs in its unit."""
    whole = [per_block * block_products(layer, block_rows) for layer in layers]
    curves = tuple(own * layer.density for own, layer in zip(whole, layers, strict=True))
    dense = rest + sum(whole)
    return Cost(name="power term (Eq. 8)", curves=curves, rest=rest, dense=dense, source="LSP Eq. 7, 8; p_m from the device")


@dataclass(frozen=True, kw_only=True, eq=False)
class Departure:
    """How far Eq. 7 is from a device's cost of one layer; both in the unit of that cost.

    Parameters
    ----------
    name : the layer
    density : (points,) fraction of blocks kept
    power, modelled : (points,) Eq. 7 and the device
    """

    name: str
    density: FloatArray
    power: FloatArray
    modelled: FloatArray

    @property
    def dense_ratio(self) -> float:
        """Eq. 7 over the device, nothing pruned."""
        return float(self.power.max() / self.modelled[np.argmax(self.density)])

    @property
    def largest(self) -> float:
        """Largest difference, over the device's cost of the dense layer."""
        return float(np.abs(self.power - self.modelled).max() / self.modelled[np.argmax(self.density)])

    @property
    def at_density(self) -> float:
        """Where it is largest."""
        return float(self.density[np.argmax(np.abs(self.power - self.modelled))])

    @property
    def unsaved(self) -> float:
        """Part of the dense cost that is left at the lowest density beyond what Eq. 7 says, both scaled to the dense layer."""
        dense, last = int(np.argmax(self.density)), int(np.argmin(self.density))
        return float(self.modelled[last] / self.modelled[dense] - self.power[last] / self.power[dense])


def departures(layers: Sequence[Layer], cost: Cost, *, block_rows: int = 1) -> tuple[Departure, ...]:
    """Eq. 7, its constant fitted to the dense layers together, against a device's cost, layer by layer."""
    per_block = block_cost(layers, cost, block_rows=block_rows)
    told = power_cost(layers, per_block, block_rows=block_rows)
    return tuple(
        Departure(name=layer.name, density=layer.density, power=power, modelled=modelled)
        for layer, power, modelled in zip(layers, told.curves, cost.curves, strict=True)
    )


def _dense_point(layer: Layer) -> int:
    where = np.flatnonzero(layer.pruned == 0)
    if not where.size:
        raise HwmodelError(f"{layer.name}: its curve has no point at which nothing is pruned, from which p_m is taken")
    return int(where[0])
