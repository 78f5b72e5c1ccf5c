"""What else goes wrong while the pool comes up: the start fails at once, says why, and leaves nothing.

Deaths in each phase of it are in `test_crash_table` and `test_owners_die`.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable

import pytest

from jupyter_ddp import Cluster
from jupyter_ddp.core import messages as m
from jupyter_ddp.core.errors import PoolError
from jupyter_ddp.node.linux import children
from tests.fault.pools import REDUCE, Pools, eventually, gone
from tests.promises import Stopwatch

PHASES = {"forked": m.WorkerForked, "connected": m.WorkerConnected}


_Act = Callable[[int], None]


class Ambush:
    """Does something at the first message of a kind from a rank, and notes the time."""

    def __init__(self, cluster: Cluster, kind: type[m.Message], rank: int, act: _Act) -> None:
        exchange = cluster._life.exchange
        assert exchange is not None
        self._exchange, self._real = exchange, exchange._on_message
        self._kind, self._rank, self._act = kind, rank, act
        self.at = 0.0
        self.pids: list[int] = []

    def __enter__(self) -> Ambush:
        self._exchange._on_message = self._look
        return self

    def __exit__(self, *_: object) -> None:
        self._exchange._on_message = self._real

    def _look(self, message: m.NodeToKernel) -> None:
        self._real(message)
        if isinstance(message, m.WorkerForked):
            self.pids.append(message.pid)
        if isinstance(message, self._kind) and message.rank == self._rank and not self.at:
            self.at = time.monotonic()
            self._act(message.pid)


def stopped(pools: Pools) -> Cluster:
    """A cluster whose forkserver is warm, without a pool."""
    cluster = pools.of(2)
    cluster.stop()
    return cluster


@pytest.mark.promise("a rank fails while the pool starts: the end of its stderr is shown", bound_s=1)
def test_the_end_of_its_stderr(pools: Pools, promised: Stopwatch, monkeypatch: pytest.MonkeyPatch) -> None:
    """A rank that cannot have the notebook's directory says so with its traceback's last line."""
    cluster = stopped(pools)
    with monkeypatch.context() as patch:
        patch.setattr(os, "getcwd", lambda: "/no/such/directory")
        with promised(), pytest.raises(PoolError, match="No such file or directory: '/no/such/directory'"):
            cluster.start(2)
    cluster.start(2)


def test_the_forkserver_is_killed(pools: Pools) -> None:
    """Before it forked: the start says so, and the next one makes a new forkserver."""
    cluster = stopped(pools)
    assert cluster._life.exchange is not None
    (connection,) = cluster._life.exchange._connections.values()
    (forkserver,) = children(connection.node.process.pid)  # type: ignore[attr-defined]
    os.kill(forkserver, signal.SIGKILL)
    eventually(lambda: cluster._life.forkserver_lost, 5)
    cluster.start(2)
    assert cluster.run(REDUCE).ok


@pytest.mark.promise("interrupt: while the pool starts", bound_s=1)
@pytest.mark.parametrize("phase", PHASES)
def test_interrupt(pools: Pools, promised: Stopwatch, phase: str) -> None:
    """The start is undone: no process of it is left, and the next one works."""
    cluster = stopped(pools)
    with Ambush(cluster, PHASES[phase], 1, lambda _: cluster.interrupt()) as ambush:
        with pytest.raises(PoolError, match="interrupted"):
            cluster.start(2)
        promised.took(time.monotonic() - ambush.at)
    assert gone(ambush.pids)
    cluster.start(2)
    assert cluster.run(REDUCE).ok


def test_a_rank_that_is_stopped_while_it_starts(pools: Pools) -> None:
    """The start waits for it; an interrupt ends the wait, and the rank."""
    cluster = stopped(pools)
    failures: list[PoolError] = []

    def start() -> None:
        try:
            cluster.start(2)
        except PoolError as error:
            failures.append(error)

    stop = lambda pid: os.kill(pid, signal.SIGSTOP)  # noqa: E731 - as short as it is
    with Ambush(cluster, m.WorkerForked, 1, stop) as ambush:
        starting = threading.Thread(target=start)
        starting.start()
        eventually(lambda: "stopped (state T)" in [s.state for s in cluster.status()], 10)
        cluster.interrupt()
        starting.join(10)
    assert [str(error) for error in failures] == ["interrupted"]
    assert gone(ambush.pids)
    cluster.start(2)
