"""What one head or one patch token less saves in each encoder block of a model as it is now, in the quantity of the budget."""

from __future__ import annotations

import glob
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hwmodel.allocation.budgets import device_shares
from hwmodel.allocation.layers import FloatArray, IntArray
from hwmodel.allocation.loop.bases import Pricer
from hwmodel.allocation.loop.goals import Goal
from hwmodel.allocation.loop.structure import Structure
from hwmodel.allocation.tokens_heads import heads_of, sums_by_block
from hwmodel.extraction.whatif.pruning import prune
from hwmodel.extraction.whatif.recipes import EncoderRule, LayerRule, Recipe
from hwmodel.ir.masks import BlockMask
from hwmodel.ir.trace import Trace

Valuation = Callable[[Trace], FloatArray]
"""From a trace to what each of its operators costs, as a part of the unpruned model's cost."""


def valuation(goal: Goal, origin: Trace, pricers: Sequence[Pricer]) -> Valuation:
    """The cost that the budgets are on: latency, energy (also for power), or MACs; of several, their sum of shares.

    Where devices have weights, the mean that the budgets are on: of shares, or of seconds or joules where no budget is a share.
    """
    quantities = (
        sorted({"latency_s" if budget.quantity == "latency" else "energy_j" for budget in goal.budgets}) if goal.on_machines else []
    )
    columns: list[Valuation] = [_priced(pricer, quantity) for quantity in quantities for pricer in pricers] or [_macs]
    totals = np.array([column(origin).sum() for column in columns])
    factors = 1.0 / totals
    if goal.weights is not None:
        weights = np.array(device_shares(goal.weights, len(pricers)))
        relative = any(budget.share for budget in goal.budgets)
        by_device = totals.reshape(-1, len(pricers))
        factors = (weights / by_device if relative else weights / (by_device @ weights)[:, None]).ravel()
    return lambda trace: np.sum([factor * column(trace) for factor, column in zip(factors, columns, strict=True)], axis=0)


def _priced(pricer: Pricer, quantity: str) -> Valuation:
    return lambda trace: getattr(pricer(trace).costs, quantity)


def _macs(trace: Trace) -> FloatArray:
    return np.array([operator.kept_macs for operator in trace.operators], dtype=np.float64)


@dataclass(frozen=True, kw_only=True, eq=False)
class Present:
    """The model around which savings are told.

    Parameters
    ----------
    trace : of the model as it was given, without sparsity
    structure : heads and tokens that stay of it now
    masks : its weight blocks now; where a weight has another shape meanwhile, only their density counts
    """

    trace: Trace
    structure: Structure
    masks: Mapping[str, BlockMask]

    def head_savings(self, value: Valuation) -> FloatArray:
        """(blocks,) saved by one head less at the present tokens, on average from all heads to one.

        An average, because costs come in steps: the next head alone may save nothing, or a whole tile.
        """
        heads = heads_of(self.trace)
        rules = [EncoderRule(blocks=str(block), heads=1) for block, count in heads.items() if count > 1]
        fewer = np.array([max(heads.get(block, 1) - 1, 1) for block in range(max(heads) + 1)])
        return self._saved(self.structure.token_rules, rules, value, fewer)

    def token_savings(self, value: Valuation, patches: int) -> FloatArray:
        """(blocks,) saved within the block by one patch token less at the present heads, on average from all to half of them."""
        half = max(1, patches // 2)
        blocks = sorted({operator.block for operator in self.trace.operators if operator.block is not None})
        rules = [EncoderRule(blocks=str(blocks[0]), tokens=half)] if half < patches else []
        return self._saved(self.structure.head_rules, rules, value, np.full(blocks[-1] + 1, max(patches - half, 1)))

    def _saved(self, now: Sequence[EncoderRule], less: Sequence[EncoderRule], value: Valuation, fewer: IntArray) -> FloatArray:
        shaped = [self._pruned(encoder) for encoder in (now, (*now, *less))]
        layers = self._layers(*shaped)
        pruned = (self._pruned(encoder, layers) for encoder in (now, (*now, *less)))
        before, after = (sums_by_block(trace, self.trace, value(trace))[1:] for trace in pruned)
        saved: FloatArray = np.maximum(before - after, 0.0) / fewer
        return saved

    def _pruned(self, encoder: Sequence[EncoderRule], layers: Sequence[LayerRule] = ()) -> Trace:
        return prune(self.trace, Recipe(model=self.trace.model, source="what-if", encoder=tuple(encoder), layers=tuple(layers)))

    def _layers(self, *traces: Trace) -> list[LayerRule]:
        """The masks as they are, or their densities where a weight has another shape in one of the traces."""
        shapes = [{operator.name: (operator.n, operator.k) for operator in trace.operators} for trace in traces]
        rules = []
        for name, mask in self.masks.items():
            sides = [known[name] for known in shapes]
            fields: dict[str, Any] = {"match": (glob.escape(name),), "mask": mask}
            if set(sides) != {mask.shape}:
                block = tuple(map(min, mask.block, *sides))
                fields = {"match": fields["match"], "block": block, "density": mask.kept_fraction}
            rules.append(LayerRule.model_validate(fields))
        return rules
