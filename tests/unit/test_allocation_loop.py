"""The closed loop: what is promised is delivered, and runs repeat, resume, rebuild and refuse as they should."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from loop_examples import EXAMPLE, FOUR, TOKENS, WIDTH, images, proportional, small_vit  # noqa: F401
from torch import nn

import hwmodel as hw
from hwmodel.allocation.loop.around import costs_around
from hwmodel.allocation.loop.outcome import ClosedLoop
from hwmodel.allocation.problem import InfeasibleError
from hwmodel.backends.estimates import Estimate
from hwmodel.errors import HwmodelError
from hwmodel.pruning.blocks.projected import Projections

BLOCK = (32, 32)
LINEAR = {"qkv": 3, "proj": 1, "fc1": 4, "fc2": 4}
"""Weights of each prunable layer, in units of the width squared."""


RATIOS = 13
"""Pruning ratios per layer: few, to be quick."""


def run(budget: str = "flops=0.5", device: Any = "vita", depth: int = 1, **options: Any) -> ClosedLoop:
    fixed: dict[str, Any] = {"block": BLOCK, "example": EXAMPLE, "ratios": RATIOS}
    return hw.allocate(small_vit(depth), images(), device=device, budget=budget, **(fixed | options))


def digests(found: ClosedLoop) -> dict[str, str]:
    return {name: mask.digest for name, mask in found.masks.items()}


@pytest.fixture(scope="module")
def halved() -> ClosedLoop:
    return run(device=FOUR, depth=2)


def test_promises_are_kept_on_all_four_machines(halved: ClosedLoop) -> None:
    assert halved.converged
    assert [check.name.split(" on ")[-1].split("/")[0] for check in halved.checks[1::2]] == list(FOUR)
    for check in halved.checks:
        assert check.delivered == pytest.approx(check.promised, rel=0.01)
    flops = halved.checks[0]
    patches, classes = 2 * 16 * WIDTH * 3 * 8 * 8, 2 * WIDTH * 10
    assert flops.dense == 2 * 2 * TOKENS * sum(LINEAR.values()) * WIDTH**2 + patches + classes
    kept = sum(mask.kept_blocks * BLOCK[0] * BLOCK[1] for mask in halved.masks.values())
    whole = sum(LINEAR[name.rpartition(".")[2]] * WIDTH**2 for name in halved.allocation.density if name not in halved.masks)
    assert flops.delivered == 2 * TOKENS * (kept + whole) + patches + classes <= 0.5 * flops.dense


def test_what_is_delivered_is_what_anyone_reads_from_the_files(halved: ClosedLoop, tmp_path: Path) -> None:
    halved.save(tmp_path / "r.toml", weights=tmp_path / "w.safetensors", log=tmp_path / "log.jsonl")
    read = hw.trace(small_vit(seed=5), example=EXAMPLE, checkpoint=tmp_path / "w.safetensors")
    told = hw.prune(hw.trace(small_vit().to("meta"), example=EXAMPLE.to("meta")), hw.load_recipe(tmp_path / "r.toml"))
    for device, estimate in zip(FOUR, halved.estimates, strict=True):
        for other in (read, told):
            again = hw.estimate(other, device=device)
            assert (again.latency_s, again.energy_j) == (estimate.latency_s, estimate.energy_j)
    weights = halved.module.state_dict()
    for name, mask in halved.masks.items():
        blocks = weights[f"{name}.weight"].unfold(0, 32, 32).unfold(1, 32, 32).abs().sum(dim=(2, 3))
        assert ((blocks > 0).numpy() == mask.kept).all()
    steps = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    rounds = len(halved.closing.rounds)
    assert [step["step"] for step in steps] == [
        "versions",
        "asked",
        "model",
        "images",
        "structure",
        *["machine"] * 4,
        *["round"] * rounds,
        "end",
    ]


@pytest.mark.parametrize(
    ("device", "budget"),
    [("tpu-v3", "energy=0.85"), ("a100-40gb-sxm", "energy=0.9"), ("agx-orin-64gb", "latency=0.985")],
)
def test_device_budgets_are_met(device: str, budget: str) -> None:
    found = run(budget, device)
    quantity, share = budget.split("=")
    check = next(check for check in found.checks if check.name.startswith(quantity))
    assert found.converged and check.delivered <= float(share) * check.dense * (1 + found.closing.chosen.excess)
    assert found.closing.chosen.excess <= 0.01 and check.gap <= 0.01


def test_the_same_seed_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        found = run()
        found.save(tmp_path / name / "r.toml", weights=tmp_path / name / "w.safetensors", log=tmp_path / name / "log.jsonl")
    for file in ("r.toml", "r.npz", "w.safetensors", "log.jsonl"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()
    assert digests(run(seed=1)) != digests(found)


def test_an_interrupted_run_goes_on_from_what_is_kept(tmp_path: Path) -> None:
    def allocated(**options: Any) -> ClosedLoop:
        fixed: dict[str, Any] = {"device": "vita", "budget": "flops=0.5", "block": BLOCK, "example": EXAMPLE, "ratios": RATIOS}
        return hw.allocate(small_vit(1), images(18), **(fixed | options))

    def stop(told: str) -> None:
        if told.startswith("sensitivities: 16 "):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        allocated(folder=tmp_path, progress=stop)
    (kept,) = tmp_path.iterdir()
    assert Projections.load(kept).samples == 16
    resumed = allocated(folder=tmp_path)
    assert Projections.load(kept).samples == 18
    whole = allocated()
    assert digests(resumed) == digests(whole) and resumed.log == whole.log


def test_energy_proportional_to_flops_gives_the_masks_of_flops(proportional: Path) -> None:  # noqa: F811
    flops, energy = (run(f"{quantity}=0.4", proportional) for quantity in ("flops", "energy"))
    assert flops.masks.keys() == energy.masks.keys()
    for name, mask in flops.masks.items():
        assert mask.digest == energy.masks[name].digest
    assert all(one.largest < 1e-12 for told in energy.closing.departures for one in told.values())


# --- promises that are not kept at first -------------------------------------------------------------------------------------


def slower_when_pruned(factor: Callable[[int], float]) -> Callable[[hw.Trace], Estimate]:
    """ViTA whose clock falls by a factor as soon as anything is pruned, which no cost table from before can know."""
    calls: list[int] = []

    def price(trace: hw.Trace) -> Estimate:
        pruned = any(operator.mask is not None for operator in trace.operators)
        calls.extend([1] * pruned)
        clock = 1e9 / factor(len(calls)) if pruned else 1e9
        return hw.estimate(trace, device="vita", overrides={"clock_hz": clock})

    return price


def test_costs_are_rebuilt_until_they_are_what_is_delivered() -> None:
    found = run("latency=0.6", slower_when_pruned(lambda _: 1.1))
    gaps = [one.gap for one in found.closing.rounds]
    assert gaps[0] == pytest.approx(0.1, rel=0.2) and gaps[-1] <= 0.01 and found.converged
    latency = found.checks[1]
    assert latency.delivered <= 0.6 * latency.dense * 1.01
    assert found.allocation.distortion > found.closing.rounds[0].allocation.distortion


def test_what_does_not_converge_is_said() -> None:
    found = run("latency=0.6", slower_when_pruned(lambda call: 1.1 if call % 2 else 1.3), rounds=3)
    assert len(found.closing.rounds) == 3 and not found.closing.converged and not found.converged
    assert found.closing.chosen is min(found.closing.rounds, key=lambda one: max(one.gap, one.excess))
    assert "not converged" in repr(found)


def test_rebuilt_costs_are_exact_where_the_model_is(halved: ClosedLoop) -> None:
    allocation = halved.allocation
    for machine, now in zip(halved.closing.machines, halved.estimates, strict=True):
        for quantity, cost in costs_around(machine, allocation.problem.layers, allocation.points, now).items():
            assert cost.total(allocation.points) == pytest.approx(getattr(now, quantity), rel=1e-12)
            assert cost.dense == pytest.approx(getattr(machine.dense, quantity))


# --- refusals ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"budget": "energy=0.01"}, "below what is reachable"),
        ({"budget": "energy=0.5", "device": ()}, "name a device"),
        ({"device": "vit"}, "did you mean 'vita'"),
        ({"solver": "best"}, "unknown solver"),
        ({"floor": 1.5}, "outside"),
        ({"cap": {"blocks.7.*": 0.5}}, "matches no layer"),
        ({"layers": ["blocks.7.*"]}, "unknown layer"),
        ({"delta": "paper"}, "no labels"),
        ({"delta": "paperr"}, "unknown delta"),
        ({"heads": "loss=-1"}, "heads loss=-1"),
        ({"tokens": 0.0}, "tokens 0.0"),
        ({"folder": "nowhere"}, "not a folder"),
        ({"checkpoint": "weights.pt"}, "brings its own weights"),
        ({"rounds": 0}, "rounds 0"),
    ],
)
def test_bad_input_is_refused_before_any_sensitivity(options: dict[str, Any], told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hwmodel.allocation.loop.sensing.projections", lambda *_, **__: pytest.fail("sensitivities were made"))
    with pytest.raises(HwmodelError, match=told):
        run(**options)


def test_a_floor_that_the_budget_cannot_meet_is_told() -> None:
    with pytest.raises(InfeasibleError, match="below what is reachable"):
        run("flops=0.3", floor=0.6)


def test_a_block_larger_than_a_layer_is_named() -> None:
    with pytest.raises(HwmodelError, match=r"blocks\.0\.attn\.qkv: a block of 256x256"):
        run(block=(256, 256))


def test_losses_that_are_not_numbers_are_refused() -> None:
    model = small_vit(1)
    with torch.no_grad():
        model.blocks[0].mlp.fc1.weight[0, 0] = torch.nan  # type: ignore[union-attr,index]
    with pytest.raises(HwmodelError, match="not finite"):
        hw.allocate(model, images(), device="vita", budget="flops=0.5", block=BLOCK, example=EXAMPLE)


def test_the_model_handed_over_is_left_alone() -> None:
    model: nn.Module = small_vit(1)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    hw.allocate(model, images(2), device="vita", budget="flops=0.5", block=BLOCK, example=EXAMPLE, ratios=RATIOS, heads=0.75)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_blocks_that_are_gone_already_stay_gone(halved: ClosedLoop) -> None:
    again = hw.allocate(halved.module, images(), device="vita", budget="flops=0.4", block=BLOCK, example=EXAMPLE, ratios=None)
    assert again.converged
    for name, mask in halved.masks.items():
        assert not (again.masks[name].kept & ~mask.kept).any()


@pytest.mark.parametrize(("device", "share"), [("vita", 0.5), ("tpu-v3", 0.9)])
def test_steps_make_sensitivities_anew_around_the_masks_of_the_last(device: str, share: float) -> None:
    found = run(f"energy={share}", device, steps=2)
    first, last = (closing.chosen.allocation for closing in found.turn.closings)
    shares = [one.problem.limits[0].most / found.checks[2].dense for one in (first, last)]
    assert shares == pytest.approx([share**0.5, share]) and found.converged
    for layer, point in zip(last.problem.layers, last.points, strict=True):
        before = first.masks[layer.name].tile_occupancy(*BLOCK) if layer.name in first.masks else np.ones(layer.blocks)
        lost = layer.blocks - np.count_nonzero(before)
        assert layer.pruned.min() == lost and layer.delta[layer.pruned == lost].tolist()[0] == 0.0
        assert (layer.mask(point).tile_occupancy(*BLOCK).ravel() <= before.ravel()).all()
