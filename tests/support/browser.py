"""A real headless browser for tests of pages: Debian's Chromium, driven by Selenium, with all that it asks for noted."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlsplit

from selenium import webdriver
from selenium.common.exceptions import TimeoutException
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

CHROMIUM, DRIVER = "/usr/bin/chromium", "/usr/bin/chromedriver"
_OPTIONS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--window-size=1200,900",
)
WAIT_S = 20


def missing() -> str:
    """Why there is no browser; "" where there is one."""
    lacking = [path for path in (CHROMIUM, DRIVER) if shutil.which(path) is None]
    return f"no {' and no '.join(lacking)} (Debian: apt-get install chromium chromium-driver)" if lacking else ""


class Browser:
    """One window. Whatever it does is waited for, never slept for."""

    def __init__(self) -> None:
        options = webdriver.ChromeOptions()
        options.binary_location = CHROMIUM
        self._profile = tempfile.mkdtemp(prefix="chromium-")
        for option in (*_OPTIONS, f"--user-data-dir={self._profile}"):
            options.add_argument(option)
        options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
        self.driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))

    def close(self) -> None:
        self.driver.quit()
        shutil.rmtree(self._profile, ignore_errors=True)

    def open(self, url: str) -> None:
        self.complaints(), self.asked_for()
        self.driver.get(url)

    def element(self, selector: str) -> Any:
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def text(self, selector: str) -> str:
        """The text as the page holds it, white space and all."""
        return str(
            self.driver.execute_script("return document.querySelector(arguments[0])?.textContent ?? ''", selector)
        )

    def value(self, selector: str) -> str:
        return str(self.driver.execute_script("return document.querySelector(arguments[0]).value", selector))

    def until(self, selector: str, text: str) -> None:
        """Waits until an element holds a text."""
        try:
            self.wait(lambda: text in self.text(selector))
        except TimeoutException as error:
            raise AssertionError(f"{selector} holds {self.text(selector)!r}, not {text!r}") from error

    def wait(self, condition: Callable[[], bool]) -> None:
        """Waits until something is so."""
        WebDriverWait(self.driver, WAIT_S, poll_frequency=0.05).until(lambda _: condition())

    def press(self, *keys: str) -> None:
        """Keys typed where the focus is."""
        webdriver.ActionChains(self.driver).send_keys(*keys).perform()

    def chord(self, held: str, key: str) -> None:
        webdriver.ActionChains(self.driver).key_down(held).send_keys(key).key_up(held).perform()

    def asked_for(self) -> set[str]:
        """The hosts that the page asked for anything since this was last called."""
        return {host for url in self._requests() if (host := urlsplit(url).hostname)}

    def complaints(self) -> list[str]:
        """What the console said since this was last called: errors of scripts, and what the page's policy refused."""
        return [one["message"] for one in self.driver.get_log("browser") if one["level"] == "SEVERE"]

    def _requests(self) -> Iterator[str]:
        for entry in self.driver.get_log("performance"):
            message = json.loads(entry["message"])["message"]
            if message["method"] == "Network.requestWillBeSent":
                url = message["params"]["request"]["url"]
                if not url.startswith(("chrome", "data:", "blob:")):
                    yield url
