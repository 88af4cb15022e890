"""Recipes applied to a trace: what-if pruning that needs no weights. Structure first, then blocks of what is left."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import Any, Literal

from hwmodel.errors import RecipeError, suggestion
from hwmodel.extraction.weights.classes import with_classes
from hwmodel.extraction.whatif.recipe_files import find_recipe, load_recipe
from hwmodel.extraction.whatif.recipes import EncoderRule, LayerRule, Recipe
from hwmodel.extraction.whatif.removal import merge_nothing, remove_branch, replace_by_identity
from hwmodel.extraction.whatif.structure import Edges, keep_heads, narrow_heads, narrow_mlp
from hwmodel.extraction.whatif.token_rules import field_of, planned, reduces
from hwmodel.extraction.whatif.tokens import Tokens, reduce_tokens
from hwmodel.ir.masks import Mask, expected_mask
from hwmodel.ir.operators import Operator
from hwmodel.ir.trace import Trace

_LISTED = 3
BlockChange = Callable[[list[Operator], Any, int, Edges], list[Operator]]
"""From the operators of one block, the rule's value, the images and the edges among the operators."""
MaskMaker = Callable[..., Mask]


def prune(trace: Trace, recipe: Recipe | str | Path | Mapping[str, Any]) -> Trace:
    """The trace of the pruned model. ``macs`` stays the dense model's, ``kept_macs`` becomes the pruned one's.

    Parameters
    ----------
    trace : of the dense model
    recipe : a recipe, the path or shipped name of one, or a mapping from operator names (globs) to masks or fields:
        ``{"blocks.*.mlp.fc?": {"block": (64, 64), "density": 0.2}}``, ``{"head": mask}``. Blocks are (out, in),
        densities the fraction kept

    Returns
    -------
    Trace
        An operator of which everything is kept is the very same as in ``trace``. A stored mask is taken as it is, even
        where it keeps every block. A mask that an operator carries already is replaced.

    Raises
    ------
    RecipeError
        A recipe of another model or image size, a glob without match, a block that does not fit, structure that the
        model does not have: one line with the recipe, the field's path and the reason.
    UnknownNameError
        A name of a recipe that is not shipped.
    """
    if isinstance(recipe, str | Path):
        return _applied(trace, load_recipe(recipe), str(find_recipe(recipe)))
    if isinstance(recipe, Mapping):
        recipe = Recipe.from_mapping(recipe, model=trace.model)
    return _applied(trace, recipe, "recipe")


def _applied(trace: Trace, recipe: Recipe, where: str) -> Trace:
    _check_model(trace, recipe, where)
    if recipe.classes is not None:
        with _located(f"{where}: classes"):
            trace = with_classes(trace, recipe.classes)
    trace = _encoder(trace, recipe.encoder, where)
    operators = _layers(trace.operators, recipe.layers, where)
    design = {backend: {**trace.design.get(backend, {}), **fields} for backend, fields in recipe.design.items()}
    return trace.replace(operators=operators, design={**trace.design, **design})


def _check_model(trace: Trace, recipe: Recipe, where: str) -> None:
    """Refuse another model (tags of pretrained weights after a dot apart) and another image size."""
    if recipe.model.partition(".")[0] != trace.model.partition(".")[0]:
        raise RecipeError(f"{where}: model: the recipe prunes {recipe.model!r}, the trace is of {trace.model!r}")
    size = (recipe.image_size, recipe.image_size)
    if recipe.image_size is not None and trace.input_shape and trace.input_shape[-2:] != size:
        found = "x".join(str(pixels) for pixels in trace.input_shape[-2:])
        raise RecipeError(
            f"{where}: image_size: the recipe is for images of {size[0]} pixels, the trace has {found}; "
            f"trace the model with image_size={size[0]}"
        )


@contextmanager
def _located(path: str) -> Iterator[None]:
    """Turns the reason of a refusal into a RecipeError that says where it stands."""
    try:
        yield
    except ValueError as error:
        raise RecipeError(f"{path}: {error}") from error


