"""Ranks that fell out of step are told so at the cell's end; whoever did not, is left alone."""

from __future__ import annotations

import pytest

from jupyter_ddp.core.record import CellRecord
from tests.fault.pools import REDUCE, Pools, RunningCell, pids_of
from tests.promises import Stopwatch

RANKS = 4


def notices(record: CellRecord) -> list[str]:
    """What the ranks were told of being out of step."""
    return [notice for r in record for notice in r.notices if notice.startswith("out of step")]


@pytest.mark.promise("a rank skips a collective: out of step is said, the group formed again", bound_s=3)
def test_a_rank_skips_a_collective(pools: Pools, promised: Stopwatch) -> None:
    """Which collective, on which line, and who did not enter it; then the next cell computes aright."""
    cluster = pools.of(4)
    pids = pids_of(cluster)
    cluster.run("kept = rank")
    with promised():
        record = cluster.run("t = torch.ones(1)\nif rank == 0:\n    w = dist.all_reduce(t, async_op=True)")
    assert notices(record)[0].startswith(
        "out of step: ranks 1-3 did not enter all_reduce #1 (line 3) that rank 0 entered"
    )
    cluster.run(f"{REDUCE}; assert kept == rank")
    assert pids_of(cluster) == pids


@pytest.mark.parametrize(("first", "second"), [("all_reduce", "broadcast"), ("broadcast", "all_reduce")])
def test_different_operations_left_behind(pools: Pools, first: str, second: str) -> None:
    """Both orders: each rank's operation with its line."""
    call = "dist.{}(t, async_op=True)" if first == "all_reduce" else "dist.{}(t, 0, async_op=True)"
    other = "dist.{}(t, 1, async_op=True)" if second == "broadcast" else "dist.{}(t, async_op=True)"
    record = pools.of(2).run(
        f"t = torch.ones(1)\nif rank == 0:\n    w = {call.format(first)}\n"
        f"else:\n    w = {other.format(second)}"
    )
    assert notices(record)[0].startswith(
        f"out of step: rank 0: {first} #1 (line 3); rank 1: {second} #1 (line 5)"
    )
    pools.cluster.run(REDUCE)


SILENT = {
    "send and recv": "t = torch.ones(1)\nif rank == 0: dist.send(t, 1)\nelif rank == 1: dist.recv(t, 0)",
    "a pipeline": (
        "t = torch.ones(1)\nfor _ in range(3):\n    if rank: dist.recv(t, rank - 1)\n"
        "    if rank < 3: dist.send(t, rank + 1)"
    ),
    "batches": (
        "a, b = torch.ones(1), torch.ones(1)\n"
        "ops = [dist.P2POp(dist.isend, a, (rank + 1) % 4), dist.P2POp(dist.irecv, b, (rank - 1) % 4)]\n"
        "for w in dist.batch_isend_irecv(ops): w.wait()"
    ),
    "a subgroup": "g = dist.new_group([0, 2])\nif rank in (0, 2): dist.all_reduce(torch.ones(1), group=g)",
    "async that all enter": "w = [dist.all_reduce(torch.ones(1), async_op=True) for _ in range(5)]",
    "objects and barriers": "dist.all_gather_object([None] * 4, rank); dist.monitored_barrier()",
    "a background thread": (
        "import threading, time\nb = dist.new_group()\n"
        "def work():\n    time.sleep(0.1 * rank)\n    dist.all_reduce(torch.ones(1), group=b)\n"
        "th = threading.Thread(target=work); th.start(); time.sleep(0.05)"
    ),
    "DDP": (
        "net = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(4, 4), bucket_cap_mb=0.00001)\n"
        "for _ in range(3): net(torch.ones(2, 4)).sum().backward()"
    ),
    "FSDP2": (
        "from torch.distributed.fsdp import fully_shard\nm = torch.nn.Linear(4, 4); fully_shard(m)\n"
        "m(torch.ones(2, 4)).sum().backward()"
    ),
}


@pytest.mark.parametrize("what", SILENT)
def test_no_false_alarm(pools: Pools, what: str) -> None:
    """What is in step is not called out of step, in its own cell and in the next."""
    cluster = pools.of(4)
    assert notices(cluster.run(SILENT[what])) == []
    assert notices(cluster.run(f"import time; time.sleep(0.4); {REDUCE}")) == []
    assert cluster.phase == "ready"


def test_cells_on_part_of_the_ranks(pools: Pools) -> None:
    """The others' counts stay where they are, and that is no fault."""
    cluster = pools.of(4)
    assert notices(cluster.run("dist.all_reduce(torch.ones(1), group=group)", "1,3")) == []
    assert notices(cluster.run(REDUCE)) == []


def test_a_group_without_the_failed_rank_goes_on(pools: Pools) -> None:
    """A rank raises; two others, who never need it, work on together for longer than its peers may."""
    cluster = pools.of(4)
    cluster.run("g = dist.new_group([2, 3])")
    cell = RunningCell(
        cluster,
        "import time\nif rank == 0: 1/0\nif rank > 1:\n    for _ in range(8):\n        time.sleep(0.9)\n"
        "        dist.all_reduce(torch.ones(1), group=g)",
    )
    record = cell.end(30)
    assert {r.rank: r.verdict for r in record} == {0: "error", 1: "ok", 2: "ok", 3: "ok"}
