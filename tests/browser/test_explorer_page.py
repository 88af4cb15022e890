"""The explorer in a real browser, with every host but this one unreachable."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from explorer_bench import small_bench

import hwmodel as hw
from hwmodel.ui.server import serve
from hwmodel.ui.workbench import Workbench

BROWSER, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(BROWSER is None or DRIVER is None, reason="needs chromium and chromedriver"),
]
WAIT_S = 60


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Workbench:
    return small_bench(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def address(bench: Workbench) -> str:
    """Where the page is served; the thread ends with the tests."""
    told, ready = [], threading.Event()

    def note(url: str) -> None:
        told.append(url)
        ready.set()

    threading.Thread(target=serve, args=(bench, "127.0.0.1", 0, note), daemon=True).start()
    assert ready.wait(WAIT_S)
    return told[0]


@pytest.fixture(scope="module")
def downloads(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("downloads")


@pytest.fixture(scope="module")
def browser(downloads: Path) -> Iterator[Any]:
    from selenium.webdriver import Chrome, ChromeOptions, ChromeService

    options = ChromeOptions()
    options.binary_location = BROWSER or ""
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    options.add_experimental_option("prefs", {"download.default_directory": str(downloads)})
    for flag in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu", "--window-size=1280,1500"):
        options.add_argument(flag)
    options.add_argument("--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1")
    driver = Chrome(options=options, service=ChromeService(DRIVER))
    yield driver
    driver.quit()


def until(browser: Any, condition: str, *given: object) -> Any:
    from selenium.webdriver.support.ui import WebDriverWait

    return WebDriverWait(browser, WAIT_S, 0.05).until(lambda driver: driver.execute_script(f"return {condition}", *given))


def open_page(browser: Any, url: str) -> None:
    browser.get(url)
    until(browser, "document.querySelectorAll('#pareto .tracefront').length && document.querySelector('#totals').children.length")


def thumb(browser: Any, name: str) -> Any:
    return browser.find_element("css selector", f"#{name} [role=slider]")


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
    before = text(browser, "totals")
    thumb(browser, "density").send_keys(Keys.ARROW_LEFT)
    until(browser, "document.getElementById('totals').innerText != arguments[0]", before)
    until(browser, "location.search.includes('density=0.49')")
    until(browser, "document.getElementById('value-density').innerText.startsWith('49%')")
    after = text(browser, "totals")
    browser.refresh()
    until(browser, "document.getElementById('totals')?.innerText == arguments[0]", after)
    assert thumb(browser, "density").get_attribute("aria-valuenow") == "0.49"
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

    assert f"\n{si(again.latency_s, 's')}\n".replace("\xa0", " ") in text(browser, "totals").replace("\xa0", " ")


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


@pytest.mark.skipif(
    "not config.getoption('benchmark_enable')", reason="a timing: run it with --benchmark-enable on an idle machine"
)
def test_figures_follow_a_dragged_slider_within_100_ms(browser: Any, address: str) -> None:
    open_page(browser, address)
    browser.execute_script(_CLOCK)
    place = thumb(browser, "density").rect
    x, y = place["x"] + place["width"] / 2, place["y"] + place["height"] / 2

    def mouse(kind: str, at: float, buttons: int) -> None:
        event = {"type": kind, "x": at, "y": y, "button": "left", "buttons": buttons, "clickCount": 1}
        browser.execute_cdp_cmd("Input.dispatchMouseEvent", event)

    mouse("mousePressed", x, 1)
    for move in range(1, 41):
        mouse("mouseMoved", x - 3 * move, 1)
        until(browser, "window.moves.length == arguments[0]", move)
    mouse("mouseReleased", x - 120, 0)
    taken = sorted(browser.execute_script("return window.moves"))
    assert taken[int(0.95 * len(taken)) - 1] < 100, taken
