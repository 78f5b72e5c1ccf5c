"""A whole cluster over a node agent that the test makes up: what no machine can be brought to do at will."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from jupyter_ddp import Cluster
from jupyter_ddp.core import messages as m
from jupyter_ddp.core.errors import PoolError, UsageError
from jupyter_ddp.core.record import RankError
from jupyter_ddp.kernel import life
from tests.contract.fake_node import FIRST_PID, FakeNode

GIB = 2**30
TWO_GPUS = [m.Gpu(i, f"GPU-{i}", "H200", 140 * GIB) for i in range(2)]
Make = Callable[..., tuple[Cluster, FakeNode]]


@pytest.fixture
def make(monkeypatch: pytest.MonkeyPatch) -> Iterator[Make]:
    """A cluster and the node that it will meet. Torch has no part in it."""
    made: list[Cluster] = []
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    idle = SimpleNamespace(begin=lambda: None, wait=lambda timeout_s: None, busy=False)
    store = SimpleNamespace(host="127.0.0.1", port=1, close=lambda: None)
    monkeypatch.setattr(life, "TorchImport", lambda: idle)
    monkeypatch.setattr(life, "Rendezvous", lambda: store)

    def make(**settings: Any) -> tuple[Cluster, FakeNode]:
        node = FakeNode(**settings)
        monkeypatch.setattr(life, "LocalNode", lambda preload: node)
        made.append(Cluster())
        return made[-1], node

    yield make
    for cluster in made:
        cluster.close()


def pids(cluster: Cluster) -> list[int]:
    return [r.pid for r in cluster.status()]


@pytest.mark.promise("a node agent of another version is refused, and no rank is asked for")
def test_a_wrong_version(make: Make) -> None:
    """One line with both versions and the remedy; the agent is let go of."""
    cluster, node = make(version=m.PROTOCOL_VERSION + 1)
    with pytest.raises(PoolError) as refused:
        cluster.start(2)
    assert str(refused.value) == (
        f"the node agent speaks version {m.PROTOCOL_VERSION + 1}, this package {m.PROTOCOL_VERSION}: "
        "install one release on both"
    )
    assert node.closed
    assert not any(isinstance(order, m.StartRanks) for order in node.orders)
    assert cluster.phase == "stopped"


@pytest.mark.promise("a rank that joins a second time changes nothing in the pool")
def test_a_duplicate_rank(make: Make) -> None:
    """Replayed and forged joins, births and ends: same processes, same group, the next cell runs."""
    cluster, node = make()
    cluster.start(2)
    before = pids(cluster)
    node.say(
        m.WorkerConnected(*node.sender(0), pid=before[0]),
        m.WorkerConnected(*node.sender(0), pid=FIRST_PID + 7),
        m.WorkerForked(1, FIRST_PID + 7),
        m.GroupFormed(*node.sender(1), seconds=0.1),
        m.GroupFailed(1, 77, 0, 0, "of no generation"),
        m.WorkerConnected(*node.sender(9), pid=FIRST_PID + 9),
        m.WorkerExited(0, FIRST_PID + 7, 9, 0, 0, "", 0),
        m.CellFinished(*node.sender(0, 77), verdict="error", duration_s=0.1),
    )
    assert cluster.run("pass").ok
    assert pids(cluster) == before
    assert [r.state for r in cluster.status()] == ["idle", "idle"]
    assert cluster.announcements() == []


@pytest.mark.promise("a process that the system does not end: the cell and the stop end, and name its PID")
def test_a_rank_that_cannot_be_killed(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three interrupts, then a stop, and every wait is over in its time."""
    monkeypatch.setattr("jupyter_ddp.core.running_cell.KILL_TIMEOUT_S", 0.2)
    monkeypatch.setattr("jupyter_ddp.core.pool.KILL_TIMEOUT_S", 0.2)
    monkeypatch.setattr("jupyter_ddp.core.pool.STOP_TIMEOUT_S", 0.2)
    cluster, node = make()
    cluster.start(2)
    node.busy = node.immortal = True

    def press() -> None:
        assert node.told_to_run.wait(10)
        for _ in range(3):
            cluster.interrupt()

    pressing = threading.Thread(target=press)
    pressing.start()
    with pytest.raises(RankError) as failed:
        cluster.run("while True: pass")
    pressing.join()
    for rank, pid in enumerate(pids(cluster)):
        assert f"rank {rank}: the system does not end its process {pid}" in str(failed.value)
    with pytest.raises(PoolError, match="the system does not end processes") as stuck:
        cluster.stop()
    assert all(str(pid) in str(stuck.value) for pid in node.pids.values())
    assert cluster.phase == "stopped"
    node.busy = node.immortal = False
    cluster.start(1)
    assert cluster.run("pass").ok


@pytest.mark.promise("fewer GPUs than ranks: what is used instead is said, and what cannot be had is refused")
def test_fewer_gpus_than_ranks(make: Make) -> None:
    """gloo on shared GPUs, in one line with the numbers; NCCL is refused before any rank is asked for."""
    cluster, node = make(gpus=TWO_GPUS)
    with pytest.raises(UsageError, match=r"--backend nccl needs a GPU for each rank: 4 ranks, 2 GPUs"):
        cluster.start(4, backend="nccl")
    assert not any(isinstance(order, m.StartRanks) for order in node.orders)
    assert cluster.start(4) == "4 ranks on cuda, gloo (more ranks than GPUs: 2 GPUs for 4 ranks)"
    assert [r.device for r in cluster.status()] == ["cuda:0", "cuda:1", "cuda:0", "cuda:1"]
    cluster.stop()
    assert cluster.start(2) == "2 ranks on cuda, nccl"
