"""A rank that a signal or a debugger stops is said to be stopped, never dead; SIGCONT lets it go on."""

from __future__ import annotations

import os
import signal

import pytest

from tests.fault.pools import REDUCE, Pools, RunningCell, eventually, pids_of, states_of, values_of
from tests.promises import Stopwatch

STOPPED = "stopped (state T)"


@pytest.mark.promise("a stopped rank (SIGSTOP) is said to be stopped, in cell and table", bound_s=2)
def test_a_rank_is_stopped_in_a_cell(pools: Pools, promised: Stopwatch) -> None:
    """The cell and the table say so while it lasts; after SIGCONT the cell ends as if nothing had been."""
    cluster = pools.of(2)
    pid = pids_of(cluster)[1]
    cell = RunningCell(
        cluster, f"import time\nprint('on')\nif rank:\n    for _ in range(50): time.sleep(0.01)\n{REDUCE}; 5"
    )
    cell.until("on")
    with promised():
        os.kill(pid, signal.SIGSTOP)
        eventually(lambda: STOPPED in states_of(cluster), 10)
        assert cell.record is not None
        eventually(lambda: cell.record[1].notices, 10)
    (note,) = cell.record[1].notices
    assert note.startswith("rank 1 stopped (state T)")
    assert f"kill -CONT {pid}" in note
    assert cell.running
    os.kill(pid, signal.SIGCONT)
    record = cell.end()
    assert cell.words == ""
    assert values_of(record) == {0: "5", 1: "5"}
    assert record[1].notices == []
    assert states_of(cluster) == ["idle", "idle"]


def test_a_rank_is_stopped_between_cells(pools: Pools) -> None:
    """The next cell, which waits for it, says why; it runs when the rank goes on."""
    cluster = pools.of(2)
    pid = pids_of(cluster)[1]
    os.kill(pid, signal.SIGSTOP)
    eventually(lambda: states_of(cluster) == ["idle", STOPPED], 10)
    cell = RunningCell(cluster, f"print('on', flush=True)\n{REDUCE}")
    cell.until("on", 0)
    assert cell.record is not None
    assert [len(r.notices) for r in cell.record] == [0, 1]
    os.kill(pid, signal.SIGCONT)
    cell.end()
    assert cell.words == ""


def test_a_short_stop_is_not_mentioned(pools: Pools) -> None:
    """A debugger that looks at a rank for a moment makes no noise."""
    cluster = pools.of(2)
    pid = pids_of(cluster)[1]
    cell = RunningCell(cluster, f"import time\nprint('on')\ntime.sleep(1)\n{REDUCE}")
    cell.until("on")
    for _ in range(5):
        os.kill(pid, signal.SIGSTOP)
        os.kill(pid, signal.SIGCONT)
    record = cell.end()
    assert cell.words == ""
    assert [r.notices for r in record] == [[], []]


@pytest.mark.promise("a cell that waits for a stopped rank can be ended by the third interrupt", bound_s=3)
def test_a_stopped_rank_is_interrupted(pools: Pools, promised: Stopwatch) -> None:
    """SIGINT does not reach it; the third press kills it, and frees who waited."""
    cluster = pools.of(2)
    cluster.run("kept = 7")
    pids = pids_of(cluster)
    cell = RunningCell(cluster, f"import time\nprint('on')\nif rank:\n    time.sleep(60)\n{REDUCE}")
    cell.until("on")
    os.kill(pids[1], signal.SIGSTOP)
    with promised():
        for _ in range(2):
            cluster.interrupt()
        assert cell.record is not None
        eventually(lambda: cell.record[0].verdict, 10)
        cluster.interrupt()
        cell.end()
    assert cell.words.startswith("rank 1: killed by SIGKILL"), cell.words
    assert pids_of(cluster)[0] == pids[0]
    assert values_of(cluster.run("kept", "0")) == {0: "7"}


def test_a_stopped_pool_is_stopped(pools: Pools) -> None:
    """`%ddp stop` ends ranks that are stopped; the next pool works, and knows nothing of it."""
    cluster = pools.of(2)
    for pid in pids_of(cluster):
        os.kill(pid, signal.SIGSTOP)
    cluster.restart()
    assert states_of(cluster) == ["idle", "idle"]
    assert cluster.run(REDUCE).ok
