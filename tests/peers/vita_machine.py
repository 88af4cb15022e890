"""ViTA once more, as an event loop over blocks, buffers and DMA: the peer of the closed form in ``hwmodel.backends.vita``.

Written from the description in ``simulators/vita/README.md`` and sharing no code with the backend. Time is in cycles. Every
tile that visits a processing element (PE) passes five steps: the control core reads its index, the DMA fetches it from DRAM
into a staging slot, the port of the global buffer hands it to one of two slots of its PE, the same port hands over its slice
of input, the PE multiplies from the tile's arrival on and ends when the inputs are there too. A visit may start on a server when
the server is free and the slot behind it is; the port hands over tiles before inputs. Activations that leave the chip move in
the gaps of the DMA and after the last tile.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

CORE, DMA, TILE, INPUTS, PE = range(5)
SERVERS = (CORE,), (DMA,), (TILE, INPUTS)
"""Steps that share a server, the more urgent first."""
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


def orders(product: Product, machine: Machine) -> Iterator[tuple[int, float]]:
    """Groups of tokens and activation bytes of DRAM: inputs again for each turn of rows, or groups that fit half of the buffer.

    More groups than needed come later, as long as somebody asks for them.
    """
    own, smaller = product.groups(machine)
    turns = -(-sum(map(bool, product.tiles(machine))) // machine.pes)
    read, written = product.leaving(machine)
    for more in range(product.m - own + 1):
        yield own + more, read * turns + written
        yield min(smaller + more, product.m), read + written


def plan(product: Product, machine: Machine, groups: int) -> list[list[Visit]]:
    """Visits of every PE in order: rows go to the PE with the fewest tiles, the first such one."""
    tiles = product.tiles(machine)
    n, k = product.kept.shape
    stored = 0.0 if product.heads else n * k * product.width / (-(-n // machine.out) * -(-k // machine.in_))
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
                Visit(row, col, tokens, stored, later and place == 0, last and place == len(cols) - 1)
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
    """The event loop of one product in so many ``groups`` of tokens, ``beside`` bytes of activations going to and from DRAM.

    ``ready(visit)`` says when its input is there. In ``rounds`` every server serves the PE that it served least so far, else the
    one with the most visits left.
    """

    product: Product
    machine: Machine
    start: float
    groups: int
    beside: float
    ready: Callable[[Visit], float] = field(default=lambda visit: 0.0)
    rounds: bool = False

    def run(self) -> Outcome:
        """Serve every visit in all steps."""
        self.queues = plan(self.product, self.machine, self.groups)
        pes = range(len(self.queues))
        self.done = [[0] * len(pes) for _ in range(5)]  # visits of each PE that have left each step
        self.busy, self.ends, self.fetched, self.moved = [0.0] * len(pes), dict[int, float](), 0.0, self.start
        self.serving, self.working, self.multiplied = [False] * len(SERVERS), [False] * len(pes), [False] * len(pes)
        events, order, now = [(self.start, 0, -1, -1)], 1, self.start
        while events:
            now, _, step, pe = heapq.heappop(events)
            self._leave(step, pe, now)
            for until, *job in self._begin(now):
                heapq.heappush(events, (until, order, *job))
                order += 1
        return Outcome(max(now, self.moved), self.ends, self.busy)

    def _leave(self, step: int, pe: int, now: float) -> None:
        """A visit leaves a step, and a PE that has multiplied waits for the last of its inputs."""
        if step == PE:
            self.multiplied[pe] = True
        elif step >= 0:
            self.done[step][pe] += 1
            self.serving[server_of(step)] = False
        if step == DMA:
            gaps = now - self.start - self.fetched
            self.moved = now + max(self.beside / self.machine.dram_bytes_per_cycle - gaps, 0)
        if self.multiplied[pe] and self.done[PE][pe] < self.done[INPUTS][pe]:
            visit = self.queues[pe][self.done[PE][pe]]
            self.done[PE][pe] += 1
            self.working[pe] = self.multiplied[pe] = False
            if visit.ends_row:
                self.ends[visit.row] = now

    def _begin(self, now: float) -> Iterator[tuple[float, int, int]]:
        """What free servers and free PEs turn to: until when, the step and the PE."""
        for server, steps in enumerate(SERVERS):
            chosen = None if self.serving[server] else self._next(steps)
            if chosen is not None:
                self.serving[server] = True
                yield now + self._cycles(*chosen), *chosen
        for p, queue in enumerate(self.queues):
            if not self.working[p] and self.done[PE][p] < self.done[TILE][p]:
                visit = queue[self.done[PE][p]]
                self.working[p] = True
                self.busy[p] += visit.tokens
                yield max(now, self.ready(visit)) + visit.tokens, PE, p

    def _next(self, steps: tuple[int, ...]) -> tuple[int, int] | None:
        """The step and the PE that a free server turns to."""
        for step in steps:
            waiting = [p for p in range(len(self.queues)) if self._may(step, p)]
            if waiting:
                served, left = (
                    self.done[step],
                    [len(queue) - done for queue, done in zip(self.queues, self.done[step], strict=True)],
                )
                return step, min(waiting, key=lambda p: (served[p] * self.rounds, -left[p]))
        return None

    def _may(self, step: int, pe: int) -> bool:
        """Whether the next visit of a PE has passed the step before and finds room behind this one."""
        done = self.done[step][pe]
        if done == len(self.queues[pe]) or (step > CORE and done == self.done[step - 1][pe]):
            return False
        tile = self.machine.out * self.machine.in_ * self.product.width
        staged = max(self.machine.half_buffer_bytes // (tile * self.machine.pes), 1)
        room = {DMA: self.done[TILE][pe] + staged, TILE: self.done[PE][pe] + SLOTS}
        return done < room.get(step, len(self.queues[pe]))

    def _cycles(self, step: int, pe: int) -> float:
        machine, product = self.machine, self.product
        visit = self.queues[pe][self.done[step][pe]]
        if step == CORE:
            block = 0.0 if product.heads else machine.cycles_per_block
            return block + machine.cycles_per_row * visit.dispatched
        if step == DMA:
            fetch = visit.dram_bytes / machine.dram_bytes_per_cycle
            self.fetched += fetch
            return fetch
        moved = machine.out * machine.in_ if step == TILE else visit.tokens * machine.in_
        return moved * product.width / machine.port_bytes_per_cycle


def server_of(step: int) -> int:
    """Which server does a step."""
    return next(server for server, steps in enumerate(SERVERS) if step in steps)


def alone(product: Product, machine: Machine, *, rounds: bool = False) -> Outcome:
    """One product, its set-up first, in the fastest order: more groups of tokens are tried as long as they end it sooner."""
    if not any(product.tiles(machine)):
        return Outcome(0.0, {}, [0.0])
    return fastest(product, machine, machine.cycles_per_layer, rounds=rounds)


def fastest(product: Product, machine: Machine, start: float, **choices: Any) -> Outcome:
    """The order that ends first; it stops to look where more groups of tokens end later."""
    best: Outcome | None = None
    tried = orders(product, machine)
    for pair in zip(tried, tried, strict=False):
        found = min((Loop(product, machine, start, *one, **choices).run() for one in set(pair)), key=lambda one: one.end)
        if best is not None and found.end >= best.end:
            break
        best = found
    assert best is not None
    return best


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

    A row of a weight reads every feature, so the second product begins when the function is done. So that the first one's rows
    end early, the servers go round the PEs, and the core shares it among as many as end the function first: too many for the
    DRAM would finish all rows at once. Or the function waits for all of it. A head needs its own function only.
    """
    if second.heads:
        end, done = through(first, passes, machine)
        begun = end + machine.cycles_per_layer
        return max(fastest(second, machine, begun, ready=lambda visit: done[visit.row]).end, *done.values())
    setup = machine.cycles_per_layer if any(second.tiles(machine)) else 0.0
    end, done = through(first, passes, machine)
    started = [end + max(setup, len(done) * work_per_row(first, passes, machine))]
    for pes in range(1, machine.pes + 1):
        end, done = through(first, passes, replace(machine, pes=pes), rounds=True)
        started.append(max(end + setup, *done.values()))
    return fastest(second, machine, min(started)).end


def through(first: Product, passes: int, machine: Machine, *, rounds: bool = False) -> tuple[float, dict[int, float]]:
    """When a product ends, and when the special function of each of its rows (or heads) does."""
    outcome = alone(first, machine, rounds=rounds)
    begun = machine.cycles_per_layer if outcome.end else 0.0
    ready = {row: outcome.row_ends.get(row, begun) for row in range(len(first.tiles(machine)))}
    return outcome.end, serve(ready, work_per_row(first, passes, machine), begun)


def work_per_row(first: Product, passes: int, machine: Machine) -> float:
    """Cycles of the special function of one row of a weight, or of one head."""
    rows = 1 if first.heads else len(first.tiles(machine))
    return first.m * first.kept.shape[0] / rows * passes / machine.function_elements_per_cycle


def residual(product: Product, machine: Machine) -> float:
    """A product and a residual that is added before, while or after its rows are worked on: cycles until both have ended."""
    outcome = alone(product, machine)
    work = product.m * product.kept.shape[0] / machine.function_elements_per_cycle
    return max(outcome.end, work + machine.cycles_per_layer * (outcome.end > 0))
