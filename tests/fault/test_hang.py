"""A rank that waits for another for ten seconds is explained; nothing is done about it unasked."""

from __future__ import annotations

import os
import re
import signal
import time

import pytest

from tests.fault.pools import REDUCE, Pools, RunningCell, eventually, pids_of
from tests.promises import Stopwatch

RANKS = 4


def hang_of(cell: RunningCell) -> str:
    return cell.record.snapshot().hang if cell.record is not None else ""


@pytest.mark.promise("a hang is explained: who waits in which collective for whom", bound_s=12)
def test_one_rank_sleeps(pools: Pools, promised: Stopwatch) -> None:
    """After ten seconds, without a click; the notice goes when the rank has come."""
    cluster = pools.of(4)
    cell = RunningCell(
        cluster, "import time\nprint('on')\nif rank == 2:\n    time.sleep(13)\ndist.all_reduce(torch.ones(1))"
    )
    cell.until("on")
    with promised():
        eventually(lambda: hang_of(cell), 20)
    assert hang_of(cell) == (
        "rank 2 has not entered all_reduce #1 (line 5); it is at line 4, sleeping; ranks 0-1,3 wait for it"
    )
    record = cell.end()
    assert cell.words == ""
    assert record.snapshot().hang == ""


def test_a_stopped_rank_a_receive_and_a_group_that_not_all_form(pools: Pools) -> None:
    """Each is explained while it lasts and after the interrupt that frees it, with all variables kept."""
    cluster = pools.of(2)
    cluster.run("kept = rank")
    for source, words in (
        (
            "print('on')\nif rank == 0:\n    dist.recv(torch.ones(1), 1)",
            "rank 0 waits in recv from rank 1 (line 3)",
        ),
        ("print('on')\nif rank == 1:\n    dist.new_group([0, 1])", "rank 1 waits in new_group (line 3)"),
    ):
        cell = RunningCell(cluster, source)
        cell.until("on")
        eventually(lambda: hang_of(cell), 20)  # noqa: B023 - it is used up in this round
        assert hang_of(cell).startswith(words)
        explained = hang_of(cell)
        assert "has ended the cell" in explained
        cluster.interrupt()
        assert f"before the interrupt: {explained}" in cell.end().snapshot().announced
        cluster.run(f"{REDUCE}; assert kept == rank")


def test_different_operations_are_ended(pools: Pools) -> None:
    """They can never come to an end: the cell fails with both, and the next one works."""
    cluster = pools.of(2)
    cell = RunningCell(
        cluster, "t = torch.ones(1)\nif rank == 0:\n    dist.all_reduce(t)\nelse:\n    dist.broadcast(t, 0)"
    )
    cell.end(30)
    assert "out of step: rank 0: all_reduce #1 (line 3); rank 1: broadcast #1 (line 5)" in cell.words
    cluster.run(REDUCE)


def test_where_nobody_watches_a_hang_ends_the_cell(pools: Pools) -> None:
    """`hang_timeout_s`: the error is the same explanation."""
    cluster = pools.of(2)
    began = time.monotonic()
    record = cluster.run(
        "import time\nif rank == 1:\n    time.sleep(60)\ndist.barrier()", check=False, hang_timeout_s=11
    )
    assert time.monotonic() - began < 20
    assert "rank 1 has not entered barrier #1 (line 4); it is at line 3, sleeping" in record.summary()
    cluster.run(REDUCE)


@pytest.mark.promise("%ddp where answers while ranks are busy, stopped, or hold the GIL", bound_s=2)
def test_where_at_any_time(pools: Pools, promised: Stopwatch) -> None:
    """Busy, waiting, in C code and stopped, each is said, in two seconds."""
    cluster = pools.of(4)
    pid = pids_of(cluster)[3]
    cell = RunningCell(
        cluster,
        "import ctypes, time\nprint('on', flush=True)\nif rank == 1:\n    ctypes.PyDLL(None).sleep(4)\n"
        "elif rank == 2:\n    time.sleep(4)\ndist.all_reduce(torch.ones(1))",
    )
    cell.until("on")
    os.kill(pid, signal.SIGSTOP)
    try:
        eventually(lambda: "waits in all_reduce" in cluster.where(), 4)
        with promised():
            text = cluster.where()
    finally:
        os.kill(pid, signal.SIGCONT)
    lines = text.splitlines()
    assert "waits in all_reduce" in lines[1]
    assert "in C code" in lines[2]
    assert "sleeping" in lines[3]
    assert "line 6" in lines[3]
    assert "stopped (state T)" in lines[4]
    cell.end()
    assert "all_reduce #1 (line 7)" in cluster.dump()


@pytest.mark.promise("a rank in C code that holds the GIL is named, though nobody waits for it", bound_s=17)
def test_c_code_that_holds_the_gil(pools: Pools, promised: Stopwatch) -> None:
    """After ten seconds, with what an interrupt would do; the notice goes when the call has returned."""
    cluster = pools.of(2)
    cell = RunningCell(
        cluster,
        "import ctypes, time\nprint('on', flush=True)\ntime.sleep(0.4)\n"
        "if rank: time.sleep(0.4); ctypes.PyDLL(None).sleep(17)\ntime.sleep(8)",
    )
    cell.until("on")
    with promised():
        eventually(lambda: hang_of(cell), 25)
    assert re.fullmatch(
        r"rank 1 has been in C code for 1\d s \(line 4\): an interrupt is heard only after that; "
        r"the third interrupt kills it",
        hang_of(cell),
    )
    eventually(lambda: not hang_of(cell), 15)
    assert cell.running
    cell.end()
    assert cell.words == ""


def test_an_interrupt_says_who_is_in_c_code(pools: Pools) -> None:
    """The rank is named with its line, and what a further press would do; nobody is killed before it."""
    cluster = pools.of(2)
    pids = pids_of(cluster)
    cell = RunningCell(
        cluster,
        "import ctypes\nmutex = ctypes.create_string_buffer(64)\nprint('on', flush=True)\n"
        "for _ in range(2 * rank): ctypes.PyDLL(None).pthread_mutex_lock(mutex)",  # which no signal ends
    )
    cell.until("on")
    cluster.interrupt()
    eventually(lambda: "rank 1 has been in C code for" in hang_of(cell), 6)
    assert "the third interrupt kills it" in hang_of(cell)
    assert pids_of(cluster) == pids
    for _ in range(2):
        cluster.interrupt()
    assert cell.end()[1].verdict == "died"
