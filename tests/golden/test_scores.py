"""The published errors are recomputed: a ``scores.toml`` that no longer holds fails here.

``python analysis/scoreboard.py`` rewrites them.
"""

from __future__ import annotations

import pytest

from hwmodel.backends.cards import load_card
from hwmodel.validation.scoreboard import LINES, Line


def _marked(line: Line) -> object:
    name = f"{line.card}-{line.mode}-{'-'.join(line.dtypes)}-{line.quantity}-{line.against.split()[0]}"
    slow = any(word in line.against for word in ("vit_engines", "whole"))
    return pytest.param(line, id=name, marks=[pytest.mark.slow] if slow else [])


@pytest.mark.parametrize("line", [_marked(line) for line in LINES])
def test_stored_score_is_what_the_model_scores_today(line: Line) -> None:
    stored = [score for score in load_card(line.card).scores if (score.mode, score.against) == (line.mode, line.against)]
    (expected,) = [score for score in stored if score.dtypes == list(line.dtypes) and score.quantity == line.quantity]
    today = line.score()
    assert (today.rows, today.band) == (expected.rows, expected.band)
    for figure in ("median", "mean", "p90", "max", "bias"):
        assert getattr(today, figure) == pytest.approx(getattr(expected, figure), abs=2e-3), figure


def test_every_stored_score_has_its_line() -> None:
    stored = {(name, score.mode, score.against) for name in {line.card for line in LINES} for score in load_card(name).scores}
    assert stored == {(line.card, line.mode, line.against) for line in LINES}
