"""What the processes of a cluster hold, and how fast that grows."""

from __future__ import annotations

import os
import statistics
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path

from msgspec import Struct

from jupyter_ddp import Cluster
from jupyter_ddp.node.linux import children
from tests.fault.pools import pids_of


class Use(Struct, frozen=True):
    """What one process holds."""

    descriptors: int
    threads: int
    private_bytes: int
    """Memory that it alone has: what it shares with the forkserver, or with its agent, is left out."""


def use_of(pid: int) -> Use:
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    private = [line.split()[1] for line in rollup.splitlines() if line.startswith(("Private_Dirty", "Swap:"))]
    return Use(
        descriptors=len(list(Path(f"/proc/{pid}/fd").iterdir())),
        threads=len(list(Path(f"/proc/{pid}/task").iterdir())),
        private_bytes=1024 * sum(map(int, private)),
    )


def uses_of(cluster: Cluster) -> dict[str, Use]:
    """Of every process there is."""
    ranks = pids_of(cluster)
    stat = Path(f"/proc/{ranks[0]}/stat").read_text()
    agent = int(stat.rpartition(")")[2].split()[1])
    (forkserver,) = set(children(agent)) - set(ranks)
    pids = {"kernel": os.getpid(), "agent": agent, "forkserver": forkserver}
    pids |= {f"rank {rank}": pid for rank, pid in enumerate(ranks)}
    return {name: use_of(pid) for name, pid in pids.items()}


def store_keys(cluster: Cluster) -> int:
    assert cluster._life.rendezvous is not None
    return int(cluster._life.rendezvous._store.num_keys())


def growth(numbers: Sequence[int], private_bytes: Sequence[int]) -> float:
    """Bytes a cell: the median of the slopes between any two samples (Theil and Sen).

    An allocator that takes a megabyte once, or gives it back, does not move it; what stays of each cell does.
    """
    points = list(zip(numbers, private_bytes, strict=True))
    return statistics.median(
        (after - before) / (n - m) for (m, before), (n, after) in combinations(points, 2)
    )
