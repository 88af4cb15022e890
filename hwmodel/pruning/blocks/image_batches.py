"""Batches of images as users hand them over, split into parts that a pass can hold."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import TYPE_CHECKING

import numpy as np

from hwmodel.errors import HwmodelError
from hwmodel.pruning.blocks.projection_files import DigestArray

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    Batch = Tensor | Sequence[Tensor]


@dataclass(frozen=True, kw_only=True, eq=False)
class ImagePart:
    """Images of one batch, or of a part of it; ``first`` is the place of the first one among all images."""

    batch: int
    first: int
    images: Tensor
    labels: Tensor | None

    def digests(self) -> DigestArray:
        """(images,) what tells each image and its label from others."""
        labels = [b""] * len(self.images) if self.labels is None else [bytes_of(label) for label in self.labels]
        told = (blake2b(bytes_of(image) + label, digest_size=8) for image, label in zip(self.images, labels, strict=True))
        return np.array([int.from_bytes(one.digest(), "little") for one in told], dtype=np.uint64)


def bytes_of(values: Tensor) -> bytes:
    """What the elements of a tensor are stored as."""
    import torch

    return values.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()


def image_batches(batches: Iterable[Batch], device: torch.device, *, labelled: bool) -> Iterator[ImagePart]:
    """Batches that hold images, on a device; labels only where they are wanted.

    Raises
    ------
    HwmodelError
        A batch that is neither a tensor of images nor images and labels, as many of both.
    """
    import torch

    first = 0
    for number, batch in enumerate([batches] if isinstance(batches, torch.Tensor) else batches):
        values = [batch] if isinstance(batch, torch.Tensor) else list(batch)
        if not values or not all(isinstance(value, torch.Tensor) and value.dim() for value in values[:2]):
            raise HwmodelError(f"batch {number}: expected a tensor of images, or images and labels, found {type(batch).__name__}")
        images, labels = values[0].to(device), values[1].to(device) if labelled and len(values) > 1 else None
        if labels is not None and len(labels) != len(images):
            raise HwmodelError(f"batch {number}: has {len(images)} images and {len(labels)} labels")
        if len(images):
            yield ImagePart(batch=number, first=first, images=images, labels=labels)
        first += len(images)


def split(batches: Iterable[ImagePart], size: int) -> Iterator[ImagePart]:
    """Parts of at most ``size`` images, each of one batch."""
    for batch in batches:
        for start in range(0, len(batch.images), size):
            part = slice(start, start + size)
            labels = None if batch.labels is None else batch.labels[part]
            yield replace(batch, first=batch.first + start, images=batch.images[part], labels=labels)
