"""The sparsity of stored weights becomes masks of a trace's operators, with a finding for each weight."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

import numpy as np

from hwmodel.errors import CheckpointError
from hwmodel.extraction.weights.block_shapes import block_mask, explaining_mask, follows_two_of_four
from hwmodel.extraction.weights.stored_weights import StoredWeights, WeightContent
from hwmodel.ir.findings import WeightFinding, WeightForm
from hwmodel.ir.masks import BlockMask, BoolArray, Shape
from hwmodel.ir.operators import Operator
from hwmodel.ir.trace import Trace

TWO_OF_FOUR: Final = "2:4"


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightUse:
    """Which weight an operator multiplies by.

    Parameters
    ----------
    weight : its name in a plain model
    computed : it is computed from the stored one in a way that need not keep zeros, as weight standardisation does
    """

    weight: str
    computed: bool = False


@dataclass(frozen=True, slots=True)
class _Sparsity:
    """What one operator can use of the zeros of its weight."""

    mask: BlockMask | None = None
    pattern: str | None = None
    reason: str = ""


def with_sparsity(trace: Trace, uses: Mapping[str, WeightUse], stored: StoredWeights, block: Shape | None = None) -> Trace:
    """The trace with the masks that stored weights have, and a finding for every product by one of them.

    Parameters
    ----------
    trace : of the model that the weights belong to
    uses : by operator name, the weight it multiplies by
    block : (out, in) of the blocks that are pruned whole; None detects them, weight by weight

    Raises
    ------
    CheckpointError
        NaN among the weights, a mask that is none, or a ``block`` larger than a weight that has zeros.
    """
    operators = {operator.name: operator for operator in trace.operators}
    readers: dict[str, list[Operator]] = {}
    for name, use in uses.items():
        if operators[name].family == "product" and operators[name].parameter and use.weight in stored.shapes:
            readers.setdefault(use.weight, []).append(operators[name])
    findings: dict[str, WeightFinding] = {}
    for weight in stored.shapes:
        if weight not in readers:
            stored.check_numbers(weight)
            continue
        content = stored.read(weight)
        for operator, part in _parts(readers[weight], content):
            if uses[operator.name].computed or part is None:
                findings[operator.name] = _unknown(
                    operator, "it does not multiply by the stored weight as it is, so zeros need not survive"
                )
                continue
            with_name = f"{stored.where}: {operator.name}"
            operators[operator.name], findings[operator.name] = _read(operator, part, block, with_name)
    found = tuple(findings[name] for name in operators if name in findings)
    return trace.replace(operators=tuple(operators.values()), findings=found)


def _parts(readers: Sequence[Operator], content: WeightContent) -> list[tuple[Operator, WeightContent | None]]:
    """The (n, k) part of a weight that each of its readers multiplies by; None where shapes do not tell."""
    rows = content.nonzero.reshape(content.nonzero.shape[0], -1) if content.nonzero.ndim else content.nonzero.reshape(1, 1)
    ends = np.cumsum([operator.n for operator in readers]).tolist()
    if len(readers) > 1 and ends[-1] == rows.shape[0] and all(operator.k == rows.shape[1] for operator in readers):
        return [(one, _matrix(content, one, slice(end - one.n, end))) for one, end in zip(readers, ends, strict=True)]
    return [(operator, _matrix(content, operator, slice(None))) for operator in readers]


def _matrix(content: WeightContent, operator: Operator, rows: slice) -> WeightContent | None:
    """The rows of a weight as the operator's (batch x n, k); None where it has another shape."""
    shape = (operator.batch * operator.n, operator.k)
    arrays = [None if one is None else _oriented(one[rows], shape) for one in (content.nonzero, content.pattern)]
    nonzero, pattern = arrays
    if nonzero is None:
        return None
    return WeightContent(content.form, nonzero, pattern, content.block)


def _oriented(values: BoolArray, shape: Shape) -> BoolArray | None:
    """``values`` as a matrix (out, in); a weight stored as (in, out) is turned round."""
    matrix = values.reshape(values.shape[0] if values.ndim else 1, -1)
    if matrix.shape == shape:
        return matrix
    return np.ascontiguousarray(matrix.T) if matrix.T.shape == shape else None


def _unknown(operator: Operator, reason: str) -> WeightFinding:
    weights = operator.batch * operator.n * operator.k
    return WeightFinding(
        operator=operator.name, form="computed", weights=weights, kept_weights=weights, block_weights=weights,
        macs=operator.macs, reason=reason,
    )  # fmt: skip


def _read(operator: Operator, content: WeightContent, block: Shape | None, where: str) -> tuple[Operator, WeightFinding]:
    """One operator with the sparsity of its weight, and the finding about it."""
    if content.form == "computed":
        return operator, _unknown(operator, "a parametrization computes its weight, so zeros need not survive")
    nonzero = content.nonzero
    kept = int(np.count_nonzero(nonzero))
    finding = partial(WeightFinding, operator=operator.name, weights=nonzero.size, kept_weights=kept, macs=operator.macs)
    if kept == nonzero.size:
        form: WeightForm = "dense" if content.form == "zeros" else content.form
        return operator, finding(form=form, block_weights=kept, reason="no weight is zero")
    found = _usable(operator, content, block, where)
    left = nonzero.size
    if found.mask is not None:
        left = int(found.mask.kept_weights)
    elif found.pattern is not None:
        left = nonzero.size // 2
    changed = operator if left == nonzero.size else operator.replace(mask=found.mask, sparsity=found.pattern)
    return changed, finding(
        form=TWO_OF_FOUR if found.pattern else content.form,
        block=found.mask.block if found.mask is not None else None,
        block_weights=left,
        reason=found.reason,
    )


def _usable(operator: Operator, content: WeightContent, block: Shape | None, where: str) -> _Sparsity:
    """Blocks or the pattern that explain the zeros of a weight."""
    if operator.batch > 1:
        return _Sparsity(reason="a grouped convolution has one weight per group: no blocks of it are skipped")
    if content.form == TWO_OF_FOUR:
        return _Sparsity(pattern=TWO_OF_FOUR)
    zeros = content.nonzero if content.pattern is None else content.pattern
    asked = block or content.block
    mask = _given(zeros, asked, where) if asked is not None else explaining_mask(zeros)
    empty = mask is not None and mask.kept_blocks < mask.total_blocks
    narrow = mask is not None and mask.block[1] < 4 and mask.block[0] < operator.n
    if (narrow or not empty) and follows_two_of_four(content.nonzero):
        return _Sparsity(pattern=TWO_OF_FOUR)
    if empty:
        return _Sparsity(mask=mask)
    size = content.nonzero.size
    count = size - np.count_nonzero(content.nonzero)
    blocks = "no block shape explains them" if mask is None else f"no {mask.block[0]}x{mask.block[1]} block is empty"
    return _Sparsity(reason=f"{count} of {size} weights are zero ({count / size:.1%}), but scattered: {blocks}")


def _given(zeros: BoolArray, block: Shape, where: str) -> BlockMask:
    try:
        return block_mask(zeros, block)
    except ValueError as error:
        raise CheckpointError(f"{where}: {error}") from error
