"""A real browser for the tests of the page: Debian's Chromium, another one on the path, or Playwright's own."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.patience import PATIENCE_SECONDS

playwright = pytest.importorskip("playwright.sync_api", reason="no Playwright")
from playwright.sync_api import Browser, BrowserContext, Page, sync_playwright  # noqa: E402

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@contextmanager
def open_browser() -> Iterator[Browser]:
    """Skips the test where no browser is found."""
    with sync_playwright() as tool:
        path = next(filter(None, map(shutil.which, NAMES)), None) or tool.chromium.executable_path
        if not os.path.exists(path):
            pytest.skip("no Chromium: install Debian's package chromium, or playwright install chromium")
        # A container has no room for its sandbox of its own, and root may not use it.
        browser = tool.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-dev-shm-usage"])
        yield browser
        browser.close()


class Watched:
    """A page with what it did that it should not have: errors, dialogs, requests to other hosts."""

    def __init__(self, context: BrowserContext, url: str) -> None:
        self.url, self.wrong = url.partition("#")[0], []
        self.page: Page = context.new_page()
        self.page.set_default_timeout(1000 * PATIENCE_SECONDS)
        self.page.on("pageerror", lambda error: self.wrong.append(f"error: {error}"))
        self.page.on("dialog", lambda dialog: (self.wrong.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        self.page.on("request", self._check)
        self.page.goto(url)
        self.page.wait_for_selector("#model:not(:empty)")

    def _check(self, request) -> None:
        if not request.url.startswith((self.url, self.url.replace("http", "ws"), "blob:")):
            self.wrong.append(f"request: {request.url}")

    def ask(self, text: str, wait: bool = True) -> None:
        """Type a question and send it; wait for its answer to end."""
        number = self.page.locator(".message.user").count()
        self.page.evaluate("document.querySelector('#stats').textContent = ''")  # those of the answer before
        self.page.fill("#prompt", text)
        self.page.press("#prompt", "Enter")
        if wait:
            self.page.wait_for_selector(f".message.user >> nth={number}")
            self.page.wait_for_selector("#send:visible:enabled")
            self.page.wait_for_selector("#stats:not(:empty)")

    def answers(self) -> list[str]:
        return self.page.locator(".message.assistant .body").all_inner_texts()

    def questions(self) -> list[str]:
        return self.page.locator(".message.user .body").all_inner_texts()

    def act(self, action: str, place: int = -1) -> None:
        """Press a button of a message; place: among those messages that have it."""
        self.page.locator(f"[data-do='{action}']").nth(place).click()
