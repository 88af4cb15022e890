"""Token pruning of a trace: fewer patch tokens from some encoder block on, for the rest of the model.

Class, distillation and register tokens always stay. Refusals are ValueErrors that give the reason.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import takewhile

from hwmodel.extraction.whatif.rewriting import Node, Rewriting
from hwmodel.extraction.whatif.structure import PROJECTIONS, rescaled, reshaped, share
from hwmodel.extraction.whatif.token_steps import (
    Given,
    Merge,
    Select,
    Site,
    Step,
    given,
    merge,
    patches_after,
    proportional,
    select,
    unfused,
)
from hwmodel.ir.operators import Operator
from hwmodel.ir.trace import Trace


@dataclass(frozen=True)
class Tokens:
    """Tokens of one image in a trace: ``patches`` of the image and ``prefix`` others, each ``width`` values wide."""

    images: int
    patches: int
    prefix: int
    width: int

    @classmethod
    def of(cls, trace: Trace) -> Tokens:
        """Read the counts off the patch embedding and the attention of every block.

        Raises
        ------
        ValueError
            A model in which tokens cannot be dropped freely, with the reason.
        """
        embedding = [operator for operator in trace.operators if operator.role == "patch_embed" and operator.m]
        if not embedding:
            raise ValueError("no operator has the role 'patch_embed', so patch tokens cannot be told from others")
        projections = [op for op in trace.operators if op.role in PROJECTIONS and op.block is not None]
        scores = [op for op in trace.operators if op.role == "scores" and op.block is not None]
        if not scores or not projections:
            raise ValueError("no attention scores in the encoder blocks: attention is missing, or one whole operator")
        total = _common_count({op.m // trace.batch for op in projections}, {(op.m, op.n) for op in scores})
        patches = embedding[-1].m // trace.batch
        if patches > total:
            raise ValueError(f"the blocks see {total} tokens, fewer than the {patches} patches: patches were pooled or dropped")
        return cls(trace.batch, patches, total - patches, projections[0].k)

    @property
    def total(self) -> int:
        """All tokens of one image, before any is dropped."""
        return self.prefix + self.patches

    def left(self, count: int, present: int) -> int:
        """What becomes of a dimension of ``count`` while ``present`` patches are left."""
        return {self.total: self.prefix + present, self.patches: present}.get(count, count)


def _common_count(tokens: set[int], scores: set[tuple[int, int]]) -> int:
    """The number of tokens of all blocks; windows, pooled keys and counts that change on the way are refused."""
    listed = ", ".join(map(str, sorted(tokens)))
    if scores != {(count, count) for count in tokens}:
        pairs = ", ".join(f"{queries}x{keys}" for queries, keys in sorted(scores))
        raise ValueError(
            f"attention sees {pairs} (queries x keys) of {listed} tokens: tokens cannot be dropped from windows or pooled attention"
        )
    if len(tokens) > 1:
        raise ValueError(f"blocks see different numbers of tokens ({listed}): a hierarchical model, or tokens were dropped already")
    return min(tokens)


def reduce_tokens(trace: Trace, tokens: Tokens, steps: Mapping[int, Step]) -> Trace:
    """The trace with fewer tokens, and with the rows that score, pick or merge them.

    Parameters
    ----------
    tokens : of the same trace
    steps : by block index, what happens there; as :func:`hwmodel.extraction.whatif.token_rules.planned` checks it

    Raises
    ------
    ValueError
        An operator whose tokens cannot be told, or a block without attention to score by.
    """
    return _Reduction(trace, tokens).run(steps)


class _Reduction:
    """Walks the encoder blocks front to back with the tokens that are left."""

    def __init__(self, trace: Trace, tokens: Tokens) -> None:
        self._trace, self._tokens = trace, tokens
        self._edit = Rewriting(trace)
        self._present = tokens.patches
        self._falls: list[tuple[int, int]] = []
        self._sizes: Node | None = None
        self._unfused: set[int] = set()

    def run(self, steps: Mapping[int, Step]) -> Trace:
        """The new trace."""
        rows = [(row, op.block) for row, op in enumerate(self._trace.operators) if op.block is not None and not op.constant]
        begins = {block: row for row, block in reversed(rows)}
        for block in dict.fromkeys(block for _, block in rows):
            step = steps.get(block)
            if isinstance(step, Given):
                self._drop(begins[block], step)
            elif step is not None or self._sizes is not None:
                self._reduce(block, step)
        return self._edit.finish(self._resized())

    def _drop(self, row: int, step: Given) -> None:
        if step.count < self._present:
            given(self._edit, row, tokens=self._tokens.prefix + step.count, width=self._tokens.width)
            self._fall(row, step)

    def _reduce(self, block: int, step: Select | Merge | None) -> None:
        """A step between attention and MLP, and attention that knows the sizes of merged tokens."""
        if isinstance(step, Select) and step.is_idle(self._present):
            return
        if step == Merge(0) and self._sizes is None:
            return
        site = Site.of(self._trace, block, prefix=self._tokens.prefix, present=self._present, width=self._tokens.width)
        if self._sizes is not None:
            proportional(self._edit, site, self._sizes)
        if isinstance(step, Select):
            self._unfused.add(block)
            unfused(self._edit, site)
            select(self._edit, site, step)
        elif step is not None and step.pairs:
            self._sizes = merge(self._edit, site, step.pairs, self._sizes)
        if step is not None:
            self._fall(site.behind, step)

    def _fall(self, row: int, step: Step) -> None:
        self._present = patches_after(step, self._present)
        self._falls.append((row, self._present))

    def _resized(self) -> list[Operator]:
        """Every row of the trace on the tokens it sees."""
        falls, matrices = dict(self._falls), _score_matrices(self._trace)
        present, operators = self._tokens.patches, []
        for row, operator in enumerate(self._trace.operators):
            present = falls.get(row, present)
            unfused_here = operator.fused_in_source and operator.block in self._unfused
            whole = operator.replace(fused_in_source=False) if unfused_here else operator
            operators.append(_with_tokens(whole, self._tokens, present, matrices.get(row)))
        return operators


def _score_matrices(trace: Trace) -> dict[int, Operator]:
    """Rows between scores and context, which have one value per query and key, with the scores they belong to."""
    inside: dict[int, Operator] = {}
    for row, operator in enumerate(trace.operators):
        if operator.role == "scores":
            rest = enumerate(trace.operators[row + 1 :], row + 1)
            inside.update((index, operator) for index, _ in takewhile(lambda item: item[1].role != "context", rest))
    return inside


def _with_tokens(operator: Operator, tokens: Tokens, present: int, scores: Operator | None) -> Operator:
    """``operator`` on the tokens that are left; ``scores`` where it works on the score matrix of these."""
    if present == tokens.patches or operator.constant:
        return operator
    if operator.family == "product":
        return _product(operator, tokens, present)
    if scores is not None:
        return _matrix(operator, tokens, present, scores)
    return _rows(operator, tokens, present)


def _product(operator: Operator, tokens: Tokens, present: int) -> Operator:
    """Linear layers change in ``m``, scores in ``m`` and ``n``, context in ``m`` and ``k``."""
    if not operator.parameter:
        names = ("m", "k") if operator.role == "context" else ("m", "n")
        return reshaped(operator, **{name: tokens.left(getattr(operator, name), present) for name in names})
    count, rest = divmod(operator.m, tokens.images)
    if operator.block is not None and (rest or count not in {tokens.total, tokens.patches, 1}):
        raise ValueError(f"{operator.name}: has {operator.m} rows, expected {tokens.images} x {tokens.total} tokens")
    return operator if rest else reshaped(operator, m=tokens.images * tokens.left(count, present))


def _matrix(operator: Operator, tokens: Tokens, present: int, scores: Operator) -> Operator:
    """Softmax and what else has one value per query and key."""
    keys = tokens.left(scores.n, present)
    old, new = scores.m * scores.n, tokens.left(scores.m, present) * keys
    smaller = rescaled(operator, old, new)
    bias = operator.weight_elements if operator.weight_elements % old else operator.weight_elements // old * new
    return smaller.replace(weight_elements=bias, cols=keys if operator.cols == scores.n else operator.cols)


def _rows(operator: Operator, tokens: Tokens, present: int) -> Operator:
    """Any other operator: it has tokens where its values are a multiple of their number, which blocks insist on.

    Outside the blocks a multiple of whole tokens is asked for, so that a classifier's values are left alone.
    """
    channels = 1 if operator.block is not None else tokens.width
    for count in (tokens.total, tokens.patches):
        if operator.elements and operator.elements % (tokens.images * count * channels) == 0:
            return _fewer(operator, tokens.images, count, tokens.left(count, present))
    if operator.block is not None:
        raise ValueError(f"{operator.name}: {operator.elements} values are no multiple of the {tokens.total} tokens")
    return operator


def _fewer(operator: Operator, images: int, old: int, new: int) -> Operator:
    """``new`` of ``old`` tokens an image. What all tokens share stays: a mean over them, a scale per channel."""
    smaller = rescaled(operator.replace(output_elements=0), images * old, images * new)
    written, stored = operator.output_elements, operator.weight_elements
    if written * old != operator.elements:
        written = share(operator, written, images * old, images * new)
    if operator.family == "elementwise" and stored % old == 0 and stored * images * old != operator.elements:
        stored = stored // old * new
    return smaller.replace(output_elements=written, weight_elements=stored)
