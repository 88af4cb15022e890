"""GPU cards against the measured rows beside them: the figures their READMEs print."""

from __future__ import annotations

import csv
import re
from functools import cache

import numpy as np
import pytest

import hwmodel as hw
from hwmodel.backends.base import Costs, FloatArray, Options, Workload, evaluate
from hwmodel.backends.cards import read_card, shipped_cards
from hwmodel.backends.gpu import Gpu
from hwmodel.content import content_folder
from hwmodel.ir.kinds import REDUCTION
from hwmodel.ir.operators import Operator, attention, elementwise, matmul, reduction
from hwmodel.ir.trace import Trace

Row = dict[str, str]
PEAKS = {
    "a100-40gb-sxm": ("fp16", 312), "a100-80gb-sxm": ("bf16", 312), "a100-40gb-pcie": ("fp16", 312),
    "a100-80gb-pcie": ("fp32", 19.5),
    "a40": ("fp16", 149.7), "h100": ("bf16", 989.4), "h200": ("bf16", 989.4), "l40s": ("fp16", 366), "v100": ("fp16", 112),
    "t4": ("fp16", 65), "rtx-3090": ("fp16", 71), "rtx-4090": ("fp16", 165.2), "rtx-5090": ("fp16", 209.5),
    "agx-orin-64gb": ("int8", 85.2), "agx-orin-devkit": ("int8", 85.2), "agx-orin-32gb": ("int8", 53.4),
    "orin-nano-8gb": ("int8", 20.5),
}  # fmt: skip
"""Dense tera-operations per second. GeForce boards run 1.13 times above the clock these are printed for (their cards say why)."""


def rows(card: str, name: str = "measured.csv") -> list[Row]:
    with (content_folder("simulators") / card / name).open(encoding="utf-8", newline="") as lines:
        return list(csv.DictReader(lines))


def operator(row: Row) -> Operator:
    size = {name: int(value) for name, value in re.findall(r"(B|M|N|K|elems|heads|seq|headdim)(\d+)", row["shape"])}
    kind, dtype = row["model_or_op"], row["dtype"]
    if "M" in size:
        return matmul(m=size["M"], k=size["K"], n=size["N"], batch=size.get("B", 1), dtype=dtype)
    if "seq" in size:
        shape = {"queries": size["seq"], "keys": size["seq"], "head_dim": size["headdim"]}
        return attention(batch=int(row["batch"]), heads=size["heads"], causal=True, dtype=dtype, **shape)
    if kind in REDUCTION:
        return reduction(kind, inputs=size["elems"], outputs=1, dtype=dtype)
    return elementwise(kind, elements=size["elems"], inputs=2 if kind in {"add", "sub"} else 1, dtype=dtype)


def priced(card: str, chosen: list[Row]) -> Costs:
    checked = read_card(content_folder("simulators") / card / "card.toml")
    workload = Workload.of(Trace.from_operators(map(operator, chosen)), dtype=None, default_dtype="fp16")
    return evaluate(Gpu(), workload, checked.resolve("kernel"), Options(mode="kernel"))


def error(predicted: FloatArray, chosen: list[Row], scale: float) -> FloatArray:
    relative: FloatArray = predicted * scale / np.array([float(row["value"]) for row in chosen]) - 1
    return relative


def tokens(row: Row) -> int:
    return int(row["shape"].partition("x")[0][1:])


def sweep(split: str) -> list[Row]:
    products = [row for row in rows("a100-80gb-sxm") if row["model_or_op"] == "gemm" and row["split"] == split]
    return [row for row in products if tokens(row) >= 32]


def flagperf(metric: str, split: str) -> list[Row]:
    return [row for row in rows("a100-40gb-sxm") if row["metric"] == metric and row["split"] == split]


def test_rows_name_their_source() -> None:
    for path in sorted(content_folder("simulators").glob("*/*.csv")):
        if path.parent.name in shipped_cards() and shipped_cards()[path.parent.name].backend == "gpu" and "lsp" not in path.name:
            assert all(row["source"] and row["split"] in {"fit", "held-out"} for row in rows(path.parent.name, path.name)), path


