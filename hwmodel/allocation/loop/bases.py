"""The model that choices are promised around: layers to choose from dense, all others with what their weights have lost already."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from hwmodel.allocation.costs import Machine, Quantity
from hwmodel.allocation.layers import Layer
from hwmodel.allocation.problem import Cost
from hwmodel.backends.estimates import Estimate
from hwmodel.errors import CheckpointError
from hwmodel.ir.trace import Trace
from hwmodel.pruning.live_models import LiveModel

Pricer = Callable[[Trace], Estimate]
"""A device as the caller wants it priced: card, mode, number format and overrides are settled."""
CostsOfDevice = Mapping[Quantity, Cost]


@dataclass(frozen=True, kw_only=True, eq=False)
class Base:
    """What a model costs before its layers lose blocks.

    Parameters
    ----------
    trace : of the model: layers to choose from dense, all others with the sparsity of their weights
    origin : of the model without sparsity that shares of a budget are of
    machines, unpruned, whole : the devices with ``trace``, with the same model without sparsity, and with ``origin``
    """

    trace: Trace
    origin: Trace
    machines: tuple[Machine, ...]
    unpruned: tuple[Machine, ...]
    whole: tuple[Machine, ...]

    @classmethod
    def of(
        cls, live: LiveModel, names: Collection[str], pricers: Sequence[Pricer], checkpoint: Path, origin: Trace | None = None
    ) -> Base:
        """The base of a model with weights.

        Parameters
        ----------
        names : of the layers to choose from
        checkpoint : a file to write, from which the sparsity of the others is read as any reader would
        origin : the model that shares are of where ``live`` has lost heads or tokens already

        Raises
        ------
        CheckpointError
            Weights that no checkpoint can be read with, such as NaN.
        """

        def priced(trace: Trace) -> tuple[Machine, ...]:
            return tuple(Machine(pricer(trace)) for pricer in pricers)

        live.save(checkpoint)
        try:
            read = live.reloaded(checkpoint)
        except CheckpointError as error:
            raise CheckpointError(str(error).replace(str(checkpoint), live.title)) from error
        trace = _sparse(live.structure, read, names)
        unpruned = priced(live.structure)
        return cls(
            trace=trace, origin=origin or live.structure, unpruned=unpruned,
            machines=unpruned if trace == live.structure else priced(trace),
            whole=unpruned if origin is None else priced(origin),
        )  # fmt: skip

    def costs(self, layers: Sequence[Layer]) -> list[CostsOfDevice]:
        """Costs of layers on every device; shares are of the whole model."""
        return self.shares([machine.costs(layers) for machine in self.machines])

    def shares(self, tables: Sequence[CostsOfDevice]) -> list[CostsOfDevice]:
        """Costs, one mapping per device, with the dense cost that shares are of."""
        return [
            {name: replace(cost, dense=float(getattr(machine.dense, name))) for name, cost in table.items()}
            for machine, table in zip(self.whole, tables, strict=True)
        ]


def _sparse(structure: Trace, read: Trace, names: Collection[str]) -> Trace:
    """``structure`` with the sparsity that operators of other names have in ``read``."""
    found = {one.name: one for one in read.operators if one.name not in names}
    given = (found.get(one.name, one) for one in structure.operators)
    pairs = zip(structure.operators, given, strict=True)
    return structure.replace(operators=tuple(one.replace(mask=now.mask, sparsity=now.sparsity) for one, now in pairs))
