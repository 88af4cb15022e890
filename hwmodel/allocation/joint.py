"""Blocks, heads and tokens together: heads and tokens set the shapes that blocks are priced in, blocks what heads and tokens save.

The three are chosen in turn until nothing moves. Sensitivities of heads and tokens are those of the model as given; what
removing one saves is priced around the present model, so it falls as blocks go.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hwmodel.allocation.closing import Closing, Pricer, Round, close
from hwmodel.allocation.goals import Goal
from hwmodel.allocation.sensing import Sensing
from hwmodel.allocation.structure import Structure
from hwmodel.errors import HwmodelError
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
    closing : the loop over its blocks
    """

    structure: Structure
    live: LiveModel
    closing: Closing


def settle(
    live: LiveModel,
    sensing: Sensing,
    pricers: Sequence[Pricer],
    goal: Goal,
    wishes: Mapping[str, Wish],
    checkpoint: Path,
    tell: Callable[[Round], None],
) -> tuple[list[Turn], bool]:
    """Choose heads and tokens, then blocks, and again, until a choice of heads and tokens comes back.

    Returns
    -------
    the turns in their order, and whether the last one moved nothing any more
    """
    turns: list[Turn] = []
    origin = live.structure() if wishes else None
    for _ in range(TURNS):
        structure = Structure()
        if turns and structure == turns[-1].structure:
            return turns, True
        shaped = structure.of(live)
        curves = sensing.curves(shaped)
        closing = close(shaped, curves, pricers, goal, checkpoint, origin=origin, tell=tell)
        turns.append(Turn(structure=structure, live=shaped, closing=closing))
        if not wishes:
            return turns, True
    return turns, False
