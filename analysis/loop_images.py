"""Images of a folder for ``loop_digits.py``: one sub-folder a class, read when asked for, prepared as timm prepares them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hwmodel.errors import HwmodelError
from hwmodel.extraction.torchvision_repair import import_torchvision

if TYPE_CHECKING:
    import torch
    from torch import nn

TRAIN, TEST = "train", ("val", "validation", "test")
TESTED_SHARE = 0.25


@dataclass(frozen=True, eq=False)
class Folder:
    """Images on disk.

    Parameters
    ----------
    files : path and class of each image
    prepare : from an image to a tensor (channels, height, width)
    """

    files: tuple[tuple[str, int], ...]
    prepare: Any

    def __len__(self) -> int:
        return len(self.files)

    def batches(self, size: int, seed: int | None = None) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Images and labels of ``size`` images each, in order, or shuffled by ``seed``."""
        import torch

        order = np.arange(len(self)) if seed is None else np.random.default_rng(seed).permutation(len(self))
        for start in range(0, len(self), size):
            chosen = [self.files[place] for place in order[start : start + size]]
            yield torch.stack([self._read(path) for path, _ in chosen]), torch.tensor([label for _, label in chosen])

    def first(self, count: int) -> Folder:
        """``count`` images, of all classes in turn."""
        within: dict[int, int] = {}
        rank = []
        for _, label in self.files:
            rank.append(within.setdefault(label, 0))
            within[label] += 1
        order = sorted(range(len(self)), key=lambda place: (rank[place], place))[:count]
        return Folder(tuple(self.files[place] for place in order), self.prepare)

    def _read(self, path: str) -> torch.Tensor:
        from PIL import Image

        try:
            with Image.open(path) as image:
                prepared: torch.Tensor = self.prepare(image.convert("RGB"))
        except OSError as error:
            raise HwmodelError(f"{path}: cannot be read as an image ({error})") from error
        return prepared


def image_folder(folder: Path, model: nn.Module, seed: int, *, trained: bool) -> tuple[Folder, Folder]:
    """Images to train on and to test on: ``train`` and ``val`` in the folder, or a stratified split of its classes by ``seed``.

    Raises
    ------
    HwmodelError
        A folder that is missing or holds no images in sub-folders, more classes than the model has outputs, fewer where it was
        ``trained`` (its outputs would stand for other classes), or a class to test on that is not among those to train on.
    """
    if not folder.is_dir():
        raise HwmodelError(f"{folder}: no such folder; expected images in it, one sub-folder a class")
    test = next((folder / name for name in TEST if (folder / name).is_dir()), None)
    if (folder / TRAIN).is_dir() and test is not None:
        train, places = _read_classes(folder / TRAIN, model, trained=trained)
        return train, _read_classes(test, model, trained=trained, places=places)[0]
    return _split(_read_classes(folder, model, trained=trained)[0], folder, seed)


def _read_classes(
    folder: Path, model: nn.Module, *, trained: bool, places: dict[str, int] | None = None
) -> tuple[Folder, dict[str, int]]:
    """Images with their labels, and the output of each class: its place among the sub-folders where ``places`` does not say."""
    import_torchvision()
    timm_data: Any = import_module("timm.data")
    try:
        images = timm_data.ImageDataset(str(folder)).reader
    except RuntimeError as error:
        raise HwmodelError(f"{folder}: holds no images in sub-folders, one sub-folder a class") from error
    own: dict[str, int] = images.class_to_idx
    outputs = int(getattr(model, "num_classes", 0))
    if places is None and (len(own) > outputs or (trained and len(own) < outputs)):
        raise HwmodelError(f"{folder}: holds {len(own)} classes, the model has {outputs} outputs")
    known = own if places is None else places
    unknown = sorted(own.keys() - known.keys())
    if unknown:
        raise HwmodelError(f"{folder}: class {unknown[0]!r} is not among those to train on")
    names = {place: name for name, place in own.items()}
    prepare = timm_data.create_transform(**timm_data.resolve_data_config(model=model), is_training=False)
    return Folder(tuple((path, known[names[label]]) for path, label in images.samples), prepare), known


def _split(whole: Folder, folder: Path, seed: int) -> tuple[Folder, Folder]:
    from sklearn.model_selection import train_test_split

    labels = [label for _, label in whole.files]
    try:
        parts = train_test_split(whole.files, test_size=TESTED_SHARE, stratify=labels, random_state=seed)
    except ValueError as error:
        raise HwmodelError(f"{folder}: too few images to split into training and test images ({error})") from error
    train, test = (Folder(tuple(part), whole.prepare) for part in parts)
    return train, test
