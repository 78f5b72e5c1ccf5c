"""Every way to die, at every moment: who is told what in which time, and what survives.

One rank dies, the last; what dies of itself does so in one of DEATHS, what is killed is killed in one of
MOMENTS. Pools of other sizes, where it makes a difference: alone there is nobody to wait.
"""

from __future__ import annotations

import os
import re
import signal

import pytest

from jupyter_ddp import Cluster
from jupyter_ddp.core.errors import PoolError
from tests.fault.pools import (
    REDUCE,
    Pools,
    RunningCell,
    eventually,
    gone,
    pids_of,
    run_to_failure,
    states_of,
    values_of,
)
from tests.promises import Stopwatch

TOLD_S = 1.0
"""From a death to its line in the pool's table."""

DEATHS = {
    "SIGKILL": ("os.kill(os.getpid(), signal.SIGKILL)", r"killed by SIGKILL"),
    "SIGTERM": ("os.kill(os.getpid(), signal.SIGTERM)", r"killed by SIGTERM"),
    "SIGSEGV": ("faulthandler._sigsegv()", r"killed by SIGSEGV \(line 3\)"),
    "SIGABRT": ("os.abort()", r"killed by SIGABRT \(line 3\)"),
    "SIGFPE": ("faulthandler._sigfpe()", r"killed by SIGFPE \(line 3\)"),
    "_exit(0)": ("os._exit(0)", r"exited with code 0 \(line 3\)"),
    "_exit(3)": ("os._exit(3)", r"exited with code 3 \(line 3\)"),
    "_exit in a thread": (
        "threading.Thread(target=os._exit, args=[4]).start(); time.sleep(60)",
        r"exited with code 4",
    ),
    "exec": ("os.execv('/bin/sh', ['sh', '-c', 'exit 5'])", r"exited with code 5"),
    "no memory": (
        "resource.setrlimit(resource.RLIMIT_AS, (1, 1)); faulthandler._sigsegv()",
        r"killed by SIG",
    ),
    "children": (
        "subprocess.Popen(['sleep', '300']); subprocess.Popen(['sleep', '301'], start_new_session=True); "
        "os.kill(os.getpid(), signal.SIGKILL)",
        r"killed by SIGKILL",
    ),
}
"""What a rank does to itself on line 3 of a cell: (the source, what the user is told of it)."""
IMPORTS = "import ctypes, faulthandler, os, resource, signal, subprocess, threading, time"

MOMENTS = {
    "computing": "print('on')\nwhile True: pass",
    "asleep": "print('on'); time.sleep(300)",
    "in a collective": "print('on'); dist.recv(torch.ones(1), src=0, tag=7)",
    "printing": "print('on')\nwhile True: print('x' * 99)",
    "holding the GIL": "print('on', flush=True); ctypes.PyDLL(None).sleep(300)",
    "with children": "subprocess.Popen(['sleep', '300'])\n"
    "subprocess.Popen(['sleep', '301'], start_new_session=True)\nprint('on'); time.sleep(300)",
    "in an await": "import asyncio\nprint('on'); await asyncio.sleep(300)",
}
"""What the last rank does when it is killed; the others wait for it in a collective."""


def prepared(pools: Pools, n: int) -> tuple[Cluster, list[int]]:
    """A pool with a variable on each rank, and its PIDs."""
    cluster = pools.of(n)
    cluster.run(f"{IMPORTS}\nkept = 100 + rank")
    return cluster, pids_of(cluster)


def check_aftermath(cluster: Cluster, before: list[int], cause: str) -> None:
    """The last rank died of `cause`: the others are as they were, and the next pool works."""
    dead, alive = len(before) - 1, range(len(before) - 1)
    assert states_of(cluster) == ["idle"] * dead + ["dead"]
    assert pids_of(cluster)[:dead] == before[:dead]
    assert gone([before[dead]])
    with pytest.raises(PoolError, match=rf"rank {dead} died: {cause}.*nothing was run.*%ddp"):
        cluster.run("print('ran')")
    if alive:
        kept = cluster.run("kept", list(alive))
        assert values_of(kept) == {rank: str(100 + rank) for rank in alive}
    cluster.restart()
    assert cluster.run(REDUCE).ok


