"""Many cells, many groups, many healed ranks: what is kept of each is bounded.

The suite runs a short version; `make soak` sets JUPYTER_DDP_SOAK to the number of cells (10,000, with 200
groups formed again and 50 healed ranks among them).
"""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from msgspec import Struct

from jupyter_ddp import Cluster
from jupyter_ddp.core import running_cell
from tests.fault.pools import REDUCE, eventually, pids_of

CELLS = int(os.environ.get("JUPYTER_DDP_SOAK", "600"))
WARM_UP = 300
"""Cells after which caches are full: IPython's own, the allocator's, the last records'."""
GROUPS = max(3, CELLS // 50)
HEALS = max(2, CELLS // 200)
KEPT_BYTES = 1024
"""A cell may leave so much behind, in each process."""
NOISE_BYTES = 512 * 1024
"""What a process's resident memory goes up and down by itself, in a short run."""


class Use(Struct, frozen=True):
    """What one process holds."""

    descriptors: int
    threads: int
    private_bytes: int


def use_of(pid: int) -> Use:
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    private = [line.split()[1] for line in rollup.splitlines() if line.startswith(("Private_Dirty", "Swap:"))]
    return Use(
        descriptors=len(list(Path(f"/proc/{pid}/fd").iterdir())),
        threads=len(list(Path(f"/proc/{pid}/task").iterdir())),
        private_bytes=1024 * sum(map(int, private)),
    )


def agent_of(cluster: Cluster) -> int:
    stat = Path(f"/proc/{pids_of(cluster)[0]}/stat").read_text()
    return int(stat.rpartition(")")[2].split()[1])


def processes(cluster: Cluster) -> dict[str, int]:
    ranks = {f"rank {rank}": pid for rank, pid in enumerate(pids_of(cluster))}
    return {"kernel": os.getpid(), "agent": agent_of(cluster), **ranks}


@pytest.mark.timeout(0 if CELLS > 1000 else 240)
def test_cells_leave_nothing_behind(capsys: pytest.CaptureFixture[str]) -> None:
    """Descriptors, threads and the store's keys stay as they are; memory grows by less than 1 KiB a cell."""
    with Cluster(2) as cluster:
        run_cells(cluster, WARM_UP)
        keys = store_keys(cluster)
        before = {name: use_of(pid) for name, pid in processes(cluster).items()}
        run_cells(cluster, CELLS)
        after = {name: use_of(pid) for name, pid in processes(cluster).items()}
        grown = {name: after[name].private_bytes - before[name].private_bytes for name in before}
        with capsys.disabled():
            print({name: f"{bytes / CELLS:.0f} bytes a cell" for name, bytes in grown.items()})  # noqa: T201
        for name, use in before.items():
            assert after[name].descriptors <= use.descriptors, name
            assert after[name].threads <= use.threads, name
            assert grown[name] < KEPT_BYTES * CELLS + NOISE_BYTES, f"{name} has grown by {grown[name]} bytes"
        assert store_keys(cluster) == keys


@pytest.mark.timeout(0 if CELLS > 1000 else 240)
def test_groups_and_healed_ranks_leave_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    """However often a group is formed again and a rank replaced, the processes hold what they held."""
    monkeypatch.setattr(running_cell, "PEER_FAILED_TIMEOUT_S", 0.02)
    monkeypatch.setattr(running_cell, "PEER_DIED_TIMEOUT_S", 0.02)
    with Cluster(2) as cluster:
        grow_old(cluster)
        before = {name: use_of(pid) for name, pid in processes(cluster).items()}
        for number in range(GROUPS):
            break_the_group(cluster)
            if number % (GROUPS // HEALS) == 0:
                heal(cluster)
        grow_old(cluster)
        after = {name: use_of(pid) for name, pid in processes(cluster).items()}
        for name, use in before.items():
            assert after[name].descriptors <= use.descriptors, name
            assert after[name].threads <= use.threads, name


def run_cells(cluster: Cluster, count: int) -> None:
    """Cells as people write them: each another text, with output, a value, now and then an error."""
    for number in range(count):
        if number % 50 == 49:
            record = cluster.run(f"if rank == 1: raise ValueError({number})", check=False)
            assert record[1].verdict == "error"
        else:
            cluster.run(f"# {number}\n{REDUCE}\nprint('step', {number}, 'x' * 200)\nt.item() + {number}")


def break_the_group(cluster: Cluster) -> None:
    record = cluster.run(f"if rank == 0: raise ValueError\n{REDUCE}", check=False)
    assert record[1].verdict == "interrupted"
    cluster.run(REDUCE)


def grow_old(cluster: Cluster) -> None:
    """A new rank, and what each rank keeps of the groups that it has seen broken, which is bounded."""
    heal(cluster)
    for _ in range(3):
        break_the_group(cluster)


def heal(cluster: Cluster) -> None:
    os.kill(pids_of(cluster)[1], signal.SIGKILL)
    eventually(lambda: cluster.status()[1].state == "dead", 5)
    cluster.heal()
    cluster.run(REDUCE)


def store_keys(cluster: Cluster) -> int:
    assert cluster._life.rendezvous is not None
    return int(cluster._life.rendezvous._store.num_keys())
