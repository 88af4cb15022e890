"""Number formats of quantised layers: read off the module, taken out of the copy that is traced, written onto its rows.

A quantised layer is traced as the float layer it stands for, and its row then gets its formats: ``weight_dtype`` for
weights that are widened on use, ``dtype`` as well where activations are quantised too. Quantising and widening
activations is taken as part of the product's kernel. Known are torchao's tensors and the linears and convolutions of
``torch.ao.nn.quantized``; another quantised tensor is refused.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil, prod
from typing import TYPE_CHECKING, Any

from hwmodel.errors import HwmodelError
from hwmodel.ir.operators import Operator
from hwmodel.ir.trace import Trace

if TYPE_CHECKING:
    from torch import Tensor, nn

_BITS = {"int8": "int8", "int4": "int4", "uint4": "int4", "uint8": "int8"}
"""torch's names of integer formats, and ours."""
_QUANTISING = re.compile(r"torchao|quanto|bitsandbytes|quant", re.IGNORECASE)
"""Modules whose tensor classes stand for quantised values."""
_PACKED_SCALE_BITS = 64
"""fbgemm and x86 kernels keep a float scale and a 32-bit zero point per tensor or row (PackedLinearWeight)."""


@dataclass(frozen=True, kw_only=True)
class LayerFormat:
    """Formats of one layer.

    Parameters
    ----------
    weights : number format of the stored weights
    activations : format that the layer multiplies in; None where it widens its weights instead
    group : weights that share one scale
    scale_bits : bits of one scale with its zero point
    """

    weights: str
    activations: str | None = None
    group: int = 0
    scale_bits: int = 0

    def scale_bytes(self, n: int, k: int) -> int:
        """Bytes of all scales of an (n, k) weight."""
        if not self.group:
            return 0
        scales = n * ceil(k / self.group) if self.group <= k else ceil(n * k / self.group)
        return ceil(scales * self.scale_bits / 8)


def read_formats(module: nn.Module, name: str) -> dict[str, LayerFormat]:
    """The quantised layers of a module by path; empty where there are none.

    Raises
    ------
    HwmodelError
        A weight of a quantised class that is not known, or in a number format without a name here.
    """
    found = {}
    for path, layer in module.named_modules():
        packed = _is_packed(layer)
        for key, tensor in [] if packed else layer._parameters.items():
            if tensor is not None and _is_quantised(tensor):
                owner = path if key == "weight" else f"{path}.{key}".removesuffix("_weight")
                found[owner] = _tensor_format(tensor, f"{name}: {path}.{key}")
        if packed:
            found[path] = _packed_format(layer, f"{name}: {path}")
    return found


def make_float(copied: nn.Module) -> None:
    """Replace the quantised layers of a copy (:func:`hwmodel.extraction.recording.export.twin`) by float ones, without values."""
    import torch

    for path, layer in list(copied.named_modules()):
        for key, tensor in list(layer._parameters.items()):
            if tensor is not None and _is_quantised(tensor):
                empty = torch.empty(tensor.shape, dtype=tensor.dtype, device=tensor.device)
                layer.register_parameter(key, torch.nn.Parameter(empty, requires_grad=False))
        if path and (_is_packed(layer) or _converts(layer)):
            parent, _, last = path.rpartition(".")
            setattr(copied.get_submodule(parent), last, _float_layer(layer))


def with_formats(trace: Trace, formats: Mapping[str, LayerFormat]) -> Trace:
    """The trace with the formats of quantised layers on their rows; layers called several times have several."""
    if not formats:
        return trace
    return trace.replace(operators=tuple(_formatted(operator, formats) for operator in trace.operators))


def _formatted(operator: Operator, formats: Mapping[str, LayerFormat]) -> Operator:
    found = formats.get(operator.name) or formats.get(re.sub(r"_\d+$", "", operator.name))
    if found is None or operator.family != "product" or not operator.parameter:
        return operator
    dtype = found.activations or operator.dtype
    scale_bytes = operator.batch * found.scale_bytes(operator.n, operator.k)
    return operator.replace(dtype=dtype, weight_dtype=None if found.weights == dtype else found.weights, scale_bytes=scale_bytes)


