"""Images to calibrate on: a folder of them with a sub-folder per class, prepared as timm prepares them, or random ones."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hwmodel.errors import HwmodelError
from hwmodel.extraction import zoo
from hwmodel.extraction.models import ImageSize
from hwmodel.extraction.recording.export import twin
from hwmodel.extraction.torchvision_repair import import_torchvision

if TYPE_CHECKING:
    import torch
    from torch import nn

ENDINGS = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".webp", ".ppm", ".tif", ".tiff", ".gif"})
BATCH = 16


@dataclass(frozen=True, kw_only=True, eq=False)
class Calibration:
    """Images as a model takes them.

    Parameters
    ----------
    images : (images, channels, height, width)
    labels : (images,) index of each image's class; None where nothing says it
    source : where they come from, in words
    synthetic : random images: what is made of them says nothing about accuracy
    """

    images: torch.Tensor
    labels: torch.Tensor | None
    source: str
    synthetic: bool = False

    def batches(self, size: int = BATCH) -> list[Any]:
        """Batches of images, with labels where there are some."""
        if self.labels is None:
            return _split(self.images, size)
        return list(zip(_split(self.images, size), _split(self.labels, size), strict=True))

    def labelled(self, model: nn.Module) -> Calibration:
        """The same images with labels: the model's own first choice of each where nothing else says it."""
        import torch

        if self.labels is not None:
            return self
        running = twin(model)
        with torch.no_grad():
            chosen = [running(batch).argmax(dim=-1) for batch in _split(self.images, BATCH)]
        return replace(self, labels=torch.cat(chosen), source=f"{self.source}, labelled by the model itself")

    def digest(self) -> str:
        """Sixteen hexadecimal digits that change with any pixel or label."""
        found = sha256(np.ascontiguousarray(self.images.cpu().numpy()).tobytes())
        if self.labels is not None:
            found.update(self.labels.cpu().numpy().tobytes())
        return found.hexdigest()[:16]


def _split(images: Any, size: int) -> list[torch.Tensor]:
    return list(images.split(size))


def calibration_of(
    images: torch.Tensor | Sequence[Any] | str | Path | Calibration | None,
    model: nn.Module,
    count: int,
    *,
    image_size: ImageSize | None = None,
    seed: int = 0,
) -> Calibration:
    """Images however they are given: a tensor, a pair (images, labels) of tensors, a folder, or None for random ones.

    Raises
    ------
    HwmodelError
        No image at all, labels that do not fit, or what :func:`images_in` refuses.
    """
    if isinstance(images, Calibration):
        return images
    if count < 1:
        raise HwmodelError(f"samples must be at least 1, got {count}")
    if images is None:
        return random_images(model, count, image_size=image_size, seed=seed)
    if isinstance(images, str | Path):
        return images_in(images, model, count, image_size=image_size, seed=seed)
    given: Any = images
    pixels, labels = (given, None) if hasattr(given, "shape") else given
    if len(pixels) < 1 or (labels is not None and len(labels) != len(pixels)):
        raise HwmodelError(
            f"found {len(pixels)} images and {'no' if labels is None else len(labels)} labels; expected as many of both"
        )
    return Calibration(images=pixels, labels=labels, source=f"{len(pixels)} images handed over")


def random_images(model: nn.Module, count: int, *, image_size: ImageSize | None = None, seed: int = 0) -> Calibration:
    """Normal noise of the size that a timm model takes; enough to try every step, not to judge any."""
    import torch

    channels, height, width = _input_size(model, image_size)
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn((count, channels, height, width), generator=generator)
    return Calibration(images=images, labels=None, source=f"{count} random images, seed {seed}", synthetic=True)


def images_in(
    folder: str | Path, model: nn.Module, count: int, *, image_size: ImageSize | None = None, seed: int = 0
) -> Calibration:
    """``count`` images of a folder, resized, cropped and normalised as timm evaluates the model; the same for a seed.

    Sub-folders are classes, numbered in the order of their names (as ImageNet's are); images beside them, or without any,
    have no labels.

    Raises
    ------
    HwmodelError
        A folder that is missing or has no images, or an image that cannot be read.
    """
    import torch

    files = _image_files(Path(folder))
    chosen = [files[place] for place in np.sort(np.random.default_rng(seed).permutation(len(files))[:count])]
    prepare = _preparation(model, image_size)
    with _told(Path(folder)) as reading:
        images = torch.stack([prepare(reading(path)) for path, _ in chosen])
    labels = [label for _, label in chosen]
    known = None if None in labels else torch.tensor(labels)
    return Calibration(
        images=images, labels=known, source=f"{len(chosen)} of {len(files)} images of {Path(folder).name}, seed {seed}"
    )


def _image_files(folder: Path) -> list[tuple[Path, int | None]]:
    """Image files in the order of their names, each with the number of its class."""
    if not folder.is_dir():
        raise HwmodelError(f"{folder}: no such folder; expected images in it, one sub-folder for each class")
    classes = [path for path in sorted(folder.iterdir()) if path.is_dir() and any(_images(path))]
    found: list[tuple[Path, int | None]] = [(path, label) for label, place in enumerate(classes) for path in _images(place)]
    if not found:
        found = [(path, None) for path in _images(folder)]
    if not found:
        raise HwmodelError(f"{folder}: holds no images ({', '.join(sorted(ENDINGS))}), neither itself nor in sub-folders")
    return found


def _images(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.iterdir()) if path.suffix.lower() in ENDINGS and path.is_file()]


@contextmanager
def _told(folder: Path) -> Iterator[Any]:
    """A reader of image files whose failures name the file."""
    from PIL import Image, UnidentifiedImageError

    place = folder

    def reading(path: Path) -> Any:
        nonlocal place
        place = path
        with Image.open(path) as image:
            return image.convert("RGB")

    try:
        yield reading
    except (UnidentifiedImageError, OSError, ValueError) as error:
        raise HwmodelError(f"{place}: cannot be read as an image ({error})") from error


def _input_size(model: nn.Module, image_size: ImageSize | None) -> tuple[int, int, int]:
    size = zoo.input_size(model)
    if size is None:
        raise HwmodelError(f"{type(model).__name__} does not say what images it takes; hand over images of your own")
    sides = (image_size, image_size) if isinstance(image_size, int) else image_size
    return (size[0], *(sides or size[1:]))


def _preparation(model: nn.Module, image_size: ImageSize | None) -> Any:
    """timm's evaluation transform for the model, at another size where one is asked for."""
    import_torchvision()
    import timm.data

    data: Any = timm.data
    channels, *sides = _input_size(model, image_size)
    config = data.resolve_data_config(model=model) | {"input_size": (channels, *sides)}
    if channels != 3:
        raise HwmodelError(f"the model takes images of {channels} channels; image files are read as colour")
    return data.create_transform(**config, is_training=False)
