"""Traces of models whose token counts depend on the image: one trace per row of a distribution of counts."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from hwmodel.errors import HwmodelError, RecipeError
from hwmodel.extraction.whatif.pruning import prune
from hwmodel.extraction.whatif.recipe_files import find_recipe, load_recipe
from hwmodel.extraction.whatif.recipes import Recipe
from hwmodel.extraction.whatif.token_rules import joint_distribution, settled
from hwmodel.ir.token_counts import TokenDistribution, TraceFamily
from hwmodel.ir.trace import Trace

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch
    from torch import nn


def trace_family(
    model: nn.Module,
    tokens: TokenDistribution,
    *,
    batch: int = 1,
    dtype: str | None = None,
    example: torch.Tensor | Sequence[torch.Tensor] | None = None,
) -> TraceFamily:
    """Extract a module whose number of tokens depends on the image, once, and write it down at every count.

    Any module will do whose counts reach its shapes through ``.item()`` and are bounded by ``torch._check``.

    Parameters
    ----------
    model : a module such as :func:`hwmodel.pruning.tokens.threshold_tokens` returns
    tokens : of one image, a count for each point where the data decides, in execution order
    batch : images of one forward pass; a batch pays its longest image at each point
    dtype, example : as for :func:`hwmodel.trace`

    Raises
    ------
    HwmodelError
        A module whose counts are fixed, another number of points, or counts that the module rules out.
    """
    from hwmodel.extraction.models import as_module, example_inputs, exported_module
    from hwmodel.extraction.recording.symbolic import SymbolicProgram

    if batch < 1:
        raise HwmodelError(f"batch must be at least 1, got {batch}")
    if isinstance(model, str):
        raise HwmodelError(f"{model}: a model by name keeps every token; pass the torch.nn.Module that drops some")
    module = as_module(model)
    name = type(module).__name__
    program, assemble = exported_module(module, example_inputs(module, batch, None, example), dtype)
    symbolic = SymbolicProgram(program, model=name)
    if not symbolic.symbols:
        raise HwmodelError(f"{name}: no token count depends on the data; trace it with hw.trace")
    distribution = tokens.longest_of(batch)
    return TraceFamily(distribution, tuple(assemble(symbolic.at(counts)) for counts in distribution.counts))


def prune_family(trace: Trace, recipe: Recipe | str | Path) -> TraceFamily:
    """Apply a recipe whose token counts are distributions; without weights, as :func:`hwmodel.prune` does.

    Parameters
    ----------
    trace : of the dense model; at a batch of several images each pass pays the longest of them
    recipe : a recipe, or the path or shipped name of one, with ``tokens = {values = [...], probability = [...]}``

    Raises
    ------
    RecipeError
        A recipe without such an entry, or anything :func:`hwmodel.prune` refuses.
    """
    where = "recipe" if isinstance(recipe, Recipe) else str(find_recipe(recipe))
    asked = recipe if isinstance(recipe, Recipe) else load_recipe(recipe)
    distribution = joint_distribution(asked, where).longest_of(trace.batch)
    try:
        return TraceFamily(distribution, tuple(prune(trace, settled(asked, counts)) for counts in distribution.counts))
    except RecipeError as error:
        raise RecipeError(f"{where}: {str(error).removeprefix('recipe: ')}") from error
