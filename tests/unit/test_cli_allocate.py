"""`hwmodel allocate`: what it writes, that others can use it, and one line for bad input with nothing written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import hwmodel as hw
from hwmodel import cli
from hwmodel.pruning.blocks.projections import projections

MODEL = ("allocate", "test_vit", "--image-size", "32", "--samples", "3")
ASKED = (*MODEL, "--block", "16x16", "--device", "tpu-v3,vita", "--set", "vita:pe=16x16", "--budget", "flops=0.5")


def run(*arguments: str) -> int:
    try:
        cli.main(list(arguments))
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else 1
    return 0


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One run with everything it can write, into a folder."""
    folder = tmp_path_factory.mktemp("allocated")
    assert run(*ASKED, "-o", str(folder), "--save-model", str(folder / "pruned.safetensors"), "--static") == 0
    return folder


def test_everything_is_written_beside_the_recipe(written: Path) -> None:
    names = sorted(path.name for path in written.iterdir())
    (projections,) = (name for name in names if name.startswith("projections-"))
    assert names == sorted(["pruned.safetensors", "recipe.html", "recipe.log.jsonl", "recipe.npz", "recipe.toml", projections])
    page = (written / "recipe.html").read_text(encoding="utf-8")
    assert "Kept density by layer" in page or "kept density" in page.lower()
    assert "Block masks" in page


def test_recipe_checkpoint_and_log_tell_the_same_costs(written: Path) -> None:
    steps = [json.loads(line) for line in (written / "recipe.log.jsonl").read_text(encoding="utf-8").splitlines()]
    costs = next(step for step in reversed(steps) if step["step"] == "round")["costs"]
    told = hw.prune(hw.trace("test_vit", image_size=32), written / "recipe.toml")
    read = hw.trace("test_vit", image_size=32, checkpoint=written / "pruned.safetensors")
    assert costs["flops of linear layers"]["delivered"] == 2 * sum(one.kept_macs for one in read.operators if one.parameter)
    for trace in (told, read):
        for device, mode, overrides in (("tpu-v3", "device", {}), ("vita", "full", {"pe": "16x16"})):
            estimate = hw.estimate(trace, device=device, overrides=overrides)
            assert estimate.latency_s == costs[f"latency_s on {device}/{mode}"]["delivered"]
            assert estimate.energy_j == costs[f"energy_j on {device}/{mode}"]["delivered"]


def test_the_same_command_gives_the_same_bytes_from_what_it_kept(
    written: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {path.name: path.read_bytes() for path in written.iterdir()}

    def kept(*arguments: Any, resume: Path, **options: Any) -> Any:
        assert resume.is_file(), "the key of a run must not change from one to the next"
        return projections(*arguments, resume=resume, **options)

    monkeypatch.setattr("hwmodel.allocation.loop.sensing.projections", kept)
    assert run(*ASKED, "-o", str(written / "recipe.toml"), "--no-report", "--json") == 0
    out, err = capsys.readouterr()
    document = json.loads(out)
    assert document["converged"] and document["synthetic"]
    assert "says nothing about accuracy" in err
    assert [check["gap"] <= 0.01 for check in document["costs"]] == [True] * 5
    assert {path.name: path.read_bytes() for path in written.iterdir()} == before


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--device", "vitaa", "--budget", "flops=0.5"), "did you mean 'vita'"),
        (("--device", "tpu-v3", "--budget", "flop=0.5"), "unknown budget 'flop'"),
        (("--device", "tpu-v3", "--budget", "energy=2"), "at most 1"),
        (("--device", "tpu-v3", "--budget", "energy=1%"), "below what is reachable"),
        (("--device", "tpu-v3", "--budget", "flops=0.5", "--block", "16"), "--block 16"),
        (("--device", "tpu-v3", "--budget", "flops=0.5", "--block", "128x128"), "a block of 128x128 does not fit"),
        (("--device", "tpu-v3", "--budget", "flops=0.5", "--data", "empty"), "holds no images"),
        (("--device", "tpu-v3", "--budget", "flops=0.5", "--data", "nowhere"), "no such folder"),
        (("--device", "tpu-v3", "--budget", "flops=0.5", "--data", "broken"), "cannot be read as an image"),
        (("--device", "tpu-v3", "--budget", "flops=0.5", "--checkpoint", "nowhere.pt"), "no such file"),
        (("--device", "tpu-v3", "--budget", "flops=0.5", "--checkpoint", "other.safetensors"), "is no checkpoint of test_vit"),
        (("--device", "tpu-v3", "--budget", "flops=0.5", "--floor", "x"), "--floor x"),
        (("--device", "tpu-v3", "--budget", "flops=0.5", "--weights", "1,b"), "--weights 1,b"),
        (("--device", "tpu-v3", "--budget", "flops=0.5", "--heads", "7"), "heads 7"),
        (("--device", "tpu-v3", "--budget", "flops=0.5", "--save-model", "w.pt"), ".safetensors"),
        (("--device", "tpu-v3", "--budget", "flops=0.5", "-o", "nowhere/r.toml"), "does not exist"),
        (("--device", "tpu-v3", "--budget", "flops=0.5", "-o", "r.json"), ".toml"),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_written(
    arguments: tuple[str, ...], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("empty", "broken"):
        Path(folder).mkdir()
    Path("broken/a.png").write_bytes(b"no image")
    from safetensors.numpy import save_file

    save_file({"head.weight": np.ones((3, 3), np.float32)}, "other.safetensors")
    before = sorted(Path().rglob("*"))
    output = () if "-o" in arguments else ("-o", ".")
    assert run(*MODEL, *arguments, *output) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and err.startswith("hwmodel: error: ") and told in err
    assert sorted(Path().rglob("*")) == before


def test_images_of_a_folder_bring_their_labels(tmp_path: Path) -> None:
    from PIL import Image

    from hwmodel.extraction import zoo
    from hwmodel.pruning.calibration_images import images_in

    model: Any = zoo.build("test_vit", (32, 32), device="cpu")
    model.reset_classifier(2)
    for name, shade in (("b", 200), ("a", 10)):
        (tmp_path / name).mkdir()
        for number in range(3):
            Image.new("RGB", (40, 50), (shade + number, 0, 0)).save(tmp_path / name / f"{number}.png")
    whole = images_in(tmp_path, model, 6, image_size=32)
    assert whole.images.shape == (6, 3, 32, 32) and whole.labels is not None
    assert whole.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert (whole.images[:3, 0].mean() < whole.images[3:, 0].mean()).item()
    some, again = (images_in(tmp_path, model, 4, image_size=32, seed=3) for _ in range(2))
    assert some.digest() == again.digest() != whole.digest() and len(some.images) == 4
