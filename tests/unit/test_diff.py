"""Two estimates compared operator by operator, and the check that users put into their own CI."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Iterator
from math import inf
from pathlib import Path
from typing import Any

import pytest
import yaml
from examples import pruned, vit

import hwmodel as hw
from hwmodel import cli
from hwmodel.errors import HwmodelError
from hwmodel.reporting.diff import differences
from hwmodel.reporting.diff_table import more
from hwmodel.reporting.priced import Priced, read_priced

DOCS = Path(__file__).parents[2] / "docs"
Run = Callable[..., tuple[int, str, str]]


def priced(operators: dict[str, tuple[float, float]], **changes: Any) -> Priced:
    """An estimate whose totals are the sums of its (latency_s, energy_j) by name."""
    rows = [{"name": name, "latency_s": s, "energy_j": j, "bound": "compute"} for name, (s, j) in operators.items()]
    document = {
        "model": "vit", "device": "vita", "mode": "full", "batch": 1, "dtype": "int8", "energy_scope": "board",
        "latency_s": sum(s for s, _ in operators.values()), "energy_j": sum(j for _, j in operators.values()),
        "fidelity": {"latency": "assumed", "energy": "assumed"}, "operators": rows, "schema_version": 1,
        "versions": {"hwmodel": "0.1.0"},
    }  # fmt: skip
    return Priced.model_validate(document | changes)


BEFORE = priced({"qkv": (4.0, 8.0), "norm": (1.0, 1.0), "fc1": (3.0, 6.0), "head": (2.0, 5.0)})
AFTER = priced({"qkv": (2.0, 9.5), "norm": (1.0, 1.0), "fc1": (3.5, 6.0), "gate": (0.25, 0.5)})


def test_changes_are_sorted_by_size_and_unchanged_operators_left_out() -> None:
    (found,) = differences([BEFORE], [AFTER])
    assert [(row.name, row.change, row.growth("latency")) for row in found.rows] == [
        ("qkv", "changed", -2.0), ("head", "removed", -2.0), ("fc1", "changed", 0.5), ("gate", "added", 0.25),
    ]  # fmt: skip
    (by_energy,) = differences([BEFORE], [AFTER], on="energy")
    assert [row.name for row in by_energy.rows] == ["head", "qkv", "gate", "fc1"]  # 5.0, 1.5, 0.5, 0
    assert found.growth("latency") == pytest.approx(6.75 / 10 - 1)
    assert found.growth("energy") == pytest.approx(17 / 20 - 1)


def test_rows_add_up_to_the_change_of_the_totals() -> None:
    (found,) = differences([BEFORE], [AFTER])
    for quantity, column in (("latency", "latency_s"), ("energy", "energy_j")):
        total = getattr(found.after, column) - getattr(found.before, column)
        assert sum(row.growth(quantity) for row in found.rows) == pytest.approx(total)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("now", "limit", "grew"), [(1.02, 0.02, False), (1.0201, 0.02, True), (1.0, 0.0, False), (0.5, 0.0, False)]
)
def test_a_limit_may_be_reached_and_not_passed(now: float, limit: float, grew: bool) -> None:
    (found,) = differences([priced({"a": (1.0, 1.0)})], [priced({"a": (now, 1.0)})])
    assert found.grew("latency", limit) is grew
    assert not found.grew("energy", limit)


def test_growth_from_nothing_is_over_every_limit_and_null_in_json() -> None:
    (found,) = differences([priced({"a": (0.0, 0.0)})], [priced({"a": (1.0, 0.0)})])
    assert found.growth("latency") == inf and found.growth("energy") == 0
    assert found.grew("latency", 1e6)
    document = json.loads(json.dumps(found.document("latency"), allow_nan=False))
    assert document["latency_growth"] is None and document["energy_growth"] == 0


def test_rounding_of_another_library_is_no_change() -> None:
    (found,) = differences([priced({"a": (1.0, 1.0)})], [priced({"a": (1.0 + 1e-13, 1.0)})])
    assert found.rows == ()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"model": "swin"}, "model vit and swin"),
        ({"device": "tpu-v3"}, "different devices (vita and tpu-v3)"),
        ({"batch": 8}, "batch 1 and 8"),
        ({"energy_scope": "dynamic"}, "energy scope board and dynamic"),
    ],
)
def test_what_does_not_compare_is_refused(change: dict[str, Any], told: str) -> None:
    with pytest.raises(HwmodelError) as error:
        differences([BEFORE], [priced({"qkv": (1.0, 1.0)}, **change)])
    assert told in str(error.value)


def test_what_else_differs_is_told() -> None:
    other = priced({"qkv": (4.0, 8.0)}, mode="chip", versions={"hwmodel": "0.2.0"})
    (found,) = differences([BEFORE], [other])
    assert found.settings == (("mode", "full", "chip"), ("versions hwmodel", "0.1.0", "0.2.0"))


def test_growth_in_words() -> None:
    assert [more(2.0, 2.5), more(2.0, 1.0), more(1.0, 1.0), more(0.0, 1.0), more(1.0, 0.0)] == [
        "+25.0\N{NO-BREAK SPACE}%", "-50.0\N{NO-BREAK SPACE}%", "0.0\N{NO-BREAK SPACE}%", "new", "gone",
    ]  # fmt: skip


# --- the command --------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Two traces and their estimates on two devices."""
    dense = vit(192, depth=2)
    for name, trace in (("dense", dense), ("pruned", pruned(dense, (16, 16), 0.5))):
        hw.save_trace(trace, tmp_path / f"{name}.json")
        found = [hw.estimate(trace, device=device) for device in ("vita", "tpu-v3")]
        (tmp_path / f"{name}_cost.json").write_text(json.dumps([one.document() for one in found]))
    monkeypatch.chdir(tmp_path)
    return tmp_path  # type: ignore[return-value]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def outcome(*arguments: str) -> tuple[int, str, str]:
        status = 0
        try:
            cli.main(list(arguments))
        except SystemExit as ended:
            status = ended.code if isinstance(ended.code, int) else 1
        return status, *capsys.readouterr()

    return outcome


