"""`%%ddp --check`: a mismatch of collectives is an exception on every rank, and nothing else is lost."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest

from jupyter_ddp import Cluster
from jupyter_ddp.core.record import CellRecord
from jupyter_ddp.view.bundle import bundle
from tests.fault.pools import REDUCE, Pools, eventually, pids_of, values_of
from tests.integration.notebook_kernel import NotebookKernel
from tests.promises import Stopwatch

TOLD_S = 3.0


def check(cluster: Cluster, source: str, targets: str | None = None) -> CellRecord:
    """Run a cell under --check, whatever its end."""
    return cluster.run(source, targets, check=False, check_collectives=True)


@pytest.fixture
def two(pools: Pools) -> Cluster:
    return pools.of(2)


def both(first: str, second: str) -> str:
    """One statement for rank 0 on line 2, another for rank 1 on line 4."""
    return f"if rank == 0:\n    {first}\nelse:\n    {second}"


MISMATCHES = {
    "shape": (
        both("dist.all_reduce(torch.ones(4))", "dist.all_reduce(torch.ones(8))"),
        "rank 0: all_reduce of float32[4] (line 2); rank 1: all_reduce of float32[8] (line 4)",
    ),
    "shape, the other way": (
        both("dist.all_reduce(torch.ones(8))", "dist.all_reduce(torch.ones(4))"),
        "rank 0: all_reduce of float32[8] (line 2); rank 1: all_reduce of float32[4] (line 4)",
    ),
    "dtype": (
        "t = torch.ones(4, dtype=(torch.float32, torch.float64)[rank])\ndist.all_reduce(t)",
        "rank 0: all_reduce of float32[4] (line 2); rank 1: all_reduce of float64[4] (line 2)",
    ),
    "operation": (
        both("dist.all_reduce(torch.ones(4))", "dist.broadcast(torch.ones(4), 0)"),
        "rank 0: all_reduce of float32[4] (line 2); rank 1: broadcast of float32[4] (line 4)",
    ),
    "operation, the other way": (
        both("dist.barrier()", "dist.all_reduce(torch.ones(2, 3))"),
        "rank 0: barrier (line 2); rank 1: all_reduce of float32[2, 3] (line 4)",
    ),
    "reduce op": (
        "dist.all_reduce(torch.ones(4), (dist.ReduceOp.SUM, dist.ReduceOp.MAX)[rank])",
        "rank 0: all_reduce(SUM) of float32[4] (line 1); rank 1: all_reduce(MAX) of float32[4] (line 1)",
    ),
    "source": (
        "dist.broadcast(torch.ones(4), rank)",
        "rank 0: broadcast of float32[4], root rank 0 (line 1); "
        "rank 1: broadcast of float32[4], root rank 1 (line 1)",
    ),
    "destination": (
        "dist.reduce(torch.ones(4), dst=rank)",
        "rank 0: reduce of float32[4], root rank 0 (line 1); "
        "rank 1: reduce of float32[4], root rank 1 (line 1)",
    ),
    "all_gather": (
        "n = 2 + rank\ndist.all_gather([torch.empty(n), torch.empty(n)], torch.ones(n))",
        "rank 0: all_gather of float32[2] (line 2); rank 1: all_gather of float32[3] (line 2)",
    ),
    "scatter": (
        "n = 2 + rank\ndist.scatter(torch.empty(n), [torch.ones(n)] * 2 if rank == 0 else None, src=0)",
        "rank 0: scatter of float32[2] (line 2); rank 1: scatter of float32[3] (line 2)",
    ),
    "gather": (
        "n = 2 + rank\ndist.gather(torch.ones(n), [torch.empty(n)] * 2 if rank == 0 else None, dst=0)",
        "rank 0: gather of float32[2] (line 2); rank 1: gather of float32[3] (line 2)",
    ),
    "reduce_scatter": (
        "n = 2 + rank\ndist.reduce_scatter(torch.empty(n), [torch.ones(n)] * 2)",
        "rank 0: reduce_scatter of float32[2] (line 2); rank 1: reduce_scatter of float32[3] (line 2)",
    ),
    "all_to_all": (
        "n = 2 + rank\ndist.all_to_all_single(torch.empty(2 * n), torch.ones(2 * n))",
        "rank 0: all_to_all_single of float32[4] (line 2) sends 2 elements to rank 1; "
        "rank 1: all_to_all_single of float32[6] (line 2) expects 3 from it",
    ),
    "objects": (
        both("dist.all_gather_object([None] * 2, rank)", "dist.broadcast_object_list([rank], 0)"),
        "rank 0: all_gather_object of int64[1] (line 2); rank 1: broadcast_object_list of int64[1] (line 4)",
    ),
    "asynchronous": (
        "dist.all_reduce(torch.ones(4 + rank), async_op=True).wait()",
        "rank 0: all_reduce of float32[4] (line 1); rank 1: all_reduce of float32[5] (line 1)",
    ),
    "a group of the user's": (
        "pair = dist.new_group([0, 1])\ndist.all_reduce(torch.ones(4 + rank), group=pair)",
        "rank 0: all_reduce of float32[4] (line 2); rank 1: all_reduce of float32[5] (line 2)",
    ),
    "a function imported before": (
        "kept_function(torch.ones(4 + rank))",
        "rank 0: all_reduce of float32[4] (line 1); rank 1: all_reduce of float32[5] (line 1)",
    ),
    "inside a function": (
        "def step(t):\n    dist.all_reduce(t)\nstep(torch.ones(4 + rank))",
        "rank 0: all_reduce of float32[4] (line 2); rank 1: all_reduce of float32[5] (line 2)",
    ),
}


@pytest.mark.promise("a mismatch of collectives under --check: named on every rank", bound_s=TOLD_S)
@pytest.mark.parametrize(("source", "words"), MISMATCHES.values(), ids=MISMATCHES)
def test_a_mismatch_raises_on_every_rank(two: Cluster, promised: Stopwatch, source: str, words: str) -> None:
    """The same words on both ranks, folded in the failure's one line; processes and variables live on."""
    pids = pids_of(two)
    two.run("from torch.distributed import all_reduce as kept_function\nkept = torch.full((3,), float(rank))")
    with promised():
        record = check(two, source)
    assert [r.verdict for r in record] == ["error", "error"]
    assert {(r.error.ename, r.error.evalue) for r in record if r.error} == {("CollectiveMismatch", words)}
    assert record.summary() == f"ranks 0-1: CollectiveMismatch: {words}"
    assert values_of(two.run(f"{REDUCE}\nkept.tolist()")) == {0: "[0.0, 0.0, 0.0]", 1: "[1.0, 1.0, 1.0]"}
    assert pids_of(two) == pids


