"""Refits that expose fitting: what they may see, and what they report."""

from __future__ import annotations

import json

import numpy as np
import pytest

import hwmodel as hw
from hwmodel import cli
from hwmodel.backends.cards import load_card
from hwmodel.content import content_folder
from hwmodel.ir.trace import Trace
from hwmodel.validation import cross_checks as module
from hwmodel.validation.calibration.fields import fields_by_default
from hwmodel.validation.calibration.fitting import fit
from hwmodel.validation.calibration.observations import Latencies, observed, read_rows
from hwmodel.validation.cross_checks import cross_checks
from hwmodel.validation.measured import timed

PCIE = content_folder("simulators") / "a100-40gb-pcie" / "measured.csv"


def test_rows_that_are_scored_were_not_fitted(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Latencies] = []
    monkeypatch.setattr(module, "fit", lambda found, card, mode, free: seen.append(found) or {})
    (check,) = cross_checks([load_card("a100-40gb-pcie")])
    (fitted,) = seen
    widths = {operator.n for operator in fitted.workload.trace.operators}  # type: ignore[attr-defined]
    products = [row for row in read_rows(PCIE) if "xK" in row.shape]
    wide = [row for row in products if timed(row).operator.n == 3072]
    assert 3072 not in widths
    assert len(fitted.of) == len(products) - len(wide)
    assert check.shipped.rows == len(wide) > 10


def test_the_shipped_side_is_what_an_estimate_says() -> None:
    (check,) = cross_checks([load_card("a100-40gb-pcie")])
    wide = [(row, timed(row)) for row in read_rows(PCIE) if "xN3072x" in row.shape]
    costs = hw.estimate(Trace.from_operators(one.operator for _, one in wide), device="a100-40gb-pcie", mode="kernel").costs
    measured = np.array([row.value - one.host_s for row, one in wide])
    assert check.shipped.median == pytest.approx(np.median(np.abs(costs.latency_s / measured - 1)))


def test_the_refitted_side_uses_the_refitted_constants() -> None:
    (check,) = cross_checks([load_card("a100-40gb-pcie")])
    card = load_card("a100-40gb-pcie")
    rows = [row for row in read_rows(PCIE) if "xK" in row.shape and "xN3072x" not in row.shape]
    found = observed(rows, card, held_out=np.zeros(len(rows), dtype=np.bool_))
    assert dict(check.moved) == fit(found, card, "kernel", fields_by_default(card, "kernel", found))
    wide = [(row, timed(row)) for row in read_rows(PCIE) if "xN3072x" in row.shape]
    trace = Trace.from_operators(one.operator for _, one in wide)
    costs = hw.estimate(trace, device="a100-40gb-pcie", mode="kernel", overrides=check.moved).costs
    measured = np.array([row.value - one.host_s for row, one in wide])
    assert check.refitted.mean == pytest.approx(np.abs(costs.latency_s / measured - 1).mean())


def test_constants_that_a_card_states_are_not_carried_to_another() -> None:
    (check,) = cross_checks([load_card("a40")])
    own = load_card("a40").parameters.keys() | load_card("a100-80gb-pcie").parameters.keys()
    assert check.moved
    assert not {path.partition(".")[0] for path in check.moved} & own


def test_validate_prints_them(capsys: pytest.CaptureFixture[str]) -> None:
    cli.main(["validate", "--device", "a100-40gb-pcie"])
    assert "n = 3072" in capsys.readouterr().out
    cli.main(["validate", "--device", "a100-40gb-pcie", "--json"])
    (check,) = json.loads(capsys.readouterr().out)["cross_checks"]
    assert check["device"] == "a100-40gb-pcie" and check["shipped"]["rows"] == check["refitted"]["rows"] == 21


def test_a_card_without_a_cross_check_has_none() -> None:
    assert cross_checks([load_card("tpu-v3")]) == []
