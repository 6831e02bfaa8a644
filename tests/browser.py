"""Headless Chromium for tests of HTML pages, which are skipped without it, except with CI=true."""

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
    reason="Chromium is not installed (on Debian: apt install chromium chromium-driver)",
)


@contextmanager
def chromium() -> Iterator[webdriver.Chrome]:
    """Opens a browser with a fresh profile and closes it after the block."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        options = webdriver.ChromeOptions()
        options.binary_location = shutil.which("chromium") or "chromium"
        for argument in (*ARGUMENTS, f"--user-data-dir={profile}"):
            options.add_argument(argument)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        # With the path of the driver, so that selenium does not look for one on the network.
        driver = webdriver.Chrome(options, Service(shutil.which("chromedriver") or "chromedriver"))
        try:
            yield driver
        finally:
            driver.quit()


def resize(driver: webdriver.Chrome, size: tuple[int, int] = DESKTOP, *, dark: bool = False) -> None:
    """Sets the size of the window in pixels (with PHONE, a mobile device) and the preferred color scheme."""
    width, height = size
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": size == PHONE}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})


def console_messages(driver: webdriver.Chrome) -> list[str]:
    """Returns the messages on the console since the last call: errors, blocked resources, exceptions."""
    return [entry["message"] for entry in driver.get_log("browser")]
