"""The closed loop: what is promised is delivered, and runs repeat, resume, rebuild and refuse as they should."""

from __future__ import annotations

import json
import re
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


@pytest.mark.parametrize(("depth", "tokens"), [(2, (0.9, 0.4)), (4, ("loss=0.01",))])
def test_projections_that_are_kept_are_of_one_structure(tmp_path: Path, depth: int, tokens: tuple[float | str, ...]) -> None:
    """Token schedules change no weight, yet what every block does: each has a file of its own, as have the turns of one run."""
    for keep in tokens:
        fixed: dict[str, Any] = {"device": "vita", "budget": "flops=0.5", "block": BLOCK, "example": EXAMPLE, "ratios": RATIOS}
        kept, whole = (hw.allocate(small_vit(depth), images(), tokens=keep, folder=one, **fixed) for one in (tmp_path, None))
        assert digests(kept) == digests(whole), keep
    files = list(tmp_path.iterdir())
    assert len(files) == 2 and {file.suffix for file in files} == {".projections"}


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
        ({"weights": (1.0,)}, "leave weights out"),
        ({"budget": "energy=0.5", "weights": (0.7, 0.3), "floor": 0.1}, "expected 1 values"),
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


def test_what_is_told_to_be_reachable_is_reached() -> None:
    """Few ratios: one block per layer lies between two of them."""
    with pytest.raises(InfeasibleError) as refused:
        run("energy=0.01")
    total = re.search(r"reachable: (\S+) of (\S+) ", str(refused.value))
    assert total is not None
    least = float(total[1]) / float(total[2])
    found = run(f"energy={least * 1.0001}")
    assert found.estimates[0].energy_j == pytest.approx(least * found.checks[-1].dense, rel=1e-3)


def test_the_log_has_every_choice_that_prices_depend_on() -> None:
    """The same masks at another clock, in another scope: only the log can tell the two runs apart."""
    found = run(device="agx-orin-64gb", options={"attention": "math", "sparse_kernel": "always", "scope": "dynamic",
                                                 "overrides": {"clock_hz": np.float64(1e9)}})  # fmt: skip
    steps = [json.loads(line) for line in found.log.splitlines()]
    machine = next(step for step in steps if step["step"] == "machine")
    assert {name: machine[name] for name in ("overrides", "attention", "sparse_kernel", "scope")} == {
        "overrides": {"clock_hz": 1e9}, "attention": "math", "sparse_kernel": "always", "scope": "dynamic",
    }  # fmt: skip


def test_a_block_larger_than_a_layer_is_named() -> None:
    with pytest.raises(HwmodelError, match=r"blocks\.0\.attn\.qkv: a block of 256x256"):
        run(block=(256, 256))


def test_weights_that_are_not_numbers_are_refused() -> None:
    model = small_vit(1)
    with torch.no_grad():
        model.blocks[0].mlp.fc1.weight[0, 0] = torch.nan  # type: ignore[union-attr,index]
    with pytest.raises(HwmodelError, match=r"^VisionTransformer: blocks\.0\.mlp\.fc1\.weight holds NaN"):
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


class Offset(nn.Module):
    """A norm with an offset that no input changes: a linear layer over a table."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.offset = nn.LayerNorm(WIDTH), nn.Linear(64, WIDTH)
        self.register_buffer("table", torch.ones(TOKENS, 64))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.norm(inputs) + self.offset(self.table.expand(len(inputs), -1, -1))
        return found


@pytest.mark.parametrize("layers", [None, ["blocks.*", "norm.offset"]])
def test_what_is_computed_once_costs_nothing_and_is_pruned_only_if_asked_for(layers: list[str] | None) -> None:
    model = small_vit(1)
    model.norm = Offset()
    found = hw.allocate(
        model, images(2), device="vita", budget="flops=0.5", block=BLOCK, example=EXAMPLE, ratios=RATIOS, layers=layers
    )
    assert found.converged and found.origin.structure["norm.offset"].constant
    assert ("norm.offset" in found.allocation.density) == (layers is not None)
    assert found.turn.departures[0].keys() == {f"blocks.0.{name}" for name in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")}
    assert all(json.loads(line) for line in found.log.splitlines())


class Embedding(nn.Module):
    """Patches by two convolutions, of which the first overlaps, and a narrow layer behind them."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.patches = nn.Conv2d(3, 32, 3, padding=1), nn.Conv2d(32, WIDTH, 8, 8)
        self.narrow, self.wide = nn.Linear(WIDTH, 4), nn.Linear(4, WIDTH)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.patches(self.stem(inputs)).flatten(2).transpose(1, 2)
        return found + self.wide(self.narrow(found))


