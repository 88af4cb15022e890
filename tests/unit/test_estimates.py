"""Estimates: totals, precedence of number formats, what is reported and what is refused. Priced on ViTA."""

from __future__ import annotations

import json

import numpy as np
import pytest
from examples import pruned, vit

import hwmodel as hw
from hwmodel.backends.base import Costs, Options, Workload, evaluate
from hwmodel.backends.cards import load_card
from hwmodel.backends.vita import Vita
from hwmodel.errors import HwmodelError, UnknownNameError, UnsupportedOperatorError
from hwmodel.ir.masks import BlockMask

TRACE = vit(192, depth=1)
KEYS = [
    "model", "device", "mode", "batch", "dtype", "latency_s", "energy_j", "average_power_w", "cycles", "macs", "executed_macs",
    "dram_bytes", "energy_scope", "fidelity", "error_band", "energy_by_component_j", "area_mm2", "idle_share", "warnings",
    "operators", "schema_version", "versions",
]  # fmt: skip
COLUMNS = [
    "kind", "role", "block", "macs", "executed_macs", "latency_s", "gap_s", "energy_j", "compute_j", "onchip_j", "offchip_j",
    "static_j", "dram_bytes", "cycles", "bound", "kernel", "fused_into",
]  # fmt: skip


@pytest.fixture
def pe():
    """A design point for traces that tell no width."""
    return {"pe": "32x32"}


# --- totals and tables --------------------------------------------------------------------------------------------


def test_totals_are_the_sums_of_the_frames_columns() -> None:
    estimate = hw.estimate(TRACE, device="vita")
    frame = estimate.frame()
    for total in ("latency_s", "energy_j", "cycles", "dram_bytes", "executed_macs", "macs"):
        whole = estimate.trace.macs if total == "macs" else getattr(estimate, total)
        assert frame[total].to_numpy().sum() == whole, total
    assert estimate.average_power_w == estimate.energy_j / estimate.latency_s


def test_the_frame_has_one_row_per_operator_in_trace_order() -> None:
    frame = hw.estimate(TRACE, device="vita").frame()
    assert list(frame.columns) == COLUMNS
    assert frame.index.name == "name"
    assert list(frame.index) == [operator.name for operator in TRACE.operators]
    assert frame.loc["blocks.0.attn.qkv", ["kind", "role", "block", "macs"]].tolist() == ["matmul", "qkv", 0, 197 * 192 * 576]


def test_the_document_is_the_frame_as_json() -> None:
    estimate = hw.estimate(TRACE, device="vita")
    document = json.loads(json.dumps(estimate.document(), allow_nan=False))
    assert list(document) == KEYS
    assert [list(row) for row in document["operators"]] == [["name", *COLUMNS]] * len(TRACE)
    assert [row["latency_s"] for row in document["operators"]] == estimate.frame().latency_s.tolist()
    assert document["operators"][0]["block"] is None
    assert document["versions"]["hwmodel"] == hw.__version__
    assert document == json.loads(json.dumps(hw.estimate(TRACE, device="vita").document()))


def test_an_empty_trace_costs_nothing(pe) -> None:
    estimate = hw.estimate(hw.Trace.from_operators([]), device="vita", overrides=pe)
    assert (estimate.latency_s, estimate.energy_j, estimate.average_power_w) == (0, 0, 0)
    assert estimate.document()["operators"] == []
    assert len(estimate.frame()) == 0


def test_a_trace_whose_every_block_is_pruned_has_no_power() -> None:
    empty = pruned(TRACE, (32, 32), 0.0)
    estimate = hw.estimate(empty, device="vita", mode="paper")
    assert (estimate.latency_s, estimate.energy_j, estimate.average_power_w) == (0, 0, 0)


