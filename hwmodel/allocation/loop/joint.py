"""Blocks, heads and tokens together: heads and tokens set the shapes that blocks are priced in, blocks what heads and tokens save.

The three are chosen in turn until nothing moves. Sensitivities of heads and tokens are those of the model as given; what
removing one saves is priced around the present model, so it falls as blocks go.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from hwmodel.allocation.layers import FloatArray
from hwmodel.allocation.loop.bases import Base, Pricer
from hwmodel.allocation.loop.closing import Closing, Round, close
from hwmodel.allocation.loop.goals import Goal
from hwmodel.allocation.loop.savings import Present, Valuation, valuation
from hwmodel.allocation.loop.sensing import Sensing
from hwmodel.allocation.loop.structure import Structure
from hwmodel.allocation.power import Departure
from hwmodel.errors import HwmodelError
from hwmodel.ir.masks import BoolArray
from hwmodel.pruning.blocks.masking import apply_masks
from hwmodel.pruning.gates.selection import select
from hwmodel.pruning.live_models import LiveModel

TURNS = 4


@dataclass(frozen=True)
class Wish:
    """How much of the heads or of the tokens stays: a part, or as much as a predicted loss leaves.

    Parameters
    ----------
    keep : part that stays, in (0, 1]
    loss : largest sum of predicted changes of the loss
    """

    keep: float | None = None
    loss: float | None = None

    @classmethod
    def of(cls, asked: float | str | None, what: str) -> Wish | None:
        """From a part such as 0.75 or "75%", or from "loss=0.02".

        Raises
        ------
        HwmodelError
            Anything else.
        """
        if asked is None:
            return None
        text = str(asked).strip()
        name, equals, value = text.rpartition("=")
        try:
            number = float(value.removesuffix("%")) / (100 if value.endswith("%") else 1)
        except ValueError:
            number = -1.0
        if equals and name == "loss" and number >= 0:
            return cls(loss=number)
        if not equals and 0 < number <= 1:
            return cls(keep=number)
        raise HwmodelError(f"{what} {text}: expected the part to keep, such as 0.75, or the loss it may cost, such as loss=0.02")


@dataclass(frozen=True, kw_only=True, eq=False)
class Turn:
    """One choice of heads and tokens, and the blocks that were then chosen.

    Parameters
    ----------
    structure : heads and tokens that stay
    live : the model with them
    closings : the loop over its blocks, for each step towards the budgets
    """

    structure: Structure
    live: LiveModel
    closings: tuple[Closing, ...]

    @property
    def closing(self) -> Closing:
        """The last step, at the budgets."""
        return self.closings[-1]

    @property
    def departures(self) -> tuple[Mapping[str, Departure], ...]:
        """Per device, by layer, how far Eq. 7 is from it: of the first step, where the layers are as they were given."""
        return self.closings[0].departures


@dataclass(frozen=True, kw_only=True, eq=False)
class Chooser:
    """Chooses heads and tokens by predicted harm over what they save in the model of the last turn.

    Parameters
    ----------
    live : the model as it was given, of which sensitivities are
    wishes : how much of "heads" and "tokens" stays; what is not named stays whole
    value : the cost that the budgets are on
    """

    live: LiveModel
    sensing: Sensing
    wishes: Mapping[str, Wish]
    value: Valuation

    def choice(self, last: Turn | None) -> Structure:
        """Heads and tokens that stay, priced around the last turn, or around the model as it was given."""
        heads = self._heads(self.wishes["heads"], last) if "heads" in self.wishes else {}
        tokens = self._tokens(self.wishes["tokens"], last) if "tokens" in self.wishes else {}
        return Structure(heads=heads, tokens=tokens)

    def _heads(self, wish: Wish, last: Turn | None) -> dict[int, tuple[int, ...]]:
        scores = self._head_scores
        saved = self._present(last).head_savings(self.value)
        kept = kept_share(scores, saved, wish.keep) if wish.keep else select(scores, saved, wish.loss or 0.0).kept
        total = (~np.isnan(scores)).sum(axis=1)
        chosen = {block: tuple(map(int, np.flatnonzero(row))) for block, row in enumerate(kept)}
        return {block: heads for block, heads in chosen.items() if 0 < len(heads) < total[block]}

    def _tokens(self, wish: Wish, last: Turn | None) -> dict[int, float]:
        depth = 1 + max(operator.block for operator in self.live.structure.operators if operator.block is not None)
        stages = sorted({place for place in (depth // 4, depth // 2, 3 * depth // 4) if place <= depth - 2})
        if not stages:
            raise HwmodelError(
                f"tokens: {self.live.title} has {depth} encoder blocks; tokens leave behind the first of at least two"
            )
        if wish.keep is not None:
            return dict.fromkeys(stages, wish.keep) if wish.keep < 1 else {}
        scores = self._token_scores
        saved = self._present(last).token_savings(self.value, scores.shape[1])
        behind = [stage + 1 for stage in stages]
        counts = select(scores, saved, wish.loss or 0.0, lasting=True, blocks=behind).counts
        return {stage: float(counts[stage + 1] / counts[stage]) for stage in stages if counts[stage + 1] < counts[stage]}

    def _present(self, last: Turn | None) -> Present:
        masks = {} if last is None else last.closing.chosen.allocation.masks
        return Present(trace=self.live.structure, structure=Structure() if last is None else last.structure, masks=masks)

    @cached_property
    def _head_scores(self) -> FloatArray:
        return self.sensing.head_scores(self.live).static

    @cached_property
    def _token_scores(self) -> FloatArray:
        return self.sensing.token_scores(self.live).ranked


def kept_share(scores: FloatArray, saved: FloatArray, keep: float) -> BoolArray:
    """(blocks, units) which units stay where a share of all does: those of most harm per saved cost, one per block at least.

    What is predicted to do good harms nothing; what saves nothing goes last. Of equals the one that saves more goes first, then
    the one of lower score.

    Parameters
    ----------
    scores : (blocks, units) predicted harm, NaN where there is no unit
    saved : (blocks,) cost saved by one unit less
    """
    kept = ~np.isnan(scores)
    going = int(kept.sum() * (1.0 - keep) + 1e-9)
    savings = np.broadcast_to(saved[:, None], scores.shape)
    price = np.full(scores.shape, np.inf)
    np.divide(np.maximum(scores, 0.0), savings, out=price, where=kept & (savings > 0))
    for place in np.lexsort((scores.ravel(), -savings.ravel(), price.ravel())).tolist():
        block, unit = divmod(place, scores.shape[1])
        if going and kept[block, unit] and kept[block].sum() > 1:
            kept[block, unit] = False
            going -= 1
    return kept


def counting(turns: Sequence[Turn], *, settled: bool) -> Turn:
    """The turn that counts: the last one, or where turns go back and forth the one whose blocks distort least."""
    return (
        turns[-1] if settled else min(turns, key=lambda one: (not one.closing.converged, one.closing.chosen.allocation.distortion))
    )


def settle(
    live: LiveModel,
    sensing: Sensing,
    pricers: Sequence[Pricer],
    goal: Goal,
    *,
    wishes: Mapping[str, Wish],
    checkpoint: Path,
    tell: Callable[[Round], None],
) -> tuple[list[Turn], bool]:
    """Choose heads and tokens, then blocks, and again, until the choice of heads and tokens stays, or an earlier one comes back.

    Returns
    -------
    the turns in their order, and whether the last one moved nothing any more

    Raises
    ------
    InfeasibleError
        A budget that cannot be met; the message says what can.
    """
    turns: list[Turn] = []
    origin = live.structure if wishes else None

    def turn(structure: Structure) -> Turn:
        shaped = structure.of(live)
        closings: list[Closing] = []
        for step in range(1, goal.steps + 1):
            now = shaped.holding(apply_masks(shaped.module, closings[-1].chosen.allocation.masks)) if closings else shaped
            aim = goal.step(step)
            closings.append(close(now, sensing.curves(now), pricers, aim, checkpoint, origin=origin, tell=tell))
        return Turn(structure=structure, live=shaped, closings=tuple(closings))

    if not wishes:
        names = sensing.chosen(live)
        goal.check_reachable(Base.of(live, names, pricers, checkpoint), names, sensing.block)
        return [turn(Structure())], True
    chooser = Chooser(live=live, sensing=sensing, wishes=wishes, value=valuation(goal, live.structure, pricers))
    for _ in range(TURNS):
        structure = chooser.choice(turns[-1] if turns else None)
        if structure in (one.structure for one in turns):
            return turns, structure == turns[-1].structure
        turns.append(turn(structure))
    return turns, chooser.choice(turns[-1]) == turns[-1].structure
