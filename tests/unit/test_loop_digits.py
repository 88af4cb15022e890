"""``analysis/loop_digits.py``: a small version of the experiment, and its way with a model and images of one's own."""

from __future__ import annotations

import csv
from functools import cache
from importlib import import_module
from pathlib import Path
from shutil import rmtree
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from hwmodel.errors import HwmodelError
from hwmodel.pruning.blocks.masking import apply_masks

ANALYSIS = Path(__file__).parents[2] / "analysis"
TIGHT = (8, 0.25)
ARRAY = "TPU 16x16"


@pytest.fixture(scope="module")
def analysis() -> SimpleNamespace:
    """The scripts, which import each other."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ANALYSIS))
        names = ("digits_vit", "loop_machines", "loop_images", "loop_results", "loop_subjects", "loop_digits")
        return SimpleNamespace(**{name: import_module(name) for name in names})


@pytest.fixture(scope="module")
def trained(analysis: SimpleNamespace) -> SimpleNamespace:
    """One model after ten epochs, its curves in 8x8 blocks, and what it may be pruned to on the array (whole units or not)."""
    subject = analysis.loop_digits.digits_subject(0, "plain", epochs=10, tune_epochs=1, cache=None)
    curves = subject.curves([8])
    priced = analysis.loop_machines.Priced(site(analysis, ARRAY), subject.structure(1, 1))
    return SimpleNamespace(
        subject=subject, curves=curves, array=cache(lambda whole: priced.choices(curves[8], whole_units=whole))
    )  # fmt: skip


def site(analysis: SimpleNamespace, name: str) -> object:
    return next(one for one in analysis.loop_machines.digits_sites() if one.name == name)


def test_training_is_repeatable_bit_for_bit_and_leaves_random_numbers_alone(analysis: SimpleNamespace) -> None:
    torch.manual_seed(5)
    first = analysis.digits_vit.train(1, epochs=1)
    drawn = torch.rand(1)
    torch.manual_seed(5)
    second = analysis.digits_vit.train(1, epochs=1)
    assert torch.equal(drawn, torch.rand(1))
    assert all(torch.equal(one, other) for one, other in zip(first.parameters(), second.parameters(), strict=True))
    assert sum(parameter.numel() for parameter in first.parameters()) == 114_778


def test_the_split_is_stratified_and_another_one_for_each_seed(analysis: SimpleNamespace) -> None:
    train, test = analysis.digits_vit.digits(0)
    assert (len(train), len(test)) == (1200, 597)
    shares = [np.bincount(part.labels.numpy()) / len(part) for part in (train, test)]
    assert np.abs(shares[0] - shares[1]).max() < 0.005
    assert not torch.equal(train.images, analysis.digits_vit.digits(1)[0].images)


def test_tokens_of_the_variant_fall_as_told(analysis: SimpleNamespace, trained: SimpleNamespace) -> None:
    import hwmodel as hw

    tok = hw.trace(analysis.digits_vit.build(0, "tok"), example=torch.zeros(1, 1, 8, 8))
    rows = {operator.name: operator.m for operator in tok.operators if operator.parameter}
    assert [rows[f"blocks.{block}.mlp.fc1"] for block in range(4)] == [1 + patches for patches in analysis.digits_vit.TOKENS]
    assert [rows[f"blocks.{block}.attn.qkv"] for block in range(4)] == [17, 17, 10, 6], "attention sees those of the block before"


def test_energy_in_proportion_to_flops_gives_the_same_masks_and_an_array_does_not(
    analysis: SimpleNamespace, trained: SimpleNamespace
) -> None:
    cases = [(8, 0.5), TIGHT]
    assert analysis.loop_digits.identical(trained.subject, cases, trained.curves) == [True, True]
    array = trained.array(False)
    masks = [array.within(cost, 0.25).masks for cost in (array.flops, array.energy)]
    assert analysis.loop_digits.digest(masks[0]) != analysis.loop_digits.digest(masks[1])


def test_knowing_the_machine_lowers_the_distortion_at_equal_energy(trained: SimpleNamespace) -> None:
    single, units = trained.array(False), trained.array(True)
    ways = [single.by_flops(0.25), single.within(single.energy, 0.25), units.within(units.energy, 0.25)]
    for way, told in zip(ways, (single, single, units), strict=True):
        assert told.energy.total(way.points) <= 0.25 * told.energy.dense * (1 + 1e-9)
    unaware, power, whole = (way.distortion for way in ways)
    assert whole < power < unaware
    assert max(way.gap for way in ways[1:]) < 0.02


def test_promised_energy_is_delivered_by_the_reloaded_model(analysis: SimpleNamespace, trained: SimpleNamespace) -> None:
    gap = analysis.loop_digits.delivered_gap(trained.subject, site(analysis, ARRAY), trained.curves[8])
    assert abs(gap) < 0.01


def test_a_small_comparison(analysis: SimpleNamespace, trained: SimpleNamespace) -> None:
    """Ten epochs of training and one of tuning: the array's own energy is worth points already."""
    rows = list(analysis.loop_digits.equal_energy(trained.subject, site(analysis, ARRAY), [TIGHT], trained.curves))
    frame = analysis.loop_results.frame_of(rows).set_index("method")
    assert list(frame.index) == list(analysis.loop_results.METHODS)
    assert (frame.energy <= 0.25 + 1e-9).all()
    assert (frame.energy > 0.24).all(), "equal energy, to the last tiles"
    assert frame.after["whole units"] > frame.after["FLOPs-aware"]
    assert (frame.after >= frame.before).all()
    assert "TPU 16x16, plain, 8x8 blocks at 25% of the energy" in analysis.loop_results.sentences(frame.reset_index())[0]


