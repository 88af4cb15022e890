"""New rows for a trace: each says what it reads, and a cut sends everything that crosses it through one row."""

from __future__ import annotations

from collections.abc import Sequence

from hwmodel.ir.operators import Operator
from hwmodel.ir.trace import Trace

Node = int
"""A row of the trace by its number, or a new one by the negative number that :meth:`Rewriting.insert` returned."""


class Rewriting:
    """Rows and edges to add to a trace, and how the edges that are there change."""

    def __init__(self, trace: Trace) -> None:
        self.trace = trace
        self._names = {operator.name for operator in trace.operators}
        self._new: list[tuple[int, Operator]] = []
        self._edges: set[tuple[Node, Node]] = set()
        self._kept = set(trace.edges)
        self._cuts: list[tuple[int, Node]] = []

    def insert(self, before: int, operator: Operator, *reads: Node) -> Node:
        """A new row ahead of row ``before``, behind those inserted there already; ``reads`` are the rows it reads."""
        self._new.append((before, operator.replace(name=self._free(operator.name))))
        node = -len(self._new)
        self._edges.update((producer, node) for producer in reads)
        return node

    def _free(self, name: str) -> str:
        free, number = name, 0
        while free in self._names:
            number += 1
            free = f"{name}_{number}"
        self._names.add(free)
        return free

    def detour(self, producer: int, reader: int, over: Node, *, once: bool = False) -> None:
        """``reader`` reads ``over`` where it read ``producer``; ``once`` where it reads ``producer`` for something else too."""
        if not once:
            self._kept.discard((producer, reader))
        self._edges.add((over, reader))

    def cut(self, row: int, last: Node) -> None:
        """Rows from ``row`` on read ``last`` where they read rows before it, input-independent ones apart."""
        self._cuts.append((row, last))

    def producers(self, row: int) -> list[int]:
        """Rows of the trace that ``row`` reads, input-independent ones left out."""
        return sorted(a for a, b in self.trace.edges if b == row and not self.trace.operators[a].constant)

    def stream(self, row: int) -> list[Node]:
        """What crosses ``row`` before it is cut there."""
        crossing = sorted({a for a, b in self._kept if a < row <= b and not self.trace.operators[a].constant})
        return list(dict.fromkeys(self._visible(producer, row) for producer in crossing))

    def _visible(self, producer: int, reader: int) -> Node:
        """What ``reader`` reads for ``producer``: the row of the last cut between the two, where there is one."""
        crossed = [last for row, last in self._cuts if producer < row <= reader]
        return crossed[-1] if crossed and not self.trace.operators[producer].constant else producer

    def finish(self, operators: Sequence[Operator]) -> Trace:
        """The trace with ``operators`` in place of its own, the new rows among them, and all edges."""
        waiting: dict[int, list[Node]] = {}
        for number, (before, _) in enumerate(self._new, 1):
            waiting.setdefault(before, []).append(-number)
        order = [node for row in range(len(operators)) for node in (*waiting.get(row, ()), row)]
        place = {node: index for index, node in enumerate(order)}
        edges = {(self._visible(producer, reader), reader) for producer, reader in self._kept} | self._edges
        rows = [operators[node] if node >= 0 else self._new[-node - 1][1] for node in order]
        ordered = sorted(((place[a], place[b]) for a, b in edges), key=lambda edge: edge[::-1])
        return self.trace.replace(operators=tuple(rows), edges=tuple(ordered))
