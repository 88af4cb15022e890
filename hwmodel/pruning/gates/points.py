"""Where a running model is gated, by hooks that leave nothing behind: a head's output, a token's values, a token's presence."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from hwmodel.errors import HwmodelError

if TYPE_CHECKING:
    from torch import Tensor, nn

Arguments = tuple[tuple[Any, ...], dict[str, Any]]
Change = Callable[[tuple[Any, ...], dict[str, Any]], Arguments]


@contextmanager
def changed_calls(changes: Sequence[tuple[nn.Module, Change]]) -> Iterator[None]:
    """Modules are called with changed arguments while the block runs."""

    def hook(change: Change) -> Callable[..., Arguments]:
        return lambda _module, args, kwargs: change(args, kwargs)

    handles = [module.register_forward_pre_hook(hook(change), with_kwargs=True) for module, change in changes]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class GatePoint(Protocol):
    """The gates of one encoder block, at the input of one module."""

    @property
    def module(self) -> nn.Module: ...
    @property
    def block(self) -> int: ...
    def units(self, x: Tensor) -> int:
        """How many gates an input has."""

    def gated(self, args: tuple[Any, ...], kwargs: dict[str, Any], gates: Mapping[int, Tensor]) -> Arguments:
        """The call with this block's gates at work; ``gates`` holds, by block, (images, units) of this one and those before."""


class RemovalPoint(GatePoint, Protocol):
    """Gates whose units can also be taken away."""

    def without(self, unit: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Arguments:
        """The call without one unit."""


@dataclass(frozen=True)
class HeadOutputs:
    """Every head's output, where the projection behind attention reads ``heads`` of them side by side."""

    module: nn.Module
    block: int
    heads: int

    def units(self, _: Tensor) -> int:
        """Heads."""
        return self.heads

    def gated(self, args: tuple[Any, ...], kwargs: dict[str, Any], gates: Mapping[int, Tensor]) -> Arguments:
        """Windows of an image are rows one after the other, and share its gates."""
        x, gate = args[0], gates[self.block]
        rows = gate.repeat_interleave(x.shape[0] // gate.shape[0], dim=0)[:, None, :, None]
        return ((x.reshape(*x.shape[:2], self.heads, -1) * rows).flatten(2), *args[1:]), kwargs

    def without(self, unit: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Arguments:
        """The call with one head's output at zero."""
        gates = args[0].new_ones((1, self.heads))
        gates[:, unit] = 0
        return self.gated(args, kwargs, {self.block: gates})


@dataclass(frozen=True)
class TokenValues:
    """The values of every token that enters a block, as in HEART-ViT. A closed gate is a token of zeros, still attended to."""

    module: nn.Module
    block: int

    def units(self, x: Tensor) -> int:
        """Tokens."""
        return x.shape[1]

    def gated(self, args: tuple[Any, ...], kwargs: dict[str, Any], gates: Mapping[int, Tensor]) -> Arguments:
        """Tokens times their gates."""
        return (args[0] * gates[self.block].unsqueeze(-1), *args[1:]), kwargs

    def without(self, unit: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Arguments:
        """The call without one token."""
        import torch

        x = args[0]
        return (torch.cat([x[:, :unit], x[:, unit + 1 :]], dim=1), *args[1:]), kwargs


@dataclass(frozen=True)
class TokenPresence:
    """How much a token counts in the attention of a block and of all later ones: a closed gate is a token that has left.

    Attention weights are multiplied by the gates ahead of their normalisation, so their logarithms are added to the scores.
    """

    module: nn.Module
    block: int

    def units(self, x: Tensor) -> int:
        """Tokens."""
        return x.shape[1]

    def gated(self, args: tuple[Any, ...], kwargs: dict[str, Any], gates: Mapping[int, Tensor]) -> Arguments:
        """Attention with the gates of this block and of those before as a bias."""
        if len({gate.shape for gate in gates.values()}) > 1:
            raise HwmodelError(
                "the number of tokens changes inside the model: a token that leaves cannot be followed; gate its values"
            )
        bias = sum(gate.log() for gate in gates.values())[:, None, None, :]  # type: ignore[index]
        given = kwargs.get("attn_mask")
        return args, kwargs | {"attn_mask": bias if given is None else bias + given}
