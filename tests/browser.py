"""Headless Chromium for tests of pages. Where CI=true it must be there; elsewhere its tests are skipped without it."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service

DESKTOP, PHONE = (1280, 900), (390, 844)
ARGUMENTS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)

needs_chromium = pytest.mark.skipif(
    os.environ.get("CI") != "true" and not (shutil.which("chromium") and shutil.which("chromedriver")),
    reason="no Chromium here (on Debian: apt install chromium chromium-driver)",
)


@contextmanager
def chromium() -> Iterator[webdriver.Chrome]:
    """A browser without a past, closed behind the block."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        options = webdriver.ChromeOptions()
        options.binary_location = shutil.which("chromium") or "chromium"
        for argument in (*ARGUMENTS, f"--user-data-dir={profile}"):
            options.add_argument(argument)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        # The driver's path is named, so that selenium looks for none in the network.
        driver = webdriver.Chrome(options, Service(shutil.which("chromedriver") or "chromedriver"))
        try:
            yield driver
        finally:
            driver.quit()


def look(driver: webdriver.Chrome, size: tuple[int, int] = DESKTOP, *, dark: bool = False) -> None:
    """Sets the window's size in pixels (PHONE: as a phone would) and the colours that the user prefers."""
    width, height = size
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": size == PHONE}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})


def complaints(driver: webdriver.Chrome) -> list[str]:
    """What the console was told since the last call: errors, refused resources, exceptions."""
    return [entry["message"] for entry in driver.get_log("browser")]
