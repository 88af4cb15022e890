"""One small pass ahead of a run: how many images fit the memory, and whether an image's gradient is its own."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import blake2b
from typing import TYPE_CHECKING

from hwmodel.errors import HwmodelError
from hwmodel.pruning.blocks.backward_passes import BackwardPasses, differentiate
from hwmodel.pruning.blocks.capture import Capture, work_bytes
from hwmodel.pruning.blocks.image_batches import bytes_of

if TYPE_CHECKING:
    from torch import Tensor

MOST_IMAGES = 8
"""Images of one pass at most: more are no faster on a CPU."""

_IN_FLIGHT = 3
"""Gradients of the largest output that exist at once while a backward pass runs."""


@dataclass(frozen=True, kw_only=True)
class Rehearsal:
    """What a pass of one image has shown.

    Parameters
    ----------
    image_bytes : memory that each image of a pass takes
    work_bytes : memory to form block products in
    called : layers that the forward pass calls
    reached : those of them that the gradient reaches
    values : digest of what was differentiated, which tells models and losses apart that no weight and no name does
    """

    image_bytes: int
    work_bytes: int
    called: frozenset[str]
    reached: frozenset[str]
    values: str

    def images(self, memory_bytes: int) -> int:
        """Images of one pass within a memory that holds one."""
        return int(min(MOST_IMAGES, (memory_bytes - self.work_bytes) // self.image_bytes))


def too_small(needed: int, memory_bytes: int) -> HwmodelError:
    """The error where one image does not fit."""
    return HwmodelError(
        f"one image takes at least {needed >> 10} KiB beside the model, memory_bytes allows {memory_bytes >> 10} KiB; "
        "allow more, or take smaller images"
    )


def rehearse(passes: BackwardPasses, images: Tensor, labels: Tensor | None, memory_bytes: int) -> Rehearsal:
    """Measure a pass of one image: the tensors that the graph holds, and the inputs of layers.

    Raises
    ------
    HwmodelError
        A memory too small for one image, or a pass that fails.
    """
    import torch
    from torch.autograd.graph import saved_tensors_hooks

    weights = {tensor.untyped_storage().data_ptr() for tensor in passes.model.state_dict().values()}
    held: dict[int, int] = {}

    def hold(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            held[storage.data_ptr()] = storage.nbytes()
        if sum(held.values()) > memory_bytes:
            raise too_small(sum(held.values()), memory_bytes)
        return tensor.detach()  # the tensor itself would keep the graph alive for good

    capture = Capture(passes.layers, memory_bytes)
    capture.start(1)
    with torch.enable_grad(), saved_tensors_hooks(hold, lambda tensor: tensor):
        objectives = passes.objectives(passes.outputs(images[:1], capture), None if labels is None else labels[:1], 0)
    for given in capture.inputs:
        hold(given)
    blocks = sum(layer.blocks for layer in passes.layers)
    called = [layer for layer in passes.layers if layer.name in capture.rows]
    largest = max((layer.shape[0] * capture.rows[layer.name] * 4 for layer in called), default=0)
    image_bytes = sum(held.values()) + _IN_FLIGHT * largest + 4 * blocks * (passes.probes + 2)
    work = max((work_bytes(layer, capture.rows[layer.name]) for layer in called), default=0)
    if image_bytes + work > memory_bytes:
        raise too_small(image_bytes + work, memory_bytes)
    if objectives[0].requires_grad:
        differentiate(objectives[0].sum())
    return Rehearsal(
        image_bytes=image_bytes,
        work_bytes=work,
        called=frozenset(layer.name for layer in called),
        reached=frozenset(capture.taken()),
        values=blake2b(bytes_of(torch.cat(objectives)), digest_size=8).hexdigest(),
    )


def check_apart(passes: BackwardPasses, images: Tensor, labels: Tensor | None, work: int) -> None:
    """Refuse a model in which what one image gives depends on the others of its batch.

    Raises
    ------
    HwmodelError
        The first layer at which the gradient of one image is seen in another.
    """
    import torch

    pair = images[:2] if len(images) > 1 else images.repeat(2, *[1] * (images.dim() - 1))
    both = None if labels is None else labels[:2] if len(labels) > 1 else labels.repeat(2, *[1] * (labels.dim() - 1))
    capture = Capture(passes.layers, work)
    capture.start(2)
    with torch.enable_grad():
        differentiate(passes.objectives(passes.outputs(pair, capture), both, 0)[0][0])
    for name, found in capture.taken().items():
        if bool(found.isfinite().all() and found[1].any()):
            raise HwmodelError(
                f"{name}: images of a batch are not independent of each other (batch statistics, or images that are not "
                "the first axis), so no image has a gradient of its own; hand over batches of one image, or choose other layers"
            )
