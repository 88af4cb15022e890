"""Checkpoints with integer weights: recognised layer by layer, or refused by name."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import hwmodel as hw
from hwmodel.errors import CheckpointError

IMAGES = torch.zeros(1, 64)


def layers() -> nn.Module:
    return nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 16))


def integers() -> torch.Tensor:
    weight = torch.ones(32, 64, dtype=torch.int8)
    weight[:24] = 0
    return weight


def saved(tmp_path: Path, **tensors: torch.Tensor) -> Path:
    kept = {name: value for name, value in layers().state_dict().items() if name != "0.weight"}
    save_file(kept | {f"0.{name}": value for name, value in tensors.items()}, tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors"


@pytest.mark.parametrize(("qdata", "scale", "zeros"), [("weight", "weight_scale", "weight_zero_point"),
                                                       ("_weight_qdata", "_weight_scale", "_weight_zero_point")])  # fmt: skip
def test_integers_and_scales_are_one_weight(qdata: str, scale: str, zeros: str, tmp_path: Path) -> None:
    plain = saved(tmp_path, **{qdata: integers(), scale: torch.ones(32, 2)})
    first, *_, last = hw.trace(layers(), example=IMAGES, checkpoint=plain).operators
    assert (first.weight_dtype, first.dtype, first.scale_bytes, last.weight_dtype) == ("int8", None, 32 * 2 * 4, None)
    assert first.kept_macs == 8 * 64
    shifted = saved(tmp_path, **{qdata: integers(), scale: torch.ones(32), zeros: torch.ones(32)})
    operator = hw.trace(layers(), example=IMAGES, checkpoint=shifted).operators[0]
    assert operator.scale_bytes == 32 * (4 + 4)
    assert operator.kept_macs == 24 * 64  # ones are the zeros here


def test_a_scale_beside_floats_is_nothing_we_know(tmp_path: Path) -> None:
    file = saved(tmp_path, weight=integers().float(), weight_scale=torch.ones(32))
    with pytest.raises(CheckpointError, match=r"1 unexpected: 0\.weight_scale"):
        hw.trace(layers(), example=IMAGES, checkpoint=file)


def test_packed_integers_are_refused(tmp_path: Path) -> None:
    file = saved(tmp_path, weight=integers()[:, ::2].contiguous(), weight_scale=torch.ones(32))
    with pytest.raises(CheckpointError, match=r"0\.weight is quantised and packed \(32x32 for 32x64\)"):
        hw.trace(layers(), example=IMAGES, checkpoint=file)
