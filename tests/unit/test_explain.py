"""Explanations: sentences that the numbers bear out, on every machine, and changes that were really tried."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from examples import pruned, vit

import hwmodel as hw
from hwmodel import cli
from hwmodel.backends.cards import Card, shipped_cards
from hwmodel.backends.registry import get_backend
from hwmodel.errors import HwmodelError
from hwmodel.ir.trace import Trace
from hwmodel.reporting.breakdown import ROLES, group_of
from hwmodel.reporting.explain import Explanation, explain, without_masks
from hwmodel.reporting.explain_groups import Group, occupied_share
from hwmodel.reporting.explain_trials import HELPS, Trial

CARDS = list(shipped_cards().values())
DESIGN = {"vita": {"pe": "32x32"}}
LIMITS = {"memory-bound": "memory", "launch-bound": "launch", "host-bound": "host", "vector-bound": "vector"}


def told(trace: Trace, device: Any, *, dense: Trace | None = None, at_batch: Any = None, **choices: Any) -> Explanation:
    def price(one: Trace) -> hw.Estimate:
        return hw.estimate(one.replace(design=DESIGN), device=device, **choices)

    return explain(price(trace), price(dense or without_masks(trace)), price, at_batch=at_batch)


def group(found: Explanation, name: str) -> Group:
    return next(one for one in found.groups if one.group == name)


def tried(found: Explanation, kind: str) -> Trial | None:
    return next((one for one in found.trials if one.kind == kind), None)


@cache
def examples() -> dict[str, Trace]:
    """Versions that meet every reason on some machine."""
    small, wide = vit(192, depth=2), vit(768, depth=1, batch=8)
    emptied = pruned(small, (32, 32), 0.0)
    return {
        "dense": small, "fine": pruned(small, (16, 16), 0.6), "blocks": pruned(wide, (32, 32), 0.3),
        "clustered": pruned(wide, (32, 32), 0.3, "tile-clustered"), "coarse": pruned(wide, (128, 128), 0.1), "emptied": emptied,
        "2:4": small.replace(operators=tuple(one.replace(sparsity="2:4") if one.role == "fc1" else one for one in small.operators)),
    }  # fmt: skip


@pytest.mark.parametrize("name", list(examples()))
@pytest.mark.parametrize("card", CARDS, ids=lambda card: card.name)
def test_every_machine_is_explained_and_claims_hold(card: Card, name: str) -> None:
    found = told(examples()[name], card)
    lines = list(found.lines())
    assert len(lines) >= 4 and all(lead and text for lead, text in lines)
    assert not any("nan" in text or "inf " in text or "None" in text for _, text in lines)
    json.dumps(found.document(), allow_nan=False)
    assert sum(one.latency_s for one in found.groups) == pytest.approx(found.comparison.case.latency_s, rel=1e-9)
    for one in found.groups:
        check_claim(found, one)
    for trial in found.trials:
        assert trial.latency_s >= 0 and str(trial.text).endswith(".")


def check_claim(found: Explanation, one: Group) -> None:
    """What a reason says must be in the rows."""
    case = found.comparison.case
    rows = [row for row, operator in enumerate(case.trace.operators) if ROLES[group_of(operator)] == one.group]
    touched = [row for row in rows if case.trace.operators[row].mask or case.trace.operators[row].sparsity]
    operators = [case.trace.operators[row] for row in touched]
    masks = [operator.mask for operator in operators if operator.mask is not None]
    dense = found.comparison.dense.frame.executed_macs[[operator.name for operator in operators]].sum()
    executed = float(case.estimate.costs.executed_macs[touched].sum() / dense) if dense else 1.0
    if one.reason in LIMITS:
        costs = case.estimate.costs
        limited = costs.latency_s * (costs.bound == LIMITS[one.reason]) + (costs.gap_s if one.reason == "host-bound" else 0.0)
        others = [costs.latency_s * (costs.bound == other) for other in set(costs.bound.tolist()) - {LIMITS[one.reason], "none"}]
        assert all(limited[touched].sum() >= other[touched].sum() for other in others)
        assert ("host" if one.reason == "host-bound" else one.reason.removesuffix("-bound")) in one.text
    elif one.reason == "skip-unit-too-coarse":
        assert executed > one.kept and occupied_share(masks, found.comparison.unit) >= one.kept - 1e-9
    elif one.reason == "above-break-even":
        assert busy(forced(found), touched) >= busy(case.estimate, touched) * (1 - 1e-9) and executed > 0.99
    elif one.reason == "masks-unused":
        assert executed == pytest.approx(1.0)
    elif one.reason == "gains":
        assert one.latency_s <= one.dense_s
    elif one.reason == "not-pruned":
        assert one.pruned == 0 and not touched


def forced(found: Explanation) -> hw.Estimate:
    now = found.comparison.case.estimate
    return hw.estimate(now.trace, device=now.card, mode=now.mode, dtype=now.dtype, sparse_kernel="always")


def busy(estimate: hw.Estimate, rows: list[int]) -> float:
    return float((estimate.costs.latency_s - estimate.costs.gap_s)[rows].sum())


def test_every_machine_family_gives_its_own_reason() -> None:
    """The same blocks: a PE skips them, 128x128 tiles cannot, a kernel is above break-even, a processor ignores them."""
    trace = pruned(vit(768, depth=1), (32, 32), 0.3)
    reasons = {device: group(told(trace, device), "fc1").reason for device in ("vita", "tpu-v3", "a100-40gb-sxm", "host-cpu")}
    assert reasons == {
        "vita": "gains", "tpu-v3": "skip-unit-too-coarse", "a100-40gb-sxm": "above-break-even", "host-cpu": "masks-unused",
    }  # fmt: skip


def test_eager_mode_waits_for_the_host() -> None:
    found = told(pruned(vit(768, depth=1), (64, 64), 0.66), "a100-40gb-sxm", mode="eager")
    assert group(found, "fc1").reason == "host-bound"
    assert "waiting for the host" in group(found, "fc1").text


def test_skip_units_are_the_machines_own() -> None:
    trace = pruned(vit(192, depth=1), (32, 32), 0.3)
    units = {
        device: told(trace, device).comparison.unit for device in ("vita", "tpu-v3", "systolic-32x32", "a100-40gb-sxm", "host-cpu")
    }
    assert units == {
        "vita": (32, 32),
        "tpu-v3": (128, 128),
        "systolic-32x32": (32, 32),
        "a100-40gb-sxm": (64, 64),
        "host-cpu": None,
    }


def test_an_array_that_keeps_no_weights_skips_nothing() -> None:
    trace = pruned(vit(192, depth=1), (32, 32), 0.3)
    assert told(trace, "tpu-v3", mode="systolic").comparison.unit == (128, 128)
    found = told(trace, "tpu-v3", mode="systolic", overrides={"dataflow": "os"})
    assert found.comparison.unit is None and group(found, "fc1").reason == "masks-unused"


def test_occupied_units_by_hand() -> None:
    """One kept 32x32 block in each of two 128x128 tiles of a 128x512 weight: half of the four tiles."""
    kept = np.zeros((4, 16), dtype=bool)
    kept[0, 0] = kept[3, 5] = True
    mask = hw.BlockMask((128, 512), (32, 32), kept)
    assert occupied_share([mask], (128, 128)) == 0.5
    assert occupied_share([mask], None) == 1.0


# --- what would help ----------------------------------------------------------------------------------------------


def repriced(
    trace: Trace, device: str, block: tuple[int, int] | None = None, density: float | None = None, rule: Any = "uniform"
) -> Any:
    """The trace with its masks replaced, priced apart from the code under test."""
    operators = []
    for one in trace.operators:
        if one.mask is not None:
            shape = (min((block or one.mask.block)[0], one.n), min((block or one.mask.block)[1], one.k))
            share = one.mask.kept_fraction if density is None else density
            operators.append(one.replace(mask=hw.expected_mask((one.n, one.k), shape, share, rule)))
        else:
            operators.append(one)
    return hw.estimate(trace.replace(operators=tuple(operators), design=DESIGN), device=device)


def test_coarser_blocks_are_the_skip_unit_at_the_same_density() -> None:
    trace = pruned(vit(768, depth=1), (32, 32), 0.3)
    found = told(trace, "tpu-v3")
    trial, by_hand = tried(found, "coarser-blocks"), repriced(trace, "tpu-v3", block=(128, 128))
    assert trial is not None and trial.settings == {"block": "128x128"}
    assert trial.latency_s == by_hand.latency_s
    assert trial.faster == pytest.approx(found.comparison.case.latency_s / by_hand.latency_s)
    assert trial.less_energy == pytest.approx(found.comparison.case.energy_j / by_hand.energy_j)
    assert trial.helps and f"{trial.faster:.2f}" in trial.text


def test_clusters_keep_number_and_shape_of_blocks() -> None:
    trace = pruned(vit(768, depth=1), (32, 32), 0.3)
    found = told(trace, "tpu-v3")
    trial = tried(found, "clustered-blocks")
    assert trial is not None and trial.latency_s == repriced(trace, "tpu-v3", rule="tile-clustered").latency_s
    assert found.smallest is trial, "it asks less of a model than other blocks do"


def test_break_even_density_is_where_the_sparse_kernel_begins_to_win() -> None:
    """All layers of one density on the A100: just above the break-even nothing changes, just below it is faster."""
    trace = pruned(vit(768, depth=1, batch=8), (64, 64), 0.8)
    found = told(trace, "a100-40gb-sxm")
    trial = tried(found, "lower-density")
    assert trial is not None
    even, now = trial.settings["break_even_density"], found.comparison.case.latency_s
    assert repriced(trace, "a100-40gb-sxm", density=even * 1.1).latency_s == pytest.approx(now, rel=0.02)
    assert repriced(trace, "a100-40gb-sxm", density=even * 0.9).latency_s < now
    assert trial.settings["density"] == pytest.approx(0.9 * even) and even < trial.settings["now"]
    assert trial.latency_s == pytest.approx(repriced(trace, "a100-40gb-sxm", density=0.9 * even).latency_s, rel=5e-3)


def test_layers_that_gain_are_not_thinned() -> None:
    found = told(pruned(vit(768, depth=1), (32, 32), 0.3), "vita")
    assert tried(found, "lower-density") is None
    assert {one.kind for one in found.untried} == {"clustered-blocks", "coarser-blocks", "lower-density", "larger-batch"}


def test_a_larger_batch_is_tried_where_launches_cost() -> None:
    """DeiT-T on the A100 is limited by launches, which a batch shares."""
    asked: list[int] = []

    def at_batch(batch: int) -> tuple[Trace, Trace]:
        asked.append(batch)
        dense = vit(192, depth=2, batch=batch)
        return dense, pruned(dense, (16, 16), 0.6)

    dense, present = at_batch(1)
    found = told(present, "a100-40gb-sxm", dense=dense, at_batch=at_batch)
    trial = tried(found, "larger-batch")
    assert trial is not None and asked[1:] == [2, 8, 32]
    alone, shared = (
        hw.estimate(pruned(vit(192, depth=2, batch=b), (16, 16), 0.6), device="a100-40gb-sxm") for b in (1, trial.settings["batch"])
    )
    assert trial.faster == pytest.approx(alone.latency_s * trial.settings["batch"] / shared.latency_s)
    assert trial.faster > 1.5 and "per image" in trial.text
    assert not trial.helps, "faster, but pruning is worth no more than before: that is what help means for a pruned model"


def test_a_dense_model_is_told_what_pruning_would_bring() -> None:
    found = told(vit(768, depth=1), "tpu-v3")
    assert all(one.reason in {"not-pruned", "no-time"} for one in found.groups)
    trial = tried(found, "pruned-blocks")
    assert trial is not None and trial.settings == {"block": "128x128", "density": 0.5} and trial.pruning_faster is None
    assert "nothing pruned" in found.findings[0].text
    halved = pruned(vit(768, depth=1), (128, 128), 0.5)
    assert trial.latency_s == pytest.approx(hw.estimate(halved, device="tpu-v3").latency_s)


def test_help_starts_at_its_threshold() -> None:
    for trace in (examples()["blocks"], examples()["fine"]):
        for device in ("vita", "tpu-v3", "a100-40gb-sxm"):
            for trial in told(trace, device).trials:
                assert trial.helps == (trial.faster is not None and trial.faster >= HELPS)


def test_a_recipe_that_asks_for_a_pe_is_held_against_the_dense_model_on_it() -> None:
    """A larger PE is none of pruning's doing."""
    dense = vit(192, depth=1)
    wide = pruned(dense, (32, 32), 0.5).replace(design={"vita": {"pe": "64x64"}})
    found = explain(
        hw.estimate(wide, device="vita"), hw.estimate(dense, device="vita"), lambda one: hw.estimate(one, device="vita")
    )
    on_same = hw.estimate(dense.replace(design={"vita": {"pe": "64x64"}}), device="vita")
    assert found.comparison.dense.latency_s == on_same.latency_s


