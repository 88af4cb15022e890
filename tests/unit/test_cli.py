"""The command line: bad input is one actionable line and exit status 2, good input is parseable, and both leave no debris."""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from examples import vit

import hwmodel as hw
from hwmodel import cli
from hwmodel.content import content_folder

MODEL = "deit_tiny_patch16_224"
RECIPE = "deit_tiny_lsp_b16x16"
VITA = (content_folder("simulators") / "vita" / "card.toml").read_text(encoding="utf-8")
HEAD = f'schema_version = 1\nmodel = "{MODEL}"\nsource = "a test"\n'
LAYERS = HEAD + '[[layers]]\nmatch = ["blocks.*.mlp.fc?"]\nblock = [16, 16]\ndensity = 0.5\n'


class Outcome(NamedTuple):
    status: int
    out: str
    err: str


Run = Callable[..., Outcome]


@pytest.fixture(scope="module")
def trace() -> hw.Trace:
    """A DeiT-Tiny of one block at batch 2, named so that its recipes apply."""
    return vit(192, depth=1, batch=2).replace(model=MODEL)


@pytest.fixture
def folder(tmp_path: Path, trace: hw.Trace, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder of a command, with a trace, a card and a recipe in it."""
    monkeypatch.chdir(tmp_path)
    hw.save_trace(trace, "trace.json")
    hw.save_trace(trace, "trace.parquet")
    Path("card.toml").write_text(VITA, encoding="utf-8")
    Path("recipe.toml").write_text(LAYERS, encoding="utf-8")
    Path("folder.html").mkdir()
    Path("folder.json").mkdir()
    return tmp_path


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command in this process."""

    def outcome(*arguments: str) -> Outcome:
        capsys.readouterr()
        status = 0
        try:
            cli.main(list(arguments))
        except SystemExit as ended:
            status = ended.code if isinstance(ended.code, int) else 1
        return Outcome(status, *capsys.readouterr())

    return outcome


def files(folder: Path) -> dict[str, bytes | None]:
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def refused(run: Run, folder: Path, *arguments: str) -> str:
    """Run a command that must fail as bad input does; its one line."""
    before = files(folder)
    status, out, err = run(*arguments)
    assert (status, out) == (2, ""), err
    assert err.startswith("hwmodel: error: ")
    assert err.count("\n") == 1 and err.endswith("\n")
    assert "Traceback" not in err and "Error(" not in err
    assert files(folder) == before, "a refused command must leave no file behind"
    return err


ESTIMATE = ("estimate", "trace.json", "--device", "vita")

# --- names --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("estimate", "trace.json", "--device", "vitta"), ["unknown device 'vitta'", "did you mean 'vita'"]),
        (("estimate", "trace.json", "--device", "vita,vitta"), ["unknown device 'vitta'"]),
        (("estimate", "trace.json", "--device", ","), ["--device", "hwmodel devices"]),
        (("estimate", "trace.json"), ["--device"]),
        (("estimate",), ["model"]),
        (("estmate",), ["estmate", "estimate"]),
        (("estimate", "--devise", "vita"), ["--devise"]),
        ((*ESTIMATE, "--mode", "ful"), ["unknown mode for vita 'ful'", "did you mean 'full'"]),
        ((*ESTIMATE, "--mode", "tpu-v3=full"), ["--mode tpu-v3=full", "'tpu-v3' is not among the devices"]),
        ((*ESTIMATE, "--mode", "vita=ful"), ["unknown mode for vita 'ful'"]),
        ((*ESTIMATE, "--dtype", "fp12"), ["dtype", "'fp12'", "did you mean", "fp16"]),
        ((*ESTIMATE, "--dtype", "tf32"), ["dtype for vita 'tf32'", "did you mean 'fp32'"]),
        ((*ESTIMATE, "--attention", "flash"), ["unknown attention 'flash'", "fused, math, source"]),
        ((*ESTIMATE, "--sparse-kernel", "never"), ["unknown sparse_kernel 'never'"]),
        ((*ESTIMATE, "--scope", "wall"), ["unknown scope 'wall'", "board"]),
        ((*ESTIMATE, "--recipe", "deit_tiny_lsp_b16x61"), ["unknown recipe 'deit_tiny_lsp_b16x61'", f"'{RECIPE}'"]),
        (("trace", "trace.json", "--dtype", "float16"), ["unknown dtype 'float16'"]),
    ],
    ids=" ".join,
)
def test_names_that_do_not_exist_suggest_the_nearest(run: Run, folder: Path, arguments: tuple[str, ...], told: list[str]) -> None:
    line = refused(run, folder, *arguments)
    assert [text for text in told if text not in line] == []


