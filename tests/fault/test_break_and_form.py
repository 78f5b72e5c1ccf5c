"""The group is broken and formed again, and something goes wrong in the midst of that."""

from __future__ import annotations

import os
import random
import signal
import threading
import time

import pytest

from jupyter_ddp import Cluster
from jupyter_ddp.core import ladder, running_cell
from tests.fault.pools import REDUCE, Pools, RunningCell, eventually, gone, pids_of

RANKS = 3
FREED_S = 5.0
"""The longest that a survivor may be of no use. It takes a few milliseconds on a quiet machine."""

# A store that kills its rank the moment gloo has come so far in its handshake.
DIES_WHILE_FORMING = """
import os, signal, torch.distributed.distributed_c10d as c10d

class DeadlyStore(dist.Store):
    steps = {steps}

    def __init__(self, real):
        super().__init__()
        self.real = real

    def __getattr__(self, name):
        return getattr(self.real, name)

    def did(self, result=None):
        DeadlyStore.steps -= 1
        if not DeadlyStore.steps:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    def set(self, key, value):
        return self.did(self.real.set(key, value))

    def get(self, key):
        return self.did(self.real.get(key))

    def wait(self, *args):
        return self.did(self.real.wait(*args))

    def add(self, key, value):
        return self.did(self.real.add(key, value))

if rank == {victim}:
    prefixed = c10d.PrefixStore
    c10d.PrefixStore = lambda prefix, store: DeadlyStore(prefixed(prefix, store))
"""


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is told of here happens whatever the pool's patience is."""
    monkeypatch.setattr(running_cell, "PEER_FAILED_TIMEOUT_S", 0.2)
    monkeypatch.setattr(ladder, "INTERRUPT_TIMEOUT_S", 0.2)


def break_the_group(cluster: Cluster) -> None:
    """Rank 0 raises; the others, who wait for it, are freed, and a new group is formed."""
    record = cluster.run(f"if rank == 0: raise ValueError\n{REDUCE}", check=False)
    assert record.verdicts == {0: "error", 1: "interrupted", 2: "interrupted"}


def test_a_break_in_the_midst_of_collectives(pools: Pools) -> None:
    """Whatever a connection carries in that moment, who waits is freed, and by the first attempt."""
    cluster, chance = pools.of(RANKS), random.Random(3)
    pids = pids_of(cluster)
    for _ in range(20):
        cell = RunningCell(
            cluster, "print('on')\nt = torch.ones(64)\nwhile True:\n    dist.all_reduce(t); print('x' * 100)"
        )
        cell.until("on")
        threading.Event().wait(chance.uniform(0, 0.02))
        cluster.interrupt()
        cluster.interrupt()
        cell.end(FREED_S)
    assert pids_of(cluster) == pids
    assert cluster.run(REDUCE).ok


@pytest.mark.parametrize("victim", [0, 1, 2])
@pytest.mark.parametrize("steps", [1, 2, 4, 6])
def test_a_death_while_the_group_is_formed_frees_the_others(pools: Pools, victim: int, steps: int) -> None:
    """Whatever step of gloo's handshake the rank dies in, the others run the next cell, variables kept."""
    cluster = pools.of(RANKS)
    living = [rank for rank in range(RANKS) if rank != victim]
    cluster.run(f"kept = rank\n{DIES_WHILE_FORMING.format(victim=victim, steps=steps)}")
    pids = pids_of(cluster)
    break_the_group(cluster)
    eventually(lambda: gone([pids[victim]]), FREED_S, "the rank is killed in the midst of the handshake")
    began = time.monotonic()
    rescuer = threading.Timer(FREED_S, lambda: [cluster.interrupt() for _ in range(3)])
    rescuer.start()
    eventually(lambda: cluster.status()[victim].state == "dead", FREED_S)
    try:
        record = cluster.run("kept", living, check=False)
    finally:
        rescuer.cancel()
        rescuer.join()
    assert {rank: record[rank].value and record[rank].value.text for rank in living} == {
        rank: str(rank) for rank in living
    }
    assert time.monotonic() - began < FREED_S


@pytest.mark.timeout(30)
def test_a_forming_that_failed_is_followed_by_one_that_does_not(pools: Pools) -> None:
    """Ranks that have tried in vain and the new one call the next group by the same name."""
    cluster = pools.of(RANKS)
    cluster.run(f"kept = rank\n{DIES_WHILE_FORMING.format(victim=1, steps=2)}")
    break_the_group(cluster)
    eventually(lambda: cluster.status()[1].state == "dead", FREED_S)
    assert cluster.run("kept", [0, 2]).ok
    cluster.heal()
    assert cluster.run(f"{REDUCE}; kept if rank != 1 else 1").ok


def test_deaths_around_the_forming_at_any_moment(pools: Pools) -> None:
    """A rank is killed from 0 to 9 ms after its group was broken: the next cell on the others is good."""
    for after_ms in range(0, 10, 3):
        cluster = pools.of(RANKS)
        victim = pids_of(cluster)[1]
        break_the_group(cluster)
        threading.Event().wait(after_ms / 1000)
        os.kill(victim, signal.SIGKILL)
        eventually(lambda: cluster.status()[1].state == "dead", FREED_S)  # noqa: B023  # called at once
        record = cluster.run("kept = 1", [0, 2], check=False)
        assert record.ok, f"{after_ms} ms after: {record.summary()}"


HOLDERS = {
    "a set": "{group}",
    "a frozenset": "frozenset([group, 'other'])",
    "a tuple": "(1, (group,))",
    "a namedtuple": "Pair(0, group)",
    "a tuple in a set": "{('first', group)}",
    "a frozenset in a dict": "{'at': [frozenset([group])]}",
    "a set deep within": "[[[[[[{group}]]]]]]",
    "an attribute": "types.SimpleNamespace(groups=(group, {group}))",
}


def test_groups_in_whatever_holds_them_go_on(pools: Pools) -> None:
    """After the group was formed again, each is one of the new generation and works; nothing else changed."""
    cluster = pools.of(RANKS)
    cluster.run(
        "import types\nfrom collections import namedtuple\nPair = namedtuple('Pair', 'at group')\n"
        "group = dist.new_group([0, 1, 2])\n"
        f"held = dict({', '.join(f'k{i}={made}' for i, made in enumerate(HOLDERS.values()))})\n"
        "def groups_in(it):\n"
        "    if isinstance(it, dist.ProcessGroup): return [it]\n"
        "    if isinstance(it, types.SimpleNamespace): it = vars(it)\n"
        "    if isinstance(it, dict): it = list(it.values())\n"
        "    if not isinstance(it, (list, tuple, set, frozenset)): return []\n"
        "    return [g for each in it for g in groups_in(each)]\n"
        "kinds = [type(it) for it in held.values()]\nold = id(group)\ndel group"
    )
    break_the_group(cluster)
    record = cluster.run(
        "wrong = [k for k, it in held.items() if not groups_in(it)"
        " or any(g not in dist.distributed_c10d._world.pg_names for g in groups_in(it))]\n"
        "ok = not wrong and kinds == [type(it) for it in held.values()]\n"
        "for it in held.values() if ok else ():\n"
        "    for g in groups_in(it):\n"
        "        one = torch.ones(1)\n        dist.all_reduce(one, group=g)\n        assert one == 3\n"
        "wrong, ok, 'other' in held['k1'], held['k3'].at"
    )
    assert {record[rank].value and record[rank].value.text for rank in range(RANKS)} == {
        "([], True, True, 0)"
    }