@pytest.mark.usefixtures("folder")
def test_the_guard_fails_where_cost_grew_and_passes_where_it_fell(run: Run) -> None:
    status, out, err = run("diff", "pruned_cost.json", "dense_cost.json", "--fail-over", "2%")
    assert status == 1
    assert err.startswith("hwmodel: vita: latency grew by ") and "more than 2 %" in err
    assert "tpu-v3" not in err, "128x128 tiles skip nothing of 16x16 blocks, so nothing grew there"
    assert "blocks.0.mlp.fc1" in out
    assert run("diff", "dense_cost.json", "pruned_cost.json", "--fail-over", "0%")[0] == 0
    assert run("diff", "pruned_cost.json", "dense_cost.json", "--fail-over", "500%")[0] == 0
    assert run("diff", "pruned_cost.json", "dense_cost.json")[0] == 0


@pytest.mark.usefixtures("folder")
def test_saved_traces_are_priced_where_told(run: Run) -> None:
    status, out, _ = run("diff", "dense.json", "pruned.json", "--device", "vita,tpu-v3", "--json")
    from_estimates = run("diff", "dense_cost.json", "pruned_cost.json", "--json")
    assert (status, json.loads(out)) == (0, json.loads(from_estimates[1]))
    first = json.loads(out)[0]
    assert first["latency_s_after"] < first["latency_s_before"] and first["operators"][0]["change"] == "changed"


@pytest.mark.usefixtures("folder")
def test_the_rest_is_summed_up(run: Run) -> None:
    all_rows = json.loads(run("diff", "dense_cost.json", "pruned_cost.json", "--json")[1])[0]["operators"]
    _, out, _ = run("diff", "dense_cost.json", "pruned_cost.json", "--rows", "3")
    assert f"{len(all_rows) - 3} more" in out


