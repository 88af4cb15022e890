"""The rows with which an encoder block drops or merges tokens, as :mod:`hwmodel.pruning.tokens` executes them."""

from __future__ import annotations

from dataclasses import dataclass

from hwmodel.extraction.whatif.rewriting import Node, Rewriting
from hwmodel.extraction.whatif.structure import only
from hwmodel.ir.operators import Operator, elementwise, matmul, movement, reduction
from hwmodel.ir.trace import Trace


@dataclass(frozen=True)
class Given:
    """``count`` patch tokens enter the block; what says which ones is not part of the model."""

    count: int


@dataclass(frozen=True)
class Select:
    """``count`` patch tokens leave the block's attention, scored by the class token's; see ``topk_tokens``.

    ``fused`` adds one token for the others; ``threshold`` counts how many are above a threshold first.
    """

    count: int
    fused: bool = False
    threshold: bool = False

    def is_idle(self, present: int) -> bool:
        """Whether nothing is scored: a fixed count that keeps all of ``present`` tokens."""
        return self.count == present and not self.threshold


@dataclass(frozen=True)
class Merge:
    """``pairs`` pairs of patch tokens become one token each behind the block's attention; see ``merge_tokens``."""

    pairs: int


Step = Given | Select | Merge


def patches_after(step: Step, present: int) -> int:
    """Tokens beside the prefix that a step leaves of ``present``; merged and fused ones count."""
    if isinstance(step, Merge):
        return present - step.pairs
    if isinstance(step, Given) or step.is_idle(present):
        return step.count
    return step.count + step.fused


@dataclass(frozen=True)
class Site:
    """One encoder block where tokens are dropped: its rows, and the counts of one image."""

    block: int
    path: str
    first: int
    scores: int
    softmax: int
    behind: int
    images: int
    prefix: int
    present: int
    width: int
    heads: int
    depth: int
    dtype: str | None

    @classmethod
    def of(cls, trace: Trace, block: int, *, prefix: int, present: int, width: int) -> Site:
        """Find the block's attention and the residual addition behind it.

        Raises
        ------
        ValueError
            A block without them.
        """
        rows = [row for row, operator in enumerate(trace.operators) if operator.block == block and not operator.constant]
        mine = [trace.operators[row] for row in rows]
        scores, context, proj = (only(mine, role) for role in ("scores", "context", "proj"))
        softmax = [place for place in range(scores, context) if mine[place].kind == "softmax"]
        added = [place for place in range(proj, len(mine)) if mine[place].kind == "add"]
        if not softmax or not added:
            raise ValueError(f"block {block} has no softmax, or no residual addition behind its attention")
        return cls(
            block, block_path(trace, block), rows[0], rows[scores], rows[softmax[0]], rows[added[0]] + 1, trace.batch, prefix,
            present, width, mine[scores].batch // trace.batch, mine[scores].k, mine[0].dtype,
        )  # fmt: skip

    @property
    def total(self) -> int:
        """Tokens of one image that enter the block."""
        return self.prefix + self.present


def block_path(trace: Trace, block: int | None) -> str:
    """What the names of all rows of a block begin with."""
    names = [operator.name.split(".") for operator in trace.operators if operator.block == block]
    shared = 0
    while all(len(parts) > shared for parts in names) and len({parts[shared] for parts in names}) == 1:
        shared += 1
    return ".".join(names[0][:shared]) or f"block_{block}"


class _Rows:
    """Inserts the rows of one step behind a block's attention."""

    def __init__(self, edit: Rewriting, site: Site, step: str) -> None:
        self._edit, self._site, self._step = edit, site, step

    def add(self, operator: Operator, *reads: Node) -> Node:
        """A row with the block, number format and name of the step."""
        name = f"{self._site.path}.{self._step}.{operator.kind}"
        return self._edit.insert(
            self._site.behind, operator.replace(name=name, block=self._site.block, dtype=self._site.dtype), *reads
        )  # fmt: skip

    def value(self, kind: str, elements: int, read: int, *reads: Node) -> Node:
        """An elementwise row."""
        return self.add(elementwise(kind, elements=elements).replace(input_elements=read), *reads)

    def moved(self, kind: str, elements: int, read: int, *reads: Node) -> Node:
        """A movement row."""
        return self.add(movement(kind, elements=elements).replace(input_elements=read), *reads)

    def reduced(self, kind: str, inputs: int, outputs: int, *reads: Node) -> Node:
        """A reduction."""
        return self.add(reduction(kind, inputs=inputs, outputs=outputs), *reads)

    def picked(self, count: int, width: int, *reads: Node) -> Node:
        """``count`` tokens of ``width`` values by an index."""
        return self.moved("gather", count * width, count * width + count, *reads)


def given(edit: Rewriting, row: int, *, tokens: int, width: int) -> None:
    """The gather of the ``tokens`` that stay, ahead of the ``row`` that begins a block; one index serves all images."""
    first = edit.trace.operators[row]
    size = edit.trace.batch * tokens * width
    name = f"{block_path(edit.trace, first.block)}.token_gather"
    gather = movement("gather", elements=size, name=name, block=first.block, dtype=first.dtype)
    edit.cut(row, edit.insert(row, gather.replace(input_elements=size + tokens), *edit.stream(row)))


