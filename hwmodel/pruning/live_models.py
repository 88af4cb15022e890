"""Models with real weights: built from a name and a checkpoint, saved as one, and traced afresh from what was saved."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hwmodel.errors import CheckpointError, HwmodelError
from hwmodel.extraction.models import ImageSize, as_module, example_inputs, trace
from hwmodel.files import check_writable, write_file
from hwmodel.ir.trace import Trace
from hwmodel.pruning.blocks.masking import copied, release_masks

if TYPE_CHECKING:
    import torch
    from torch import nn

    Module = nn.Module
    Tensor = torch.Tensor


@dataclass(frozen=True, kw_only=True, eq=False)
class LiveModel:
    """A model with weights, and what it takes to trace it.

    Parameters
    ----------
    module : the model itself, its weights plain; never changed
    name : timm name that :func:`hwmodel.trace` builds the same structure from, together with a checkpoint; None where only
        the module knows it: a module of the user's own, or one whose tokens are scheduled
    batch : images of the forward pass that is priced
    image_size, dtype, example : as :func:`hwmodel.trace` takes them
    """

    module: nn.Module
    name: str | None = None
    batch: int = 1
    image_size: ImageSize | None = None
    dtype: str | None = None
    example: torch.Tensor | None = None

    @classmethod
    def of(
        cls,
        model: str | nn.Module,
        *,
        checkpoint: str | Path | None = None,
        batch: int = 1,
        image_size: ImageSize | None = None,
        dtype: str | None = None,
        example: torch.Tensor | None = None,
        seed: int = 0,
    ) -> LiveModel:
        """A timm model by name, with the weights of a checkpoint or with random ones of ``seed``; or a copy of a module.

        Masks become zeros of the weights, and the copy holds what the module's parametrizations compute (weight norm, ...).

        Raises
        ------
        UnknownNameError
            A name timm does not know.
        CheckpointError
            Weights that are not the model's, or of which a checkpoint holds no plain values.
        HwmodelError
            A checkpoint beside a module, which has its own weights, or a module whose weights torch's old hooks compute.
        """
        if not isinstance(model, str):
            if checkpoint is not None:
                raise HwmodelError("a module brings its own weights; load the checkpoint into it and leave checkpoint= out")
            given = as_module(model)
            _check_hooks(given)
            plain = _without_parametrizations(release_masks(copied(given)).eval())
            return cls(module=plain, batch=batch, image_size=image_size, dtype=dtype, example=example)
        if example is not None:
            raise HwmodelError(f"{model}: a model given by name makes its own input; leave example= out")
        module = _built(model, image_size, seed)
        if checkpoint is not None:
            module = _loaded(module, model, checkpoint)
        return cls(module=module, name=model, batch=batch, image_size=image_size, dtype=dtype)

    def holding(self, module: nn.Module, *, by_name: bool = True) -> LiveModel:
        """Another version of the model; ``by_name`` says whether its name and a checkpoint still tell all of its structure."""
        return replace(self, module=module, name=self.name if by_name else None)

    @property
    def title(self) -> str:
        """What a reader calls it."""
        config = getattr(self.module, "pretrained_cfg", None) or {}
        return self.name or str(config.get("architecture") or type(self.module).__name__)

    @cached_property
    def structure(self) -> Trace:
        """The trace without any sparsity: of the same module on the meta device, where weights have no values."""
        return self._of_module(None)

    def published(self) -> Trace:
        """The dense model that a recipe starts from: by its name alone where it has one, else :meth:`structure`."""
        return self.structure if self.name is None else self._of_name(self.name, None)

    def save(self, path: str | Path) -> None:
        """Write the weights as safetensors; the same weights give the same bytes.

        Raises
        ------
        HwmodelError
            A path that cannot be written.
        """
        from safetensors.torch import save

        check_writable(path)
        tensors = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in self.module.state_dict().items()}
        write_file(path, save(tensors))

    def reloaded(self, path: str | Path) -> Trace:
        """The trace of what was saved, extracted afresh: built anew, its sparsity read from the file alone."""
        return self._of_module(path) if self.name is None else self._of_name(self.name, path)

    def _of_name(self, name: str, checkpoint: str | Path | None) -> Trace:
        return trace(name, batch=self.batch, image_size=self.image_size, dtype=self.dtype, checkpoint=checkpoint)

    def _of_module(self, checkpoint: str | Path | None) -> Trace:
        sides = (self.image_size, self.image_size) if isinstance(self.image_size, int) else self.image_size
        inputs = example_inputs(self.module, self.batch, sides, self.example)
        empty = copy.deepcopy(self.module).to("meta")
        example = tuple(value.to("meta") for value in inputs)
        return trace(empty, batch=self.batch, example=example, dtype=self.dtype, checkpoint=checkpoint)

    def digest(self) -> str:
        """Sixteen hexadecimal digits that change with any weight."""
        import torch

        found = sha256()
        for name, tensor in self.module.state_dict().items():
            found.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
            found.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
        return found.hexdigest()[:16]


def _built(name: str, image_size: ImageSize | None, seed: int) -> nn.Module:
    import torch

    from hwmodel.extraction import zoo

    sides = (image_size, image_size) if isinstance(image_size, int) else image_size
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = zoo.build(name, sides, device="cpu")
    zoo.check_image_size(module, name, sides)
    return module


def _loaded(module: nn.Module, name: str, checkpoint: str | Path) -> nn.Module:
    """The model with a checkpoint's weights, narrowed as the checkpoint is."""
    from hwmodel.extraction.weights.checkpoints import open_checkpoint
    from hwmodel.extraction.weights.matching import known_names
    from hwmodel.extraction.weights.narrowing import fit
    from hwmodel.extraction.weights.stored_weights import StoredWeights

    stored = StoredWeights(open_checkpoint(checkpoint).unwrapped(known_names(module)))
    tensors = {weight: stored.plain(weight) for weight in stored.shapes}
    shapes = {key: tuple(tensor.shape) for key, tensor in tensors.items()}
    state = module.state_dict()
    if shapes != {key: tuple(tensor.shape) for key, tensor in state.items()}:
        try:
            module = fit(module, shapes).module
        except CheckpointError as error:
            raise CheckpointError(f"{stored.where}: is no checkpoint of {name}: {error}") from error
        _materialise(module, stored.where)
    module.load_state_dict(tensors)
    return module.eval()


