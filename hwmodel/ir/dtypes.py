"""The number formats of the vocabulary and their widths.

``fp32`` means TF32 off. The two autocast formats keep activations in 16 bits, but cast weights on use and run
layernorm and softmax in fp32.
"""

from __future__ import annotations

from hwmodel.errors import UnknownNameError

BITS: dict[str, int] = {
    "fp32": 32,
    "tf32": 32,
    "fp16": 16,
    "bf16": 16,
    "amp-fp16": 16,
    "amp-bf16": 16,
    "int8": 8,
    "int4": 4,
}
"""Storage bits of one element, by dtype."""


def check_dtype(dtype: str) -> str:
    """Return ``dtype``, or raise :class:`UnknownNameError` naming the nearest ones."""
    if dtype not in BITS:
        raise UnknownNameError("dtype", dtype, BITS)
    return dtype


def bytes_per_element(dtype: str) -> float:
    """Bytes one element occupies in memory; 0.5 for ``int4``."""
    return BITS[check_dtype(dtype)] / 8
