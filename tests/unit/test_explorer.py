"""The explorer without a browser: states and addresses, what may be moved, what is shown, what is saved."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from examples import vit
from explorer_bench import small_bench

import hwmodel as hw
from hwmodel import cli
from hwmodel.backends.cards import read_card
from hwmodel.extraction.whatif.recipe_files import load_recipe
from hwmodel.ui import figures, machines, saving, views
from hwmodel.ui.batches import Batches
from hwmodel.ui.opening import opened
from hwmodel.ui.state import State, search_of
from hwmodel.ui.workbench import Workbench


@pytest.fixture
def bench(tmp_path: Path) -> Workbench:
    return small_bench(tmp_path)


@pytest.fixture
def state(bench: Workbench) -> State:
    return bench.default_state(bench.models.names[0], "vita")


def test_an_address_opens_the_state_that_wrote_it(bench: Workbench, state: State) -> None:
    moved = state.but(density=0.37, block="16x32", lie="row-clustered", heads=2, tokens=99, array="64x64", bandwidth=1.5)
    assert opened(bench, search_of(moved)) == (moved, [])


def test_an_empty_address_opens_the_defaults(bench: Workbench, state: State) -> None:
    assert opened(bench, "") == (state, [])
    assert opened(bench, None) == (state, [])


@pytest.mark.parametrize(
    ("asked", "field", "taken"),
    [
        ("density=7", "density", 1.0), ("density=-1", "density", 0.0), ("density=nan", "density", 0.5),
        ("density=x", "density", 0.5),
        ("heads=99", "heads", 0), ("tokens=0.5", "tokens", 1), ("tokens=1e9", "tokens", 0), ("block=3x3", "block", "32x32"),
        ("lie=down", "lie", "uniform"), ("mode=eager", "mode", "full"), ("power=30w", "power", ""), ("array=9x9", "array", ""),
        ("bandwidth=5", "bandwidth", 1.0), ("batch=8", "batch", 1), ("device=abacus", "device", "vita"),
        ("colour=red", "density", 0.5),
    ],
)  # fmt: skip
def test_what_does_not_exist_is_replaced_and_told(bench: Workbench, asked: str, field: str, taken: object) -> None:
    found, notes = opened(bench, f"?{asked}")
    assert getattr(found, field) == taken
    assert len(notes) == 1
    assert asked.partition("=")[0] in notes[0]


def test_an_address_may_use_another_name_of_a_device(bench: Workbench) -> None:
    found, notes = opened(bench, "?device=a100-40gb")
    assert (found.device, notes) == ("a100-40gb-sxm", [])


def test_an_address_opens_no_file_that_the_command_line_did_not_name(bench: Workbench, tmp_path: Path) -> None:
    hw.save_trace(vit(384, depth=1), tmp_path / "other.json")
    found, notes = opened(bench, f"?model={tmp_path / 'other.json'}")
    assert found.model == bench.models.names[0]
    assert "unknown model" in notes[0]


def test_modes_that_simulate_are_not_offered() -> None:
    assert "scale-sim" not in machines.modes_of(hw.load_card("tpu-v3"))
    assert "systolic" in machines.modes_of(hw.load_card("tpu-v3"))


def test_controls_without_effect_say_why(state: State) -> None:
    tpu, paper = hw.load_card("tpu-v3"), hw.load_card("vita")
    dense = vit(192, depth=1)
    assert "systolic" in machines.bandwidth_blocked(tpu, state.but(mode="systolic"), dense)
    assert machines.bandwidth_blocked(tpu, state.but(mode="device"), dense) == ""
    assert "paper" in machines.bandwidth_blocked(paper, state.but(mode="paper"), dense)
    assert machines.array_blocked(paper, state, dense) == ""


@pytest.mark.parametrize(
    ("device", "size", "fields"),
    [("tpu-v3", "64x64", {"array_rows": 64, "array_cols": 64}), ("vita", "64x64", {"pe": "64x64"}), ("t4", "20", {"sm_count": 20})],
)
def test_array_sizes_are_fields_of_the_card(device: str, size: str, fields: dict[str, object], state: State) -> None:
    card = hw.load_card(device)
    assert machines.overrides_of(card, state.but(device=device, array=size)) == fields


def test_bandwidth_multiplies_every_memory_field(state: State) -> None:
    changed = machines.overrides_of(hw.load_card("tpu-v3"), state.but(bandwidth=2.0))
    values = hw.load_card("tpu-v3").values()
    names = ("product_hbm_bytes_per_s", "vector_hbm_bytes_per_s")
    assert changed == {name: 2.0 * values[name] for name in names}


def test_an_answer_is_what_the_library_says(bench: Workbench, state: State) -> None:
    moved = state.but(density=0.5, tokens=98, bandwidth=2.0)
    answer = bench.answer(moved)
    dense = hw.load_trace(bench.models.names[0])
    layers = {"blocks.*.attn.qkv": 0.5, "blocks.*.attn.proj": 0.5, "blocks.*.mlp.fc?": 0.5}
    pruned = hw.prune(dense, {name: {"block": (32, 32), "density": kept} for name, kept in layers.items()})
    assert bench.answer(moved.but(tokens=0)).now.trace.operators == pruned.operators
    bandwidth = 2.0 * hw.load_card("vita").values()["dram_bytes_per_s"]
    again = hw.estimate(answer.now.trace, device="vita", overrides={"dram_bytes_per_s": bandwidth})
    assert (answer.now.latency_s, answer.now.energy_j) == (again.latency_s, again.energy_j)
    assert answer.now.fidelity == {"latency": "assumed", "energy": "assumed"}
    assert "dram_bytes_per_s" in views.trust(answer)


def test_bars_sum_to_the_estimate(bench: Workbench, state: State) -> None:
    answer = bench.answer(state)
    dense, now = views.latency_bars(answer)
    assert sum(share for _, share, _ in dense.parts) == pytest.approx(1.0)
    assert sum(share for _, share, _ in now.parts) == pytest.approx(answer.now.latency_s / answer.dense.latency_s)
    _, joules = views.energy_bars(answer)
    assert sum(share for _, share, _ in joules.parts) == pytest.approx(answer.now.energy_j / answer.dense.energy_j)


def test_roofline_dots_lie_where_their_sums_say(bench: Workbench, state: State) -> None:
    estimate = bench.answer(state).now
    frame = estimate.frame()
    qkv = frame[frame.role == "qkv"]
    dot = next(dot for dot in views.dots(estimate) if dot.role == "qkv")
    assert dot.macs_per_byte == pytest.approx(qkv.executed_macs.sum() / qkv.dram_bytes.sum())
    assert dot.macs_per_s == pytest.approx(qkv.executed_macs.sum() / (qkv.latency_s - qkv.gap_s).sum())
    uids = [trace["uid"] for trace in figures.roofline(bench.answer(state))["data"]]
    assert {"peak", "bandwidth", "dense", "now"} <= set(uids)


def test_the_front_of_the_grid_is_not_beaten(bench: Workbench, state: State) -> None:
    grid = bench.grid(state)
    assert len(grid.answers) == 5 * 4  # densities times token counts
    for one in grid.front:
        assert not any(o.kept_share >= one.kept_share and o.now.latency_s < one.now.latency_s for o in grid.answers)
    assert grid.front[-1].kept_share == 1.0
    assert bench.known_grid(state.but(density=0.11, tokens=50)) is grid
    assert bench.known_grid(state.but(bandwidth=2.0)) is None


def test_a_state_that_keeps_less_for_the_same_time_is_beaten(tmp_path: Path) -> None:
    """A100 tiles of 128 do not get emptier at density 0.75 anywhere, so dense does as well and keeps more."""
    bench = small_bench(tmp_path, "a100-40gb", width=768)
    state = bench.default_state(bench.models.names[0], bench.device).but(density=0.75)
    answer, grid = bench.answer(state), bench.grid(state)
    assert grid.beats(answer)
    assert views.position(answer, grid).startswith("Beaten by")
    assert views.position(bench.answer(state.but(density=1.0)), grid).startswith("On the front")
    uids = [trace["uid"] for trace in figures.pareto(answer, grid)["data"]]
    assert uids == ["grid", "front", "current"]


def test_a_straight_line_over_the_batch_meets_every_extraction() -> None:
    found = Batches.of(lambda batch: vit(192, depth=2, batch=batch))
    assert not found.fixed
    assert found.at(7) == vit(192, depth=2, batch=7)


def test_a_model_that_bends_keeps_its_batch() -> None:
    def bent(batch: int) -> hw.Trace:
        trace = vit(192, depth=1, batch=batch)
        extra = hw.elementwise("add", elements=batch * batch, name="squared")
        return trace.replace(operators=(*trace.operators, extra))

    found = Batches.of(bent)
    assert found.fixed
    assert found.at(8) is found.first


def test_a_saved_recipe_gives_the_same_estimate(bench: Workbench, state: State, tmp_path: Path) -> None:
    moved = state.but(density=0.4, heads=2, tokens=60)
    name, content = saving.file_of(bench, moved, "recipe")
    (tmp_path / name).write_text(content, encoding="utf-8")
    recipe = load_recipe(tmp_path / name)
    again = hw.estimate(hw.prune(hw.load_trace(moved.model), tmp_path / name), device="vita")
    answer = bench.answer(moved)
    assert (again.latency_s, again.energy_j) == (answer.now.latency_s, answer.now.energy_j)
    assert f"--mode {moved.mode}" in (recipe.remarks or "")


def test_a_saved_card_gives_the_same_estimate_and_claims_nothing(bench: Workbench, state: State, tmp_path: Path) -> None:
    moved = state.but(density=0.4, array="16x16", bandwidth=2.0)
    name, content = saving.file_of(bench, moved, "card")
    (tmp_path / name).write_text(content, encoding="utf-8")
    card, answer = read_card(tmp_path / name), bench.answer(moved)
    again = hw.estimate(answer.now.trace, device=tmp_path / name)
    assert (again.latency_s, again.energy_j) == (answer.now.latency_s, answer.now.energy_j)
    assert again.fidelity == {"latency": "assumed", "energy": "assumed"}
    assert card.scores == []
    assert "was 25600000000.0" in card.parameters["dram_bytes_per_s"].source
    with pytest.raises(hw.HwmodelError, match="move one of them"):
        saving.file_of(bench, state, "card")


def test_power_modes_keep_their_own_numbers_in_a_saved_card(bench: Workbench, state: State) -> None:
    moved = state.but(device="agx-orin-64gb", mode="engine", power="30w", bandwidth=0.5)
    card, before = saving.explored_card(bench, moved), hw.load_card("agx-orin-64gb")
    assert card.values("30w")["dram_bytes_per_s"] == 0.5 * before.values("30w")["dram_bytes_per_s"]
    assert card.values("maxn")["dram_bytes_per_s"] == before.values("maxn")["dram_bytes_per_s"]


def test_a_saved_report_holds_both(bench: Workbench, state: State) -> None:
    name, content = saving.file_of(bench, state, "report")
    assert name == "small_vita.html"
    assert "explored" in content


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as ended:
        cli.main(["explore-ui", *arguments])
    told = capsys.readouterr().err.splitlines()
    assert ended.value.code == 2
    return told[-1]


def test_a_busy_port_is_one_line(capsys: pytest.CaptureFixture[str], bench: Workbench) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        told = refused(capsys, bench.models.names[0], "--port", str(port))
    assert f"127.0.0.1:{port}" in told
    assert "--port" in told


def test_bad_input_is_one_line(capsys: pytest.CaptureFixture[str], bench: Workbench) -> None:
    small = bench.models.names[0]
    assert "unknown device 'abacus'" in refused(capsys, small, "--device", "abacus")
    assert "no-such.json" in refused(capsys, "no-such.json")
    assert "unknown model" in refused(capsys, "../../etc/passwd")
    assert "cannot listen" in refused(capsys, small, "--host", "no.such.host.invalid")


def test_without_the_extra_the_command_says_how_to_get_it(
    capsys: pytest.CaptureFixture[str], bench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    for name in [name for name in sys.modules if name.startswith("hwmodel.ui")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "dash", None)
    assert "pip install 'hwmodel[ui]'" in refused(capsys, bench.models.names[0])
