"""A real browser without a network, where one is installed."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

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
