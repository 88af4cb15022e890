"""The scoreboard: relative errors of predictions against measured rows, line by line, kept beside each card.

A card's ``scores.toml`` is written by :func:`write_scores` and read with the card; the error band of an estimate is the
line of its mode and dtype whose ``band`` is true. Only rows that no constant was fitted on are scored.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from hwmodel.backends.cards import Card, Score, load_card
from hwmodel.backends.estimates import Estimate, estimate
from hwmodel.content import content_folder
from hwmodel.extraction.whatif.pruning import prune
from hwmodel.files import write_file
from hwmodel.ir.trace import Trace
from hwmodel.validation.gpu_pairs import (
    BURST,
    PairsOf,
    block_sparse_vit_huge,
    decode,
    faster_transformer,
    in_vit_range,
    kernels,
    named,
    product_range,
    table7_dense,
    timm,
    traced,
)
from hwmodel.validation.measured import MeasuredRow, operator_of, read_measured
from hwmodel.validation.statistics import errors_of

FloatArray = npt.NDArray[np.float64]
Quantity = Literal["latency", "power"]
Pairs = list[tuple[float, float]]
"""(predicted, measured) in SI units."""


@dataclass(frozen=True, kw_only=True)
class Line:
    """One line of the scoreboard: which rows it is held to, and how they are predicted."""

    card: str
    mode: str
    dtypes: tuple[str, ...]
    against: str
    pairs: Callable[[Line], Pairs]
    quantity: Quantity = "latency"
    band: bool = False

    @property
    def folder(self) -> Path:
        """Where the card and its measured rows lie."""
        return content_folder("simulators") / self.card

    def rows(self, file: str, *metrics: str) -> list[MeasuredRow]:
        """Held-out rows of a file in this line's dtypes, of the metrics asked for."""
        chosen = read_measured(self.folder / file)
        return [row for row in chosen if row.split == "held-out" and row.metric in metrics and row.dtype in self.dtypes]

    def score(self) -> Score:
        """Errors of this line's predictions."""
        predicted, measured = (np.array(column) for column in zip(*self.pairs(self), strict=True))
        return summarise(predicted, measured, self)


def summarise(predicted: FloatArray, measured: FloatArray, line: Line) -> Score:
    """The score of predictions of shape (n_rows,), rounded to four decimals."""
    errors = errors_of(predicted, measured)
    assert errors is not None, "every line has rows"
    figures = {name: getattr(errors, name) for name in ("median", "mean", "p90", "max", "bias")}
    return Score(
        quantity=line.quantity,
        mode=line.mode,
        dtypes=list(line.dtypes),
        against=line.against,
        rows=errors.rows,
        rank=None if errors.spearman is None else round(errors.spearman, 4),
        band=line.band,
        **{name: round(value, 4) for name, value in figures.items()},
    )


@cache
def _card(name: str) -> Card:
    return load_card(name)


def _alone(line: Line, row: MeasuredRow) -> Estimate:
    """Estimate of one measured operator as a program of its own."""
    return estimate(Trace.from_operators([operator_of(row)]), device=_card(line.card), mode=line.mode)


def _operator_latency(line: Line) -> Pairs:
    return [(_alone(line, row).latency_s, row.value) for row in line.rows("measured.csv", "latency", "kernel_time")]


def _operator_power(line: Line) -> Pairs:
    return [(_alone(line, row).average_power_w, row.value) for row in line.rows("measured.csv", "gpu_avg_power")]


def _one_core(line: Line) -> Pairs:
    rows = [row for row in line.rows("measured.csv", "latency") if "1 core" in row.device]
    return [(_alone(line, row).latency_s, row.value) for row in rows]


