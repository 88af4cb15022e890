"""Cost tables in the forms that other allocators read: HALP's, NViT's and once-for-all's, priced by any device.

The forms are facts read from the public code of the three (key strings, nesting, units); the figures are ours.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from itertools import product
from pathlib import Path
from typing import Any

from hwmodel.backends.cards import Card
from hwmodel.backends.estimates import estimate
from hwmodel.errors import HwmodelError
from hwmodel.files import write_file
from hwmodel.ir.operators import Operator, elementwise, gelu, layernorm, matmul, softmax
from hwmodel.ir.trace import Trace

MILLISECOND = 1e-3
Device = str | Path | Card
Product = tuple[int, int, int]
"""(rows, in, out) of a product with a weight."""
Nested = dict[str, dict[str, dict[str, dict[str, float]]]]


def product_seconds(products: Sequence[Product], *, device: Device, **options: Any) -> dict[Product, float]:
    """Seconds of each product on its own, nothing fused; ``options`` are those of :func:`hwmodel.estimate`."""
    distinct = list(dict.fromkeys(products))
    operators = [matmul(m=m, k=k, n=n, parameter=True, name=f"{m}x{k}x{n}") for m, k, n in distinct]
    return dict(zip(distinct, _seconds(operators, device, options), strict=True))


def halp_table(
    trace: Trace, *, device: Device, step: int = 32, layers: str | Sequence[str] = "*", unit_s: float = MILLISECOND, **options: Any
) -> dict[str, float]:
    """HALP's lookup: ``batch_cin_cout_fmap_kernel_stride_groups`` to latency, at every multiple of ``step`` channels.

    A linear layer on tokens is a 1x1 convolution; ``fmap``, in HALP the side of a square feature map, is here the number of
    tokens, so the caller's feature-map table must say the same. Every (cin, cout) up to the layer's own is there, since HALP
    refuses a key that is missing. ``unit_s`` is the unit of the values.
    """
    keys: dict[str, Product] = {}
    for tokens, cin, cout in _widths(trace, layers, step):
        keys[f"{trace.batch}_{cin}_{cout}_{tokens}_1_1_1"] = (trace.batch * tokens, cin, cout)
    seconds = product_seconds(list(keys.values()), device=device, **options)
    return {key: seconds[shape] / unit_s for key, shape in keys.items()}


def ofa_table(
    trace: Trace, *, device: Device, step: int = 32, layers: str | Sequence[str] = "*", unit_s: float = MILLISECOND, **options: Any
) -> dict[str, dict[str, float]]:
    """Once-for-all's lookup: ``Linear-input:1xTOKENSxCIN-output:1xTOKENSxCOUT`` to a record with ``mean``.

    Shapes are (height, width, channels); ``unit_s`` is the unit of the values.
    """
    keys: dict[str, Product] = {}
    for tokens, cin, cout in _widths(trace, layers, step):
        keys[f"Linear-input:1x{tokens}x{cin}-output:1x{tokens}x{cout}"] = (trace.batch * tokens, cin, cout)
    seconds = product_seconds(list(keys.values()), device=device, **options)
    return {key: {"mean": seconds[shape] / unit_s} for key, shape in keys.items()}


def nvit_table(
    *,
    device: Device,
    embeddings: Sequence[int],
    heads: Sequence[int],
    qk: Sequence[int],
    v: Sequence[int],
    mlp: Sequence[int],
    tokens: int = 197,
    batch: int = 1,
    **options: Any,
) -> Nested:
    """NViT's lookup: EMB_width, QK_heads_dim, V_dim, MLP_width (dims per head) to seconds of one transformer block.

    The block is pre-norm with attention spelled out; its cost is the sum of its operators', each priced once.
    """
    if min(map(len, (embeddings, heads, qk, v, mlp))) == 0 or min(*embeddings, *heads, *qk, *v, *mlp, tokens, batch) < 1:
        raise HwmodelError("nvit table: every axis needs at least one width of at least 1")
    parts: dict[tuple[int, ...], list[Operator]] = {}
    for width, count, depth, value in product(embeddings, heads, qk, v):
        parts[width, count, depth, value] = _attention_part(width, count, depth, value, tokens=tokens, batch=batch)
    for width, hidden in product(embeddings, mlp):
        parts[width, hidden] = _mlp_part(width, hidden, tokens, batch)
    seconds = iter(_seconds([operator for part in parts.values() for operator in part], device, options))
    spent = {key: sum(next(seconds) for _ in part) for key, part in parts.items()}
    return {
        f"EMB_{width}": {
            f"QK_{count}_{depth}": {
                f"V_{value}": {f"MLP_{hidden}": spent[width, count, depth, value] + spent[width, hidden] for hidden in mlp}
                for value in v
            }
            for count, depth in product(heads, qk)
        }
        for width in embeddings
    }


def save_halp(table: Mapping[str, float], path: str | Path) -> None:
    """Write a pickled dictionary, the file that HALP opens."""
    write_file(path, pickle.dumps(dict(table), protocol=4))


def save_nvit(table: Mapping[str, Any], path: str | Path) -> None:
    """Write JSON."""
    write_file(path, json.dumps(table, indent=1, allow_nan=False) + "\n")


def save_ofa(table: Mapping[str, Any], path: str | Path) -> None:
    """Write YAML, in the part of it that is JSON."""
    write_file(path, json.dumps(table, indent=1, allow_nan=False) + "\n")


def _widths(trace: Trace, layers: str | Sequence[str], step: int) -> Iterator[Product]:
    """(tokens per image, in, out) at every multiple of ``step`` and at the layers' own widths."""
    globs = (layers,) if isinstance(layers, str) else tuple(layers)
    chosen = [one for one in trace.operators if _weighted(one) and any(fnmatchcase(one.name, glob) for glob in globs)]
    if step < 1 or not chosen:
        raise HwmodelError(f"{trace.model}: no product with a weight matches {', '.join(globs)} at steps of {step}")
    shapes = dict.fromkeys((one.m // trace.batch or 1, one.k, one.n) for one in chosen)
    for tokens, cin, cout in shapes:
        for ingoing, outgoing in product(_steps(cin, step), _steps(cout, step)):
            yield tokens, ingoing, outgoing


def _steps(width: int, step: int) -> list[int]:
    return [*range(step, width, step), width]


def _weighted(operator: Operator) -> bool:
    return operator.family == "product" and operator.parameter and operator.batch == 1 and not operator.constant


def _seconds(operators: Sequence[Operator], device: Device, options: Mapping[str, Any]) -> list[float]:
    """Latency of each operator in a trace of its own making: rows without edges do not fuse."""
    numbered = [operator.replace(name=f"{row}.{operator.name}") for row, operator in enumerate(operators)]
    found = estimate(Trace.from_operators(numbered), device=device, **options).costs.latency_s
    if found.ndim != 1:
        raise HwmodelError("a table is of one design; give each overridden field one value")
    seconds: list[float] = found.tolist()
    return seconds


def _attention_part(width: int, heads: int, qk: int, v: int, *, tokens: int, batch: int) -> list[Operator]:
    rows, of_heads = batch * tokens, {"batch": batch * heads, "parameter": False}
    return [
        layernorm(rows=rows, cols=width, name="norm1"),
        matmul(m=rows, k=width, n=heads * (2 * qk + v), parameter=True, name="qkv", role="qkv"),
        matmul(m=tokens, k=qk, n=tokens, name="scores", role="scores", **of_heads),  # type: ignore[arg-type]
        softmax(rows=batch * heads * tokens, cols=tokens, name="softmax", role="softmax"),
        matmul(m=tokens, k=tokens, n=v, name="context", role="context", **of_heads),  # type: ignore[arg-type]
        matmul(m=rows, k=heads * v, n=width, parameter=True, name="proj", role="proj"),
        elementwise("add", elements=rows * width, inputs=2, name="add1"),
    ]


def _mlp_part(width: int, hidden: int, tokens: int, batch: int) -> list[Operator]:
    rows = batch * tokens
    return [
        layernorm(rows=rows, cols=width, name="norm2"),
        matmul(m=rows, k=width, n=hidden, parameter=True, name="fc1", role="fc1"),
        gelu(elements=rows * hidden, name="act"),
        matmul(m=rows, k=hidden, n=width, parameter=True, name="fc2", role="fc2"),
        elementwise("add", elements=rows * width, inputs=2, name="add2"),
    ]
