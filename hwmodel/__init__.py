"""What does this pruned Vision Transformer really cost on that machine?

Public names are loaded when first used (PEP 562): ``import hwmodel`` imports neither torch, pandas nor scalesim.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from hwmodel.ir.accessors import ESTIMATE_PLOTS, TRACE_PLOTS

if TYPE_CHECKING:
    from hwmodel.allocation.loop.allocate import allocate
    from hwmodel.backends.cards import Card, load_card
    from hwmodel.backends.estimates import Estimate, estimate
    from hwmodel.backends.families import FamilyEstimate, estimate_family
    from hwmodel.errors import HwmodelError
    from hwmodel.exploration.cost_files import load_cost_table, save_cost_table
    from hwmodel.exploration.cost_table import cost_table
    from hwmodel.exploration.costs import CostTable
    from hwmodel.exploration.explore import explore
    from hwmodel.exploration.results import load_results
    from hwmodel.exploration.study_files import load_study
    from hwmodel.extraction.families import prune_family, trace_family
    from hwmodel.extraction.models import trace
    from hwmodel.extraction.whatif.dead_work import drop_dead_work
    from hwmodel.extraction.whatif.found_recipes import recipe_of
    from hwmodel.extraction.whatif.pruning import prune
    from hwmodel.extraction.whatif.recipe_files import load_recipe, save_recipe
    from hwmodel.extraction.whatif.recipes import Recipe
    from hwmodel.ir.masks import BlockMask, ExpectedMask, expected_mask
    from hwmodel.ir.operators import (
        Operator,
        attention,
        elementwise,
        gelu,
        layernorm,
        matmul,
        movement,
        reduction,
        rowwise,
        softmax,
    )
    from hwmodel.ir.storage import load_trace, save_trace
    from hwmodel.ir.token_counts import TokenDistribution, TraceFamily
    from hwmodel.ir.trace import Trace

__version__ = "0.1.0"

_HOME = {
    "BlockMask": "hwmodel.ir.masks",
    "Card": "hwmodel.backends.cards",
    "CostTable": "hwmodel.exploration.costs",
    "Estimate": "hwmodel.backends.estimates",
    "ExpectedMask": "hwmodel.ir.masks",
    "FamilyEstimate": "hwmodel.backends.families",
    "HwmodelError": "hwmodel.errors",
    "Operator": "hwmodel.ir.operators",
    "Recipe": "hwmodel.extraction.whatif.recipes",
    "TokenDistribution": "hwmodel.ir.token_counts",
    "Trace": "hwmodel.ir.trace",
    "TraceFamily": "hwmodel.ir.token_counts",
    "allocate": "hwmodel.allocation.loop.allocate",
    "attention": "hwmodel.ir.operators",
    "cost_table": "hwmodel.exploration.cost_table",
    "drop_dead_work": "hwmodel.extraction.whatif.dead_work",
    "elementwise": "hwmodel.ir.operators",
    "estimate": "hwmodel.backends.estimates",
    "estimate_family": "hwmodel.backends.families",
    "expected_mask": "hwmodel.ir.masks",
    "explore": "hwmodel.exploration.explore",
    "gelu": "hwmodel.ir.operators",
    "layernorm": "hwmodel.ir.operators",
    "load_card": "hwmodel.backends.cards",
    "load_cost_table": "hwmodel.exploration.cost_files",
    "load_recipe": "hwmodel.extraction.whatif.recipe_files",
    "load_results": "hwmodel.exploration.results",
    "load_study": "hwmodel.exploration.study_files",
    "load_trace": "hwmodel.ir.storage",
    "matmul": "hwmodel.ir.operators",
    "movement": "hwmodel.ir.operators",
    "prune": "hwmodel.extraction.whatif.pruning",
    "prune_family": "hwmodel.extraction.families",
    "recipe_of": "hwmodel.extraction.whatif.found_recipes",
    "reduction": "hwmodel.ir.operators",
    "rowwise": "hwmodel.ir.operators",
    "save_cost_table": "hwmodel.exploration.cost_files",
    "save_recipe": "hwmodel.extraction.whatif.recipe_files",
    "save_trace": "hwmodel.ir.storage",
    "softmax": "hwmodel.ir.operators",
    "trace": "hwmodel.extraction.models",
    "trace_family": "hwmodel.extraction.families",
}

__all__ = [
    "BlockMask", "Card", "CostTable", "Estimate", "ExpectedMask", "FamilyEstimate", "HwmodelError", "Operator", "Recipe",
    "TokenDistribution", "Trace", "TraceFamily", "allocate", "attention", "cost_table", "drop_dead_work", "elementwise", "estimate",
    "estimate_family", "expected_mask", "explore", "gelu", "layernorm", "load_card", "load_cost_table", "load_recipe",
    "load_results", "load_study", "load_trace", "matmul", "movement", "prune", "prune_family", "recipe_of", "reduction",
    "rowwise", "save_cost_table", "save_recipe", "save_trace", "softmax", "trace", "trace_family",
]  # fmt: skip


TRACE_PLOTS.fill("hwmodel.reporting.notebook", "TracePlots")
ESTIMATE_PLOTS.fill("hwmodel.reporting.notebook", "EstimatePlots")


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'hwmodel' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
