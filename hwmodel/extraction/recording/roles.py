"""What each row does in a Vision Transformer, read from the structure of the graph rather than from names.

An attention is a softmax between two products of activations. What feeds its first product is q and k, what feeds the
second is v, what consumes it is proj. Two linears around an activation are fc1 and fc2; the linear that only cheap
rows separate from the model's results is the head. The patch embedding is told by its lowering.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from hwmodel.extraction.recording.flow import Flow, is_depthwise, is_light, is_linear, is_weighted
from hwmodel.extraction.recording.graph import Record, Recording

_ACTIVATIONS = frozenset({"gelu", "gelu_tanh", "quick_gelu", "silu", "relu", "relu6", "mish", "hardswish", "elu", "leaky_relu"})
_FALLBACK = frozenset({"qkv", "fc1", "fc2"})
_HEADS = frozenset({"head", "heads", "classifier"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Attention:
    """Rows of one attention: its two products, its softmax, and all rows that a fused kernel would replace."""

    name: str
    module: str
    scores: int
    softmax: int
    context: int
    members: frozenset[int]


@dataclass(slots=True)
class Structure:
    """Roles, attention groups and encoder blocks by row."""

    roles: dict[int, str] = field(default_factory=dict)
    attentions: tuple[Attention, ...] = ()
    blocks: dict[int, int] = field(default_factory=dict)


def analyse(recording: Recording) -> Structure:
    """Find attentions, encoder blocks and roles of all rows."""
    flow = Flow(recording.records)
    found = Structure(attentions=_attentions(flow))
    found.roles = {index: record.operator.role for index, record in enumerate(flow.records) if record.operator.role}
    mlps = _mlps(flow)
    found.blocks = _blocks(recording, found.attentions, mlps)
    for attention in found.attentions:
        _attention_roles(flow, attention, found)
    for first, second in mlps:
        found.roles.setdefault(second, "fc2")
        found.roles.setdefault(first, "fc1")
    _heads(flow, recording.results, found)
    _roles_by_name(flow, found)
    return found


def _is_activation_product(record: Record) -> bool:
    return record.operator.family == "product" and not record.operator.parameter


def _in_attention(record: Record) -> bool:
    """A row that may stand between the products of an attention."""
    return record.operator.family == "elementwise" or record.operator.kind in {"copy", "cast", "pad", "softmax"}


def _attentions(flow: Flow) -> tuple[Attention, ...]:
    names: Counter[str] = Counter()
    found = []
    for index, record in enumerate(flow.records):
        if record.operator.kind == "softmax" and (ends := _products_around(flow, index)):
            module = flow.records[ends[0]].module
            found.append(_attention(flow, ends[0], index, ends[1], _numbered(module or "attention", names)))
    return tuple(found)


def _numbered(name: str, seen: Counter[str]) -> str:
    seen[name] += 1
    return name if seen[name] == 1 else f"{name}_{seen[name] - 1}"


def _mixes_heads(record: Record, elements: int) -> bool:
    """A product that mixes the attention weights of the heads among each other ("talking heads")."""
    operator = record.operator
    return is_weighted(record) and operator.n == operator.k and operator.output_elements == elements


def _products_around(flow: Flow, softmax: int) -> tuple[int, int] | None:
    """The activation product whose values the softmax normalises, and the one that consumes its weights."""
    row = flow.records[softmax]
    elements = row.operator.elements

    def through(record: Record) -> bool:
        return _in_attention(record) or _mixes_heads(record, elements)

    before = flow.back(row.producers, stop=_is_activation_product, through=through)
    scores = [index for index in before if flow.records[index].operator.output_elements == elements]
    after = flow.forward(flow.consumers[softmax], stop=_is_activation_product, through=through)
    return (scores[0], after[0]) if scores and after else None


def _attention(flow: Flow, scores: int, softmax: int, context: int, name: str) -> Attention:
    members = _fusable(flow, scores, softmax, context)
    return Attention(
        name=name, module=flow.records[scores].module, scores=scores, softmax=softmax, context=context, members=members
    )


def _fusable(flow: Flow, scores: int, softmax: int, context: int) -> frozenset[int]:
    """All rows that one fused kernel replaces; none where heads talk to each other, which no fused kernel does."""
    before, after = flow.between(scores, softmax, _in_attention), flow.between(softmax, context, _in_attention)
    direct = flow.records[softmax].producers & (before | {scores}) and flow.records[context].producers & (after | {softmax})
    if not direct:
        return frozenset()
    return frozenset({scores, softmax, context} | before | after | _scalings(flow, scores) | _merged_heads(flow, context))


def _scalings(flow: Flow, scores: int) -> set[int]:
    """Multiplications of queries or keys by a number, which a fused kernel takes over."""
    rows = flow.records[scores].producers
    return {
        index
        for index in rows
        if flow.records[index].operator.kind in {"mul", "div"}
        and len(flow.records[index].operands) == 1
        and flow.consumers[index] == {scores}
    }


def _merged_heads(flow: Flow, context: int) -> set[int]:
    """The copy that lays heads side by side again: fused kernels write that layout themselves."""
    readers = flow.consumers[context]
    return {index for index in readers if flow.records[index].operator.kind == "copy" and len(readers) == 1}


def _mlps(flow: Flow) -> list[tuple[int, int]]:
    """Pairs of linears around an activation, gates included."""
    pairs = []
    for index, record in enumerate(flow.records):
        if record.operator.kind in _ACTIVATIONS and not record.operator.constant:
            pairs += _linears_around(flow, index)
    return sorted(set(pairs))


def _linears_around(flow: Flow, activation: int) -> list[tuple[int, int]]:
    first = flow.back(flow.records[activation].producers, stop=_ends_walk, through=is_light)
    if not any(is_linear(flow.records[index]) for index in first):
        return []
    after = flow.forward(flow.consumers[activation], stop=_ends_walk, through=_no_residual)
    seconds = [index for index in after if is_linear(flow.records[index])][:1]
    return [(index, second) for second in seconds for index in _feeding(flow, second)]


def _feeding(flow: Flow, second: int) -> list[int]:
    before = flow.back(flow.records[second].producers, stop=_ends_walk, through=is_light)
    return [index for index in before if is_linear(flow.records[index])]


def _ends_walk(record: Record) -> bool:
    return record.operator.family in {"product", "attention", "reduction"} and not is_depthwise(record)


def _no_residual(record: Record) -> bool:
    """A light row, unless it adds two streams."""
    return is_light(record) and not (record.operator.kind == "add" and sum(map(bool, record.operands)) > 1)


def _attention_roles(flow: Flow, attention: Attention, found: Structure) -> None:
    found.roles |= {attention.scores: "scores", attention.context: "context"}
    letters: dict[int, str] = {}
    for letter, rows in _operands(flow, attention).items():
        for index in _projections(flow, rows, attention, found.blocks):
            letters[index] = letters.get(index, "") + letter
    for index, role in letters.items():
        found.roles.setdefault(index, role)
    for index in _outgoing(flow, attention, found.blocks):
        found.roles.setdefault(index, "proj")


def _operands(flow: Flow, attention: Attention) -> dict[str, frozenset[int]]:
    """Rows that write queries, keys and values."""
    scores, context = flow.records[attention.scores], flow.records[attention.context]
    left, right = scores.operands[:2]
    values = [rows for rows in context.operands if not _carries(flow, rows, attention.softmax)]
    return {"q": left, "k": right, "v": frozenset().union(*values)}


def _carries(flow: Flow, rows: frozenset[int], softmax: int) -> bool:
    """Whether an operand of the context is the attention weights rather than the values."""
    return any(index in flow.reached(softmax, index) for index in rows)


def _projections(flow: Flow, rows: frozenset[int], attention: Attention, blocks: Mapping[int, int]) -> list[int]:
    """Weighted products nearest before ``rows``, within the same encoder block."""
    found = flow.back(rows, stop=_ends_walk, through=is_light)
    home = blocks.get(attention.scores)
    return [index for index in found if is_weighted(flow.records[index]) and blocks.get(index) == home]


def _outgoing(flow: Flow, attention: Attention, blocks: Mapping[int, int]) -> list[int]:
    """The weighted product that mixes the heads, at most one."""

    def through(record: Record) -> bool:
        return _no_residual(record) or (is_light(record) and record.module == attention.module)

    after = flow.forward(flow.consumers[attention.context], stop=_ends_walk, through=through)
    home = blocks.get(attention.scores)
    return [index for index in after if is_weighted(flow.records[index]) and blocks.get(index) == home][:1]


def _heads(flow: Flow, results: frozenset[int], found: Structure) -> None:
    """Linears outside the encoder that only light rows separate from the model's results."""
    for index in flow.back(results, stop=_ends_walk, through=is_light):
        if is_linear(flow.records[index]) and index not in found.blocks:
            found.roles.setdefault(index, "head")


