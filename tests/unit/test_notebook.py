"""Traces and estimates in a notebook: tables as text only, figures in the axes that were given."""

from __future__ import annotations

import html
import re

import pytest
from matplotlib.figure import Figure
from reporting_fakes import GPU, PE, estimate, pruned, vit

import hwmodel as hw
from hwmodel.errors import HwmodelError
from hwmodel.ir.accessors import Accessor

TRACE = pruned(vit(), 0.5)
ESTIMATE = estimate(TRACE, GPU, mode="compiled", gap_s=1e-6)


def _cells(text: str) -> list[list[str]]:
    rows = re.findall(r"<tr>(.*?)</tr>", text)
    return [[html.unescape(cell).replace("\N{NO-BREAK SPACE}", " ") for cell in re.findall(r"<td>(.*?)</td>", row)] for row in rows]


def test_a_trace_shows_its_operators_by_role() -> None:
    rows = {row[0]: row[1:] for row in _cells(TRACE._repr_html_()) if row}
    assert rows["qkv"] == ["2", "43.6 M", "21.8 M"]  # 2 * 197 * 192 * 576, half of it kept
    assert rows["all"][0] == str(len(TRACE))


def test_an_estimate_shows_its_parts_and_how_far_to_trust_them() -> None:
    text = ESTIMATE._repr_html_()
    rows = {row[0]: row[1:] for row in _cells(text) if row}
    assert rows["all"][0].endswith("µs") and rows["waiting for the host"][2] == "0 J"
    assert "latency calibrated, error ±5.1" in text


def test_a_name_is_text() -> None:
    evil = vit(1, model="<script>alert(1)</script>")
    assert "<script>" not in evil._repr_html_() + estimate(evil, PE)._repr_html_()


@pytest.mark.parametrize(
    "draw",
    [
        lambda ax: TRACE.plot.breakdown(ax=ax),
        lambda ax: TRACE.plot.density(ax=ax),
        lambda ax: TRACE.plot.roofline("vita", ax=ax),
        lambda ax: ESTIMATE.plot.roofline(ax=ax),
        lambda ax: ESTIMATE.plot.breakdown(ax=ax),
        lambda ax: ESTIMATE.plot.breakdown(ax=ax, by="block", of="energy"),
    ],
)
def test_a_figure_is_drawn_into_the_axes_given(draw: object) -> None:
    axes = Figure().subplots()
    assert draw(axes) is axes  # type: ignore[operator]
    assert axes.patches or axes.collections
    assert axes.get_xlabel()


def test_without_axes_pyplot_makes_some(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MPLBACKEND", "agg")
    from matplotlib import pyplot

    before = set(pyplot.get_fignums())
    axes = ESTIMATE.plot.breakdown()
    assert len(set(pyplot.get_fignums()) - before) == 1
    pyplot.close(axes.figure)


def test_what_cannot_be_shown_is_told() -> None:
    with pytest.raises(HwmodelError, match="by role or block, of latency or energy"):
        ESTIMATE.plot.breakdown(by="layer")
    by_hand = hw.Trace.from_operators([hw.matmul(m=8, k=16, n=32)])
    with pytest.raises(HwmodelError, match="no encoder blocks"):
        estimate(by_hand, PE).plot.breakdown(by="block")
    sweep = hw.estimate(TRACE, device="tpu-v3", overrides={"clock_hz": [1e9, 2e9]})
    with pytest.raises(HwmodelError, match="sweep"):
        sweep.plot.roofline()


def test_an_accessor_that_nobody_filled_says_so() -> None:
    class Thing:
        plot = Accessor()

    with pytest.raises(AttributeError, match="nothing is known that shows a Thing"):
        _ = Thing().plot
    assert isinstance(Thing.plot, Accessor)
