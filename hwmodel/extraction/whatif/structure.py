"""Structural pruning of one encoder block: fewer or narrower heads, a narrower MLP. Weights shrink; no mask is involved.

Every function takes the operators of one block and returns as many, in the same order. What keeps everything comes
back as it was, the very same objects. Refusals are ValueErrors that give the reason.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from hwmodel.ir.operators import Operator

Operators = Sequence[Operator]
Edges = Sequence[tuple[int, int]]
PROJECTIONS = frozenset({"qkv", "q", "k", "v", "qk", "kv"})
"""Roles of the linears that make queries, keys and values: one for all, or several."""

_COUNTS = ("elements", "input_elements", "output_elements")


def positions(operators: Operators, *roles: str) -> list[int]:
    """Rows of the operators that have one of these roles."""
    return [row for row, operator in enumerate(operators) if operator.role in roles]


def only(operators: Operators, role: str) -> int:
    """Row of the one operator with this role, or ValueError."""
    found = positions(operators, role)
    if len(found) != 1:
        whole = " (attention is one whole operator here)" if any(op.family == "attention" for op in operators) else ""
        raise ValueError(f"expected one operator with role {role!r}, found {len(found) or 'none'}{whole}")
    return found[0]


def reshaped(operator: Operator, **dimensions: int) -> Operator:
    """A product with other ``batch, m, k, n``: its counts follow, and it remembers the MACs of the dense one.

    Values read or stored beyond the factors themselves stay, but for a bias, which follows ``n``.
    """
    old = {name: getattr(operator, name) for name in ("batch", "m", "k", "n")}
    new = old | dimensions
    if new == old:
        return operator
    if operator.mask is not None and (new["n"], new["k"]) != operator.mask.shape:
        raise ValueError(f"{operator.name} carries a block mask already; prune its shape first, then its blocks")
    counts = {"input_elements": _read(operator, new) - _read(operator, old), "output_elements": _written(new) - _written(old)}
    changed = {name: getattr(operator, name) + more for name, more in counts.items()}
    return operator.replace(**new, **changed, weight_elements=_stored(operator, old, new), dense_macs=operator.macs)


def _read(operator: Operator, size: Mapping[str, int]) -> int:
    right = 0 if operator.parameter else size["k"] * size["n"]
    return size["batch"] * (size["m"] * size["k"] + right)


def _written(size: Mapping[str, int]) -> int:
    return size["batch"] * size["m"] * size["n"]


def _stored(operator: Operator, old: Mapping[str, int], new: Mapping[str, int]) -> int:
    if not operator.weight_elements:
        return 0
    weight, smaller = (size["batch"] * size["k"] * size["n"] for size in (old, new))
    return smaller + (operator.weight_elements - weight) // old["n"] * new["n"]


def rescaled(operator: Operator, old: int, new: int) -> Operator:
    """An operator that is no product with ``new`` of ``old`` parts of its values; the length of its rows stays."""
    counts = {name: share(operator, getattr(operator, name), old, new) for name in _COUNTS}
    return operator.replace(**counts)


def share(operator: Operator, count: int, old: int, new: int) -> int:
    """``count * new / old``; what does not divide and is no multiple of the operator's own values stays (an index, say)."""
    extra = count % operator.elements if count % old and operator.elements else 0
    parts, rest = divmod(count - extra, old)
    if rest:
        raise ValueError(f"{operator.name}: {count} values do not divide by {old}, so what is left of them is unknown")
    return parts * new + extra


