"""A real browser for the tests that need one: Chromium, as the system installed it."""

import needs
import pytest
from playwright.sync_api import sync_playwright


# Once per file, not per session: playwright's event loop must not run beside other tests.
@pytest.fixture(scope="module")
def chromium():
    """A headless Chromium, for tests that are marked with ``needs("chromium")``."""
    with sync_playwright() as playwright:
        path = needs.chromium()
        yield playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
