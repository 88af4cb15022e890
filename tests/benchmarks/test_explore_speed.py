"""Speed of exploration, as ratios and figures of one run (`make bench`)."""

from __future__ import annotations

import resource
import time
from typing import Any

import numpy as np
import pandas as pd
import pytest

import hwmodel as hw
from hwmodel.exploration.pareto import pareto_front
from hwmodel.exploration.pricing import price_chunk
from hwmodel.exploration.problem import Problem, prepare
from hwmodel.exploration.study import Study

pytestmark = pytest.mark.slow
MODEL = "deit_base_patch16_224"


def grid(device: str, field: str, count: int, **fields: Any) -> Study:
    """``count`` x 100 card variants of DeiT-B with 32x32 blocks."""
    vary = [{"knob": f"card.{field}", "from": 0.5, "to": 2.0, "count": count, "relative": True}]
    vary.append({"knob": "card.clock_hz", "from": 5e8, "to": 1.5e9, "count": 100})
    return Study.model_validate(
        {
            "name": "speed",
            "models": [{"name": MODEL, "recipes": "deit_base_lsp_b32x32"}],
            "devices": [{"name": device, **fields}],
            "vary": vary,
        }
    )


@pytest.mark.parametrize(
    ("device", "field", "modes"),
    [
        ("tpu-v3", "product_hbm_bytes_per_s", ["systolic"]),
        ("vita", "dram_bytes_per_s", ["full"]),
        ("a100-40gb", "dram_bytes_per_s", ["compiled"]),
    ],
)
def test_a_hundred_thousand_card_variants(benchmark: Any, device: str, field: str, modes: list[str]) -> None:
    """Under 10 s and 1 GB, extraction and preparation included."""
    hw.explore(grid(device, field, 2, modes=modes))  # libraries are imported
    began = time.process_time()
    found = benchmark.pedantic(hw.explore, args=(grid(device, field, 1000, modes=modes),), rounds=1)
    seconds = time.process_time() - began
    peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    rate = len(found) * len(hw.trace(MODEL)) / seconds
    benchmark.extra_info.update(cpu_s=seconds, operator_evaluations_per_s=rate, peak_bytes=peak_bytes)
    assert len(found) == 100_000
    assert seconds < 10
    assert peak_bytes < 1e9


def priced(problem: Problem) -> pd.DataFrame:
    """All points of a study that is prepared; both sides of the comparison have their traces."""
    return pd.concat([pd.DataFrame(price_chunk(problem, chunk)) for chunk in problem.chunks])


@pytest.mark.parametrize(
    ("device", "field"), [("tpu-v3", "product_hbm_bytes_per_s"), ("vita", "dram_bytes_per_s"), ("a100-40gb", "dram_bytes_per_s")]
)
def test_array_form_against_the_api_point_by_point(benchmark: Any, device: str, field: str) -> None:
    problem = prepare(grid(device, field, 100))
    priced(prepare(grid(device, field, 2)))
    began = time.process_time()
    frame = benchmark.pedantic(priced, args=(problem,), rounds=1)
    whole = (time.process_time() - began) / len(frame)
    trace = hw.prune(hw.trace(MODEL), "deit_base_lsp_b32x32")
    own = hw.load_card(device).values()[field]
    rows = frame.sample(60, random_state=0)
    began = time.process_time()
    for row in rows.itertuples():
        one = hw.estimate(trace, device=device, overrides={field: getattr(row, field) * own, "clock_hz": row.clock_hz})
        assert (one.latency_s, one.energy_j) == (row.latency_s, row.energy_j)
    benchmark.extra_info["times_faster"] = (time.process_time() - began) / len(rows) / whole
    assert benchmark.extra_info["times_faster"] > 50


def test_the_front_of_a_million_points(benchmark: Any) -> None:
    values = np.random.default_rng(0).random((1_000_000, 3))
    front = benchmark.pedantic(pareto_front, args=(values,), rounds=1)
    sample = np.random.default_rng(1).choice(len(values), 300, replace=False)
    beaten = np.array([((values <= values[row]).all(axis=1) & (values < values[row]).any(axis=1)).any() for row in sample])
    assert (np.isin(sample, front) == ~beaten).all()
    assert not any(((values[front] <= point).all(axis=1) & (values[front] < point).any(axis=1)).any() for point in values[front])
