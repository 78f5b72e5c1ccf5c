"""The rank that dies in a test, and what has to be true of the others afterwards."""

from __future__ import annotations

import os

import pytest

from jupyter_ddp import Cluster
from jupyter_ddp.core.errors import PoolError
from jupyter_ddp.node.linux import children
from tests.fault.fuse import Fuse
from tests.fault.pools import (
    REDUCE,
    Pools,
    agent_of,
    eventually,
    gone,
    pids_of,
    state_of,
    states_of,
    values_of,
)
from tests.fault.ways_to_die import IMPORTS


class Victim:
    """The last rank of a pool of `n`, the others, and what they had before it died."""

    def __init__(
        self, pools: Pools, n: int, moment: str = "", way: str = "", fuse: Fuse | None = None
    ) -> None:
        self.cluster, self.rank, self.survivors = pools.of(n), n - 1, list(range(n - 1))
        laid = fuse.cell(self.rank, moment, way) if fuse is not None else ""
        self.cluster.run(f"{IMPORTS}\nkept = 100 + rank\n{laid}")
        self.pids = pids_of(self.cluster)
        self._descriptors = _descriptors_of(agent_of(self.cluster))

    def check_aftermath(self, told: str) -> None:
        """It died, of what is told: the others are as they were, the next cells work, nothing is left."""
        cluster, rank, living = self.cluster, self.rank, self.survivors
        assert gone([self.pids[rank]])
        assert states_of(cluster) == ["idle"] * rank + ["dead"]
        assert pids_of(cluster)[:rank] == self.pids[:rank]
        with pytest.raises(PoolError, match=rf"rank {rank} died: {told}.*nothing was run.*%ddp heal"):
            cluster.run("print('ran')")
        if living:
            assert values_of(cluster.run("kept", living)) == {r: str(100 + r) for r in living}
        cluster.heal()
        self.check_all_is_well(replaced=True)

    def check_all_is_well(self, replaced: bool = False) -> None:
        """The next cell works on all ranks, the survivors are who they were, nothing is left of the dead."""
        cluster, living = self.cluster, self.survivors if replaced else [*self.survivors, self.rank]
        values = values_of(cluster.run(f"{REDUCE}; globals().get('kept')"))
        assert values == {r: str(100 + r) if r in living else "" for r in range(self.rank + 1)}
        now = pids_of(cluster)
        assert [now[r] for r in living] == [self.pids[r] for r in living]
        check_children(cluster, len(now))
        agent = agent_of(cluster)
        eventually(lambda: _descriptors_of(agent) == self._descriptors, 2, "the agent's descriptors")


def check_children(cluster: Cluster, ranks: int) -> None:
    """The agent has its forkserver and so many ranks, and nothing that others have left behind."""
    agent = agent_of(cluster)
    living = lambda: [pid for pid in children(agent) if state_of(pid)]  # noqa: E731 - as short as it is
    eventually(lambda: len(living()) == ranks + 1, 2, f"orphans among {living()}")


def _descriptors_of(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))  # noqa: PTH208 - a number is all it takes