def _encoder(trace: Trace, rules: Sequence[EncoderRule], where: str) -> Trace:
    """What is gone, then heads and MLPs block by block, then tokens front to back."""
    _check_blocks(trace, rules, where)
    dense_macs = trace.macs
    trace = _parts_removed(trace, rules, where)
    trace = trace.replace(removed_macs=trace.removed_macs + dense_macs - trace.macs)
    for field, change in _BLOCK_CHANGES.items():
        for block, number in _winners(rules, field).items():
            with _located(f"{where}: encoder.{number}.{field}: block {block}"):
                trace = _changed_block(trace, block, change, getattr(rules[number], field))
    for block in _winners(rules, "heads"):
        trace = merge_nothing(trace, block)
    return _tokens(trace, rules, where)


def _parts_removed(trace: Trace, rules: Sequence[EncoderRule], where: str) -> Trace:
    """Attention and MLPs that are gone whole, or replaced by the identity."""
    for field, change in (("remove", remove_branch), ("identity", replace_by_identity)):
        for block, number in _winners(rules, field).items():
            for part in getattr(rules[number], field):
                with _located(f"{where}: encoder.{number}.{field}: block {block}"):
                    trace = change(trace, block, part)
    return trace


def _head_change(part: Literal["qk", "v"]) -> BlockChange:
    return lambda operators, size, images, edges: narrow_heads(operators, size, part=part, images=images, edges=edges)


_BLOCK_CHANGES: Mapping[str, BlockChange] = {
    "heads": lambda operators, keep, images, edges: keep_heads(operators, keep, images=images),
    "qk": _head_change("qk"),
    "v": _head_change("v"),
    "mlp": lambda operators, width, images, edges: narrow_mlp(operators, width),
}
"""What a field of an encoder rule does to the operators of one block, in the order in which fields apply."""


def _check_blocks(trace: Trace, rules: Sequence[EncoderRule], where: str) -> None:
    known = {operator.block for operator in trace.operators if operator.block is not None}
    for number, rule in enumerate(rules):
        unknown = [index for index in rule.indices if index not in known]
        if unknown:
            there = f"the trace has blocks 0-{max(known)}" if known else "the trace has no encoder blocks"
            raise RecipeError(f"{where}: encoder.{number}.blocks: found block {unknown[0]}, but {there}")


def _winners(rules: Sequence[EncoderRule], field: str) -> dict[int, int]:
    """Block index to the number of the last rule that sets ``field`` for it."""
    return {block: number for number, rule in enumerate(rules) if getattr(rule, field) is not None for block in rule.indices}


def _changed_block(trace: Trace, block: int, change: BlockChange, value: Any) -> Trace:
    rows = [row for row, operator in enumerate(trace.operators) if operator.block == block]
    place = {row: number for number, row in enumerate(rows)}
    edges = [(place[producer], place[reader]) for producer, reader in trace.edges if producer in place and reader in place]
    changed = dict(zip(rows, change([trace.operators[row] for row in rows], value, trace.batch, edges), strict=True))
    return trace.replace(operators=tuple(changed.get(row, operator) for row, operator in enumerate(trace.operators)))


def _tokens(trace: Trace, rules: Sequence[EncoderRule], where: str) -> Trace:
    """Drop or merge tokens as the last rule for each block says; blocks without one take what is left."""
    speaking = [number for number, rule in enumerate(rules) if reduces(rule)]
    if not speaking:
        return trace
    with _located(f"{where}: encoder.{speaking[0]}.{field_of(rules[speaking[0]])}"):
        tokens = Tokens.of(trace)
        blocks = dict.fromkeys(operator.block for operator in trace.operators if operator.block is not None)
        return reduce_tokens(trace, tokens, planned(blocks, rules, tokens, where))