def test_a_model_that_does_not_exist_suggests_the_nearest(run: Run, folder: Path) -> None:
    line = refused(run, folder, "trace", "deit_tinny_patch16_224", "-o", "out.json")
    assert "unknown model 'deit_tinny_patch16_224': did you mean 'deit_tiny_patch16_224'" in line


@pytest.mark.parametrize("size", ["225", "8"])
def test_an_image_size_that_the_model_cannot_take(run: Run, folder: Path, size: str) -> None:
    line = refused(run, folder, "trace", MODEL, "--image-size", size, "-o", "out.json")
    assert f"{size}x{size}" in line and MODEL in line and "16" in line


@pytest.mark.parametrize(
    "arguments",
    [
        (*ESTIMATE, "--batch", "0"),
        (*ESTIMATE, "--batch", "two"),
        (*ESTIMATE, "--image-size", "-1"),
        (*ESTIMATE, "--json", "--csv"),
        ("trace", "trace.json", "--batch", "1.5"),
    ],
    ids=" ".join,
)
def test_numbers_and_switches_that_cannot_be(run: Run, folder: Path, arguments: tuple[str, ...]) -> None:
    assert any(option in refused(run, folder, *arguments) for option in ("--batch", "--image-size", "--json"))


# --- saved traces -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", ["trace.json", "trace.parquet"])
def test_a_saved_trace_keeps_its_batch_and_image_size(run: Run, folder: Path, file: str) -> None:
    line = refused(run, folder, "estimate", file, "--device", "vita", "--batch", "4")
    assert f"{file}: traced at batch 2, not 4; trace the model again with --batch 4" in line
    line = refused(run, folder, "trace", file, "--image-size", "384", "-o", "out.json")
    assert f"{file}: a saved trace has its own image size; trace the model again with --image-size 384" in line
    assert run("estimate", file, "--device", "vita", "--batch", "2").status == 0


