"""A real browser for tests of the dashboard: Debian's Chromium without a screen, driven by Playwright.

Playwright's own loop runs in the thread that uses it, which can run no other loop meanwhile: so a browser lives no
longer than the tests of one file.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

REQUIRED = "GHOSTCACHER_REQUIRE_BROWSER"
"""Set to 1 where a test without a browser is to fail."""
PATIENCE_MS = 30_000.0
NO_ANSWER = "Failed to load resource"
"""What the console says of an answer that is an error: tests look at those themselves."""


def chromium_program() -> str:
    """Return where Chromium is: beside this Python, or on PATH. Skips the test where it, or Playwright, is not."""
    beside = Path(sys.executable).parent / "chromium"
    found = str(beside) if beside.is_file() else shutil.which("chromium")
    try:
        import playwright.sync_api  # noqa: F401
    except ImportError:
        found = None
    if found is None:
        why = "no browser: `make setup-browser`, or Debian's package chromium, and playwright of the extra [dev]"
        if os.environ.get(REQUIRED) == "1":
            pytest.fail(why)
        pytest.skip(why)
    return found


class Window:
    """A page in a window of its own, and what went wrong in it. page: Playwright's."""

    def __init__(self, browser: Any, **options: Any) -> None:
        """options: of Playwright's `new_context`, such as color_scheme and viewport."""
        self.context = browser.new_context(**options)
        self.context.set_default_timeout(PATIENCE_MS)
        self.page = self.context.new_page()
        self.troubles: list[str] = []
        self.asked: list[str] = []
        self.page.on("console", self._on_console)
        self.page.on("pageerror", lambda error: self.troubles.append(f"error: {error}"))
        self.page.on("dialog", self._on_dialog)
        self.page.on("request", lambda request: self.asked.append(request.url))

    def open(self, url: str) -> None:
        """Show the dashboard of a router."""
        self.page.goto(f"{url}/gc/ui")

    def close(self, url: str) -> None:
        """Close it; assert that nothing went wrong, and that nobody but the router was asked for anything."""
        self.context.close()
        assert self.troubles == []
        here = urlsplit(url).netloc
        assert [asked for asked in self.asked if urlsplit(asked).netloc != here] == []

    def until(self, expression: str, argument: Any = None) -> None:
        """Return when an expression of JavaScript holds in the page."""
        self.page.wait_for_function(expression, arg=argument, timeout=PATIENCE_MS)

    def text(self, selector: str) -> str:
        """Return the text of the first element that a selector finds."""
        return str(self.page.locator(selector).first.inner_text())

    def _on_console(self, message: Any) -> None:
        if message.type in {"error", "warning"} and not message.text.startswith(NO_ANSWER):
            self.troubles.append(f"{message.type}: {message.text}")

    def _on_dialog(self, dialog: Any) -> None:
        self.troubles.append(f"dialog: {dialog.message}")
        dialog.dismiss()


@contextmanager
def chromium() -> Iterator[Any]:
    """Run a browser; yields Playwright's. Skips where there is none."""
    program = chromium_program()
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=program, args=["--disable-gpu", "--disable-breakpad"])
        try:
            yield browser
        finally:
            browser.close()
