"""From stored tensors to weights: what belongs to one weight, in which shape, and which of its elements are zero.

A weight may be stored as itself, beside a mask, as ``weight_orig`` and ``weight_mask`` (torch.nn.utils.prune), as
``parametrizations.weight.original`` with its masks, or as magnitude and direction (weight norm). The elements that are
not zero are those where none of the factors is.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from hwmodel.errors import CheckpointError
from hwmodel.extraction.weights.checkpoints import Shape, StoredTensors
from hwmodel.extraction.weights.formats import LayerFormat
from hwmodel.extraction.weights.quantised_weights import nonzero_integers, quantised_part, stored_format
from hwmodel.ir.findings import WeightForm
from hwmodel.ir.masks import BoolArray

if TYPE_CHECKING:
    from torch import Tensor, nn

_PARAMETRIZED = re.compile(r"^(?P<path>.*?)parametrizations\.(?P<name>[^.]+)\.(?:original(?P<factor>\d*)|\d+\.(?P<state>.+))$")
_FACTORS = (("_orig", "_mask"), ("_g", "_v"), ("_v", "_g"))
"""Endings that replace the name of a weight, with the one that has to stand beside."""
_MASK_NAMES = ("mask", "weight_mask", "pruning_mask", "masks.weight")
"""Names of a mask beside ``weight`` in the same module."""
_POWER_ITERATION = frozenset({"_u", "_v"})
"""State of a spectral norm, which divides a weight by a number."""


Part = Literal["factor", "mask", "scale", "step", "zero_point"]

_QUANTISED: Mapping[str, Part] = {"qdata": "factor", "scale": "step", "zero_point": "zero_point"}


@dataclass(slots=True)
class _Parts:
    """Names of the tensors that make one weight: factors multiplied with each other, masks, and numbers that scale it.

    ``step`` and ``zero_point`` are the scales and the zero points of integers.

    ``opaque`` says that a parametrization computes it in a way that nothing stored tells.
    """

    factor: list[str] = field(default_factory=list)
    mask: list[str] = field(default_factory=list)
    scale: list[str] = field(default_factory=list)
    step: list[str] = field(default_factory=list)
    zero_point: list[str] = field(default_factory=list)

    @property
    def opaque(self) -> bool:
        alone = len(self.factor) == 1 and not self.mask and not self.scale
        return alone and "parametrizations." in self.factor[0]

    @property
    def computed(self) -> str:
        """In words, how a weight is stored that is not one tensor beside its masks; empty for all others."""
        if self.step:
            return "as integers with scales"
        if len(self.factor) > 1:
            return f"as {len(self.factor)} tensors that make one"
        return "by a parametrization that is no mask" if self.opaque or self.scale else ""


@dataclass(frozen=True, eq=False)
class WeightContent:
    """Where a weight is zero.

    Parameters
    ----------
    form : how it is stored
    nonzero : (out, ...) bool, elements that are not zero
    pattern : elements that a mask (or the layout) keeps, None where only the values say it
    block : (out, in) of the layout, None where it has none
    """

    form: WeightForm
    nonzero: BoolArray
    pattern: BoolArray | None = None
    block: tuple[int, int] | None = None


class StoredWeights:
    """Weights by the name that a plain model gives them.

    Raises
    ------
    CheckpointError
        A mask of another shape than its weight, or a parametrization whose stored state does not say what it computes.
    """

    def __init__(self, tensors: StoredTensors) -> None:
        self._tensors = tensors
        self._parts: dict[str, _Parts] = {}
        for name in tensors.shapes:
            weight, part = _belongs_to(name, tensors)
            getattr(self._parts.setdefault(weight, _Parts()), part).append(name)
        self.shapes: Mapping[str, Shape] = {name: self._shape(name, parts) for name, parts in self._parts.items()}

    @property
    def where(self) -> str:
        """What the weights come from, for messages."""
        return self._tensors.where

    @property
    def quantised(self) -> dict[str, Shape]:
        """Shapes of the weights that are integers beside their scales."""
        return {name: self.shapes[name] for name, parts in self._parts.items() if parts.step}

    def format_of(self, weight: str) -> LayerFormat | None:
        """The number format of a quantised weight, None for any other."""
        parts = self._parts.get(weight)
        if parts is None or not parts.step:
            return None
        (qdata, scale), zero_point = (self._tensors.load(one[0]) for one in (parts.factor, parts.step)), self._zero_point(parts)
        return stored_format(qdata, scale, zero_point, f"{self.where}: {weight}")

    def _zero_point(self, parts: _Parts) -> Tensor | None:
        return self._tensors.load(parts.zero_point[0]) if parts.zero_point else None

    def weight_of(self, parameter: str) -> str:
        """The weight that a parameter of the model belongs to: its own name where it is stored as it is."""
        parametrized = _PARAMETRIZED.match(parameter)
        name = parameter if parametrized is None else parametrized["path"] + parametrized["name"]
        bases = (name.removesuffix(ending) for ending, _ in _FACTORS)
        return name if name in self.shapes else next((base for base in bases if base in self.shapes), name)

    def _shape(self, weight: str, parts: _Parts) -> Shape:
        shapes = [self._tensors.shapes[name] for name in parts.factor]
        try:
            shape = tuple(np.broadcast_shapes(*shapes))
        except ValueError as error:
            told = " and ".join(f"{name} ({_text(shape)})" for name, shape in zip(parts.factor, shapes, strict=True))
            raise CheckpointError(f"{self.where}: {told} do not make one weight: their shapes do not go together") from error
        for name in parts.mask:
            found = self._tensors.shapes[name]
            if len(found) != len(shape) or any(one not in {1, size} for one, size in zip(found, shape, strict=True)):
                raise CheckpointError(f"{self.where}: mask {name} has shape {_text(found)}, its weight {weight} has {_text(shape)}")
        return shape

    def check_numbers(self, weight: str) -> None:
        """Refuse NaN in the factors of one weight."""
        for name in self._parts[weight].factor:
            self._content(name)

    def read(self, weight: str) -> WeightContent:
        """Where one weight is zero.

        Raises
        ------
        CheckpointError
            NaN among its values, or a mask with values other than 0 and 1.
        """
        parts = self._parts[weight]
        if parts.opaque:
            return WeightContent("computed", np.ones(self.shapes[weight], dtype=np.bool_))
        contents = [self._content(name) for name in parts.factor]
        if parts.step:
            told = f"{self.where}: {weight}"
            contents = [
                WeightContent("zeros", nonzero_integers(self._tensors.load(parts.factor[0]), self._zero_point(parts), told))
            ]
        nonzero, shape = contents[0].nonzero, self.shapes[weight]
        for content in contents[1:]:
            nonzero = nonzero & content.nonzero
        pattern = contents[0].pattern
        for name in parts.mask:
            mask = np.broadcast_to(self._mask(name), shape)
            pattern = mask if pattern is None else pattern & mask
        if pattern is None or pattern.all():
            return WeightContent(contents[0].form, nonzero, block=contents[0].block)
        form = "masked" if parts.mask else contents[0].form
        return WeightContent(form, nonzero & pattern, pattern, contents[0].block)

    def plain(self, weight: str) -> Tensor:
        """The values of one weight, dense, zero where a mask prunes it.

        Raises
        ------
        CheckpointError
            A weight that is computed from what is stored in another way, or a mask with values other than 0 and 1.
        """
        import torch

        parts = self._parts[weight]
        values = self._tensors.load(parts.factor[0]).detach()
        told = parts.computed or ("packed as two of four" if is_semi_structured(values) else "")
        if told:
            raise CheckpointError(f"{self.where}: {weight} is stored {told}; save the plain weight that it stands for")
        values = _unpacked(values).to_dense()
        for name in parts.mask:
            values = values.masked_fill(torch.from_numpy(~self._mask(name)), 0)
        return values

    def _content(self, name: str) -> WeightContent:
        import torch

        stored = self._tensors.load(name).detach()
        if is_semi_structured(stored):
            return WeightContent("2:4", _two_of_four(tuple(stored.shape)))
        tensor = _unpacked(stored)
        if tensor.layout == torch.strided:
            self._check(name, tensor)
            return WeightContent("zeros", _numpy(tensor != 0))
        values = tensor.values() if tensor.layout != torch.sparse_coo else tensor.coalesce().values()
        self._check(name, values)
        dense = _numpy(tensor.to_dense() != 0)
        if tensor.layout != torch.sparse_bsr:
            return WeightContent("sparse", dense)
        block = values.shape[-2], values.shape[-1]
        return WeightContent("bsr", dense, _stored_blocks(tensor, block), block)

    def _check(self, name: str, tensor: Tensor) -> None:
        """Refuse NaN; one pass without a copy, for the extremes of a tensor are NaN where any value is."""
        tensor = tensor.float() if tensor.itemsize == 1 and tensor.is_floating_point() else tensor  # 8-bit floats have no extremes
        if tensor.is_floating_point() and tensor.numel() and tensor.aminmax().min.isnan().item():
            raise CheckpointError(f"{self.where}: {name} holds NaN; training diverged, or the file is damaged")

    def _mask(self, name: str) -> BoolArray:
        mask = self._tensors.load(name).detach()
        if not ((mask == 0) | (mask == 1)).all():
            raise CheckpointError(f"{self.where}: mask {name} holds values other than 0 and 1, so it does not say what is pruned")
        return _numpy(mask != 0)


def _belongs_to(name: str, tensors: StoredTensors) -> tuple[str, Part]:
    """The weight that a stored tensor is a part of, and which part."""
    parametrized = _PARAMETRIZED.match(name)
    if parametrized is not None:
        weight = parametrized["path"] + parametrized["name"]
        return weight, "factor" if parametrized["state"] is None else _state_part(name, parametrized, tensors)
    quantised = quantised_part(name, tensors)
    if quantised is not None:
        return quantised[0], _QUANTISED[quantised[1]]
    for ending, partner in _FACTORS:
        base = name.removesuffix(ending)
        if base != name and base + partner in tensors.shapes:
            return base, "factor"
    return next(((weight, "mask") for weight in _masked_by(name) if _is_stored(weight, tensors)), (name, "factor"))


def _is_stored(weight: str, tensors: StoredTensors) -> bool:
    return weight in tensors.shapes or f"{weight}_orig" in tensors.shapes


def _masked_by(name: str) -> Iterator[str]:
    """Weights that ``name`` may be the mask of, going by its name alone."""
    for ending in ("_mask", ".mask"):
        if name.endswith(ending):
            yield name.removesuffix(ending)
    for mask in _MASK_NAMES:
        if name == mask or name.endswith(f".{mask}"):
            yield f"{name.removesuffix(mask)}weight"


def _state_part(name: str, found: re.Match[str], tensors: StoredTensors) -> Part:
    """What the state of a parametrization is: a mask or the numbers of a spectral norm; anything else is refused.

    Users name their masks as they like, so what has the weight's shape and holds 0 and 1 only is one.
    """
    original = f"{found['path']}parametrizations.{found['name']}.original"
    if "mask" in found["state"] or (tensors.shapes.get(original) == tensors.shapes[name] and is_binary(tensors.load(name))):
        return "mask"
    if found["state"] in _POWER_ITERATION:
        return "scale"
    raise CheckpointError(
        f"{tensors.where}: {name} belongs to a parametrization that is no mask; what it computes is unknown: trace the live module"
    )


def is_semi_structured(tensor: Tensor) -> bool:
    """Whether a tensor is one of torch's 2:4 semi-structured ones."""
    import torch

    return isinstance(tensor, torch.sparse.SparseSemiStructuredTensor)


