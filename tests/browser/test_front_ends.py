"""Point 4 of the issue, as a person sees it: a cell on four ranks in JupyterLab, and in Notebook 7."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Iterator

import nbformat
import pytest
from playwright.sync_api import BrowserContext, expect

from tests.browser.driver import JupyterServer, NotebookPage, write_notebook

START = "%load_ext jupyter_ddp\n%ddp start -n 4"
LIVE = """\
%%ddp
import pathlib, time
print("begun on rank", rank)
print("the same everywhere")
while not pathlib.Path("go").exists():
    time.sleep(0.02)
print("ended on rank", rank)"""
BLOCKED = """\
%%ddp
t = torch.ones(1)
if rank == 2:
    1 / 0
dist.all_reduce(t)"""
AFTER = """\
%%ddp
t = torch.ones(1)
dist.all_reduce(t)
print("sum:", t.item())"""
LOOP = """\
%%ddp
n = 0
print("counting")
while True:
    n += 1"""
SURVIVED = """\
%%ddp
print("counted:", n > 0)"""
FAILS = "%%ddp\nprint(f'{rank} < 2 & <b>3</b>')\n1 / (rank - 2)"
CELLS = [START, LIVE, BLOCKED, AFTER, LOOP, SURVIVED, FAILS]


@pytest.fixture(scope="module")
def opened(server: JupyterServer, browser: BrowserContext) -> NotebookPage:
    """A notebook in JupyterLab whose pool of four ranks stands."""
    write_notebook(server.root / "cells.ipynb", CELLS)
    page = NotebookPage(browser, server, "lab", "cells.ipynb")
    page.run(CELLS.index(START), 60)
    return page


@pytest.fixture
def lab(opened: NotebookPage) -> Iterator[NotebookPage]:
    """The shared notebook; the test must not have made the browser complain."""
    opened.errors.clear()
    yield opened
    assert opened.errors == []


def assert_static(cell: nbformat.NotebookNode) -> None:
    """What is saved of a cell: text, the static page, an error; no widget, nothing of a running cell."""
    for output in cell.outputs:
        assert output.output_type in ("stream", "display_data", "error"), output
        if output.output_type == "display_data":
            assert {"text/plain"} <= set(output.data) <= {"text/plain", "text/html"}
            assert output.metadata == {}


def lines(text: str) -> list[str]:
    """Lines with something in them: how far they are apart is a matter of style."""
    return [line for line in text.splitlines() if line.strip()]


def test_output_appears_while_the_cell_runs(server: JupyterServer, lab: NotebookPage) -> None:
    """The first lines are there long before the cell ends; at its end the static page takes their place."""
    cell, go = CELLS.index(LIVE), server.root / "go"
    began = time.monotonic()
    lab.start(cell)
    lab.see(cell, "begun on rank 3", 10)
    seen_after_s = time.monotonic() - began
    assert lab.runs(cell)
    assert "ended on rank" not in lab.text(cell)
    assert all(f"…{rank}" in lab.text(cell) for rank in range(4))  # the strip: all are running
    go.touch()
    lab.wait(cell)
    go.unlink()
    assert seen_after_s < 2, "the first line came late"
    text = lab.text(cell)
    for rank in range(4):
        assert f"begun on rank {rank}\nthe same everywhere\nended on rank {rank}" in text
    assert "…" not in text
    assert lab.output(cell).locator("details").count() == 4
    assert_static(lab.save().cells[cell])


def test_an_error_on_one_rank(lab: NotebookPage) -> None:
    """The strip says how each rank ended, the traceback is rank 2's alone, and the cell fails in one line."""
    cell = CELLS.index(BLOCKED)
    lab.run(cell)
    text = lab.text(cell)
    assert text.startswith("◼0 ◼1 ✗2 ◼3"), text
    assert text.count("rank 2 · ZeroDivisionError") == 1
    assert "blocked by rank 2" in text
    last = lab.output(cell).locator(".jp-OutputArea-output").last
    assert last.inner_text().splitlines() == [
        "RankError: rank 2: ZeroDivisionError: division by zero (line 4); "
        "ranks 0-1,3: blocked by rank 2 (line 5)"
    ]
    assert_static(lab.save().cells[cell])
    lab.run(CELLS.index(AFTER))
    assert "sum: 4.0" in lab.text(CELLS.index(AFTER))


def test_the_interrupt_button(lab: NotebookPage) -> None:
    """The square ends a loop on every rank; what was printed and the variables stay."""
    cell = CELLS.index(LOOP)
    lab.start(cell)
    lab.see(cell, "counting")
    lab.interrupt()
    lab.wait(cell, 10)
    text = lab.text(cell)
    assert text.startswith("◼0 ◼1 ◼2 ◼3"), text
    assert "counting" in text
    assert "RankError: ranks 0-3: interrupted" in text
    lab.run(CELLS.index(SURVIVED))
    assert "counted: True" in lab.text(CELLS.index(SURVIVED))


def test_a_saved_notebook_is_read_again(
    server: JupyterServer, browser: BrowserContext, lab: NotebookPage
) -> None:
    """With its kernel gone and nobody's trust, the notebook shows what it showed."""
    cell = CELLS.index(FAILS)
    lab.run(cell)
    shown = lab.text(cell)
    assert "0 < 2 & <b>3</b>" in shown
    saved = lab.save()
    server.end_kernels()
    lab.close()
    saved.metadata["changed_by"] = "somebody else, so that the server does not know it as its own"
    nbformat.write(saved, server.root / "copy.ipynb")
    again = NotebookPage(browser, server, "lab", "copy.ipynb")
    assert lines(again.text(cell)) == lines(shown)
    assert again.output(cell).locator("details[open]").count() == 4
    assert "rror displaying widget" not in again.page.content()
    again.close()
    assert again.errors == []


@pytest.mark.skipif(importlib.util.find_spec("notebook") is None, reason="Notebook 7 is not installed")
def test_notebook_7(server: JupyterServer, browser: BrowserContext) -> None:
    """The same in Notebook 7: live, then static, and an error's line; the panel hears while a cell runs."""
    cells = [START, LIVE, FAILS, "%ddp"]
    write_notebook(server.root / "seven.ipynb", cells)
    page = NotebookPage(browser, server, "notebook", "seven.ipynb")
    page.errors.clear()  # what the application itself says while it loads
    page.run(0, 60)
    page.run(3)
    page.start(1)
    page.see(1, "begun on rank 0", 10)
    assert page.runs(1)
    panel = page.output(3).locator(".jddp-panel")
    expect(panel).to_contain_text("▶ running", timeout=10_000)
    panel.get_by_role("button", name="Where").click()
    expect(panel.locator(".jddp-said")).to_contain_text("sleeping", timeout=10_000)
    assert page.runs(1)
    (server.root / "go").touch()
    page.wait(1)
    (server.root / "go").unlink()
    assert "ended on rank 3" in page.text(1)
    page.run(2)
    assert page.text(2).startswith("✓0 ✓1 ✗2 ✓3")
    assert "RankError: rank 2: ZeroDivisionError: division by zero (line 3)" in page.text(2)
    for cell in page.save().cells[:3]:
        assert_static(cell)
    page.close()
    assert page.errors == []