def unfused(edit: Rewriting, site: Site) -> None:
    """The queries' scaling, which a fused kernel would take over, where the trace does not have it yet."""
    sources = edit.producers(site.scores)
    if any(edit.trace.operators[row].kind in {"mul", "div"} for row in sources):
        return
    size = site.images * site.heads * site.total * site.depth
    scores = edit.trace.operators[site.scores]
    group = scores.attention_group
    name = f"{scores.name.rpartition('.')[0]}.mul"
    row = elementwise("mul", elements=size, name=name, block=site.block, dtype=site.dtype, attention_group=group)
    scaled = edit.insert(site.scores, row, sources[0])
    edit.detour(sources[0], site.scores, scaled, once=len(sources) == 1)


def select(edit: Rewriting, site: Site, step: Select) -> None:
    """Scores from the attention weights, the best tokens, and the sequence put together again."""
    rows = _Rows(edit, site, "select")
    images, present, count, width = site.images, site.present, step.count, site.width
    (stream,) = edit.stream(site.behind)
    scores = rows.reduced("mean", images * site.heads * present, images * present, site.softmax)
    if step.threshold:
        _counted(rows, images, present, scores)
    ordered = movement("sort" if step.fused else "topk", elements=images * present)
    written = 2 * images * (present if step.fused else count)
    order = rows.add(ordered.replace(cols=present, output_elements=written), scores)
    parts = [stream, rows.picked(images * count, width, stream, order)]
    if step.fused:
        rest = images * (present - count)
        others = rows.picked(rest, width, stream, order)
        weighted = rows.value("mul", rest * width, rest * width + rest, order, others)
        parts.append(rows.reduced("sum", rest * width, images * width, weighted))
    size = images * (site.prefix + count + step.fused) * width
    edit.cut(site.behind, rows.moved("concat", size, size, *parts))


def _counted(rows: _Rows, images: int, present: int, scores: Node) -> None:
    """How many scores are above the threshold, most of any image, told to the host."""
    above = rows.value("gt", images * present, images * present, scores)
    each = rows.reduced("sum", images * present, images, above)
    most = rows.value("clamp", 1, 1, rows.reduced("max", images, 1, each))
    rows.moved("copy", 1, 1, most)


def merge(edit: Rewriting, site: Site, pairs: int, sizes: Node | None) -> Node:
    """Bipartite soft matching and two sums over it, of sizes and of tokens; returns the row of the new sizes."""
    rows = _Rows(edit, site, "merge")
    images, tokens, width = site.images, site.total, site.width
    (stream,) = edit.stream(site.behind)
    if sizes is None:
        sizes = rows.add(movement("fill", elements=images * tokens, constant=True).replace(input_elements=0))
    keys = max(row for row in edit.producers(site.scores) if edit.trace.operators[row].kind not in {"mul", "div"})
    first = (site.present + 1 - site.prefix % 2) // 2
    second = site.present - first
    values = images * tokens * site.depth
    metric = rows.reduced("mean", values * site.heads, values, keys)
    norm = rows.reduced("sum", values, images * tokens, metric)
    unit = rows.value("div", values, values + images * tokens, metric, norm)
    product = matmul(batch=images, m=first, k=site.depth, n=second, parameter=False, dense_macs=0)
    best = rows.reduced("max", images * first * second, 2 * images * first, rows.add(product, unit))
    order = rows.add(movement("sort", elements=images * first).replace(cols=first), best)
    target = rows.picked(images * pairs, 1, best, order)

    def summed(values: Node, width: int) -> Node:
        """Prefix, the first set's rest, and the second set with the matched tokens added."""
        moved = rows.picked(images * pairs, width, values, order)
        into = images * second * width
        added = rows.moved("scatter", into, into + images * pairs + images * pairs * width, values, target, moved)
        rest = rows.picked(images * (first - pairs), width, values, order)
        size = images * (tokens - pairs) * width
        return rows.moved("concat", size, size, values, added, rest)

    merged = summed(sizes, 1)
    weighted = rows.value("mul", images * tokens * width, images * tokens * (width + 1), stream, sizes)
    left = images * (tokens - pairs)
    edit.cut(site.behind, rows.value("div", left * width, left * (width + 1), summed(weighted, width), merged))
    return merged


def proportional(edit: Rewriting, site: Site, sizes: Node) -> None:
    """The logarithm of the sizes, added to the scores."""
    tokens, rows = site.images * site.total, edit.trace.operators
    scores = rows[site.scores]
    log = elementwise("log", elements=tokens, name=f"{site.path}.log", block=site.block, dtype=site.dtype)
    bias = edit.insert(site.first, log, sizes)
    matrix = site.images * site.heads * site.total * site.total
    add = elementwise(
        "add", elements=matrix, name=f"{scores.name.rpartition('.')[0]}.add", block=site.block, dtype=site.dtype,
        attention_group=scores.attention_group, fused_in_source=scores.fused_in_source,
    ).replace(input_elements=matrix + tokens)  # fmt: skip
    before = edit.producers(site.softmax)[-1]
    added = edit.insert(site.softmax, add, before, bias)
    edit.detour(before, site.softmax, added)