def _narrowed(operator: Operator, old: int, new: int, width: int) -> Operator:
    """``rescaled``; rows (and their parameters) of ``width`` values shrink as well."""
    smaller = rescaled(operator, old, new)
    if operator.cols != width:
        return smaller
    return smaller.replace(cols=width // old * new, weight_elements=operator.weight_elements // old * new)


def _between(operators: Operators, first: int, last: int, change: tuple[int, int, int]) -> dict[int, Operator]:
    """What lies strictly between two rows, with ``new`` of ``old`` groups of ``width`` channels (``change``)."""
    changed = {}
    for row in range(first + 1, last):
        operator = operators[row]
        if operator.family in {"product", "attention"}:
            raise ValueError(f"{operator.name}: a {operator.kind} that mixes channels here cannot be narrowed")
        changed[row] = _narrowed(operator, *change)
    return changed


@dataclass(frozen=True)
class _Attention:
    """Where one encoder block computes its attention, over how many heads, and how wide one is: ``qk`` and ``v``."""

    projections: list[int]
    scores: int
    context: int
    proj: int
    heads: int
    qk: int
    v: int

    @property
    def width(self) -> int:
        """Values of all heads side by side."""
        return self.heads * self.v

    @classmethod
    def of(cls, operators: Operators, images: int) -> _Attention:
        """Find the parts. Heads are score products per image, where one product sees all tokens."""
        scores, context, proj = (only(operators, role) for role in ("scores", "context", "proj"))
        projections = positions(operators, *PROJECTIONS)
        if not projections:
            raise ValueError("expected an operator with role 'qkv', found none")
        first, tokens = operators[scores], operators[projections[0]].m // images
        if first.m != tokens:
            raise ValueError(
                f"one attention product has {first.m} rows, the block {tokens} tokens: "
                "heads of windowed or channel attention are not modelled"
            )
        heads, rest = divmod(first.batch, images)
        found = cls(projections, scores, context, proj, heads, qk=first.k, v=operators[context].n)
        if rest or not heads * first.k or operators[proj].k != found.width:
            raise ValueError("the widths of scores and proj are no multiples of one number of heads")
        wrong = [operators[row] for row in projections if operators[row].n != found.projected(operators[row].role)]
        if wrong:
            raise ValueError(f"{wrong[0].name} gives {wrong[0].n} values, {heads} heads take {found.projected(wrong[0].role)}")
        return found

    def projected(self, role: str) -> int:
        """Width of a projection that makes the letters of ``role`` for all heads."""
        return self.heads * sum(self.v if letter == "v" else self.qk for letter in role)


def keep_heads(operators: Operators, keep: int | Sequence[int], *, images: int) -> list[Operator]:
    """One encoder block with fewer attention heads.

    Parameters
    ----------
    operators : the operators of the block
    keep : heads that stay, as a count or as indices (which ones does not change any shape)
    images : images of one forward pass

    Raises
    ------
    ValueError
        No such heads, or attention of a form in which heads cannot be told apart.
    """
    attention = _Attention.of(operators, images)
    kept = _kept_heads(keep, attention.heads)
    if kept == attention.heads:
        return list(operators)
    changes = _between_parts(operators, attention, kept)
    for row in (attention.scores, attention.context):
        changes[row] = reshaped(operators[row], batch=operators[row].batch // attention.heads * kept)
    for row in attention.projections:
        changes[row] = reshaped(operators[row], n=operators[row].n // attention.heads * kept)
    changes[attention.proj] = reshaped(operators[attention.proj], k=attention.width // attention.heads * kept)
    return _updated(operators, changes)


def _kept_heads(keep: int | Sequence[int], heads: int) -> int:
    beyond = keep > heads if isinstance(keep, int) else max(keep) >= heads
    if beyond:
        raise ValueError(f"found {keep}, but the block has {heads} heads (0-{heads - 1})")
    return keep if isinstance(keep, int) else len(keep)


def _between_parts(operators: Operators, attention: _Attention, kept: int) -> dict[int, Operator]:
    """Everything between projections and proj that is neither of the two products."""
    change = (attention.heads, kept, attention.width)
    whole_rows = (attention.heads, kept, 0)
    return (
        _between(operators, max(attention.projections), attention.scores, change)
        | _between(operators, attention.scores, attention.context, whole_rows)
        | _between(operators, attention.context, attention.proj, change)
    )


def narrow_heads(operators: Operators, size: int, *, part: Literal["qk", "v"], images: int, edges: Edges) -> list[Operator]:
    """One encoder block whose heads are ``size`` wide in their queries and keys, or in their values.

    Parameters
    ----------
    edges : (producer, reader) as rows of ``operators``; they tell what works on queries and keys from what works on values

    Raises
    ------
    ValueError
        Wider than the block's own heads, or attention of a form in which heads cannot be told apart.
    """
    old = _Attention.of(operators, images)
    before = getattr(old, part)
    if size > before:
        raise ValueError(f"found {size}, but a head of the block is {before} wide")
    if size == before:
        return list(operators)
    new = replace(old, qk=size) if part == "qk" else replace(old, v=size)
    changes = _between_projections(operators, old, new, edges)
    changes |= _between(operators, old.context, old.proj, (old.v, new.v, old.width))
    changes[old.scores] = reshaped(operators[old.scores], k=new.qk)
    changes[old.context] = reshaped(operators[old.context], n=new.v)
    for row in old.projections:
        changes[row] = reshaped(operators[row], n=new.projected(operators[row].role))
    changes[old.proj] = reshaped(operators[old.proj], k=new.width)
    return _updated(operators, changes)


def _between_projections(operators: Operators, old: _Attention, new: _Attention, edges: Edges) -> dict[int, Operator]:
    """What works on queries, keys or values before they are multiplied."""
    to_scores = _leading_to(old.scores, edges)
    to_context = _leading_to(old.context, [edge for edge in edges if edge[0] != old.scores])
    changed = {}
    for row in range(max(old.projections) + 1, old.scores):
        both = row in to_scores and row in to_context
        sizes = [2 * view.qk + view.v if both else view.qk if row in to_scores else view.v for view in (old, new)]
        if sizes[0] != sizes[1]:
            changed[row] = _narrowed(operators[row], sizes[0], sizes[1], sizes[0])
    return changed


def _leading_to(last: int, edges: Edges) -> set[int]:
    """Rows that ``last`` depends on."""
    found = {last}
    for producer, reader in sorted(edges, key=lambda edge: -edge[1]):
        if reader in found:
            found.add(producer)
    return found


def narrow_mlp(operators: Operators, width: int) -> list[Operator]:
    """One encoder block with a hidden MLP width of ``width``; gated MLPs narrow all their first layers.

    Raises
    ------
    ValueError
        Wider than the block's own, or an MLP of another form.
    """
    last = only(operators, "fc2")
    first = positions(operators, "fc1")
    hidden = operators[last].k
    if not first or any(operators[row].n % hidden for row in first):
        raise ValueError("expected operators with role 'fc1' whose outputs are a multiple of what 'fc2' reads")
    if width > hidden:
        raise ValueError(f"found {width}, but the hidden width of the block is {hidden}")
    if width == hidden:
        return list(operators)
    changes = _between(operators, max(first), last, (hidden, width, hidden))
    for row in first:
        changes[row] = reshaped(operators[row], n=operators[row].n // hidden * width)
    changes[last] = reshaped(operators[last], k=width)
    return _updated(operators, changes)


def _updated(operators: Operators, changes: Mapping[int, Operator]) -> list[Operator]:
    return [changes.get(row, operator) for row, operator in enumerate(operators)]
