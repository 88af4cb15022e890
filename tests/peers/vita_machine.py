"""ViTA once more, as an event loop over blocks, buffers and DMA: the peer of the closed form in ``hwmodel.backends.vita``.

Written from the description in ``simulators/vita/README.md`` and sharing no code with the backend. Time is in cycles. Every
tile that visits a processing element (PE) passes four servers: the control core reads its index, the DMA fetches it from DRAM
into a staging slot, the port of the global buffer hands it and its slice of input to one of two slots of its PE, the PE
multiplies. A visit may start on a server when the server is free and the slot behind it is.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np

CORE, DMA, PORT, PE = range(4)
SLOTS = 2
"""Tiles that a PE holds: one in use, one arriving."""


@dataclass(frozen=True)
class Machine:
    """The numbers of the machine, in bytes and cycles."""

    pes: int
    out: int
    in_: int
    cycles_per_layer: float = 770.0
    cycles_per_row: float = 20.0
    cycles_per_block: float = 2.0
    dram_bytes_per_cycle: float = 25.6
    port_bytes_per_cycle: float = 512.0
    function_elements_per_cycle: float = 32.0
    pe_buffer_bytes: int = 40960
    half_buffer_bytes: int = 262144


@dataclass(frozen=True)
class Visit:
    """One tile with one group of tokens."""

    row: int
    col: int
    tokens: float
    dram_bytes: float
    dispatched: bool
    ends_row: bool


@dataclass
class Product:
    """(m, k) by (k, n) with ``kept[n, k]`` weight elements, or ``heads`` independent activation products without weights."""

    m: int
    kept: np.ndarray
    heads: int = 0
    width: int = 1

    def tiles(self, machine: Machine) -> list[list[int]]:
        """Columns of tiles with a kept element, by row of tiles; a head of activations is one row."""
        n, k = self.kept.shape
        rows = [
            [c for c in range(0, k, machine.in_) if self.kept[r : r + machine.out, c : c + machine.in_].any()]
            for r in range(0, n, machine.out)
        ]
        return [[c for row in rows for c in row]] * self.heads if self.heads else rows

    def groups(self, machine: Machine) -> tuple[int, int]:
        """Groups of tokens that fit the PE's buffer, and those that fit half of the global buffer too."""
        tile = machine.out * machine.in_ * self.width
        room = (machine.pe_buffer_bytes - 2 * tile) // (4 * machine.out + 2 * machine.in_ * self.width)
        own = -(-self.m // room)
        return own, max(own, -(-self.m * self.kept.shape[1] * self.width // machine.half_buffer_bytes))

    def leaving(self, machine: Machine) -> tuple[float, float]:
        """Bytes of inputs read from and outputs written to DRAM: those of which one piece is past half of the global buffer."""
        n, k = self.kept.shape
        read, written = (self.m * k + (n * k if self.heads else 0)) * self.width, self.m * n * self.width
        pieces = max(self.heads, 1)
        return tuple(pieces * size * (size > machine.half_buffer_bytes) for size in (read, written))


def split(m: int, groups: int) -> list[int]:
    """``m`` tokens in groups as even as can be."""
    return [m // groups + (part < m % groups) for part in range(groups)]


def plan(product: Product, machine: Machine) -> list[list[Visit]]:
    """Visits of every PE in order: rows go to the PE with the fewest tiles, the first such one.

    Activations that leave the chip travel evenly between the weights.
    """
    tiles = product.tiles(machine)
    n, k = product.kept.shape
    stored = 0.0 if product.heads else n * k * product.width / (-(-n // machine.out) * -(-k // machine.in_))
    own, smaller = product.groups(machine)
    count = sum(map(len, tiles))
    turns = -(-sum(map(bool, tiles)) // machine.pes)
    read, written = product.leaving(machine)
    groups, read = min((own, read * turns), (smaller, read), key=lambda order: stored * count * order[0] + order[1])
    beside = (read + written) / (groups * max(count, 1))
    queues: list[list[Visit]] = [[] for _ in range(machine.pes)]
    load = [0] * machine.pes
    for row, cols in enumerate(tiles):
        if not cols:
            continue
        chosen = load.index(min(load))
        load[chosen] += len(cols)
        for group, tokens in enumerate(split(product.m, groups)):
            last = group == groups - 1
            later = bool(queues[chosen]) and group == 0
            queues[chosen] += [
                Visit(row, col, tokens, stored + beside, later and place == 0, last and place == len(cols) - 1)
                for place, col in enumerate(cols)
            ]
    return queues


@dataclass
class Outcome:
    """When a product ended, when each row did, how long PEs worked, and how much longer than the busiest the others were idle."""

    end: float
    row_ends: dict[int, float]
    busy: list[float]

    @property
    def idle_share(self) -> float:
        """Share of their time that PEs wait for the busiest one."""
        return 1 - sum(self.busy) / (len(self.busy) * max(self.busy))


@dataclass
class Loop:
    """The event loop of one product. ``ready(row, col)`` says when the input slice of a visit is there."""

    product: Product
    machine: Machine
    start: float
    ready: Callable[[Visit], float] = field(default=lambda visit: 0.0)

    def run(self) -> Outcome:
        """Serve every visit on all four servers, the PE with the most visits left first."""
        queues = plan(self.product, self.machine)
        stage = [[0] * len(queues) for _ in range(4)]  # visits of each PE that have left each server
        busy = [0.0] * len(queues)
        ends: dict[int, float] = {}
        events = [(self.start, 0, -1, -1)]
        order = 1
        serving = [False] * 3
        working = [False] * len(queues)
        now = self.start
        while events:
            now, _, server, pe = heapq.heappop(events)
            if server >= 0:
                stage[server][pe] += 1
                if server == PE:
                    working[pe] = False
                    visit = queues[pe][stage[PE][pe] - 1]
                    if visit.ends_row:
                        ends[visit.row] = now
                else:
                    serving[server] = False
            for kind in (CORE, DMA, PORT):
                if serving[kind]:
                    continue
                waiting = [p for p in range(len(queues)) if self._may(kind, p, queues, stage)]
                if waiting:
                    chosen = max(waiting, key=lambda p: len(queues[p]) - stage[kind][p])
                    serving[kind] = True
                    visit = queues[chosen][stage[kind][chosen]]
                    heapq.heappush(events, (now + self._cycles(kind, visit), order, kind, chosen))
                    order += 1
            for p, queue in enumerate(queues):
                if not working[p] and stage[PE][p] < stage[PORT][p]:
                    visit = queue[stage[PE][p]]
                    working[p] = True
                    busy[p] += visit.tokens
                    heapq.heappush(events, (max(now, self.ready(visit)) + visit.tokens, order, PE, p))
                    order += 1
        return Outcome(now, ends, busy)

    def _may(self, kind: int, pe: int, queues: list[list[Visit]], stage: list[list[int]]) -> bool:
        """Whether the next visit of a PE has passed the server before and finds room behind this one."""
        done = stage[kind][pe]
        if done == len(queues[pe]):
            return False
        if kind == CORE:
            return True
        room = self._staged if kind == DMA else SLOTS
        return done < stage[kind - 1][pe] and done < stage[kind + 1 if kind == DMA else PE][pe] + room

    @property
    def _staged(self) -> int:
        """Tiles that await one PE in half of the global buffer."""
        tile = self.machine.out * self.machine.in_ * self.product.width
        return max(self.machine.half_buffer_bytes // (tile * self.machine.pes), 1)

    def _cycles(self, kind: int, visit: Visit) -> float:
        machine, product = self.machine, self.product
        if kind == CORE:
            block = 0.0 if product.heads else machine.cycles_per_block
            return block + machine.cycles_per_row * visit.dispatched
        if kind == DMA:
            return visit.dram_bytes / machine.dram_bytes_per_cycle
        moved = machine.out * machine.in_ * product.width + visit.tokens * machine.in_ * product.width
        return moved / machine.port_bytes_per_cycle


def alone(product: Product, machine: Machine) -> Outcome:
    """One product, its set-up first."""
    if not any(product.tiles(machine)):
        return Outcome(0.0, {}, [0.0])
    return Loop(product, machine, machine.cycles_per_layer).run()


def serve(ready: dict[int, float], work: float, start: float) -> dict[int, float]:
    """When a special-function unit that takes ``work`` cycles per row has finished each, first come first served."""
    finished = {}
    now = start
    for row, at in sorted(ready.items(), key=lambda item: (item[1], item[0])):
        now = max(now, at) + work
        finished[row] = now
    return finished


def between(first: Product, passes: int, second: Product, machine: Machine) -> float:
    """A product, a special function of all its outputs row by row, and a product of that: cycles until the second ends.

    A row of a weight reads every feature, so the second product begins when the function is done, and the core shares the first
    among as many PEs as end it first: too many for the DRAM would finish all rows at once. A head needs its own function only.
    """
    if second.heads:
        end, done = through(first, passes, machine)
        begun = end + machine.cycles_per_layer
        return max(Loop(second, machine, begun, ready=lambda visit: done[visit.row]).run().end, *done.values())
    setup = machine.cycles_per_layer if any(second.tiles(machine)) else 0.0
    started = []
    for pes in range(1, machine.pes + 1):
        end, done = through(first, passes, replace(machine, pes=pes))
        started.append(max(end + setup, *done.values()))
    return Loop(second, machine, min(started)).run().end


def through(first: Product, passes: int, machine: Machine) -> tuple[float, dict[int, float]]:
    """When a product ends, and when the special function of each of its rows (or heads) does."""
    rows = range(len(first.tiles(machine)))
    outcome = alone(first, machine)
    begun = machine.cycles_per_layer if outcome.end else 0.0
    per_row = first.m * first.kept.shape[0] / (1 if first.heads else len(rows)) * passes / machine.function_elements_per_cycle
    return outcome.end, serve({row: outcome.row_ends.get(row, begun) for row in rows}, per_row, begun)


def residual(product: Product, machine: Machine) -> float:
    """A product and a residual that is added before, while or after its rows are worked on: cycles until both have ended."""
    outcome = alone(product, machine)
    work = product.m * product.kept.shape[0] / machine.function_elements_per_cycle
    return max(outcome.end, work + machine.cycles_per_layer * (outcome.end > 0))
