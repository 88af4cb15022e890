"""A loss budget that holds: harms are predicted one by one, so what they come to together is measured."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hwmodel.errors import HwmodelError
from hwmodel.extraction.recording.export import twin
from hwmodel.pruning.gates.derivatives import Scoring
from hwmodel.pruning.gates.selection import Selection

if TYPE_CHECKING:
    from torch import Tensor, nn

    from hwmodel.pruning.gates.derivatives import Batches, Loss


@dataclass(frozen=True, eq=False)
class MeasuredSelection:
    """A selection, the model that it leaves, and how much larger the mean loss of that model is."""

    selection: Selection
    model: nn.Module
    loss_change: float


def within_measured_loss(
    model: nn.Module,
    batches: Sequence[tuple[Tensor, Tensor]],
    budget: float,
    choose: Callable[[float], Selection],
    pruned: Callable[[Selection], nn.Module],
    *,
    steps: int = 10,
    loss: Loss | None = None,
) -> MeasuredSelection:
    """The largest selection found whose measured loss is within the budget, by bisection of the predicted one.

    Where the selection of a predicted loss of ``budget`` costs less, predicted ones of 2, 4, 8, ... times it are tried first.

    Parameters
    ----------
    batches : (images, labels) pairs; every step runs them forward once
    budget : largest increase of the mean loss over the images
    choose : from a budget of predicted loss, which may be infinite, to a selection: ``lambda b: select(scores.static, saved, b)``
    pruned : from a selection to the model it leaves: ``lambda s: remove_heads(model, s.by_block)``
    steps : halvings of the predicted budget's range, and as many doublings of it at most. A budget of 0 is doubled from the
        predicted loss of all that may go, halved so many times

    Raises
    ------
    HwmodelError
        A budget below zero, or one that not even the selection of predicted loss 0 keeps.
    """
    before = mean_loss(model, batches, loss)

    def at(predicted: float) -> MeasuredSelection:
        selection = choose(predicted)
        left = pruned(selection)
        return MeasuredSelection(selection, left, mean_loss(left, batches, loss) - before)

    if not budget >= 0:
        raise HwmodelError(f"the budget must be a loss of at least 0, got {budget}")
    best = at(0.0)
    if best.loss_change > budget:
        raise HwmodelError(
            f"removing only what is predicted to harm nothing costs {best.loss_change:.4g} of loss, the budget is {budget:.4g}"
        )
    return _furthest(at, best, budget, choose(math.inf).loss, steps)


def _furthest(
    at: Callable[[float], MeasuredSelection], best: MeasuredSelection, budget: float, everything: float, steps: int
) -> MeasuredSelection:
    """Up from predicted loss 0, where ``best`` fits: doublings until one does not fit or all has gone, then halvings."""
    low, high = 0.0, budget or everything / 2**steps
    for _ in range(steps + 1):
        found = at(high)
        if found.loss_change > budget:
            break
        if high >= everything:
            return found
        best, low, high = found, high, 2 * high
    else:
        return best
    for _ in range(steps):
        middle = (low + high) / 2
        found = at(middle)
        if found.loss_change <= budget:
            best, low = found, middle
        else:
            high = middle
    return best


def mean_loss(model: nn.Module, batches: Batches, loss: Loss | None = None) -> float:
    """Mean over the images, cross-entropy where ``loss`` is None; the model runs in eval mode.

    Raises
    ------
    HwmodelError
        No batches, batches without labels, a loss that is not one per image, or one that is not finite.
    """
    return Scoring("mean_loss", twin(model), 0, loss).mean_loss(batches)