def test_fused_rows_name_the_row_that_carries_their_cost() -> None:
    """By hand: a backend that charges both operators on the first row."""
    trace = hw.Trace.from_operators([hw.gelu(elements=4, name="first"), hw.gelu(elements=4, name="second")])
    workload = Workload.of(trace, dtype=None, default_dtype="int8")
    cost, none, text = np.array([3.0, 0.0]), np.zeros(2), np.array(["vector", "vector"])
    costs = Costs(
        cycles=cost, latency_s=cost, compute_j=cost, onchip_j=cost, offchip_j=none, static_j=none, dram_bytes=none,
        executed_macs=none, bound=text, kernel=text, fused_into=np.array([0, 0]),
    )  # fmt: skip
    card = load_card("vita")
    options = Options(mode="full")
    estimate = hw.Estimate(workload=workload, card=card, mode="full", dtype="int8", costs=costs, options=options, overrides={})
    assert estimate.frame().fused_into.tolist() == [None, "first"]
    assert [row["fused_into"] for row in estimate.document()["operators"]] == [None, "first"]
    assert estimate.energy_j == 3 + 3
    assert costs.gap_s.tolist() == [0, 0]


# --- number formats, modes and choices ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("own", "call", "trace", "expected"),
    [
        (None, None, None, "int8"),  # the card's default
        (None, None, "bf16", "bf16"),
        (None, "fp16", "bf16", "fp16"),
        ("fp32", "fp16", "bf16", "fp32"),
    ],
)
def test_the_nearest_number_format_wins(pe, own: str | None, call: str | None, trace: str | None, expected: str) -> None:
    rows = [hw.matmul(m=64, k=64, n=64, dtype=own), hw.gelu(elements=64)]
    estimate = hw.estimate(hw.Trace.from_operators(rows, dtype=trace), device="vita", dtype=call, overrides=pe)
    assert estimate.workload.dtype.tolist() == [expected, call or trace or "int8"]
    assert estimate.dtype == (call or trace or "int8")
    mac_j = load_card("vita").resolve().mac_j[expected]
    assert estimate.costs.compute_j[0] == pytest.approx(64 * 64 * 64 * mac_j)


def test_weights_keep_their_own_format(pe) -> None:
    row = hw.matmul(m=64, k=64, n=64, dtype="fp16", weight_dtype="int8")
    workload = hw.estimate(hw.Trace.from_operators([row]), device="vita", overrides=pe).workload
    assert (workload.activation_bytes.tolist(), workload.weight_element_bytes.tolist()) == ([2], [1])


@pytest.mark.parametrize("where", ["call", "trace", "operator", "weights"])
def test_formats_the_device_does_not_have_are_refused(pe, where: str) -> None:
    own = {"operator": {"dtype": "tf32"}, "weights": {"weight_dtype": "tf32"}}.get(where, {})
    trace = hw.Trace.from_operators([hw.matmul(m=4, k=4, n=4, **own)], dtype="tf32" if where == "trace" else None)
    with pytest.raises(UnknownNameError, match="unknown dtype for vita 'tf32'"):
        hw.estimate(trace, device="vita", dtype="tf32" if where == "call" else None, overrides=pe)


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"device": "vitta"}, "unknown device 'vitta'"),
        ({"mode": "papr"}, "unknown mode for vita 'papr'"),
        ({"dtype": "fp12"}, "unknown dtype 'fp12'"),
        ({"attention": "flash"}, "unknown attention 'flash': expected one of fused, math, source"),
        ({"sparse_kernel": "never"}, "unknown sparse_kernel 'never'"),
        ({"scope": "wall"}, "unknown scope 'wall'"),
        ({"overrides": {"clock": 1}}, "unknown field of vita 'clock': did you mean 'clock_hz'"),
    ],
    ids=str,
)
def test_choices_that_do_not_exist_are_refused(choice, message: str) -> None:
    with pytest.raises(UnknownNameError, match=message):
        hw.estimate(TRACE, **{"device": "vita"} | choice)


def test_the_default_mode_is_named_and_overrides_lower_the_fidelity() -> None:
    plain, changed = hw.estimate(TRACE, device="vita"), hw.estimate(TRACE, device="vita", overrides={"clock_hz": 2e9})
    assert (plain.mode, plain.execution_mode, plain.options.scope) == ("full", "full", "board")
    assert hw.estimate(TRACE, device="vita", mode="paper").fidelity["latency"] == "calibrated"
    assert changed.fidelity == {"latency": "assumed", "energy": "assumed"}
    assert changed.error_band() is None