def _roles_by_name(flow: Flow, found: Structure) -> None:
    """Layers that structure did not explain, but whose name says what they are."""
    for index, record in enumerate(flow.records):
        *path, name = record.weight.removesuffix(".weight").split(".")
        if is_weighted(record) and name in _FALLBACK:
            found.roles.setdefault(index, name)
        if is_linear(record) and index not in found.blocks and _HEADS & {*path, name} and found.roles.get(index, "fc2") == "fc2":
            found.roles[index] = "head"


def _blocks(recording: Recording, attentions: tuple[Attention, ...], mlps: list[tuple[int, int]]) -> dict[int, int]:
    """Encoder block of each row: modules in the lists that hold attention, numbered through in execution order."""
    records = recording.records
    mlp_paths = [records[index].module for pair in mlps for index in pair]
    holders = {path for attention in attentions if (path := _block_path(attention.module, mlp_paths))}
    paths = holders | _siblings(holders, recording.classes) | _mlps_alone(holders, mlp_paths)
    homes = [_home(record.module, paths) for record in records]
    order = _numbers(list(dict.fromkeys(home for home in homes if home)), recording.classes)
    return {index: order[home] for index, home in enumerate(homes) if home}


def _numbers(homes: list[str], classes: Mapping[str, str]) -> dict[str, int]:
    """Blocks by their place in the one list that holds them, where blocks are all it holds; else counted through.

    A block that was replaced by the identity so keeps its number free.
    """
    parents = {path.rpartition(".")[0] for path in homes}
    entries = {path for path in classes if path.rpartition(".")[0] in parents and _is_list_entry(path)}
    if len(parents) == 1 and entries == set(homes):
        return {path: int(path.rpartition(".")[2]) for path in homes}
    return {path: number for number, path in enumerate(homes)}


