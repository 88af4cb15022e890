"""Images to calibrate on: which forms are taken, which labels are believed, and what is refused in one line."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from loop_examples import images, small_vit
from torch import nn

from hwmodel.errors import HwmodelError
from hwmodel.extraction import zoo
from hwmodel.pruning.blocks.curves import Score
from hwmodel.pruning.calibration_images import Calibration, calibration_of, images_in


class Scores(nn.Module):
    """Tells the brightest of three channels, on the device of its one parameter."""

    def __init__(self, device: str = "cpu") -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1, device=device))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        assert images.device == self.weight.device
        return torch.tensor([[0.0, 2.0, 1.0]]).expand(len(images), 3) if images.is_meta else images.mean(dim=(2, 3)) * self.weight


def brightest(*channels: int) -> torch.Tensor:
    """One image each, whose given channel is the brightest."""
    return torch.eye(3)[list(channels)][:, :, None, None].expand(-1, 3, 4, 4).contiguous()


@pytest.mark.parametrize(
    "labels", [torch.tensor([4, 0, 9]), np.array([4, 0, 9], np.uint8), [4, 0, 9]], ids=["tensor", "numpy", "list"]
)
@pytest.mark.parametrize("of", [torch.clone, torch.Tensor.numpy, torch.Tensor.double, torch.Tensor.bfloat16])
def test_arrays_and_their_labels_are_taken_in_the_model_s_number_format(of: Any, labels: Any) -> None:
    given = brightest(0, 1, 2)
    found = calibration_of((of(given), labels), small_vit(1), 1)
    assert torch.equal(found.images, given) and found.images.dtype == torch.float32
    assert found.labels is not None and found.labels.dtype == torch.int64 and found.labels.tolist() == [4, 0, 9]
    assert found.source == "3 images handed over" and not found.synthetic
    assert found.digest() == calibration_of((given, [4, 0, 9]), small_vit(1), 1).digest()


def test_images_alone_have_no_labels() -> None:
    found = calibration_of(images(5), small_vit(1), 1)
    assert found.labels is None and torch.equal(found.images, images(5))
    assert [len(batch) for batch in found.batches(2)] == [2, 2, 1]


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ([images(2), images(2)], "labels: found 2x3x32x32 of float32 for 2 images"),
        ([images(2)] * 3, "images: found a list of 3"),
        (iter([images(2)]), "images: found a list_iterator"),
        (images(1)[0], "images: found 3x32x32 of float32"),
        (images(0), "images: found 0x3x32x32 of float32"),
        (images(2).to(torch.uint8), "images: found 2x3x32x32 of uint8"),
        (["a", "b"], "images: a str that is no array of numbers"),
        ((images(2), torch.tensor([1.0, 2.0])), "labels: found 2 of float32 for 2 images"),
        ((images(2), [True, False]), "labels: found 2 of bool for 2 images"),
        ((images(2), [1, 2, 3]), "labels: found 3 of int64 for 2 images"),
        ((images(1), torch.tensor(1)), "labels: found one number of int64 for 1 images"),
        ((images(2), ["cat", "dog"]), "labels: a list that is no array of numbers"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_no_image_or_no_label_is_refused(given: Any, told: str) -> None:
    with pytest.raises(HwmodelError, match=re.escape(told)):
        calibration_of(given, small_vit(1), 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_digest_changes_with_every_pixel_and_label(dtype: torch.dtype) -> None:
    pixels = brightest(0, 1).to(dtype)
    one = Calibration(images=pixels, labels=torch.tensor([0, 1]), source="made up")
    other = pixels.clone()
    other[1, 2, 3, 3] = 0.5
    changed = [replace(one, images=other), replace(one, labels=torch.tensor([0, 2])), replace(one, labels=None)]
    assert len({one.digest(), *(each.digest() for each in changed)}) == 4
    assert replace(one, images=pixels.clone().requires_grad_(), source="elsewhere").digest() == one.digest()


def test_a_model_labels_images_that_have_none_and_no_others() -> None:
    alone = calibration_of(brightest(2, 0, 1), Scores(), 1)
    found = alone.labelled(Scores())
    assert found.labels is not None and found.labels.tolist() == [2, 0, 1]
    assert found.source == "3 images handed over, labelled by the model itself"
    given = replace(alone, labels=torch.tensor([0, 0, 0]))
    assert given.labelled(Scores()) is given


def test_images_are_labelled_on_the_model_s_device() -> None:
    found = calibration_of(brightest(2, 0), Scores("meta"), 1).labelled(Scores("meta"))
    assert found.labels is not None and found.labels.tolist() == [1, 1]
    assert found.labels.device == found.images.device == torch.device("cpu")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_model_on_a_gpu_labels_images_in_memory() -> None:
    found = calibration_of(brightest(2, 0, 1), Scores("cuda"), 1).labelled(Scores("cuda"))
    assert found.labels is not None and found.labels.tolist() == [2, 0, 1] and found.labels.device.type == "cpu"


def model_of(classes: int) -> Any:
    model: Any = zoo.build("test_vit", (32, 32), device="cpu")
    model.reset_classifier(classes)
    return model


def folder_of(place: Path, *files: str) -> Path:
    """A folder of images and of empty folders; the names of folders end in a slash."""
    from PIL import Image

    for name in files:
        file = place / name
        (file if name.endswith("/") else file.parent).mkdir(parents=True, exist_ok=True)
        if not name.endswith("/"):
            Image.new("RGB", (40, 50), (len(name), 0, 0)).save(file)
    return place


def test_empty_folders_are_classes_and_hidden_ones_are_not(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, "a/1.png", "b/", "c/1.png", ".cache/1.png")
    found = images_in(folder, model_of(3), 9, image_size=32)
    assert found.labels is not None and found.labels.tolist() == [0, 2]


def test_images_beside_class_folders_are_told_to_be_left_out(tmp_path: Path) -> None:
    found = images_in(folder_of(tmp_path / "mine", "a/1.png", "c/1.png", "top.png"), model_of(2), 9, image_size=32)
    assert found.labels is not None and found.labels.tolist() == [0, 1]
    assert found.source == "2 of 2 images of mine (1 beside its sub-folders left out), seed 0"


def test_images_without_class_folders_have_no_labels(tmp_path: Path) -> None:
    model = model_of(2)
    found = images_in(folder_of(tmp_path, "1.png", "2.png", "empty/"), model, 9, image_size=32)
    assert found.labels is None and len(found.images) == 2
    assert found.labelled(model).labels is not None


@pytest.mark.parametrize("classes", [1000, 1])
def test_folders_that_are_not_the_model_s_classes_give_no_labels(tmp_path: Path, classes: int) -> None:
    from hwmodel.allocation.loop.sensing import Sensing

    model = model_of(classes)
    found = images_in(folder_of(tmp_path, "a/1.png", "b/1.png"), model, 9, image_size=32)
    told = re.escape(f"{tmp_path}: 2 sub-folders for a model of {classes} classes")
    assert found.labels is None and len(found.batches()[0]) == 2
    Sensing(calibration=found, block=(16, 16))
    score: Score = "fisher"
    with pytest.raises(HwmodelError, match=told):
        Sensing(calibration=found, block=(16, 16), score=score)
    with pytest.raises(HwmodelError, match=told):
        found.labelled(model)
