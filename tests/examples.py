"""Traces written by hand that several tests share: a DeiT needs no torch."""

from __future__ import annotations

import hwmodel as hw
from hwmodel.ir.masks import Rule, Shape
from hwmodel.ir.operators import Operator
from hwmodel.ir.trace import Trace

TOKENS = 14 * 14 + 1
HEAD_DIM = 64


def encoder_block(index: int, width: int, tokens: int = TOKENS, batch: int = 1) -> list[Operator]:
    """One pre-norm encoder block, attention spelled out."""
    heads, name = width // HEAD_DIM, f"blocks.{index}"
    common = {"block": index}
    attention = {"batch": batch * heads, "attention_group": f"{name}.attn", "fused_in_source": True, **common}
    rows = batch * tokens
    return [
        hw.layernorm(rows=rows, cols=width, name=f"{name}.norm1", **common),
        hw.matmul(m=rows, k=width, n=3 * width, name=f"{name}.attn.qkv", role="qkv", **common),
        hw.matmul(m=tokens, k=HEAD_DIM, n=tokens, name=f"{name}.attn.scores", role="scores", parameter=False, **attention),
        hw.softmax(
            rows=batch * heads * tokens, cols=tokens, name=f"{name}.attn.softmax", role="softmax",
            attention_group=f"{name}.attn", fused_in_source=True, **common,
        ),
        hw.matmul(m=tokens, k=tokens, n=HEAD_DIM, name=f"{name}.attn.context", role="context", parameter=False, **attention),
        hw.matmul(m=rows, k=width, n=width, name=f"{name}.attn.proj", role="proj", **common),
        hw.elementwise("add", elements=rows * width, inputs=2, name=f"{name}.add1", **common),
        hw.layernorm(rows=rows, cols=width, name=f"{name}.norm2", **common),
        hw.matmul(m=rows, k=width, n=4 * width, name=f"{name}.mlp.fc1", role="fc1", **common),
        hw.gelu(elements=rows * 4 * width, name=f"{name}.mlp.act", **common),
        hw.matmul(m=rows, k=4 * width, n=width, name=f"{name}.mlp.fc2", role="fc2", **common),
        hw.elementwise("add", elements=rows * width, inputs=2, name=f"{name}.add2", **common),
    ]  # fmt: skip


def vit(width: int = 192, *, depth: int = 12, batch: int = 1, edges: bool = True) -> Trace:
    """A DeiT of ``width`` at 224 pixels: patch embedding, ``depth`` blocks and a classifier on the class token."""
    rows = [
        hw.movement("patchify", elements=batch * 3 * 224 * 224, name="patch_embed.unfold"),
        hw.matmul(m=batch * (TOKENS - 1), k=3 * 16 * 16, n=width, name="patch_embed.proj", role="patch_embed"),
    ]
    for index in range(depth):
        rows += encoder_block(index, width, batch=batch)
    rows += [
        hw.layernorm(rows=batch * TOKENS, cols=width, name="norm"),
        hw.matmul(m=batch, k=width, n=1000, name="head", role="head"),
    ]
    trace = Trace.from_operators(rows, model=f"a ViT of width {width}", batch=batch)
    chain = tuple((row, row + 1) for row in range(len(rows) - 1))
    return trace.replace(edges=chain) if edges else trace


def pruned(trace: Trace, block: Shape, density: float, rule: Rule = "uniform") -> Trace:
    """Every layer with weights pruned to one density, as LSP's fifty layers are."""
    return trace.replace(
        operators=tuple(
            operator.replace(mask=hw.expected_mask((operator.n, operator.k), block, density, rule))
            if operator.parameter
            else operator
            for operator in trace.operators
        )
    )
