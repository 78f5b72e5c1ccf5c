"""What the ranks do, through a notebook kernel: `%ddp where`, `%ddp dump`, a hang that is told or ended."""

from __future__ import annotations

import re
from pathlib import Path

from tests.integration.notebook_kernel import NotebookKernel

RANKS = 2
HANG = "rank 1 has not entered barrier #{} (line 4); it is at line 3, sleeping; rank 0 waits for it"


def test_where_and_dump_between_cells(nb: NotebookKernel) -> None:
    """A line for each rank, with its last collective; `dump` has stacks and the groups' calls too."""
    nb.good("%%ddp\ndist.barrier()\ndist.all_reduce(torch.ones(1))")
    heading, *rows = nb.good("%ddp where").text.splitlines()
    assert heading.split() == ["rank", "state", "for", "where", "last", "collective"]
    assert [row.split()[:2] for row in rows] == [[str(rank), "idle"] for rank in range(RANKS)]
    assert all(re.search(r"all_reduce #\d+ \(line 3\)$", row) for row in rows)
    text = nb.good("%ddp dump").text
    for rank in range(RANKS):
        _, _, dump = text.partition(f"[rank {rank}]")
        assert re.search(r"barrier #\d+ \(line 2\)\n +all_reduce #\d+ \(line 3\)", dump)
        assert "MainThread" in dump


def test_where_while_a_cell_runs(nb: NotebookKernel) -> None:
    """Another thread of the notebook asks, as the panel does."""
    nb.good(
        "import threading, time\nseen = ''\n"
        "cluster = get_ipython().magics_manager.registry['DDPMagics'].cluster\n"
        "def look():\n"
        "    global seen\n"
        "    deadline = time.monotonic() + 20\n"
        "    while 'sleeping' not in seen and time.monotonic() < deadline:\n"
        "        seen = cluster.where()\n"
        "thread = threading.Thread(target=look); thread.start()"
    )
    nb.good("%%ddp\nimport time\nif rank:\n    time.sleep(2)\ndist.barrier()", 60)
    nb.good("thread.join(30)")
    _, first, second, *_ = nb.evaluate("seen").splitlines()
    assert "sleeping" in second
    assert "line 4" in second
    assert first.startswith("0")


def test_what_a_page_leaves_out_is_in_the_log(nb: NotebookKernel, tmp_path: Path) -> None:
    """The page names `%ddp log`; the file has every line, of the cell that is named or of the last one."""
    nb.good(f"import os; os.chdir({str(tmp_path)!r})")
    long = nb.good(
        "%%ddp\nimport sys\nfor i in range(3000):\n    print(rank, i)\nprint('!', file=sys.stderr)"
    )
    number = nb.evaluate("len(In)") - 1
    assert "%ddp log writes all of the text to a file" in long.pages[-1]["text/plain"]
    nb.good("%%ddp\nprint('later')")
    name = f"ddp-cell-{number}.log"
    sections = [
        f"[rank {rank}]\n" + "".join(f"{rank} {i}\n" for i in range(3000)) + f"\n[rank {rank} · stderr]\n!\n"
        for rank in range(RANKS)
    ]
    expected = "\n".join(sections)
    size = f"{len(expected.encode()) / 1024:.3g} KiB"
    assert nb.good(f"%ddp log {number}").text == f"{name}: 6,002 lines, {size}\n"
    assert (tmp_path / name).read_text() == expected
    assert nb.good("%ddp log").text.endswith(".log: 2 lines, 31 bytes\n")
    assert "(here " in nb.bad("%ddp log 9999").error
    nb.good("os.chdir(os.path.expanduser('~'))")


def test_a_hang_is_told_live(lab: NotebookKernel) -> None:
    """After ten seconds, below the running cell; it goes when the rank has come, and is not saved."""
    cell = lab.send("%%ddp\nimport time\ntime.sleep(13 * rank)\ndist.barrier()\nprint('through')")
    lab.pump_until(lambda: cell.notes, 25, "the hang's notice")
    assert not cell.done
    number = number_in(cell.notes[0])
    assert cell.notes == [f"waiting: {HANG.format(number)}"]
    lab.wait(cell, 30)
    assert cell.ok
    (page,) = cell.pages
    assert "through" in page["text/plain"]
    assert "waiting" not in page["text/plain"] + page["text/html"]


def number_in(note: str) -> str:
    """The number of the collective that a note names."""
    found = re.search(r"#(\d+)", note)
    assert found is not None, note
    return found[1]


def test_in_batch_a_hang_ends_the_cell(nb: NotebookKernel) -> None:
    """`c.DDPMagics.hang_timeout`: the error is the explanation, and the next cell has its variables."""
    nb.good("%config DDPMagics.hang_timeout = 11.0")
    try:
        nb.good("%%ddp\nkept = rank + 5")
        cell = nb.bad("%%ddp\nimport time\ntime.sleep(300 * rank)\ndist.barrier()", 40)
        assert HANG.format(number_in(cell.error)) in cell.error
        assert nb.ranks("dist.barrier(); kept").values == [5, 6]
    finally:
        nb.good("%config DDPMagics.hang_timeout = 600.0")