def _check_hooks(module: nn.Module) -> None:
    from torch.nn.utils.spectral_norm import SpectralNorm
    from torch.nn.utils.weight_norm import WeightNorm

    for path, part in module.named_modules():
        for hook in part._forward_pre_hooks.values():
            if isinstance(hook, WeightNorm | SpectralNorm):
                raise HwmodelError(
                    f"{type(module).__name__}: {path}.{hook.name} is computed by a hook, {type(hook).__name__}; remove it, "
                    "or take the one of torch.nn.utils.parametrizations"
                )


def _without_parametrizations(module: nn.Module) -> nn.Module:
    """Plain tensors instead of those that are computed on every call; changes ``module`` itself.

    Not as torch removes parametrizations: it changes the class of the layer, which copies share.
    """
    import torch
    from torch.nn.utils import parametrize

    for part in list(module.modules()):
        if not parametrize.is_parametrized(part):
            continue
        chains: Any = part.parametrizations
        values = {name: getattr(part, name).detach().clone() for name in chains}
        trained = {name for name in chains if any(True for _ in chains[name].parameters(recurse=False))}
        del part._modules["parametrizations"]
        part.__class__ = type(part).__bases__[0]
        for name, value in values.items():
            if name in trained:
                part.register_parameter(name, torch.nn.Parameter(value))
            else:
                part.register_buffer(name, value)
    return module


def _materialise(module: nn.Module, where: str) -> None:
    """Memory for parameters that narrowing left on the meta device; their values are the checkpoint's."""
    import torch

    for path, part in module.named_modules():
        for key, tensor in part._parameters.items():
            if tensor is not None and tensor.is_meta:
                part._parameters[key] = torch.nn.Parameter(torch.zeros(tensor.shape, dtype=tensor.dtype), tensor.requires_grad)
        lost = [key for key, tensor in part._buffers.items() if tensor is not None and tensor.is_meta]
        if lost:
            raise CheckpointError(
                f"{where}: {path}.{lost[0]} has another shape than the model's, and no checkpoint holds its values"
            )
