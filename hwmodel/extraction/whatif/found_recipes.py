"""The recipe that turns the trace of a dense model into that of its pruned version: what was found, for others to price."""

from __future__ import annotations

import glob

from hwmodel.errors import HwmodelError
from hwmodel.extraction.weights.classes import class_count, with_classes
from hwmodel.extraction.whatif.comparison import found_structure
from hwmodel.extraction.whatif.pruning import prune
from hwmodel.extraction.whatif.recipes import LayerRule, Recipe
from hwmodel.ir.operators import Operator
from hwmodel.ir.trace import Trace


def recipe_of(pruned: Trace, dense: Trace, *, source: str, image_size: int | None = None) -> Recipe:
    """How ``pruned`` differs from ``dense``: classes, structure, then the masks, patterns and number formats of single layers.

    ``prune(dense, recipe_of(pruned, dense, ...))`` costs what ``pruned`` costs, on every machine.

    Parameters
    ----------
    pruned, dense : traces of one architecture, batch and image size
    source : where the weights come from, for the reader of the recipe
    image_size : pixels of a side, where it is not the model's own

    Raises
    ------
    HwmodelError
        A difference that no recipe expresses.
    """
    rules = [rule for operator in pruned.operators if (rule := _rule(operator)) is not None]
    return _structure(pruned, dense).model_copy(
        update={"source": source, "remarks": "; ".join(pruned.notes) or None, "image_size": image_size, "layers": tuple(rules)}
    )


def beside_dense(narrowed: Trace, dense: Trace) -> Trace:
    """The trace of a structurally pruned model that knows the MACs of the dense one; with a note where no rule tells them."""
    try:
        pruned = prune(dense, _structure(narrowed, dense))
    except HwmodelError:
        return narrowed.replace(
            notes=(*narrowed.notes, "MACs are those of the narrowed model: no rule leads there from the dense one")
        )
    operators = tuple(
        operator.replace(dense_macs=twin.dense_macs) for operator, twin in zip(narrowed.operators, pruned.operators, strict=True)
    )
    return narrowed.replace(operators=operators, removed_macs=pruned.removed_macs)


def _structure(narrowed: Trace, dense: Trace) -> Recipe:
    """What is not a matter of masks: classes, heads, widths, removed parts."""
    classes = class_count(narrowed)
    classes = None if classes == class_count(dense) else classes
    sized = dense if classes is None else with_classes(dense, classes)
    rules = found_structure(_plain(sized), _plain(narrowed))
    return Recipe(model=dense.model, source="found in a model", classes=classes, encoder=rules)


def _rule(operator: Operator) -> LayerRule | None:
    """The entry that gives an operator its mask or pattern and its number formats; None where it has none of them."""
    fields = _sparsity(operator) | _formats(operator)
    return LayerRule.model_validate({"match": (glob.escape(operator.name),)} | fields) if fields else None


def _sparsity(operator: Operator) -> dict[str, object]:
    if operator.mask is not None:
        return {"mask": operator.mask}
    return {} if operator.sparsity is None else {"sparsity": operator.sparsity}


def _formats(operator: Operator) -> dict[str, object]:
    """Formats of an operator and its weights; the scales are told per row where rows share them evenly."""
    told = {"dtype": operator.dtype, "weight_dtype": operator.weight_dtype}
    fields: dict[str, object] = {name: dtype for name, dtype in told.items() if dtype is not None}
    if operator.scale_bytes:
        bits, rest = divmod(8 * operator.scale_bytes, operator.n)
        whole = {"group": operator.n * operator.k, "scale_bits": 8 * operator.scale_bytes}
        fields |= whole if rest else {"group": operator.k, "scale_bits": bits}
    return fields


def _plain(trace: Trace) -> Trace:
    """The trace without masks, patterns and number formats."""
    fields = {"mask": None, "sparsity": None, "dtype": None, "weight_dtype": None, "scale_bytes": 0}
    return trace.replace(operators=tuple(operator.replace(**fields) for operator in trace.operators))
