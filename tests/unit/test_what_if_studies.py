"""The what-if studies in ``analysis/``: their files are valid, and what they say holds in their own numbers."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from analysis_scripts import ANALYSIS, script

import hwmodel as hw

STUDIES = sorted((ANALYSIS / "studies").glob("*.toml"))


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_a_shipped_study_is_valid_and_has_a_script_that_shows_it(path: Path) -> None:
    study = hw.load_study(path)
    assert study.name == path.stem.replace("_", "-")
    assert path == script(path.stem).STUDY


@pytest.mark.slow
def test_systolic_array() -> None:
    study = script("systolic_array")
    frame = hw.explore(study.STUDY).frame()
    assert len(frame) == 2 * 4 * 5 * 4 * 5 * 2
    tiles, memory, _ = study.sentences(frame)
    small, large, clustered = re.findall(r"(\d\.\d\d) times", tiles)
    assert float(small) > 2.5 > float(clustered) > float(large) >= 1.0
    dense, pruned = map(float, re.findall(r"(\d\.\d\d) times", memory))
    assert dense < pruned
    own = frame[(frame.model == "DeiT-B") & (frame.block == "32x32") & (frame.expect == "tile-clustered")]
    own = own[own[study.BANDWIDTH] == 1.0].sort_values("latency_s").drop_duplicates("density").set_index("density")
    assert own[study.SIDE][0.1] < own[study.SIDE][1.0]
    assert study.as_figure(frame, ".png").startswith(b"\x89PNG")


@pytest.mark.slow
def test_vita_pe() -> None:
    """64x64 PEs waste 32x32 blocks; 16x16 PEs waste none; and at eight PEs most of the time is memory's."""
    study = script("vita_pe")
    frame = hw.explore(study.STUDY).frame()
    table = study.of_chip_size(frame, study.DENSITY)
    assert table.loc["64x64", "32x32"] > 2 * table["32x32"].min()
    assert table.loc["16x16"].max() == pytest.approx(table.loc["16x16"].min(), rel=1e-6)
    assert len(study.sentences(frame)) == 3
    globs = ("blocks.*.attn.qkv", "blocks.*.attn.proj", "blocks.*.mlp.fc?")
    layers = {glob: {"block": (32, 32), "density": 0.25} for glob in globs}
    pruned = hw.prune(hw.trace("deit_base_patch16_224"), layers)
    rows = hw.estimate(pruned, device="vita", mode="chip", overrides={"pe": "32x32", "pe_count": 8}).frame()
    assert rows[rows.bound == "memory"].latency_s.sum() > 0.5 * rows.latency_s.sum()
    assert study.as_figure(frame, ".png").startswith(b"\x89PNG")


@pytest.mark.slow
def test_orin_tokens() -> None:
    study = script("orin_tokens")
    frame = hw.explore(study.STUDY).frame()
    assert study.gain(frame, study.SLOWEST, 1) > study.gain(frame, study.FASTEST, 1) > 1
    assert study.gain(frame, study.FASTEST, 8) > study.gain(frame, study.FASTEST, 1)
    alone = study.gain(frame, study.FASTEST, 1)
    assert study.gain(frame, study.FASTEST, 1, density=0.2) < alone, "blocks pruned, tokens are worth less"
    trace = hw.trace("deit_base_patch16_224")
    for mode, arithmetic in ((study.FASTEST, False), (study.SLOWEST, True)):
        rows = hw.estimate(trace, device="agx-orin-64gb", mode=mode).frame()
        share = rows[rows.bound == "compute"].latency_s.sum() / rows.latency_s.sum()
        assert bool(share > 0.5) is arithmetic
    assert study.as_figure(frame, ".png").startswith(b"\x89PNG")


@pytest.mark.slow
def test_break_even_a100() -> None:
    """The spread over layers and batch comes from the board limit: without one, none is left at batch 64."""
    study = script("break_even_a100")
    rows = study.table(batches=(1, 64))
    assert len(study.sentences(rows)) == 3
    assert len(rows) == 50 * 2 * 3 * 2 * 2
    fp16 = rows[(rows.dtype == "fp16") & (rows.block_out == 64) & (rows.role == "fc2")]
    limited = fp16[fp16.batch == 64].break_even_density.max()
    trace = hw.trace(study.MODEL, batch=64)
    free = hw.cost_table(trace, device=study.DEVICE, block=(64, 64), density=0.25, layers="*.fc2", overrides={"board_limit_w": 5e3})
    unlimited = free.rows.break_even_density.max()
    assert limited > unlimited == fp16[fp16.batch == 1].break_even_density.max()
    assert study.as_figure(rows, ".png").startswith(b"\x89PNG")