@pytest.mark.parametrize("ending", ["json", "parquet"])
@pytest.mark.parametrize("kind", ["truncated", "foreign", "empty", "missing", "folder", "newer"])
def test_files_that_are_no_trace(run: Run, folder: Path, ending: str, kind: str) -> None:
    file, whole = folder / f"bad.{ending}", (folder / f"trace.{ending}").read_bytes()
    if kind == "folder":
        file.mkdir()
    elif kind == "newer" and ending == "parquet":
        pq.write_table(pa.table({}).replace_schema_metadata({"hwmodel": '{"format": "hwmodel-trace", "schema_version": 9}'}), file)
    elif kind == "newer":
        file.write_bytes(whole.replace(b'"schema_version": 1', b'"schema_version": 9'))
    elif kind != "missing":
        foreign = b'{"nodes": []}' if ending == "json" else b"PAR1 something else PAR1"
        file.write_bytes({"truncated": whole[: len(whole) // 2], "foreign": foreign, "empty": b""}[kind])
    line = refused(run, folder, "estimate", file.name, "--device", "vita")
    assert f"bad.{ending}: " in line
    expected = {"missing": "No such file", "folder": "cannot be read", "newer": "schema_version is 9, this hwmodel reads 1"}
    assert expected.get(kind, "not ") in line


# --- recipes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("recipe", "told"),
    [
        (LAYERS.replace("fc?", "fcx"), ["recipe.toml", "layers.0.match", "blocks.*.mlp.fcx", "did you mean"]),
        (LAYERS.replace("0.5", "1.5"), ["recipe.toml", "layers.0.density", "found 1.5", "less than or equal to 1"]),
        (LAYERS.replace("0.5", "-0.1"), ["recipe.toml", "layers.0.density", "found -0.1", "greater than or equal to 0"]),
        (LAYERS.replace("0.5", "nan"), ["recipe.toml", "layers.0.density", "found nan"]),
        (LAYERS.replace("[16, 16]", "[16, 1024]"), ["recipe.toml", "16x1024 does not fit a weight of", "(out x in)"]),
        (LAYERS.replace("[16, 16]", "[16]"), ["recipe.toml", "layers.0.block"]),
        (LAYERS.replace("[16, 16]", "[0, 16]"), ["recipe.toml", "layers.0.block", "found 0"]),
        (LAYERS.replace("density", "densty"), ["recipe.toml", "layers.0.densty", "unknown key", "did you mean 'density'"]),
        (LAYERS.replace("density", "sparsity"), ["recipe.toml", "layers.0.sparsity", "2:4", "found 0.5"]),
        (LAYERS.replace(MODEL, "deit_base_patch16_224"), ["recipe.toml", "'deit_base_patch16_224'", f"'{MODEL}'"]),
        (LAYERS.replace("density = 0.5", "density = 0.5\ndensity = 0.6"), ["recipe.toml", "not valid TOML"]),
        (LAYERS.replace("schema_version = 1", "schema_version = 2"), ["recipe.toml", "schema_version", "found 2"]),
        (LAYERS.replace('source = "a test"\n', ""), ["recipe.toml", "source: missing"]),
        (HEAD + '[[encoder]]\nblocks = "3"\nheads = 1\n', ["recipe.toml", "encoder.0.blocks", "block 3"]),
        (HEAD + '[[encoder]]\nblocks = "0"\nheads = 99\n', ["recipe.toml", "encoder.0.heads", "99"]),
        (HEAD + '[vita]\npe = "32"\n', ["recipe.toml", "vita.pe", "found '32'"]),
        ("not TOML", ["recipe.toml", "not valid TOML"]),
    ],
)
def test_recipes_that_do_not_fit(run: Run, folder: Path, recipe: str, told: list[str]) -> None:
    (folder / "recipe.toml").write_text(recipe, encoding="utf-8")
    line = refused(run, folder, *ESTIMATE, "--recipe", "recipe.toml")
    assert [text for text in told if text not in line] == []


def test_a_line_break_in_a_name_does_not_break_the_line(run: Run, folder: Path) -> None:
    assert "two lines.json: cannot be read" in refused(run, folder, "estimate", "two\nlines.json", "--device", "vita")


def test_a_recipe_file_that_is_missing(run: Run, folder: Path) -> None:
    assert "none.toml: no such file" in refused(run, folder, *ESTIMATE, "--recipe", "none.toml")


# --- cards and their fields ---------------------------------------------------------------------------------------


def clock(value: str) -> str:
    return VITA.replace("[parameters.clock_hz]\nvalue = 1.0e9", f"[parameters.clock_hz]\nvalue = {value}")


@pytest.mark.parametrize(
    ("card", "told"),
    [
        (VITA.replace(".clock_hz]", ".clock_mhz]"), ["parameters.clock_mhz", "did you mean 'clock_hz'", "clock_hz: missing"]),
        (VITA.replace('title = "ViTA, one', '# title = "ViTA, one'), ["title: missing"]),
        (VITA.replace(".buffer_bytes]", ".buffer]"), ["parameters.buffer_bytes: missing", "parameters.buffer: unknown field"]),
        (VITA.replace('name = "vita"', 'name = "vita"\nname = "vita2"'), ["not valid TOML"]),
        (VITA + "\n[parameters.clock_hz]\nvalue = 2e9\n", ["not valid TOML"]),
        (clock("-1.0e9"), ["parameters.clock_hz", "found -1000000000.0"]),
        (clock("nan"), ["parameters.clock_hz", "found nan"]),
        (clock("inf"), ["parameters.clock_hz", "found inf"]),
        (clock('"1 GHz"'), ["parameters.clock_hz", "found '1 GHz'"]),
        (VITA.replace("default_dtype = \"int8\"", "default_dtype = \"int9\""), ["default_dtype: 'int9'"]),
        (VITA.replace('backend = "vita"', 'backend = "riscv"'), ["unknown backend 'riscv'"]),
        ("[", ["not valid TOML"]),
    ],
)  # fmt: skip
def test_cards_that_do_not_validate(run: Run, folder: Path, card: str, told: list[str]) -> None:
    (folder / "card.toml").write_text(card, encoding="utf-8")
    line = refused(run, folder, "estimate", "trace.json", "--device", "card.toml")
    assert [text for text in ["card.toml: ", *told] if text not in line] == []


def test_a_card_file_that_is_missing(run: Run, folder: Path) -> None:
    assert "none/card.toml: cannot be read" in refused(run, folder, "estimate", "trace.json", "--device", "none/card.toml")


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ("clock_mhz=1000", ["'clock_mhz'", "did you mean 'clock_hz'"]),
        ("clock_hz=-1", ["clock_hz", "found -1"]),
        ("clock_hz=nan", ["clock_hz", "found nan"]),
        ("clock_hz=inf", ["clock_hz", "found inf"]),
        ("clock_hz=fast", ["clock_hz", "found 'fast'"]),
        ("clock_hz", ["--set clock_hz", "expected FIELD=VALUE"]),
        ("=1", ["--set =1", "expected FIELD=VALUE"]),
        ("clock_hz=", ["--set clock_hz=", "expected FIELD=VALUE"]),
        ("clock_hz=[1e9, 2e9]", ["clock_hz"]),
        ("pe=32", ["pe", "found 32"]),
        ("mac_j.in8=1e-12", ["unknown dtype 'in8'", "did you mean 'int8'"]),
        ("tpu-v3:clock_hz=1e9", ["--set tpu-v3:clock_hz=1e9", "'tpu-v3' is not among the devices"]),
        ("vita:clock_mhz=1", ["'clock_mhz'", "did you mean 'clock_hz'"]),
    ],
)
def test_fields_that_cannot_be_set(run: Run, folder: Path, setting: str, told: list[str]) -> None:
    line = refused(run, folder, *ESTIMATE, "--set", setting)
    assert [text for text in told if text not in line] == []