def test_an_energy_that_no_mask_reaches_is_a_row_with_the_reason(analysis: SimpleNamespace, trained: SimpleNamespace) -> None:
    rows = list(analysis.loop_digits.equal_energy(trained.subject, site(analysis, "AGX Orin"), [(8, 0.05)], trained.curves))
    assert [row.after for row in rows] == [None, None]
    assert "is below what is reachable" in rows[1].reason
    frame = analysis.loop_results.frame_of(rows)
    assert "not reachable" in analysis.loop_results.energy_table(frame)
    assert analysis.loop_results.sentences(frame)[0] == "AGX Orin, plain: no budget is within reach."


def test_masks_hold_through_fine_tuning(analysis: SimpleNamespace, trained: SimpleNamespace) -> None:
    masks = trained.array(False).uniform(0.5)
    pruned = apply_masks(trained.subject.live.module, masks)
    before = {name: parameter.clone() for name, parameter in pruned.named_parameters()}
    analysis.digits_vit.fine_tune(pruned, trained.subject.train, epochs=1)
    for name, parameter in pruned.named_parameters():
        if name.removesuffix(".weight") in masks:
            assert torch.equal(before[name] == 0, parameter == 0)
            assert not torch.equal(before[name], parameter)


def test_training_and_test_images_of_a_folder(analysis: SimpleNamespace, tmp_path: Path) -> None:
    """``train`` and ``val`` as they are; otherwise a quarter of every class is for testing. Batches are shuffled by seed."""
    from hwmodel.extraction.zoo import build

    model = build("test_vit")
    images(tmp_path / "parted", parts=("train", "val"), each=2)
    images(tmp_path / "whole", each=4)
    parted = analysis.loop_images.image_folder(tmp_path / "parted", model, 0, trained=False)
    assert [Path(path).parts[-3] for part in parted for path, _ in part.files] == ["train"] * 4 + ["val"] * 4
    train, test = analysis.loop_images.image_folder(tmp_path / "whole", model, 0, trained=False)
    assert [label for _, label in sorted(train.files)] == [0, 0, 0, 1, 1, 1]
    assert sorted(label for _, label in test.files) == [0, 1]
    assert [{label for _, label in train.first(4).files[at : at + 2]} for at in (0, 2)] == [{0, 1}, {0, 1}]
    pixels, labels = next(train.batches(6, seed=3))
    assert pixels.shape == (6, 3, 160, 160)
    assert sorted(labels.tolist()) == [0, 0, 0, 1, 1, 1]
    again, other = (next(train.batches(6, seed=seed))[0] for seed in (3, 4))
    assert torch.equal(pixels, again)
    assert not torch.equal(pixels, other)


