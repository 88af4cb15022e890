"""``analysis/table6_tpu_v3.py``: the masks it makes, and what it says about the printed table."""

from __future__ import annotations

import csv
from types import ModuleType

import pytest
from analysis_scripts import script

import hwmodel as hw

TINY = "deit_tiny_patch16_224"


@pytest.fixture(scope="module")
def table6() -> ModuleType:
    return script("table6_tpu_v3")


def test_the_printed_rows_are_all_there(table6: ModuleType) -> None:
    rows = table6.printed()
    assert len(rows) == 12
    assert [row["time_ms"] for row in rows if not row["recipe"]] == ["18.08", "2.7", "0.00063"]
    with table6.PAPER.open(encoding="utf-8") as lines:
        assert next(csv.reader(lines))[:3] == ["recipe", "model", "kept_pct"]


@pytest.mark.parametrize("density", [0.05, 0.258, 0.659, 0.95])
def test_every_mask_keeps_as_many_blocks(table6: ModuleType, density: float) -> None:
    weights = [
        hw.matmul(m=8, k=k, n=n, name=name, mask=hw.ExpectedMask((n, k), (16, 16), 1))
        for name, n, k in (("a", 512, 256), ("b", 256, 256), ("c", 1000, 256), ("d", 256, 1024))
    ]
    kept = {}
    for name, rule in table6.MASKS.items():
        masks = rule(weights, density)
        kept[name] = sum(mask.kept_blocks for mask in masks.values())
        blocks = sum(mask.total_blocks for mask in masks.values())
        assert kept[name] == pytest.approx(density * blocks, abs=len(weights)), name
    skewed = [mask.kept_fraction for mask in table6.skewed_masks(weights, density).values()]
    assert skewed == sorted(skewed, reverse=True)
    tiles = {name: table6.occupied(weights, rule(weights, density)) for name, rule in table6.MASKS.items()}
    assert tiles["clustered"] <= tiles["layer-skewed"] <= tiles["random"] + 1e-9


def test_one_model_redrawn(table6: ModuleType) -> None:
    rows = table6.redraw({TINY}, table6.MODES)
    assert [row.mask for row in rows] == ["", "random", "clustered", "layer-skewed"]
    dense, random, clustered, skewed = rows
    assert clustered.times_s["systolic"] < skewed.times_s["systolic"] <= random.times_s["systolic"] <= dense.times_s["systolic"]
    assert dense.times_s["paper-fit"] == pytest.approx(0.63e-3, rel=0.0115)
    assert clustered.occupied < 0.65 < random.occupied
    told = table6.contradictions(rows)
    assert any("592 cycles; a full array needs 765" in line for line in told)
    assert len(table6.as_table(rows).rows) == 4
