"""Block projections of a live model: per image, weight times gradient summed over every weight block, by one backward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from hashlib import blake2b
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hwmodel.errors import HwmodelError, UnknownNameError
from hwmodel.extraction.models import as_module
from hwmodel.extraction.recording.export import twin
from hwmodel.ir.masks import Shape
from hwmodel.pruning.backward_passes import BackwardPasses
from hwmodel.pruning.capture import Capture
from hwmodel.pruning.curves import Curves, Score
from hwmodel.pruning.distortion import Form
from hwmodel.pruning.live_models import LiveModel
from hwmodel.pruning.projected import KINDS, Kind, Projections
from hwmodel.pruning.projection_files import DigestArray, Header, ProjectionFile, header_of
from hwmodel.pruning.rehearsal import check_apart, rehearse
from hwmodel.pruning.weight_layers import block_norms, weight_layers

if TYPE_CHECKING:
    from torch import Tensor, nn

    Batch = Tensor | Sequence[Tensor]
    Loss = Callable[[Tensor, Tensor | None], Tensor]

MEMORY_BYTES = 1 << 30

_UNCALLED = "is not called in the forward pass; a module that takes its weight directly cannot be projected"


def projections(
    model: nn.Module,
    batches: Iterable[Batch],
    *,
    finest: Shape | Mapping[str, Shape] = (4, 4),
    kind: Kind = "gauss-newton",
    probes: int = 1,
    loss: Loss | None = None,
    layers: Sequence[str] | None = None,
    memory_bytes: int = MEMORY_BYTES,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
    resume: str | Path | None = None,
) -> Projections:
    """Project every linear layer, and the convolutional patch embedding, in eval mode; the model is not changed.

    Parameters
    ----------
    model : any module that takes a batch of images and returns one tensor (images, ...), or an object with ``logits``
    batches : tensors of images, or pairs of images and labels; each is taken once, on the device of the model
    finest : (out, in) of the finest blocks, or a mapping of globs over layer names to it; curves may be made for its multiples
    kind : ``gauss-newton``, gradients of random combinations of the outputs, no labels needed; ``loss``, of each image's loss
    probes : random combinations for each image
    loss : for ``kind="loss"``, what gives (images,) losses of outputs and labels; None takes the cross-entropy
    layers : globs over layer names; None takes all
    memory_bytes : what may be taken beside the model and one batch; batches are split to fit
    seed : of the random combinations, which depend on it and on the place of the image, not on how images are batched
    progress : called with the number of images done
    resume : file to keep projections in as they are made; a run with the same arguments continues it, bit for bit the same

    Raises
    ------
    HwmodelError
        Layers or images that are coupled so that gradients of single images do not exist, one image that does not fit the
        memory, a loss or gradient that is not finite (its batch and layer are named), or a file of another run.
    """
    _check(kind, probes, memory_bytes)
    running = twin(as_module(model))
    found, left_out = weight_layers(running, finest, layers)
    norms = {layer.name: block_norms(layer) for layer in found}
    passes = BackwardPasses(model=running, layers=found, kind=kind, probes=probes, loss=loss, seed=seed)
    given = _on_device(batches, running)
    ahead = next(given, None)
    if ahead is None:
        raise HwmodelError("there are no images in the batches")
    with _naming(0, 0):
        rehearsal = rehearse(passes, ahead.images, ahead.labels, memory_bytes)
        images_per_pass = 1 if _counts_by_batch(running) else rehearsal.images(memory_bytes)
    passes, left_out = _called(passes, rehearsal.called, left_out, layers or ())
    file = ProjectionFile(
        _header(passes, left_out, images_per_pass), np.concatenate([norms[layer.name] for layer in passes.layers], axis=1), resume
    )
    apart = False
    for part in _split(chain([ahead], given), images_per_pass):
        kept = f"; the {part.first} images before are kept in {resume}" if resume is not None and part.first else ""
        with _naming(part.batch, part.first, kept):
            if not apart and len(part.images) > 1:
                check_apart(passes, part.images, part.labels, rehearsal.work_bytes)
                apart = True
            _add(file, passes, part, rehearsal.work_bytes)
        done = part.first + len(part.images)
        if progress is not None:
            progress(done)
    return file.projections(done * probes)


def sensitivity_curves(
    model: nn.Module,
    batches: Iterable[Batch],
    *,
    block: Shape | Mapping[str, Shape] = (32, 32),
    delta: Form | None = None,
    score: Score | None = None,
    **options: Any,
) -> Curves:
    """Curves of a model at one block size: :func:`projections` (which takes ``options``) and their curves."""
    return projections(model, batches, finest=block, **options).curves(block, delta=delta, score=score)


def _check(kind: str, probes: int, memory_bytes: int) -> None:
    if kind not in KINDS:
        raise UnknownNameError("kind", kind, KINDS)
    if probes < 1 or (kind == "loss" and probes > 1):
        raise HwmodelError(f"probes is {probes}, expected at least 1, and 1 for losses, which have one gradient for each image")
    if memory_bytes < 1:
        raise HwmodelError(f"memory_bytes is {memory_bytes}, expected a number of bytes")


@dataclass(frozen=True, kw_only=True, eq=False)
class _Part:
    """Images of one batch, or of a part of it; ``first`` is the place of the first one among all images."""

    batch: int
    first: int
    images: Tensor
    labels: Tensor | None

    def digests(self) -> DigestArray:
        """(images,) what tells each image and its label from others."""
        labels = [b""] * len(self.images) if self.labels is None else [_bytes_of(label) for label in self.labels]
        told = (blake2b(_bytes_of(image) + label, digest_size=8) for image, label in zip(self.images, labels, strict=True))
        return np.array([int.from_bytes(one.digest(), "little") for one in told], dtype=np.uint64)


def _bytes_of(values: Tensor) -> bytes:
    import torch

    return values.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()


def _on_device(batches: Iterable[Batch], model: nn.Module) -> Iterator[_Part]:
    """Batches that hold images, on the device of the model."""
    import torch

    device = next(model.parameters()).device
    first = 0
    for number, batch in enumerate([batches] if isinstance(batches, torch.Tensor) else batches):
        values = [batch] if isinstance(batch, torch.Tensor) else list(batch)
        if not values or not all(isinstance(value, torch.Tensor) and value.dim() for value in values[:2]):
            raise HwmodelError(f"batch {number}: expected a tensor of images, or images and labels, found {type(batch).__name__}")
        images, labels = values[0].to(device), values[1].to(device) if len(values) > 1 else None
        if labels is not None and len(labels) != len(images):
            raise HwmodelError(f"batch {number}: has {len(images)} images and {len(labels)} labels")
        if len(images):
            yield _Part(batch=number, first=first, images=images, labels=labels)
        first += len(images)


def _split(batches: Iterable[_Part], size: int) -> Iterator[_Part]:
    for batch in batches:
        for start in range(0, len(batch.images), size):
            part = slice(start, start + size)
            labels = None if batch.labels is None else batch.labels[part]
            yield replace(batch, first=batch.first + start, images=batch.images[part], labels=labels)


@contextmanager
def _naming(batch: int, first: int, kept: str = "") -> Iterator[None]:
    """Errors that name the batch they come from, and say what is kept."""
    try:
        yield
    except HwmodelError as error:
        raise HwmodelError(f"batch {batch} (from image {first}): {error}{kept}") from error


def _counts_by_batch(model: nn.Module) -> bool:
    """Whether a module keeps as many tokens of each image as the longest image of its batch needs."""
    from hwmodel.pruning.token_modules import Threshold

    return any(isinstance(module, Threshold) for module in model.modules())


def _called(
    passes: BackwardPasses, called: frozenset[str], left_out: Mapping[str, str], named: Sequence[str]
) -> tuple[BackwardPasses, dict[str, str]]:
    """The passes without layers that the forward pass never calls, and these beside the others left out."""
    unused = {layer.name: _UNCALLED for layer in passes.layers if layer.name not in called}
    for name in named:
        if name in unused:
            raise HwmodelError(f"{name}: {_UNCALLED}")
    layers = tuple(layer for layer in passes.layers if layer.name in called)
    if not layers:
        raise HwmodelError(f"none of the layers can be projected; {next(iter(unused))} {_UNCALLED}")
    return replace(passes, layers=layers), {**left_out, **unused}


def _header(passes: BackwardPasses, left_out: Mapping[str, str], images_per_pass: int) -> Header:
    device = next(passes.model.parameters()).device
    made_by = {
        "torch": version("torch"), "device": device.type, "images_per_pass": str(images_per_pass),
        "weights": LiveModel(module=passes.model).digest(), "loss": getattr(passes.loss, "__qualname__", str(passes.loss)),
    }  # fmt: skip
    layers = [(layer.name, layer.shape, layer.finest) for layer in passes.layers]
    return header_of(layers, kind=passes.kind, probes=passes.probes, seed=passes.seed, left_out=left_out, made_by=made_by)


def _add(file: ProjectionFile, passes: BackwardPasses, part: _Part, work: int) -> None:
    """Project a part that the file does not hold yet; one that it holds must be of the same images."""
    digests = np.repeat(part.digests(), passes.probes)
    start, end = part.first * passes.probes, part.first * passes.probes + len(digests)
    if file.rows >= end:
        if not np.array_equal(file.images()[start:end], digests):
            raise HwmodelError(f"{file.path}: holds projections of other images; delete it or name another file")
        return
    file.cut(start)
    file.append(digests, passes.project(part.images, part.labels, first=part.first, capture=Capture(passes.layers, work)))
