"""Blocks, heads and tokens together: the turns end, nothing moves where they end, and what is promised is delivered."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from loop_examples import EXAMPLE, images, small_vit

import hwmodel as hw
from hwmodel.allocation.loop.goals import Goal
from hwmodel.allocation.loop.joint import Chooser, Wish, kept_share
from hwmodel.allocation.loop.outcome import ClosedLoop
from hwmodel.allocation.loop.savings import Present, valuation
from hwmodel.allocation.loop.sensing import Sensing
from hwmodel.allocation.loop.structure import Structure
from hwmodel.allocation.tokens_heads import heads_of
from hwmodel.errors import HwmodelError
from hwmodel.ir.masks import BlockMask
from hwmodel.pruning.calibration_images import Calibration
from hwmodel.pruning.gates.heads import remove_heads
from hwmodel.pruning.live_models import LiveModel

BLOCK, DEPTH = (32, 32), 3
HEADS, LOSS = 6, 0.02


def run(budget: str) -> ClosedLoop:
    return hw.allocate(
        small_vit(DEPTH), images(2), device="vita", budget=budget, block=BLOCK, example=EXAMPLE, ratios=13,
        heads=f"loss={LOSS}", tokens=f"loss={LOSS}",
    )  # fmt: skip


@pytest.fixture(scope="module")
def settled() -> ClosedLoop:
    return run("energy=0.35")


def test_turns_end_and_promises_are_kept(settled: ClosedLoop) -> None:
    assert settled.settled and settled.converged and len(settled.turns) == 2
    assert settled.turn.structure.heads and settled.turn.structure.tokens
    assert all(check.gap <= 0.01 for check in settled.checks)
    flops, _, energy = settled.checks
    whole = hw.estimate(settled.origin.structure, device="vita")
    assert energy.dense == whole.energy_j and energy.delivered <= 0.35 * whole.energy_j
    assert flops.dense == 2 * sum(operator.macs for operator in settled.origin.structure.operators if operator.parameter)


def test_nothing_moves_where_it_ends(settled: ClosedLoop) -> None:
    sensing = Sensing(calibration=Calibration(images=images(2), labels=None, source="noise"), block=BLOCK)
    wishes = {"heads": Wish(loss=LOSS), "tokens": Wish(loss=LOSS)}
    value = valuation(settled.goal, settled.origin.structure, [partial(hw.estimate, device="vita")])
    chooser = Chooser(live=settled.origin, sensing=sensing, wishes=wishes, value=value)
    first, last = settled.turns
    assert first.structure != last.structure
    assert chooser.choice(first) == chooser.choice(last) == last.structure


@pytest.mark.slow
def test_turns_that_go_back_and_forth_end_and_say_so() -> None:
    found = run("energy=0.5")
    assert not found.settled and not found.converged and len(found.turns) == 2
    assert found.turn is min(found.turns, key=lambda one: one.closing.chosen.allocation.distortion)
    assert json.loads(found.log.splitlines()[-1])["counts"] == 1 + found.turns.index(found.turn)


def test_the_pruned_model_has_the_heads_and_tokens_it_says(settled: ClosedLoop) -> None:
    structure = settled.turn.structure
    heads = heads_of(settled.trace)
    assert heads == {block: len(structure.heads.get(block, range(HEADS))) for block in range(DEPTH)}
    rows = {operator.name: operator.m for operator in settled.trace.operators}
    tokens = 16
    for block in range(DEPTH):
        assert rows[f"blocks.{block}.attn.qkv"] == 1 + tokens
        tokens = int(np.ceil(round(structure.tokens.get(block, 1.0) * tokens, 9)))
        assert rows[f"blocks.{block}.mlp.fc1"] == 1 + tokens


def test_its_recipe_prices_what_was_delivered(settled: ClosedLoop) -> None:
    told = hw.prune(settled.published, settled.recipe)
    again, (estimate,) = hw.estimate(told, device="vita"), settled.estimates
    assert (again.latency_s, again.energy_j) == pytest.approx((estimate.latency_s, estimate.energy_j))


def checkpoint_of(folder: Path, *, classes: int, heads: int) -> Path:
    """test_vit, which has 1000 classes and 2 heads, with other numbers of them."""
    module: Any = LiveModel.of("test_vit", image_size=64).module
    if classes != 1000:
        module.reset_classifier(classes)
    if heads < 2:
        module = remove_heads(module, dict.fromkeys(range(len(module.blocks)), tuple(range(heads))))
    torch.save(module.state_dict(), folder / "weights.pt")
    return folder / "weights.pt"


@pytest.mark.parametrize(("classes", "heads"), [(10, 2), (1000, 1)])
def test_the_recipe_of_a_narrowed_checkpoint_prices_what_was_delivered(tmp_path: Path, classes: int, heads: int) -> None:
    found = hw.allocate(
        "test_vit", device="tpu-v3", budget="flops=0.8", block=(16, 16), tokens=0.7, image_size=64, samples=2, ratios=5,
        checkpoint=checkpoint_of(tmp_path, classes=classes, heads=heads),
    )  # fmt: skip
    assert found.recipe.classes == (None if classes == 1000 else classes)
    assert set(heads_of(found.trace).values()) == {heads}
    told = hw.prune(found.published, found.recipe)
    again, (estimate,) = hw.estimate(told, device="tpu-v3"), found.estimates
    assert (again.latency_s, again.energy_j) == pytest.approx((estimate.latency_s, estimate.energy_j))


@pytest.mark.parametrize(("sides", "size", "remarks"), [
    ((32, 64), None, "for images of 32 x 64 pixels (height x width)"), ((32, 32), 32, None), (32, 32, None), (None, None, None),
])  # fmt: skip
@pytest.mark.parametrize("tokens", [{}, {1: 0.5}])
def test_a_recipe_tells_the_image_size(sides: Any, size: int | None, remarks: str | None, tokens: dict[int, float]) -> None:
    live = LiveModel.of("test_vit", image_size=sides)
    structure = Structure(tokens=tokens)
    found = structure.recipe(live, live.published(), structure.of(live).structure, source="test")
    assert (found.image_size, found.remarks) == (size, remarks)


# --- what one head or token saves --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trace() -> hw.Trace:
    return hw.trace(small_vit(DEPTH).to("meta"), example=EXAMPLE.to("meta"))


def savings(trace: hw.Trace, masks: dict[str, BlockMask], structure: Structure | None = None) -> tuple[Any, Any]:
    goal = Goal.of("flops-total=0.5")
    present = Present(trace=trace, structure=structure or Structure(), masks=masks)
    value = valuation(goal, trace, ())
    return present.head_savings(value) * trace.macs, present.token_savings(value, 16) * trace.macs


def test_savings_in_macs_are_those_by_hand(trace: hw.Trace) -> None:
    tokens, width, head_dim = 17, 192, 32
    head = tokens * (3 * width * head_dim + head_dim * width) + 2 * tokens * tokens * head_dim
    heads, per_token = savings(trace, {})
    assert heads == pytest.approx([head] * DEPTH)
    linear = 12 * width**2
    attention = 2 * (17 * 17 - 9 * 9) * width / 8
    assert per_token == pytest.approx([linear + attention] * DEPTH)


def test_savings_fall_as_blocks_and_tokens_go(trace: hw.Trace) -> None:
    kept = np.zeros((18, 6), dtype=bool)
    kept[:9] = True
    masks = {"blocks.1.attn.qkv": BlockMask((576, 192), BLOCK, kept)}
    (whole, token), (heads, tokens) = savings(trace, {}), savings(trace, masks)
    assert heads == pytest.approx([whole[0], whole[1] - 17 * 0.5 * 3 * 192 * 32, whole[2]])
    assert tokens[1] == pytest.approx(token[1] - 0.5 * 3 * 192**2)
    later, _ = savings(trace, {}, Structure(tokens={0: 0.5}))
    assert later[0] == pytest.approx(whole[0]) and (later[1:] < 0.6 * whole[1:]).all()


def test_a_share_of_heads_goes_by_harm_over_saving() -> None:
    scores = np.array([[3.0, 1.0, 2.0], [9.0, 8.0, np.nan]])
    kept = kept_share(scores, np.array([1.0, 10.0]), 0.6)
    assert kept.tolist() == [[True, False, True], [True, False, False]]


def test_of_units_that_do_no_harm_those_that_save_most_go_first() -> None:
    """Both blocks have a unit whose removal is predicted to lower the loss; block 1 saves ten times as much."""
    kept = kept_share(np.array([[-1.0, 5.0], [-2.0, 5.0]]), np.array([1.0, 10.0]), 0.75)
    assert kept.tolist() == [[True, True], [False, True]]


def test_a_unit_that_saves_nothing_goes_last() -> None:
    kept = kept_share(np.array([[0.0, 5.0], [3.0, 4.0]]), np.array([0.0, 1.0]), 0.75)
    assert kept.tolist() == [[True, True], [False, True]]


@pytest.mark.parametrize(("budget", "weights"), [("energy=0.5", (0.75, 0.25)), ("energy=1J", (1.5 / 2.5, 1.0 / 2.5))])
def test_savings_are_of_the_mean_that_the_budget_is_on(trace: hw.Trace, budget: str, weights: tuple[float, float]) -> None:
    """Of shares 3 to 1; in joules the second device, which needs twice as much, weighs 2 x 1 beside 1 x 3."""

    def pricer(joule: float, *, per_mac: bool) -> Any:
        def price(trace: hw.Trace) -> Any:
            parts = np.array([float(one.macs if per_mac else one.parameter) for one in trace.operators])
            return SimpleNamespace(costs=SimpleNamespace(energy_j=joule * parts / parts.sum()))

        return price

    one, other = pricer(1.0, per_mac=True), pricer(2.0, per_mac=False)
    value = valuation(Goal.of(budget, weights=(3.0, 1.0)), trace, [one, other])(trace)
    macs = np.array([one.macs for one in trace.operators]) / trace.macs
    linear = np.array([one.parameter for one in trace.operators], float)
    assert value == pytest.approx(weights[0] * macs + weights[1] * linear / linear.sum())


@pytest.mark.parametrize("asked", ["", "0", "1.2", "loss=", "loss=-1", "los=1", "half", "-5%"])
def test_wishes_that_mean_nothing_are_refused(asked: str) -> None:
    with pytest.raises(HwmodelError, match="heads"):
        Wish.of(asked, "heads")


def test_wishes_are_parts_or_losses() -> None:
    assert Wish.of("75%", "heads") == Wish.of(0.75, "heads") == Wish(keep=0.75)
    assert Wish.of("loss=0.02", "tokens") == Wish(loss=0.02)
