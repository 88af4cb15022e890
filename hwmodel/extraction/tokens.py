"""Token pruning of a trace: fewer patch tokens from some encoder block on, for the rest of the model.

Class, distillation and register tokens always stay. Refusals are ValueErrors that give the reason.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise, takewhile

from hwmodel.extraction.structure import PROJECTIONS, rescaled, reshaped, share
from hwmodel.ir.operators import Operator, movement
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


def drop_tokens(trace: Trace, tokens: Tokens, patches_by_block: Mapping[int, int]) -> Trace:
    """The trace with fewer patch tokens; one ``gather`` is inserted wherever the count falls.

    Parameters
    ----------
    tokens : of the same trace
    patches_by_block : patch tokens that enter a block, for every block index; must not rise

    Raises
    ------
    ValueError
        An operator whose tokens cannot be told.
    """
    present = tokens.patches
    operators: list[Operator] = []
    cuts: list[int] = []
    matrices = _score_matrices(trace)
    for row, operator in enumerate(trace.operators):
        wanted = present if operator.block is None or operator.constant else patches_by_block[operator.block]
        if wanted < present:
            present = wanted
            cuts.append(row)
            operators.append(_gather(trace, operator, tokens, present))
        operators.append(_with_tokens(operator, tokens, present, matrices.get(row)))
    return trace.replace(operators=tuple(operators), edges=_rerouted(trace, cuts)) if cuts else trace


def _score_matrices(trace: Trace) -> dict[int, Operator]:
    """Rows between scores and context, which have one value per query and key, with the scores they belong to."""
    inside: dict[int, Operator] = {}
    for row, operator in enumerate(trace.operators):
        if operator.role == "scores":
            rest = enumerate(trace.operators[row + 1 :], row + 1)
            inside.update((index, operator) for index, _ in takewhile(lambda item: item[1].role != "context", rest))
    return inside


def _gather(trace: Trace, first: Operator, tokens: Tokens, present: int) -> Operator:
    """The row that picks the tokens that stay, ahead of the ``first`` operator of a block."""
    names = [operator.name.split(".") for operator in trace.operators if operator.block == first.block]
    same = takewhile(lambda parts: len(set(parts)) == 1, zip(*names, strict=False))
    prefix = ".".join(parts[0] for parts in same) or f"block_{first.block}"
    size = tokens.images * (tokens.prefix + present) * tokens.width
    return movement("gather", elements=size, name=f"{prefix}.token_gather", block=first.block, dtype=first.dtype)


def _rerouted(trace: Trace, cuts: list[int]) -> tuple[tuple[int, int], ...]:
    """Edges of the longer trace: what crosses a cut goes through its gather, unless it is input-independent."""
    edges: set[tuple[int, int]] = set()
    for producer, consumer in trace.edges:
        crossed = [] if trace.operators[producer].constant else [cut for cut in cuts if producer < cut <= consumer]
        gathers = [cut + cuts.index(cut) for cut in crossed]
        path = [_moved(producer, cuts), *gathers, _moved(consumer, cuts)]
        edges.update(pairwise(path))
    return tuple(sorted(edges))


def _moved(row: int, cuts: list[int]) -> int:
    return row + sum(cut <= row for cut in cuts)


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
