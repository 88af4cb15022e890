"""Calibration: a card is found again from what it predicts, and what cannot be fitted is refused."""

from __future__ import annotations

import csv
import random
from pathlib import Path

import numpy as np
import pytest

import hwmodel as hw
from hwmodel import cli
from hwmodel.backends.cards import Card, load_card
from hwmodel.errors import CardError, HwmodelError, UnknownNameError
from hwmodel.validation.calibration.calibrate import Calibration, calibrate, check_card_output, name_from, write_card
from hwmodel.validation.calibration.fields import fields_by_default, fields_named
from hwmodel.validation.calibration.fitting import _points
from hwmodel.validation.calibration.observations import observations, read_rows
from hwmodel.validation.measured import COLUMNS
from hwmodel.validation.measuring.machines import machine
from hwmodel.validation.measuring.session import measure, split_of
from hwmodel.validation.measuring.tasks import Task, tasks_of_grid
from hwmodel.validation.statistics import distribution_of, errors_of, spearman

TRUTH = {"product_efficiency": 0.45, "operator_s": 20e-6, "dram_bytes_per_s": 30e9}
GRID = "m=1,64,197,1024 k=192,768 n=192,768,3072"
CPU = load_card("host-cpu")


def grid() -> list[Task]:
    """Products, and sums of which half are too large for the cache."""
    streams = [hw.elementwise("add", elements=1 << power, inputs=2, dtype="fp32") for power in range(14, 30)]
    special = [hw.gelu(elements=1 << power, dtype="fp32") for power in range(10, 27, 4)]
    extra = [Task(name=one.kind, shape=f"elems{one.elements}", dtype="fp32", operator=one) for one in [*streams, *special]]
    return [*tasks_of_grid(GRID), *extra]


def row(task: Task, seconds: float, **changes: str) -> dict[str, str]:
    return {
        "source": "made up", "device": "a machine", "dtype": task.dtype, "framework": "none", "model_or_op": task.name,
        "shape": task.shape, "batch": "1", "metric": "latency", "value": repr(seconds * 1e6), "unit": "us", "conditions": "",
        "split": split_of(task.name, task.shape, 1), **changes,
    }  # fmt: skip


