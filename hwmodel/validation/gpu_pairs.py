"""Predictions and measurements of GPU rows, protocol by protocol: what the scoreboard's GPU lines compare.

Every function here makes a ``pairs`` function of :class:`hwmodel.validation.scoreboard.Line`.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from typing import TYPE_CHECKING, Any, Final

from hwmodel.backends.cards import load_card
from hwmodel.backends.estimates import estimate
from hwmodel.extraction.models import trace as extract
from hwmodel.extraction.whatif.pruning import prune
from hwmodel.ir.operators import Operator, attention, elementwise, matmul, rowwise
from hwmodel.ir.trace import Trace
from hwmodel.validation.measured import MeasuredRow, timed

if TYPE_CHECKING:
    from hwmodel.validation.scoreboard import Line, Pairs

Keep = Callable[[MeasuredRow, Operator], bool]
PairsOf = Callable[["Line"], "Pairs"]

BURST: Final[Mapping[str, Any]] = {"board_limit_w": 1e5}
"""A single call now and then, timed by the host: the board never lowers its clock."""

traced = cache(extract)


def product_range(low: int, high: int = 1 << 30) -> Keep:
    """Products with ``low`` to ``high`` rows of activations."""
    return lambda row, one: one.family == "product" and low <= one.m <= high


def in_vit_range(row: MeasuredRow, one: Operator) -> bool:
    """m from 192, n and k from 768 to 4096: the linear layers of ViT-B to ViT-L."""
    return one.family == "product" and one.m >= 192 and 768 <= one.n <= 4096 and 768 <= one.k <= 4096


def named(*kinds: str, framework: str = "") -> Keep:
    """Rows of some operators of one framework."""
    return lambda row, one: row.model_or_op in kinds and row.framework.startswith(framework)


def kernels(keep: Keep, *, file: str = "measured.csv", **overrides: Any) -> PairsOf:
    """Single operators by device time, and what else their protocol holds."""

    def pairs(line: Line) -> Pairs:
        rows = [(row, timed(row)) for row in line.rows(file, "latency", "kernel_time") if "xK" in row.shape or _shaped(row)]
        chosen = [(row, one) for row, one in rows if keep(row, one.operator)]
        trace = Trace.from_operators([one.operator for _, one in chosen])
        found = estimate(trace, device=load_card(line.card), mode=line.mode, overrides=overrides or None, sparse_kernel="always")
        seconds = found.costs.latency_s.tolist()
        return [(one.seconds(kernel_s), row.value) for (row, one), kernel_s in zip(chosen, seconds, strict=True)]

    return pairs


def _shaped(row: MeasuredRow) -> bool:
    return any(word in row.shape for word in ("cols", "elems", "headdim"))


_ENGINE_MODELS = {"ViT-B_16": "vit_base_patch16_{}", "ViT-L_16": "vit_large_patch16_{}"}


def engine_rows(rows: Iterable[MeasuredRow]) -> list[MeasuredRow]:
    """FasterTransformer's C++ rows at batch 8 and more."""
    return [row for row in rows if row.framework == "FasterTransformer C++" and row.batch >= 8]


def engine_trace(row: MeasuredRow) -> Trace:
    """The model that a row of :func:`engine_rows` timed."""
    return traced(_ENGINE_MODELS[row.model_or_op].format(row.shape), batch=row.batch)


def faster_transformer(line: Line) -> Pairs:
    """FasterTransformer's whole ViTs; its attention was not fused at that release."""
    rows = engine_rows(line.rows("vit_engines.csv", "latency"))
    return [(_whole(line, engine_trace(row), row, attention="math"), row.value) for row in rows]


def _whole(line: Line, trace: Trace, row: MeasuredRow, **options: Any) -> float:
    found = estimate(trace, device=load_card(line.card), mode=line.mode, dtype=row.dtype, **options)
    return float(found.latency_s)


_HYBRIDS = ("*resnet*", "*_r26_*", "*_r50_*", "*_r_s16*")


def whole_vits(rows: Iterable[MeasuredRow], framework: str) -> list[MeasuredRow]:
    """One row per distinct size, the first; hybrids with a convolutional stem are left out."""
    first: dict[str, MeasuredRow] = {}
    for row in rows:
        if row.framework == framework:
            first.setdefault(row.conditions, row)
    return [row for row in first.values() if not any(fnmatchcase(row.model_or_op, glob) for glob in _HYBRIDS)]


def timm(framework: str) -> PairsOf:
    """timm's inference benchmark, :func:`whole_vits`."""

    def pairs(line: Line) -> Pairs:
        chosen = whole_vits(line.rows("vit_throughput.csv", "latency"), framework)
        return [(_whole(line, traced(row.model_or_op, batch=row.batch), row), row.value) for row in chosen]

    return pairs


@cache
def vit_huge(batch: int) -> Trace:
    """torchvision's ViT-H/14, packed-QKV copies included."""
    import torch

    from hwmodel.extraction.torchvision_repair import import_torchvision

    import_torchvision()
    from torchvision.models import vit_h_14

    with torch.device("meta"):
        model = vit_h_14().eval()
    return extract(model, batch=batch, example=torch.empty(1, 3, 224, 224, device="meta"), dtype="bf16")


MLPS: Final = "encoder.layers.*.mlp.[03]"


