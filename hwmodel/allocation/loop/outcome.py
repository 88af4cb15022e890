"""What comes out of the closed loop: the pruned model, its masks and costs, a recipe, and a record of every step."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hwmodel.allocation.loop.closing import Check, Closing
from hwmodel.allocation.loop.goals import Goal
from hwmodel.allocation.loop.joint import Turn, counting
from hwmodel.allocation.loop.journal import Step
from hwmodel.allocation.problem import Allocation
from hwmodel.backends.estimates import Estimate
from hwmodel.extraction.whatif.recipes import Recipe
from hwmodel.files import write_file
from hwmodel.ir.masks import BlockMask
from hwmodel.ir.trace import Trace
from hwmodel.pruning.blocks.masking import apply_masks
from hwmodel.pruning.live_models import LiveModel

if TYPE_CHECKING:
    import pandas as pd

    from hwmodel.pruning.live_models import Module


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class ClosedLoop:
    """A model pruned to a budget, and what shows that it is.

    Parameters
    ----------
    origin : the model as it was given
    goal : what was asked for
    turns : choices of heads and tokens, each with the rounds over its blocks; one where only blocks were pruned
    settled : whether the last turn moved nothing any more
    synthetic : sensitivities are of random images or weights: masks say nothing about accuracy
    steps : the log: what was asked and what came of it, in order
    """

    origin: LiveModel
    goal: Goal
    turns: tuple[Turn, ...]
    settled: bool
    synthetic: bool
    steps: tuple[Step, ...]

    def __repr__(self) -> str:
        state = "" if self.converged else ", not converged"
        return f"<ClosedLoop of {self.origin.title} for {self.goal.told}: distortion {self.allocation.distortion:.4g}{state}>"

    @property
    def turn(self) -> Turn:
        """The turn that counts."""
        return counting(self.turns, settled=self.settled)

    @property
    def closing(self) -> Closing:
        """The rounds of the turn that counts."""
        return self.turn.closing

    @property
    def converged(self) -> bool:
        """Promised and delivered agree on every device, budgets are kept, and nothing moves any more."""
        return self.closing.converged and self.settled

    @property
    def allocation(self) -> Allocation:
        """The choice of blocks that counts."""
        return self.closing.chosen.allocation

    @property
    def masks(self) -> dict[str, BlockMask]:
        """Kept blocks by layer; a layer that is not named keeps them all."""
        return self.allocation.masks

    @property
    def trace(self) -> Trace:
        """The pruned model as it was extracted afresh from its checkpoint."""
        return self.closing.chosen.trace

    @property
    def estimates(self) -> tuple[Estimate, ...]:
        """What the pruned model costs, one per device."""
        return self.closing.chosen.estimates

    @property
    def checks(self) -> tuple[Check, ...]:
        """Promised against delivered."""
        return self.closing.chosen.checks

    @cached_property
    def module(self) -> Module:
        """The pruned model: a copy with its pruned blocks at zero."""
        return apply_masks(self.turn.live.module, self.masks)

    @cached_property
    def published(self) -> Trace:
        """The dense model that :attr:`recipe` starts from."""
        return self.origin.published()

    @cached_property
    def recipe(self) -> Recipe:
        """How to price the same pruning without weights: ``hw.prune(published, recipe)``."""
        told = f"hwmodel allocate: {self.goal.told}, solver {self.goal.solver}"
        if self.synthetic:
            told += "; sensitivities of random images or weights, which say nothing about accuracy"
        return self.turn.structure.recipe(self.origin, self.published, self.trace, source=told)

    def frame(self) -> pd.DataFrame:
        """One row per layer, as :meth:`Allocation.frame`, and per device how far Eq. 7 is from it (``departure ...``)."""
        table = self.allocation.frame()
        for machine, told in zip(self.closing.machines, self.turn.departures, strict=True):
            table[f"departure on {machine.label}"] = [told[name].largest if name in told else float("nan") for name in table.index]
        return table

    def document(self) -> dict[str, Any]:
        """Totals, checks and kept fractions as JSON knows them."""
        allocation = self.allocation
        return {
            "model": self.origin.title, "budgets": [str(budget) for budget in self.goal.budgets], "solver": self.goal.solver,
            "converged": self.converged, "turns": len(self.turns), "rounds": [len(turn.closing.rounds) for turn in self.turns],
            "synthetic": self.synthetic, "distortion": allocation.distortion, "bound": allocation.bound,
            "gap_to_least": allocation.gap,
            "heads": {str(block): list(kept) for block, kept in self.turn.structure.heads.items()},
            "tokens": {str(block): keep for block, keep in self.turn.structure.tokens.items()},
            "costs": [asdict(check) | {"gap": check.gap} for check in self.checks],
            "density": allocation.density,
            "departure_from_eq_7": {
                machine.label: {name: one.largest for name, one in told.items()}
                for machine, told in zip(self.closing.machines, self.turn.departures, strict=True)
            },
        }  # fmt: skip

    @property
    def log(self) -> str:
        """Every step as a line of JSON."""
        return "".join(f"{step}\n" for step in self.steps)

    def save(self, recipe: str | Path, *, weights: str | Path | None = None, log: str | Path | None = None) -> None:
        """Write the recipe with its masks beside it, and where asked for the pruned weights (safetensors) and the log.

        Raises
        ------
        HwmodelError
            A path that cannot be written.
        """
        from hwmodel.extraction.whatif.recipe_files import save_recipe

        if weights is not None:
            self.turn.live.holding(self.module).save(weights)
        if log is not None:
            write_file(log, self.log)
        save_recipe(self.recipe, recipe)