def _layers(operators: Sequence[Operator], rules: Sequence[LayerRule], where: str) -> tuple[Operator, ...]:
    """Sparsity and format of every operator as the last rule that speaks of them says."""
    sparsity: dict[str, int] = {}
    formats: dict[str, dict[str, Any]] = {}
    for number, rule in enumerate(rules):
        matched = _matched(operators, rule, f"{where}: layers.{number}.match")
        if rule.prunes:
            _check_prunable(matched, f"{where}: layers.{number}.match")
            sparsity.update({operator.name: number for operator in matched})
        if rule.weight_dtype is not None or rule.group is not None:
            _check_stored(matched, f"{where}: layers.{number}.match")
        for operator in matched:
            formats[operator.name] = formats.get(operator.name, {}) | _format(operator, rule)
    changed = [_with(operator, **formats.get(operator.name, {})) for operator in _masked(operators, rules, sparsity, where)]
    return tuple(changed)


def _matched(operators: Sequence[Operator], rule: LayerRule, where: str) -> list[Operator]:
    names = [operator.name for operator in operators]
    for glob in rule.match:
        if not any(fnmatchcase(name, glob) for name in names):
            raise RecipeError(f"{where}: {glob!r} matches no operator; {suggestion(glob, names)}")
    return [operator for operator in operators if any(fnmatchcase(operator.name, glob) for glob in rule.match)]


def _check_prunable(matched: Sequence[Operator], where: str) -> None:
    """Blocks are pruned of weights only, and a grouped layer has more than one."""
    others = [operator for operator in matched if not _has_weight(operator)]
    if others:
        listed = ", ".join(f"{operator.name} ({operator.kind})" for operator in others[:_LISTED])
        more = f" and {len(others) - _LISTED} more" if len(others) > _LISTED else ""
        raise RecipeError(f"{where}: no blocks can be pruned of {listed}{more}: expected products with one weight each")


def _has_weight(operator: Operator) -> bool:
    return operator.family == "product" and operator.parameter and operator.batch == 1


def _masked(operators: Sequence[Operator], rules: Sequence[LayerRule], winners: Mapping[str, int], where: str) -> list[Operator]:
    """Operators with their masks; equal expected masks are one object, so their tiles are counted once."""
    make = cache(expected_mask)
    masked = []
    for operator in operators:
        number = winners.get(operator.name)
        if number is None:
            masked.append(operator)
            continue
        with _located(f"{where}: layers.{number}: {operator.name}"):
            mask = None if rules[number].sparsity else _mask(operator, rules[number], make)
            masked.append(_with(operator, mask=mask, sparsity=rules[number].sparsity))
    return masked


def _mask(operator: Operator, rule: LayerRule, make: MaskMaker) -> Mask | None:
    """The mask a rule gives to an operator; None where its density keeps everything."""
    weight = (operator.n, operator.k)
    if rule.mask is None:
        mask = make(weight, rule.block, rule.density, rule.expect or "uniform")
        return None if rule.density == 1 else mask
    if rule.mask.shape != weight:
        found, expected = (f"{out}x{inner}" for out, inner in (rule.mask.shape, weight))
        raise ValueError(f"the mask is for a weight of {found}, the operator has {expected} (out x in)")
    return rule.mask


def _format(operator: Operator, rule: LayerRule) -> dict[str, Any]:
    """Number formats of an operator that a rule sets; a ``dtype`` alone is that of the weights too."""
    if not rule.formats:
        return {}
    dtype = {} if rule.dtype is None else {"dtype": rule.dtype}
    weights = None if rule.weight_dtype == (rule.dtype or operator.dtype) else rule.weight_dtype
    return dtype | {"weight_dtype": weights, "scale_bytes": rule.scale_bytes(operator.n, operator.k)}


def _check_stored(matched: Sequence[Operator], where: str) -> None:
    """Weights have formats of their own where there are weights."""
    others = [operator.name for operator in matched if not operator.parameter]
    if others:
        raise RecipeError(f"{where}: weight_dtype and group are for products with a weight; {others[0]} has none")


def _with(operator: Operator, **fields: object) -> Operator:
    """A copy, or the very same operator where nothing changes."""
    return operator if all(getattr(operator, name) == value for name, value in fields.items()) else operator.replace(**fields)
