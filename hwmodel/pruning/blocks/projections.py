"""Block projections of a live model: per image, weight times gradient summed over every weight block, by one backward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hwmodel.errors import HwmodelError, UnknownNameError
from hwmodel.extraction.models import as_module
from hwmodel.extraction.recording.export import twin
from hwmodel.ir.masks import Shape
from hwmodel.pruning.blocks.backward_passes import BackwardPasses
from hwmodel.pruning.blocks.capture import Capture
from hwmodel.pruning.blocks.curves import Curves, Score
from hwmodel.pruning.blocks.distortion import KAPPA, Form
from hwmodel.pruning.blocks.image_batches import ImagePart, image_batches, split
from hwmodel.pruning.blocks.projected import KINDS, Kind, Projections, checked_forms
from hwmodel.pruning.blocks.projection_files import Header, ProjectionFile, header_of
from hwmodel.pruning.blocks.rehearsal import Rehearsal, check_apart, rehearse
from hwmodel.pruning.blocks.weight_layers import block_norms, weight_layers
from hwmodel.pruning.live_models import LiveModel

if TYPE_CHECKING:
    from torch import Tensor, nn

    from hwmodel.pruning.blocks.image_batches import Batch

    Loss = Callable[[Tensor, Tensor | None], Tensor]

MEMORY_BYTES = 1 << 30

_UNREACHED = (
    "no gradient reaches it (what it computes is only compared, as by a top-k, or is detached), so that nothing says what its "
    "blocks are worth"
)
_UNCALLED = "takes no part in the forward pass that could be followed (attention modules of torch keep theirs to themselves)"


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
    finest : (out, in) of the finest blocks, or a mapping of globs over layer names to it, layers that none matches being left out;
        curves may be made for its multiples
    kind : ``gauss-newton``, gradients of random combinations of the outputs, no labels needed; ``loss``, of each image's loss
    probes : random combinations for each image
    loss : for ``kind="loss"``, what gives (images,) losses of outputs and labels; None takes the cross-entropy
    layers : globs over layer names; None takes all
    memory_bytes : what may be taken beside the model and one batch; batches are split to fit
    seed : of the random combinations, which depend on it and on the place of the image, not on how images are batched
    progress : called with the number of images done
    resume : file to keep projections in as they are made; a run with the same arguments continues it, bit for bit the same. Runs
        are told apart by their arguments, by the weights, and by what the model and the loss give for the first image

    Raises
    ------
    HwmodelError
        Layers or images that are coupled so that gradients of single images do not exist, one image that does not fit the
        memory, a loss or gradient that is not finite (its batch and layer are named), or a file of another run.

    Notes
    -----
    Projections lie on disk, in a temporary file where ``resume`` names none: 4 bytes for each block, image and probe.
    Source of the sums: see :func:`~hwmodel.pruning.blocks.capture.block_products`; nothing of the size of a weight squared is made.
    """
    _check(kind, probes, memory_bytes, seed)
    running = _held_in_memory(twin(as_module(model)))
    found, left_out = weight_layers(running, finest, layers)
    norms = {layer.name: block_norms(layer) for layer in found}
    passes = BackwardPasses(model=running, layers=found, kind=kind, probes=probes, loss=loss, seed=seed)
    given = image_batches(batches, next(running.parameters()).device, labelled=kind == "loss")
    ahead = next(given, None)
    if ahead is None:
        raise HwmodelError("there are no images in the batches")
    with _naming(ahead):
        rehearsal = rehearse(passes, ahead.images, ahead.labels, memory_bytes)
        fitting = rehearsal.images(memory_bytes)
    images_per_pass = 1 if _counts_by_batch(running) else fitting
    passes, left_out = _reached(passes, rehearsal, left_out, layers or ())
    header = _header(passes, left_out, images_per_pass, rehearsal.values)
    with closing(ProjectionFile(header, np.concatenate([norms[layer.name] for layer in passes.layers], axis=1), resume)) as file:
        images = _run(passes, split(chain([ahead], given), images_per_pass), file, rehearsal.work_bytes, progress)
        return file.projections(images * probes)


def sensitivity_curves(
    model: nn.Module,
    batches: Iterable[Batch],
    *,
    block: Shape | Mapping[str, Shape] = (32, 32),
    delta: Form | None = None,
    score: Score | None = None,
    kappa: float = KAPPA,
    kind: Kind = "gauss-newton",
    **options: Any,
) -> Curves:
    """Curves of a model at one block size: :func:`projections` (which takes ``kind`` and ``options``) and their curves.

    Raises
    ------
    HwmodelError
        Before any image is taken, a distortion or score that the kind of projections does not give; else as the two raise.
    """
    checked_forms(kind, delta, score, kappa)
    found = projections(model, batches, finest=block, kind=kind, **options)
    return found.curves(block, delta=delta, score=score, kappa=kappa)


