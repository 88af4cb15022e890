"""How fast the explorer's figures follow a dragged slider, measured in Chromium. Run with ``make bench``.

Meant for an idle machine: 95 of 100 moves are drawn within 100 ms. Wall time and the browser's processor time are printed.
"""

from __future__ import annotations

import sys
from typing import Any

import psutil
import pytest
from explorer_page import NEEDS_BROWSER, address, bench, browser, downloads, open_page, thumb, until

__all__ = ["address", "bench", "browser", "downloads"]  # fixtures
pytestmark = [pytest.mark.slow, NEEDS_BROWSER]
MOVES = 30
PIXELS = 5
"""More than one step of the slider, so that every move changes the density."""

_CLOCK = """
window.moves = []; window.began = null; window.drawn = new Set();
document.addEventListener('pointermove', event => {
  if (event.buttons && window.began === null) { window.began = performance.now(); window.drawn.clear(); }
}, true);
const done = part => {
  window.drawn.add(part);
  if (window.began === null || window.drawn.size < 3) return;
  const began = window.began; window.began = null;
  requestAnimationFrame(() => window.moves.push(performance.now() - began));
};
new MutationObserver(() => done("totals"))
  .observe(document.getElementById("totals"), {subtree: true, childList: true, characterData: true});
for (const name of ['roofline', 'pareto'])
  document.querySelector(`#${name} .js-plotly-plot`).on('plotly_afterplot', () => done(name));
"""
"""From a pointer's move to the frame after totals, roofline and Pareto figure have followed, in milliseconds."""


def _renderer_s(browser: Any) -> float:
    """Processor seconds that the browser's renderers have taken."""
    started = psutil.Process(browser.service.process.pid).children(recursive=True)
    used = [one.cpu_times() for one in started if "--type=renderer" in one.cmdline()]
    return sum(times.user + times.system for times in used)


def _drag(browser: Any) -> None:
    place = thumb(browser, "density").rect
    x, y = place["x"] + place["width"] / 2, place["y"] + place["height"] / 2

    def mouse(kind: str, at: float, buttons: int) -> None:
        event = {"type": kind, "x": at, "y": y, "button": "left", "buttons": buttons, "clickCount": 1}
        browser.execute_cdp_cmd("Input.dispatchMouseEvent", event)

    mouse("mousePressed", x, 1)
    for move in range(1, MOVES + 1):
        mouse("mouseMoved", x - PIXELS * move, 1)
        until(browser, "window.moves.length >= arguments[0]", move)
    mouse("mouseReleased", x - PIXELS * MOVES, 0)


def test_figures_follow_a_dragged_slider(benchmark: Any, browser: Any, address: str, capsys: pytest.CaptureFixture[str]) -> None:
    open_page(browser, address)
    browser.execute_script(_CLOCK)
    before = _renderer_s(browser)
    benchmark.pedantic(_drag, args=(browser,), rounds=1)
    cpu_ms = 1e3 * (_renderer_s(browser) - before) / MOVES
    taken = sorted(browser.execute_script("return window.moves"))
    middle, p95 = taken[len(taken) // 2], taken[int(0.95 * len(taken)) - 1]
    with capsys.disabled():
        sys.stdout.write(
            f"\nslider to figures: median {middle:.0f} ms, p95 {p95:.0f} ms, {cpu_ms:.0f} ms of processor time a move\n"
        )
    assert p95 < 100, taken
