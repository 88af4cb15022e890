"""The explorer in a real browser, with every host but this one unreachable."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
from explorer_page import NEEDS_BROWSER, address, bench, browser, downloads, open_page, thumb, until

import hwmodel as hw
from hwmodel.ui.workbench import Workbench

__all__ = ["address", "bench", "browser", "downloads"]  # fixtures
pytestmark = [pytest.mark.slow, NEEDS_BROWSER]


def text(browser: Any, name: str) -> str:
    return str(browser.execute_script("return document.getElementById(arguments[0]).innerText", name))


def errors(browser: Any) -> list[str]:
    return [entry["message"] for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]


def test_the_page_loads_from_this_host_alone_and_without_errors(browser: Any, address: str) -> None:
    open_page(browser, address)
    loaded = browser.execute_script("return performance.getEntriesByType('resource').map(entry => entry.name)")
    assert len(loaded) > 5
    assert [url for url in loaded if not url.startswith((address, "data:", "blob:"))] == []
    assert errors(browser) == []


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_overflows(browser: Any, address: str, width: int, scheme: str) -> None:
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]})
    try:
        open_page(browser, address)
        assert browser.execute_script("return document.documentElement.scrollWidth") <= width
        dark = browser.execute_script("return getComputedStyle(document.body).backgroundColor") == "rgb(20, 24, 29)"
        assert dark == (scheme == "dark")
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_a_slider_moves_the_figures_and_a_reload_keeps_the_state(browser: Any, address: str) -> None:
    from selenium.webdriver.common.keys import Keys

    open_page(browser, address)
    before = text(browser, "numbers")
    thumb(browser, "density").send_keys(Keys.ARROW_LEFT)
    until(browser, "document.getElementById('numbers').innerText != arguments[0]", before)
    until(browser, "location.search.includes('density=0.49')")
    until(browser, "document.getElementById('value-density').innerText.startsWith('49%')")
    after = text(browser, "numbers")
    browser.refresh()
    until(browser, "document.getElementById('numbers')?.innerText == arguments[0]", after)
    assert thumb(browser, "density").get_attribute("aria-valuenow") == "0.49"
    assert errors(browser) == []


def test_quick_moves_end_at_the_last_one_and_another_machine_redraws_the_titles(browser: Any, address: str) -> None:
    from selenium.webdriver.common.keys import Keys

    def dots() -> Any:
        return browser.execute_script("return [...document.querySelectorAll('.tracenow .point')].map(one => one.outerHTML).sort()")

    open_page(browser, address)
    for _ in range(10):
        thumb(browser, "density").send_keys(Keys.ARROW_LEFT)
    until(browser, "location.search.split('&').includes('density=0.4')")
    until(browser, "document.getElementById('value-density').innerText.startsWith('40%')")
    moved = dots()
    assert text(browser, "pareto").count("latency (ms)") == 1
    open_page(browser, browser.current_url)
    until(browser, "document.querySelectorAll('.tracenow .point').length")
    assert dots() == moved

    thumb(browser, "density").send_keys(Keys.ARROW_LEFT)
    until(browser, "location.search.includes('density=0.39')")
    browser.execute_script("dash_clientside.set_props('device', {value: 'tpu-v3'})")
    until(browser, "document.querySelector('#pareto').textContent.includes('latency (µs)')")
    until(browser, "document.querySelector('#controls').textContent.includes('128x128')")
    browser.back()
    until(browser, "document.querySelector('#pareto').textContent.includes('latency (ms)')")
    assert errors(browser) == []


def test_what_an_address_cannot_have_is_told_on_the_page(browser: Any, address: str) -> None:
    open_page(browser, f"{address}?density=9&device=abacus")
    notice = text(browser, "notice")
    assert "expected 0 to 1" in notice
    assert "abacus" in notice
    assert errors(browser) == []


def test_a_downloaded_recipe_reloads_to_the_same_estimate(browser: Any, address: str, bench: Workbench, downloads: Path) -> None:
    open_page(browser, f"{address}?device=vita&density=0.3&heads=2&tokens=50")
    browser.execute_script("document.getElementById('save-recipe').click()")
    until(browser, "document.getElementById('saved').innerText.includes('recipe.toml')")
    path = downloads / "small_vita.recipe.toml"
    for _ in range(100):
        if path.is_file():
            break
        until(browser, "true")
        threading.Event().wait(0.1)
    again = hw.estimate(hw.prune(hw.load_trace(bench.models.names[0]), path), device="vita")
    from hwmodel.reporting.units import si

    assert text(browser, "numbers").startswith(f"{si(again.latency_s, 's')}\nLatency\n")
