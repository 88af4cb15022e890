"""From a model and the settings of one point to its trace: extraction, the recipe, and what the study prunes on top."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from hwmodel.exploration.axes import Value
from hwmodel.exploration.study import DENSE, PRUNING_KNOBS, ModelChoice, Pruning, Study, StudyError
from hwmodel.extraction.whatif.recipes import Recipe
from hwmodel.extraction.whatif.structure import PROJECTIONS
from hwmodel.ir.operators import Operator
from hwmodel.ir.storage import is_trace_file, load_trace
from hwmodel.ir.trace import Trace

PRUNABLE_ROLES = PROJECTIONS | {"proj", "fc1", "fc2"}
"""Roles that [[pruning]] takes where it names no layers: the products of the encoder that have weights."""


class Variants:
    """Traces of a study, each model extracted once per batch and image size. Picklable; what was extracted travels along.

    Parameters
    ----------
    study : names the models, the recipes and what is pruned
    recipes : recipes by name; None for the dense model
    """

    def __init__(self, study: Study, recipes: Mapping[str, Recipe | None]) -> None:
        self._study = study
        self._recipes = dict(recipes)
        self._extracted: dict[tuple[int, int | None, int | None], Trace] = {}
        self._recent = lru_cache(maxsize=4)(self._make)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_recent"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._recent = lru_cache(maxsize=4)(self._make)

    def trace(self, model: int, recipe: str, setting: Mapping[str, Value]) -> Trace:
        """The trace of a model with a recipe under the knobs of ``setting`` (by knob, card fields left out)."""
        return self._recent(model, recipe, tuple(sorted(setting.items())))

    def base(self, model: int, recipe: str, setting: Mapping[str, Value]) -> Trace:
        """The dense trace behind it."""
        wanted = self._recipes[recipe]
        batch = setting.get("batch", self._study.batch)
        image_size = setting.get("image_size", self._study.image_size or (wanted.image_size if wanted else None))
        key: Any = (model, batch, image_size)
        if key not in self._extracted:
            self._extracted[key] = _extracted(self._study.models[model], *key[1:])
        return self._extracted[key]

    def _make(self, model: int, recipe: str, items: tuple[tuple[str, Value], ...]) -> Trace:
        from hwmodel.extraction.whatif.pruning import prune

        setting = dict(items)
        dense = self.base(model, recipe, setting)
        wanted = _joined(self._recipes[recipe], dense, [_set(group, setting) for group in self._study.pruning])
        return dense if wanted is None else prune(dense, wanted)


def _extracted(model: ModelChoice, batch: int | None, image_size: int | None) -> Trace:
    if not is_trace_file(model.name):
        from hwmodel.extraction.models import trace

        return trace(model.name, batch=batch or 1, image_size=image_size)
    found = load_trace(model.name)
    if batch not in (None, found.batch) or image_size is not None:
        raise StudyError(f"{model.name}: a saved trace has its own batch ({found.batch}) and image size; name the model instead")
    return found


def _set(group: Pruning, setting: Mapping[str, Value]) -> Pruning:
    """The group with the values of its knobs in place."""
    given = {field: setting[group.knob(field)] for field in PRUNING_KNOBS if group.knob(field) in setting}
    return group.model_copy(update=given)


def _joined(recipe: Recipe | None, dense: Trace, groups: Sequence[Pruning]) -> Recipe | None:
    """The recipe with the groups' entries after its own, later entries winning; None where nothing is pruned."""
    layers = [entry for group in groups for entry in _layer_entries(group, dense)]
    encoder = [entry for group in groups for entry in _encoder_entries(group, dense)]
    if not layers and not encoder:
        return recipe
    added = Recipe.from_document(
        {"schema_version": 1, "model": dense.model, "source": "study", "layers": layers, "encoder": encoder}, "study: pruning"
    )
    if recipe is None:
        return added
    return recipe.model_copy(update={"layers": recipe.layers + added.layers, "encoder": recipe.encoder + added.encoder})


def _layer_entries(group: Pruning, dense: Trace) -> list[dict[str, Any]]:
    if group.density is None:
        return []
    if group.block is None:
        raise StudyError(
            f"pruning: {group.knob('density')} needs a block shape: set block in [[pruning]], or vary {group.knob('block')}"
        )
    sides = [int(side) for side in group.block.split("x")]
    entry = {"match": list(group.layers or _prunable(dense)), "block": sides, "density": group.density, "expect": group.expect}
    return [entry]


def _prunable(dense: Trace) -> list[str]:
    names = [operator.name for operator in dense.operators if is_prunable(operator)]
    if not names:
        raise StudyError(f"{dense.model}: no encoder layer is known to be prunable here; name some with layers in [[pruning]]")
    return names


def is_prunable(operator: Operator) -> bool:
    """Whether an operator is a layer of the encoder that has weights, in a role that pruning takes."""
    weight = operator.family == "product" and operator.parameter and operator.batch == 1
    return weight and operator.block is not None and operator.role in PRUNABLE_ROLES


def _encoder_entries(group: Pruning, dense: Trace) -> list[dict[str, Any]]:
    asked = {field: getattr(group, field) for field in ("heads", "mlp", "tokens", "keep") if getattr(group, field) is not None}
    if not asked:
        return []
    known = [operator.block for operator in dense.operators if operator.block is not None]
    if not known:
        raise StudyError(f"{dense.model}: has no encoder blocks, so {', '.join(asked)} cannot be set")
    return [{"blocks": group.blocks or f"0-{max(known)}", **asked}]


def known_recipes(study: Study) -> dict[str, Recipe | None]:
    """The recipes that a study names, read and checked; "dense" is none."""
    from hwmodel.extraction.whatif.recipe_files import load_recipe

    names = dict.fromkeys(recipe for model in study.models for recipe in model.recipes)
    return {name: None if name == DENSE else load_recipe(name) for name in names}
