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
    unlabelled : why there are no labels although class folders were given; None where nobody gave any
    """

    images: torch.Tensor
    labels: torch.Tensor | None
    source: str
    synthetic: bool = False
    unlabelled: str | None = None

    def batches(self, size: int = BATCH) -> list[Any]:
        """Batches of images, with labels where there are some."""
        if self.labels is None:
            return _split(self.images, size)
        return list(zip(_split(self.images, size), _split(self.labels, size), strict=True))

    def labelled(self, model: nn.Module) -> Calibration:
        """The same images with labels: the model's own first choice of each where nothing else says it.

        Raises
        ------
        HwmodelError
            Class folders that are not the model's classes.
        """
        import torch

        if self.labels is not None:
            return self
        if self.unlabelled:
            raise HwmodelError(self.unlabelled)
        running = twin(model)
        device = next(running.parameters()).device
        with torch.no_grad():
            chosen = [running(batch.to(device)).argmax(dim=-1) for batch in _split(self.images, BATCH)]
        labels = torch.cat(chosen).to(self.images.device)
        return replace(self, labels=labels, source=f"{self.source}, labelled by the model itself")

    def digest(self) -> str:
        """Sixteen hexadecimal digits that change with any pixel or label."""
        import torch

        found = sha256()
        for values in (self.images, self.labels):
            if values is not None:
                found.update(values.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        return found.hexdigest()[:16]


def _split(images: Any, size: int) -> list[torch.Tensor]:
    return list(images.split(size))


def calibration_of(
    images: torch.Tensor | np.ndarray | Sequence[Any] | str | Path | Calibration | None,
    model: nn.Module,
    count: int,
    *,
    image_size: ImageSize | None = None,
    seed: int = 0,
) -> Calibration:
    """Images however they are given: an array, a pair (images, labels), a folder, or None for random ones.

    Arrays are tensors or numpy's; images are taken in the model's number format, labels may also be a list of integers.

    Raises
    ------
    HwmodelError
        No image at all, anything but (images, channels, height, width), labels that are not one integer per image, or what
        :func:`images_in` refuses.
    """
    if isinstance(images, Calibration):
        return images
    if count < 1:
        raise HwmodelError(f"samples must be at least 1, got {count}")
    if images is None:
        return random_images(model, count, image_size=image_size, seed=seed)
    if isinstance(images, str | Path):
        return images_in(images, model, count, image_size=image_size, seed=seed)
    given, classes = _pair(images)
    pixels = _images_as(given, model)
    labels = None if classes is None else _labels_for(pixels, classes)
    return Calibration(images=pixels, labels=labels, source=f"{len(pixels)} images handed over")


def _pair(given: Any) -> tuple[Any, Any]:
    """Images and their labels, None where only images are given."""
    if hasattr(given, "shape"):
        return given, None
    if isinstance(given, Sequence) and len(given) == 2:
        return given[0], given[1]
    found = f"{type(given).__name__}{f' of {len(given)}' if isinstance(given, Sequence) else ''}"
    raise HwmodelError(f"images: found a {found}; expected one array of images, a pair (images, labels), or a folder")


def _images_as(given: Any, model: nn.Module) -> torch.Tensor:
    """Images in the number format of the model's parameters."""
    pixels = _tensor(given, "images")
    if pixels.dim() != 4 or not len(pixels) or not pixels.is_floating_point():
        raise HwmodelError(
            f"images: found {_told(pixels)}; expected (images, channels, height, width), at least one image, in floating point"
        )
    return pixels.detach().to(next((one.dtype for one in model.parameters() if one.is_floating_point()), pixels.dtype))


def _labels_for(pixels: torch.Tensor, given: Any) -> torch.Tensor:
    import torch

    labels = _tensor(given, "labels")
    whole = not (labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool)
    if labels.dim() != 1 or len(labels) != len(pixels) or not whole:
        raise HwmodelError(
            f"labels: found {_told(labels)} for {len(pixels)} images; expected one integer per image: a pair (images, labels)"
        )
    return labels.long()


def _tensor(given: Any, what: str) -> torch.Tensor:
    import torch

    if isinstance(given, torch.Tensor):
        return given
    try:
        return torch.from_numpy(np.array(given))
    except (TypeError, ValueError) as error:
        raise HwmodelError(f"{what}: a {type(given).__name__} that is no array of numbers; hand over a tensor") from error


def _told(values: torch.Tensor) -> str:
    """Shape and number format, for messages."""
    return f"{'x'.join(map(str, values.shape)) or 'one number'} of {str(values.dtype).removeprefix('torch.')}"


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

    Sub-folders are classes, numbered in the order of their names (as ImageNet's are), empty ones too, but for those whose
    names begin with a dot. Where they hold images, those beside them are left out; where there are none, images have no
    labels. Nor have they where a model of another number of classes says so.

    Raises
    ------
    HwmodelError
        A folder that is missing or has no images, or an image that cannot be read.
    """
    import torch

    files, classes, beside = _image_files(Path(folder))
    chosen = [files[place] for place in np.sort(np.random.default_rng(seed).permutation(len(files))[:count])]
    prepare = _preparation(model, image_size)
    with _naming_failures(Path(folder)) as reading:
        images = torch.stack([prepare(reading(path)) for path, _ in chosen])
    wrong = _misfit(folder, classes, model)
    labels = None if wrong or not classes else torch.tensor([label for _, label in chosen])
    left_out = f" ({beside} beside its sub-folders left out)" if beside else ""
    source = f"{len(chosen)} of {len(files)} images of {Path(folder).name}{left_out}, seed {seed}"
    return Calibration(images=images, labels=labels, source=source, unlabelled=wrong)


def _misfit(folder: str | Path, classes: int, model: nn.Module) -> str | None:
    """Why the numbers of sub-folders are not those of the model's classes, None where nothing speaks against it."""
    known = getattr(model, "num_classes", None)
    if not classes or not isinstance(known, int) or known == classes:
        return None
    return (
        f"{folder}: {classes} sub-folders for a model of {known} classes, so they do not tell which class is which; "
        "give one per class, empty ones too, or images without sub-folders"
    )


def _image_files(folder: Path) -> tuple[list[tuple[Path, int]], int, int]:
    """Image files in the order of their names, each with the number of its class; how many classes; how many are left out.

    No classes where images lie in no sub-folder: the number of each is 0 then, and means nothing.
    """
    if not folder.is_dir():
        raise HwmodelError(f"{folder}: no such folder; expected images in it, one sub-folder for each class")
    classes = [path for path in sorted(folder.iterdir()) if path.is_dir() and not path.name.startswith(".")]
    labelled = [(path, label) for label, place in enumerate(classes) for path in _images(place)]
    beside = [(path, 0) for path in _images(folder)]
    if not labelled and not beside:
        raise HwmodelError(f"{folder}: holds no images ({', '.join(sorted(ENDINGS))}), neither itself nor in sub-folders")
    return (labelled, len(classes), len(beside)) if labelled else (beside, 0, 0)


def _images(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.iterdir()) if path.suffix.lower() in ENDINGS and path.is_file()]


@contextmanager
def _naming_failures(folder: Path) -> Iterator[Any]:
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