def test_layers_nobody_asked_for_are_left_out_where_they_do_not_fit_and_that_is_said() -> None:
    model = small_vit(1)
    model.patch_embed = Embedding()
    said: list[str] = []
    fixed: dict[str, Any] = {"device": "vita", "budget": "flops=0.8", "block": (8, 8), "example": EXAMPLE, "ratios": RATIOS}
    found = hw.allocate(model, images(2), progress=said.append, **fixed)
    left = ("patch_embed.stem", "patch_embed.narrow", "patch_embed.wide")
    assert found.converged and not set(left) & found.allocation.density.keys()
    (told,) = (line for line in said if line.startswith("left dense"))
    assert all(name in told for name in left) and "windows overlap" in told
    logged = next(step for step in map(json.loads, found.log.splitlines()) if step["step"] == "model")
    assert logged["left_dense"].keys() == set(left)
    for name in left:
        with pytest.raises(HwmodelError, match=name):
            hw.allocate(model, images(2), layers=[name], **(fixed | {"budget": "flops=0.98"}))


def test_a_second_stage_counts_what_the_first_pruned_elsewhere(halved: ClosedLoop) -> None:
    fixed: dict[str, Any] = {"block": BLOCK, "example": EXAMPLE, "ratios": None}
    for budget in ("flops=0.4", "energy=0.5", "flops=0.8"):
        again = hw.allocate(halved.module, images(), device="vita", budget=budget, layers=["blocks.1.*"], **fixed)
        assert len(again.closing.rounds) == 1 and again.converged, budget
        flops, _, energy = again.checks
        assert (flops.dense, energy.dense) == (halved.checks[0].dense, halved.checks[2].dense)
    assert again.masks.keys() <= {f"blocks.1.{name}" for name in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")}
    assert again.checks[0].delivered == pytest.approx(halved.checks[0].delivered)


def test_a_layer_without_any_weight_left_stays_as_it_is() -> None:
    model = small_vit(1)
    with torch.no_grad():
        model.blocks[0].mlp.fc1.weight.zero_()  # type: ignore[union-attr,index]
    found = hw.allocate(model, images(2), device="vita", budget="flops=0.5", block=BLOCK, example=EXAMPLE, ratios=RATIOS)
    assert found.converged and found.allocation.density["blocks.0.mlp.fc1"] == 0.0
    assert all(kept > 0 for name, kept in found.allocation.density.items() if name != "blocks.0.mlp.fc1")


def test_departures_are_those_of_the_layers_before_anything_was_pruned() -> None:
    one, two = (run("flops=0.5", steps=steps) for steps in (1, 2))
    assert two.turn.departures[0].keys() == one.turn.departures[0].keys() == one.allocation.density.keys()
    assert two.document()["departure_from_eq_7"] == one.document()["departure_from_eq_7"]
    assert two.frame()["departure on vita/full"].equals(one.frame()["departure on vita/full"])
    logged = [next(json.loads(line) for line in found.log.splitlines() if '"machine"' in line) for found in (one, two)]
    assert logged[0] == logged[1]


def test_costs_are_not_rebuilt_when_no_round_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    rebuilt: list[int] = []

    def counted(*arguments: Any) -> Any:
        rebuilt.append(1)
        return costs_around(*arguments)

    monkeypatch.setattr("hwmodel.allocation.loop.closing.costs_around", counted)
    found = run("latency=0.6", slower_when_pruned(lambda call: 1.1 if call % 2 else 1.3), rounds=2)
    assert len(found.closing.rounds) == 2 and len(rebuilt) == 1
