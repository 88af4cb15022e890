"""What does this pruned Vision Transformer really cost on that machine?

Public names are loaded when first used (PEP 562): ``import hwmodel`` imports neither torch, pandas nor scalesim.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hwmodel.backends.cards import Card, load_card
    from hwmodel.backends.estimates import Estimate, estimate
    from hwmodel.errors import HwmodelError
    from hwmodel.extraction.models import trace
    from hwmodel.extraction.pruning import prune
    from hwmodel.extraction.recipe_files import load_recipe, save_recipe
    from hwmodel.extraction.recipes import Recipe
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
    from hwmodel.ir.trace import Trace

__version__ = "0.1.0"

_HOME = {
    "BlockMask": "hwmodel.ir.masks",
    "Card": "hwmodel.backends.cards",
    "Estimate": "hwmodel.backends.estimates",
    "ExpectedMask": "hwmodel.ir.masks",
    "HwmodelError": "hwmodel.errors",
    "Operator": "hwmodel.ir.operators",
    "Recipe": "hwmodel.extraction.recipes",
    "Trace": "hwmodel.ir.trace",
    "attention": "hwmodel.ir.operators",
    "elementwise": "hwmodel.ir.operators",
    "estimate": "hwmodel.backends.estimates",
    "expected_mask": "hwmodel.ir.masks",
    "gelu": "hwmodel.ir.operators",
    "layernorm": "hwmodel.ir.operators",
    "load_card": "hwmodel.backends.cards",
    "load_recipe": "hwmodel.extraction.recipe_files",
    "load_trace": "hwmodel.ir.storage",
    "matmul": "hwmodel.ir.operators",
    "movement": "hwmodel.ir.operators",
    "prune": "hwmodel.extraction.pruning",
    "reduction": "hwmodel.ir.operators",
    "rowwise": "hwmodel.ir.operators",
    "save_recipe": "hwmodel.extraction.recipe_files",
    "save_trace": "hwmodel.ir.storage",
    "softmax": "hwmodel.ir.operators",
    "trace": "hwmodel.extraction.models",
}

__all__ = [
    "BlockMask", "Card", "Estimate", "ExpectedMask", "HwmodelError", "Operator", "Recipe", "Trace", "attention", "elementwise",
    "estimate", "expected_mask", "gelu", "layernorm", "load_card", "load_recipe", "load_trace", "matmul", "movement", "prune",
    "reduction", "rowwise", "save_recipe", "save_trace", "softmax", "trace",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'hwmodel' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
