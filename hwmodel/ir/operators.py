"""The operator: one frozen row of a trace. It knows shapes and sparsity, and neither hardware nor tensors."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from operator import index

from hwmodel.ir.dtypes import bytes_per_element, check_dtype
from hwmodel.ir.kinds import Family, family_of
from hwmodel.ir.masks import Mask

_COUNTS = ("batch", "m", "k", "n", "elements", "cols", "input_elements", "output_elements", "weight_elements", "scale_bytes")
_LARGEST_COUNT = 2**53
"""Beyond it a 64-bit float no longer counts one by one."""

_DEFAULT_DTYPE = "fp32"


@dataclass(frozen=True, slots=True, kw_only=True)
class Operator:
    """One operator call. Build it with :func:`matmul`, :func:`attention`, :func:`softmax`, ... rather than by hand.

    Parameters
    ----------
    name : module path, unique in a trace ("blocks.3.attn.qkv")
    kind : "matmul", "softmax", "gelu", ... (see :mod:`hwmodel.ir.kinds`)
    role : what it does in a ViT: "qkv", "scores", "context", "proj", "fc1", "fc2", "patch_embed", "head", or ""
    block : index of the encoder block, None outside
    batch, m, k, n : ``batch`` products of (m, k) by (k, n); zero where the operator is no product.
        ``attention``: ``batch`` heads in all, ``m`` queries, ``k`` head dimension, ``n`` keys
    elements, cols : values computed, and the length of a row for row-wise operators; zero for products
    input_elements, output_elements, weight_elements : values read and written, and parameters read
    dtype : number format; None leaves it to the call, the trace or the card
    weight_dtype : format of the weights where it differs
    scale_bytes : bytes of scales and zero points that are read with quantised weights
    parameter : the right operand is a parameter (a weight), so it is the same for the whole batch
    constant : input-independent; a deployed model computes it once
    mask : kept blocks of the weight, None where dense
    sparsity : pattern "N:M" of a weight that keeps N of every M neighbours along ``k`` ("2:4"), None where it has none
    attention_group : operators that spell out one attention share this name
    fused_in_source : the source calls PyTorch's scaled-dot-product attention here
    causal : queries see earlier keys only (``attention``)
    dense_macs : MACs of the same operator before pruning, None where unpruned
    """

    name: str
    kind: str
    role: str = ""
    block: int | None = None
    batch: int = 1
    m: int = 0
    k: int = 0
    n: int = 0
    elements: int = 0
    cols: int = 0
    input_elements: int = 0
    output_elements: int = 0
    weight_elements: int = 0
    dtype: str | None = None
    weight_dtype: str | None = None
    scale_bytes: int = 0
    parameter: bool = False
    constant: bool = False
    mask: Mask | None = None
    attention_group: str | None = None
    fused_in_source: bool = False
    causal: bool = False
    dense_macs: int | None = None
    sparsity: str | None = None

    def __post_init__(self) -> None:
        for field in _COUNTS:
            object.__setattr__(self, field, _count(self.name, field, getattr(self, field)))
        for dtype in (self.dtype, self.weight_dtype):
            if dtype is not None:
                check_dtype(dtype)
        if self.mask is not None and self.mask.shape != (self.n, self.k):
            raise ValueError(f"{self.name}: mask is for a weight of {self.mask.shape}, the operator has {(self.n, self.k)}")
        if self.sparsity is not None:
            _check_pattern(self)

    @property
    def family(self) -> Family:
        """Family of the kind: which dimensions count and which physics prices it."""
        return family_of(self.kind)

    @property
    def shape_macs(self) -> int:
        """MACs of the dense operator at its present shape. One MAC is two FLOPs; we count MACs only.

        Attention by hand counts scores and context; a causal one half of each, diagonal included.
        """
        if self.family == "product":
            return self.batch * self.m * self.k * self.n
        if self.family == "attention":
            return 2 * self.batch * self.k * _visible_pairs(self.m, self.n, self.causal)
        return 0

    @property
    def macs(self) -> int:
        """MACs as the dense, unpruned model executes them."""
        return self.shape_macs if self.dense_macs is None else self.dense_macs

    @property
    def kept_macs(self) -> float:
        """MACs that involve a kept weight, at the present shape."""
        if self.mask is None:
            return self.shape_macs * self.kept_share
        return self.batch * self.m * self.mask.kept_weights

    @property
    def kept_share(self) -> float:
        """Part of the weights that the pattern ``sparsity`` keeps: 0.5 for "2:4", 1 without a pattern."""
        if self.sparsity is None:
            return 1.0
        kept, _, group = self.sparsity.partition(":")
        return int(kept) / int(group)

    @property
    def weight_bytes(self) -> float:
        """Bytes of parameters read, dense, scales of quantised ones included; fp32 where no dtype is set."""
        element = bytes_per_element(self.weight_dtype or self.dtype or _DEFAULT_DTYPE)
        return self.weight_elements * element + self.scale_bytes

    @property
    def input_bytes(self) -> float:
        """Bytes of activations read; fp32 where no dtype is set."""
        return self.input_elements * bytes_per_element(self.dtype or _DEFAULT_DTYPE)

    @property
    def output_bytes(self) -> float:
        """Bytes written; fp32 where no dtype is set."""
        return self.output_elements * bytes_per_element(self.dtype or _DEFAULT_DTYPE)

    def replace(self, **changes: object) -> Operator:
        """A copy with some fields changed, checked again."""
        return replace(self, **changes)  # type: ignore[arg-type]


def _check_pattern(operator: Operator) -> None:
    """Raise ValueError unless ``sparsity`` reads N:M with N < M, on the weight of a product without a block mask."""
    found = re.fullmatch(r"([1-9]\d?):([1-9]\d?)", operator.sparsity or "")
    if found is None or int(found[1]) >= int(found[2]):
        raise ValueError(f'{operator.name}: sparsity must read N:M with N < M, such as "2:4", got {operator.sparsity!r}')
    if operator.family != "product" or not operator.parameter or operator.mask is not None:
        raise ValueError(f"{operator.name}: sparsity is for the weight of a product without a block mask")


def _count(name: str, field: str, value: int) -> int:
    """``value`` as a plain int: a whole number, not negative, and not beyond what floats count exactly."""
    try:
        count = index(value)
    except TypeError as error:
        raise ValueError(f"{name}: {field} must be a whole number, got {value!r}") from error
    if count < 0:
        raise ValueError(f"{name}: {field} must not be negative, got {count}")
    if count > _LARGEST_COUNT:
        raise ValueError(f"{name}: {field} must not be beyond 2**53, got {count}")
    return count


def _visible_pairs(queries: int, keys: int, causal: bool) -> int:
    """(query, key) pairs that attention computes; causal queries are aligned to the last key."""
    if not causal:
        return queries * keys
    seen = min(queries, keys)
    return seen * (keys - seen) + seen * (seen + 1) // 2


def matmul(
    *,
    m: int,
    k: int,
    n: int,
    batch: int = 1,
    dtype: str | None = None,
    name: str = "",
    parameter: bool | None = None,
    **extra: object,
) -> Operator:
    """``batch`` independent products of (m, k) by (k, n).

    ``parameter`` says that the right operand is a weight; by default it is one exactly when ``batch`` is 1.
    """
    is_weight = batch == 1 if parameter is None else parameter
    weight = k * n * batch if is_weight else 0
    return Operator(
        name=name, kind="matmul", batch=batch, m=m, k=k, n=n, dtype=dtype, parameter=is_weight, weight_elements=weight,
        input_elements=batch * m * k + (0 if is_weight else batch * k * n), output_elements=batch * m * n,
        **extra,  # type: ignore[arg-type]
    )  # fmt: skip


def attention(
    *,
    batch: int,
    heads: int,
    queries: int,
    keys: int,
    head_dim: int,
    kv_heads: int | None = None,
    causal: bool = False,
    dtype: str | None = None,
    name: str = "",
    **extra: object,
) -> Operator:
    """One whole scaled-dot-product attention as one row: scores, softmax and context of ``batch * heads`` heads.

    ``kv_heads`` < ``heads`` is grouped-query attention: keys and values are read once per key-value head.
    """
    shared = heads if kv_heads is None else kv_heads
    if shared < 1 or heads % shared:
        raise ValueError(f"heads must be a multiple of kv_heads, got {heads} and {shared}")
    query_elements = batch * heads * queries * head_dim
    return Operator(
        name=name, kind="attention", role="attention", batch=batch * heads, m=queries, k=head_dim, n=keys, causal=causal,
        dtype=dtype, input_elements=query_elements + 2 * batch * shared * keys * head_dim, output_elements=query_elements,
        elements=batch * heads * queries * keys, cols=keys, fused_in_source=True,
        **extra,  # type: ignore[arg-type]
    )  # fmt: skip


def rowwise(kind: str, *, rows: int, cols: int, dtype: str | None = None, name: str = "", **extra: object) -> Operator:
    """A row-wise operator over ``rows`` rows of ``cols`` values: reads each value once, writes it once."""
    if family_of(kind) != "rowwise":
        raise ValueError(f"{kind!r} is not a row-wise kind")
    size = rows * cols
    return Operator(
        name=name, kind=kind, elements=size, cols=cols, input_elements=size, output_elements=size, dtype=dtype,
        **extra,  # type: ignore[arg-type]
    )  # fmt: skip


def softmax(*, rows: int, cols: int, dtype: str | None = None, name: str = "", **extra: object) -> Operator:
    """Softmax over ``rows`` rows of ``cols`` values."""
    return rowwise("softmax", rows=rows, cols=cols, dtype=dtype, name=name, **extra)


def layernorm(*, rows: int, cols: int, dtype: str | None = None, name: str = "", **extra: object) -> Operator:
    """Layer normalisation over ``rows`` rows of ``cols`` values, scale and shift included."""
    extra.setdefault("weight_elements", 2 * cols)
    return rowwise("layernorm", rows=rows, cols=cols, dtype=dtype, name=name, **extra)


def elementwise(
    kind: str, *, elements: int, inputs: int = 1, dtype: str | None = None, name: str = "", **extra: object
) -> Operator:
    """Any elementwise function ("add", "gelu", "sin", ...) of ``inputs`` operands with ``elements`` values each."""
    if family_of(kind) != "elementwise":
        raise ValueError(f"{kind!r} is a {family_of(kind)} kind, not an elementwise one")
    return Operator(
        name=name, kind=kind, elements=elements, input_elements=inputs * elements, output_elements=elements, dtype=dtype,
        **extra,  # type: ignore[arg-type]
    )  # fmt: skip


def gelu(*, elements: int, dtype: str | None = None, name: str = "", **extra: object) -> Operator:
    """GELU of ``elements`` values."""
    return elementwise("gelu", elements=elements, dtype=dtype, name=name, **extra)  # type: ignore[arg-type]


def movement(kind: str, *, elements: int, dtype: str | None = None, name: str = "", **extra: object) -> Operator:
    """Values that move ("copy", "gather", "concat", ...): ``elements`` read and as many written."""
    if family_of(kind) != "movement":
        raise ValueError(f"{kind!r} is a {family_of(kind)} kind, not a movement one")
    return Operator(
        name=name, kind=kind, elements=elements, input_elements=elements, output_elements=elements, dtype=dtype,
        **extra,  # type: ignore[arg-type]
    )  # fmt: skip


def reduction(kind: str, *, inputs: int, outputs: int, dtype: str | None = None, name: str = "", **extra: object) -> Operator:
    """``inputs`` values reduced to ``outputs`` ("mean", "sum", "max", "pool", ...)."""
    if family_of(kind) != "reduction":
        raise ValueError(f"{kind!r} is a {family_of(kind)} kind, not a reduction")
    return Operator(
        name=name, kind=kind, elements=inputs, input_elements=inputs, output_elements=outputs, dtype=dtype,
        **extra,  # type: ignore[arg-type]
    )  # fmt: skip