def _check(kind: str, probes: int, memory_bytes: int, seed: int) -> None:
    if kind not in KINDS:
        raise UnknownNameError("kind", kind, KINDS)
    if probes < 1 or (kind == "loss" and probes > 1):
        raise HwmodelError(f"probes is {probes}, expected at least 1, and 1 for losses, which have one gradient for each image")
    if memory_bytes < 1 or seed < 0:
        raise HwmodelError(
            f"memory_bytes is {memory_bytes} and seed {seed}, expected a number of bytes and one that is not negative"
        )


def _run(
    passes: BackwardPasses, parts: Iterable[ImagePart], file: ProjectionFile, work: int, progress: Callable[[int], None] | None
) -> int:
    """Project all parts into a file; the number of images."""
    apart, done = False, 0
    for part in parts:
        with _naming(part, file):
            if not apart and len(part.images) > 1:
                check_apart(passes, part.images, part.labels, work)
                apart = True
            _add(file, passes, part, work)
        done = part.first + len(part.images)
        if progress is not None:
            progress(done)
    return done


@contextmanager
def _naming(part: ImagePart, file: ProjectionFile | None = None) -> Iterator[None]:
    """Errors that name the batch they come from, and say what is kept."""
    kept = f"; the {part.first} images before are kept in {file.path}" if file is not None and file.path and part.first else ""
    try:
        yield
    except HwmodelError as error:
        raise HwmodelError(f"batch {part.batch} (from image {part.first}): {error}{kept}") from error


def _held_in_memory(copied: nn.Module) -> nn.Module:
    """A copy whose blocks are not run a second time in the backward pass (timm's checkpointing), when no hook is in place."""
    for module in copied.modules():
        if hasattr(module, "grad_checkpointing"):
            vars(module)["grad_checkpointing"] = False
    return copied


def _counts_by_batch(model: nn.Module) -> bool:
    """Whether a module keeps as many tokens of each image as the longest image of its batch needs."""
    from hwmodel.pruning.token_modules import Threshold

    return any(isinstance(module, Threshold) for module in model.modules())


def _reached(
    passes: BackwardPasses, rehearsal: Rehearsal, left_out: Mapping[str, str], named: Sequence[str]
) -> tuple[BackwardPasses, dict[str, str]]:
    """The passes without layers that the forward pass never calls or no gradient reaches, and these beside the others left out."""
    unused = {
        layer.name: _UNREACHED if layer.name in rehearsal.called else _UNCALLED
        for layer in passes.layers
        if layer.name not in rehearsal.reached
    }
    for name in named:
        if name in unused:
            raise HwmodelError(f"{name}: {unused[name]}; leave it out of layers=")
    layers = tuple(layer for layer in passes.layers if layer.name in rehearsal.reached)
    if not layers:
        name, reason = next(iter(unused.items()))
        raise HwmodelError(f"none of the layers can be projected; {name}: {reason}")
    return replace(passes, layers=layers), {**left_out, **unused}


def _header(passes: BackwardPasses, left_out: Mapping[str, str], images_per_pass: int, values: str) -> Header:
    device = next(passes.model.parameters()).device
    made_by = {
        "torch": version("torch"), "device": device.type, "images_per_pass": str(images_per_pass),
        "weights": LiveModel(module=passes.model).digest(),
    }  # fmt: skip
    if passes.loss is not None:
        made_by["loss"] = getattr(passes.loss, "__qualname__", type(passes.loss).__name__)
    made_by["first_values"] = values
    layers = [(layer.name, layer.shape, layer.finest) for layer in passes.layers]
    return header_of(layers, kind=passes.kind, probes=passes.probes, seed=passes.seed, left_out=left_out, made_by=made_by)


def _add(file: ProjectionFile, passes: BackwardPasses, part: ImagePart, work: int) -> None:
    """Project a part that the file does not hold yet; one that it holds must be of the same images."""
    digests = np.repeat(part.digests(), passes.probes)
    start, end = part.first * passes.probes, part.first * passes.probes + len(digests)
    if file.rows >= end:
        if not np.array_equal(file.images(slice(start, end)), digests):
            raise HwmodelError(f"{file.path}: holds projections of other images; delete it or name another file")
        return
    file.cut(start)
    file.append(digests, passes.project(part.images, part.labels, first=part.first, capture=Capture(passes.layers, work)))
