"""Checkpoint files as people have them: containers, wrappers, masks, and everything that is refused in one line."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn.utils import prune

import hwmodel as hw
from hwmodel import cli
from hwmodel.errors import CheckpointError
from hwmodel.extraction import zoo
from hwmodel.extraction.weights.checkpoints import open_checkpoint

MODEL = "test_vit"
QKV = "blocks.0.attn.qkv.weight"


@pytest.fixture(scope="module")
def weights() -> dict[str, torch.Tensor]:
    """A dense state dict."""
    torch.manual_seed(0)
    return zoo.build(MODEL, device="cpu").state_dict()


@pytest.fixture
def pruned(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same with the upper half of one qkv pruned, in blocks of 96x64 then."""
    one = weights[QKV].clone()
    one[:96] = 0
    return weights | {QKV: one}


@pytest.fixture
def folder(tmp_path: Path, pruned: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder of a command, with a good and a bad checkpoint in it."""
    monkeypatch.chdir(tmp_path)
    torch.save(pruned, "good.pt")
    torch.save({"weight": torch.ones(2)}, "bad.pt")
    return tmp_path


def kept(path: Path) -> float:
    return hw.trace(MODEL, checkpoint=path)["blocks.0.attn.qkv"].mask.kept_fraction


class _Code:
    def __reduce__(self) -> tuple[Callable[..., object], tuple[str, ...]]:
        return os.system, ("echo this must not run",)


def wrapped(state: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {prefix + name: tensor for name, tensor in state.items()}


@pytest.mark.parametrize(
    "content",
    [
        lambda state: state,
        lambda state: {"epoch": 3, "model": state},
        lambda state: {"state_dict": wrapped(state, "module."), "optimizer": {"state": {}}},
        lambda state: {"model": wrapped(state, "_orig_mod.")},
        lambda state: {"state_dict": wrapped(state, "model.module._orig_mod.")},
    ],
)
def test_containers_and_wrappers(tmp_path: Path, pruned: dict[str, torch.Tensor], content: Callable[..., object]) -> None:
    path = tmp_path / "weights.pth"
    torch.save(content(pruned), path)
    assert kept(path) == 0.5


def test_averaged_weights_come_first(tmp_path: Path, weights: dict[str, torch.Tensor], pruned: dict[str, torch.Tensor]) -> None:
    path = tmp_path / "weights.pth.tar"
    torch.save({"state_dict": weights, "state_dict_ema": pruned}, path)
    assert kept(path) == 0.5


def test_safetensors_and_the_old_format_of_torch(tmp_path: Path, pruned: dict[str, torch.Tensor]) -> None:
    save_file(pruned, tmp_path / "weights.safetensors")
    torch.save(pruned, tmp_path / "weights.pt", _use_new_zipfile_serialization=False)
    assert kept(tmp_path / "weights.safetensors") == kept(tmp_path / "weights.pt") == 0.5


def test_a_table_of_masks_beside_the_weights(tmp_path: Path, weights: dict[str, torch.Tensor]) -> None:
    mask = torch.ones(192, 64, dtype=torch.bool)
    mask[:, 32:] = False
    torch.save({"state_dict": weights, "masks": {QKV: mask}}, tmp_path / "weights.pt")
    trace = hw.trace(MODEL, checkpoint=tmp_path / "weights.pt")
    found = next(finding for finding in trace.findings if finding.operator == "blocks.0.attn.qkv")
    assert (found.form, found.block, found.block_weights) == ("masked", (192, 32), 192 * 32)


def damaged(state: dict[str, torch.Tensor], change: Callable[[dict[str, torch.Tensor]], object]) -> dict[str, torch.Tensor]:
    copy = dict(state)
    change(copy)
    return copy


def _nan(state: dict[str, torch.Tensor]) -> None:
    state["norm.weight"] = state["norm.weight"].clone()
    state["norm.weight"][7] = torch.nan


def _nan_in_a_product(state: dict[str, torch.Tensor]) -> None:
    state[QKV] = state[QKV].clone()
    state[QKV][1, 2] = torch.nan


BAD_STATES: dict[str, tuple[Callable[[dict[str, torch.Tensor]], object], str]] = {
    "missing": (lambda state: state.pop("norm.bias"), "1 missing: norm.bias"),
    "unexpected": (lambda state: state.update(extra=torch.ones(3)), "1 unexpected: extra"),
    "misshaped": (lambda state: state.update({"norm.weight": torch.ones(7)}), r"1 misshaped: norm.weight \(7, .*64"),
    "another image size": (lambda state: state.update(pos_embed=torch.ones(1, 577, 64)), "pos_embed.*577"),
    "NaN": (_nan, "norm.weight holds NaN"),
    "NaN in a product": (_nan_in_a_product, f"{QKV} holds NaN"),
    "mask shape": (
        lambda state: state.update({f"{QKV}_mask": torch.ones(192, 32)}),
        f"{QKV}_mask has shape 192x32, its weight {QKV} has",
    ),
    "soft mask": (lambda state: state.update({f"{QKV}_mask": torch.full((192, 64), 0.5)}), "values other than 0 and 1"),
    "unknown parametrization": (
        lambda state: state.update({"head.parametrizations.weight.0.low_rank": torch.ones(3)}),
        "parametrization that is no mask",
    ),
    "compiled and plain": (
        lambda state: state.update({"_orig_mod.norm.bias": torch.ones(64)}),
        "compiled model and of a plain one",
    ),
}


@pytest.mark.parametrize("case", BAD_STATES)
def test_what_does_not_fit_is_named(tmp_path: Path, weights: dict[str, torch.Tensor], case: str) -> None:
    change, message = BAD_STATES[case]
    path = tmp_path / "weights.safetensors"
    save_file(damaged(weights, change), path)
    with pytest.raises(CheckpointError, match=message) as told:
        hw.trace(MODEL, checkpoint=path)
    assert str(path) in str(told.value)


def _half(path: Path, content: object) -> None:
    torch.save(content, path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _half_safetensors(path: Path, state: dict[str, torch.Tensor]) -> None:
    save_file({"norm.weight": torch.ones(192)}, path)
    path.write_bytes(path.read_bytes()[:300])


BAD_FILES: dict[str, tuple[str, Callable[[Path, dict[str, torch.Tensor]], object], str]] = {
    "missing": ("none.pt", lambda path, state: None, "no such file"),
    "folder": ("folder.pt", lambda path, state: path.mkdir(), "no such file"),
    "empty": ("empty.pt", lambda path, state: path.touch(), "truncated"),
    "text": ("text.pt", lambda path, state: path.write_text("no tensors here\n"), "not a checkpoint"),
    "truncated": ("half.pt", _half, "truncated"),
    "truncated safetensors": ("half.safetensors", _half_safetensors, "truncated"),
    "text as safetensors": ("text.safetensors", lambda path, state: path.write_text("hello"), "not a safetensors file"),
    "code": ("code.pt", lambda path, state: torch.save({"a": _Code()}, path), "refused, it wants to run code"),
    "module": ("module.pt", lambda path, state: torch.save(nn.Linear(2, 2), path), "refused, it wants to run code"),
    "a number": ("number.pt", lambda path, state: torch.save(3, path), "holds a int, expected a table"),
    "no tensors": ("empty_table.pt", lambda path, state: torch.save({"epoch": 3}, path), "no table of tensors"),
    "two tables": (
        "two.pt",
        lambda path, state: torch.save({"generator": state, "critic": state}, path),
        r"no table of tensors \(keys: generator, critic\)",
    ),
}


def test_factors_of_other_shapes_are_no_weight(tmp_path: Path, weights: dict[str, torch.Tensor]) -> None:
    path = tmp_path / "weights.safetensors"
    save_file(weights | {"head.weight_g": torch.ones(7, 1), "head.weight_v": torch.ones(9, 64)}, path)
    with pytest.raises(CheckpointError, match=r"head.weight_g \(7x1\) and head.weight_v \(9x64\) do not make one weight"):
        hw.trace(MODEL, checkpoint=path)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2, torch.float64])
def test_every_float_format_is_read(tmp_path: Path, pruned: dict[str, torch.Tensor], dtype: torch.dtype) -> None:
    path = tmp_path / "weights.pt"
    state = {name: tensor.to(dtype) for name, tensor in pruned.items()}
    torch.save(state, path)
    found = hw.trace(MODEL, checkpoint=path, block=(32, 64))
    assert found["blocks.0.attn.qkv"].mask.kept_fraction == 0.5
    state["norm.bias"] = torch.full((64,), torch.nan).to(dtype)
    torch.save(state, path)
    with pytest.raises(CheckpointError, match=r"norm.bias holds NaN"):
        hw.trace(MODEL, checkpoint=path)


def test_a_checkpoint_of_a_live_module(tmp_path: Path, pruned: dict[str, torch.Tensor]) -> None:
    """The weights of the file count, not those of the module."""
    torch.save(pruned, tmp_path / "weights.pt")
    model = zoo.build(MODEL, device="cpu")
    prune.random_unstructured(model.get_submodule("head"), "weight", 0.5)
    found = hw.trace(model, checkpoint=tmp_path / "weights.pt")
    assert [finding.operator for finding in found.findings if finding.form != "dense"] == ["blocks.0.attn.qkv"]
    torch.save({"norm.weight": torch.ones(7)}, tmp_path / "weights.pt")
    with pytest.raises(CheckpointError, match=r"is no checkpoint of .*missing.*1 misshaped: norm.weight"):
        hw.trace(model, checkpoint=tmp_path / "weights.pt")


@pytest.mark.parametrize("case", BAD_FILES)
def test_files_that_are_no_checkpoints(tmp_path: Path, capfd: pytest.CaptureFixture[str], case: str) -> None:
    name, write, message = BAD_FILES[case]
    write(tmp_path / name, {"weight": torch.ones(2)})
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(tmp_path / name)
    assert "must not run" not in capfd.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("recipe", "bad.pt", "--model", MODEL, "-o", "r.toml"), "bad.pt"),
        (("recipe", "good.pt", "--model", "vit_tinny", "-o", "r.toml"), "unknown model"),
        (("recipe", "good.pt", "--model", MODEL, "-o", "r.json"), "ends in .toml"),
        (
            ("recipe", "good.pt", "--model", MODEL, "--block", "1024x8", "-o", "r.toml"),
            "blocks.0.attn.qkv: a block of 1024x8 does not fit",
        ),
        (("recipe", "good.pt", "--model", MODEL, "--block", "32", "-o", "r.toml"), "--block 32: expected OUTxIN"),
        (("trace", MODEL, "--block", "32x32", "-o", "t.json"), "none to read"),
        (("trace", MODEL, "--checkpoint", "good.pt", "--recipe", "deit_base_lsp_b32x32", "-o", "t.json"), "give one of them"),
        (("trace", "t.json", "--checkpoint", "good.pt"), "saved trace has no weights"),
        (("estimate", MODEL, "--checkpoint", "bad.pt", "--device", "vita"), "bad.pt"),
    ],
)
def test_commands_refuse_in_one_line_and_write_nothing(
    folder: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], message: str
) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(list(arguments))
    told = capsys.readouterr()
    assert ended.value.code == 2
    assert told.err.startswith("hwmodel: error: ")
    assert told.err.count("\n") == 1
    assert message in told.err
    assert told.out == ""
    assert sorted(path.name for path in folder.iterdir()) == ["bad.pt", "good.pt"]