def test_a_class_is_the_same_output_in_training_and_test(analysis: SimpleNamespace, tmp_path: Path) -> None:
    import timm

    model = timm.create_model("test_vit", num_classes=3)
    images(tmp_path, parts=("train", "val"), classes=3, each=2)
    rmtree(tmp_path / "val" / "class_0")
    read = analysis.loop_images.image_folder
    train, test = read(tmp_path, model, 0, trained=True)
    assert {(Path(path).parent.name, label) for path, label in [*train.files, *test.files]} == {(f"class_{n}", n) for n in range(3)}
    with pytest.raises(HwmodelError, match="holds 3 classes, the model has 4 outputs"):
        read(tmp_path, timm.create_model("test_vit", num_classes=4), 0, trained=True)
    (tmp_path / "val" / "class_1").rename(tmp_path / "val" / "class_9")
    with pytest.raises(HwmodelError, match="'class_9' is not among those to train on"):
        read(tmp_path, model, 0, trained=True)


def test_a_model_and_images_of_ones_own(analysis: SimpleNamespace, tmp_path: Path) -> None:
    """Random weights and generated images: every step runs, and the table has every machine."""
    images(tmp_path / "data")
    arguments = ["--data", str(tmp_path / "data"), "--model", "test_vit", "--block", "16", "--seeds", "1", "--samples", "4"]
    arguments += ["--most", "4", "--tune", "1", "--results", str(tmp_path / "rows.csv"), "-o", str(tmp_path / "figure.svg")]
    done = run(analysis.loop_digits, arguments)
    assert done.exit_code == 0, done.output
    with (tmp_path / "rows.csv").open(encoding="utf-8", newline="") as lines:
        rows = list(csv.DictReader(lines))
    assert {row["machine"] for row in rows} == {"ViTA", "tpu-v3", "a100-40gb-sxm", "agx-orin-64gb", "equal FLOPs"}
    assert all(row["after"] or row["reason"] for row in rows)
    assert "random weights" in done.output
    assert (tmp_path / "figure.svg").read_bytes().startswith(b"<")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--data", "nowhere", "--model", "test_vit"], "nowhere: no such folder"),
        (["--data", "empty", "--model", "test_vit"], "holds no images in sub-folders"),
        (["--data", "few", "--model", "test_vit"], "too few images to split"),
        (["--data", "empty"], "--data and --model go together"),
        (["--checkpoint", "some.safetensors"], "name it with --model"),
        (["--data", "few", "--model", "test_vti"], "did you mean 'test_vit'"),
        (["--cache", "nowhere"], "nowhere: not a folder"),
        (["-o", "nowhere/figure.svg"], "nowhere"),
        (["--results", "nowhere/rows.csv"], "nowhere"),
    ],
)
def test_wrong_input_is_one_line_and_writes_nothing(
    analysis: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], told: str
) -> None:
    (tmp_path / "empty").mkdir()
    images(tmp_path / "few", each=1)
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    done = run(analysis.loop_digits, arguments)
    assert done.exit_code == 2
    assert told in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.slow
def test_the_figures_that_the_experiment_is_held_to(analysis: SimpleNamespace) -> None:
    """Equal energy at 25 %, three seeds: 10 points on an array with tiles of 4 x 4 blocks, 3 on an edge card with falling tokens.

    4x4 blocks on a 16x16 array are what LSP's 32x32 blocks are on the 128x128 array of a TPU.
    """
    rows = []
    for seed in range(3):
        for variant, machine, block in (("plain", ARRAY, 4), ("tok", "ViTA 8x8", 8)):
            subject = analysis.loop_digits.digits_subject(seed, variant, epochs=60, tune_epochs=3, cache=None)
            curves = subject.curves([block])
            assert all(analysis.loop_digits.identical(subject, [(block, 0.25)], curves))
            rows += analysis.loop_digits.equal_energy(subject, site(analysis, machine), [(block, 0.25)], curves)
    gains = analysis.loop_results.by_case(analysis.loop_results.frame_of(rows)).gain.groupby("model").mean()
    assert gains["plain"] >= 10
    assert gains["tok"] >= 3


def images(folder: Path, *, parts: tuple[str, ...] = ("",), classes: int = 2, each: int = 6) -> None:
    """Noise with a colour of its own for each class."""
    drawn = np.random.default_rng(0)
    for part in parts:
        for label in range(classes):
            place = folder / part / f"class_{label}"
            place.mkdir(parents=True)
            for number in range(each):
                pixels = drawn.integers(0, 128, (24, 24, 3)) + 100 * (np.arange(3) == label)
                Image.fromarray(pixels.astype(np.uint8)).save(place / f"{number}.png")


def run(module: ModuleType, arguments: list[str]) -> object:
    import typer

    app = typer.Typer()
    app.command()(module.main)
    return CliRunner().invoke(app, arguments)