def test_measured_files_stay_small() -> None:
    assert sum(path.stat().st_size for path in content_folder("simulators").glob("*/*.csv")) < 1.2e6


@pytest.mark.parametrize("name", [name for name, card in shipped_cards().items() if card.backend == "gpu"])
def test_peaks_of_data_sheets(name: str) -> None:
    """Every card's rates, clock and SMs give the operations per second that its data sheet prints (in T/s)."""
    gpu = shipped_cards()[name].resolve("kernel")
    dtype, printed = PEAKS[name]
    peak = 2 * gpu.macs_per_clock_sm[dtype] * gpu.sm_count * gpu.clock_hz / 1e12  # type: ignore[attr-defined]
    assert peak == pytest.approx(printed * (1.13 if name.startswith("rtx") else 1.0), rel=0.01)


@pytest.mark.parametrize(("split", "count"), [("fit", 30), ("held-out", 27)])
def test_token_sweep(split: str, count: int) -> None:
    chosen = sweep(split)
    assert len(chosen) == count
    size = np.abs(error(priced("a100-80gb-sxm", chosen).latency_s, chosen, 1e6))
    assert size.mean() < 0.072
    assert size.max() < 0.20


def test_time_and_power_of_operators_that_no_constant_saw() -> None:
    """Streaming, division, roots, reductions in steady loops (FlagPerf)."""
    times, powers = flagperf("kernel_time", "held-out"), flagperf("gpu_avg_power", "held-out")
    assert len(times) == len(powers) == 33
    assert np.abs(error(priced("a100-40gb-sxm", times).latency_s, times, 1e6)).mean() < 0.03
    costs = priced("a100-40gb-sxm", powers)
    size = np.abs(error(costs.energy_j / costs.latency_s, powers, 1.0))
    assert size.mean() < 0.10
    assert size.max() < 0.25


@cache
def trace(model: str, batch: int) -> Trace:
    return hw.trace(model, batch=batch)


def engine_error(row: Row, mode: str = "engine") -> float:
    """FasterTransformer runs attention unfused here."""
    size = {"ViT-B_16": "base", "ViT-L_16": "large"}[row["model_or_op"]]
    model = trace(f"vit_{size}_patch16_{row['shape']}", int(row["batch"]))
    estimate = hw.estimate(model, device="a100-40gb-sxm", mode=mode, dtype=row["dtype"], attention="math")
    return float(estimate.latency_s * 1e3 / float(row["value"]) - 1)


def engines(dtype: str, *, shapes: set[str], batches: set[str]) -> list[Row]:
    everything = rows("a100-40gb-sxm", "vit_engines.csv")
    ours = [row for row in everything if row["framework"] == "FasterTransformer C++" and row["dtype"] == dtype]
    return [row for row in ours if row["shape"] in shapes and row["batch"] in batches]


@pytest.mark.parametrize("dtype", ["fp16", "int8"])
def test_whole_engines_at_224_pixels(dtype: str) -> None:
    errors = [engine_error(row) for row in engines(dtype, shapes={"224"}, batches={"8"})]
    assert len(errors) == 2
    assert max(map(abs, errors)) < 0.16


@pytest.mark.slow
@pytest.mark.parametrize(("mode", "dtype", "largest_mean"), [
    ("engine", "fp32", 0.085), ("engine", "fp16", 0.045), ("engine", "int8", 0.085),
    ("compiled", "fp32", 0.065), ("compiled", "fp16", 0.07), ("compiled", "int8", 0.045),
])  # fmt: skip
def test_whole_engines(mode: str, dtype: str, largest_mean: float) -> None:
    errors = [engine_error(row, mode) for row in engines(dtype, shapes={"224", "384"}, batches={"8", "16", "32"})]
    assert float(np.mean(np.abs(errors))) < largest_mean