def test_estimates_of_two_machines_are_refused() -> None:
    one, other = (hw.estimate(vit(192, depth=1), device=device) for device in ("vita", "tpu-v3"))
    with pytest.raises(HwmodelError, match="different machines"):
        explain(one, other, lambda trace: hw.estimate(trace, device="vita"))


# --- the command --------------------------------------------------------------------------------------------------

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    monkeypatch.chdir(tmp_path)
    hw.save_trace(vit(192, depth=1), "dense.json")
    hw.save_trace(pruned(vit(192, depth=1), (16, 16), 0.5), "pruned.json")
    head = 'schema_version = 1\nmodel = "a ViT of width 192"\nsource = "a test"\n'
    Path("half.toml").write_text(head + '[[layers]]\nmatch = ["blocks.*.mlp.fc?"]\nblock = [16, 16]\ndensity = 0.5\n')

    def outcome(*arguments: str) -> tuple[int, str, str]:
        status = 0
        try:
            cli.main(["explain", *arguments])
        except SystemExit as ended:
            status = ended.code if isinstance(ended.code, int) else 1
        return status, *capsys.readouterr()

    return outcome


def test_the_command_explains_in_words(run: Run) -> None:
    status, out, _ = run("dense.json", "--device", "vita,tpu-v3", "--recipe", "half.toml")
    assert status == 0
    assert "on vita (full, int8)" in out and "on tpu-v3 (device, bf16)" in out
    for heading in ("What limits it", "What pruning did", "fc1 (1 of 1 pruned", "Smallest change that helps"):
        assert out.count(heading) == 2
    assert all(len(line) <= 110 for line in out.splitlines())


