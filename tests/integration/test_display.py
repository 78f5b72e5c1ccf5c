"""Point 4 of the issue: what stands under the cell, while it runs and when it is saved."""

from __future__ import annotations

import html
import itertools
import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

from tests.integration.notebook_kernel import Cell, NotebookKernel

RANKS = 4
MAX_UPDATES_PER_S = 10


def only_page(cell: Cell) -> dict[str, str]:
    """The one static bundle that is all a cell shows."""
    assert len(cell.outputs) == 1, cell.outputs
    assert cell.outputs[0]["output_type"] == "display_data"
    page = cell.outputs[0]["data"]
    assert set(page) == {"text/plain", "text/html"}
    return dict(page)


def ranks_section(page: str, rank: int) -> str:
    """The part of a page's HTML that is under one rank."""
    sections = re.findall(r"<details.*?</details>", page, re.DOTALL)
    return next(s for s in sections if re.search(rf"<summary[^>]*>(<strong>)?rank {rank}\b", s))


# --- in batch -------------------------------------------------------------------------------------


def test_batch_shows_one_static_bundle(nb: NotebookKernel) -> None:
    """In batch a cell leaves one output, text and HTML, displayed once."""
    cell = nb.good("%%ddp\nfor i in range(3):\n    print('line', i, rank)\n!echo shell\nrank")
    page = only_page(cell)
    assert cell.counted("update_display_data", "stream", "comm_open", "clear_output") == 0
    for rank in range(4):
        assert f"line 2 {rank}" in page["text/plain"]
        assert f"line 2 {rank}" in page["text/html"]


def test_a_silent_cell_shows_nothing(nb: NotebookKernel) -> None:
    """Without output there is no output: no empty box, no message."""
    for live in (False, True):
        nb.live = live
        cell = nb.good("%%ddp\nx = 1")
        assert cell.outputs == []
        assert cell.counted("display_data", "update_display_data", "stream") == 0


def test_identical_output_is_folded(nb: NotebookKernel) -> None:
    """What all ranks wrote alike stands there once, under all their numbers."""
    page = only_page(nb.good("%%ddp\nprint('same everywhere')"))
    assert page["text/plain"].count("same everywhere") == 1
    assert page["text/html"].count("same everywhere") == 1
    assert "ranks 0–3 · identical" in page["text/plain"]


def test_groups_that_differ(nb: NotebookKernel) -> None:
    """Ranks that wrote alike are together, in rank order: `0,2–3` and `1`."""
    text = only_page(nb.good("%%ddp\nprint('odd one' if rank == 1 else 'the rest')"))["text/plain"]
    assert re.search(r"ranks 0,2[–,]3 · identical.*\nthe rest\n.*rank 1.*\nodd one", text), text


def test_pages_are_ordered_by_rank_and_the_same_each_time(nb: NotebookKernel) -> None:
    """However the ranks' timing falls out, the saved bundle is the same, rank after rank."""
    code = (
        "%%ddp\nimport time\nfor i in range(5):\n    print(rank, i, flush=True)\n"
        "    time.sleep(0.002 * ((rank * 7 + i) % 4))"
    )
    pages = [only_page(nb.good(code)) for _ in range(5)]
    assert all(page == pages[0] for page in pages)
    shown = [line.split() for line in pages[0]["text/plain"].splitlines() if line[:1].isdigit()]
    assert shown == [[str(rank), str(i)] for rank in range(4) for i in range(5)]


def test_no_volatile_numbers(nb: NotebookKernel) -> None:
    """The bundle holds no PID, port or id of this run."""
    pids = [str(pid) for pid in [nb.pid, *nb.rank_pids()]]
    page = only_page(nb.good("%%ddp\nprint('text')\nrank"))
    port = nb.ranks("import os; int(os.environ['MASTER_PORT'])").values[0]
    for number in [*pids, str(port)]:
        assert number not in page["text/plain"] + page["text/html"]


