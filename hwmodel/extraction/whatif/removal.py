"""Parts of encoder blocks that are gone: attention, MLP or both, with what only served them. Rows vanish, edges close up.

Refusals are ValueErrors that give the reason.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping
from typing import Literal

from hwmodel.extraction.whatif.structure import PROJECTIONS
from hwmodel.ir.trace import Trace

Part = Literal["attention", "mlp"]

ENDS: Mapping[Part, tuple[frozenset[str], str]] = {
    "attention": (PROJECTIONS, "proj"),
    "mlp": (frozenset({"fc1"}), "fc2"),
}
"""Roles of the first rows of a part, and of its last one."""


def remove_branch(trace: Trace, block: int, part: Part) -> Trace:
    """The trace without the whole residual branch: the part, its normalisation, its scale and the addition at its end.

    Raises
    ------
    ValueError
        No such part in the block, or none that an addition joins to the rest.
    """
    _, last = _ends(trace, block, part)
    addition = _addition(trace, last)
    reached = _reached(trace, last)
    others = {producer for producer, reader in trace.edges if reader == addition and producer not in reached}
    if not others:
        raise ValueError(f"{trace.operators[addition].name}: adds nothing but the {part} itself, so the block cannot do without it")
    return _bypassed(trace, {addition: others}, block)


def replace_by_identity(trace: Trace, block: int, part: Part) -> Trace:
    """The trace with the part replaced by ``nn.Identity``: its normalisation and the addition at its end stay.

    Raises
    ------
    ValueError
        No such part in the block.
    """
    first, last = _ends(trace, block, part)
    inner = {row for row in range(min(first), last + 1) if trace.operators[row].block == block}
    feeding = {producer for producer, reader in trace.edges if reader in first and producer not in inner}
    moving = {row for row in feeding if not trace.operators[row].constant}
    return _bypassed(trace, {last: moving}, block)


def merge_nothing(trace: Trace, block: int) -> Trace:
    """The trace without the copy that lays the heads of a block side by side, where a single head is left."""
    rows = {operator.role: row for row, operator in enumerate(trace.operators) if operator.block == block}
    if "context" not in rows or "proj" not in rows or trace.operators[rows["context"]].batch != trace.batch:
        return trace
    between = range(rows["context"] + 1, rows["proj"])
    copies = [row for row in between if trace.operators[row].kind == "copy" and trace.operators[row].block == block]
    sources = {row: {producer for producer, reader in trace.edges if reader == row} for row in copies}
    return _bypassed(trace, sources, block)


def _ends(trace: Trace, block: int, part: Part) -> tuple[list[int], int]:
    """First rows and last row of a part."""
    starts, end = ENDS[part]
    rows = [row for row, operator in enumerate(trace.operators) if operator.block == block]
    first = [row for row in rows if trace.operators[row].role in starts]
    last = [row for row in rows if trace.operators[row].role == end]
    if not first or len(last) != 1:
        raise ValueError(f"the block has no {part} with one operator of role {end!r} at its end")
    if not trace.edges:
        raise ValueError("the trace has no edges, so what belongs to a part is unknown")
    return first, last[0]


def _readers(trace: Trace) -> dict[int, list[int]]:
    readers: dict[int, list[int]] = defaultdict(list)
    for producer, reader in trace.edges:
        readers[producer].append(reader)
    return readers


def _reached(trace: Trace, start: int) -> set[int]:
    """Rows that depend on ``start``, itself included."""
    found = {start}
    for producer, reader in sorted(trace.edges, key=lambda edge: edge[1]):
        if producer in found:
            found.add(reader)
    return found


def _addition(trace: Trace, last: int) -> int:
    """The addition that joins the branch ending in ``last`` to the rest: the next one of two streams."""
    readers, row = _readers(trace), last
    streams: dict[int, int] = defaultdict(int)
    for producer, reader in trace.edges:
        streams[reader] += not trace.operators[producer].constant
    while len(following := readers[row]) == 1:
        row = following[0]
        if trace.operators[row].kind == "add" and streams[row] > 1:
            return row
    raise ValueError(f"{trace.operators[last].name}: no addition joins it to the rest of the block")


def _bypassed(trace: Trace, sources: Mapping[int, Collection[int]], block: int) -> Trace:
    """Readers of a row in ``sources`` read those rows instead; rows of ``block`` that then lead nowhere vanish."""
    edges = [(producer, reader) for producer, reader in trace.edges if reader not in sources]
    edges = [(new, reader) for producer, reader in edges for new in sources.get(producer, (producer,))]
    gone = set(sources)
    readers: dict[int, set[int]] = defaultdict(set)
    for producer, reader in edges:
        readers[producer].add(reader)
    for row in reversed(range(len(trace.operators))):
        useless = row not in gone and _readable(trace, row, block) and not readers[row] - gone
        gone |= {row} if useless else set()
    return _without(trace, edges, gone)


def _readable(trace: Trace, row: int, block: int) -> bool:
    """A row of the block that is not the model's result."""
    return trace.operators[row].block == block and row < len(trace.operators) - 1


def _without(trace: Trace, edges: Collection[tuple[int, int]], gone: Collection[int]) -> Trace:
    rows = [row for row in range(len(trace.operators)) if row not in gone]
    place = {row: number for number, row in enumerate(rows)}
    kept = sorted({(place[a], place[b]) for a, b in edges if a in place and b in place}, key=lambda edge: (edge[1], edge[0]))
    return trace.replace(operators=tuple(trace.operators[row] for row in rows), edges=tuple(kept))