def test_the_error_band_is_the_scoreboards_line_for_mode_and_format() -> None:
    """Null until measured; only a line that is marked as a band, of this mode and this format."""
    from hwmodel.backends.cards import Score

    line = {
        "quantity": "latency", "mode": "paper", "dtypes": ["int8"], "against": "a test", "rows": 1,
        "median": 0.1, "mean": 0.1, "p90": 0.1, "max": 0.1, "bias": 0.0, "band": True,
    }  # fmt: skip
    others = [{"band": False}, {"mode": "full"}, {"dtypes": ["fp16"]}, {"quantity": "energy"}]
    scores = [
        Score(
            **line | other,
        )
        for other in others
    ]
    card = load_card("vita").model_copy(update={"scores": scores})
    assert hw.estimate(TRACE, device=card, mode="paper").error_band() is None
    assert hw.estimate(TRACE, device=card, mode="paper").document()["error_band"] is None
    card = load_card("vita").model_copy(update={"scores": [*scores, Score(**line)]})
    estimate = hw.estimate(TRACE, device=card, mode="paper")
    assert estimate.error_band() == Score(**line)
    assert estimate.error_band("energy") == scores[-1]
    assert estimate.document()["error_band"] == line | {"rank": None}
    assert hw.estimate(TRACE, device=card, mode="paper", dtype="fp16").error_band() == scores[2]
    assert hw.estimate(TRACE, device=card, mode="paper", overrides={"pe": "16x16"}).error_band() is None


@pytest.mark.parametrize(("device", "idle"), [("vita", 2), ("tpu-v3", 2), ("host-cpu", 1), ("a100-40gb", 0)])
def test_choices_that_a_machine_does_not_have_are_told(device: str, idle: int) -> None:
    """A processor chooses how attention runs, only a GPU has sparse kernels as well."""
    asked = hw.estimate(TRACE, device=device, attention="math", sparse_kernel="always").warnings
    told = [line for line in asked if "changes nothing here" in line]
    assert len(told) == idle
    assert not any("changes nothing here" in line for line in hw.estimate(TRACE, device=device).warnings)


# --- sweeps -------------------------------------------------------------------------------------------------------


def test_a_sweep_has_one_total_per_design() -> None:
    clocks = [0.5e9, 1e9, 2e9]
    sweep = hw.estimate(TRACE, device="vita", overrides={"clock_hz": clocks, "mac_j.int8": [1e-13, 2e-13, 3e-13]})
    assert sweep.costs.latency_s.shape == sweep.costs.compute_j.shape == (3, len(TRACE))
    for design, clock in enumerate(clocks):
        one = hw.estimate(TRACE, device="vita", overrides={"clock_hz": clock, "mac_j.int8": (design + 1) * 1e-13})
        assert sweep.latency_s[design] == pytest.approx(one.latency_s, rel=1e-13)
        assert sweep.energy_j[design] == pytest.approx(one.energy_j, rel=1e-13)
        assert sweep.average_power_w[design] == pytest.approx(one.average_power_w, rel=1e-13)


def test_a_sweep_has_no_single_table() -> None:
    sweep = hw.estimate(TRACE, device="vita", overrides={"clock_hz": [1e9, 2e9]})
    for table in (sweep.frame, sweep.document):
        with pytest.raises(ValueError, match="a sweep over designs has no single frame"):
            table()


# --- the workload -------------------------------------------------------------------------------------------------


