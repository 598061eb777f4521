"""Draw the pictures of the page in the README: `nanochat serve demo --no-history`, then
`python docs/screenshot_page.py http://127.0.0.1:8000 docs`. Needs Playwright and Chromium."""

import argparse
import shutil
from pathlib import Path

from playwright.sync_api import Browser, Page, sync_playwright

OTHERS = ("Who are you?", "What is 12 + 34?", "Tell me a story about a fox.")


def draw(url: str, folder: Path) -> None:
    with sync_playwright() as tool:
        browser = tool.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = _open(browser, url, 1000, 640, "light")
        for question in OTHERS:
            _ask(page, question)
            page.click("#new")
        _ask(page, "How many r are in strawberry?")
        _ask(page, "Tell me a story.")
        for _ in range(2):
            page.locator("[data-do='again']").last.click()
            _wait(page)
        page.locator("[data-do='previous']").last.click()
        page.locator(".tool summary").first.click()
        page.locator("#log").evaluate("log => log.scrollTo(0, 0)")
        page.screenshot(path=folder / "page.png")
        address = page.url
        dark = _open(browser, address, 1000, 640, "dark")
        dark.click("#settings-open")
        dark.fill("#temperature", "0.7")
        dark.fill("#system", "Answer in one sentence.")
        dark.screenshot(path=folder / "page-settings.png")
        phone = _open(browser, address, 390, 700, "light")
        phone.locator("#log").evaluate("log => log.scrollTo(0, 0)")
        phone.screenshot(path=folder / "page-phone.png")
        browser.close()


def _open(browser: Browser, url: str, width: int, height: int, theme: str) -> Page:
    page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=theme)
    page.goto(url)
    page.wait_for_selector("#model:not(:empty)")
    page.wait_for_timeout(300)
    return page


def _ask(page: Page, question: str) -> None:
    page.fill("#prompt", question)
    page.press("#prompt", "Enter")
    _wait(page)


def _wait(page: Page) -> None:
    """For the answer to end."""
    page.wait_for_timeout(100)
    page.wait_for_selector("#stop", state="hidden")
    page.wait_for_selector("#stats:not(:empty)")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url")
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    draw(arguments.url, arguments.folder)
