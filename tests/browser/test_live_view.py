"""The live view of a running cell, as a person sees and uses it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from playwright.sync_api import BrowserContext, Dialog, expect

from tests.browser.driver import JupyterServer, NotebookPage, eventually, write_notebook
from tests.unit.test_view_hostile import PAYLOADS

ROOT = Path(__file__).parents[2]
START = "%load_ext jupyter_ddp\n%ddp start -n 4"
UNTIL_GO = """
import pathlib, time
while not pathlib.Path("go").exists():
    time.sleep(0.02)
"""
STREAMS = """\
%%ddp
import pathlib, time
i = 0
while not pathlib.Path("go").exists():
    print("step", i, "of rank", rank)
    i += 1
    time.sleep(0.02)"""
SAME = f"""\
%%ddp
for i in range(30):
    print("the same line", i)
print("begun"){UNTIL_GO}"""
BARS = f"""\
%%ddp
import sys
print(f"\\r{{10 * rank + 10}}% done", end="", file=sys.stderr, flush=True){UNTIL_GO}"""
RICH = f"""\
%%ddp
from IPython.display import HTML, Image, display
import base64
pixel = (
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJ"
    "AAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
display(Image(base64.b64decode(pixel), width=40, alt="a dot"))
display(HTML(f"<table class='t'><tr><td>cell of rank {{rank}}</td></tr></table>"))
print("\\x1b[31mred\\x1b[0m and \\x1b[1mbold\\x1b[0m"){UNTIL_GO}"""
SEVERAL_SHOWN = f"""\
%%ddp
from IPython.display import HTML, display
print("the beginning of rank", rank)
for i in range(5):
    display(HTML(f"<b>output {{i}} of rank {{rank}}</b>")){UNTIL_GO}"""
LONG_LINES = f"""\
%%ddp
for i in range(9):
    print(f"rank {{rank}} line {{i}}", "and so on" * 100){UNTIL_GO}"""
DOTS = f"""\
%%ddp
import sys
print("." * 400 * bool(rank), f"9{{rank}}%", end="", file=sys.stderr, flush=True){UNTIL_GO}"""
BLOCKED = """\
%%ddp
print("before")
if rank == 2:
    1 / 0
dist.barrier()"""
HOSTILE = f"""\
%%ddp
import json, sys
for text in json.load(open("payloads.json")):
    print(text)
    print(text, file=sys.stderr)
image = "<img src=x onerror=alert(1)>"
display({{"text/plain": image, "text/latex": f"${{image}}$"}}, raw=True)
display({{"image/png": '" onerror="alert(1)', "text/plain": '" onload="alert(1)'}}, raw=True)
drawing = "<svg xmlns='http://www.w3.org/2000/svg' onload='alert(1)'><script>alert(1)</script></svg>"
display({{"image/svg+xml": drawing}}, raw=True)
print("all was shown"){UNTIL_GO}
raise type("<img src=x onerror=alert(1)>", (Exception,), {{}})("<script>alert(1)</script>")"""
NO_IMAGE = "ERR_INVALID_URL (data:image/png;base64,"
"""What the browser says of HOSTILE's image, whenever it draws it."""
FAILS_ALIKE = f"""\
%%ddp
print("written by rank", rank)
if rank < 2:
    {{}}[rank]{UNTIL_GO}"""
HANG = f"""\
%%ddp
kept = 1.0
print("on the way")
if rank == 1:
    {UNTIL_GO.strip().replace(chr(10), chr(10) + "    ")}
dist.barrier()"""
DEATH = f"""\
%%ddp
import os, signal
kept = 1.0
print("the last words" if rank == 3 else "alive", flush=True)
if rank == 3:
    os.kill(os.getpid(), signal.SIGKILL){UNTIL_GO}"""
HEAL = "%ddp heal"
AFTER = """\
%%ddp
t = torch.tensor([1.0 if rank == 3 else kept])
dist.all_reduce(t)
print("sum", t.item())"""
SILENT = f"%%ddp\n{UNTIL_GO.strip()}"
FLOOD = f"""\
%%ddp
for i in range(3000):
    print("row", i){UNTIL_GO}"""
SHOWN_IN_ALL = [SEVERAL_SHOWN, LONG_LINES, DOTS, FLOOD]
CELLS = [
    *[START, STREAMS, SAME, BARS, RICH, BLOCKED, HOSTILE, FAILS_ALIKE, HANG, DEATH, HEAL, AFTER, SILENT],
    *SHOWN_IN_ALL,
]


@pytest.fixture(scope="module")
def opened(server: JupyterServer, browser: BrowserContext) -> NotebookPage:
    write_notebook(server.root / "live.ipynb", CELLS)
    (server.root / "payloads.json").write_text(json.dumps(PAYLOADS))
    page = NotebookPage(browser, server, "lab", "live.ipynb")
    page.run(0, 60)
    return page


@pytest.fixture
def lab(server: JupyterServer, opened: NotebookPage) -> Iterator[NotebookPage]:
    """The shared notebook; the test must not have made the browser complain, and leaves no cell running."""
    opened.errors.clear()
    (server.root / "go").unlink(missing_ok=True)
    yield opened
    (server.root / "go").touch()
    for i in range(len(CELLS)):
        if opened.runs(i):
            opened.wait(i)
    opened.ready()  # a page that was loaded again does not know which cell runs
    assert [error for error in opened.errors if NO_IMAGE not in error] == []


class Live:
    """The live view under cell `i`."""

    def __init__(self, page: NotebookPage, i: int, timeout_s: float = 10.0) -> None:
        self.root = page.output(i).locator(".jddp")
        self.root.wait_for(timeout=timeout_s * 1000)
        self.tabs = self.root.get_by_role("tab")
        self.body = self.root.get_by_role("tabpanel")

    def tab(self, rank: int) -> None:
        self.root.get_by_role("tab", name=f"rank {rank}:").click()

    def sees(self, text: str) -> None:
        expect(self.body).to_contain_text(text, timeout=10_000)

    def sees_not(self, text: str) -> None:
        expect(self.body).not_to_contain_text(text, timeout=10_000)


def test_ranks_are_switched_while_the_kernel_is_busy(lab: NotebookPage) -> None:
    """Each rank has a tab with glyph and number; choosing one shows it alone, and more keeps coming."""
    cell = CELLS.index(STREAMS)
    lab.start(cell)
    live = Live(lab, cell)
    live.sees("of rank 3")
    assert live.tabs.all_inner_texts() == ["all", "…0", "…1", "…2", "…3"]
    live.tab(1)
    live.sees_not("of rank 0")
    live.sees("step 5 of rank 1")
    before = live.body.inner_text()
    eventually(lambda: live.body.inner_text() != before, 5, "more output of the rank that was chosen")
    assert lab.runs(cell)
    live.root.get_by_role("tab", name="all").click()
    live.sees("of rank 0")


def test_a_silent_cell_is_seen_to_run_and_leaves_nothing(lab: NotebookPage, server: JupyterServer) -> None:
    """After a second, with a clock that counts from its begin; what is saved is that of a short one."""
    cell = CELLS.index(SILENT)
    lab.start(cell)
    live = Live(lab, cell, 5)
    expect(live.root.locator(".jddp-clock")).to_have_text(re.compile(r"^[2-4] s$"), timeout=10_000)
    live.sees("no output so far")
    assert live.tabs.all_inner_texts() == ["all", "…0", "…1", "…2", "…3"]
    (server.root / "go").touch()
    lab.wait(cell)
    eventually(lambda: lab.text(cell) == "", 5, "an empty output")
    assert lab.save().cells[cell].outputs == []


def test_the_tail_is_followed_until_somebody_scrolls_up(lab: NotebookPage) -> None:
    """The newest line stays in sight; after scrolling up the text stands still, and a button goes back."""
    cell = CELLS.index(STREAMS)
    lab.start(cell)
    live = Live(lab, cell)
    live.tab(0)
    live.sees("step 60 of")
    at_end = "b => b.scrollHeight - b.scrollTop - b.clientHeight < 24"
    assert live.body.evaluate(at_end)
    live.body.hover()
    lab.page.mouse.wheel(0, -300)
    follow = live.root.get_by_role("button", name="Follow the newest output")
    follow.wait_for()
    top = live.body.evaluate("b => b.scrollTop")
    count = live.body.inner_text().count("\n")
    eventually(lambda: live.body.inner_text().count("\n") > count + 20, 5, "more lines")
    assert live.body.evaluate("b => b.scrollTop") == top
    follow.click()
    eventually(lambda: live.body.evaluate(at_end), 2, "the end again")
    live.sees("step 200 of")
    assert live.body.evaluate(at_end)


def test_the_keyboard_is_enough(lab: NotebookPage) -> None:
    """Arrow keys, Home and End go through the tabs, as a list of tabs is used everywhere; names are said."""
    cell = CELLS.index(STREAMS)
    lab.start(cell)
    live = Live(lab, cell)
    live.sees("of rank 3")
    live.root.get_by_role("tab", name="all").focus()
    for key, rank in (("ArrowRight", 0), ("ArrowRight", 1), ("End", 3), ("ArrowLeft", 2)):
        lab.page.keyboard.press(key)
        chosen = live.root.get_by_role("tab", selected=True)
        expect(chosen).to_have_attribute("aria-label", f"rank {rank}: running")
        expect(chosen).to_be_focused()
        live.sees(f"of rank {rank}")
    assert live.root.get_by_role("tablist", name="Ranks").count() == 1
    lab.page.keyboard.press("Home")
    live.sees("of rank 0")
    live.root.get_by_role("searchbox").focus()
    lab.page.keyboard.type("2-3")
    live.sees_not("of rank 0")
    live.sees("of rank 3")
    lab.page.keyboard.press("Escape")
    live.sees("of rank 0")


def test_the_search_finds_lines(lab: NotebookPage) -> None:
    """Text in the search box leaves the lines that have it, marked."""
    cell = CELLS.index(STREAMS)
    lab.start(cell)
    live = Live(lab, cell)
    live.sees("of rank 2")
    live.root.get_by_role("searchbox").fill("STEP 7 OF RANK 2")
    live.sees_not("rank 1")
    expect(live.body.locator("mark")).to_have_text("step 7 of rank 2", timeout=10_000)


def test_what_is_not_here_is_named_with_a_way_to_it(lab: NotebookPage) -> None:
    """Of a flood the browser has both ends: what is between them is counted, and a search says so too."""
    cell = CELLS.index(FLOOD)
    lab.start(cell)
    live = Live(lab, cell)
    live.sees("row 2999")
    way_on = "while the cell runs; when it has ended, %ddp log writes all of the text to a file"
    expect(live.body.locator(".jddp-head strong")).to_have_count(1, timeout=10_000)
    expect(live.body.locator(".jddp-head strong")).to_have_text("ranks 0–3")
    expect(live.body.locator(".jddp-gap")).to_have_text(re.compile(rf"^… 2,\d\d\d lines not shown {way_on}$"))
    live.root.get_by_role("searchbox").fill("row 1500")
    live.sees(f"nothing matches in the lines that are here {way_on}")


def test_identical_ranks_are_shown_once(lab: NotebookPage) -> None:
    """What all ranks write alike stands there once, under all their numbers."""
    cell = CELLS.index(SAME)
    lab.start(cell)
    live = Live(lab, cell)
    live.sees("begun")
    expect(live.body.locator(".jddp-head strong")).to_have_text("ranks 0–3")
    live.sees("identical")
    assert live.body.inner_text().count("the same line 29") == 1


def test_a_progress_bar_is_one_row_for_each_rank(lab: NotebookPage) -> None:
    """Lines that are drawn again and again stand below one another, each under its rank's number."""
    cell = CELLS.index(BARS)
    lab.start(cell)
    live = Live(lab, cell)
    rows = live.body.locator(".jddp-open-rank")
    expect(rows).to_have_count(4, timeout=10_000)
    texts = [" ".join(text.split()) for text in rows.all_inner_texts()]
    assert texts == [f"rank {r} {10 * r + 10}% done" for r in range(4)]


def test_outputs_without_a_place_are_counted(lab: NotebookPage) -> None:
    """Side by side a rank shows its last output, says how many there are besides, and alone shows all."""
    cell = CELLS.index(SEVERAL_SHOWN)
    lab.start(cell)
    live = Live(lab, cell)
    live.sees("output 4 of rank 3")
    part = live.body.locator("section").first
    expect(part.locator(".jddp-more")).to_have_text("5 outputs")
    expect(part.locator(".jddp-gap")).to_have_text("… 4 outputs not shown here; select the rank to see them")
    live.sees_not("output 3 of rank 0")
    live.tab(0)
    live.sees("output 0 of rank 0")
    expect(live.body.locator(".jddp-gap")).to_have_count(0)


def test_long_lines_leave_room_for_the_other_ranks(lab: NotebookPage) -> None:
    """Side by side a line takes two rows at most and the ranks one screen; alone it is whole."""
    cell = CELLS.index(LONG_LINES)
    lab.start(cell)
    live = Live(lab, cell)
    live.sees("rank 3 line 8")
    heights = "b => [...b.querySelectorAll('.jddp-l')].map(line => line.clientHeight)"
    assert live.body.evaluate("b => b.scrollHeight - b.clientHeight") <= 1
    assert 20 < max(live.body.evaluate(heights)) < 45
    live.tab(2)
    live.sees("rank 2 line 0")
    assert min(live.body.evaluate(heights)) > 90


def test_of_a_long_unfinished_line_the_end_is_seen(lab: NotebookPage) -> None:
    """Progress made of dots shows how far it is; a bar that fits stays as it is."""
    cell = CELLS.index(DOTS)
    lab.start(cell)
    live = Live(lab, cell)
    rows = live.body.locator(".jddp-open-rank")
    expect(rows).to_have_count(4, timeout=10_000)
    in_sight = """r => [...r].map(row => {
        const room = row.getBoundingClientRect();
        const text = row.querySelector(".jddp-end > span > span").getBoundingClientRect();
        return [text.right <= room.right + 1, text.left >= room.left, !!row.querySelector(".jddp-cut")];
    })"""
    eventually(
        lambda: rows.evaluate_all(in_sight) == [[True, True, False], *[[True, False, True]] * 3],
        5,
        "the ends of the lines",
    )


def test_figures_tables_and_colours(lab: NotebookPage) -> None:
    """Rich output stands under its rank while the cell runs, with its colours."""
    cell = CELLS.index(RICH)
    lab.start(cell)
    live = Live(lab, cell)
    live.sees("cell of rank 3")
    live.tab(2)
    live.sees_not("cell of rank 3")
    expect(live.body.locator("table.t td")).to_have_text("cell of rank 2")
    image = live.body.locator("img")
    expect(image).to_have_attribute("width", "40")
    assert image.evaluate("i => i.naturalWidth") == 1
    expect(live.body.locator(".ansi-red-fg")).to_have_text("red")


def test_an_error_is_seen_before_the_cell_ends(lab: NotebookPage) -> None:
    """The rank that failed comes first, with its traceback, while the others still wait for it."""
    cell = CELLS.index(BLOCKED)
    lab.start(cell)
    live = Live(lab, cell)
    live.sees("ZeroDivisionError: division by zero")
    assert live.tabs.all_inner_texts()[1:] == ["…0", "…1", "✗2", "…3"]
    assert live.body.locator("section").first.get_attribute("aria-label") == "✗ rank 2 · ZeroDivisionError"
    lab.wait(cell)
    assert lab.output(cell).locator(".jddp").count() == 0


def test_tracebacks_are_folded_by_their_cause(server: JupyterServer, lab: NotebookPage) -> None:
    """Two ranks that failed at the same place share its lines, live and saved; each alone has them all."""
    cell = CELLS.index(FAILS_ALIKE)
    lab.start(cell)
    live = Live(lab, cell)
    live.sees("KeyError: 1  (traceback as on rank 0)")
    assert live.body.inner_text().count("----> 4") == 1
    live.tab(1)
    live.sees("----> 4")
    live.sees("written by rank 1")
    (server.root / "go").touch()
    lab.wait(cell)
    assert lab.text(cell).count("----> 4") == 1
    assert "KeyError: 1  (traceback as on rank 0)" in lab.text(cell)


def test_no_hostile_text_is_more_than_text(server: JupyterServer, lab: NotebookPage) -> None:
    """More than a hundred payloads, live, saved, and in nbconvert's page: none of them runs."""
    dialogs: list[str] = []

    def note(dialog: Dialog) -> None:
        dialogs.append(dialog.message)
        dialog.dismiss()

    lab.page.on("dialog", note)
    cell = CELLS.index(HOSTILE)
    lab.start(cell)
    live = Live(lab, cell)
    live.sees("all was shown")
    allowed = {"DIV", "SPAN", "SECTION", "BUTTON", "STRONG", "IMG", "EM", "INPUT"}
    for which in ("all", "2"):
        live.root.locator(f"[data-rank='{which}']").click()
        live.sees("all was shown")
        found = live.root.evaluate("r => [...r.querySelectorAll('*')].map(e => e.tagName)")
        assert set(found) <= allowed
        names = "r => [...r.querySelectorAll('*')].flatMap(e => e.getAttributeNames())"
        assert not [name for name in live.root.evaluate(names) if name.startswith("on")]
    (server.root / "go").touch()
    lab.wait(cell)
    assert "<script>alert(1)</script>" in lab.text(cell)
    lab.save()
    command = [sys.executable, "-m", "nbconvert", "--to", "html", "live.ipynb", "--output", "page.html"]
    subprocess.run(command, cwd=server.root, check=True, timeout=60, capture_output=True)
    page = lab.page.context.new_page()
    page.on("dialog", note)
    page.goto((server.root / "page.html").as_uri())
    assert "all was shown" in page.inner_text("body")
    page.close()
    lab.page.remove_listener("dialog", note)
    assert dialogs == []


def test_a_page_that_is_loaded_again_goes_on(
    server: JupyterServer, browser: BrowserContext, lab: NotebookPage
) -> None:
    """After a reload in mid-run the view is there with what came before, goes on, and says how it ended."""
    cell = CELLS.index(STREAMS)
    lab.start(cell)
    live = Live(lab, cell)
    live.tab(0)
    live.sees("step 20 of rank 0")
    lab.save()
    lab.page.reload()
    live = Live(lab, cell, 60)
    live.tab(3)
    live.sees("of rank 3")
    before = live.body.inner_text()
    eventually(lambda: live.body.inner_text() != before, 10, "more output after the reload")
    assert live.tabs.nth(1).inner_text() == "…0"
    (server.root / "go").touch()
    expect(live.tabs.nth(1)).to_have_attribute("aria-label", "rank 0: ok", timeout=10_000)
    live.tab(0)
    live.sees("step 20 of rank 0")
    expect(live.root.locator(".jddp-note")).to_contain_text("the cell has ended", timeout=10_000)
    last = live.body.locator(".jddp-l").last.inner_text()
    lab.page.reload()
    lab.ready()
    live = Live(lab, cell, 60)
    assert [text[0] for text in live.tabs.all_inner_texts()[1:]] == ["✓"] * 4
    live.tab(0)
    live.sees(last)
    go = CELLS.index(SAME)
    for _ in range(3):  # views of cells that have ended are not kept for ever
        lab.run(go)
    assert live.tabs.nth(1).inner_text() == "✓0"
    live.tab(0)
    live.sees(last)
    lab.errors.clear()  # what the application itself says while it loads


def test_a_hang_is_explained_and_can_be_interrupted(lab: NotebookPage) -> None:
    """After 10 s without a click: who waits where, and for whom. The square frees them; variables stay."""
    cell = CELLS.index(HANG)
    lab.start(cell)
    live = Live(lab, cell)
    live.sees("on the way")
    note = live.root.locator(".jddp-note.jddp-urgent")
    expect(note).to_contain_text("waiting: rank 1 has not entered barrier", timeout=25_000)
    expect(note).to_contain_text("ranks 0,2-3 wait for it")
    expect(note).to_contain_text("(line 8)")
    assert live.root.get_by_role("status").filter(has_text="waiting").count() == 1  # it is read out
    assert lab.runs(cell)
    lab.interrupt()
    lab.wait(cell, 10)
    assert "RankError: rank 1: interrupted (line" in lab.text(cell)
    assert "waiting: " not in lab.text(cell)
    lab.run(CELLS.index(AFTER))
    assert "sum 4.0" in lab.text(CELLS.index(AFTER))


def test_a_dead_rank_is_seen_at_once(server: JupyterServer, lab: NotebookPage) -> None:
    """While the others go on: which rank, why, its last words, what survived and what helps. It does help."""
    cell = CELLS.index(DEATH)
    lab.start(cell)
    live = Live(lab, cell)
    live.sees("killed by SIGKILL")
    assert live.tabs.all_inner_texts()[1:] == ["…0", "…1", "…2", "☠3"]
    first = live.body.locator("section").first
    assert first.get_attribute("aria-label").startswith("☠ rank 3 · died: killed by SIGKILL")
    expect(first).to_contain_text("the last words")
    expect(live.root.locator(".jddp-note.jddp-urgent")).to_have_text(
        "rank 3 died: ranks 0-2 keep all variables; %ddp heal replaces rank 3"
    )
    assert lab.runs(cell)
    (server.root / "go").touch()
    lab.wait(cell, 10)
    assert "RankError: rank 3: killed by SIGKILL" in lab.text(cell)
    assert "%ddp heal replaces rank 3" in lab.text(cell)
    lab.run(CELLS.index(HEAL))
    assert "rank 3 replaced" in lab.text(CELLS.index(HEAL))
    lab.run(CELLS.index(AFTER))
    assert "sum 4.0" in lab.text(CELLS.index(AFTER))


def test_the_dark_theme(lab: NotebookPage) -> None:
    """Text and its background come from the theme, and can be told apart."""
    cell = CELLS.index(STREAMS)
    lab.start(cell)
    live = Live(lab, cell)
    live.sees("of rank 3")
    for theme, dark in (("JupyterLab Dark", True), ("JupyterLab Light", False)):
        lab.theme(theme)
        fits = partial(_fits, live, dark)
        eventually(fits, 10, f"colours of the theme {theme}")


def _fits(live: Live, dark: bool) -> bool:
    colours = "e => [getComputedStyle(e).color, getComputedStyle(e).backgroundColor]"
    text, background = map(_luma, live.root.evaluate(colours))
    return text > 150 and background < 60 if dark else text < 60 and background > 200


def _luma(colour: str) -> float:
    red, green, blue = (
        float(c) for c in colour.removeprefix("rgba(").removeprefix("rgb(").rstrip(")").split(",")[:3]
    )
    return 0.299 * red + 0.587 * green + 0.114 * blue
