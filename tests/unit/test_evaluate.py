"""Sweeps in array form against the same designs priced one by one, to the last bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from examples import pruned, vit

import hwmodel as hw
from hwmodel.exploration import evaluate
from hwmodel.exploration.evaluate import TOTALS, Evaluator, totals

GRIDS: dict[tuple[str, str], dict[str, Any]] = {
    ("tpu-v3", "systolic"): {
        "array_rows": [64, 128, 32, 128],
        "array_cols": [64, 32, 32, 128],
        "dataflow": ["ws", "os", "ws", "is"],
    },
    ("tpu-v3", "device"): {"array_rows": [64, 128, 32, 128], "clock_hz": [1e9, 5e8, 2e9, 9e8], "cores": [1, 2, 2, 1]},
    ("tpu-v3", "device+host"): {"product_hbm_bytes_per_s": [1e11, 3e11, 9e11, 2e12], "static_w": [1.0, 50.0, 100.0, 200.0]},
    ("a100-40gb", "compiled"): {"sm_count": [108, 54, 20, 216], "dram_bytes_per_s": [1e12, 2e12, 5e11, 9e11]},
    ("a100-40gb", "eager"): {"clock_hz": [1e9, 1.4e9, 5e8, 2e9], "host_operator_s": [1e-6, 5e-6, 2e-5, 5e-5]},
    ("agx-orin-64gb", "engine+30w"): {"l2_bytes": [1e6, 4e6, 2e7, 8e6], "macs_per_clock_sm.fp16": [256, 512, 1024, 2048]},
    ("vita", "full"): {"clock_hz": [1e9, 5e8, 2e9, 9e8], "pe": ["32x32", "16x64", "32x32", "64x64"]},
    ("vita", "paper"): {"pe": ["16x16", "16x64", "32x32", "64x64"]},
    ("host-cpu", "eager"): {},
}


def traces() -> dict[str, hw.Trace]:
    block = vit(192, depth=2, batch=4)
    return {"dense": block, "pruned": pruned(block, (32, 32), 0.3), "emptied": pruned(block, (32, 32), 0.0)}


@pytest.mark.parametrize("name", traces())
@pytest.mark.parametrize(("device", "mode"), GRIDS)
@pytest.mark.parametrize("chunk", [1, 10**6])
def test_designs_at_once_equal_designs_one_by_one(
    monkeypatch: pytest.MonkeyPatch, device: str, mode: str, name: str, chunk: int
) -> None:
    monkeypatch.setattr(evaluate, "_CHUNK_CELLS", chunk)
    grid, trace = GRIDS[device, mode], traces()[name]
    mode = mode if device != "host-cpu" else hw.load_card(device).default_mode
    swept = totals(trace, device=device, mode=mode, overrides={field: np.array(values) for field, values in grid.items()})
    for design in range(len(swept)):
        one = hw.estimate(trace, device=device, mode=mode, overrides={field: values[design] for field, values in grid.items()})
        for quantity in TOTALS:
            expected = getattr(one.costs, quantity).sum()
            assert getattr(swept, quantity)[design] == expected, (quantity, design)


def test_a_field_may_stay_the_same_in_all_designs() -> None:
    trace = traces()["dense"]
    swept = totals(trace, device="tpu-v3", overrides={"clock_hz": np.array([1e9, 2e9]), "mxus": 4})
    assert swept.latency_s[1] == hw.estimate(trace, device="tpu-v3", overrides={"clock_hz": 2e9, "mxus": 4}).latency_s


def test_without_arrays_there_is_one_design() -> None:
    trace = traces()["dense"]
    assert totals(trace, device="vita", overrides={"pe": "32x32"}).latency_s.shape == (1,)
    steps = totals(trace, device="tpu-v3", mode="device+host", overrides={"host_step_after_s": [1e-3], "host_step_s": [2e-3]})
    assert len(steps) == 1  # a field that is a list on the card is one value


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        ({"clock_hz": np.array([1e9, 2e9]), "mxus": np.array([1, 2, 4])}, "one value for each of the designs"),
        ({"clock_hz": np.array([])}, "one value for each of the designs"),
        ({"clock_hz": np.array([[1e9]])}, "one value for each of the designs"),
        ({"clok_hz": np.array([1e9])}, "did you mean 'clock_hz'"),
        ({"clock_hz": np.array([1e9, -1.0])}, "greater than 0"),
        ({"dataflow": np.array(["ws", "sw"])}, "dataflow"),
    ],
)
def test_bad_sweeps_are_refused(overrides: dict[str, Any], reason: str) -> None:
    with pytest.raises(hw.HwmodelError, match=reason):
        Evaluator(traces()["dense"], device="tpu-v3", mode="systolic").totals(overrides)


def test_identical_operators_are_found_whatever_they_are_called() -> None:
    """Two encoder blocks of 12 operators: the second repeats the first, but for its place."""
    from hwmodel.backends.base import Workload

    workload = Workload.of(vit(192, depth=2), dtype="bf16", default_dtype="bf16")
    assert workload.alike[14:26].tolist() == workload.alike[2:14].tolist()
    assert len(set(workload.alike[2:14].tolist())) == 12 - 2  # the second norm and the second residual addition repeat


def test_operators_that_differ_in_their_mask_are_not_alike() -> None:
    """Three equal layers, one of them emptied and one with half of its blocks: three prices."""
    layers = [hw.matmul(m=197, k=256, n=256, name=f"layer{number}") for number in range(3)]
    for number, density in ((1, 0.0), (2, 0.5)):
        layers[number] = layers[number].replace(mask=hw.expected_mask((256, 256), (128, 128), density))
    for mode in ("systolic", "device"):
        rows = hw.estimate(hw.Trace.from_operators(layers), device="tpu-v3", mode=mode).frame().latency_s
        assert rows["layer1"] == 0 < rows["layer2"] < rows["layer0"]


def test_an_operator_alone_and_one_inside_a_program_are_priced_apart() -> None:
    """Nothing hides the first loads of the product that is a program by itself."""
    rows = [hw.matmul(m=197, k=768, n=768, name=name) for name in ("alone", "first", "second")]
    trace = hw.Trace.from_operators(rows).replace(edges=((1, 2),))
    found = hw.estimate(trace, device="tpu-v3").frame().latency_s
    assert found["first"] == found["second"] < found["alone"]
