"""Point 3 of the issue, its last sentence: whatever a rank writes arrives whole, in the right cell."""

from __future__ import annotations

import hashlib
import re

import pytest

from tests.integration.notebook_kernel import NotebookKernel

RANKS = 2

_LIBC = "import ctypes, os, sys, subprocess, threading\nlibc = ctypes.CDLL(None)\n"


@pytest.mark.parametrize(
    ("code", "stdout", "stderr"),
    [
        ("print('a'); print('b', end='')", "a\nb", ""),
        ("print('out'); print('err', file=sys.stderr)", "out\n", "err\n"),
        ("print('x'); sys.stdout.buffer.write(b'\\xe2\\x82\\xac\\n'); print('y')", "x\n€\ny\n", ""),
        ("os.write(1, b'fd one\\n'); os.write(2, b'fd two\\n');", "fd one\n", "fd two\n"),
        ("libc.puts(b'from puts');", "from puts\n", ""),
        ("libc.printf(b'no newline %d', 7);", "no newline 7", ""),
        ("libc.printf(b'%s', b'z' * 70000);", "z" * 70000, ""),
        ("subprocess.run(['sh', '-c', 'echo child; echo bad >&2']);", "child\n", "bad\n"),
        ("os.system('echo from system; echo system err >&2');", "from system\n", "system err\n"),
        ("subprocess.Popen(['echo', 'popen']).wait();", "popen\n", ""),
        ("t = threading.Thread(target=print, args=('threaded',)); t.start(); t.join()", "threaded\n", ""),
        ("sys.__stdout__.write('dunder\\n'); sys.__stdout__.flush()", "dunder\n", ""),
        ("print('\\x00\\x7f tab\\t', end='')", "\x00\x7f tab\t", ""),
        ("print('bar', end='\\r'); print('\\x1b[31mred\\x1b[0m')", "bar\r\x1b[31mred\x1b[0m\n", ""),
    ],
)
def test_each_way_to_write(nb: NotebookKernel, code: str, stdout: str, stderr: str) -> None:
    """Python, C code, subprocesses and threads: all of it is in the record, unaltered."""
    ranks = nb.ranks(_LIBC + code)
    assert ranks.stdout == [stdout] * 2
    assert ranks.all("stderr") == [stderr] * 2
    assert ranks.all("lost") == [0] * 2


def test_multiprocessing_children(nb: NotebookKernel) -> None:
    """Children of multiprocessing, forked, write into the cell that started them."""
    code = (
        "import multiprocessing\ndef work(i):\n    print('child', i, flush=True)\n    return i\n"
        "with multiprocessing.get_context('fork').Pool(2) as workers:\n"
        "    done = workers.map(work, range(4))\ndone"
    )
    ranks = nb.ranks(code)
    assert ranks.values == [[0, 1, 2, 3]] * 2
    assert [sorted(text.splitlines()) for text in ranks.stdout] == [[f"child {i}" for i in range(4)]] * 2
    assert ranks.all("stderr") == [""] * 2


def test_a_child_that_does_not_flush(nb: NotebookKernel) -> None:
    """What a forked child printed and never flushed is not printed twice, nor by the rank."""
    code = (
        "import multiprocessing\nprint('parent', end='')\ndef work():\n    print(' child')\n"
        "p = multiprocessing.get_context('fork').Process(target=work)\np.start()\np.join()"
    )
    assert nb.ranks(code).stdout == ["parent child\n"] * 2


@pytest.mark.parametrize("way", ["print", "os.write", "subprocess", "puts"])
def test_many_lines(nb: NotebookKernel, way: str) -> None:
    """Of 20,000 lines of 80 characters none is lost, altered or out of order, whatever wrote them."""
    line = "f'{rank} {i:06d} ' + 'é' * 35"
    child = "for i in range(20_000): print(f'{rank} {i:06d} ' + 'é' * 35)"
    code = {
        "print": f"for i in range(20_000):\n    print({line})",
        "os.write": f"for i in range(20_000):\n    os.write(1, ({line} + chr(10)).encode())",
        "subprocess": f'program = f"rank = {{rank}}" + chr(10) + """{child}"""\n'
        "subprocess.run([sys.executable, '-c', program], check=True, env={**os.environ, 'PYTHONUTF8': '1'});",
        "puts": f"for i in range(20_000):\n    libc.puts(({line}).encode())",
    }[way]
    nb.good(f"%%ddp -o _record\n{_LIBC}{code}", 60)
    found = nb.evaluate("[__import__('hashlib').sha256(r.stdout.encode()).hexdigest() for r in _record]")
    for rank in range(2):
        text = "".join(f"{rank} {i:06d} " + "é" * 35 + "\n" for i in range(20_000))
        assert found[rank] == hashlib.sha256(text.encode()).hexdigest()