def test_text_of_ranks_is_escaped(nb: NotebookKernel) -> None:
    """Markup that a rank prints is text in the page."""
    page = only_page(nb.good("%%ddp\nprint('<script>alert(1)</script><b>&amp;')"))
    assert "<script>" not in page["text/html"]
    assert "<script>alert(1)</script><b>&amp;" in html.unescape(page["text/html"])


# --- rich output ----------------------------------------------------------------------------------


def test_html_and_values(nb: NotebookKernel) -> None:
    """display(HTML(…)) passes as it is, under its rank; a value's repr stands under its rank."""
    page = only_page(
        nb.good(
            "%%ddp\nfrom IPython.display import HTML, display\n"
            "display(HTML(f'<b>bold {rank}</b>'))\n{'r': rank}"
        )
    )
    for rank in range(4):
        assert f"<b>bold {rank}</b>" in ranks_section(page["text/html"], rank)
        assert f"{{'r': {rank}}}" in html.unescape(ranks_section(page["text/html"], rank))
        assert f"{{'r': {rank}}}" in page["text/plain"]


def test_matplotlib_figures(nb: NotebookKernel) -> None:
    """A figure appears as a PNG image under each rank without plt.show()."""
    page = only_page(
        nb.good("%%ddp\nimport matplotlib.pyplot as plt\nplt.plot([0, rank])\nplt.title(f'rank {rank}');", 60)
    )
    for rank in range(4):
        assert "data:image/png;base64," in ranks_section(page["text/html"], rank)
    again = nb.good("%%ddp\npass")
    assert again.outputs == []  # the figure of the cell before is closed


def test_pandas_tables(nb: NotebookKernel) -> None:
    """A DataFrame is a table under its rank."""
    page = only_page(nb.good("%%ddp\nimport pandas as pd\npd.DataFrame({'column': [rank * 100 + 5]})", 60))
    for rank in range(4):
        section = ranks_section(page["text/html"], rank)
        assert "<table" in section
        assert f"<td>{rank * 100 + 5}</td>" in section


def test_display_id_updates(nb: NotebookKernel) -> None:
    """A display that is updated shows its last state, once; so does a handle of an earlier display."""
    page = only_page(
        nb.good(
            "%%ddp\nhandle = display('first', display_id=True)\nfor i in range(3):\n"
            "    handle.update(f'state {i}')\nprint('end')"
        )
    )
    assert "first" not in page["text/plain"]
    assert page["text/plain"].count("state 2") == 1
    assert "state 1" not in page["text/plain"]


@pytest.mark.parametrize("live", [False, True])
def test_an_earlier_cells_display_is_updated(nb: NotebookKernel, live: bool) -> None:
    """On its own page, rank by rank."""
    nb.live = live
    first = nb.good("%%ddp\nhandle = display(f'first {rank}', display_id=True)\nprint('below')")
    cell = nb.good("%%ddp -t 1\nhandle.update('second')")
    for _, message in cell.messages:
        if message["msg_type"] == "update_display_data":
            first.take(message)
    text = only_page(first)["text/plain"]
    assert "first 1" not in text
    assert text.count("second") == text.count("first 0") == 1
    assert cell.outputs == []
    assert "second" in only_page(first)["text/html"]


def test_an_update_of_what_nobody_displayed_is_said(nb: NotebookKernel) -> None:
    """One line, whatever the number of updates."""
    page = only_page(nb.good("%%ddp\nfor i in range(3): display(i, display_id='nowhere', update=True)"))
    assert page["text/plain"].count("no display 'nowhere'") == 1


def test_clear_output(nb: NotebookKernel) -> None:
    """clear_output() empties the rank's own display, and no other's; the record keeps all text."""
    ranks = nb.ranks(
        "from IPython.display import clear_output\nprint('first', rank)\n"
        "if rank == 0:\n    clear_output(wait=True)\n    print('second')"
    )
    text = ranks.cell.text
    assert "first 0" not in text
    assert "second" in text
    assert "first 1" in text
    assert ranks[0]["stdout"] == "first 0\nsecond\n"


# --- live -----------------------------------------------------------------------------------------