def _mlps_alone(holders: set[str], mlps: list[str]) -> set[str]:
    """Entries with an MLP but no attention, of a class of their own, in lists that mostly hold attention."""
    lists = Counter(path.rpartition(".")[0] for path in holders if _is_list_entry(path))
    found = {path for mlp in mlps for path in _entries(mlp) if path.rpartition(".")[0] in lists and _is_list_entry(path)}
    alone = Counter(path.rpartition(".")[0] for path in found - holders)
    return {path for path in found - holders if alone[path.rpartition(".")[0]] < lists[path.rpartition(".")[0]]}


def _entries(path: str) -> list[str]:
    """Ancestors (and ``path`` itself) whose name ends in a number, as entries of lists do, innermost first."""
    parts = path.split(".")
    return [".".join(parts[: end + 1]) for end in reversed(range(len(parts))) if _is_entry(parts[end])]


def _is_entry(path: str) -> bool:
    return path[-1:].isdigit()


def _is_list_entry(path: str) -> bool:
    return path.rpartition(".")[2].isdigit()


def _block_path(attention: str, mlps: list[str]) -> str:
    """The innermost list entry that holds an attention and an MLP; the innermost one where none holds both."""
    entries = _entries(attention)
    both = [path for path in entries if any(_inside(mlp, path) for mlp in mlps)]
    return next(iter(both + sorted(entries, key=_is_list_entry, reverse=True)), "")


def _inside(path: str, ancestor: str) -> bool:
    return path == ancestor or path.startswith(f"{ancestor}.")


def _siblings(holders: set[str], classes: Mapping[str, str]) -> set[str]:
    """Entries of the same lists and of the same class, which lost their attention to pruning."""
    kinds = {(path.rpartition(".")[0], classes.get(path)) for path in holders}
    return {path for path, kind in classes.items() if _is_entry(path) and (path.rpartition(".")[0], kind) in kinds}


def _home(module: str, paths: set[str]) -> str:
    """The innermost of ``paths`` that ``module`` lies in, "" where none."""
    return next((path for path in _entries(module) if path in paths), "")