# ---------------------------------------------------------------- tensors


def _is_quantised(tensor: Tensor) -> bool:
    return bool(_QUANTISING.search(type(tensor).__module__))


def _tensor_format(tensor: Any, where: str) -> LayerFormat:
    """Formats of a torchao tensor: ``qdata`` with ``scale`` and ``zero_point`` per block of ``block_size`` weights."""
    kind = type(tensor).__name__
    if not all(hasattr(tensor, field) for field in ("qdata", "scale", "block_size")):
        raise HwmodelError(f"{where}: quantised as {kind}, which hwmodel does not know; trace the float model and give it a dtype")
    weights = _weight_format(tensor, kind)
    if weights is None:
        held = _torch_name(getattr(tensor, "target_dtype", tensor.qdata.dtype))
        raise HwmodelError(f"{where}: {kind} holds {held} weights; known are int8 and int4")
    zero_point = getattr(tensor, "zero_point", None)
    scales = [tensor.scale] if zero_point is None else [tensor.scale, zero_point]
    return LayerFormat(
        weights=weights,
        activations=_activation_format(tensor, where),
        group=prod(tensor.block_size),
        scale_bits=8 * sum(scale.element_size() for scale in scales),
    )


def _weight_format(tensor: Any, kind: str) -> str | None:
    """The format the weights are meant in: the tensor says so, or its class does where two share a byte."""
    target = getattr(tensor, "target_dtype", None)
    if target is not None:
        return _BITS.get(_torch_name(target))
    return "int4" if kind.startswith("Int4") else _BITS.get(_torch_name(tensor.qdata.dtype))


def _torch_name(dtype: object) -> str:
    return str(dtype).removeprefix("torch.")


def _activation_format(tensor: Any, where: str) -> str | None:
    """The format activations are quantised to; None where they are not."""
    stated = getattr(tensor, "activation_quantization", None)
    kwargs = getattr(tensor, "act_quant_kwargs", None)
    told = str(stated) if stated is not None else "" if kwargs is None else type(kwargs).__name__
    if not told:
        return None
    if "int8" not in told.lower():
        raise HwmodelError(f"{where}: activations are quantised as {told}, which hwmodel does not know; known is int8")
    return "int8"


# ---------------------------------------------------------------- packed layers


def _is_packed(layer: nn.Module) -> bool:
    """A linear or a convolution of ``torch.ao.nn.quantized``."""
    return _of_torch_ao(layer) and type(layer).__name__ in {"Linear", "Conv2d"} and callable(getattr(layer, "weight", None))


def _of_torch_ao(layer: nn.Module) -> bool:
    return type(layer).__module__.startswith("torch.ao.nn.quantized")


def _converts(layer: nn.Module) -> bool:
    """A layer that only turns floats into integers, or back."""
    return _of_torch_ao(layer) and type(layer).__name__ in {"Quantize", "DeQuantize"}


def _packed_format(layer: Any, where: str) -> LayerFormat:
    import torch

    weight = layer.weight()
    if getattr(getattr(layer, "_packed_params", None), "dtype", None) is torch.float16:
        return LayerFormat(weights="fp16")
    if not weight.is_quantized or weight.dtype != torch.qint8:
        raise HwmodelError(f"{where}: packed as {_torch_name(weight.dtype)}, which hwmodel does not know; known is qint8")
    per_row = weight.qscheme() in {torch.per_channel_affine, torch.per_channel_symmetric}
    group = weight.numel() // weight.shape[0] if per_row else weight.numel()
    return LayerFormat(weights="int8", activations="int8", group=group, scale_bits=_PACKED_SCALE_BITS)


def _float_layer(layer: Any) -> nn.Module:
    """The float layer that a packed one stands for; the identity for what only converts."""
    from torch import nn

    if _converts(layer):
        return nn.Identity()
    bias = layer.bias() is not None
    if type(layer).__name__ == "Linear":
        return nn.Linear(layer.in_features, layer.out_features, bias=bias)
    return nn.Conv2d(
        layer.in_channels, layer.out_channels, layer.kernel_size, layer.stride, layer.padding, layer.dilation, layer.groups, bias
    )