def test_a_model_whose_processing_element_nobody_knows(run: Run, folder: Path) -> None:
    hw.save_trace(vit(512, depth=1), "wide.json")
    line = refused(run, folder, "estimate", "wide.json", "--device", "vita")
    assert "no PE is known for a model of width 512" in line and "--set pe=OUTxIN" in line
    assert run("estimate", "wide.json", "--device", "vita", "--set", "pe=32x32").status == 0


# --- output paths -------------------------------------------------------------------------------------------------

REPORT = ("report", "trace.json", "--device", "vita")
TRACE = ("trace", "trace.json")


@pytest.mark.parametrize("command", [TRACE, REPORT], ids=["trace", "report"])
@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("none/out", "folder 'none' does not exist; create it first"),
        ("folder", "is a folder, expected the path of a file to write"),
        ("card.toml/out", "folder 'card.toml' is a file, not a folder"),
        ("x" * 300, "File name too long"),
    ],
)
def test_outputs_that_cannot_be_written(run: Run, folder: Path, command: tuple[str, ...], name: str, told: str) -> None:
    ending = ".json" if command == TRACE else ".html"
    line = refused(run, folder, *command, "-o", name + ending)
    assert f"{name}{ending}: " in line and told in line


@pytest.mark.parametrize("command", [TRACE, REPORT], ids=["trace", "report"])
def test_an_output_without_permission(run: Run, folder: Path, command: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """Root may write everywhere, so the system's answer is replaced."""
    monkeypatch.setattr(os, "access", lambda *_: False)
    line = refused(run, folder, *command, "-o", "out.json" if command == TRACE else "out.html")
    assert "no permission to write here; choose another path" in line


@pytest.mark.parametrize(("command", "endings"), [(TRACE, ".json or .parquet"), (REPORT, ".html or .htm")], ids=["trace", "report"])
def test_outputs_of_another_kind(run: Run, folder: Path, command: tuple[str, ...], endings: str) -> None:
    assert f"out.pdf: expected a file name that ends in {endings}" in refused(run, folder, *command, "-o", "out.pdf")


def test_wrong_input_is_told_before_long_work(run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Output paths, devices, modes and fields are checked before any model is extracted."""
    from hwmodel.extraction import models

    def never(*_: object, **__: object) -> None:
        raise AssertionError("extracted a model although the call is wrong")

    monkeypatch.setattr(models, "trace", never)
    refused(run, folder, "trace", MODEL, "-o", "none/out.json")
    refused(run, folder, "report", MODEL, "--device", "vita", "-o", "none/out.html")
    for wrong in (
        ("--device", "vita", "--scope", "wall"),
        ("--device", "vitta"),
        ("--device", "vita", "--mode", "ful"),
        ("--device", "vita", "--set", "clock_hz=-1"),
    ):
        refused(run, folder, "estimate", MODEL, *wrong)


# --- good input ---------------------------------------------------------------------------------------------------


def test_estimate_json_is_a_list_with_one_object_per_device(run: Run, folder: Path, trace: hw.Trace) -> None:
    status, out, err = run("estimate", "trace.json", "--device", "vita,card.toml", "--json")
    assert (status, err) == (0, "")
    found = json.loads(out, parse_constant=lambda text: pytest.fail(f"{text} is no JSON"))
    assert [(one["device"], one["mode"], one["dtype"], one["batch"]) for one in found] == [("vita", "full", "int8", 2)] * 2
    assert list(found[0]) == [
        "model", "device", "mode", "batch", "dtype", "latency_s", "energy_j", "average_power_w", "cycles", "macs", "executed_macs",
        "dram_bytes", "energy_scope", "fidelity", "error_band", "energy_by_component_j", "area_mm2", "idle_share", "warnings",
        "operators", "schema_version", "versions",
    ]  # fmt: skip
    assert list(found[0]["operators"][0]) == [
        "name", "kind", "role", "block", "macs", "executed_macs", "latency_s", "gap_s", "energy_j", "compute_j", "onchip_j",
        "offchip_j", "static_j", "dram_bytes", "cycles", "bound", "kernel", "fused_into",
    ]  # fmt: skip
    assert len(found[0]["operators"]) == len(trace)
    assert found[0] == json.loads(json.dumps(hw.estimate(trace, device="vita").document()))


def test_estimate_warns_of_layers_that_pruning_makes_slower(run: Run, folder: Path) -> None:
    Path("half.toml").write_text(
        'schema_version = 1\nmodel = "toy"\nsource = "test"\n[[layers]]\nmatch = ["*fc1"]\nblock = [64, 64]\ndensity = 0.9\n'
    )
    large = hw.Trace.from_operators(
        [hw.matmul(m=4096, k=768, n=3072, name=f"blocks.{index}.fc1") for index in range(2)], model="toy"
    )
    hw.save_trace(large, "large.json")
    told = run("estimate", "large.json", "--device", "a100-40gb", "--recipe", "half.toml")
    assert told.status == 0
    (line,) = told.err.splitlines()
    assert line.startswith("hwmodel: warning: a100-40gb-sxm: blocks.*.fc1 (2 layers): the block-sparse kernel takes 1.")
    (document,) = json.loads(run("estimate", "large.json", "--device", "a100-40gb", "--recipe", "half.toml", "--json").out)
    assert document["warnings"] == [line.removeprefix("hwmodel: warning: a100-40gb-sxm: ")]
    assert run("estimate", "large.json", "--device", "a100-40gb").err == ""


def test_version(run: Run) -> None:
    assert run("--version").out == f"hwmodel {version('hwmodel')}\n"


def test_estimate_csv_has_one_row_per_operator_and_device(run: Run, folder: Path, trace: hw.Trace) -> None:
    status, out, err = run("estimate", "trace.parquet", "--device", "vita,card.toml", "--csv")
    assert (status, err) == (0, "")
    rows = list(csv.DictReader(io.StringIO(out)))
    assert [row["name"] for row in rows] == 2 * [operator.name for operator in trace.operators]
    assert sum(float(row["latency_s"]) for row in rows) == pytest.approx(2 * hw.estimate(trace, device="vita").latency_s)


def test_estimate_table_names_mode_and_format(run: Run, folder: Path) -> None:
    status, out, _ = run(*ESTIMATE, "--mode", "paper")
    assert status == 0
    assert "vita" in out and "paper" in out and "int8" in out


def test_choices_reach_the_estimate(run: Run, folder: Path, trace: hw.Trace) -> None:
    settings = ("--set", "pe=64x64", "--set", "vita:clock_hz=2e9")
    arguments = (*ESTIMATE, "--mode", "vita=paper", "--dtype", "fp16", *settings, "--scope", "dynamic")
    (found,) = json.loads(run(*arguments, "--json").out)
    overrides = {"pe": "64x64", "clock_hz": 2e9}
    expected = hw.estimate(trace, device="vita", mode="paper", dtype="fp16", overrides=overrides, scope="dynamic")
    assert found["latency_s"] == expected.latency_s
    assert (found["energy_j"], found["dtype"], found["energy_scope"]) == (expected.energy_j, "fp16", "dynamic")
    assert {row["kernel"] for row in found["operators"]} == {"pe 64x64", "not timed"}


def test_a_setting_for_one_device_leaves_the_others(run: Run, folder: Path) -> None:
    """Even where the other card says the same."""
    own = ("--set", "card.toml:clock_hz=2e9", "--mode", "card.toml=paper")
    Path("twin.toml").write_text(VITA, encoding="utf-8")
    first, second = json.loads(run("estimate", "trace.json", "--device", "twin.toml,card.toml", *own, "--json").out)
    assert (first["mode"], second["mode"]) == ("full", "paper")
    assert first["latency_s"] == json.loads(run(*ESTIMATE, "--json").out)[0]["latency_s"]
    assert second["latency_s"] == second["cycles"] / 2e9


def test_a_recipe_prunes_what_is_priced(run: Run, folder: Path, trace: hw.Trace) -> None:
    dense, pruned = (json.loads(run(*ESTIMATE, *extra, "--json").out)[0] for extra in ((), ("--recipe", "recipe.toml")))
    assert pruned["macs"] == dense["macs"]
    assert pruned["executed_macs"] < dense["executed_macs"]
    assert pruned["latency_s"] == hw.estimate(hw.prune(trace, "recipe.toml"), device="vita").latency_s


def test_trace_json_says_the_macs_and_is_a_trace(run: Run, folder: Path, trace: hw.Trace) -> None:
    status, out, err = run("trace", "trace.json", "--recipe", "recipe.toml", "-o", "pruned.parquet", "--json")
    assert (status, err) == (0, "")
    found = json.loads(out)
    pruned = hw.prune(trace, "recipe.toml")
    assert (found["model"], found["batch"]) == (MODEL, 2)
    assert (found["macs"], found["kept_macs"]) == (trace.macs, pruned.kept_macs)
    assert [row["macs"] for row in found["operators"]] == [operator.macs for operator in trace.operators]
    Path("redirected.json").write_text(out)
    assert hw.load_trace("redirected.json") == hw.load_trace("pruned.parquet") == pruned


def test_trace_without_a_file_prints_a_table_and_writes_nothing(run: Run, folder: Path) -> None:
    before = files(folder)
    status, out, _ = run("trace", "trace.json")
    assert status == 0 and MODEL in out
    assert files(folder) == before


def test_devices_json_lists_every_card(run: Run) -> None:
    status, out, err = run("devices", "--json")
    assert (status, err) == (0, "")
    found = {card["name"]: card for card in json.loads(out)}
    assert found["vita"]["modes"] == ["paper", "full", "chip"]
    assert (found["vita"]["default_mode"], found["vita"]["default_dtype"]) == ("full", "int8")
    assert found.keys() == {path.parent.name for path in content_folder("simulators").glob("*/card.toml")}


def test_devices_table_lists_every_card(run: Run) -> None:
    status, out, _ = run("devices")
    assert status == 0
    assert all(path.parent.name[:8] in out for path in content_folder("simulators").glob("*/card.toml"))


def test_the_same_call_gives_the_same_bytes(run: Run, folder: Path) -> None:
    for arguments in ((*ESTIMATE, "--json"), (*ESTIMATE, "--csv"), ("devices", "--json"), ("trace", "trace.json", "--json")):
        assert run(*arguments) == run(*arguments)
    for name in ("a.json", "b.json", "a.parquet", "b.parquet"):
        run("trace", "trace.json", "--recipe", "recipe.toml", "-o", name)
    for ending in ("json", "parquet"):
        assert Path(f"a.{ending}").read_bytes() == Path(f"b.{ending}").read_bytes()


def test_no_command_and_help_show_the_commands(run: Run) -> None:
    assert run().status == run("--help").status == 0
    assert all(command in run("--help").out for command in ("devices", "trace", "estimate", "report"))


def test_report_writes_one_page_that_needs_no_network(run: Run, folder: Path) -> None:
    status, out, err = run(*REPORT, "--recipe", "recipe.toml", "-o", "report.html")
    assert status == 0, err
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "recipe" in page and "vita" in page.lower()
    assert "report written to report.html" in out
    assert not [text for text in ('src="http', "src='http", 'href="http') if text in page.split("</head>")[0]]


# --- in a process of its own --------------------------------------------------------------------------------------


def in_process(*arguments: str, cwd: Path) -> Outcome:
    done = subprocess.run(
        [sys.executable, "-c", "from hwmodel.cli import main; main()", *arguments],
        cwd=cwd, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    return Outcome(done.returncode, done.stdout, done.stderr)


def test_bad_input_ends_the_process_with_status_2(folder: Path) -> None:
    status, out, err = in_process("estimate", "trace.json", "--device", "vitta", cwd=folder)
    assert (status, out) == (2, "")
    assert err == "hwmodel: error: unknown device 'vitta': did you mean 'vita'?\n"


def test_the_same_bytes_come_out_of_two_processes(folder: Path) -> None:
    first, second = (in_process(*ESTIMATE, "--recipe", "recipe.toml", "--json", cwd=folder) for _ in range(2))
    assert first == second
    assert (first.status, first.err) == (0, "")


def test_a_reader_that_stops_early_is_no_failure(folder: Path) -> None:
    """``hwmodel trace --json | head -1``."""
    command = f"{sys.executable} -c 'from hwmodel.cli import main; main()' trace trace.json --json | head -1"
    done = subprocess.run(command, shell=True, cwd=folder, capture_output=True, text=True, timeout=120, check=False)
    assert (done.stdout, done.stderr) == ("{\n", "")
