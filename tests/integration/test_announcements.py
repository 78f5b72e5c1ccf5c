"""What the user is told of a cell while it is repaired, held up or ended: at once, and in the saved page."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.notebook_kernel import Cell, NotebookKernel

RANKS = 2
DEADLOCK_IN_C = (
    "import ctypes, time; mutex = ctypes.create_string_buffer(64)\nprint('on', flush=True)\n"
    "for _ in range(2 * rank): time.sleep(0.4); ctypes.PyDLL(None).pthread_mutex_lock(mutex)"
)
"""Rank 1 never returns from C code that holds the GIL, and no signal ends it."""
KILLING = "interrupt: killing rank 1; what only it holds is lost"
BREAKING = "interrupt: rank {}: breaking the process group; variables are kept"


@pytest.fixture
def watched(nb: NotebookKernel) -> Iterator[NotebookKernel]:
    """The shared kernel as JupyterLab has it, with a pool of living ranks."""
    nb.live = True
    yield nb
    nb.live = False
    for cell in nb.unfinished:  # of a test that has failed
        for _ in range(3):
            nb.interrupt()
        nb.wait(cell, 20)
    nb.good(f"%ddp start -n {RANKS}", 60)  # which is there but after some tests
    nb.good("%ddp heal", 60)


def noted(nb: NotebookKernel, cell: Cell, words: str, timeout_s: float = 15.0) -> str:
    """The first note of these words, told while the cell runs."""

    def find() -> str:
        return next((note for note in cell.notes if words in note), "")

    nb.pump_until(find, timeout_s, f"the note {words!r}; there are {cell.notes}")
    assert not cell.done
    return find()


def later(nb: NotebookKernel, seconds: float) -> None:
    """Take messages for so long."""
    until = time.monotonic() + seconds
    nb.pump_until(lambda: time.monotonic() > until, seconds + 5)


def saved(cell: Cell) -> dict[str, str]:
    """The one static page that is left."""
    (page,) = cell.pages
    assert set(page) == {"text/plain", "text/html"}
    return page


def test_the_ladder_in_the_live_view(watched: NotebookKernel) -> None:
    """Who is in C code is told at the first press, each step before it is taken; the page keeps the steps."""
    cell = watched.send(f"%%ddp\n{DEADLOCK_IN_C}")
    watched.pump_until(lambda: "on" in cell.text, 15)
    later(watched, 1)  # SIGINT comes when it is in C code
    watched.interrupt()
    in_c = noted(watched, cell, "in C code")
    assert re.fullmatch(
        r"waiting: rank 1 has been in C code for \d+ s \(line 4\): an interrupt is heard only after that; "
        r"the third interrupt kills it",
        in_c,
    )
    noted(watched, cell, BREAKING.format(1))
    watched.interrupt()
    later(watched, 0.5)  # two signals that wait to be heard are one
    watched.interrupt()
    noted(watched, cell, KILLING)
    watched.wait(cell, 10)
    assert "rank 1: killed by SIGKILL" in cell.error
    page = saved(cell)
    for form in page.values():
        assert form.index(BREAKING.format(1)) < form.index(KILLING)
        assert "C code" not in form  # for so many seconds: not in a page that is compared with another
    assert cell.counted("stream") == 0


def test_a_step_that_was_not_needed_is_no_more_on_the_page(watched: NotebookKernel) -> None:
    """Three presses at once: the ranks end at the first (where these are busy, at the second)."""
    pids = watched.rank_pids()
    cell = watched.send("%%ddp\nprint('on', flush=True)\nimport time\ntime.sleep(60)")
    watched.pump_until(lambda: "on" in cell.text, 15)
    for _ in range(3):
        watched.interrupt()
    watched.wait(cell, 10)
    assert "interrupted" in cell.error
    assert "killing" not in "".join(saved(cell).values())
    assert watched.rank_pids() == pids


def test_a_death_beside_the_cell_is_told_in_it(watched: NotebookKernel) -> None:
    """A rank that the cell does not run on is killed: told while it runs, and on its page."""
    victim = watched.rank_pids()[1]
    cell = watched.send(
        f"%%ddp -t 0\nimport os, signal, time\nprint('on', flush=True)\n"
        f"os.kill({victim}, signal.SIGKILL)\ntime.sleep(1.5)"
    )
    noted(
        watched, cell, "rank 1 died: killed by SIGKILL; rank 0 keeps all variables; %ddp heal replaces rank 1"
    )
    assert watched.wait(cell, 10).ok
    assert "rank 1 died: killed by SIGKILL" in saved(cell)["text/plain"]


def test_without_a_widget_it_is_in_the_page_that_is_drawn_anew(watched: NotebookKernel) -> None:
    """Where anywidget is not installed: the same lines as text, while the cell runs."""
    watched.good(
        "import sys\nfrom jupyter_ddp.kernel import live\nkept = sys.modules.pop('anywidget', None)\n"
        "sys.modules['anywidget'] = None\nlive._widget_class.cache_clear()"
    )
    try:
        cell = watched.send(
            "%%ddp\nprint('on', flush=True)\nimport time\nif rank: time.sleep(60)\ndist.barrier()"
        )
        watched.pump_until(lambda: "on" in cell.text, 15)
        watched.interrupt()
        watched.pump_until(lambda: BREAKING.format(0) in cell.text, 10)
        assert not cell.done
        watched.wait(cell, 10)
        assert BREAKING.format(0) in saved(cell)["text/plain"]
    finally:
        watched.good("sys.modules['anywidget'] = kept\nif kept is None: del sys.modules['anywidget']")


_TERMINAL = """
run = get_ipython().run_cell_magic
get_ipython().run_line_magic('load_ext', 'jupyter_ddp')
run('ddp', '-n 2 --timeout 0.5', '''
print('on')
import time
if rank: time.sleep(60)
dist.barrier()
''')
"""


def test_in_a_terminal_it_is_printed_at_once(tmp_path: Path) -> None:
    """Plain IPython: the line stands above the page, which does not repeat it."""
    command = [sys.executable, "-m", "IPython", "--quick", "--colors=nocolor", "-c", _TERMINAL]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    text = done.stdout
    assert text.count(BREAKING.format(0)) == 1, text + done.stderr
    assert text.index(BREAKING.format(0)) < text.index("\non")
    assert "interrupted by --timeout 0.5" in text


@pytest.mark.parametrize(
    ("act", "words"),
    [
        ("close", "the cluster was closed"),
        ("stop", "the pool was stopped"),
        ("restart", "the pool was stopped"),
    ],
)
def test_the_view_of_a_cell_whose_pool_is_taken_away(watched: NotebookKernel, act: str, words: str) -> None:
    """From another thread, as the panel's buttons do: the cell fails, and its page says why."""
    watched.good("%ddp start -n 2", 60)
    watched.good(
        "import threading\nfrom pathlib import Path\n"
        "cluster = get_ipython().magics_manager.registry['DDPMagics'].cluster\n"
        "def take_away(act):\n"
        "    while not Path('on0').exists(): pass\n"
        "    Path('on0').unlink()\n"
        "    getattr(cluster, act)()\n"
        f"thread = threading.Thread(target=take_away, args=('{act}',)); thread.start()"
    )
    try:
        cell = watched.send(
            "%%ddp -o r\nprint('partial', flush=True)\nimport time\ntime.sleep(0.5)\n"
            "open(f'on{rank}', 'w')\ntime.sleep(60)"
        )
        watched.wait(cell, 20)
        assert words in cell.error
        page = saved(cell)
        for form in page.values():
            assert words in form
            assert "partial" in form
            assert "running" not in form
        assert watched.evaluate("list(r.verdicts.values())") == ["unknown"] * RANKS
        assert watched.evaluate("cluster.records()[-1] is r")
    finally:
        watched.good("thread.join(30)")
    assert watched.good("%%ddp -n 2\nprint('again')", 60).text.count("again") == 1
