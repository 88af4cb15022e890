"""A loss budget that holds: harms are predicted one by one, so what they come to together is measured."""

from __future__ import annotations

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

    Parameters
    ----------
    batches : (images, labels) pairs; every step runs them forward once
    budget : largest increase of the mean loss over the images
    choose : from a budget of predicted loss to a selection: ``lambda b: select(scores.static, saved, b)``
    pruned : from a selection to the model it leaves: ``lambda s: remove_heads(model, s.by_block)``
    steps : halvings of the predicted budget's range

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
    best, largest = at(0.0), at(budget)
    if best.loss_change > budget:
        raise HwmodelError(
            f"removing only what is predicted to harm nothing costs {best.loss_change:.4g} of loss, the budget is {budget:.4g}"
        )
    if largest.loss_change <= budget:
        return largest
    low, high = 0.0, budget
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
