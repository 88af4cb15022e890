"""`--drop-dead` on the command line: off by default, one line on what it would drop, one line per thing dropped."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import hwmodel as hw
from hwmodel.cli import main

RECIPE = """
schema_version = 1
model = "deit_tiny_patch16_224"
source = "a what-if"

[[layers]]
match = ["blocks.10.attn.proj", "blocks.11.mlp.fc2"]
block = [32, 32]
density = 0.0
"""


@pytest.fixture(scope="module")
def pruned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dead")
    (folder / "recipe.toml").write_text(RECIPE)
    trace = hw.prune(hw.trace("deit_tiny_patch16_224"), folder / "recipe.toml")
    hw.save_trace(trace, folder / "pruned.json")
    return folder / "pruned.json"


def test_trace_tells_what_could_be_dropped_and_changes_nothing(pruned: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["trace", str(pruned)])
    last = capsys.readouterr().out.strip().splitlines()[-1]
    assert last.startswith("further savings possible: ")
    assert "at 2 places, such as all 3 heads and the branch around them at blocks.10.attn.proj; --drop-dead drops it" in last


def test_estimate_prices_what_is_left_and_lists_what_went(pruned: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["estimate", str(pruned), "--device", "vita", "--json"])
    before = json.loads(capsys.readouterr().out)[0]
    main(["estimate", str(pruned), "--device", "vita", "--drop-dead", "--json"])
    found = capsys.readouterr()
    after = json.loads(found.out)[0]
    assert after["latency_s"] < before["latency_s"]
    assert found.err.count("hwmodel: dropped at ") == 2


def test_nothing_to_drop_is_said(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    hw.save_trace(hw.trace("deit_tiny_patch16_224"), tmp_path / "dense.json")
    main(["trace", str(tmp_path / "dense.json"), "--drop-dead", "-o", str(tmp_path / "same.json")])
    found = capsys.readouterr()
    assert found.err == "hwmodel: no dead work found\n"
    assert "further savings" not in found.out
    assert hw.load_trace(tmp_path / "same.json") == hw.load_trace(tmp_path / "dense.json")