@pytest.mark.promise("a mismatch of sizes without --check: the rank, its line, gloo's sizes", bound_s=TOLD_S)
@pytest.mark.parametrize(("sizes", "dies"), [((4, 8), (0, 2)), ((8, 4), (1, 4))])
def test_without_check_gloos_abort_is_explained(
    two: Cluster, promised: Stopwatch, sizes: tuple[int, int], dies: tuple[int, int]
) -> None:
    """gloo ends the process that receives too much: its line and gloo's sizes are told, and the remedy; the
    other rank is freed and lives. What is shown holds no address and no frame of ours."""
    first, second = sizes
    rank, line = dies
    pids = pids_of(two)
    with promised():
        record = two.run(
            both(f"dist.all_reduce(torch.ones({first}))", f"dist.all_reduce(torch.ones({second}))"),
            check=False,
        )
    why = "gloo received 8 bytes for 4, a mismatch of collectives that %%ddp --check names"
    assert record.summary().startswith(
        f"rank {rank}: killed by SIGABRT (line {line}): {why}; rank {1 - rank}: blocked by rank {rank}"
    )
    text = bundle(record.snapshot())["text/plain"]
    assert f'File "<cell>", line {line} in <module>' in text
    assert not re.search(r"0x[0-9a-f]{4}|worker/|Extension modules|Thread", text)
    assert values_of(two.run("1", str(1 - rank))) == {1 - rank: "1"}
    assert pids_of(two)[1 - rank] == pids[1 - rank]


EVERY_COLLECTIVE = """
n = world_size
one, row, parts = torch.ones(2), torch.arange(2.0 * n), [torch.ones(2) for _ in range(n)]
dist.all_reduce(one); dist.broadcast(one, 1); dist.reduce(one, 1); dist.barrier(); dist.monitored_barrier()
dist.all_gather([torch.empty(2) for _ in range(n)], one)
dist.all_gather_into_tensor(torch.empty(2 * n), one)
dist.reduce_scatter(torch.empty(2), parts); dist.reduce_scatter_tensor(torch.empty(2), row)
dist.gather(one, parts if rank == 0 else None, dst=0)
dist.scatter(one, parts if rank == 1 else None, src=1)
dist.all_to_all_single(torch.empty(2 * n), row)
splits = [[1, 2], [2, 1]][rank]
dist.all_to_all_single(torch.empty(3), torch.ones(3), splits, splits)
out = [None] * n
dist.all_gather_object(out, {"rank": rank}); assert out[1] == {"rank": 1}
out = [str(rank) * (rank + 1)]
dist.broadcast_object_list(out, 1); assert out == ["11"]
dist.scatter_object_list(out, [7, 8] if rank == 0 else None, src=0); assert out == [7 + rank]
dist.gather_object(rank, [None] * n if rank == 0 else None, dst=0)
works = [dist.all_reduce(torch.ones(3), async_op=True) for _ in range(3)]
[work.wait() for work in works]
if rank == 0:
    dist.send(one, 1); dist.all_reduce(one)
else:
    dist.recv(one, 0); dist.all_reduce(one)
mine = dist.new_group([rank], use_local_synchronization=True)
for _ in range(rank):
    dist.all_reduce(one, group=mine)
dist.all_reduce(t := torch.ones(1))
t.item()
"""


