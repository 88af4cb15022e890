"""Cost tables: every entry against the recipe it stands for, lookups, files and refusals."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from examples import vit

import hwmodel as hw
from hwmodel.cli import main
from hwmodel.exploration.cost_files import save_nested
from hwmodel.exploration.costs import COLUMNS

BLOCK = (32, 32)
DENSITIES = (0.0, 0.25, 0.5, 0.75, 1.0)
LAYERS = ["*.qkv", "*.proj", "*.fc?", "head"]  # what a recipe prunes below; "*.proj" is the patch embedding's too
DEVICES = {"tpu-v3": "device", "systolic-32x32": "systolic", "a100-40gb": "compiled", "agx-orin-64gb": "engine"}
ADDITIVE = {"tpu-v3": "device", "systolic-32x32": "systolic"}


@pytest.fixture(scope="module")
def trace() -> hw.Trace:
    return vit(192, depth=2)


@pytest.fixture(scope="module")
def table(trace: hw.Trace) -> hw.CostTable:
    return hw.cost_table(trace, device="tpu-v3", block=[BLOCK, (64, 64)], density=DENSITIES)


def recipe(density: float, block: tuple[int, int] = BLOCK) -> dict[str, dict[str, object]]:
    return {name: {"block": block, "density": density} for name in LAYERS}


def rows(table: hw.CostTable, group: str, density: float) -> dict[str, float]:
    chosen = table.rows[(table.rows.group == group) & (table.rows.density == density)]
    return dict(zip(chosen.name, chosen.latency_s, strict=True))


@pytest.mark.parametrize(("device", "mode"), DEVICES.items())
@pytest.mark.parametrize("choices", [{}, {"sparse_kernel": "always"}, {"scope": "dynamic"}])
def test_every_entry_is_the_row_of_the_pruned_model(trace: hw.Trace, device: str, mode: str, choices: dict[str, str]) -> None:
    """The whole table against recipe and estimate, density by density, to the last bit."""
    table = hw.cost_table(trace, device=device, mode=mode, density=DENSITIES, **choices)
    for density in DENSITIES:
        estimate = hw.estimate(hw.prune(trace, recipe(density)), device=device, mode=mode, **choices)
        frame = estimate.frame()
        for name in table.layers:
            cost = table.cost(layer=name, density=density)
            assert (cost.latency_s, cost.energy_j) == (frame.latency_s[name], frame.energy_j[name])
            assert (cost.dram_bytes, cost.executed_macs) == (frame.dram_bytes[name], frame.executed_macs[name])
        assert rows(table, "model", density) == {"model": estimate.latency_s}
        blocks = {str(block): group.latency_s.sum() for block, group in frame.groupby("block")}
        assert rows(table, "encoder block", density) == pytest.approx(blocks, rel=1e-12)


@pytest.mark.parametrize(("device", "mode"), ADDITIVE.items())
def test_layers_and_the_rest_are_the_model_where_the_device_is_additive(trace: hw.Trace, device: str, mode: str) -> None:
    table = hw.cost_table(trace, device=device, mode=mode, density=DENSITIES)
    curves = table.curves("latency_s")
    for number, density in enumerate(DENSITIES):
        total = hw.estimate(hw.prune(trace, recipe(density)), device=device, mode=mode).latency_s
        assert curves.cost[:, number].sum() + curves.rest == pytest.approx(total, rel=1e-12)
    assert table.interaction().latency_s.abs().max() <= 1e-12 * table.interaction().model_latency_s.max()


def test_a_device_that_is_not_additive_says_by_how_much(trace: hw.Trace) -> None:
    """A GPU that compiles folds what follows an emptied layer: the rest gets cheaper at density 0, and only there."""
    table = hw.cost_table(trace, device="a100-40gb", density=DENSITIES)
    apart = table.interaction().set_index("density")
    dense, empty = (hw.estimate(hw.prune(trace, recipe(density)), device="a100-40gb").latency_s for density in (1.0, 0.0))
    layers = {density: sum(rows(table, "layer", density).values()) for density in (1.0, 0.0)}
    assert apart.latency_s[0.0] == pytest.approx((empty - layers[0.0]) - (dense - layers[1.0]), rel=1e-9)
    assert apart.latency_s[0.0] < 0
    assert apart.latency_s[[0.25, 0.5, 0.75, 1.0]].abs().max() < 1e-15


def test_tokens_heads_batch_and_dtype_are_axes() -> None:
    batches = [vit(192, depth=2, batch=batch) for batch in (1, 4)]
    table = hw.cost_table(
        batches, device="a100-40gb", density=[0.5], tokens=[98, 196], heads=[2, 3], dtype=["fp16", "fp32"]
    )  # fmt: skip
    assert table.axes == {
        "batch": (1, 4), "dtype": ("fp16", "fp32"), "tokens": (98, 196), "heads": (2, 3), "block": (BLOCK,),
    }  # fmt: skip
    encoder = {"model": batches[1].model, "source": "test", "encoder": [{"blocks": "0-1", "heads": 2, "tokens": 98}]}
    pruned = hw.prune(hw.prune(batches[1], hw.Recipe.model_validate(encoder)), recipe(0.5))
    frame = hw.estimate(pruned, device="a100-40gb", dtype="fp32").frame()
    found = table.cost(layer="blocks.1.mlp.fc1", density=0.5, batch=4, tokens=98, heads=2, dtype="fp32")
    assert found.latency_s == frame.latency_s["blocks.1.mlp.fc1"]
    block = table.cost(encoder_block=1, density=0.5, batch=4, tokens=98, heads=2, dtype="fp32")
    assert block.energy_j == pytest.approx(frame.energy_j[frame.block == 1].sum(), rel=1e-12)
    assert block.latency_s < table.cost(encoder_block=1, density=0.5, batch=4, tokens=196, heads=3, dtype="fp32").latency_s
    with pytest.raises(hw.HwmodelError, match=r"tokens: expected one; it has 98, 196"):
        table.cost(layer="head", density=0.5, batch=1, heads=2, dtype="fp16")


def test_macs_and_blocks_are_counted(table: hw.CostTable) -> None:
    """fc1 of width 192: 768 x 192 weights in 24 x 6 blocks of 32x32, each used by 197 tokens."""
    fc1 = table.rows[(table.rows.name == "blocks.0.mlp.fc1") & (table.rows.block_out == 32)].set_index("density")
    assert fc1.all_blocks.tolist() == [24 * 6] * 5
    assert fc1.kept_blocks.tolist() == [0, 36, 72, 108, 144]
    assert fc1.kept_macs.tolist() == [blocks * 32 * 32 * 197 for blocks in (0, 36, 72, 108, 144)]
    assert set(fc1.macs) == {197 * 192 * 768}
    assert list(table.rows.columns) == list(COLUMNS)


def test_hull_and_slope_of_a_curve_worked_by_hand(trace: hw.Trace) -> None:
    """Points (0, 0), (.5, 3), (1, 4): the hull is the straight line, slope 4."""
    from hwmodel.exploration.hulls import lower_hull

    hull = lower_hull(np.array([0.0, 0.5, 1.0]), np.array([0.0, 3.0, 4.0]))
    assert (hull.value.tolist(), hull.slope.tolist()) == ([0.0, 2.0, 4.0], [4.0, 4.0, 4.0])
    convex = lower_hull(np.array([0.0, 0.25, 0.5, 1.0]), np.array([1.0, 1.0, 1.5, 4.0]))
    assert (convex.value.tolist(), convex.slope.tolist()) == ([1.0, 1.0, 1.5, 4.0], [0.0, 0.0, 2.0, 5.0])
    alone = lower_hull(np.array([1.0]), np.array([7.0]))
    assert alone.value.tolist() == [7.0]
    assert np.isnan(alone.slope).all()


def test_break_even_is_where_the_forced_kernel_meets_the_dense_one(trace: hw.Trace) -> None:
    """One block fewer than the break-even still pays, one more does not: found by trying both."""
    table = hw.cost_table(trace, device="a100-40gb", block=(64, 64), density=[0.5], layers="blocks.0.mlp.fc1")
    limit = float(table.rows[table.rows.group == "layer"].break_even_density.iloc[0])
    kept = round(limit * 36)  # 768 x 192 weights in 12 x 3 blocks
    assert 0 < kept < 36

    def seconds(blocks: int) -> float:
        pruned = hw.prune(trace, {"blocks.0.mlp.fc1": {"block": (64, 64), "density": blocks / 36}})
        return hw.estimate(pruned, device="a100-40gb", sparse_kernel="always").frame().latency_s["blocks.0.mlp.fc1"]

    dense = hw.estimate(trace, device="a100-40gb").frame().latency_s["blocks.0.mlp.fc1"]
    assert seconds(kept) <= dense < seconds(kept + 1)


def test_a_machine_that_skips_for_free_always_breaks_even(table: hw.CostTable) -> None:
    assert set(table.rows[table.rows.group == "layer"].break_even_density) == {1.0}
    assert table.rows[table.rows.group != "layer"].break_even_density.isna().all()


def test_lookup_interpolates_only_where_asked_and_never_outside(trace: hw.Trace) -> None:
    table = hw.cost_table(trace, device="systolic-32x32", density=[0.25, 0.5])
    low, high = (table.cost(layer="head", density=density).latency_s for density in (0.25, 0.5))
    assert table.cost(layer="head", density=0.1 + 0.15 + 1e-12).latency_s == low
    with pytest.raises(hw.HwmodelError, match=r"density 0.3 is not in the cost table; the nearest are 0.25 and 0.5"):
        table.cost(layer="head", density=0.3)
    between = table.cost(layer="head", density=0.3, interpolate=True)
    assert between.latency_s == pytest.approx(low + (high - low) * 0.2, rel=1e-12)
    for outside in (0.2, 1.1, -0.5, float("nan")):
        with pytest.raises(hw.HwmodelError, match=r"outside the cost table, which goes from 0\.25 to 1"):
            table.cost(layer="head", density=outside, interpolate=True)
    with pytest.raises(hw.HwmodelError, match="layer 'haed' is not in the cost table; did you mean 'head'"):
        table.cost(layer="haed", density=0.5)
    with pytest.raises(hw.HwmodelError, match="block: 64x64 is not in the table; it has 32x32"):
        table.cost(layer="head", density=0.5, block=(64, 64))
    with pytest.raises(hw.HwmodelError, match="unknown axis of the cost table 'token'"):
        table.cost(layer="head", density=0.5, token=3)


@pytest.mark.parametrize("ending", ["parquet", "csv", "json"])
def test_what_is_saved_loads_back_equal(table: hw.CostTable, tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"costs.{ending}"
    hw.save_cost_table(table, path)
    loaded = hw.load_cost_table(path)
    assert loaded.rows.equals(table.rows)
    assert loaded.about == table.about
    first = path.read_bytes()
    hw.save_cost_table(loaded, path)
    assert path.read_bytes() == first


def test_the_table_says_what_it_is_of(trace: hw.Trace, table: hw.CostTable) -> None:
    same = hw.cost_table(trace, device="tpu-v3", density=[0.5]).about
    other = hw.cost_table(trace.replace(dtype="bf16"), device="tpu-v2", density=[0.5]).about
    assert (same["trace_sha256"], same["card_sha256"]) == (table.about["trace_sha256"], table.about["card_sha256"])
    assert other["trace_sha256"] != same["trace_sha256"]
    assert other["card_sha256"] != same["card_sha256"]
    assert (same["schema_version"], same["device"], same["mode"], same["expect"]) == (1, "tpu-v3", "device", "uniform")


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.json", "{}", "not a cost table"),
        ("a.json", '{"format": "hwmodel-cost-table", "schema_version": 9, "columns": {}}', "schema version 1, found"),
        ("a.json", '{"format": "hwmodel-cost-table", "schema_version": 1, "columns": {}}', "columns are missing: group"),
        ("a.csv", "group,name\n", "not a cost table"),
        ("a.parquet", "text", "not a cost table"),
        ("a.txt", "", "ends in .parquet or .csv or .json"),
        ("missing.json", None, "cannot be read"),
    ],
)
def test_a_file_that_is_no_cost_table_is_refused(tmp_path: Path, name: str, content: str | None, reason: str) -> None:
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(hw.HwmodelError, match=reason):
        hw.load_cost_table(tmp_path / name)


def test_nested_form_for_knapsack_allocators(table: hw.CostTable, tmp_path: Path) -> None:
    nested = table.nested("energy_j", block=BLOCK)
    assert tuple(nested) == table.layers
    assert nested["blocks.0.mlp.fc1"]["72"] == table.cost(layer="blocks.0.mlp.fc1", density=0.5, block=BLOCK).energy_j
    save_nested(nested, tmp_path / "n.json")
    assert json.loads((tmp_path / "n.json").read_text()) == nested
    with pytest.raises(hw.HwmodelError, match="block: expected one"):
        table.nested()
    with pytest.raises(hw.HwmodelError, match="one number of heads only"):
        table.nested(width="heads", block=BLOCK)


def test_nested_form_by_tokens() -> None:
    table = hw.cost_table(vit(192, depth=2), device="tpu-v3", density=[0.5], tokens=[98, 196])
    nested = table.nested(width="tokens", density=0.5)
    assert {block: list(widths) for block, widths in nested.items()} == {"0": ["98", "196"], "1": ["98", "196"]}
    assert nested["1"]["98"] == table.cost(encoder_block=1, density=0.5, tokens=98).latency_s < nested["1"]["196"]


def test_curves_are_arrays_for_an_allocator(table: hw.CostTable) -> None:
    curves = table.curves("executed_macs", block=(64, 64))
    assert curves.cost.shape == (len(curves.names), len(DENSITIES)) == (10, 5)
    assert curves.density.tolist() == list(DENSITIES)
    assert table.curves(group="encoder block", block=BLOCK).cost.shape == (2, 5)
    with pytest.raises(hw.HwmodelError, match="no curves of a group 'heads'"):
        table.curves(group="heads", block=BLOCK)
    with pytest.raises(hw.HwmodelError, match="unknown quantity"):
        table.curves("seconds", block=BLOCK)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"density": [0.5, 1.5]}, r"density 1.5 is outside \[0, 1\]"),
        ({"density": float("nan")}, "density nan is outside"),
        ({"density": []}, "at least one fraction"),
        ({"block": (512, 512)}, r"block 512x512 is larger than patch_embed.proj \(192x768, out x in\) and 9 more layers"),
        ({"block": (32.5, 32)}, "expected .out, in. in weights"),
        ({"block": (0, 32)}, "expected .out, in. in weights"),
        ({"device": "tpu-v33"}, "unknown device"),
        ({"layers": "blocks.*.mpl"}, r"'blocks.\*.mpl' matches no prunable layer"),
        ({"expect": "random"}, "expected one of uniform"),
        ({"tokens": 500}, "asks for 500 patch tokens"),
        ({"heads": 0}, "counts of at least 1"),
        ({"overrides": {"clock_hz": [1e9, 2e9]}}, "one design"),
        ({"tokens": []}, "an axis of the cost table is empty"),
    ],
)
def test_bad_input_is_refused(trace: hw.Trace, changes: dict[str, object], reason: str) -> None:
    with pytest.raises(hw.HwmodelError, match=reason):
        hw.cost_table(trace, **{"device": "tpu-v3", "density": [0.5], **changes})  # type: ignore[arg-type]


def test_a_trace_without_a_layer_to_prune_is_refused() -> None:
    bare = hw.Trace.from_operators([hw.softmax(rows=4, cols=4), hw.matmul(batch=2, m=4, k=4, n=4)])
    with pytest.raises(hw.HwmodelError, match="by hand has no prunable layer"):
        hw.cost_table(bare, device="tpu-v3", density=0.5, block=(2, 2))


def test_traces_of_one_model_at_different_batch_sizes_only(trace: hw.Trace) -> None:
    with pytest.raises(hw.HwmodelError, match="each at another batch size"):
        hw.cost_table([trace, trace], device="tpu-v3", density=0.5)


def test_the_command_writes_what_the_function_returns(trace: hw.Trace, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hw.save_trace(trace, tmp_path / "t.json")
    options = ["--device", "tpu-v3", "--block", "32x32,64x64", "--density", "0:1:0.25", "-o", str(tmp_path / "c.parquet")]
    main(["cost-table", str(tmp_path / "t.json"), *options])
    expected = hw.cost_table(hw.load_trace(tmp_path / "t.json"), device="tpu-v3", block=[BLOCK, (64, 64)], density=DENSITIES)
    assert hw.load_cost_table(tmp_path / "c.parquet").rows.equals(expected.rows)
    assert "10 layers, 2 encoder blocks; latency calibrated" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--density", "0:1"], "or a range FROM:TO:STEP"),
        (["--density", "1:0:0.1"], "or a range FROM:TO:STEP"),
        (["--density", "0:1:1e-9"], "or a range FROM:TO:STEP"),
        (["--density", "2"], "outside"),
        (["--density", "0.5", "--block", "32"], "expected OUTxIN"),
        (["--density", "0.5", "--tokens", "1.5"], "whole numbers"),
        (["--density", "0.5", "--nested", "depth"], "unknown width"),
    ],
)
def test_the_command_refuses_in_one_line_and_writes_nothing(
    trace: hw.Trace, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], reason: str
) -> None:
    hw.save_trace(trace, tmp_path / "t.json")
    with pytest.raises(SystemExit) as stopped:
        main(["cost-table", str(tmp_path / "t.json"), "--device", "tpu-v3", *options, "-o", str(tmp_path / "c.json")])
    assert stopped.value.code == 2
    told = capsys.readouterr().err
    assert reason in told
    assert told.count("\n") == 1
    assert not (tmp_path / "c.json").exists()
