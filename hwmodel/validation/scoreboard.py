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
from hwmodel.extraction.models import trace as extract
from hwmodel.extraction.pruning import prune
from hwmodel.files import write_file
from hwmodel.ir.trace import Trace
from hwmodel.validation.measured import MeasuredRow, operator_of, read_measured

FloatArray = npt.NDArray[np.float64]
Quantity = Literal["latency", "power"]
Pairs = list[tuple[float, float]]
"""(predicted, measured) in SI units."""

_FASTER_TRANSFORMER = {"ViT-B_16": "vit_base_patch16_{}", "ViT-L_16": "vit_large_patch16_{}"}


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
        return summarise(predicted / measured - 1, self)


def summarise(errors: FloatArray, line: Line) -> Score:
    """Median, mean, 90th percentile and maximum of the size of relative errors of shape (n_rows,), and their mean."""
    size = np.abs(errors)
    figures = {
        "median": np.median(size),
        "mean": size.mean(),
        "p90": np.quantile(size, 0.9),
        "max": size.max(),
        "bias": errors.mean(),
    }
    return Score(
        quantity=line.quantity,
        mode=line.mode,
        dtypes=list(line.dtypes),
        against=line.against,
        rows=len(errors),
        band=line.band,
        **{name: round(float(value), 4) for name, value in figures.items()},
    )


@cache
def _card(name: str) -> Card:
    return load_card(name)


def _alone(line: Line, row: MeasuredRow) -> Estimate:
    """Estimate of one measured operator as a program of its own."""
    return estimate(Trace.from_operators([operator_of(row)]), device=_card(line.card), mode=line.mode)


def _operator_latency(line: Line) -> Pairs:
    return [(_alone(line, row).latency_s, row.value) for row in line.rows("measured.csv", "latency", "kernel_time")]


def _sweep(line: Line) -> Pairs:
    """Products of 32 tokens and more; libraries switch to kernels of another kind below."""
    rows = [row for row in line.rows("measured.csv", "latency") if operator_of(row).m >= 32]
    return [(_alone(line, row).latency_s, row.value) for row in rows]


def _few_tokens(line: Line) -> Pairs:
    rows = [row for row in line.rows("measured.csv", "latency") if operator_of(row).m < 32]
    return [(_alone(line, row).latency_s, row.value) for row in rows]


def _operator_power(line: Line) -> Pairs:
    return [(_alone(line, row).average_power_w, row.value) for row in line.rows("measured.csv", "gpu_avg_power")]


def _one_core(line: Line) -> Pairs:
    rows = [row for row in line.rows("measured.csv", "latency") if "1 core" in row.device]
    return [(_alone(line, row).latency_s, row.value) for row in rows]


_traced = cache(extract)


def _vit_engines(line: Line) -> Pairs:
    """FasterTransformer's C++ rows at batch 8 to 32; its attention was not fused at that release."""
    rows = [row for row in line.rows("vit_engines.csv", "latency") if row.framework == "FasterTransformer C++" and row.batch >= 8]
    pairs = []
    for row in rows:
        traced = _traced(_FASTER_TRANSFORMER[row.model_or_op].format(row.shape), batch=row.batch)
        found = estimate(traced, device=_card(line.card), mode=line.mode, dtype=row.dtype, attention="math")
        pairs.append((found.latency_s, row.value))
    return pairs


def _pruned_rows_of_table5(line: Line) -> Pairs:
    with (line.folder / "lsp_table5.csv").open(encoding="utf-8", newline="") as lines:
        printed = [row for row in csv.DictReader(lines) if row["recipe"]]
    traces = [prune(_traced(row["model"]), row["recipe"]) for row in printed]
    found = [estimate(trace, device=_card(line.card), mode=line.mode).latency_s for trace in traces]
    return [(latency_s, float(row["time_ms"]) * 1e-3) for latency_s, row in zip(found, printed, strict=True)]


_ENGINES = "FasterTransformer C++ ViT-B/L, batch 8 to 32, unfused attention (vit_engines.csv)"
_STREAMS = "FlagPerf streaming operators (measured.csv)"
_TOKENS = "aiconfigurator token sweep, {} 32 tokens (measured.csv)"
LINES: tuple[Line, ...] = (
    Line(card="vita", mode="paper", dtypes=("int8", "fp16", "bf16", "fp32"), against="LSP Table 5, pruned rows", band=True,
         pairs=_pruned_rows_of_table5),
    Line(card="tpu-v3", mode="device+host", dtypes=("bf16", "fp32"), against="LLMCompass operators, one core (measured.csv)",
         pairs=_one_core),
    *(Line(card="a100-40gb-sxm", mode=mode, dtypes=(dtype,), against=_ENGINES, band=True, pairs=_vit_engines)
      for mode in ("compiled", "engine") for dtype in ("fp16", "int8", "fp32")),
    Line(card="a100-40gb-sxm", mode="kernel", dtypes=("fp32", "fp16", "bf16"), against=_STREAMS, pairs=_operator_latency),
    Line(card="a100-40gb-sxm", mode="kernel", dtypes=("fp32", "fp16", "bf16"), against=_STREAMS, quantity="power",
         pairs=_operator_power),
    Line(card="a100-80gb-sxm", mode="kernel", dtypes=("bf16",), against=_TOKENS.format("from"),
         pairs=_sweep),
    Line(card="a100-80gb-sxm", mode="kernel", dtypes=("bf16",), against=_TOKENS.format("under"),
         pairs=_few_tokens),
)  # fmt: skip
"""Every line of the scoreboard, in the order it is shown."""


def write_scores(lines: Sequence[Line] = LINES) -> list[tuple[str, Score]]:
    """Score every line and write each card's ``scores.toml``; returns (card, score) in order."""
    import tomlkit

    scored = [(line.card, line.score()) for line in lines]
    for name in dict.fromkeys(line.card for line in lines):
        own = [score.model_dump() for card, score in scored if card == name]
        write_file(content_folder("simulators") / name / "scores.toml", tomlkit.dumps({"scores": own}))
    return scored
