"""The machines of ``loop_digits.py``: our four cards, scaled to a model of width 48, and what masks cost on them.

A 48 x 48 layer is a seventh of one 128 x 128 array and less than one 64 x 64 block of a GPU kernel: on full-size machines there
would be nothing to skip. Arrays are therefore made smaller (side by side, everything per second by area); a GPU card has no side
to shrink, so its layers, and their blocks, are made wider. Energies per event stay those of the cards, with their sources.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

import hwmodel as hw
from hwmodel.allocation.costs import Machine, flop_cost, matched
from hwmodel.allocation.layers import Layer
from hwmodel.allocation.loop.curve_layers import layers_of
from hwmodel.allocation.problem import Allocation, Cost, InfeasibleError, Limit, Problem
from hwmodel.allocation.solvers.solve import solve
from hwmodel.backends.cards import load_card
from hwmodel.ir.masks import BlockMask
from hwmodel.pruning.blocks.curves import LayerCurve

HALVINGS = 12


@dataclass(frozen=True)
class Site:
    """A card as this study uses it.

    Parameters
    ----------
    name : in tables
    told : what was scaled
    device, mode, overrides : as :func:`hwmodel.estimate` takes them
    batch : images of one forward pass
    widen : layers and blocks are priced so many times as wide
    """

    name: str
    told: str
    device: str
    mode: str | None = None
    overrides: Mapping[str, Any] = field(default_factory=dict)
    batch: int = 1
    widen: int = 1


def digits_sites() -> tuple[Site, ...]:
    """ViTA, TPU v3, A100 and AGX Orin for the digits model."""
    side, wide = 8, "the card as it is; layers and blocks 16 times as wide (768, as DeiT-B), 12 images a batch: 204 rows"
    tpu: Any = load_card("tpu-v3").resolve("systolic", {})
    by_area = ("static_w", "max_power_w", "vmem_bytes", "vector_ops_per_cycle", "product_hbm_bytes_per_s", "vector_hbm_bytes_per_s")
    array = {name: getattr(tpu, name) / side for name in ("array_rows", "array_cols")}
    array |= {name: getattr(tpu, name) / side**2 for name in by_area}
    smaller = "one 8x8 PE with 1 KiB, a buffer of 8 KiB (card: 32x32, 40 KiB, 512 KiB), one image"
    vita = {"pe": "8x8", "pe_buffer_bytes": 1024.0, "buffer_bytes": 8192.0}
    one = f"TPU v3 as one array of 16x16 (card: 128x128), all that is per second over {side**2}, one image"
    return (
        Site("ViTA 8x8", smaller, "vita", "full", vita),
        Site("TPU 16x16", one, "tpu-v3", "systolic", array),
        Site("A100", wide, "a100-40gb-sxm", "compiled", batch=12, widen=16),
        Site("AGX Orin", wide, "agx-orin-64gb", "engine+maxn", batch=12, widen=16),
    )


def full_size_sites(block: int) -> tuple[Site, ...]:
    """The four cards as they are, for a model of usual size."""
    return (
        Site("ViTA", f"PE {block}x{block}, mode full", "vita", "full", {"pe": f"{block}x{block}"}),
        *(Site(name, "default mode", name) for name in ("tpu-v3", "a100-40gb-sxm", "agx-orin-64gb")),
    )


def proportional_site(block: int) -> Site:
    """A synthetic card whose energy is that of its MACs alone, on an array of one block: proportional to FLOPs."""
    nothing = dict.fromkeys(("static_w", "vmem_j_per_byte", "hbm_j_per_byte", "vector_op_j"), 0.0)
    array = {"array_rows": block, "array_cols": block, "max_power_w": 1e5}
    return Site("synthetic", "energy proportional to FLOPs", "tpu-v3", "systolic", {**nothing, **array})


@dataclass(frozen=True, eq=False)
class Choices:
    """A model's layers ranked in one way, with what they cost on one machine.

    Parameters
    ----------
    layers : of the allocation
    flops, energy : of these layers alone, without what nobody can prune
    """

    layers: tuple[Layer, ...]
    flops: Cost
    energy: Cost

    @property
    def least_energy(self) -> float:
        """The least share of the energy that any choice leaves."""
        return (
            float(
                sum(curve[layer.pruned < layer.blocks].min() for curve, layer in zip(self.energy.curves, self.layers, strict=True))
            )
            / self.energy.dense
        )

    def within(self, cost: Cost, share: float, solver: str = "lagrangian", **settings: Any) -> Allocation:
        """The choice of least distortion that costs no more than ``share`` of the dense layers."""
        limit = Limit(cost=cost, most=share * cost.dense, asked=f"{cost.name} at {share:.0%}")
        return solve(Problem(layers=self.layers, limits=(limit,)), solver, **settings)

    def uniform(self, share: float) -> dict[str, BlockMask]:
        """The same share of every layer's blocks, rounded down."""
        points = ((layer, layer.blocks - int(share * layer.blocks)) for layer in self.layers)
        return {layer.name: layer.mask(int(np.searchsorted(layer.pruned, pruned))) for layer, pruned in points}

    def by_flops(self, share: float) -> Allocation:
        """The FLOPs-aware choice with the largest FLOPs budget whose true energy is within ``share``.

        Raises
        ------
        InfeasibleError
            No FLOPs budget is small enough.
        """
        low, high, found = 0.0, 1.0, None
        for _ in range(HALVINGS):
            middle = 0.5 * (low + high)
            try:
                chosen = self.within(self.flops, middle)
            except InfeasibleError:
                low = middle
                continue
            if self.energy.total(chosen.points) <= share * self.energy.dense:
                low, found = middle, chosen
            else:
                high = middle
        if found is None:
            raise InfeasibleError(f"no FLOPs budget brings {self.energy.name} to {share:.0%} of the linear layers'")
        return found


