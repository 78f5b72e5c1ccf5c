"""A rank is killed by somebody else, whatever it does just then; and ranks that do not want to leave.

What a rank does to itself, in every moment, is in `test_crash_table`.
"""

from __future__ import annotations

import os
import signal

import pytest

from tests.fault.pools import REDUCE, Pools, RunningCell, eventually, gone, run_to_failure
from tests.fault.victim import Victim
from tests.promises import Stopwatch

DOING = {
    "computing": "print('on')\nwhile True: pass",
    "asleep": "print('on'); time.sleep(300)",
    "in a collective": "print('on'); dist.recv(torch.ones(1), src=0, tag=7)",
    "printing": "print('on')\nwhile True: print('x' * 99)",
    "allocating": "hoard = []; print('on')\nwhile True: hoard.append(bytes(4096)); del hoard[:-9999]",
    "holding the GIL": "import ctypes; print('on', flush=True); ctypes.PyDLL(None).sleep(300)",
    "with children": "subprocess.Popen(['sleep', '300'])\nprint('on'); time.sleep(300)",
    "in an await": "import asyncio\nprint('on'); await asyncio.sleep(300)",
}
"""What the last rank does when it is killed; the others wait for it in a collective."""


@pytest.mark.promise("a rank killed in a cell: the cell names the signal, the others are freed", bound_s=3)
@pytest.mark.parametrize(
    ("doing", "n"), [(doing, 2) for doing in DOING] + [("computing", 1), ("in a collective", 4)]
)
def test_a_rank_is_killed_in_a_cell(pools: Pools, promised: Stopwatch, doing: str, n: int) -> None:
    """SIGKILL, whatever the rank does: the others wait for it in a collective, and are freed."""
    victim = Victim(pools, n)
    body = "\n".join(f"    {line}" for line in DOING[doing].split("\n"))
    cell = RunningCell(victim.cluster, f"if rank == {n - 1}:\n{body}\nelse:\n    print('on'); {REDUCE}")
    cell.until("on")
    with promised():
        os.kill(victim.pids[-1], signal.SIGKILL)
        cell.end()
    assert cell.words.startswith(f"rank {n - 1}: killed by SIGKILL"), cell.words
    cell.end().close()  # the last records are kept, and with them the file that a flood is in
    victim.check_aftermath("killed by SIGKILL")


GROUPS = "pairs = [dist.new_group([0, 1]), dist.new_group([2, 3])]"
DDP = "model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(2, 2))"


@pytest.mark.parametrize("n", [4])
def test_a_death_leaves_alone_a_group_that_it_is_not_in(pools: Pools, n: int) -> None:
    """Ranks 2 and 3 go on with each other."""
    cluster = pools.of(n)
    cluster.run(GROUPS)
    source = "dist.all_reduce(torch.ones(1), group=pairs[1])"
    cell = RunningCell(
        cluster,
        "import time\nprint('on')\n"
        "if rank == 0: time.sleep(300)\n"
        "if rank > 1:\n"
        "    end = time.monotonic() + 3\n"
        "    go_on = torch.ones(1)\n"
        "    while go_on.item():\n"
        f"        {source}\n"
        "        go_on.fill_(rank == 3 or time.monotonic() < end)\n"
        "        dist.broadcast(go_on, src=2, group=pairs[1])\n"
        "    print('done')",
    )
    cell.until("on")
    os.kill(cluster.status()[0].pid, signal.SIGKILL)
    record = cell.end()
    assert [r.verdict for r in record] == ["died", "ok", "ok", "ok"], cell.words
    assert all("done" in record[rank].stdout for rank in (2, 3))
    assert cluster.run(source, "2,3").ok
    cluster.heal()
    assert cluster.run(REDUCE).ok


def test_groups_of_earlier_cells_after_a_death(pools: Pools) -> None:
    """A cell on the living that uses one fails with the remedy in its words; other errors are its own."""
    cluster = pools.of(2)
    cluster.run("pair = dist.new_group([0, 1])\n" + DDP)
    cell = RunningCell(cluster, "print('on'); dist.recv(torch.ones(1), src=1 - rank, tag=7)")
    cell.until("on")
    os.kill(cluster.status()[1].pid, signal.SIGKILL)
    assert [r.verdict for r in cell.end()] == ["interrupted", "died"]
    for source in ("dist.barrier(pair)", "model(torch.ones(1, 2)).sum().backward()"):
        words, record = run_to_failure(cluster, source, "0")
        assert record[0].verdict == "error"
        assert "was broken when a rank died; %ddp heal forms it again (line 1)" in words
    assert "RuntimeError: mine (line 1)" in run_to_failure(cluster, "raise RuntimeError('mine')", "0")[0]
    cluster.heal(0)
    os.kill(cluster.status()[1].pid, signal.SIGKILL)
    eventually(lambda: cluster.status()[1].state == "dead", 5)
    words, _ = run_to_failure(cluster, "dist.barrier(pair)", "0")
    assert "rank 0: blocked by rank 1, which is dead; %ddp heal replaces it" in words


@pytest.mark.promise("a rank that is killed while it is stopped (SIGSTOP) is named as killed", bound_s=3)
def test_a_stopped_rank_is_killed(pools: Pools, promised: Stopwatch) -> None:
    """SIGSTOP, then SIGKILL: the signal that ended it is told."""
    victim = Victim(pools, 2)
    cell = RunningCell(victim.cluster, f"print('on')\nif rank:\n    time.sleep(300)\n{REDUCE}")
    cell.until("on")
    os.kill(victim.pids[-1], signal.SIGSTOP)
    with promised():
        os.kill(victim.pids[-1], signal.SIGKILL)
        cell.end()
    assert cell.words.startswith("rank 1: killed by SIGKILL"), cell.words
    victim.check_aftermath("killed by SIGKILL")


@pytest.mark.promise("a rank that does not want to leave does not delay the pool's stop", bound_s=3)
@pytest.mark.parametrize(
    "at_exit",
    [
        "raise RuntimeError('in an exit function')",
        "sys.exit(7)",
        "os.kill(os.getpid(), signal.SIGSTOP)",
        "time.sleep(300)",
        "import ctypes; ctypes.PyDLL(None).sleep(300)",
        "subprocess.Popen(['sleep', '300'], start_new_session=True); time.sleep(300)",
    ],
)
def test_a_rank_that_does_not_leave(pools: Pools, promised: Stopwatch, at_exit: str) -> None:
    """Exit functions may raise, exit, stop, hang: the pool stops in its time, and the next one works."""
    victim = Victim(pools, 2)
    victim.cluster.run(f"import atexit\ndef leave():\n    {at_exit}\nif rank: atexit.register(leave)")
    with promised():
        victim.cluster.stop()
    assert gone(victim.pids)
    assert victim.cluster.run(REDUCE).ok
