"""Interrupts at bad moments: ranks that cannot hear them, and presses in quick succession."""

from __future__ import annotations

import random
import threading

import pytest

from tests.fault.pools import REDUCE, Pools, RunningCell, eventually, pids_of, states_of, values_of
from tests.promises import Stopwatch

DEADLOCK_IN_C = (
    "import ctypes\nmutex = ctypes.create_string_buffer(64)\nlock = ctypes.PyDLL(None).pthread_mutex_lock"
)
"""`lock(mutex); lock(mutex)` never returns, holds the GIL, and no signal ends it."""


LISTENING = {
    "loop": "while True: pass",
    "sleep": "time.sleep(300)",
    "await": "import asyncio; await asyncio.sleep(300)",
    "lock": "import threading; lock = threading.Lock(); lock.acquire(); lock.acquire()",
    "read": "import os; os.read(os.pipe()[0], 1)",
}


@pytest.mark.promise("interrupt: Python code, whether it computes or waits", bound_s=1)
@pytest.mark.parametrize("busy", LISTENING)
def test_python_code(pools: Pools, promised: Stopwatch, busy: str) -> None:
    """SIGINT is enough (the second step comes after two seconds): processes and variables are as before."""
    cluster = pools.of(2)
    cluster.run("import time; kept = rank")
    pids = pids_of(cluster)
    cell = RunningCell(cluster, f"print('on')\n{LISTENING[busy]}")
    cell.until("on")
    with promised():
        cluster.interrupt()
        cell.end()
    assert cell.words.startswith("ranks 0-1: interrupted"), cell.words
    cluster.run(f"{REDUCE}; assert kept == rank")
    assert pids_of(cluster) == pids


WAITS = {
    "all_reduce": "dist.all_reduce(torch.ones(1))",
    "barrier": "dist.barrier()",
    "recv": "dist.recv(torch.ones(1), 1)",
    "all_gather_object": "dist.all_gather_object([None] * 2, rank)",
    "a group of the user's": "dist.all_reduce(torch.ones(1), group=pair)",
    "new_group": "dist.new_group([0, 1])",
    "DDP backward": "model(torch.ones(1, 2)).sum().backward()",
}


@pytest.mark.promise("interrupt: in a collective or a store that one rank does not come to", bound_s=3)
@pytest.mark.parametrize("wait", WAITS)
def test_in_a_collective(pools: Pools, promised: Stopwatch, wait: str) -> None:
    """The group is broken and formed again: whoever waited is freed, and nobody has lost anything."""
    cluster = pools.of(2)
    cluster.run(
        "import time; kept = rank; pair = dist.new_group([0, 1])\n"
        "model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(2, 1))"
    )
    pids = pids_of(cluster)
    cell = RunningCell(cluster, f"print('on')\nif rank: time.sleep(300)\n{WAITS[wait]}")
    cell.until("on")
    with promised():
        cluster.interrupt()
        record = cell.end()
    assert [r.verdict for r in record] == ["interrupted"] * 2
    assert "rank 0: interrupted (line 3)" in cell.words
    cluster.run(
        "\n".join([REDUCE, "assert kept == rank", WAITS["DDP backward"], WAITS["a group of the user's"]])
    )
    assert pids_of(cluster) == pids


@pytest.mark.promise("interrupt: who waits for a rank in C code is freed, and keeps its variables", bound_s=3)
def test_c_code_that_holds_the_gil(pools: Pools, promised: Stopwatch) -> None:
    """One press frees the others although that rank does nothing for it; the third kills that rank alone."""
    cluster = pools.of(2)
    cluster.run(f"{DEADLOCK_IN_C}\nkept = rank + 7")
    pids = pids_of(cluster)
    cell = RunningCell(cluster, f"print('on', flush=True)\nif rank:\n    lock(mutex); lock(mutex)\n{REDUCE}")
    cell.until("on")
    record = cell.record
    assert record is not None
    with promised():
        cluster.interrupt()
        eventually(lambda: record[0].verdict, 20)
    assert record[0].verdict == "interrupted"
    assert cell.running
    cluster.interrupt()
    cluster.interrupt()
    cell.end()
    assert record[1].death.startswith("killed by SIGKILL")
    assert pids_of(cluster)[0] == pids[0]
    assert values_of(cluster.run("kept", "0")) == {0: "7"}


@pytest.mark.promise("interrupt: while what the cell held is let go of, which takes long", bound_s=3)
def test_an_interrupted_cell_whose_objects_end_slowly(pools: Pools, promised: Stopwatch) -> None:
    """A finalizer that waits (as a DataLoader's does for its workers) hears the second step's SIGINT."""
    cluster = pools.of(2)
    cluster.run("import time\nclass Slow:\n    def __del__(self): time.sleep(30)\nkept = rank")
    cell = RunningCell(cluster, "def wait():\n    slow = Slow()\n    print('on')\n    time.sleep(60)\nwait()")
    cell.until("on")
    with promised():
        cluster.interrupt()
        cell.end()
    assert "interrupted" in cell.words
    assert values_of(cluster.run("kept")) == {0: "0", 1: "1"}


def test_an_interrupt_makes_no_traceback(pools: Pools) -> None:
    """Nobody sees it, and where it takes long the next step's SIGINT would come in its midst."""
    cluster = pools.of(2)
    cluster.run(
        "import time\nshown = get_ipython().InteractiveTB\n"
        "shown.structured_traceback = lambda *_, **__: time.sleep(60)"
    )
    cell = RunningCell(cluster, "print('on')\ntime.sleep(60)")
    cell.until("on")
    cluster.interrupt()
    cell.end(20)  # not the minute that a traceback takes
    assert cell.words == "ranks 0-1: interrupted (line 2)"
    cluster.run("del shown.structured_traceback")


BUSY = {
    "loop": "while True: pass",
    "collective": f"if rank: time.sleep(60)\n{REDUCE}",
    "print": "while True: print('x' * 40)",
    "backtracking": "import re; re.match('(a+)+$', 'a' * 60 + 'b')",
    "command": "import subprocess; subprocess.run(['sleep', '60'])",
}


@pytest.mark.promise("interrupts in bursts, 0 to 500 ms apart: the cell ends, the pool works", bound_s=3)
@pytest.mark.parametrize("busy", BUSY)
@pytest.mark.parametrize("seed", range(3))
def test_bursts(pools: Pools, promised: Stopwatch, busy: str, seed: int) -> None:
    """Up to three presses at random distances: whoever lives has its variables, and cells run on."""
    cluster = pools.of(2)
    cluster.run("import time; kept = rank")
    seeded, pause = random.Random(f"{busy} {seed}"), threading.Event()
    cell = RunningCell(cluster, f"print('on')\n{BUSY[busy]}")
    cell.until("on")
    with promised():
        for _ in range(seeded.randrange(1, 4)):
            cluster.interrupt()
            pause.wait(seeded.choice([0, 0.002, 0.02, 0.1, 0.5]) * seeded.random())
        record = cell.end()
    assert "interrupted" in cell.words or "SIGKILL" in cell.words
    record.close()
    states = states_of(cluster)
    alive = [rank for rank, state in enumerate(states) if state == "idle"]
    assert states.count("dead") == 2 - len(alive)
    if alive:
        assert values_of(cluster.run("kept", alive)) == {rank: str(rank) for rank in alive}
    if len(alive) == 2:
        assert cluster.run(REDUCE).ok