def test_the_columns_of_a_workload_are_the_operators() -> None:
    mask = BlockMask((64, 32), (16, 16), np.eye(4, 2))
    rows = [
        hw.matmul(m=3, k=32, n=64, mask=mask, role="fc1"),
        hw.attention(batch=1, heads=2, queries=3, keys=4, head_dim=5, causal=True),
        hw.softmax(rows=3, cols=4, constant=True),
    ]
    trace = hw.Trace.from_operators(rows).replace(edges=((0, 1), (0, 2)))
    workload = Workload.of(trace, dtype="fp16", default_dtype="fp32")
    assert workload.kind.tolist() == ["matmul", "attention", "softmax"]
    assert workload.family.tolist() == ["product", "attention", "rowwise"]
    assert workload.m.tolist() == [3, 3, 0]
    assert workload.cols.tolist() == [0, 4, 4]
    assert workload.parameter.tolist() == [True, False, False]
    assert workload.causal.tolist() == [False, True, False]
    assert workload.constant.tolist() == [False, False, True]
    assert workload.fused_in_source.tolist() == [False, True, False]
    assert workload.masks == (mask, None, None)
    assert workload.kept_fraction.tolist() == [2 / 8, 1, 1]
    assert workload.shape_macs.tolist() == [operator.shape_macs for operator in rows]
    assert workload.kept_macs[0] == 3 * 2 * 16 * 16
    assert (workload.successors, workload.predecessors) == (((1, 2), (), ()), ((), (0,), (0,)))


def test_tiles_are_all_of_a_dense_weight_and_the_occupied_ones_of_a_pruned_one() -> None:
    mask = BlockMask((64, 32), (16, 16), np.eye(4, 2))
    rows = [hw.matmul(m=1, k=32, n=64, mask=mask), hw.matmul(m=1, k=33, n=64), hw.gelu(elements=4)]
    workload = Workload.of(hw.Trace.from_operators(rows), dtype=None, default_dtype="fp32")
    assert workload.tiles(32, 16).tolist() == [2, 2 * 3, 0]


# --- operators nobody modelled ------------------------------------------------------------------------------------


class Picky(Vita):
    """Knows products and gelu, gives copies for nothing."""

    def kinds(self, mode: str):
        return frozenset({"product", "gelu"})

    def free(self, mode: str):
        return {"copy": "moved by the memory controller"}


def test_what_a_backend_does_not_know_is_refused_with_names_and_counts() -> None:
    rows = [hw.softmax(rows=2, cols=2), hw.gelu(elements=4), hw.layernorm(rows=2, cols=2), hw.softmax(rows=2, cols=2)]
    rows += [hw.movement("copy", elements=4), hw.movement("gather", elements=4), hw.matmul(m=4, k=4, n=4)]
    workload = Workload.of(hw.Trace.from_operators(rows), dtype=None, default_dtype="int8")
    with pytest.raises(UnsupportedOperatorError) as caught:
        evaluate(Picky(), workload, load_card("vita").resolve(), Options(mode="full"))
    told = str(caught.value)
    assert "backend 'vita' has no model for softmax x2, layernorm x1, gather x1; it knows copy, gelu, product" in told


def test_a_format_without_an_energy_is_told_not_priced_as_nothing(pe) -> None:
    """A card whose mac_j lacks one of its formats must not give NaN."""
    vita = load_card("vita")
    mac_j = vita.parameters["mac_j"].model_copy(update={"value": {"int8": 1e-13}})
    card = vita.model_copy(update={"parameters": {**vita.parameters, "mac_j": mac_j}})
    trace = hw.Trace.from_operators([hw.matmul(m=4, k=4, n=4)])
    assert hw.estimate(trace, device=card, overrides=pe).energy_j > 0
    with pytest.raises(HwmodelError, match=r"mac_j has no entry for 'fp16', only for int8; set mac_j\.fp16"):
        hw.estimate(trace, device=card, dtype="fp16", overrides=pe)


def test_an_estimate_shows_itself_in_one_line() -> None:
    trace = hw.Trace.from_operators([hw.matmul(m=4, k=32, n=32)])
    one = hw.estimate(trace, device="vita", overrides={"pe": "32x32"})
    assert repr(one).startswith("<Estimate of by hand on vita, full, int8, batch 1: ")
    sweep = hw.estimate(trace, device="vita", overrides={"pe": "32x32", "clock_hz": np.array([1e9, 2e9])})
    assert repr(sweep) == "<Estimate of by hand on vita, full, int8, batch 1: 2 designs>"


def test_a_name_is_no_trace() -> None:
    with pytest.raises(hw.HwmodelError, match=r"^estimate prices a trace, got the name 'deit_tiny.*; make one with hw\.trace"):
        hw.estimate("deit_tiny_patch16_224", device="vita")  # type: ignore[arg-type]