def pruned_vit_huge(trace: Trace, variant: str) -> Trace:
    """``trace`` with the MLPs of one row: "dense", "2:4" or "block 64x64 sparsity 0.8"."""
    if "2:4" in variant:
        one = (row.replace(sparsity="2:4") if fnmatchcase(row.name, MLPS) else row for row in trace.operators)
        return trace.replace(operators=tuple(one))
    found = re.search(r"sparsity (0\.\d+)", variant)
    return prune(trace, {MLPS: {"block": (64, 64), "density": 1 - float(found[1])}}) if found else trace


def block_sparse_vit_huge(line: Line) -> Pairs:
    """torchao's whole ViT-H/14 runs that no constant saw."""
    rows = line.rows("block_sparse_vit_h.csv", "latency")
    return [(_whole(line, pruned_vit_huge(vit_huge(row.batch), row.model_or_op), row), row.value) for row in rows]


def table7_dense(line: Line) -> Pairs:
    """Dense DeiT-B and DeiT-S of LSP's Table 7; DeiT-T contradicts them tenfold and is left out."""
    with (line.folder / "lsp_table7.csv").open(encoding="utf-8", newline="") as lines:
        rows = [row for row in csv.DictReader(lines) if row["flops_remained_pct"] == "100" and row["model"] != "deit_tiny"]
    found = [
        estimate(
            traced(f"{row['model']}_patch16_224", batch=int(row["batch"])),
            device=load_card(line.card),
            mode=line.mode,
            dtype="fp32",
        )
        for row in rows
    ]
    return [(float(one.latency_s), float(row["time_ms"]) * 1e-3) for one, row in zip(found, rows, strict=True)]


_WEIGHTS: Mapping[str, str | None] = {"int4 weight-only": "int4", "int8 weight-only": "int8", "fp16": None}


def decode(quantity: str) -> PairsOf:
    """Llama decode of one token under TensorRT-LLM: seconds, or watts of the four rails. Its output layer stays fp16.

    Other runtimes on that board are bound by their hosts (vLLM, SGLang and PyTorch keep one time whatever the context).
    """

    def pairs(line: Line) -> Pairs:
        rows = line.rows("decode.csv", "latency", "power_4rail")
        rows = [row for row in rows if row.framework == "TensorRT-LLM 0.12" and row.dtype in _WEIGHTS]
        sizes = {row.model_or_op: row.conditions for row in rows if row.metric == "latency"}
        wanted = [row for row in rows if (row.metric == "latency") == (quantity == "latency")]
        found = [estimate(_token(row, sizes[row.model_or_op]), device=load_card(line.card), mode=line.mode) for row in wanted]
        values = [one.latency_s if quantity == "latency" else one.average_power_w for one in found]
        return [(float(value), row.value) for value, row in zip(values, wanted, strict=True)]

    return pairs


@dataclass(frozen=True, kw_only=True)
class _Llama:
    """Sizes of a decoder, and the format its weights are stored in."""

    layers: int
    width: int
    heads: int
    kv_heads: int
    hidden: int
    vocabulary: int
    weights: str | None

    @property
    def dim(self) -> int:
        return self.width // self.heads


def _token(row: MeasuredRow, sizes: str) -> Trace:
    """One decoded token in the middle of the generation."""
    numbers = re.search(r"L(\d+) d(\d+) h(\d+) kv(\d+) mlp(\d+) gated vocab(\d+)", sizes)
    assert numbers is not None, sizes
    layers, width, heads, kv_heads, hidden, vocabulary = (int(number) for number in numbers.groups())
    model = _Llama(
        layers=layers, width=width, heads=heads, kv_heads=kv_heads, hidden=hidden, vocabulary=vocabulary,
        weights=_WEIGHTS[row.dtype],
    )  # fmt: skip
    context, generated = (int(number) for number in re.findall(r"\d+", row.shape))
    operators: list[Operator] = []
    for layer in range(layers):
        operators += _decoder_layer(f"layers.{layer}.", model, context + generated // 2)
    operators.append(matmul(m=1, k=width, n=vocabulary, name="head"))
    edges = tuple((index, index + 1) for index in range(len(operators) - 1))
    return Trace(model="decode", operators=tuple(operators), edges=edges, dtype="fp16")


def _decoder_layer(name: str, of: _Llama, keys: int) -> list[Operator]:
    """Operators of one layer for one token that sees ``keys`` keys."""

    def linear(k: int, n: int, label: str) -> Operator:
        return matmul(m=1, k=k, n=n, name=name + label, weight_dtype=of.weights)

    width, hidden, dim = of.width, of.hidden, of.dim
    return [
        rowwise("rmsnorm", rows=1, cols=width, name=name + "norm1"),
        linear(width, (of.heads + 2 * of.kv_heads) * dim, "qkv"),
        elementwise("mul", elements=(of.heads + of.kv_heads) * dim, inputs=2, name=name + "rotary"),
        attention(batch=1, heads=of.heads, kv_heads=of.kv_heads, queries=1, keys=keys, head_dim=dim, name=name + "attention"),
        linear(width, width, "proj"),
        elementwise("add", elements=width, inputs=2, name=name + "add1"),
        rowwise("rmsnorm", rows=1, cols=width, name=name + "norm2"),
        linear(width, 2 * hidden, "gate_up"),
        elementwise("silu", elements=hidden, inputs=2, name=name + "silu_mul"),
        linear(hidden, width, "down"),
        elementwise("add", elements=width, inputs=2, name=name + "add2"),
    ]