def _pruned_rows_of_table5(line: Line) -> Pairs:
    with (line.folder / "lsp_table5.csv").open(encoding="utf-8", newline="") as lines:
        printed = [row for row in csv.DictReader(lines) if row["recipe"]]
    traces = [prune(traced(row["model"]), row["recipe"]) for row in printed]
    found = [estimate(trace, device=_card(line.card), mode=line.mode).latency_s for trace in traces]
    return [(latency_s, float(row["time_ms"]) * 1e-3) for latency_s, row in zip(found, printed, strict=True)]


_ENGINES = "FasterTransformer C++ ViT-B/L, batch 8 to 32, unfused attention (vit_engines.csv)"
_STREAMS = "FlagPerf streaming operators (measured.csv)"
_TOKENS = "aiconfigurator token sweep, {} tokens"
_ROWS = ("rmsnorm", "layernorm", "gelu", "silu_mul", "residual_add")


def _kernel(card: str, dtype: str, against: str, pairs: PairsOf, file: str = "measured.csv") -> Line:
    return Line(card=card, mode="kernel", dtypes=(dtype,), against=f"{against} ({file})", pairs=pairs)


def _fp32(against: str, *kinds: str) -> Line:
    return _kernel("a100-40gb-pcie", "fp32", f"NeuSight {against}, host dispatch added", kernels(named(*kinds)))


def _attention(card: str, library: str, kernel: str, kind: str) -> Line:
    pairs = kernels(named(kind, framework=library), attention_kernel=kernel)
    return _kernel(card, "bf16", f"aiconfigurator {kind}, {library} ({kernel})", pairs)


_A100 = (
    _kernel("a100-80gb-pcie", "fp16", "Vidur products, ViT range, other models", kernels(in_vit_range)),
    _kernel("a100-80gb-pcie", "fp16", "Vidur products, 33 tokens and more, other models", kernels(product_range(33))),
    _kernel("a100-80gb-pcie", "fp16", "Vidur products, 1 to 32 tokens, other models", kernels(product_range(1, 32))),
    _kernel("a100-80gb-pcie", "fp16", "Vidur row-wise and elementwise, other models", kernels(named(*_ROWS))),
    _fp32("linear", "linear"), _fp32("bmm", "bmm"), _fp32("layernorm", "layernorm"), _fp32("softmax", "softmax"),
    _fp32("elementwise", "add", "mul", "gelu", "relu"),
    _kernel("a100-80gb-sxm", "bf16", _TOKENS.format("192 and more"), kernels(product_range(192))),
    _kernel("a100-80gb-sxm", "bf16", _TOKENS.format("17 to 191"), kernels(product_range(17, 191))),
    _kernel("a100-80gb-sxm", "bf16", _TOKENS.format("1 to 16"), kernels(product_range(1, 16))),
    _kernel("a100-80gb-sxm", "bf16", "LLMCompass products, n above 1000, host-timed, full clock",
            kernels(lambda row, one: row.model_or_op == "matmul" and one.n > 1000, file="eager_ops.csv", **BURST), "eager_ops.csv"),
    _attention("a100-80gb-sxm", "SGLang", "fa2-sglang", "attention_causal"),
    _attention("a100-80gb-sxm", "vLLM", "fa2", "attention_causal"),
    _attention("a100-80gb-sxm", "TensorRT-LLM", "trtllm", "attention_causal"),
    Line(card="a100-80gb-sxm", mode="compiled", dtypes=("bf16",), band=True, pairs=block_sparse_vit_huge,
         against="torchao whole ViT-H/14: dense, 2:4 and block-sparse MLPs (block_sparse_vit_h.csv)"),
    Line(card="a100-40gb-sxm", mode="eager", dtypes=("fp32",), pairs=table7_dense,
         against="LSP Table 7, whole dense DeiT-B and DeiT-S (lsp_table7.csv)"),
)  # fmt: skip