def test_live_ends_as_the_static_page(lab: NotebookKernel) -> None:
    """Live output is one widget that is told what is new; at its end it is what batch would have saved."""
    code = (
        "%%ddp\nimport os, time\nprint('begin', rank, flush=True)\n"
        "while not os.path.exists('go on'):\n    time.sleep(0.01)\nprint('end', rank)\nrank"
    )
    cell = lab.send(code)
    lab.pump_until(lambda: all(f"begin {r}" in cell.text for r in range(4)), 10)
    assert not cell.done
    (lab.folder / "go on").touch()
    lab.wait(cell)
    assert cell.counted("display_data") == 1
    assert cell.counted("update_display_data") == 1
    assert cell.counted("comm_open") == 1
    assert cell.counted("clear_output", "stream") == 0
    lab.live = False
    assert only_page(cell) == only_page(lab.good(code))
    (lab.folder / "go on").unlink()


COLAB = """\
import sys, types
colab = types.ModuleType("google.colab.output")
colab.calls = []
colab.enable_custom_widget_manager = lambda: colab.calls.append("enabled")
colab._widgets = types.SimpleNamespace(_installed_url="https://colab/manager.js")
sys.modules["google.colab.output"] = colab"""


def test_colab_is_told_where_widgets_come_from(lab: NotebookKernel) -> None:
    """Its custom widget manager is enabled, and the output says where that is."""
    lab.good(COLAB)
    cell = lab.good("%%ddp\nimport time\nprint('shown', flush=True)\ntime.sleep(0.5)")
    lab.good("assert 'enabled' in colab.calls, colab.calls\ndel sys.modules['google.colab.output']")
    shown = next(m for _, m in cell.messages if m["msg_type"] == "display_data")["content"]
    manager = {"url": "https://colab/manager.js"}
    asked = {"application/vnd.jupyter.widget-view+json": {"colab": {"custom_widget_manager": manager}}}
    assert shown["metadata"] == asked
    assert cell.outputs[0]["metadata"] == {}


def test_at_most_ten_updates_a_second(lab: NotebookKernel) -> None:
    """However much the ranks print, the front end hears of it at most ten times in any second."""
    cell = lab.good(
        "%%ddp\nimport time\nend = time.monotonic() + 2.5\nwhile time.monotonic() < end:\n"
        "    print('x' * 70)\n    time.sleep(0.001)",
        60,
    )
    kinds = ("display_data", "update_display_data", "stream", "comm_msg")
    times = [t for t, message in cell.messages if message["msg_type"] in kinds]
    assert len(times) > 10
    windows = [sum(1 for t in times if start <= t < start + 1) for start in times]
    assert max(windows) <= MAX_UPDATES_PER_S + 1  # the last one is the static page
    gaps = [b - a for a, b in itertools.pairwise(times)]
    assert max(gaps) < 1.0


def test_live_messages_are_bounded(lab: NotebookKernel) -> None:
    """40,000 lines cost the front end little; the saved page has head and tail, and says so."""
    cell = lab.good("%%ddp\nfor i in range(10_000):\n    print('line', i, rank)", 60)
    told = [(t, len(str(m["content"]))) for t, m in cell.messages if m["msg_type"] == "comm_msg"]
    assert max(sum(size for t, size in told if since <= t < since + 3) for since, _ in told) < 3_000_000
    pages = [len(str(m["content"])) for _, m in cell.messages if "display_data" in m["msg_type"]]
    assert max(pages) < 500_000
    page = only_page(cell)
    assert "line 0 0" in page["text/plain"]
    assert "line 9999 3" in page["text/plain"]
    assert "lines not shown" in page["text/plain"]


def test_display_option(nb: NotebookKernel) -> None:
    """`%config DDPMagics.display` overrides what the front end asks for."""
    code = "%%ddp\nimport time\nprint('a', flush=True)\ntime.sleep(0.4)\nprint('b')"
    nb.good("%config DDPMagics.display = 'live'")
    assert nb.good(code).counted("update_display_data") >= 1
    nb.live = True
    nb.good("%config DDPMagics.display = 'static'")
    assert nb.good(code).counted("update_display_data") == 0
    nb.good("%config DDPMagics.display = 'auto'")
    assert nb.good(code).counted("update_display_data") >= 1


