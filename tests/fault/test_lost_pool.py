"""All ranks or the node agent killed: the notebook kernel says why and goes on."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest

from jupyter_ddp.core.errors import PoolError
from jupyter_ddp.core.healing import NOBODY_LEFT
from tests.fault.pools import (
    REDUCE,
    Pools,
    RunningCell,
    agent_of,
    eventually,
    gone,
    pids_of,
    states_of,
    values_of,
)
from tests.promises import Stopwatch

CHILDREN = """
import os, pathlib, subprocess, time
noted = pathlib.Path("FOLDER", str(rank))
kids = [subprocess.Popen(["sleep", "301"]), subprocess.Popen(["sleep", "301"], start_new_session=True)]
subprocess.run(f"setsid sh -c 'echo $$ > {noted}.new; mv {noted}.new {noted}; sleep 301; true' &", shell=True)
forked = os.fork()
if not forked:
    os.setsid()
    time.sleep(301)
    os._exit(0)
while not noted.exists():
    time.sleep(0.01)
[*(kid.pid for kid in kids), forked, int(noted.read_text())]"""


@pytest.mark.promise("all ranks are killed: `pool lost`", bound_s=1)
@pytest.mark.parametrize("n", [1, 2, 4])
def test_all_ranks_are_killed_in_a_cell(pools: Pools, promised: Stopwatch, n: int) -> None:
    """The cell ends with the signal, the pool is lost, and says how to go on."""
    cluster = pools.of(n)
    cell = RunningCell(cluster, "print('on')\nwhile True: pass")
    cell.until("on")
    with promised():
        for pid in pids_of(cluster):
            os.kill(pid, signal.SIGKILL)
        cell.end()
        said = eventually(cluster.announcements, 5)
    assert "killed by SIGKILL" in cell.words
    assert said == [f"pool lost: every rank died (killed by SIGKILL); {NOBODY_LEFT}"]
    with pytest.raises(PoolError, match=r"^pool lost: ranks? 0.* died: killed by SIGKILL.*%ddp heal"):
        cluster.run("1")
    cluster.restart()
    assert cluster.run(REDUCE).ok


@pytest.mark.promise("all ranks are killed between cells: `pool lost`", bound_s=1)
def test_all_ranks_are_killed_while_idle(pools: Pools, promised: Stopwatch) -> None:
    """Each is named, and then that none is left."""
    cluster = pools.of(2)
    with promised():
        for pid in pids_of(cluster):
            os.kill(pid, signal.SIGKILL)
        said: list[str] = []
        eventually(lambda: said.extend(cluster.announcements()) or len(said) == 3, 5)
    assert states_of(cluster) == ["dead", "dead"]
    assert sorted(line.partition(":")[0] for line in said[:2]) == ["rank 0 died", "rank 1 died"]
    assert said[2].startswith("pool lost: ")


@pytest.mark.promise("the node agent is killed while ranks hold the GIL: they are gone with it", bound_s=1)
def test_the_agent_is_killed_while_ranks_hold_the_gil(pools: Pools, promised: Stopwatch) -> None:
    """No thread of theirs can act: the system ends them, and the cell says why."""
    cluster = pools.of(2)
    cell = RunningCell(cluster, "print('on', flush=True)\nimport ctypes; ctypes.PyDLL(None).sleep(300)")
    cell.until("on")
    pids = pids_of(cluster)
    with promised():
        os.kill(agent_of(cluster), signal.SIGKILL)
        cell.end()
        eventually(lambda: gone(pids), 5)
    assert cell.words.startswith("ranks 0-1: the node agent was killed by SIGKILL"), cell.words
    (said,) = cluster.announcements()
    assert said.startswith("pool lost: the node agent was killed by SIGKILL")
    assert cluster.run(REDUCE).ok


@pytest.mark.promise("the node agent is killed: what its ranks have started goes too", bound_s=2)
def test_the_agent_is_killed_where_ranks_have_children(
    pools: Pools, promised: Stopwatch, tmp_path: Path
) -> None:
    """Children, in a session of their own too, their orphans, and forks: none of them is left."""
    cluster = pools.of(2)
    record = cluster.run(CHILDREN.replace("FOLDER", str(tmp_path)))
    started = [pid for text in values_of(record).values() for pid in json.loads(text)]
    assert len(started) == 8
    assert not gone(started)
    with promised():
        os.kill(agent_of(cluster), signal.SIGKILL)
        eventually(lambda: gone(started), 5)
    assert cluster.run(REDUCE).ok


def test_the_agent_is_ended_while_idle(pools: Pools) -> None:
    """The pool is lost, says why, and the next cell starts another."""
    cluster = pools.of(2)
    pids = pids_of(cluster)
    os.kill(agent_of(cluster), signal.SIGTERM)
    eventually(lambda: not cluster.running and gone(pids), 5)
    (said,) = cluster.announcements()
    assert said.startswith("pool lost: the node agent exited with code 0")
    assert cluster.run(REDUCE).ok
