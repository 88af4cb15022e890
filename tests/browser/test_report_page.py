"""The report in a real browser, from a file, with the network off."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from reporting_fakes import variants

from hwmodel.reporting.report import report_csv, report_html
from hwmodel.reporting.style import TOKENS

pytestmark = pytest.mark.slow
WIDTHS = (1280, 390)


@contextmanager
def offline_chromium(downloads: Path) -> Iterator[Any]:
    """Chromium, headless, unable to reach any host; skips where browser, driver or selenium is missing.

    Files that a page hands out are saved in ``downloads``.
    """
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium (extra `test`) drives the browser")
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    chosen = shutil.which("chromedriver")
    if browser is None or chosen is None:
        pytest.skip("no Chromium with chromedriver on this machine: nothing was seen in a browser")
    options = webdriver.ChromeOptions()
    options.binary_location = browser
    for argument in ("headless=new", "no-sandbox", "disable-dev-shm-usage", "disable-gpu", "host-resolver-rules=MAP * ~NOTFOUND"):
        options.add_argument(f"--{argument}")
    options.add_experimental_option("prefs", {"download.default_directory": str(downloads), "download.prompt_for_download": False})
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(chosen))
    try:
        driver.execute_cdp_cmd("Network.enable", {})
        driver.execute_cdp_cmd(
            "Network.emulateNetworkConditions", {"offline": True, "latency": 0, "downloadThroughput": 0, "uploadThroughput": 0}
        )
        yield driver
    finally:
        driver.quit()


def resize(driver: Any, width: int, *, dark: bool = False) -> None:
    """Make the page so many CSS pixels wide, in the light or the dark theme."""
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    theme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [theme]})


OVERFLOWING = """
const scrolls = (e) => e && (['auto', 'scroll', 'hidden'].includes(getComputedStyle(e).overflowX) || scrolls(e.parentElement));
return [...document.body.querySelectorAll('*')]
  .filter((e) => e.getClientRects().length && e.getBoundingClientRect().right > innerWidth + 1)
  .filter((e) => !scrolls(e.parentElement) && getComputedStyle(e).visibility !== 'hidden')
  .map((e) => `${e.tagName} ${e.className.baseVal ?? e.className} ${e.id}`);
"""
"""Elements that stick out of the page at the right, but those in a box that scrolls or cuts."""


@pytest.fixture(scope="module", params=["interactive", "static"])
def page(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The browser with a report open, and the folder its downloads go to."""
    folder = tmp_path_factory.mktemp("report")
    path = folder / "report.html"
    path.write_text(report_html(variants(), static=request.param == "static"), encoding="utf-8")
    with offline_chromium(folder) as driver:
        resize(driver, WIDTHS[0])
        driver.get(path.as_uri())
        driver.folder, driver.interactive = folder, request.param == "interactive"
        yield driver


def _until(holds: Callable[[], bool], seconds: float = 20.0) -> bool:
    """Whether something comes true in time."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if holds():
            return True
        time.sleep(0.05)
    return holds()


SHOWN = "return [...document.querySelectorAll(arguments[0])].filter((one) => one.getClientRects().length).length"


def _press(page: Any, sheet: str) -> None:
    """Press a table's button as a person does: a page may not hand out files by itself."""
    button = page.find_element("css selector", f"[data-sheet='{sheet}']")
    page.execute_script("arguments[0].scrollIntoView({block: 'center'})", button)
    button.click()


def test_it_opens_without_a_word_on_the_console(page: Any) -> None:
    assert page.get_log("browser") == []
    drawn = page.execute_script("return document.querySelectorAll('.js-plotly-plot .main-svg').length")
    shown = page.execute_script(
        "return [...document.querySelectorAll('.scroll > svg')].filter(e => e.getClientRects().length).length"
    )
    assert (drawn > 0) == page.interactive
    assert shown > 3
    empty = "return [...document.querySelectorAll('.plots > div')].filter(e => !e.querySelector('.main-svg')).length"
    assert not page.interactive or page.execute_script(empty) == 0


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("dark", [False, True])
def test_nothing_sticks_out(page: Any, width: int, dark: bool) -> None:
    resize(page, width, dark=dark)
    page.execute_script("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
    assert _until(lambda: page.execute_script("return document.documentElement.scrollWidth") <= width)
    assert page.execute_script(OVERFLOWING) == []
    paper = page.execute_script("return getComputedStyle(document.body).backgroundColor")
    red, green, blue = (int(TOKENS["paper"][dark][at : at + 2], 16) for at in (1, 3, 5))
    assert paper == f"rgb({red}, {green}, {blue})"
    assert page.get_log("browser") == []


COLUMN = """
const table = document.querySelector('table.results');
const place = [...table.tHead.rows[0].cells].findIndex((head) => head.textContent.trim() === arguments[0]);
if (arguments[1]) table.tHead.rows[0].cells[place].querySelector('button').click();
const sorted = table.tHead.rows[0].cells[place].getAttribute('aria-sort');
return [sorted, [...table.tBodies[0].rows].map((row) => row.cells[place].dataset.key ?? row.cells[place].textContent.trim())];
"""


def test_a_table_is_sorted_by_the_column_that_is_clicked(page: Any) -> None:
    latencies = [estimate.latency_s for variant in variants() for estimate in variant.estimates]
    for expected, order in (("ascending", sorted(latencies)), ("descending", sorted(latencies, reverse=True))):
        direction, keys = page.execute_script(COLUMN, "latency", True)
        assert direction == expected
        assert [float(key) for key in keys] == order
    direction, names = page.execute_script(COLUMN, "device", True)
    assert direction == "ascending" and names == sorted(names) and len(names) == 12
    assert page.execute_script(COLUMN, "latency", False)[0] == "none"
    direction, factors = page.execute_script(COLUMN, "faster", True)
    assert factors[-4:] == ["", "", "", ""]  # the dense rows have none, so they come last


def test_what_is_downloaded_is_what_the_command_line_prints(page: Any) -> None:
    saved = Path(page.folder) / "operators.csv"
    _press(page, "operators")
    expected = report_csv(variants()).encode()
    assert _until(lambda: saved.exists() and saved.stat().st_size == len(expected))
    assert saved.read_bytes() == expected


def test_every_table_can_be_downloaded(page: Any) -> None:
    names = page.execute_script("return [...document.querySelectorAll('[data-sheet]')].map((one) => one.dataset.sheet)")
    tables = page.execute_script("return document.querySelectorAll('main table').length")
    assert len(set(names)) == len(names) == tables + 1  # and every operator
    for name in ("results", "parameters-0"):
        _press(page, name)
        assert _until((Path(page.folder) / f"{name}.csv").exists)


def test_paper_gets_the_drawn_figures(page: Any) -> None:
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print", "features": []})
    assert page.execute_script(SHOWN, ".plots") == 0
    assert page.execute_script(SHOWN, ".scroll > svg") == page.execute_script("return document.querySelectorAll('figure').length")
    resize(page, WIDTHS[0])