def _two_of_four(shape: Shape) -> BoolArray:
    """Half of the elements: where they lie is packed in a form that only the device reads."""
    return np.broadcast_to(np.arange(shape[-1]) % 4 < 2, shape)


def _unpacked(tensor: Tensor) -> Tensor:
    """The values of a quantised tensor as plain numbers."""
    if tensor.is_quantized or (type(tensor).__module__.startswith("torchao") and hasattr(tensor, "dequantize")):
        return tensor.dequantize()
    return tensor


def _numpy(values: Tensor) -> BoolArray:
    found: BoolArray = values.cpu().numpy()
    return found


def _stored_blocks(tensor: Tensor, block: tuple[int, int]) -> BoolArray:
    """Elements of a block-sparse tensor that lie in a stored block."""
    rows, cols = tensor.shape[0] // block[0], tensor.shape[1] // block[1]
    stored = np.zeros((rows, cols), dtype=np.bool_)
    starts = tensor.crow_indices().cpu().numpy()
    stored[np.repeat(np.arange(rows), np.diff(starts)), tensor.col_indices().cpu().numpy()] = True
    return np.kron(stored, np.ones(block, dtype=np.bool_))


def module_weights(model: nn.Module) -> StoredWeights:
    """The weights of a live module; those of parametrizations as the module computes them, one at a time."""
    loads: dict[str, Callable[[], Tensor]] = {}
    shapes: dict[str, Shape] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        if "parametrizations" not in path.split("."):
            for name, shape, load in _module_tensors(f"{path}." if path else "", module):
                shapes[name], loads[name] = shape, load
    return StoredWeights(StoredTensors(type(model).__name__, shapes, lambda name: loads[name]()))