@dataclass(frozen=True, eq=False)
class Priced:
    """A model on a site: ``trace`` is of the model, as wide as the site asks for."""

    site: Site
    trace: hw.Trace

    @cached_property
    def machine(self) -> Machine:
        """The device with the dense model on it."""
        return Machine.of(self.trace, device=self.site.device, mode=self.site.mode, overrides=dict(self.site.overrides))

    def choices(self, curves: Iterable[LayerCurve], *, whole_units: bool) -> Choices:
        """What may be pruned: block by block, or also so that whole skip units empty."""
        unit = self.machine.skip_unit if whole_units else None
        layers = layers_of(
            {curve.name: self._widened(curve) for curve in curves},
            self.trace,
            units=[unit] if unit else [],
        )
        energy = self.machine.costs(layers)["energy_j"]
        alone = replace(energy, rest=0.0, dense=energy.dense - energy.rest)
        return Choices(layers=layers, flops=flop_cost(layers), energy=alone)

    def coarse(self, block: int) -> bool:
        """Whether the machine skips units that are larger than a block."""
        unit = self.machine.skip_unit
        return unit is not None and max(unit) > block * self.site.widen

    def spent(self, chosen: Allocation) -> float:
        """Energy of the pruned layers with all masks priced together, as a share of the dense ones'."""
        rows = matched(chosen.problem.layers, self.trace)
        after, before = self.machine.price(chosen.masks), self.machine.dense.costs
        return float(after.energy_j[rows].sum() / before.energy_j[rows].sum())

    def masks(self, chosen: Allocation) -> dict[str, BlockMask]:
        """The masks of a choice on the model itself, however wide it was priced."""
        times = self.site.widen

        def narrowed(mask: BlockMask) -> BlockMask:
            (out, depth), (height, width) = mask.shape, mask.block
            return BlockMask((out // times, depth // times), (height // times, width // times), mask.kept)

        return {name: narrowed(mask) for name, mask in chosen.masks.items()}

    def _widened(self, curve: LayerCurve) -> LayerCurve:
        (out, depth), (height, width) = curve.shape, curve.block
        times = self.site.widen
        return replace(curve, shape=(out * times, depth * times), block=(height * times, width * times))