@pytest.mark.filterwarnings("ignore")
def test_collectives_that_match_are_left_alone(two: Cluster) -> None:
    """Every kind of collective, send and recv, asynchronous ones, groups of one's own: no alarm."""
    record = check(two, EVERY_COLLECTIVE)
    assert record.ok, record.summary()
    assert values_of(record) == {0: "2.0", 1: "2.0"}
    assert not [r.notices for r in record if r.notices]


TRAIN = """
def train(steps):
    for step in range(steps):
        optimizer.zero_grad()
        model(torch.full((1, 4), rank + 1.0)).sum().backward()
        optimizer.step()
    return round(float(sum(p.sum() for p in model.parameters())), 6)
"""
MODEL = f"""
from torch.nn.parallel import DistributedDataParallel as DDP
torch.manual_seed(5)
model = DDP(torch.nn.Sequential(*[torch.nn.Linear(4, 4) for _ in range(3)]), bucket_cap_mb=1e-4)
optimizer = torch.optim.SGD(model.parameters(), 0.01)
{TRAIN}
"""


def test_what_ddps_reducer_asks_for_is_compared(two: Cluster) -> None:
    """Training is the same with and without; a rank that does not come to backward() is told with its line,
    and the model trains on afterwards."""
    plain = values_of(two.run(f"{MODEL}\ntrain(4)"))
    assert values_of(check(two, f"{MODEL}\ntrain(2); train(2)")) == plain
    record = check(two, both("train(1)", "dist.barrier()"))
    assert [r.verdict for r in record] == ["error", "error"]
    assert re.fullmatch(
        r"ranks 0-1: CollectiveMismatch: rank 0: DDP's all_reduce of float32\[\d+\]( \(line \d+\))?; "
        r"rank 1: barrier \(line 4\)",
        record.summary(),
    )
    again = values_of(two.run("train(2)"))
    assert again[0] == again[1]
    two.restart()  # torch keeps the last failure of a backward pass, and with it a group of that time


def test_a_rank_whose_cell_ended_will_not_come(two: Cluster) -> None:
    """A collective under `if rank == 0:` is told at once, without waiting for any limit."""
    record = check(two, "kept = 3\nif rank == 0:\n    dist.all_reduce(torch.ones(4))")
    assert record.summary() == (
        "rank 0: CollectiveMismatch: rank 0: all_reduce (line 3); rank 1: the cell ended there without it"
    )
    assert values_of(two.run(f"{REDUCE}\nkept")) == {0: "3", 1: "3"}


def test_a_rank_that_failed_is_the_cause_and_the_others_are_blocked_by_it(two: Cluster) -> None:
    """Under --check too an exception is the first cause, and its peers no culprits."""
    record = check(two, "if rank == 0:\n    dist.all_reduce(torch.ones(4))\n1 / 0")
    assert record.summary() == (
        "rank 1: ZeroDivisionError: division by zero (line 3); rank 0: blocked by rank 1 (line 2)"
    )
    assert "frame #" not in record[0].stderr
    two.run(REDUCE)


def test_a_group_with_ranks_that_do_not_run_the_cell(two: Cluster) -> None:
    """A cell on some ranks names those that will never come; its own group works."""
    two.run("everyone = dist.new_group([0, 1])")
    record = check(two, "dist.all_reduce(torch.ones(4), group=everyone)", "1")
    assert record.summary() == (
        "rank 1: CollectiveMismatch: rank 0 will not enter all_reduce (line 1): this cell runs on rank 1 "
        "only, and the group has ranks 0-1"
    )
    assert check(two, "dist.all_reduce(torch.ones(4), group=group)", "1").ok
    two.run("import gc; gc.collect()")  # the failed cell's frames are in a cycle


LATE = (
    "import torch, time\nfrom jupyter_ddp.worker import checked_collectives as checks\nchecks.NOTE_S = {}\n"
)


def test_a_rank_that_does_not_come_is_named_and_the_note_goes_when_it_does(two: Cluster) -> None:
    """The note stands while the rank is missing; a saved page does not keep it."""
    notes: list[tuple[str, ...]] = []

    def watch(record: CellRecord, done: bool) -> None:
        notes.append(tuple(record[0].notices))

    source = LATE.format(0.5) + "if rank == 1:\n    time.sleep(2)\ndist.all_reduce(torch.ones(1))"
    record = two.run(source, check_collectives=True, on_news=watch)
    assert ("rank 1 has not entered all_reduce (line 6) after 0 s",) in notes
    assert not record[0].notices