@pytest.mark.promise("a rank that ends itself, in whatever way: the cell says how, and the line", bound_s=3)
@pytest.mark.parametrize(("death", "n"), [(d, 2) for d in DEATHS] + [("SIGKILL", 1), ("SIGSEGV", 4)])
def test_a_rank_ends_itself_in_a_cell(pools: Pools, promised: Stopwatch, death: str, n: int) -> None:
    """The cell ends with the rank and the cause; who waited for it is blocked by it, and lives on."""
    cluster, before = prepared(pools, n)
    source, told = DEATHS[death]
    with promised():
        words, record = run_to_failure(
            cluster, f"print('last words')\nif rank == {n - 1}:\n    {source}\n{REDUCE}"
        )
    assert re.match(rf"rank {n - 1}: {told}", words), words
    assert [record[n - 1].verdict, record[n - 1].stdout] == ["died", "last words\n"]
    for rank in range(n - 1):
        assert record[rank].verdict == "interrupted"
        assert record[rank].death.startswith(f"blocked by rank {n - 1}")
    check_aftermath(cluster, before, told)


@pytest.mark.promise("a rank killed in a cell: the cell names the signal, the others are freed", bound_s=3)
@pytest.mark.parametrize(
    ("moment", "n"), [(moment, 2) for moment in MOMENTS] + [("computing", 1), ("in a collective", 4)]
)
def test_a_rank_is_killed_in_a_cell(pools: Pools, promised: Stopwatch, moment: str, n: int) -> None:
    """SIGKILL from outside, whatever the rank does."""
    cluster, before = prepared(pools, n)
    body = "\n".join(f"    {line}" for line in MOMENTS[moment].split("\n"))
    cell = RunningCell(
        cluster,
        f"if rank == {n - 1}:\n{body}\nelse:\n    print('on'); {REDUCE}",
    )
    cell.until("on")
    with promised():
        os.kill(before[-1], signal.SIGKILL)
        cell.end()
    assert cell.words.startswith(f"rank {n - 1}: killed by SIGKILL"), cell.words
    cell.end().close()  # the last records are kept, and with them the file that a flood is in
    check_aftermath(cluster, before, "killed by SIGKILL")


@pytest.mark.promise("a rank that is killed while it is stopped (SIGSTOP) is named as killed", bound_s=3)
def test_a_stopped_rank_is_killed(pools: Pools, promised: Stopwatch) -> None:
    """SIGSTOP, then SIGKILL: the signal that ended it is told."""
    cluster, before = prepared(pools, 2)
    cell = RunningCell(cluster, f"print('on')\nif rank:\n    time.sleep(300)\n{REDUCE}")
    cell.until("on")
    os.kill(before[1], signal.SIGSTOP)
    with promised():
        os.kill(before[1], signal.SIGKILL)
        cell.end()
    assert cell.words.startswith("rank 1: killed by SIGKILL"), cell.words
    check_aftermath(cluster, before, "killed by SIGKILL")


@pytest.mark.promise("a rank that is killed between cells is shown as dead before the next cell", bound_s=0.5)
@pytest.mark.parametrize("n", [1, 2, 4])
def test_a_rank_is_killed_while_idle(pools: Pools, promised: Stopwatch, n: int) -> None:
    """The table shows it, it is announced with the signal, and the next cell runs nothing."""
    cluster, before = prepared(pools, n)
    with promised():
        os.kill(before[-1], signal.SIGKILL)
        eventually(lambda: "dead" in states_of(cluster), 5)
    assert any(f"rank {n - 1} died: killed by SIGKILL" in said for said in cluster.announcements())
    check_aftermath(cluster, before, "killed by SIGKILL")


@pytest.mark.promise("a rank that dies while the pool stops does not delay it", bound_s=3)
@pytest.mark.parametrize(
    "at_exit",
    [
        "raise RuntimeError('in an exit function')",
        "sys.exit(7)",
        "os._exit(7)",
        "os.kill(os.getpid(), signal.SIGKILL)",
        "os.kill(os.getpid(), signal.SIGSTOP)",
        "faulthandler._sigsegv()",
        "time.sleep(300)",
        "ctypes.PyDLL(None).sleep(300)",
        "subprocess.Popen(['sleep', '300'], start_new_session=True); time.sleep(300)",
    ],
)
def test_a_rank_dies_while_the_pool_stops(pools: Pools, promised: Stopwatch, at_exit: str) -> None:
    """Exit functions may raise, exit, crash, hang: the pool stops in its time, and the next one works."""
    cluster, before = prepared(pools, 2)
    cluster.run(f"import atexit, sys\ndef leave():\n    {at_exit}\nif rank: atexit.register(leave)")
    with promised():
        cluster.stop()
    assert gone(before)
    assert cluster.run(REDUCE).ok
