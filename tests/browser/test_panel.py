"""The panel in JupyterLab: it shows the cluster while a cell runs, and its buttons act then."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import nbformat
import pytest
from playwright.sync_api import BrowserContext, Locator, expect

from tests.browser.driver import JupyterServer, NotebookPage, eventually, write_notebook

START = "%load_ext jupyter_ddp\n%ddp start -n 4"
PANEL = "%ddp"
AGAIN = "get_ipython().magics_manager.registry['DDPMagics'].cluster"
LOOP = "%%ddp\nn = 0\nwhile True:\n    n += 1"
HOSTILE = "%%ddp\nif rank == 3:\n    raise ValueError('<img src=x onerror=alert(1)>')"
SURVIVED = "%%ddp -t 0-2\nprint('kept:', n > 0)"
KILLED = "%%ddp\nimport os, signal\nif rank == 3:\n    os.kill(os.getpid(), signal.SIGKILL)"
STATUS = "%ddp status"
CELLS = [START, PANEL, AGAIN, STATUS, LOOP, SURVIVED, HOSTILE, KILLED]


@pytest.fixture(scope="module")
def opened(server: JupyterServer, browser: BrowserContext) -> NotebookPage:
    """A notebook in JupyterLab with a pool of four ranks and two panels."""
    write_notebook(server.root / "panel.ipynb", CELLS)
    page = NotebookPage(browser, server, "lab", "panel.ipynb")
    page.run(CELLS.index(START), 60)
    page.run(CELLS.index(PANEL))
    page.run(CELLS.index(AGAIN))
    page.run(CELLS.index(STATUS))
    panel(page, AGAIN).get_by_text("4 ranks · gloo").wait_for()
    return page


@pytest.fixture
def lab(opened: NotebookPage) -> Iterator[NotebookPage]:
    opened.errors.clear()
    yield opened
    assert opened.errors == []


def panel(lab: NotebookPage, source: str) -> Locator:
    return lab.output(CELLS.index(source)).locator(".jddp-panel")


def button(lab: NotebookPage, source: str, name: str) -> Locator:
    return lab.output(CELLS.index(source)).get_by_role("button", name=name)


def see(lab: NotebookPage, text: str, timeout_s: float = 10.0) -> None:
    """Both panels show it: they agree."""
    for source in (PANEL, AGAIN):
        expect(panel(lab, source)).to_contain_text(text, timeout=timeout_s * 1000)


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
    button(lab, PANEL, "Where").click()
    for source in (PANEL, AGAIN):
        said = lab.output(CELLS.index(source)).locator(".jddp-said")
        expect(said).to_contain_text("rank", timeout=10_000)
        expect(said).to_contain_text("line", timeout=10_000)
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


def test_a_dead_rank_is_healed(lab: NotebookPage) -> None:
    """The panel says how it died and what helps; Heal does that, and the others keep their variables."""
    lab.run(CELLS.index(KILLED))
    see(lab, "rank 3 died: Heal, or %ddp heal")
    see(lab, "killed by SIGKILL")
    assert "☠ dead" in lab.text(CELLS.index(PANEL))
    button(lab, AGAIN, "Heal").click()
    see(lab, "rank 3 replaced", 30)
    see(lab, "4 ranks · gloo · ready")
    assert lab.text(CELLS.index(AGAIN)).count("✓ idle") == 4
    lab.run(CELLS.index(SURVIVED))
    assert "kept: True" in lab.text(CELLS.index(SURVIVED))


def test_what_loses_variables_asks_first(lab: NotebookPage) -> None:
    """Restart and Stop say what is lost, and act at the second press; Escape takes it back."""
    restart = button(lab, PANEL, "Restart")
    restart.click()
    assert restart.inner_text() == "Restart: lose every rank's variables?"
    restart.press("Enter")
    eventually(lambda: lab.text(CELLS.index(AGAIN)).count("✓ idle") == 4, 30, "a new pool")
    see(lab, "4 ranks on cpu, gloo", 30)
    lab.run(CELLS.index(SURVIVED))
    assert "name 'n' is not defined" in lab.text(CELLS.index(SURVIVED))
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


def test_a_saved_panel_is_a_table(server: JupyterServer, browser: BrowserContext, lab: NotebookPage) -> None:
    """With its notebook kernel gone the panel says so. Strict nbval, nbconvert and a page that is opened
    again find a table of what is the same in every run, as `%ddp status` shows it from the start."""
    saved = lab.save()
    shown = [CELLS.index(source) for source in (START, PANEL, AGAIN, STATUS)]
    for i in shown[1:]:
        assert set(saved.cells[i].outputs[0].data) == {"text/plain", "text/html"}
    saved.cells = [saved.cells[i] for i in shown]
    nbformat.write(saved, server.root / "saved.ipynb")
    lab.page.reload()
    lab.ready()
    see(lab, "no pool: ")  # the panels are there again
    server.end_kernels()
    for command in (
        ["pytest", "--nbval", "--nbval-current-env", "-q", "-p", "no:cacheprovider", "saved.ipynb"],
        ["nbconvert", "--to", "html", "saved.ipynb", "--output", "saved.html"],
    ):
        command = [sys.executable, "-m", *command]
        done = subprocess.run(command, cwd=server.root, timeout=90, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    page = browser.new_page()
    page.goto((server.root / "saved.html").as_uri())
    expect(page.locator(".jupyter-ddp-table td")).to_have_count(2 * 4 * 3)
    assert page.inner_text("body").count("4 ranks · gloo · ready") == 3
    page.close()
    see(lab, "no news for 12 s: the notebook kernel has ended", 15)
    assert button(lab, PANEL, "Restart").is_disabled()
    lab.close()
    again = NotebookPage(browser, server, "lab", "panel.ipynb")
    for i in shown[1:3]:
        expect(again.output(i).locator(".jupyter-ddp-table")).to_be_visible()
        assert again.text(i).splitlines()[0] == "4 ranks · gloo · ready"
        assert "rror displaying" not in again.text(i)
    again.close()
    lab.errors.clear()  # what the application says while it loads
