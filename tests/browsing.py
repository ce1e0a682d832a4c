"""A headless browser for tests: the first that is found; pages that tell what goes wrong."""

import os
from contextlib import contextmanager

import pytest

from apps import bench_explore

LACKING = (
    "no browser was found, so the explorer was not tested in one; install Chromium "
    "(make browser), or name one in MNEMOSCOPE_BROWSER"
)


def find_browser():
    """Path of a browser; Playwright's own where there is one; None where there is none."""
    named = os.environ.get("MNEMOSCOPE_BROWSER")
    if named:
        return named
    found = bench_explore.find_browser()
    if found:
        return found
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        own = playwright.chromium.executable_path
    return own if os.path.exists(own) else None


@contextmanager
def chromium():
    """A browser; the test is skipped, or fails where one has to be there, without."""
    path = find_browser()
    if path is None:
        if os.environ.get("MNEMOSCOPE_NEEDS_BROWSER"):
            pytest.fail(LACKING)
        pytest.skip(LACKING)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


class Watch:
    """Errors, dialogs and requests of a page."""

    def __init__(self, page):
        self.errors, self.requests = [], []
        page.on("pageerror", lambda e: self.errors.append(str(e)))
        page.on("console", self._said)
        page.on("dialog", lambda d: (self.errors.append(f"dialog: {d.message}"), d.dismiss()))
        page.on("request", lambda r: self.requests.append(r.url))

    def _said(self, message):
        if message.type == "error":
            self.errors.append(message.text)


@contextmanager
def opened(browser, address, *, width=1280, height=900, offline=True):
    """`(page, watch)` of an address, ready; with the network cut where `offline`."""
    context = browser.new_context(viewport={"width": width, "height": height})
    context.set_offline(offline)
    page = context.new_page()
    watch = Watch(page)
    page.goto(address)
    page.wait_for_selector("#explorer[data-ready]", timeout=30_000)
    yield page, watch
    context.close()
