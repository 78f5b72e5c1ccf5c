"""The node agent, the forkserver or the notebook kernel is killed, whatever the ranks do in that moment.

The last rank kills it, so that the moment is exact. Each row costs a new forkserver, and with it an import
of torch, so that most are left to `make test-all` and `make soak`. The agent's are all there in pools of two:
only its death concerns what the pool says. Of the others there are those moments in which processes are born,
or in which nobody but the system can end them.
"""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from jupyter_ddp import Cluster
from jupyter_ddp.core.errors import DDPError, PoolError
from tests.fault.fuse import COMING_UP, IN_A_COLLECTIVE, WITH_FUSES, WITHOUT_GROUP, Fuse
from tests.fault.pools import REDUCE, Pools, RunningCell, eventually, gone, pids_of
from tests.fault.ways_to_die import FUSE
from tests.integration.notebook_kernel import TAG, tagged
from tests.promises import Stopwatch

SETTINGS = WITH_FUSES
CELLS = {"computing": "print('on')\nwhile True: pass", "in a collective": IN_A_COLLECTIVE}
MOMENTS = (*COMING_UP, "idle", *CELLS, "joining again", "stopping")


def rows(*in_short: str) -> Any:
    """Each size crossed with each moment; the short run has pools of 2 ranks, in these moments."""
    all_rows = [(n, moment) for n in (1, 2, 4) for moment in MOMENTS]
    marks = {row: [] if row[0] == 2 and row[1] in in_short else [pytest.mark.slow] for row in all_rows}
    return pytest.mark.parametrize(
        ("n", "moment"), [pytest.param(*row, marks=marks[row]) for row in all_rows]
    )


def play(cluster: Cluster, n: int, moment: str, owner: str, fuse: Fuse) -> RunningCell | None:
    """Have the last of `n` ranks kill the owner in the moment. The cell that runs meanwhile, if one does."""
    if moment in COMING_UP:
        cluster.stop()
        os.environ[FUSE] = fuse.environ(n - 1, moment, owner)
        try:
            cluster.start(n)
        finally:
            del os.environ[FUSE]
        return None
    fused = {"joining again": "joining", "stopping": "stopping"}.get(moment, "told")
    cluster.run(f"kept = rank\n{fuse.cell(n - 1, fused, owner)}")
    if moment == "joining again":
        cluster.run(WITHOUT_GROUP, check=False)
    elif moment == "stopping":
        cluster.stop()
    else:
        cell = RunningCell(cluster, CELLS[moment]) if moment in CELLS else None
        if cell is not None:
            cell.until("on")
        fuse.light()
        return cell
    return None


@pytest.mark.promise("the node agent is killed: its ranks are gone, and it is said why", bound_s=1)
@rows(*MOMENTS)
def test_the_agent_is_killed(pools: Pools, promised: Stopwatch, fuse: Fuse, n: int, moment: str) -> None:
    """By a start's failure, a cell's, or a line outside any; the next cell makes a new agent."""
    cluster = pools.of(n)
    pids = pids_of(cluster)
    if moment in COMING_UP:
        with pytest.raises(PoolError, match=r"^the node agent was killed by SIGKILL"):
            play(cluster, n, moment, "agent", fuse)
    else:
        cell = play(cluster, n, moment, "agent", fuse)
        eventually(lambda: not cluster.running and fuse.note.exists(), 5)
        if cell is not None:
            cell.end()
            assert ": the node agent was killed by SIGKILL" in cell.words
        if moment != "stopping":
            (said,) = cluster.announcements()
            assert said.startswith("pool lost: the node agent was killed by SIGKILL")
    eventually(lambda: gone(pids), 5)
    promised.took(fuse.since_s)
    assert cluster.run(REDUCE).ok


@pytest.mark.promise(
    "the forkserver is killed: the ranks live on; a start ends, well or with a line", bound_s=5
)
@rows("forked", "computing")
def test_the_forkserver_is_killed(pools: Pools, promised: Stopwatch, fuse: Fuse, n: int, moment: str) -> None:
    """Only ranks that are still to be born need it: cells run as before, also one that runs just then."""
    cluster = pools.of(n)
    pids = pids_of(cluster)
    cell, failure = None, ""
    try:
        cell = play(cluster, n, moment, "forkserver", fuse)
    except PoolError as error:
        failure = str(error)
    eventually(fuse.note.exists, 5)
    if moment in COMING_UP:
        promised.took(fuse.since_s)
    # It may not have told yet of a rank that has not connected either: of that one nobody knows.
    assert not failure or moment in ("forked", "connected")
    assert "\n" not in failure
    if cell is not None:
        cluster.interrupt()
        assert [r.verdict for r in cell.end()] == ["interrupted"] * n
    if moment not in (*COMING_UP, "stopping"):
        assert cluster.run(f"{REDUCE}; assert kept == rank").ok
        assert pids_of(cluster) == pids
    eventually(lambda: cluster._life.forkserver_lost or not cluster.running, 5)
    cluster.restart(n)
    assert cluster.run(REDUCE).ok
    assert gone(pids)


@pytest.mark.promise("the notebook kernel is killed, at any moment: no process of ours is left", bound_s=2)
@rows("connected", "joining again", "stopping")
def test_the_notebook_kernel_is_killed(promised: Stopwatch, fuse: Fuse, n: int, moment: str) -> None:
    """Its agent sees it, by the end of file or its pidfd, and takes all ranks with it."""
    tag = secrets.token_hex(8)
    arguments = [str(n), moment, str(fuse.note.parent)]
    environ = {**os.environ, TAG: tag}
    kernel = subprocess.Popen([sys.executable, "-m", "tests.fault.test_owners_die", *arguments], env=environ)
    try:
        assert kernel.wait(60) == -signal.SIGKILL
        eventually(lambda: not tagged(tag), 5, "processes of ours")
        promised.took(fuse.since_s)
    finally:
        kernel.kill()
        kernel.wait()
        for pid in tagged(tag):
            os.kill(pid, signal.SIGKILL)


def main() -> None:
    """The process whose ranks kill it."""
    n, moment, folder = int(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
    os.environ["KERNEL"] = str(os.getpid())
    with Cluster(n, **WITH_FUSES) as cluster:  # type: ignore[arg-type]
        try:
            play(cluster, n, moment, "kernel", Fuse(folder))
        except DDPError as error:
            sys.exit(f"not killed: {error}")
        signal.alarm(10)
        signal.pause()


if __name__ == "__main__":
    main()
