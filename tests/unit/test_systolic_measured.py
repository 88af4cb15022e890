"""Mode ``device+host`` against the measured rows beside the card."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from hwmodel.backends.base import Options, Workload
from hwmodel.backends.cards import read_card
from hwmodel.backends.systolic import Tpu
from hwmodel.content import content_folder
from hwmodel.ir.operators import matmul
from hwmodel.ir.trace import Trace
from hwmodel.validation.measured import MeasuredRow, operator_of, read_measured

FOLDER = content_folder("simulators") / "tpu-v3"
CARD = read_card(FOLDER / "card.toml")
ROWS = read_measured(FOLDER / "measured.csv")


def errors(chosen: list[MeasuredRow]) -> npt.NDArray[np.float64]:
    """Predicted over measured latency, less one."""
    trace = Trace.from_operators(operator_of(row) for row in chosen)
    workload = Workload.of(trace, dtype=None, default_dtype=CARD.default_dtype)
    costs = Tpu().cost(workload, CARD.resolve("device+host"), Options(mode="device+host"))
    relative: npt.NDArray[np.float64] = costs.latency_s / np.array([row.value for row in chosen]) - 1
    return relative


def one_core(split: str, *operators: str) -> list[MeasuredRow]:
    chosen = [row for row in ROWS if "1 core" in row.device and row.split == split]
    return [row for row in chosen if not operators or row.model_or_op in operators]


def test_every_row_has_source_and_split() -> None:
    assert len(ROWS) == 84 + 17
    assert all(row.source.startswith("LLMCompass") and row.metric == "latency" for row in ROWS)
    assert len(one_core("fit")) == len(one_core("held-out")) == 42


def test_held_out_operators_stay_within_the_published_error() -> None:
    """README.md: mean 4.6 %, median 2.1 % on 42 rows that no constant was fitted on."""
    size = np.abs(errors(one_core("held-out")))
    assert size.mean() == pytest.approx(0.046, abs=0.0015)
    assert np.median(size) == pytest.approx(0.021, abs=0.0015)


@pytest.mark.parametrize("kind", ["matmul", "softmax", "layernorm", "gelu"])
def test_each_kind_is_held_to_eight_percent(kind: str) -> None:
    assert np.abs(errors(one_core("held-out", kind))).mean() < 0.08
    assert np.abs(errors(one_core("fit", kind))).mean() < 0.08


def test_eight_core_prefill_of_another_model() -> None:
    """Nothing was fitted on these: products, row-wise operators and GELU of a GPT-3 layer."""
    prefill = [row for row in ROWS if "8 cores" in row.device and "prefill" in row.conditions]
    size = np.abs(errors(prefill))
    assert len(size) == 10
    assert size.mean() < 0.05
    assert size.max() < 0.13


def test_systolic_mode_would_be_far_off() -> None:
    """The closed form is SCALE-Sim's machine, not a TPU: on long products one array takes twice as long as the core."""
    trace = Trace.from_operators([matmul(m=8192, k=8192, n=8192)])
    workload = Workload.of(trace, dtype=None, default_dtype="bf16")
    costs = Tpu().cost(workload, CARD.resolve("systolic"), Options(mode="systolic"))
    (measured,) = [row for row in ROWS if row.shape == "M8192xN8192xK8192"]
    assert 1.9 < costs.latency_s[0] / measured.value < 2.1
