"""Effects against variances worked out by hand, the figures that are drawn, and the command itself."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tomlkit
from study_examples import document, model_file, study

import hwmodel as hw
from hwmodel.cli import main
from hwmodel.exploration.effects import effects, worth
from hwmodel.exploration.plots import figures, write_figures
from hwmodel.reporting.units import si


def crossed(value: object) -> pd.DataFrame:
    frame = pd.DataFrame([(a, b) for a in (1, 2) for b in (1, 2)], columns=["a", "b"])
    return frame.assign(y=[value(a, b) for a, b in zip(frame.a, frame.b, strict=True)])  # type: ignore[operator]


def test_a_product_has_no_interaction() -> None:
    """log y = log a + 3 log b: variances 1 : 9, so shares are 0.1 and 0.9, factors 2 and 8."""
    found = {one.knobs: one for one in effects(crossed(lambda a, b: a * b**3), ["a", "b"], "y")}
    assert found["a",].share == pytest.approx(0.1)
    assert found["b",].share == pytest.approx(0.9)
    assert found["a", "b"].share == pytest.approx(0.0, abs=1e-12)
    assert (found["a",].factor, found["b",].factor) == (pytest.approx(2), pytest.approx(8))


def test_what_only_shows_together_is_interaction() -> None:
    found = {one.knobs: one.share for one in effects(crossed(lambda a, b: 10.0 if a == b else 1.0), ["a", "b"], "y")}
    assert found == {("a",): pytest.approx(0), ("b",): pytest.approx(0), ("a", "b"): pytest.approx(1)}


def test_worth_is_the_gain_over_the_largest_value_at_each_other() -> None:
    frame = pd.DataFrame({"density": [0.5, 1.0] * 2, "keep": [0.5, 0.5, 1.0, 1.0], "latency_s": [2.0, 2.0, 2.0, 4.0]})
    table = worth(frame, "latency_s", "density", "keep")
    assert table.loc[0.5].to_dict() == {0.5: pytest.approx(1.0), 1.0: pytest.approx(2.0)}
    assert worth(frame, "latency_s", "density", "keep", "max").loc[0.5, 1.0] == pytest.approx(0.5)
    assert table.loc[1.0].tolist() == [1.0, 1.0]


def test_the_figures_a_study_calls_for(tmp_path: Path) -> None:
    found = hw.explore(study(model_file(tmp_path), objectives=["latency_s", "energy_j", "kept_share"]))
    drawn = figures(found)
    assert list(drawn) == ["front", "parallel", "sensitivity", "heat", "interactions"]
    assert len(drawn["front"].axes) == 3
    assert {text.get_text() for text in drawn["sensitivity"].axes[0].get_yticklabels()} >= {"device", "density", "clock_hz"}
    first = {path.name: path.read_bytes() for path in write_figures(found, tmp_path)}
    assert first == {path.name: path.read_bytes() for path in write_figures(found, tmp_path)}
    assert all(data.startswith(b"\x89PNG") for data in first.values())


def test_the_command_prints_the_front_and_keeps_everything(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "study.toml"
    file.write_text(tomlkit.dumps(document(model_file(tmp_path))))
    main(["explore", str(file), "-o", str(tmp_path / "out"), "--json", "--no-plots"])
    shown = json.loads(capsys.readouterr().out)
    results = hw.load_results(tmp_path / "out")
    front = pd.read_csv(tmp_path / "out" / "front.csv")
    assert (shown["points"], len(shown["front"]), len(front)) == (75, len(results.front()), len(results.front()))
    losses = results.frame()[["latency_s", "energy_j"]].to_numpy()
    best = [row for row in losses if not ((losses <= row).all(axis=1) & (losses < row).any(axis=1)).any()]
    assert np.array_equal(np.unique(front[["latency_s", "energy_j"]].to_numpy(), axis=0), np.unique(best, axis=0))
    main(["explore", str(file), "-o", str(tmp_path / "out")])
    told = capsys.readouterr()
    assert "75 of 75 points" not in told.err.splitlines()[1:]
    assert "on the front" in told.out
    cheapest = results.front().latency_s.min()
    assert si(cheapest, "s") in told.out
    assert {path.name for path in (tmp_path / "out").iterdir()} >= {"front.png", "sensitivity.png", "study.json", "points"}


def test_bad_input_is_one_line_and_exit_status_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "study.toml"
    file.write_text(tomlkit.dumps(document(model_file(tmp_path), limit=10)))
    for arguments in (
        [str(tmp_path / "none.toml"), "-o", str(tmp_path / "out")],
        [str(file), "-o", str(tmp_path / "out")],
        [str(file), "-o", str(tmp_path / "none" / "out"), "--yes"],
        [str(file), "-o", str(tmp_path / "out"), "--workers", "2", "--cluster", "tcp://127.0.0.1:1"],
        [str(file), "-o", str(tmp_path / "out"), "--workers", "0"],
    ):
        with pytest.raises(SystemExit) as stop:
            main(["explore", *arguments])
        assert stop.value.code == 2
        assert len(capsys.readouterr().err.strip().splitlines()) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["study.toml", "tiny.json"]