def test_bytes_split_inside_a_character(nb: NotebookKernel) -> None:
    """Characters that arrive in pieces, through Python's buffer or fd 1, come out whole; broken ones show."""
    split = "data = '→字🎉é'.encode()\nfor byte in data:\n    {}\n"
    for write in (
        "sys.stdout.buffer.write(bytes([byte])); sys.stdout.buffer.flush()",
        "os.write(1, bytes([byte]))",
    ):
        ranks = nb.ranks(_LIBC + split.format(write))
        assert ranks.stdout == ["→字🎉é"] * 2
        assert "→字🎉é" in ranks.cell.text
    ranks = nb.ranks(_LIBC + "os.write(1, b'bad \\xff\\xfe end\\n');")
    assert ranks.stdout == ["bad \ufffd\ufffd end\n"] * 2
    assert nb.ranks("print('lone \\ud800 surrogate')").stdout == ["lone \\ud800 surrogate\n"] * 2


def test_a_giant_line(nb: NotebookKernel) -> None:
    """A line of 5 MB is whole in the record, and cut where it is shown."""
    nb.good("%%ddp -o _record\nprint('x' * 5_000_000)")
    assert nb.evaluate("[(len(r.stdout), set(r.stdout)) for r in _record]") == [(5_000_001, {"x", "\n"})] * 2
    ranks = nb.ranks("print('y' * 100_000)")
    assert len(ranks.cell.html) < 100_000
    assert re.search(r"y … [0-9,]+ characters not shown … y", ranks.cell.text)


def test_stdout_and_stderr_of_a_thread_pool(nb: NotebookKernel) -> None:
    """Eight threads print 500 lines each at once: no line is lost or torn."""
    code = (
        "from concurrent.futures import ThreadPoolExecutor\n"
        "def say(t):\n    for i in range(500):\n        sys.stdout.write(f'{t}-{i:03d}\\n')\n"
        "with ThreadPoolExecutor(8) as pool:\n    list(pool.map(say, range(8)));"
    )
    ranks = nb.ranks(_LIBC + code)
    expected = sorted(f"{t}-{i:03d}" for t in range(8) for i in range(500))
    assert [sorted(text.split()) for text in ranks.stdout] == [expected] * 2


def test_order_within_a_stream(nb: NotebookKernel) -> None:
    """print, a shell command, and print again stay in order; so do text and displayed objects."""
    ranks = nb.ranks("for i in range(3):\n    print('py', i)\n    !echo sh {i}")
    assert ranks.stdout == ["py 0\nsh 0\npy 1\nsh 1\npy 2\nsh 2\n"] * 2
    text = nb.ranks("print('one')\ndisplay('two')\nprint('three')\n'four'").cell.text
    assert text.index("one") < text.index("two") < text.index("three") < text.index("four")


@pytest.mark.parametrize(
    "code",
    [
        "libc.puts(b'1'); libc.fflush(None); print(2)",
        "os.write(1, b'1\\n'); print(2)",
        "os.write(2, b'0\\n'); os.write(1, b'1\\n'); print(2)",
        "for i in range(1, 200, 2):\n    os.write(1, f'{i}\\n'.encode()); print(i + 1)",
        "for i in range(1, 200, 2):\n    print(i); os.write(1, f'{i + 1}\\n'.encode())",
    ],
)
def test_prints_and_c_code_keep_their_order(nb: NotebookKernel, code: str) -> None:
    """What one thread writes by turns in both ways stands in the order in which it was written."""
    for _ in range(5):
        for text in nb.ranks(_LIBC + code).stdout:
            numbers = [int(line) for line in text.splitlines()]
            assert numbers == list(range(1, len(numbers) + 1)), text