def write(path: Path, rows: list[dict[str, str]]) -> Path:
    with path.open("w", encoding="utf-8", newline="") as lines:
        writer = csv.DictWriter(lines, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    return path


def made_up(path: Path, card: Card = CPU, *, noise: float = 0.03, mode: str | None = None, tasks: list[Task] | None = None) -> Path:
    """What a machine with the constants of :data:`TRUTH` would measure, with noise."""
    tasks = tasks or grid()
    trace = hw.Trace.from_operators([task.operator for task in tasks if task.operator])
    truth = TRUTH if card is CPU else {"dram_bytes_per_s": 1.3e12, "clock_hz": 1.0e9}
    seconds = hw.estimate(trace, device=card, mode=mode, overrides=truth).costs.latency_s.tolist()
    chance = random.Random(0)
    return write(path, [row(task, one * chance.lognormvariate(0, noise)) for task, one in zip(tasks, seconds, strict=True)])


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Calibration:
    return calibrate(made_up(tmp_path_factory.mktemp("found") / "measured.csv"), CPU, fields=list(TRUTH), name="mine")


def test_the_constants_are_found_again(found: Calibration) -> None:
    assert {path: pytest.approx(value, rel=0.06) for path, value in TRUTH.items()} == found.values


def test_the_error_on_rows_that_were_held_out_falls_to_the_noise(found: Calibration) -> None:
    assert found.held_out.before.median > 0.2
    assert found.held_out.after.median < 0.04
    assert found.held_out.after.max < found.held_out.before.median
    assert found.held_out.spread_after.within["10%"] == 1.0
    assert found.models is None


def test_an_outlier_does_not_drag_the_fit(tmp_path: Path) -> None:
    path = made_up(tmp_path / "measured.csv")
    with path.open(encoding="utf-8", newline="") as lines:
        rows = list(csv.DictReader(lines))
    for bad in [place for place, one in enumerate(rows) if one["split"] == "fit"][::16]:
        rows[bad]["value"] = repr(float(rows[bad]["value"]) * 20)
    values = calibrate(write(path, rows), CPU, fields=list(TRUTH)).values
    assert {path: pytest.approx(value, rel=0.15) for path, value in TRUTH.items()} == values, "least squares misses by a factor"


def test_the_same_file_gives_the_same_card(tmp_path: Path, found: Calibration) -> None:
    again = calibrate(made_up(tmp_path / "measured.csv"), CPU, fields=list(TRUTH), name="mine")
    write_card(found, tmp_path / "one.toml")
    write_card(again, tmp_path / "two.toml")
    assert (tmp_path / "one.toml").read_bytes() == (tmp_path / "two.toml").read_bytes()


def test_the_new_card_reads_back_and_says_where_its_numbers_come_from(tmp_path: Path, found: Calibration) -> None:
    write_card(found, tmp_path / "mine.toml")
    card = load_card(tmp_path / "mine.toml")
    assert card == found.card
    assert (card.name, card.aliases, card.backend) == ("mine", [], "cpu")
    entry, old = card.parameters["operator_s"], CPU.parameters["operator_s"]
    assert (entry.fidelity, entry.range) == ("calibrated", old.range)
    assert "measured.csv" in entry.source and " rows of " in entry.source and "sha256" in entry.source
    assert f"was {old.value} (assumed): {old.source}" in entry.source
    assert card.parameters["cores"] == CPU.parameters["cores"]
    assert card.fidelity["eager"].latency == "calibrated"
    assert card.fidelity["eager"].energy == "assumed"
    (score,) = card.scores
    assert (score.rows, score.mode, score.dtypes, score.band) == (found.held_out.after.rows, "eager", ["fp32"], False)
    assert score.median == pytest.approx(found.held_out.after.median, abs=1e-4)


def test_a_second_calibration_does_not_pile_up_sources(tmp_path: Path, found: Calibration) -> None:
    again = calibrate(made_up(tmp_path / "measured.csv"), found.card, fields=["operator_s"])
    assert again.card.parameters["operator_s"].source.count("hwmodel calibrate") == 1


def test_by_default_what_is_uncertain_and_matters_may_move(tmp_path: Path) -> None:
    path = made_up(tmp_path / "measured.csv")
    names = {one.path for one in fields_by_default(CPU, "eager", observations(read_rows(path), CPU, path))}
    assert {"product_efficiency", "operator_s", "dram_bytes_per_s", "elements_per_cycle_core.special"} <= names
    assert not names & {"cores", "clock_hz", "macs_per_cycle_core.fp32", "elements_per_cycle_core.norm", "mac_j.fp32", "static_w"}


def test_only_keys_that_were_fitted_change_in_a_table(tmp_path: Path) -> None:
    result = calibrate(made_up(tmp_path / "measured.csv"), CPU, fields=["elements_per_cycle_core.special", "operator_s"])
    table = result.card.parameters["elements_per_cycle_core"].value
    assert isinstance(table, dict)
    assert {table["plain"], table["norm"]} == {4.0, 0.8}
    assert table["special"] == result.values["elements_per_cycle_core.special"]


def test_values_stay_within_their_range(tmp_path: Path) -> None:
    entry = CPU.parameters["operator_s"].model_copy(update={"range": [1e-6, 8e-6]})
    card = CPU.model_copy(update={"parameters": CPU.parameters | {"operator_s": entry}})
    assert calibrate(made_up(tmp_path / "measured.csv"), card, fields=["operator_s"]).values == {"operator_s": 8e-6}


def test_it_is_never_worse_on_the_rows_it_was_fitted_to(tmp_path: Path) -> None:
    exact = made_up(tmp_path / "measured.csv", noise=1e-9)
    card = calibrate(exact, CPU, fields=list(TRUTH)).card
    again = calibrate(exact, card, fields=list(TRUTH))
    assert again.fit.after.median <= again.fit.before.median + 1e-6
    assert again.fit.after.median < 1e-3


def test_a_gpu_card(tmp_path: Path) -> None:
    card = load_card("a100-80gb-sxm")
    tasks = tasks_of_grid("m=16,197,1024 k=192,768 n=192,768,3072", dtype="bf16")
    path = made_up(tmp_path / "measured.csv", card, mode="kernel", tasks=tasks)
    result = calibrate(path, card, fields=["dram_bytes_per_s", "clock_hz"])
    assert result.mode == "kernel"
    assert result.held_out.after.median < 0.5 * result.held_out.before.median
    assert result.values["clock_hz"] == pytest.approx(1.0e9, rel=0.05)
    assert result.card.parameters["clock_hz"].fidelity == "calibrated"


def test_a_backends_default_becomes_an_entry_of_the_card(tmp_path: Path) -> None:
    card = load_card("a100-80gb-sxm")
    tasks = tasks_of_grid("m=16,197,1024 k=192,768 n=192,768,3072", dtype="bf16")
    path = made_up(tmp_path / "measured.csv", card, mode="kernel", tasks=tasks)
    assert "dram_efficiency" not in card.parameters
    entry = calibrate(path, card, fields=["dram_efficiency"]).card.parameters["dram_efficiency"]
    assert entry.fidelity == "calibrated"
    assert entry.source.endswith("was the backend's default")


def test_a_file_without_a_split_is_split_by_shape(tmp_path: Path) -> None:
    tasks = grid()
    rows = [row(task, 1e-6 * (place + 1), split="fit") for place, task in enumerate([*tasks, *tasks])]
    seen = observations(read_rows(write(tmp_path / "measured.csv", rows)), CPU, "")
    held = seen.held_out.reshape(2, -1)
    assert (held[0] == held[1]).all(), "the same shape on the same side"
    assert held[0].sum() == -(-len(tasks) // 3)
    assert len(seen.workload) == len(tasks), "each operator is priced once"


# --- what cannot be -----------------------------------------------------------------------------------------------


def test_too_few_rows(tmp_path: Path) -> None:
    path = write(tmp_path / "measured.csv", [row(task, 1e-5) for task in grid()[:6]])
    with pytest.raises(
        HwmodelError, match=r"measured\.csv: \d operator latencies to fit and \d held out, expected at least 8 and 3"
    ):
        calibrate(path, CPU)


@pytest.mark.parametrize("unit", ["ms", "s"])
def test_a_unit_with_the_wrong_prefix(tmp_path: Path, unit: str) -> None:
    path = made_up(tmp_path / "measured.csv", noise=0.0)
    text = path.read_text(encoding="utf-8").replace(",us,", f",{unit},")
    path.write_text(text, encoding="utf-8")
    with pytest.raises(
        HwmodelError, match=r"measured\.csv: its rows take \d.*e\+0\d times what host-cpu says .*check the column unit"
    ):
        calibrate(path, CPU)


def test_more_numbers_than_rows_can_tell(tmp_path: Path) -> None:
    path = made_up(tmp_path / "measured.csv", tasks=tasks_of_grid("m=1,2,3,4 k=64 n=64,128,256,512"))
    with pytest.raises(HwmodelError, match=r"\d+ rows cannot fit \d+ numbers"):
        calibrate(path, CPU, fields=["elements_per_cycle_core", "product_efficiency", "operator_s", "dram_bytes_per_s", "mac_j"])


def test_a_format_without_a_peak(tmp_path: Path) -> None:
    rows = [row(task, 1e-5) for task in grid()]
    rows[3]["dtype"] = "int8"
    path = write(tmp_path / "measured.csv", rows)
    with pytest.raises(HwmodelError, match="1 rows in int8, for which card host-cpu has no peak"):
        calibrate(path, CPU)
    assert calibrate(path, CPU, dtype="fp32", fields=["operator_s"]).fit.after.rows > 8


def test_rows_of_several_devices(tmp_path: Path) -> None:
    rows = [row(task, 1e-5) for task in grid()]
    path = write(tmp_path / "measured.csv", [*rows, *(one | {"device": "another"} for one in rows)])
    with pytest.raises(HwmodelError, match="rows of several devices: 'a machine'"):
        calibrate(path, CPU)
    assert calibrate(path, CPU, device="another", fields=["operator_s"]).fit.after.rows > 8


def test_modes_that_price_whole_programs(tmp_path: Path) -> None:
    path = write(tmp_path / "measured.csv", [row(task, 1e-5) for task in tasks_of_grid(GRID)])
    with pytest.raises(HwmodelError, match="prices whole programs, not single operators"):
        calibrate(path, load_card("a100-40gb-sxm"), mode="eager")


def test_fields_that_cannot_move() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'clock_hz'"):
        fields_named(CPU, None, ["clock_mhz"])
    with pytest.raises(UnknownNameError, match="entry of mac_j 'fp12'"):
        fields_named(CPU, None, ["mac_j.fp12"])
    with pytest.raises(HwmodelError, match="--fit pe: is not a number"):
        fields_named(load_card("vita"), None, ["pe"])
    assert [one.path for one in fields_named(CPU, None, ["mac_j"])] == ["mac_j.fp32", "mac_j.bf16"]


@pytest.mark.parametrize("name", ["none/card.toml", "card.csv", "scored/card.toml"])
def test_outputs_that_cannot_be(tmp_path: Path, name: str) -> None:
    (tmp_path / "scored").mkdir()
    (tmp_path / "scored" / "scores.toml").write_text("", encoding="utf-8")
    with pytest.raises(HwmodelError):
        check_card_output(tmp_path / name)


def test_names_of_new_cards() -> None:
    assert [name_from(path, CPU) for path in ("a/rtx-4090.mine.toml", "card.toml", "My Card.toml")] == [
        "rtx-4090.mine", "host-cpu-calibrated", "host-cpu-calibrated",
    ]  # fmt: skip


def test_a_card_that_breaks_its_backend_is_refused(tmp_path: Path) -> None:
    """idle_w may not exceed static_w; a fit that leads there says so instead of writing the card."""
    entry = CPU.parameters["idle_w"].model_copy(update={"value": 15.9, "range": [15.9, 99.0]})
    card = CPU.model_copy(update={"parameters": CPU.parameters | {"idle_w": entry}})
    with pytest.raises(CardError, match="idle_w <= static_w"):
        calibrate(made_up(tmp_path / "measured.csv"), card, fields=["idle_w"])


# --- figures ------------------------------------------------------------------------------------------------------


def test_figures_of_errors() -> None:
    measured = np.array([1.0, 2.0, 4.0, 8.0])
    predicted = np.array([1.1, 1.8, 4.0, 16.0])
    errors = errors_of(predicted, measured)
    assert errors is not None
    assert (errors.rows, errors.max) == (4, pytest.approx(1.0))
    assert errors.median == pytest.approx(0.1)
    assert errors.bias == pytest.approx((0.1 - 0.1 + 0.0 + 1.0) / 4)
    assert errors.spearman == pytest.approx(1.0)
    assert distribution_of(predicted, measured).within == {
        "5%": 0.25,
        "10%": pytest.approx(0.5, abs=0.26),
        "20%": 0.75,
        "50%": 0.75,
    }
    assert errors_of(np.zeros(0), np.zeros(0)) is None


def test_rank_correlation_shares_ranks_between_equals() -> None:
    """Ranks 1, 2.5, 2.5, 4 against 1, 3, 2, 4: Pearson's correlation of those."""
    expected = float(np.corrcoef([1, 2.5, 2.5, 4], [1, 3, 2, 4])[0, 1])
    assert spearman(np.array([1.0, 2.0, 2.0, 9.0]), np.array([1.0, 5.0, 3.0, 7.0])) == pytest.approx(expected)
    assert spearman(np.array([1.0, 1.0, 1.0]), np.array([1.0, 2.0, 3.0])) is None
    assert spearman(np.array([3.0, 2.0, 1.0]), np.array([1.0, 2.0, 3.0])) == pytest.approx(-1.0)


def test_starts_are_spread_over_the_cube() -> None:
    points = _points(32, 3)
    assert points.shape == (32, 3)
    assert ((points >= 0) & (points < 1)).all()
    assert np.diff(np.sort(points, axis=0), axis=0).max() < 0.25, "no wide gap along any side"


# --- the whole loop -----------------------------------------------------------------------------------------------


def test_measure_calibrate_predict_on_this_processor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Times of a busy machine are noisy, so only the loop is asserted, not how well it fits."""
    monkeypatch.chdir(tmp_path)
    measure(tasks_of_grid("m=1,16,64 k=32,64,128 n=32,64,128"), "m.csv", machine("cpu"), seconds=0.002)
    cli.main(["calibrate", "m.csv", "--device", "host-cpu", "--fit", "product_efficiency,operator_s", "-o", "mine.toml"])
    assert "card mine written to mine.toml" in capsys.readouterr().out
    trace = hw.Trace.from_operators([hw.matmul(m=48, k=96, n=96)])
    estimate = hw.estimate(trace, device="mine.toml")
    assert 0 < estimate.latency_s < 1
    assert estimate.fidelity["latency"] == "calibrated"


def test_the_command_prints_json_and_refuses_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import json

    monkeypatch.chdir(tmp_path)
    made_up(Path("m.csv"))
    cli.main(["calibrate", "m.csv", "--device", "host-cpu", "--fit", "operator_s", "-o", "mine.toml", "--json"])
    document = json.loads(capsys.readouterr().out)
    assert document["held_out"]["after"]["median"] < document["held_out"]["before"]["median"]
    assert [field["path"] for field in document["fields"]] == ["operator_s"]
    with pytest.raises(SystemExit) as ended:
        cli.main(["calibrate", "none.csv", "--device", "host-cpu", "-o", "other.toml"])
    assert ended.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not Path("other.toml").exists()
