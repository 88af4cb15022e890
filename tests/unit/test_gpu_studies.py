"""``analysis/table7_a100.py`` and ``analysis/orin_power_modes.py``: what they claim holds in their own numbers."""

from __future__ import annotations

import csv

import pytest
from analysis_scripts import script

TINY = "deit_tiny_patch16_224"


@pytest.mark.slow
def test_table7_time_of_the_dense_rows_that_do_not_contradict() -> None:
    table7 = script("table7_a100")
    rows = table7.redraw()
    with table7.PAPER.open(encoding="utf-8", newline="") as lines:
        assert len(rows) == len(list(csv.DictReader(lines))) == 12
    dense = {row.label.split()[0]: row for row in rows if "100 %" in row.label}
    for name in ("deit_base", "deit_small"):
        assert abs(dense[name].error("a100-40gb-sxm")) < 0.10
        board_w = dense[name].model["a100-40gb-pcie", "auto"][1]
        assert board_w == pytest.approx(dense[name].paper_w, rel=0.13)
    assert dense["deit_tiny"].error("a100-40gb-sxm") > 8, "ten times too fast in print"
    assert b"<svg" in table7.as_figure(rows)
    assert len(table7.as_table(rows).rows) == 12


def test_orin_study_covers_every_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    orin = script("orin_power_modes")
    monkeypatch.setattr(orin, "MODEL", TINY)
    points = orin.study(batch=2)
    assert len(points) == 2 * 4 * 3
    assert {point.variant for point in points} == {"dense", "tokens 0.7", "blocks 0.3"}
    assert b"<svg" in orin.as_figure(points, 2)
    assert len(orin.as_table(points, 2).rows) == len(points)


@pytest.mark.slow
def test_the_most_efficient_mode_is_not_the_fastest() -> None:
    orin = script("orin_power_modes")
    points = orin.study()
    for device in orin.DEVICES:
        fastest, frugal = orin.best(points, device, "dense")
        assert fastest.mode == "maxn"
        assert frugal.mode != "maxn"
