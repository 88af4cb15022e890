"""The log of the loop: every step with its figures, as lines of JSON; the same run gives the same lines."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from platform import python_version
from typing import Any

import numpy as np

from hwmodel.allocation.loop.closing import Round
from hwmodel.allocation.loop.goals import Goal
from hwmodel.allocation.loop.joint import Turn, Wish, counting
from hwmodel.allocation.loop.sensing import Sensing
from hwmodel.backends.estimates import Estimate
from hwmodel.pruning.live_models import LiveModel

_PACKAGES = ("hwmodel", "torch", "timm", "numpy", "scipy")


@dataclass(frozen=True)
class Step:
    """One line: what was done, and the figures that came of it. No times and no places."""

    what: str
    figures: Mapping[str, Any]

    def __str__(self) -> str:
        return json.dumps({"step": self.what, **self.figures}, allow_nan=False)


def steps_of(
    live: LiveModel, goal: Goal, sensing: Sensing, wishes: Mapping[str, Wish], turns: Sequence[Turn], *, settled: bool
) -> Iterator[Step]:
    """The log of a whole run.

    Parameters
    ----------
    live : the model as it was given
    turns, settled : as :func:`hwmodel.allocation.loop.joint.settle` returns them
    """
    yield Step("versions", {"python": python_version(), **{package: version(package) for package in _PACKAGES}})
    yield Step("asked", {
        "model": live.title, "batch": live.batch, "image_size": live.image_size, "dtype": live.dtype,
        "budgets": [str(budget) for budget in goal.budgets], "solver": goal.solver, "settings": dict(goal.settings),
        "floor": goal.floor, "cap": goal.cap, "weights": goal.weights, "whole_units": goal.whole_units, "ratios": goal.ratios,
        "tolerance": goal.tolerance, "rounds": goal.rounds, "steps": goal.steps, "block": sensing.block, "layers": sensing.layers,
        "delta": sensing.delta, "score": sensing.score, "probes": sensing.probes, "seed": sensing.seed,
        **{name: {"keep": wish.keep, "loss": wish.loss} for name, wish in wishes.items()},
    })  # fmt: skip
    images = sensing.calibration
    yield Step("model", {"weights_sha256": live.digest(), "left_dense": sensing.left_dense(live)})
    yield Step("images", {"source": images.source, "sha256": images.digest(), "synthetic": images.synthetic})
    for number, turn in enumerate(turns, start=1):
        yield from _of_turn(number, turn)
    yield Step("end", {"turns": len(turns), "settled": settled, "converged": settled and turns[-1].closing.converged,
                       "counts": 1 + turns.index(counting(turns, settled=settled))})  # fmt: skip


def _of_turn(number: int, turn: Turn) -> Iterator[Step]:
    structure = turn.structure
    heads = {str(block): list(kept) for block, kept in structure.heads.items()}
    yield Step(
        "structure", {"turn": number, "heads": heads, "tokens": {str(block): keep for block, keep in structure.tokens.items()}}
    )
    for machine, told in zip(turn.closing.machines, turn.departures, strict=True):
        yield Step("machine", {
            "turn": number, "device": machine.label, "skip_unit": machine.skip_unit, **_totals(machine.dense),
            **_choices(machine.dense),
            "departure_from_eq_7": {name: one.largest for name, one in told.items()},
        })  # fmt: skip
    for step, closing in enumerate(turn.closings, start=1):
        for one in closing.rounds:
            yield Step("round", {"turn": number, "towards_budget": step / len(turn.closings), **_of_round(one)})


def _totals(estimate: Estimate) -> dict[str, Any]:
    return {"dtype": estimate.dtype, "latency_s": estimate.latency_s, "energy_j": estimate.energy_j, "fidelity": estimate.fidelity}


def _choices(estimate: Estimate) -> dict[str, Any]:
    overrides = {name: np.asarray(value).tolist() for name, value in estimate.overrides.items()}
    options = estimate.options
    return {"overrides": overrides, "attention": options.attention, "sparse_kernel": options.sparse_kernel, "scope": options.scope}


def _of_round(one: Round) -> dict[str, Any]:
    allocation = one.allocation
    costs = {
        check.name: {"promised": check.promised, "delivered": check.delivered, "dense": check.dense, "source": check.source}
        for check in one.checks
    }
    return {
        "round": one.number, "solver": allocation.solver, "settings": dict(allocation.settings),
        "distortion": allocation.distortion, "bound": allocation.bound, "gap_to_least": allocation.gap,
        "largest_gap": one.gap, "over_budget": one.excess, "costs": costs,
        "kept_blocks": {name: int(kept) for name, kept in allocation.frame().kept_blocks.items()},
        "mask_digests": {name: mask.digest for name, mask in allocation.masks.items()},
    }  # fmt: skip
