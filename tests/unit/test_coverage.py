"""`hwmodel trace --all` and the table behind it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import hwmodel as hw
from hwmodel.cli import main
from hwmodel.errors import HwmodelError
from hwmodel.extraction import models, zoo
from hwmodel.validation.coverage import coverage

PATTERN = "vit_tiny_patch16_[23]*"


def test_families_hold_every_name_once() -> None:
    found = zoo.families()
    import timm  # after the torchvision beside a CPU-only torch is repaired

    assert sorted(name for names in found.values() for name in names) == sorted(timm.list_models())
    assert list(found) == sorted(timm.list_modules())


def test_a_pattern_chooses_names_or_whole_modules() -> None:
    assert zoo.families("vit_tiny_patch16_224") == {"vision_transformer": ["vit_tiny_patch16_224"]}
    assert zoo.families("swin_transformer") == {"swin_transformer": zoo.families()["swin_transformer"]}


def test_every_model_has_its_rows_and_macs() -> None:
    told: list[str] = []
    found = coverage("vit_tiny_patch16_224", tell=told.append).document()
    trace = hw.trace("vit_tiny_patch16_224")
    assert (found["names"], found["extracted"]) == (1, 1)
    assert found["families"] == [
        {
            "family": "vision_transformer",
            "names": 1,
            "extracted": 1,
            "failed": [],
            "models": [{"model": "vit_tiny_patch16_224", "operators": len(trace), "macs": trace.macs}],
        }
    ]
    assert told == ["1 of 1: vit_tiny_patch16_224"]


@pytest.mark.slow
def test_processes_change_nothing_but_the_time() -> None:
    told: list[str] = []
    pattern = "levit_128*"
    names = zoo.families(pattern)["levit"]
    assert len(names) > 1
    shared = coverage(pattern, workers=2, tell=told.append)
    assert shared == coverage(pattern)
    assert told == [f"{number} of {len(names)}: {name}" for number, name in enumerate(names, start=1)]
    with pytest.raises(HwmodelError, match="workers must be at least 1, got 0"):
        coverage(pattern, workers=0)


def test_a_model_that_fails_is_a_line_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str) -> hw.Trace:
        if name.endswith("384"):
            raise ZeroDivisionError("no\npatches")
        raise HwmodelError(f"{name} uses operators that hwmodel does not model: aten.foo x2")

    monkeypatch.setattr(models, "trace", fail)
    (family,) = coverage(PATTERN).families
    assert {one.name: one.reason for one in family.failed} == {
        "vit_tiny_patch16_224": "vit_tiny_patch16_224 uses operators that hwmodel does not model: aten.foo x2",
        "vit_tiny_patch16_384": "ZeroDivisionError: no patches",
    }
    assert family.extracted == ()


def test_the_command_writes_and_prints_the_same(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    main(["trace", "--all", "--family", "vit_tiny_patch16_224", "--json", "-o", str(tmp_path / "zoo.json")])
    captured = capsys.readouterr()
    assert json.loads(captured.out) == json.loads((tmp_path / "zoo.json").read_text(encoding="utf-8"))
    assert "1 of 1: vit_tiny_patch16_224" in captured.err
    main(["trace", "--family", "vit_tiny_patch16_224"])
    assert "1 of 1 names extract" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--all", "deit_tiny_patch16_224"], "--all does not go together with MODEL"),
        (["--all", "--reconcile", "--batch", "2"], "--all does not go together with --reconcile, --batch"),
        (["--family", "nothing_like_this"], "no timm model or family matches 'nothing_like_this'"),
        (["--all", "-o", "zoo.parquet"], "expected a file name that ends in .json"),
        (["--all", "-o", "none/zoo.json"], "folder 'none' does not exist"),
        ([], "name a model"),
        (["deit_tiny_patch16_224", "--reconcile", "-o", "x.json"], "--reconcile does not go together with --output"),
        (["none.json", "--reconcile"], "give its timm name"),
    ],
)
def test_what_does_not_go_together(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as left:
        main(["trace", *arguments])
    captured = capsys.readouterr()
    assert left.value.code == 2
    assert words in captured.err
    assert captured.err.count("\n") == 1
    assert not list(tmp_path.iterdir())
