"""The server and the browser of these tests: both are slow to start, so a module's tests share them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import BrowserContext, sync_playwright

from tests.browser.driver import CHROMIUM, CHROMIUM_OPTIONS, JupyterServer


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if item.path.is_relative_to(here):
            item.add_marker(pytest.mark.needs("chromium"))


@pytest.fixture(autouse=True)
def _test_leaves_nothing() -> None:
    """In place of the check after each test: a browser starts and ends processes as it sees fit.

    The check after the module stays: then browser, server, notebook kernels and ranks must be gone.
    """


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[JupyterServer]:
    with JupyterServer(tmp_path_factory.mktemp("jupyter")) as server:
        yield server


@pytest.fixture(scope="module")
def browser(server: JupyterServer) -> Iterator[BrowserContext]:
    """Closed before the server is: a page that loses its server complains."""
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=CHROMIUM_OPTIONS)
        yield chromium.new_context(viewport={"width": 1280, "height": 1000})
        chromium.close()