_OTHERS = (
    _kernel("a40", "fp16", "Vidur products, ViT range, constants of A100", kernels(in_vit_range)),
    _kernel("a40", "fp16", "Vidur products, 33 tokens and more, constants of A100", kernels(product_range(33))),
    _kernel("a40", "fp16", "Vidur products, 1 to 32 tokens, constants of A100", kernels(product_range(1, 32))),
    _kernel("a40", "fp16", "Vidur row-wise and elementwise, constants of A100", kernels(named(*_ROWS))),
    _attention("l40s", "vLLM", "fa2", "attention_bidirectional"),
    _attention("l40s", "TensorRT-LLM", "trtllm-encoder", "attention_bidirectional"),
    _kernel("rtx-3090", "fp16", "VENOM dense products, constants of A100", kernels(named("gemm dense"), file="sparse_gemm.csv"),
            "sparse_gemm.csv"),
    _kernel("rtx-3090", "fp16", "VENOM 2:4 products of BERT", kernels(named("spmm 2:4 cuSPARSELt"), file="sparse_gemm.csv"),
            "sparse_gemm.csv"),
    *(Line(card=card, mode=mode, dtypes=("amp-fp16",), against=f"timm whole ViTs, {framework} (vit_throughput.csv)", band=True,
           pairs=timm(framework))
      for card, mode, framework in (("rtx-3090", "eager", "timm eager"), ("rtx-4090", "eager", "timm eager"),
                                    ("rtx-4090", "compiled", "timm torch.compile"))),
    *(Line(card="t4", mode=mode, dtypes=(dtype,), against=_ENGINES, band=True, pairs=faster_transformer)
      for mode in ("compiled", "engine") for dtype in ("fp16", "int8", "fp32")),
    Line(card="agx-orin-devkit", mode="engine", dtypes=("fp16", "int8 weight-only", "int4 weight-only"), pairs=decode("latency"),
         against="Llama decode, TensorRT-LLM (decode.csv)"),
    Line(card="agx-orin-devkit", mode="engine", dtypes=("fp16", "int8 weight-only", "int4 weight-only"), quantity="power",
         against="Llama decode, TensorRT-LLM, four rails (decode.csv)", pairs=decode("power")),
    *(Line(card="agx-orin-64gb", mode="kernel+50w", dtypes=(dtype,), pairs=kernels(lambda row, one: row.value > 2e-3),
           against="branes-ai products above 2 ms, unlocked clocks (measured.csv)")
      for dtype in ("fp16", "fp32")),
)  # fmt: skip

LINES: tuple[Line, ...] = (
    Line(card="vita", mode="paper", dtypes=("int8", "fp16", "bf16", "fp32"), against="LSP Table 5, pruned rows", band=True,
         pairs=_pruned_rows_of_table5),
    Line(card="tpu-v3", mode="device+host", dtypes=("bf16", "fp32"), against="LLMCompass operators, one core (measured.csv)",
         pairs=_one_core),
    *(Line(card="a100-40gb-sxm", mode=mode, dtypes=(dtype,), against=_ENGINES, band=True, pairs=faster_transformer)
      for mode in ("compiled", "engine") for dtype in ("fp16", "int8", "fp32")),
    Line(card="a100-40gb-sxm", mode="kernel", dtypes=("fp32", "fp16", "bf16"), against=_STREAMS, pairs=_operator_latency),
    Line(card="a100-40gb-sxm", mode="kernel", dtypes=("fp32", "fp16", "bf16"), against=_STREAMS, quantity="power",
         pairs=_operator_power),
    *_A100,
    *_OTHERS,
)  # fmt: skip
"""Every line of the scoreboard, in the order it is shown."""


def write_scores(lines: Sequence[Line] = LINES) -> list[tuple[str, Score]]:
    """Score every line and write each card's ``scores.toml``; returns (card, score) in order."""
    import tomlkit

    scored = [(line.card, line.score()) for line in lines]
    for name in dict.fromkeys(line.card for line in lines):
        own = [score.model_dump(exclude_none=True) for card, score in scored if card == name]
        write_file(content_folder("simulators") / name / "scores.toml", tomlkit.dumps({"scores": own}))
    return scored
