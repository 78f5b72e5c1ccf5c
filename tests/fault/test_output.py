"""Output under fire: floods, quotas, and every byte that a rank wrote before it was killed."""

from __future__ import annotations

import os
import re
import signal
import threading
from collections.abc import Iterator

import psutil
import pytest

from jupyter_ddp import Cluster
from tests.fault.pools import REDUCE, Pools, RunningCell, eventually, pids_of, run_to_failure
from tests.promises import Stopwatch

MIB = 1024 * 1024
LINES = 20_000
WAYS = {
    "print": "print(f'{i:06d}')",
    "stderr": "print(f'{i:06d}', file=sys.stderr)",
    "fd 1": "os.write(1, b'%06d\\n' % i)",
    "C": "libc.puts(b'%06d' % i)",
    "display": "print(f'{i:06d}'); i % 5000 or display(i)",
}


@pytest.mark.promise("every byte that a rank wrote before SIGKILL is shown")
@pytest.mark.parametrize("way", WAYS)
def test_what_was_written_before_a_kill(pools: Pools, way: str) -> None:
    """20,000 lines, then the rank kills itself: all are in the record, in order, once."""
    cluster = pools.of(2)
    end = "libc.fflush(None)\n" if way == "C" else ""
    _, record = run_to_failure(
        cluster,
        "import ctypes, os, signal, sys\nfrom IPython.display import display\nlibc = ctypes.CDLL(None)\n"
        f"for i in range({LINES}):\n    {WAYS[way]}\n{end}"
        "if rank: os.kill(os.getpid(), signal.SIGKILL)",
    )
    written = record[1].stderr if way == "stderr" else record[1].stdout
    assert written == "".join(f"{i:06d}\n" for i in range(LINES))


@pytest.mark.promise("a rank killed while it prints: the bytes before are shown, in order, once")
@pytest.mark.parametrize("way", ["print", "fd 1"])
def test_what_was_written_before_a_kill_from_outside(pools: Pools, way: str) -> None:
    """It says when it has written 30,000 lines, and goes on: they arrive, and more, in order."""
    cluster = pools.of(2)
    cell = RunningCell(
        cluster,
        f"import os\nfor i in range(10**9):\n    {WAYS[way]}\n    if i == 30_000: os.write(2, b'on')",
    )
    cell.until("000000")
    record = cell.record
    assert record is not None
    eventually(lambda: record[1].stderr == "on", 20)
    os.kill(pids_of(cluster)[1], signal.SIGKILL)
    eventually(lambda: record[1].verdict, 5)
    cluster.interrupt()
    cell.end()
    lines = record[1].stdout.split("\n")
    record.close()
    whole = [line for line in lines if len(line) == 6]
    assert len(whole) > 30_000
    assert whole == [f"{i:06d}" for i in range(len(whole))]
    assert len(lines) - len(whole) <= 1, "what follows the last whole line is the beginning of one"


FLOODS = {
    "print": "while True: print('x' * 79)",
    "short prints": "while True: print('x', end='')",
    "both streams": "import sys\nwhile True: print('x'); print('y', file=sys.stderr)",
    "fd 1": "import os\nwhile True: os.write(1, b'y' * 79 + b'\\n')",
    "a child": "import subprocess; subprocess.run(['yes'])",
    "threads": "import threading\ndef flood():\n    while on: print('x' * 79)\non = True\n"
    "threads = [threading.Thread(target=flood) for _ in range(4)]\n[t.start() for t in threads]\n"
    "try:\n    [t.join() for t in threads]\nfinally:\n    on = False",
}


@pytest.mark.promise("interrupt: endless output, however it is written", bound_s=3)
@pytest.mark.parametrize("flood", FLOODS)
def test_interrupt_of_endless_output(pools: Pools, promised: Stopwatch, flood: str) -> None:
    """After some of it the cell is interrupted: at once, with the pool whole and the memory bounded."""
    cluster = pools.of(2)
    cluster.log_quota_bytes = 16 * MIB
    before = psutil.Process().memory_info().rss
    pids = pids_of(cluster)
    cell = RunningCell(cluster, f"print('on', flush=True)\n{FLOODS[flood]}")
    cell.until("on")
    threading.Event().wait(1.0)  # the flood rises: there is no event for that
    with promised():
        cluster.interrupt()
        cell.end()
    assert "interrupted" in cell.words
    assert psutil.Process().memory_info().rss - before < 150 * MIB
    assert pids_of(cluster) == pids
    cell.end().close()
    assert cluster.run(REDUCE).ok


@pytest.fixture
def quota(pools: Pools) -> Iterator[Cluster]:
    """A pool whose cells keep a megabyte each."""
    cluster = pools.of(2)
    usual, cluster.log_quota_bytes = cluster.log_quota_bytes, MIB
    yield cluster
    cluster.log_quota_bytes = usual


@pytest.mark.promise("beyond a cell's quota (1 GiB) head and tail are kept, and what is missing is said")
def test_the_quota(quota: Cluster) -> None:
    """5 MB with a quota of 1 MiB: both halves, and between them how many bytes are missing."""
    record = quota.run("for i in range(500_000): print(f'{i:09d}')", "1")
    text = record[1].stdout
    head, missing, tail = re.split(r"\n… ([\d,]+) bytes were not kept …\n", text)
    assert head.startswith("000000000\n000000001\n")
    assert tail.endswith("000499998\n000499999\n")
    assert len(head) + len(tail) == MIB
    assert int(missing.replace(",", "")) == 5_000_000 - MIB
    (note,) = record[1].notices
    assert note == "the cell's log is full (1 MiB): head and tail are kept"
    assert quota.run("print('short')", "1")[1].notices == []


def test_the_usual_quota() -> None:
    """1 GiB a cell."""
    assert Cluster().log_quota_bytes == 2**30
