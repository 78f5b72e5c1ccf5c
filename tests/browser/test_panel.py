"""The panel in JupyterLab: it shows the cluster while a cell runs, and its buttons act then."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from playwright.sync_api import BrowserContext, Locator

from tests.browser.driver import JupyterServer, NotebookPage, eventually, write_notebook

START = "%load_ext jupyter_ddp\n%ddp start -n 4"
PANEL = "%ddp"
AGAIN = "get_ipython().magics_manager.registry['DDPMagics'].cluster"
LOOP = "%%ddp\nn = 0\nwhile True:\n    n += 1"
HOSTILE = "%%ddp\nif rank == 3:\n    raise ValueError('<img src=x onerror=alert(1)>')"
SURVIVED = "%%ddp\nprint('kept:', n > 0)"
CELLS = [START, PANEL, AGAIN, LOOP, SURVIVED, HOSTILE]


@pytest.fixture(scope="module")
def opened(server: JupyterServer, browser: BrowserContext) -> NotebookPage:
    """A notebook in JupyterLab with a pool of four ranks and two panels."""
    write_notebook(server.root / "panel.ipynb", CELLS)
    page = NotebookPage(browser, server, "lab", "panel.ipynb")
    page.run(CELLS.index(START), 60)
    page.run(CELLS.index(PANEL))
    page.run(CELLS.index(AGAIN))
    page.see(CELLS.index(AGAIN), "4 ranks · gloo")
    return page


@pytest.fixture
def lab(opened: NotebookPage) -> Iterator[NotebookPage]:
    opened.errors.clear()
    yield opened
    assert opened.errors == []


def button(lab: NotebookPage, source: str, name: str) -> Locator:
    return lab.output(CELLS.index(source)).get_by_role("button", name=name)


def see(lab: NotebookPage, text: str, timeout_s: float = 10.0) -> None:
    """Both panels show it: they agree."""
    for source in (PANEL, AGAIN):
        lab.see(CELLS.index(source), text, timeout_s)


def test_an_idle_pool(lab: NotebookPage) -> None:
    """A row for each rank: its state by sign and word, its memory; nothing to interrupt or to heal."""
    see(lab, "4 ranks · gloo · ready")
    see(lab, "MiB")
    text = lab.text(CELLS.index(PANEL))
    assert text.count("✓ idle") == 4
    assert text.count("cpu") == 4
    assert button(lab, PANEL, "Interrupt").is_disabled()
    assert button(lab, PANEL, "Heal").is_disabled()


def test_it_shows_and_interrupts_a_running_cell(lab: NotebookPage) -> None:
    """While the notebook kernel is busy the panel says where each rank is, and its Interrupt works."""
    loop = CELLS.index(LOOP)
    lab.start(loop)
    see(lab, "▶ running")
    see(lab, ", line ")
    assert lab.runs(loop)
    button(lab, AGAIN, "Interrupt").click()
    lab.wait(loop, 10)
    assert "interrupted" in lab.text(loop)
    see(lab, "interrupt sent")
    see(lab, "✓ idle")
    lab.run(CELLS.index(SURVIVED))
    assert "kept: True" in lab.text(CELLS.index(SURVIVED))


def test_the_last_error_is_text(lab: NotebookPage) -> None:
    """A rank's words stand in its row as they are, and run nothing."""
    lab.run(CELLS.index(HOSTILE))
    see(lab, "ValueError: <img src=x onerror=alert(1)> (line 3)")
    assert lab.output(CELLS.index(PANEL)).locator("img").count() == 0


def test_what_loses_variables_asks_first(lab: NotebookPage) -> None:
    """Stop says what is lost and stops at the second press; Escape takes it back. Both panels know."""
    stop = button(lab, PANEL, "Stop")
    stop.click()
    assert stop.inner_text() == "Stop: lose every rank's variables?"
    stop.press("Escape")
    assert stop.inner_text() == "Stop"
    stop.click()
    stop.click()
    see(lab, "no pool: ")
    see(lab, "the pool was stopped")
    assert eventually(lambda: stop.is_disabled(), 5, "nothing is left to stop")
