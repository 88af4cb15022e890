"""What a cost table is to its readers: tidy rows, exact lookup, curves for allocators, and files that load back equal."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

import numpy as np

from hwmodel.backends.base import FloatArray
from hwmodel.errors import HwmodelError, UnknownNameError, suggestion

if TYPE_CHECKING:
    import pandas as pd

Quantity = Literal["latency_s", "energy_j", "dram_bytes", "executed_macs", "kept_macs"]
QUANTITIES: tuple[Quantity, ...] = get_args(Quantity)
Width = Literal["kept_blocks", "density", "tokens", "heads"]

COLUMNS: Mapping[str, str] = {
    "group": '"layer", "encoder block", "rest" (the model less its layers) or "model"',
    "name": "operator name of a layer, index of an encoder block, or the group",
    "role": 'what a layer does ("qkv", "fc1", ...); empty for the others',
    "batch": "images of one forward pass; every cost is for the whole batch",
    "dtype": "number format",
    "tokens": "patch tokens that enter every encoder block; null: as the model has them",
    "heads": "heads of every encoder block; null: as the model has them",
    "block_out": "output side of a weight block",
    "block_in": "input side of a weight block",
    "density": "fraction of weight blocks kept, of all layers of the table alike; 1 is the dense kernel",
    "kept_blocks": "blocks kept of a layer: density times all of them, rounded; null for the others",
    "all_blocks": "blocks of a layer, ragged ones included; null for the others",
    "latency_s": "seconds, waiting for the host included",
    "energy_j": "joules, in the table's scope",
    "dram_bytes": "bytes to and from off-chip memory",
    "macs": "multiply-accumulates of the dense model, before tokens, heads or blocks are pruned",
    "kept_macs": "multiply-accumulates that involve a kept weight",
    "executed_macs": "multiply-accumulates that the machine performs",
    "latency_fidelity": "measured, calibrated, analytic or assumed",
    "energy_fidelity": "the same for energy",
    "latency_hull_s": "lower convex hull of latency over density",
    "latency_slope_s": "seconds per unit of density along the hull's segment that ends here (the first segment's at its start)",
    "energy_hull_j": "lower convex hull of energy over density",
    "energy_slope_j": "joules per unit of density, as latency_slope_s",
    "break_even_density": "largest kept fraction at which the sparse kernel, always taken, is no slower than the dense one; "
    "layers only. 0: it is slower with a single block kept; 1: never slower",
}
"""What each column holds; a row is one group member at one point of the axes."""

AXES = ("batch", "dtype", "tokens", "heads", "block")
"""What tells one curve over density from another of the same layer or encoder block."""

_DENSITY_DIGITS = 9
"""Decimals that tell two densities apart."""


class Cost(NamedTuple):
    """One entry of a table, or what lies between two."""

    latency_s: float
    energy_j: float
    dram_bytes: float
    executed_macs: float
    kept_macs: float
    latency_fidelity: str
    energy_fidelity: str


@dataclass(frozen=True, eq=False)
class Curves:
    """One quantity of all layers (or encoder blocks) over density, as an allocator takes it.

    Parameters
    ----------
    names : (layers,) names, in model order
    density : (densities,) ascending, the last is 1
    cost : (layers, densities)
    rest : the same quantity of everything else, at density 1; what layers cost at any densities adds to it
    """

    names: tuple[str, ...]
    density: FloatArray
    cost: FloatArray
    rest: float


@dataclass(frozen=True, eq=False)
class CostTable:
    """Costs of layers and encoder blocks on one device. Made by :func:`hwmodel.cost_table`, read by ``hw.load_cost_table``.

    Parameters
    ----------
    rows : pandas frame with the columns of :data:`COLUMNS`; the rows of one curve are neighbours, density ascending
    about : what the table is of: model, device, mode, choices, axes, SHA-256 of traces and card, versions
    """

    rows: pd.DataFrame
    about: Mapping[str, Any]

    def __repr__(self) -> str:
        """One line; ``rows`` has the costs."""
        about = self.about
        return f"<CostTable of {about['model']} on {about['device']}, {about['mode']}: {len(self.rows)} rows>"

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the layers, in model order."""
        return self._names("layer")

    @property
    def encoder_blocks(self) -> tuple[int, ...]:
        """Indices of the encoder blocks."""
        return tuple(map(int, self._names("encoder block")))

    def _names(self, group: str) -> tuple[str, ...]:
        return tuple(dict.fromkeys(key[1] for key in self._curves if key[0] == group))

    @cached_property
    def _columns(self) -> dict[str, Any]:
        """Columns as arrays: lookups come by the million."""
        return {name: self.rows[name].to_numpy() for name in ("density", *QUANTITIES, "latency_fidelity", "energy_fidelity")}

    @cached_property
    def _curves(self) -> dict[tuple[Any, ...], slice]:
        """(group, name, *axes) to the rows of that curve."""
        names = ("group", "name", "batch", "dtype", "tokens", "heads", "block_out", "block_in")
        columns = [plain_values(self.rows[name]) for name in names]
        ends: dict[tuple[Any, ...], list[int]] = {}
        for row, (group, name, batch, dtype, tokens, heads, out, depth) in enumerate(zip(*columns, strict=True)):
            ends.setdefault((group, name, batch, dtype, tokens, heads, (out, depth)), [row, row])[1] = row + 1
        return {key: slice(*end) for key, end in ends.items()}

    @cached_property
    def axes(self) -> dict[str, tuple[Any, ...]]:
        """Values on every axis, in the order of the table."""
        values = zip(*(key[2:] for key in self._curves), strict=True)
        return {axis: tuple(dict.fromkeys(column)) for axis, column in zip(AXES, values, strict=True)}

    def _point(self, asked: Mapping[str, Any]) -> tuple[Any, ...]:
        """One value per axis: the one asked for, or the only one there is."""
        unknown = sorted(asked.keys() - set(AXES))
        if unknown:
            raise UnknownNameError("axis of the cost table", unknown[0], AXES)
        return tuple(self._axis_value(axis, asked.get(axis)) for axis in AXES)

    def _axis_value(self, axis: str, wanted: Any) -> Any:
        there = self.axes[axis]
        wanted = tuple(wanted) if isinstance(wanted, list) else wanted
        if wanted is None and len(there) == 1:
            return there[0]
        if wanted not in there:
            listed = ", ".join(_shown(value) for value in there)
            found = "expected one" if wanted is None else f"{_shown(wanted)} is not in the table"
            raise HwmodelError(f"{axis}: {found}; it has {listed}")
        return wanted

    def _curve(self, layer: str | None, encoder_block: int | None, asked: Mapping[str, Any]) -> slice:
        if (layer is None) == (encoder_block is None):
            raise HwmodelError("a lookup needs either layer= or encoder_block=")
        group, name = ("layer", layer) if layer is not None else ("encoder block", str(encoder_block))
        key = (group, name, *self._point(asked))
        if key not in self._curves:
            names = self._names(group)
            raise HwmodelError(f"{group} {name!r} is not in the cost table; {suggestion(str(name), names)}")
        return self._curves[key]

    def cost(
        self,
        *,
        density: float,
        layer: str | None = None,
        encoder_block: int | None = None,
        interpolate: bool = False,
        **axes: Any,
    ) -> Cost:
        """One entry: of a ``layer`` by operator name, or of an ``encoder_block`` by index.

        Parameters
        ----------
        density : one of the table's, to nine decimals; with ``interpolate`` anything between its least and 1
        axes : ``block=(out, in)``, ``tokens``, ``heads``, ``batch``, ``dtype``; may be left out where there is one only
        interpolate : between two entries, linear in density. Costs are staircases: entries between are not exact

        Raises
        ------
        HwmodelError
            Anything that is not in the table.
        """
        curve = self._curve(layer, encoder_block, axes)
        known: FloatArray = self._columns["density"][curve]
        place = int(np.searchsorted(known, density - 0.5 * 10**-_DENSITY_DIGITS))
        exact = place < len(known) and round(abs(float(known[place]) - density), _DENSITY_DIGITS) == 0
        if not exact and not (interpolate and known[0] < density < known[-1]):
            raise HwmodelError(_off_the_table(density, known, interpolate))
        last, between = curve.start + place, 0.0 if exact else float((known[place] - density) / (known[place] - known[place - 1]))
        values = {name: _between(self._columns[name], last, between) for name in QUANTITIES}
        latency, energy = (str(self._columns[name][last]) for name in ("latency_fidelity", "energy_fidelity"))
        return Cost(**values, latency_fidelity=latency, energy_fidelity=energy)

    def curves(self, quantity: Quantity = "latency_s", *, group: str = "layer", **axes: Any) -> Curves:
        """One quantity as an array of layers (or, with ``group="encoder block"``, of encoder blocks) by densities.

        Raises
        ------
        HwmodelError
            An unknown quantity or group, or an axis with several values of which none was named.
        """
        if quantity not in QUANTITIES:
            raise UnknownNameError("quantity of the cost table", quantity, QUANTITIES)
        names, point = self._names(group), self._point(axes)
        if not names or group not in {"layer", "encoder block"}:
            blocks = " and 'encoder block'" if self.encoder_blocks else ""
            raise HwmodelError(f"the cost table has no curves of a group {group!r}, only of 'layer'{blocks}")
        column = self._columns[quantity]
        cost = np.stack([column[self._curves[(group, name, *point)]] for name in names])
        first = self._curves[(group, names[0], *point)]
        rest = float(column[self._curves[("model", "model", *point)]][-1]) - float(cost[:, -1].sum())
        return Curves(names, self._columns["density"][first].copy(), cost, rest)

    def nested(self, quantity: Quantity = "latency_s", *, width: Width = "kept_blocks", **axes: Any) -> dict[str, dict[str, float]]:
        """``{layer: {width: cost}}``, the form that knapsack allocators read.

        ``width`` is what an allocator counts: ``kept_blocks`` or ``density`` of layers; ``tokens`` or ``heads`` of encoder
        blocks, at density 1 (name another with ``density=``). Widths are text, as JSON wants its keys.
        """
        if width not in get_args(Width):
            raise UnknownNameError("width of the nested cost table", width, get_args(Width))
        if width in {"tokens", "heads"}:
            return self._by_structure(quantity, width, axes)
        curves = self.curves(quantity, **axes)
        point = self._point(axes)
        found: dict[str, dict[str, float]] = {}
        for name, costs in zip(curves.names, curves.cost.tolist(), strict=True):
            widths = plain_values(self.rows[width].iloc[self._curves[("layer", name, *point)]])
            found[name] = {str(each): cost for each, cost in zip(widths, costs, strict=True)}
        return found

    def _by_structure(self, quantity: Quantity, width: str, axes: Mapping[str, Any]) -> dict[str, dict[str, float]]:
        density = axes.get("density", 1.0)
        others = {name: value for name, value in axes.items() if name != "density"}
        values = [value for value in self.axes[width] if value is not None]
        if not values:
            raise HwmodelError(f"the cost table was made for one number of {width} only; make it again with {width}")
        return {
            str(block): {
                str(value): getattr(self.cost(encoder_block=block, density=density, **{**others, width: value}), quantity)
                for value in values
            }
            for block in self.encoder_blocks
        }

    def interaction(self) -> pd.DataFrame:
        """How far the device is from additive: the model's cost less (layers + the rest at density 1), at every point.

        Columns: the axes, density, ``latency_s`` and ``energy_j`` of the interaction, and the model's own, ``model_latency_s``
        and ``model_energy_j``. Zero to rounding where layers may be priced one by one.
        """
        import pandas as pd

        parts = []
        for key, curve in self._curves.items():
            if key[0] != "model":
                continue
            rest = self._curves[("rest", "rest", *key[2:])]
            frame = self.rows.iloc[curve][["batch", "dtype", "tokens", "heads", "block_out", "block_in", "density"]].copy()
            for name in ("latency_s", "energy_j"):
                column = self._columns[name]
                frame[name] = column[rest] - column[rest.stop - 1]
                frame[f"model_{name}"] = column[curve]
            parts.append(frame)
        return pd.concat(parts, ignore_index=True)


def plain_values(column: pd.Series[Any]) -> list[Any]:
    """A column as plain values, None where it is missing."""
    known = column.notna().tolist()
    return [value if there else None for value, there in zip(column.tolist(), known, strict=True)]


def _between(column: FloatArray, last: int, share: float) -> float:
    """Entry ``last``, or ``share`` of the way from it back to the entry before."""
    return float(column[last]) if share == 0.0 else float(column[last] + share * (column[last - 1] - column[last]))


def _shown(value: Any) -> str:
    if isinstance(value, tuple):
        return "x".join(map(str, value))
    return "the model's own" if value is None else str(value)


def _off_the_table(density: float, known: FloatArray, interpolate: bool) -> str:
    if math.isnan(density) or not known[0] <= density <= known[-1]:
        return f"density {density:g} is outside the cost table, which goes from {known[0]:g} to {known[-1]:g}"
    place = int(np.searchsorted(known, density))
    assert not interpolate
    return (
        f"density {density:g} is not in the cost table; the nearest are {known[place - 1]:g} and {known[place]:g} "
        "(interpolate=True takes the line between)"
    )
