"""Operator kinds and the families they belong to.

A *family* says which dimensions an operator has and which physics prices it; the *kind* names the operation.
Any elementwise function has a kind of its own ("gelu", "add", "sin", ...) in the family ``elementwise``.
"""

from __future__ import annotations

from typing import Final, Literal

Family = Literal["product", "attention", "rowwise", "elementwise", "movement", "reduction"]

PRODUCTS: Final = frozenset({"matmul", "conv"})
"""``batch`` products of (m, k) by (k, n); a convolution is lowered to the product it is (im2col)."""

ATTENTION: Final = frozenset({"attention"})
"""One whole scaled-dot-product attention written by hand: ``batch`` heads of (m, k) x (k, n) x (n, k)."""

ROWWISE: Final = frozenset({"softmax", "log_softmax", "layernorm", "rmsnorm", "groupnorm", "batchnorm", "l2norm"})
"""``elements`` values in rows of ``cols``; each row is normalised by its own statistics."""

MOVEMENT: Final = frozenset(
    {"copy", "gather", "scatter", "concat", "pad", "roll", "patchify", "cast", "fill", "resize", "topk", "sort"}
)
"""Values move, none is computed."""

REDUCTION: Final = frozenset({"mean", "sum", "max", "min", "prod", "variance", "cumsum", "pool"})
"""``elements`` inputs shrink to ``output_elements``."""

TRANSCENDENTAL: Final = frozenset(
    {
        "acos", "acosh", "asin", "asinh", "atan", "atan2", "atanh", "celu", "cos", "cosh", "elu", "erf", "erfc", "erfinv",
        "exp", "exp2", "expm1", "gelu", "gelu_tanh", "log", "log10", "log1p", "log2", "log_sigmoid", "logaddexp", "logit",
        "mish", "pow", "quick_gelu", "rsqrt", "selu", "sigmoid", "silu", "sin", "sinc", "sinh", "softplus", "sqrt", "tan",
        "tanh", "xlogy",
    }
)  # fmt: skip
"""Elementwise kinds that go through special-function units or polynomials."""


def family_of(kind: str) -> Family:
    """Family of ``kind``; whatever is not listed above is elementwise."""
    if kind in PRODUCTS:
        return "product"
    if kind in ATTENTION:
        return "attention"
    if kind in ROWWISE:
        return "rowwise"
    if kind in MOVEMENT:
        return "movement"
    return "reduction" if kind in REDUCTION else "elementwise"