def _module_tensors(prefix: str, module: nn.Module) -> Iterator[tuple[str, Shape, Callable[[], Tensor]]]:
    """Name, shape and value of parameters, buffers, masks kept as plain attributes, and parametrized weights with masks."""
    import torch
    from torch.nn.utils import parametrize

    attributes = {name: value for name, value in module.__dict__.items() if "mask" in name}
    for table in (module._parameters, module._buffers, attributes):
        for name, value in table.items():
            if isinstance(value, torch.Tensor):
                yield prefix + name, tuple(value.shape), partial(_itself, value)
    if parametrize.is_parametrized(module):
        chains: Any = module.parametrizations
        for name in chains:
            yield prefix + name, tuple(getattr(module, name).shape), partial(getattr, module, name)
            for place, mask in masks_of(module, name):
                yield f"{prefix}parametrizations.{name}.{place}.mask", tuple(mask.shape), partial(_itself, mask)


def masks_of(module: nn.Module, name: str) -> list[tuple[int, Tensor]]:
    """Masks among the state of the parametrizations of one tensor, each with the number of its parametrization."""
    shape = getattr(module, name).shape
    chains: Any = module.parametrizations
    chain = chains[name]
    held = ((place, state) for place, step in enumerate(chain) for state in step.buffers())
    return [(place, state) for place, state in held if state.shape == shape and not state.is_meta and is_binary(state)]


def _itself(tensor: Tensor) -> Tensor:
    return tensor


def is_binary(tensor: Tensor) -> bool:
    """Whether every value is 0 or 1."""
    return bool(((tensor == 0) | (tensor == 1)).all())


def _text(shape: Shape) -> str:
    return "x".join(map(str, shape)) or "of one number"
