"""Prices states: the pruned model, the dense one beside it, and a small grid around them for the Pareto front."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import product

import numpy as np
import numpy.typing as npt

from hwmodel.backends.cards import Card, listed_cards, load_card
from hwmodel.backends.estimates import Estimate, estimate
from hwmodel.exploration.pareto import pareto_front
from hwmodel.ir.trace import Trace
from hwmodel.ui import machines
from hwmodel.ui.models import Models
from hwmodel.ui.state import State

GRID_DENSITIES = (0.1, 0.25, 0.5, 0.75, 1.0)
GRID_TOKENS = (0.25, 0.5, 0.75, 1.0)
"""Kept fractions that the Pareto front is looked for in."""


@dataclass(frozen=True, eq=False)
class Answer:
    """What a state costs, and what the dense model costs on the same machine at the same batch."""

    state: State
    now: Estimate
    dense: Estimate

    @cached_property
    def kept_share(self) -> float:
        """MACs that are left over those of the dense model; 1 where there are none."""
        return self.now.trace.kept_macs / self.now.trace.macs if self.now.trace.macs else 1.0

    @cached_property
    def losses(self) -> tuple[float, float, float]:
        """What a Pareto front minimises: pruned work, seconds, joules."""
        return -self.kept_share, self.now.latency_s, self.now.energy_j


@dataclass(frozen=True, eq=False)
class Grid:
    """States around the current one, densities times token counts, and which of them no other beats."""

    answers: tuple[Answer, ...]

    @cached_property
    def _losses(self) -> npt.NDArray[np.float64]:
        return np.array([answer.losses for answer in self.answers])

    @cached_property
    def front(self) -> tuple[Answer, ...]:
        """Those that no other of the grid beats in time for the work they keep, from least to most work."""
        rows = pareto_front(self._losses[:, :2])
        return tuple(sorted((self.answers[row] for row in rows.tolist()), key=lambda answer: answer.kept_share))

    def beats(self, answer: Answer) -> list[Answer]:
        """Those that keep at least as much at no more time and energy, and are better in one."""
        mine = np.array(answer.losses)
        slack = 1e-9 * np.abs(mine)
        better = (self._losses <= mine + slack).all(axis=1) & (self._losses < mine - slack).any(axis=1)
        return [self.answers[row] for row in np.flatnonzero(better).tolist()]


class Workbench:
    """What a page needs to answer: models, cards, and what was priced lately.

    Parameters
    ----------
    models : names of models to offer, the first to start with
    device : name of a card, or path of a card file, to start with

    Raises
    ------
    HwmodelError
        No such device.
    """

    def __init__(self, models: tuple[str, ...], device: str) -> None:
        started = load_card(device)
        shipped = [card.name for card in listed_cards()]
        self.aliases = {alias: card.name for card in listed_cards() for alias in card.aliases}
        self.models = Models(models)
        self.device = device if device.endswith(".toml") or "/" in device else started.name
        self.devices = tuple(dict.fromkeys([*shipped, self.device]))
        self._cards = {self.device: started}
        self.answer = lru_cache(maxsize=512)(self._answer)
        self._dense = lru_cache(maxsize=64)(self._priced_dense)
        self._pruned = lru_cache(maxsize=256)(self._pruned_trace)
        self._grids: dict[State, Grid] = {}

    def card(self, device: str) -> Card:
        """The card of a name that the page offers."""
        return self._cards.get(device) or load_card(device)

    def default_state(self, model: str, device: str) -> State:
        """What the page shows of a model and a machine where nothing else is asked for."""
        mode, power = machines.default_modes(self.card(device))
        return State(model=model, device=device, mode=mode, power=power, batch=self.models.get(model).first.batch)

    def _answer(self, state: State) -> Answer:
        of_model = State(
            model=state.model, device="", mode="", batch=state.batch, density=state.density, block=state.block, lie=state.lie,
            heads=state.heads, tokens=state.tokens,
        )  # fmt: skip
        dense = self._dense(state.but(density=1.0, heads=0, tokens=0, block="", lie="uniform"))
        return Answer(state, self._price(self._pruned(of_model), state), dense)

    def _priced_dense(self, state: State) -> Estimate:
        return self._price(self.models.get(state.model).batches.at(state.batch), state)

    def _pruned_trace(self, state: State) -> Trace:
        return self.models.get(state.model).pruned(state)

    def _price(self, trace: Trace, state: State) -> Estimate:
        card = self.card(state.device)
        return estimate(trace, device=card, mode=state.full_mode, overrides=machines.overrides_of(card, state))

    def grid(self, state: State) -> Grid:
        """Every density and token count of the grid with the rest of the state; priced once."""
        key = _around(state)
        if key not in self._grids:
            patches, blocked = self.models.get(state.model).tokens
            counts = [0] if blocked else sorted({round(patches * share) % patches for share in GRID_TOKENS})
            states = [key.but(density=density, tokens=count) for density, count in product(GRID_DENSITIES, counts)]
            self._grids[key] = Grid(tuple(self.answer(one) for one in states))
        return self._grids[key]

    def known_grid(self, state: State) -> Grid | None:
        """The grid of a state where it has been priced already."""
        return self._grids.get(_around(state))


def _around(state: State) -> State:
    """What the states of one grid have in common."""
    return state.but(density=1.0, tokens=0)