def test_the_command_says_the_same_as_json(run: Run) -> None:
    status, out, _ = run("pruned.json", "--device", "tpu-v3", "--json")
    (found,) = json.loads(out)
    assert status == 0 and found["skip_unit"] == [128, 128]
    assert found["latency_s"] == hw.estimate(hw.load_trace("pruned.json"), device="tpu-v3").latency_s
    assert found["dense_latency_s"] == hw.estimate(hw.load_trace("dense.json"), device="tpu-v3").latency_s
    assert {one["group"]: one["reason"] for one in found["groups"]}["fc1"] == "skip-unit-too-coarse"
    batch = next(one for one in found["not_tried"] if one["kind"] == "larger-batch")
    assert "saved trace" in batch["why"]


def test_a_batch_is_tried_for_a_model_by_name(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hwmodel.reporting.explain_trials.BATCHES", (2,))
    status, out, _ = run("deit_tiny_patch16_224", "--device", "a100-40gb", "--recipe", "deit_tiny_lsp_b16x16", "--json")
    (found,) = json.loads(out)
    trial = next(one for one in found["tried"] if one["kind"] == "larger-batch")
    assert status == 0 and trial["settings"]["batch"] == 2 and trial["faster"] > 1.5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("dense.json", "--device", "vitta"), "unknown device 'vitta'"),
        (("dense.json",), "--device"),
        (("missing.json", "--device", "vita"), "missing.json"),
        (("dense.json", "--device", "vita", "--recipe", "nowhere.toml"), "nowhere"),
        (("dense.json", "--device", "vita", "--checkpoint", "a.pt", "--recipe", "half.toml"), "give one of them"),
        (("dense.json", "--device", "vita", "--mode", "ful"), "unknown mode"),
        (("dense.json", "--device", "vita", "--set", "clock_hz=[1e9, 2e9]"), "expected one value"),
    ],
)
def test_bad_input_is_one_line(run: Run, arguments: tuple[str, ...], message: str) -> None:
    before = sorted(path.name for path in Path().iterdir())
    status, out, err = run(*arguments)
    assert (status, out) == (2, ""), err
    assert err.startswith("hwmodel: error: ") and err.count("\n") == 1 and message in err
    assert sorted(path.name for path in Path().iterdir()) == before


def test_backends_say_what_they_skip_or_that_they_do_not() -> None:
    """Every backend of ours has the hook, but the processor, whose kernels skip nothing."""
    silent = {card.backend for card in CARDS if not hasattr(get_backend(card.backend), "skip_unit")}
    assert silent == {"cpu"}