def test_a_child_that_floods_does_not_hold_up_prints(nb: NotebookKernel) -> None:
    """What comes while a print waits is not waited for."""
    code = (
        "import time\nchild = subprocess.Popen(['yes'])\nbegan = time.monotonic()\n"
        "for i in range(100):\n    print(f'mine {i}')\n"
        "child.kill(); taken = time.monotonic() - began\nchild.wait()\ntaken"
    )
    ranks = nb.ranks(_LIBC + code, timeout_s=60)
    assert max(ranks.values) < 5
    assert [re.findall("mine [0-9]+", text) for text in ranks.stdout] == [
        [f"mine {i}" for i in range(100)]
    ] * 2


def test_output_stands_in_the_cell_that_wrote_it(nb: NotebookKernel) -> None:
    """Output at the very end of a cell, by print, C code or a child, is never in the next one."""
    for i in range(20):
        ranks = nb.ranks(_LIBC + f"print('p{i}', end=''); libc.printf(b'c{i}'); os.system('printf s{i}');")
        for text in ranks.stdout:
            assert sorted(re.findall(r"[pcs]\d+", text)) == [f"c{i}", f"p{i}", f"s{i}"]
            assert len(text) == len(f"p{i}c{i}s{i}")
        assert nb.ranks("pass").stdout == [""] * 2


def test_a_background_thread_prints_between_cells(nb: NotebookKernel) -> None:
    """A thread that outlives its cell loses nothing: its lines are in the record of the cell that started it,
    also while another runs.
    """
    nb.ranks(
        "import threading\ngo, done = threading.Event(), threading.Event()\n"
        "def late():\n    go.wait(20)\n    print('late line', rank)\n    done.set()\n"
        "threading.Thread(target=late, daemon=True).start()"
    )
    nb.evaluate("globals().update(first=_record)")
    ranks = nb.ranks("print('a'); go.set(); done.wait(20); print('b')")
    assert ranks.stdout == ["a\nb\n"] * 2
    assert nb.evaluate("[r.stdout for r in first]") == [f"late line {r}\n" for r in range(2)]
    assert nb.evaluate("[r.lost_messages for r in [*first, *_record]]") == [0] * 4


LATE = (
    "import os, threading, time\n"
    "def late():\n"
    "    while not os.path.exists('go'): time.sleep(0.005)\n"
    "    print('late line', rank)\n"
    "    sys.stdout.flush(); open(f'said{rank}', 'w').close()\n"
    "import sys\n"
)
LEFT_RUNNING = {
    "a thread": LATE + "threading.Thread(target=late, daemon=True).start()",
    "a timer": LATE + "threading.Timer(0.01, late).start()",
    "a child": "import subprocess, sys\nchild = subprocess.Popen([sys.executable, '-c', "
    "'import os, time\\nwhile not os.path.exists(\"go\"): time.sleep(0.005)\\n'\n"
    '    f\'print("late line", {rank}, flush=True); open("said{rank}", "w").close()\'])',
}


@pytest.mark.parametrize("live", [False, True])
@pytest.mark.parametrize("what", LEFT_RUNNING)
def test_late_output_is_shown_with_its_cell(nb: NotebookKernel, what: str, live: bool) -> None:
    """What a cell left running prints between cells is on that cell's page when the next one runs."""
    nb.live = live
    first = nb.good(f"%%ddp -o first\nprint('in time')\n{LEFT_RUNNING[what]}")
    (nb.folder / "go").touch()
    nb.wait_for_files("said*", 2)
    (nb.folder / "go").unlink()
    nb.pump_until(lambda: "late line 1" in nb.evaluate("first[1].stdout"), 5)
    cell = nb.good("%%ddp -o second\nprint('next')\nif 'child' in globals():\n    child.wait(); del child")
    for _, message in cell.messages:
        if message["msg_type"] == "update_display_data":
            first.take(message)
    assert "late line" not in cell.text
    assert [f"late line {r}" in first.text for r in range(2)] == [True, True]
    assert "in time" in first.text
    assert nb.evaluate("[r.stdout for r in second]") == ["next\n"] * 2
    assert nb.evaluate("[r.lost_messages for r in [*first, *second]]") == [0] * 4
    nb.live = False