def test_an_asynchronous_operation_does_not_wait_for_ever(two: Cluster) -> None:
    """Its caller may have to go on before the other rank can come: then it begins without comparison."""
    source = LATE.format(0.5) + both(
        "w = dist.all_reduce(torch.ones(1), async_op=True); dist.send(torch.ones(1), 1); w.wait()",
        "dist.recv(torch.ones(1), 0); dist.all_reduce(torch.ones(1))",
    )
    record = check(two, f"{source}\n{REDUCE}")
    assert record.ok, record.summary()
    assert "it began without being compared" in record[0].notices[0]


def test_a_wait_for_others_can_be_interrupted(two: Cluster) -> None:
    """SIGINT alone does it: the group is not broken, and need not be formed again."""
    generation = two._pool.generation
    record = two.run(
        "import time\nif rank == 1:\n    time.sleep(60)\ndist.all_reduce(torch.ones(1))",
        check=False,
        check_collectives=True,
        timeout_s=0.5,
    )
    assert [r.verdict for r in record] == ["interrupted", "interrupted"]
    assert record.summary() == (
        "rank 1: interrupted by --timeout 0.5 (line 3); rank 0: interrupted by --timeout 0.5 (line 4)"
    ) or record.summary().startswith("rank 0")
    assert two._pool.generation == generation
    two.run(REDUCE)


def test_a_remark_stands_while_the_cell_runs(two: Cluster) -> None:
    """It is there before anything hangs."""
    seen: list[tuple[tuple[str, ...], str | None]] = []

    def watch(record: CellRecord, done: bool) -> None:
        seen.append((tuple(record[1].notices), record[1].verdict))

    source = "if rank == 0:\n    dist.barrier()\nimport time; time.sleep(30)"
    two.run(source, check=False, timeout_s=0.5, on_news=watch)
    assert "line 2: barrier under" in seen[0][0][0]
    assert seen[0][1] is None
    two.run(REDUCE)


def test_cells_without_check_are_as_they_were(two: Cluster) -> None:
    """torch's own methods are back, and the store's keys do not grow with the number of collectives."""
    two.run(
        "before = dist.ProcessGroup.allreduce\nforward = torch.nn.parallel.DistributedDataParallel.forward"
    )
    check(two, "[dist.all_reduce(torch.ones(1)) for _ in range(3)]")
    keys = two.run(
        "assert dist.ProcessGroup.allreduce is before\n"
        "assert torch.nn.parallel.DistributedDataParallel.forward is forward\n"
        "def count(): return dist.TCPStore('127.0.0.1', int(__import__('os').environ['MASTER_PORT']), "
        "is_master=False).num_keys()\ncount()",
        "0",
    )
    check(two, "[dist.all_reduce(torch.ones(1)) for _ in range(50)]")
    assert values_of(two.run("count()", "0")) == values_of(keys)


def test_check_timeout_and_remarks_in_a_notebook(fresh: Callable[..., NotebookKernel]) -> None:
    """The two options of %%ddp, the one-line errors for bad values, and remarks read from the source."""
    nb = fresh()
    nb.start_pool(2)
    cell = nb.bad("%%ddp --check\ndist.all_reduce(torch.ones(4 + rank))")
    assert (
        "rank 0: all_reduce of float32[4] (line 2); rank 1: all_reduce of float32[5] (line 2)" in cell.error
    )
    cell = nb.bad("%%ddp --timeout 0.5\nimport time\ntime.sleep(60)")
    assert cell.error == "RankError: ranks 0-1: interrupted by --timeout 0.5 (line 3)"
    assert eventually(lambda: nb.good(f"%%ddp --timeout 60 --check\n{REDUCE}").ok, 1)
    missing = 'all_reduce under "if rank == 0" is not entered by every rank; the others may hang'
    for live in (False, True):  # the same when it was watched
        nb.live = live
        cell = nb.bad("%%ddp --check\nif rank == 0:\n    dist.all_reduce(torch.ones(1))")
        assert f"note: line 3: {missing} or fall out of step" in cell.text
        assert f"line 3: {missing}" in cell.html.replace("&#34;", '"')
    cell = nb.good("%%ddp -t 0\ntry:\n    dist.barrier()\nexcept RuntimeError:\n    pass")
    assert "note: line 3: barrier needs every rank, and this cell runs on rank 0 only" in cell.text
    assert "note" not in nb.good(f"%%ddp\n{REDUCE}\nif rank == 0:\n    print(t)\ndist.barrier()").text
    for bad in ("0", "-1", "nan", "inf", "soon"):
        assert f"--timeout {bad}: not a" in nb.bad(f"%%ddp --timeout {bad}\n1").error
