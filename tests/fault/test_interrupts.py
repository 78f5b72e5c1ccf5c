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
