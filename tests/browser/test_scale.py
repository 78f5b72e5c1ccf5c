"""Many ranks that all write: how far the browser is behind, and what it costs. The ranks are simulated."""

from __future__ import annotations

import json
from dataclasses import dataclass

import pytest
from playwright.sync_api import BrowserContext, expect

from tests.browser.driver import JupyterServer, NotebookPage, write_notebook
from tests.browser.test_live_view import ROOT

MAX_LAG_S = {4: 0.2, 16: 0.2, 64: 0.2, 256: 1.0, 1024: 2.0}
MAX_BLOCKED_MS = {4: 500, 16: 500, 64: 500, 256: 500}
MAX_FILE_BYTES = 1_000_000
MAX_BYTES_PER_S, MAX_MESSAGES_PER_S, OVER_S = 1_000_000, 10, 3

# When the static page stood, and for how long the main thread was busy at a time.
WATCH = """() => {
  window.watched = {blocked: [0], shown: null};
  new PerformanceObserver((list) => {
    for (const task of list.getEntries()) window.watched.blocked.push(task.duration);
  }).observe({type: "longtask"});
  new MutationObserver(() => {
    if (window.watched.shown || !document.querySelector(".jupyter-ddp details")) return;
    requestAnimationFrame(() => setTimeout(() => { window.watched.shown ??= Date.now() / 1000; }));
  }).observe(document.body, {childList: true, subtree: true});
}"""


@dataclass
class Seen:
    """What one stream cost."""

    lag_s: float
    blocked_ms: float
    wrong: list[int]
    file_bytes: int
    told: list[tuple[float, int]]
    """When the live view was told something, and of how many bytes."""

    def check_rate(self) -> None:
        for at, _ in self.told:
            window = [size for time, size in self.told if at <= time < at + OVER_S]
            assert sum(window) <= MAX_BYTES_PER_S * OVER_S
            assert len(window) <= MAX_MESSAGES_PER_S * OVER_S


def stream(server: JupyterServer, browser: BrowserContext, n_ranks: int, seconds: float) -> Seen:
    """Show `n_ranks` simulated ranks for so long, in a notebook of their own."""
    name = f"stream-{n_ranks}-{seconds}"
    first = f"import sys\nsys.path.insert(0, {str(ROOT)!r})\nfrom tests.browser.simulated import stream"
    write_notebook(server.root / f"{name}.ipynb", [first, f"stream({n_ranks}, {seconds}, '{name}.json')"])
    page = NotebookPage(browser, server, "lab", f"{name}.ipynb")
    page.run(0, 60)
    page.page.evaluate(WATCH)
    page.start(1)
    # In the page: a search of the whole page from outside, twenty times a second, is what would be measured.
    page.page.wait_for_function("window.watched.shown", polling=200, timeout=(seconds + 50) * 1000)
    page.wait(1)
    watched = page.page.evaluate("window.watched")
    report = json.loads((server.root / f"{name}.json").read_text())
    page.save()
    assert page.errors == []
    page.close()
    return Seen(
        watched["shown"] - report["ended_at"],
        max(watched["blocked"]),
        report["wrong"],
        (server.root / f"{name}.ipynb").stat().st_size,
        report["told"],
    )


def test_every_rank_can_be_scrolled_to(server: JupyterServer, browser: BrowserContext) -> None:
    """Of many ranks side by side what comes into sight is drawn, to the last one."""
    first = f"import sys\nsys.path.insert(0, {str(ROOT)!r})\nfrom tests.browser.simulated import stream"
    write_notebook(server.root / "scroll.ipynb", [first, "stream(64, 8, 'scroll.json')"])
    page = NotebookPage(browser, server, "lab", "scroll.ipynb")
    page.run(0, 60)
    page.start(1)
    for rank in (0, 40, 63):
        part = page.page.locator(".jddp-part").nth(rank)
        part.scroll_into_view_if_needed()
        expect(part).to_contain_text(f"rank {rank} step")
    page.wait(1)
    page.close()


def test_a_thousand_ranks(server: JupyterServer, browser: BrowserContext) -> None:
    """1,024 ranks that write 100 lines a second each: nothing is missing, and the file stays small."""
    seen = stream(server, browser, 1024, 3)
    assert seen.wrong == []
    assert seen.file_bytes < MAX_FILE_BYTES
    seen.check_rate()
    assert seen.lag_s < 3 * MAX_LAG_S[1024], "far behind, even for a machine that others load"


@pytest.mark.slow
@pytest.mark.parametrize("n_ranks", MAX_LAG_S)
def test_ten_seconds(server: JupyterServer, browser: BrowserContext, n_ranks: int) -> None:
    """The browser is behind by less than is noticed, and never stuck."""
    seen = stream(server, browser, n_ranks, 10)
    assert seen.wrong == []
    assert seen.file_bytes < MAX_FILE_BYTES
    seen.check_rate()
    assert seen.lag_s <= MAX_LAG_S[n_ranks]
    assert seen.blocked_ms <= MAX_BLOCKED_MS.get(n_ranks, 2000)