# --- failing cells --------------------------------------------------------------------------------


def test_a_failing_cell(nb: NotebookKernel) -> None:
    """Status error, one line that names rank, exception and line; the traceback is in the page."""
    for live in (False, True):
        nb.live = live
        cell = nb.bad("%%ddp\nprint('fine')\nif rank == 2:\n    1 / 0")
        assert cell.error == "RankError: rank 2: ZeroDivisionError: division by zero (line 4)"
        kinds = [output["output_type"] for output in cell.outputs]
        assert kinds == ["display_data", "error"]
        assert cell.texts[1] == cell.error
        page = cell.pages[0]["text/plain"]
        assert page.count("ZeroDivisionError: division by zero") == 1
        assert "1 / 0" in page


def test_identical_tracebacks_are_folded(nb: NotebookKernel) -> None:
    """The same error on every rank is shown once."""
    cell = nb.bad("%%ddp\n1 / 0")
    assert cell.error == "RankError: ranks 0-3: ZeroDivisionError: division by zero (line 2)"
    assert cell.pages[0]["text/plain"].count("ZeroDivisionError: division by zero") == 1
    assert "ranks 0–3" in cell.pages[0]["text/plain"]


# --- front ends that run notebooks ----------------------------------------------------------------

CELLS = (
    "%load_ext jupyter_ddp",
    "%%ddp -n 2\nt = torch.ones(1)\ndist.all_reduce(t)\nprint(t)",
    "%%ddp\nif rank == 1:\n    raise ValueError('stop here')",
    "print('never reached')",
)


def notebook(*cells: str) -> nbformat.NotebookNode:
    made = nbformat.v4.new_notebook()
    made.cells = [nbformat.v4.new_code_cell(source) for source in cells]
    made.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    return made


def test_nbclient_stops_at_a_failing_cell(tmp_path: Path) -> None:
    """nbclient ends with CellExecutionError, and the cells after it are not run."""
    made = notebook(*CELLS)
    client = NotebookClient(made, timeout=60, resources={"metadata": {"path": str(tmp_path)}})
    with pytest.raises(CellExecutionError, match="rank 1: ValueError: stop here"):
        client.execute()
    assert "tensor([2.])" in made.cells[1].outputs[-1]["data"]["text/plain"]
    assert made.cells[3].get("outputs") == []


def test_papermill_stops_at_a_failing_cell(tmp_path: Path) -> None:
    """papermill too, and its output notebook says where."""
    papermill = pytest.importorskip("papermill")
    nbformat.write(notebook(*CELLS), tmp_path / "in.ipynb")
    with pytest.raises(papermill.PapermillExecutionError, match="stop here"):
        papermill.execute_notebook(
            str(tmp_path / "in.ipynb"), str(tmp_path / "out.ipynb"), cwd=str(tmp_path), progress_bar=False
        )
    saved = (tmp_path / "out.ipynb").read_text()
    assert "tensor([2.])" in saved
    assert '"never reached\\n"' not in saved


def test_nbconvert_executes(tmp_path: Path) -> None:
    """`jupyter nbconvert --execute` runs a notebook of cells on ranks and saves their static pages."""
    import subprocess
    import sys

    nbformat.write(notebook(*CELLS[:2], "%%ddp\nrank"), tmp_path / "in.ipynb")
    done = subprocess.run(
        [sys.executable, "-m", "nbconvert", "--execute", "--to", "notebook", "--output", "out", "in.ipynb"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    saved = nbformat.read(tmp_path / "out.ipynb", 4)
    assert [set(o["data"]) for o in saved.cells[2].outputs] == [{"text/plain", "text/html"}]
    assert saved.cells[2].outputs[0]["data"]["text/plain"] == "[rank 0]\n0\n[rank 1]\n1"