def swap(folder: Path, **changes: Any) -> None:
    documents = json.loads((folder / "dense_cost.json").read_text())
    (folder / "other.json").write_text(json.dumps([one | changes for one in documents]))


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("dense_cost.json", "missing.json"), "missing.json: cannot be read (No such file or directory)"),
        (("dense_cost.json", "."), "cannot be read"),
        (("dense_cost.json", "dense.json"), "dense.json: a saved trace has no cost; say with --device"),
        (("dense_cost.json", "text.json"), "text.json: not JSON"),
        (("dense_cost.json", "list.json"), "list.json: not what `hwmodel estimate --json` prints: model: Field required"),
        (("dense_cost.json", "empty.json"), "empty.json: expected the list"),
        (("dense_cost.json", "one.json"), "different devices (vita, tpu-v3 and vita)"),
        (("dense_cost.json", "spread.json"), "spread.json: prices a distribution of token counts"),
        (("dense_cost.json", "other.json"), "the two estimates do not compare: model a ViT of width 192 and swin"),
        (("dense_cost.json", "later.json"), "later.json: schema version 2"),
        (("dense_cost.json", "pruned_cost.json", "--fail-over", "2"), "--fail-over 2: expected a percentage"),
        (("dense_cost.json", "pruned_cost.json", "--fail-over", "-1%"), "--fail-over -1%"),
        (("dense_cost.json", "pruned_cost.json", "--on", "power"), "unknown quantity 'power'"),
        (("dense_cost.json", "pruned_cost.json", "--mode", "paper"), "give --device too"),
        (("dense.json", "pruned.json", "--device", "vitta"), "unknown device 'vitta'"),
        (("dense_cost.json", "pruned_cost.json", "--device", "vita"), "dense_cost.json: not a trace"),
    ],
)
def test_bad_input_is_one_line(run: Run, folder: Path, arguments: tuple[str, ...], told: str) -> None:
    documents = json.loads((folder / "dense_cost.json").read_text())
    spread = {name: value for name, value in documents[0].items() if name != "operators"} | {"rows": []}
    swap(folder, model="swin")
    for name, content in (
        ("text", "no json"), ("list", "[{}]"), ("empty", "[]"), ("one", json.dumps(documents[:1])),
        ("spread", json.dumps([spread])),
        ("later", json.dumps([one | {"schema_version": 2} for one in documents])),
    ):  # fmt: skip
        (folder / f"{name}.json").write_text(content)
    status, out, err = run("diff", *arguments)
    assert (status, out) == (2, ""), err
    assert err.startswith("hwmodel: error: ") and err.count("\n") == 1
    assert told in err


def test_what_estimate_prints_is_what_diff_reads(folder: Path) -> None:
    found = read_priced(str(folder / "dense_cost.json"))
    estimate = hw.estimate(hw.load_trace(folder / "dense.json"), device="vita")
    assert (found[0].latency_s, found[0].energy_j) == (estimate.latency_s, estimate.energy_j)
    assert sum(row.latency_s for row in found[0].operators) == pytest.approx(estimate.latency_s)


# --- the guide ----------------------------------------------------------------------------------------------------


def workflow_commands() -> list[str]:
    """Commands of the guide's workflow that are ours, in order."""
    workflow = yaml.safe_load((DOCS / "model-cost.yml").read_text(encoding="utf-8"))
    (job,) = workflow["jobs"].values()
    return [step["run"] for step in job["steps"] if step.get("run", "").startswith("hwmodel ")]


def test_the_guide_shows_the_workflow_file_and_its_first_command() -> None:
    guide = (DOCS / "model-cost.md").read_text(encoding="utf-8")
    first = workflow_commands()[0].replace("now.json", "accepted.json")
    assert first in guide and "model-cost.yml" in guide


def test_the_workflow_of_the_guide_runs(tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own commands: they pass while nothing changes, and fail once less is pruned."""
    monkeypatch.chdir(tmp_path)
    recipe = 'schema_version = 1\nmodel = "deit_tiny_patch16_224"\nsource = "a test"\n[[layers]]\nmatch = ["blocks.*.mlp.fc?"]\n'

    def step(command: str, output: str | None = None) -> int:
        ours, _, file = command.partition(" > ")
        status, out, _ = run(*shlex.split(ours)[1:])
        if file:
            Path(output or file).write_text(out)
        return status

    price, *checks = workflow_commands()
    assert len(checks) == 2
    Path("pruning.toml").write_text(f"{recipe}block = [16, 16]\ndensity = 0.25\n")
    assert step(price, "accepted.json") == 0
    Path("now.json").write_bytes(Path("accepted.json").read_bytes())
    assert [step(check) for check in checks] == [0, 0]
    Path("pruning.toml").write_text(f"{recipe}block = [16, 16]\ndensity = 0.5\n")
    assert [step(command) for command in (price, *checks)] == [0, 1, 1]
