"""Torch-Pruning's importance divided by the latency that a channel saves on a device, so that cheap channels stay.

Works with any of its importances, and needs neither it nor torch to be imported here: groups are read as they come.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hwmodel.allocation.exports.tables import Device, product_seconds
from hwmodel.errors import HwmodelError
from hwmodel.ir.operators import Operator
from hwmodel.ir.trace import Trace

LEAST = 1e-3
"""Least weight of a channel, relative to the channel that saves most: one that saves nothing is a thousand times as dear."""

_OUT, _IN = "prune_out_channels", "prune_in_channels"


@dataclass(frozen=True, eq=False)
class LatencyImportance:
    """An importance for ``tp.pruner.BasePruner(importance=...)`` with ``global_pruning=True``. Made by :func:`latency_importance`.

    Parameters
    ----------
    importance : one of Torch-Pruning's, called with a group
    saved_s : seconds that a layer saves per (output channel, input channel), by the ``id`` of its module
    """

    importance: Callable[..., Any]
    saved_s: Mapping[int, tuple[float, float]]

    def __call__(self, group: Any, **kwargs: Any) -> Any:
        """The group's importance over its channels' relative saving; None where the importance gives None."""
        found = self.importance(group, **kwargs)
        return None if found is None else found / self.weight(group)

    def seconds(self, group: Any) -> float:
        """Seconds that one channel of a group saves, all layers in which it is an input or an output together."""
        channels = len(group[0].idxs)
        saved = 0.0
        for item in group:
            outgoing, ingoing = self.saved_s.get(id(item.dep.target.module), (0.0, 0.0))
            handler = getattr(item.dep.handler, "__name__", "")
            each = {_OUT: outgoing, _IN: ingoing}.get(handler, 0.0)
            saved += each * len(item.idxs) / channels
        return saved

    def weight(self, group: Any) -> float:
        """:meth:`seconds` over the largest saving of a single layer's channel, at least :data:`LEAST`."""
        largest = max(max(pair) for pair in self.saved_s.values())
        return max(self.seconds(group) / largest, LEAST)


def latency_importance(
    importance: Callable[..., Any], model: Any, trace: Trace, *, device: Device, keep: float = 0.5, **options: Any
) -> LatencyImportance:
    """Weigh ``importance`` by what ``model``'s channels save on a device.

    Parameters
    ----------
    model : the module that Torch-Pruning prunes
    trace : of that model, so that operator names are its module names
    keep : savings are means between the full width and this fraction of it: a machine's staircase makes single channels free
    options : those of :func:`hwmodel.estimate`

    Raises
    ------
    HwmodelError
        A model and a trace without a layer in common, ``keep`` outside (0, 1), or a device on which no width saves anything.
    """
    if not 0.0 < keep < 1.0:
        raise HwmodelError(f"keep {keep:g} must lie between 0 and 1: the fraction of channels down to which savings are averaged")
    modules = dict(model.named_modules())
    layers = [one for one in trace.operators if one.name in modules and one.parameter and one.family == "product"]
    saved = _saved_per_channel(layers, keep, device, options) if layers else []
    if not layers or max(max(pair) for pair in saved) <= 0.0:
        reason = "saves nothing on this device when its layers are narrowed" if layers else "has no layer of this model"
        raise HwmodelError(f"{trace.model}: the trace {reason}")
    ids = [id(modules[one.name]) for one in layers]
    return LatencyImportance(importance, dict(zip(ids, saved, strict=True)))


def _saved_per_channel(
    layers: Sequence[Operator], keep: float, device: Device, options: Mapping[str, Any]
) -> list[tuple[float, float]]:
    """Seconds saved per (output, input) channel of each layer, at least 0."""
    full = [(one.m, one.k, one.n) for one in layers]
    fewer_out = [(m, k, max(1, round(keep * n))) for m, k, n in full]
    fewer_in = [(m, max(1, round(keep * k)), n) for m, k, n in full]
    seconds = product_seconds([*full, *fewer_out, *fewer_in], device=device, **options)
    return [
        (
            max(seconds[whole] - seconds[by_out], 0.0) / max(whole[2] - by_out[2], 1),
            max(seconds[whole] - seconds[by_in], 0.0) / max(whole[1] - by_in[1], 1),
        )
        for whole, by_out, by_in in zip(full, fewer_out, fewer_in, strict=True)
    ]