def test_late_output_of_a_cell_without_a_page(nb: NotebookKernel) -> None:
    """The next cell shows it, under the name of the cell that it is from."""
    nb.good(f"%%ddp -o first\n{LEFT_RUNNING['a thread']}")
    (nb.folder / "go").touch()
    nb.wait_for_files("said*", 2)
    (nb.folder / "go").unlink()
    nb.pump_until(lambda: "late line 1" in nb.evaluate("first[1].stdout"), 5)
    text = nb.good("%%ddp\nprint('next')").text
    assert re.search(r"In\[\d+\] wrote after its end:", text)
    assert text.index("late line 0") < text.index("next")
    assert "late line" not in nb.good("%%ddp\nprint('next')").text


def test_redirected_stdout_is_restored(nb: NotebookKernel) -> None:
    """A cell that replaces or closes sys.stdout harms itself at most; the next cell prints."""
    nb.ranks("import io, sys\nsys.stdout = io.StringIO()\nprint('lost to the user')")
    assert nb.ranks("print('back')").stdout == ["back\n"] * 2
    nb.ranks("sys.stdout.close()")
    assert nb.ranks("print('back again')").stdout == ["back again\n"] * 2
    code = (
        "import contextlib\nwith contextlib.redirect_stdout(io.StringIO()) as caught:\n"
        "    print('inner')\ncaught.getvalue()"
    )
    assert nb.ranks(code).values == ["inner\n"] * 2


def test_fd_one_redirected(nb: NotebookKernel) -> None:
    """Tests that capture fd 1 with dup2, as some tools do, put it back without losing anything."""
    code = (
        "import os, tempfile\nkept = os.dup(1)\nwith tempfile.TemporaryFile() as file:\n"
        "    os.dup2(file.fileno(), 1)\n    os.write(1, b'captured')\n    os.dup2(kept, 1)\n"
        "    file.seek(0)\n    caught = file.read()\nos.close(kept)\nprint(caught)"
    )
    assert nb.ranks(code).stdout == ["b'captured'\n"] * 2


def test_prints_wait_for_no_pipe_of_the_users(nb: NotebookKernel) -> None:
    """Where fd 1 leads elsewhere for a while, and nobody reads that, prints go on."""
    code = (
        "import os, time\nkept = os.dup(1); r, w = os.pipe(); os.dup2(w, 1)\nos.write(1, b'unread')\n"
        "began = time.monotonic()\nfor i in range(50):\n    print(i)\ntaken = time.monotonic() - began\n"
        "os.dup2(kept, 1)\nfor fd in (kept, r, w):\n    os.close(fd)\ntaken"
    )
    ranks = nb.ranks(code)
    assert ranks.stdout == ["".join(f"{i}\n" for i in range(50))] * 2
    assert max(ranks.values) < 5  # each would wait for half a second


def test_logging_and_tqdm(nb: NotebookKernel) -> None:
    """logging goes to stderr as anywhere, and a progress bar ends as one line in the view."""
    ranks = nb.ranks("import logging\nlogging.warning('from rank %d', rank)")
    assert ["from rank" in text for text in ranks.all("stderr")] == [True] * 2
    ranks = nb.ranks("from tqdm import tqdm\nfor _ in tqdm(range(50), ncols=60, mininterval=0):\n    pass")
    assert ranks.all("stderr")[0].count("\r") > 10
    assert ranks.cell.text.count("50/50") <= 2
    assert "10/50" not in ranks.cell.text


def test_output_streams_while_the_cell_runs(lab: NotebookKernel) -> None:
    """A line is on the screen while its cell still runs, within a second of its print."""
    cell = lab.send(
        "%%ddp\nimport os, time\nprint('early line')\nwhile not os.path.exists('go on'):\n"
        "    time.sleep(0.01)"
    )
    lab.pump_until(lambda: "early line" in cell.text, 5, "the first line")
    assert not cell.done
    (lab.folder / "go on").touch()
    assert lab.wait(cell).ok
    (lab.folder / "go on").unlink()


def test_c_output_streams_while_the_cell_runs(lab: NotebookKernel) -> None:
    """Lines of C code and of a child process are seen while the cell runs too."""
    cell = lab.send(
        "%%ddp\nimport ctypes, os, time\nctypes.CDLL(None).puts(b'early c'); os.system('echo early sh')\n"
        "while not os.path.exists('go on'):\n    time.sleep(0.01)"
    )
    lab.pump_until(lambda: "early c" in cell.text and "early sh" in cell.text, 5, "the first lines")
    assert not cell.done
    (lab.folder / "go on").touch()
    assert lab.wait(cell).ok
    (lab.folder / "go on").unlink()
