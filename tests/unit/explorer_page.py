"""The explorer served and opened in a real browser, with every host but this one unreachable; fixtures that tests share."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from explorer_bench import small_bench

from hwmodel.ui.server import serve
from hwmodel.ui.workbench import Workbench

BROWSER, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
NEEDS_BROWSER = pytest.mark.skipif(BROWSER is None or DRIVER is None, reason="needs chromium and chromedriver")
WAIT_S = 60


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Workbench:
    return small_bench(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def address(bench: Workbench) -> str:
    return served(bench)


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


def served(bench: Workbench) -> str:
    """Where the page of a workbench is served; the thread ends with the tests."""
    told, ready = [], threading.Event()

    def note(url: str) -> None:
        told.append(url)
        ready.set()

    threading.Thread(target=serve, args=(bench, "127.0.0.1", 0, note), daemon=True).start()
    assert ready.wait(WAIT_S)
    return told[0]


def until(browser: Any, condition: str, *given: object) -> Any:
    from selenium.webdriver.support.ui import WebDriverWait

    return WebDriverWait(browser, WAIT_S, 0.05).until(lambda driver: driver.execute_script(f"return {condition}", *given))


def open_page(browser: Any, url: str) -> None:
    browser.get(url)
    for part in ("#pareto .tracefront", "#numbers *", "#density [role=slider]"):
        until(browser, "document.querySelector(arguments[0])", part)


def thumb(browser: Any, name: str) -> Any:
    return browser.find_element("css selector", f"#{name} [role=slider]")
