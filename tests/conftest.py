"""A real browser for the tests that need one: Chromium, as the system installed it."""

import shutil

import pytest
from playwright.sync_api import sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next(filter(None, map(shutil.which, NAMES)), None)


# Once per file, not per session: playwright's event loop must not run beside other tests.
@pytest.fixture(scope="module")
def chromium():
    """A headless Chromium; tests are skipped where there is none."""
    if CHROMIUM is None:
        pytest.skip("no Chromium here: install it (Debian: apt install chromium) to run this test")
    with sync_playwright() as playwright:
        yield playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
