"""What structural pruning leads from one trace to another: rules for a recipe, found block by block, then checked."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import zip_longest

from hwmodel.errors import HwmodelError, RecipeError
from hwmodel.extraction.whatif.pruning import prune
from hwmodel.extraction.whatif.recipes import EncoderRule, Recipe
from hwmodel.extraction.whatif.removal import ENDS, Part
from hwmodel.ir.operators import Operator
from hwmodel.ir.trace import Trace

_SHAPE = (
    "kind", "role", "batch", "m", "k", "n", "elements", "cols", "input_elements", "output_elements", "weight_elements",
    "parameter", "constant", "causal", "fused_in_source",
)  # fmt: skip
"""What structural pruning decides; names, block numbers, formats and masks are not among it."""

Blocks = Mapping[str, list[Operator]]


def found_structure(dense: Trace, narrowed: Trace) -> tuple[EncoderRule, ...]:
    """The ``[[encoder]]`` rules that turn the trace of a dense model into that of its structurally pruned version.

    Parameters
    ----------
    dense, narrowed : traces of the same architecture, batch and image size

    Returns
    -------
    tuple of EncoderRule
        One per run of blocks that were pruned alike. Which heads stayed cannot be told from shapes: they are counts.
        Blocks are matched by module path; of a list that was numbered anew, the last ones count as removed.

    Raises
    ------
    HwmodelError
        A difference that no rule expresses: the first operator that differs is named.
    """
    if dense.batch != narrowed.batch:
        raise HwmodelError(f"{narrowed.model}: traced for {narrowed.batch} images, the dense model for {dense.batch}")
    before, after = _blocks(dense), _blocks(narrowed)
    changes = {_number(operators): _change(operators, after.get(path, []), dense.batch) for path, operators in before.items()}
    rules = tuple(EncoderRule.model_validate({"blocks": blocks, **fields}) for blocks, fields in _runs(changes))
    _check(dense, narrowed, rules)
    return rules


def _blocks(trace: Trace) -> dict[str, list[Operator]]:
    """Operators of each encoder block, by the module path that they share."""
    members: dict[int, list[Operator]] = {}
    for operator in trace.operators:
        if operator.block is not None:
            members.setdefault(operator.block, []).append(operator)
    return {_shared_path([operator.name for operator in block]): block for block in members.values()}


def _shared_path(names: Sequence[str]) -> str:
    """The longest dotted path that all names begin with and that ends in a number, as entries of lists do."""
    parts = [name.split(".") for name in names]
    shared = [column[0] for column in zip(*parts, strict=False)]
    depth = next((at for at, column in enumerate(zip(*parts, strict=False)) if len(set(column)) > 1), len(shared))
    while depth and not shared[depth - 1][-1:].isdigit():
        depth -= 1
    return ".".join(shared[:depth])


def _number(operators: Sequence[Operator]) -> int:
    return operators[0].block or 0


def _change(dense: Sequence[Operator], narrowed: Sequence[Operator], images: int) -> dict[str, object]:
    """Fields of the rule for one block; none where nothing changed."""
    lost = [part for part, (_, last) in ENDS.items() if _first(dense, last) is not None and _first(narrowed, last) is None]
    names = {operator.name for operator in narrowed}
    kept = {part: _norm_before(dense, part) in names for part in lost}
    identity, removed = (tuple(part for part in lost if kept[part] is stays) for stays in (True, False))
    gone: dict[str, object] = {field: parts for field, parts in (("remove", removed), ("identity", identity)) if parts}
    before, after = _sizes(dense, images), _sizes(narrowed, images)
    return gone | {name: size for name, size in after.items() if size != before.get(name)}


def _norm_before(operators: Sequence[Operator], part: Part) -> str:
    """Name of the last normalisation ahead of a part."""
    start = next(row for row, operator in enumerate(operators) if operator.role in ENDS[part][0])
    norms = [operator.name for operator in operators[:start] if operator.family == "rowwise" and operator.kind != "softmax"]
    return norms[-1] if norms else ""


def _first(operators: Sequence[Operator], role: str) -> Operator | None:
    return next((operator for operator in operators if operator.role == role), None)


def _sizes(operators: Sequence[Operator], images: int) -> dict[str, int]:
    """Fields of a rule as the block has them."""
    scores, context, last = (_first(operators, role) for role in ("scores", "context", "fc2"))
    found = {} if scores is None or context is None else {"heads": scores.batch // images, "qk": scores.k, "v": context.n}
    return found | ({} if last is None else {"mlp": last.k})


def _runs(changes: Mapping[int, dict[str, object]]) -> Iterator[tuple[str, dict[str, object]]]:
    """Blocks that changed alike as one text of indices, in the order of their first block."""
    groups: list[tuple[dict[str, object], list[int]]] = []
    for block, fields in changes.items():
        alike = next((blocks for other, blocks in groups if other == fields), None)
        if alike is not None:
            alike.append(block)
        elif fields:
            groups.append((fields, [block]))
    for fields, blocks in groups:
        yield _spans(blocks), fields


def _spans(blocks: Sequence[int]) -> str:
    """
    >>> _spans([0, 1, 2, 5])
    '0-2,5'
    """
    starts = [block for block in blocks if block - 1 not in blocks]
    ends = [block for block in blocks if block + 1 not in blocks]
    return ",".join(str(start) if start == end else f"{start}-{end}" for start, end in zip(starts, ends, strict=True))


def _check(dense: Trace, narrowed: Trace, rules: tuple[EncoderRule, ...]) -> None:
    """Apply the rules to the dense trace and compare row by row."""
    where = narrowed.model
    try:
        pruned = prune(dense, Recipe(model=dense.model, source="found in a model", encoder=rules))
    except RecipeError as error:
        raise HwmodelError(f"{where}: its structure cannot be written as a recipe ({error})") from error
    for expected, found in zip_longest(pruned.operators, narrowed.operators):
        if expected is None or found is None or _shape(expected) != _shape(found):
            name = (found or expected).name
            raise HwmodelError(f"{where}: its structure cannot be written as a recipe: {name}: {_difference(expected, found)}")


def _shape(operator: Operator) -> list[object]:
    return [getattr(operator, field) for field in _SHAPE]


def _difference(expected: Operator | None, found: Operator | None) -> str:
    if expected is None or found is None:
        return "the pruned dense model has no such row" if expected is None else "the model has no such row"
    field = next(field for field in _SHAPE if getattr(expected, field) != getattr(found, field))
    return f"{field} is {getattr(found, field)}, rules for heads and MLPs give {getattr(expected, field)}"
