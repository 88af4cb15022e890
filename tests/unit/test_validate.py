"""The comparison of every shipped measured operator with its prediction."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pytest

import hwmodel as hw
from hwmodel import cli
from hwmodel.backends.cards import load_card, shipped_cards
from hwmodel.content import content_folder
from hwmodel.validation.baselines import roofline, two_parameters
from hwmodel.validation.comparison import METRICS, Comparison, compare, operator_class, protocol_of
from hwmodel.validation.measured import MeasuredRow, read_measured


@pytest.fixture(scope="module")
def found() -> Comparison:
    return compare(shipped_cards().values())


def row(**changes: object) -> MeasuredRow:
    fields: dict[str, object] = {
        "source": "s", "device": "d", "dtype": "fp32", "framework": "f", "model_or_op": "linear", "shape": "M1xN2xK3", "batch": 1,
        "metric": "latency", "value": 1.0, "conditions": "", "split": "fit",
    }  # fmt: skip
    return MeasuredRow(**(fields | changes))  # type: ignore[arg-type]


def test_every_row_of_every_file_is_predicted_or_left_out_with_a_reason(found: Comparison) -> None:
    for card in ("tpu-v3", "a100-40gb-sxm", "a100-80gb-sxm"):
        rows = sum(
            len(read_measured(path))
            for path in (content_folder("simulators") / card).glob("*.csv")
            if path.read_text(encoding="utf-8").startswith("source,device")
        )
        told = sum(group.errors.rows for group in found.groups if group.device == card)
        left = sum(one.rows for one in found.left_out if one.device == card)
        assert told + left == rows, card


def test_calibrated_and_held_out_rows_stand_apart(found: Comparison) -> None:
    sides = Counter(group.split for group in found.groups)
    assert sides.keys() == {"fit", "held-out"}
    keys = [(g.device, g.dtype, g.operator, g.protocol, g.mode, g.quantity, g.split) for g in found.groups]
    assert len(set(keys)) == len(keys)


def test_host_timed_rows_are_priced_with_their_host(found: Comparison) -> None:
    modes = {group.mode for group in found.groups if group.device == "tpu-v3"}
    assert modes == {"device+host"}
    assert {group.mode for group in found.groups if group.protocol == "CUDA graph"} == {"kernel"}


def test_held_out_products_beat_both_baselines(found: Comparison) -> None:
    """The point of the whole model; TPU v3 here, whose model nobody is working on with these rows."""
    (group,) = [g for g in found.groups if (g.device, g.operator, g.split) == ("tpu-v3", "product", "held-out")]
    assert group.roofline is not None and group.baseline is not None
    assert group.errors.median < group.baseline.median < group.roofline.median
    assert group.errors.spearman is not None and group.errors.spearman > 0.99


def test_power_has_no_roofline(found: Comparison) -> None:
    powers = [group for group in found.groups if group.quantity == "power"]
    assert powers
    assert all(group.roofline is None and group.baseline is None for group in powers)


def test_stored_scores_are_shown(found: Comparison) -> None:
    assert [score for card, score in found.scores if card == "tpu-v3"] == load_card("tpu-v3").scores


@pytest.mark.parametrize(
    ("conditions", "protocol"),
    [
        ("host wall clock incl launch+sync; median", "host"),
        ("CUDA graph;mean of 6", "CUDA graph"),
        ("median of 20;profiler CUDA kernel time;tp=1", "profiler"),
        ("CUDA events;mean of best 5 of 25", "CUDA events"),
        ("steady loop;native torch", "steady loop"),
        ("CPU timer, 2 threads;median of 9", "CPU timer"),
        ("", "not recorded"),
    ],
)
def test_protocols(conditions: str, protocol: str) -> None:
    assert protocol_of(row(conditions=conditions)) == protocol


def test_operator_classes() -> None:
    assert [
        operator_class(operator)
        for operator in (
            hw.matmul(m=4, k=4, n=4),
            hw.matmul(m=4, k=4, n=4, batch=2),
            hw.attention(batch=1, heads=1, queries=4, keys=4, head_dim=4, causal=True),
            hw.softmax(rows=4, cols=4),
            hw.gelu(elements=4),
        )
    ] == ["product", "batched product", "causal attention", "softmax", "elementwise"]


def test_the_roofline_is_the_larger_of_two_quotients() -> None:
    card = load_card("a100-40gb-sxm")
    operators = [hw.matmul(m=4096, k=4096, n=4096, dtype="fp16"), hw.gelu(elements=10**8, dtype="fp16")]
    peak, bandwidth = 1024 * 108 * 1.41e9, 1.555e12
    assert roofline(operators, card) == pytest.approx([4096**3 / peak, 2 * 2 * 10**8 / bandwidth])
    assert roofline([hw.matmul(m=4, k=4, n=4, dtype="int8")], load_card("vita")) is None, "a card without such a peak"


def test_two_parameters_are_found_again() -> None:
    floor = np.geomspace(1e-6, 1e-3, 40)
    measured = 5e-6 + floor / 0.8
    fit = np.arange(40) % 2 == 0
    assert two_parameters(floor, measured, fit) == pytest.approx(measured, rel=1e-3)
    assert two_parameters(floor, measured, np.arange(40) < 3) is None


def test_metrics_have_a_quantity() -> None:
    assert set(METRICS.values()) == {"latency", "power"}


def test_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    cli.main(["validate", "--device", "tpu-v3"])
    out = capsys.readouterr().out
    assert "roofline median" in out and "held-out" in out and "several cores at once" in out
    assert "LLMCompass operators, one core" in out, "the stored line of the scoreboard"
    cli.main(["validate", "--device", "tpu-v3", "--json"])
    document = json.loads(capsys.readouterr().out)
    assert {group["device"] for group in document["groups"]} == {"tpu-v3"}
    assert document["scoreboard"][0]["device"] == "tpu-v3"
    with pytest.raises(SystemExit) as ended:
        cli.main(["validate", "--device", "tpu-v33"])
    assert ended.value.code == 2
    assert "did you mean 'tpu-v3'" in capsys.readouterr().err
