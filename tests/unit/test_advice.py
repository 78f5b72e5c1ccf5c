"""Remarks on collectives that not every rank enters: what draws one, and what must not."""

from __future__ import annotations

import ast
import json
import textwrap
from pathlib import Path

import pytest

from jupyter_ddp.core.advice import MAX_REMARKS, mentions_collective, remarks

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"


def advise(source: str, ranks: tuple[int, ...] = (0, 1, 2, 3), size: int = 4) -> list[str]:
    source = textwrap.dedent(source).strip("\n")
    return remarks(source, ast.parse(source), ranks, size) if mentions_collective(source) else []


def not_entered(line: int, operation: str, where: str) -> str:
    return (
        f"line {line}: {operation} {where} is not entered by every rank; "
        "the others may hang or fall out of step"
    )


DRAWN = {
    "if rank == 0": ("if rank == 0:\n    dist.all_reduce(t)", (2, "all_reduce", 'under "if rank == 0"')),
    "get_rank": ("if dist.get_rank() == 0:\n    dist.barrier()", (2, "barrier", 'under "if dist.get_rank() == 0"')),
    "not rank": ("if not rank:\n    dist.broadcast(t, 0)", (2, "broadcast", 'under "if not rank"')),
    "!=": ("if rank != 0:\n    dist.barrier()", (2, "barrier", 'under "if rank != 0"')),
    "truth": ("if rank:\n    dist.barrier()", (2, "barrier", 'under "if rank"')),
    "else": ("if rank == 0:\n    pass\nelse:\n    dist.barrier()", (4, "barrier", 'under the "else" of "if rank == 0"')),
    "elif": (
        "if rank == 0:\n    pass\nelif rank == 1:\n    dist.barrier()",
        (4, "barrier", 'under "if rank == 1"'),
    ),
    "and": (
        "if rank == 0 and step % 10 == 0:\n    dist.all_reduce(t)",
        (2, "all_reduce", 'under "if rank == 0 and step % 10 == 0"'),
    ),
    "or of ranks": ("if rank == 0 or rank == 1:\n    dist.barrier()", (2, "barrier", 'under "if rank == 0 or rank == 1"')),
    "else of an or": (
        "if rank == 0 or debug:\n    pass\nelse:\n    dist.barrier()",
        (4, "barrier", 'under the "else" of "if rank == 0 or debug"'),
    ),
    "modulo": ("if rank % 2 == 0:\n    dist.barrier()", (2, "barrier", 'under "if rank % 2 == 0"')),
    "in": ("if rank in (0, 2):\n    dist.barrier()", (2, "barrier", 'under "if rank in (0, 2)"')),
    "last": ("if rank == world_size - 1:\n    dist.barrier()", (2, "barrier", 'under "if rank == world_size - 1"')),
    "a name for it": ("main = rank == 0\nif main:\n    dist.barrier()", (3, "barrier", 'under "if main"')),
    "the environment": (
        'r = int(os.environ["RANK"])\nif r == 0:\n    dist.barrier()',
        (3, "barrier", 'under "if r == 0"'),
    ),
    "environ.get": (
        'r = int(os.environ.get("LOCAL_RANK", 0))\nif r == 0:\n    dist.barrier()',
        (3, "barrier", 'under "if r == 0"'),
    ),
    "nested": (
        "for step in range(3):\n    if rank == 0:\n        if step:\n            dist.all_reduce(t)",
        (4, "all_reduce", 'under "if rank == 0"'),
    ),
    "a conditional expression": ("dist.barrier() if rank == 0 else None", (1, "barrier", 'under "if rank == 0"')),
    "short circuit": ("rank == 0 and dist.barrier()", (1, "barrier", 'under "rank == 0 and …"')),
    "while": ("while rank == 0:\n    dist.barrier()\n    break", (2, "barrier", 'under "while rank == 0"')),
    "asynchronous": (
        "if rank == 0:\n    w = dist.all_reduce(t, async_op=True)",
        (2, "all_reduce", 'under "if rank == 0"'),
    ),
    "torch.distributed": ("if rank == 0:\n    torch.distributed.barrier()", (2, "barrier", 'under "if rank == 0"')),
    "import as": (
        "import torch.distributed as D\nif rank == 0:\n    D.barrier()",
        (3, "barrier", 'under "if rank == 0"'),
    ),
    "from import": (
        "from torch.distributed import barrier as meet\nif rank == 0:\n    meet()",
        (3, "barrier", 'under "if rank == 0"'),
    ),
    "imported in an earlier cell": ("if rank == 0:\n    all_reduce(t)", (2, "all_reduce", 'under "if rank == 0"')),
    "the world by name": (
        "if rank == 0:\n    dist.all_reduce(t, group=dist.group.WORLD)",
        (2, "all_reduce", 'under "if rank == 0"'),
    ),
    "new_group": ("if rank < 2:\n    g = dist.new_group([0, 1])", (2, "new_group", 'under "if rank < 2"')),
    "another operation in the other branch": (
        "if rank == 0:\n    dist.all_reduce(t)\nelse:\n    dist.broadcast(t, 0)",
        (2, "all_reduce", 'under "if rank == 0"'),
        (4, "broadcast", 'under the "else" of "if rank == 0"'),
    ),
    "an early return": (
        "def save():\n    if rank != 0:\n        return\n    dist.barrier()\nsave()",
        (4, "barrier", 'after "if rank != 0: return"'),
    ),
    "an early continue": (
        "for batch in data:\n    if rank != 0:\n        continue\n    dist.all_reduce(batch)",
        (4, "all_reduce", 'after "if rank != 0: continue"'),
    ),
    "an early exit": ("if rank:\n    sys.exit()\ndist.barrier()", (3, "barrier", 'after "if rank: sys.exit()"')),
    "in a function that is called": (
        "def main(r, size):\n    if r == 0:\n        dist.barrier()\nif __name__ == '__main__':\n    main(rank, 4)",
        (3, "barrier", 'under "if r == 0"'),
    ),
    "one barrier too many": (
        "if rank == 0:\n    dist.barrier()\ndist.barrier()",
        (2, "barrier", 'under "if rank == 0"'),
    ),
    "in the wrong order": (
        "if rank == 0:\n    dist.barrier()\n    dist.all_reduce(t)\nelse:\n    dist.all_reduce(t)\n    dist.barrier()",
        (2, "barrier", 'under "if rank == 0"'),
    ),
    "with await": ("if rank == 0:\n    await f(dist.all_reduce(t))", (2, "all_reduce", 'under "if rank == 0"')),
}  # fmt: skip


@pytest.mark.parametrize("case", DRAWN)
def test_a_collective_that_some_ranks_do_not_enter(case: str) -> None:
    """One line for each, with its line and the condition that keeps the others away."""
    source, *expected = DRAWN[case]
    assert advise(source) == [not_entered(*one) for one in expected]


SILENT = {
    "plain": "dist.all_reduce(t)",
    "no collective": "if rank == 0:\n    print('reduce', functools.reduce(f, x))",
    "both branches": "if rank == 0:\n    dist.broadcast(t, 0)\nelse:\n    t = torch.empty(4)\n    dist.broadcast(t, 0)",
    "gather": "dist.gather(t, parts, dst=0) if rank == 0 else dist.gather(t, dst=0)",
    "barriers in turn": "if rank != 0:\n    dist.barrier()\nload()\nif rank == 0:\n    dist.barrier()",
    "only printing": "dist.all_reduce(t)\nif rank == 0:\n    print(t)\n    torch.save(t, 'f')\ndist.barrier()",
    "send and recv": "if rank == 0:\n    dist.send(t, 1)\nelif rank == 1:\n    dist.recv(t, 0)\ndist.barrier()",
    "isend": "if rank == 0:\n    dist.isend(t, 1).wait()\n    dist.batch_isend_irecv(ops)\ndist.barrier()",
    "a group": "if rank < 2:\n    dist.all_reduce(t, group=pair)\n    dist.barrier(pair)\n    dist.broadcast(t, 0, pair)",
    "arguments unknown": "if rank == 0:\n    dist.all_reduce(t, **options)\n    dist.all_reduce(*args)",
    "a group of its members alone": "if rank < 2:\n    dist.new_group([0, 1], use_local_synchronization=True)",
    "only defined": "def f():\n    if rank == 0:\n        dist.barrier()",
    "only defined, a method": "class A:\n    def f(self):\n        if rank == 0:\n            dist.barrier()",
    "a lambda": "if rank == 0:\n    f = lambda: dist.barrier()",
    "a generator function": "def f():\n    if rank == 0:\n        dist.barrier()\n    yield\nf()",
    "true everywhere": "if rank < world_size and rank >= 0 and rank != 7:\n    dist.barrier()",
    "false everywhere": "if rank == 9:\n    dist.barrier()",
    "world size": "if world_size > 1:\n    dist.barrier()\nif dist.get_world_size() == 4:\n    dist.barrier()",
    "is None": "if rank is not None:\n    dist.barrier()",
    "initialized": "if dist.is_initialized():\n    dist.barrier()",
    "not known": "if debug:\n    dist.barrier()",
    "or unknown": "if rank == 0 or debug:\n    dist.barrier()",
    "a rank of something else": "if page.rank == 0:\n    dist.barrier()",
    "a loop over ranks": "for r in range(world_size):\n    if r == rank:\n        print(r)\n    dist.barrier()",
    "each in turn": "for src in range(world_size):\n    dist.broadcast(t, src)",
    "a parameter": "def f(rank):\n    if rank == 0:\n        dist.barrier()\nf(next(ranks))",
    "a name that changes": "flag = rank == 0\nfor x in data:\n    flag = True\n    if flag:\n        dist.barrier()",
    "rank is something else now": "rank = 0\nif rank == 0:\n    dist.barrier()",
    "other libraries": "if rank == 0:\n    x.scatter(0, i, v)\n    comm.gather(x)\n    pool.broadcast(y)\n    barrier.wait()",
    "their own function": "def all_reduce(x): return x\nif rank == 0:\n    all_reduce(t)",
    "their own import": "from mylib import all_reduce\nif rank == 0:\n    all_reduce(t)",
    "dist is something else": "import scipy.stats as dist\nif rank == 0:\n    dist.reduce(t)",
    "recursion": "def f(n):\n    dist.barrier()\n    f(n - 1)\nf(rank)",
    "in a function called on both sides": (
        "def step(x):\n    dist.all_reduce(x)\nif rank == 0:\n    step(a)\nelse:\n    step(b)"
    ),
    "return everywhere": "def f():\n    if world_size:\n        return\n    dist.barrier()\nf()",
    "except": "try:\n    dist.all_reduce(t)\nexcept RuntimeError:\n    if failed:\n        dist.barrier()",
    "a match": "match kind:\n    case 1:\n        dist.barrier()\n    case _:\n        dist.all_reduce(t)",
    "join": "with model.join():\n    for x in data:\n        model(x)\ndist.barrier()",
    "unknown inside both": "if rank == 0:\n    if x:\n        dist.barrier()\nelse:\n    dist.barrier()",
    "torchrun script": """
        import os, torch, torch.distributed as dist
        def setup(rank, world_size):
            os.environ['MASTER_ADDR'] = 'localhost'
            dist.init_process_group("nccl", rank=rank, world_size=world_size)
        def train():
            dist.init_process_group(backend="nccl")
            rank = dist.get_rank()
            data = torch.ones(10) * (rank + 1)
            dist.all_reduce(data, op=dist.ReduceOp.SUM)
            if rank == 0:
                print(data)
            dist.destroy_process_group()
        if __name__ == "__main__":
            train()
        """,
    "save on rank 0, load everywhere": """
        if rank == 0:
            torch.save(model.state_dict(), path)
        dist.barrier()
        model.load_state_dict(torch.load(path))
        """,
    "a training loop": """
        for epoch in range(3):
            sampler.set_epoch(epoch)
            for x, y in loader:
                loss = loss_of(model(x), y)
                loss.backward()
                optimizer.step()
            total = torch.tensor([loss.item()])
            dist.all_reduce(total)
            if rank == 0 and epoch % 2 == 0:
                print(epoch, total.item() / world_size)
        """,
}  # fmt: skip


@pytest.mark.parametrize("case", SILENT)
def test_no_false_alarm(case: str) -> None:
    assert advise(SILENT[case]) == []


@pytest.mark.parametrize("notebook", sorted(NOTEBOOKS.glob("*.ipynb")), ids=lambda path: path.stem)
def test_no_false_alarm_on_the_notebooks(notebook: Path) -> None:
    cells = json.loads(notebook.read_text())["cells"]
    sources = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    ours = [source.partition("\n")[2] for source in sources if source.startswith("%%ddp")]
    assert ours
    for source in ours:
        assert advise(source) == []


PARTIAL = {
    "t = torch.ones(1)\ndist.all_reduce(t)": ["line 2: all_reduce needs every rank, and this cell runs on {} only; pass group=group"],
    "dist.new_group([0])": ["line 1: new_group needs every rank, and this cell runs on {} only; call it in a cell on all of them"],
    "dist.all_reduce(t, group=group)": [],
    "if rank == 0:\n    dist.all_reduce(t, group=group)": [],
    "def f():\n    dist.barrier()": [],
    "if rank == 3:\n    dist.barrier()": [],
    "if rank == 0:\n    dist.send(t, 1)": [],
}  # fmt: skip


@pytest.mark.parametrize("source", PARTIAL)
def test_a_collective_of_the_whole_world_in_a_cell_on_some_ranks(source: str) -> None:
    """It raises there: the remark says what to pass. Point-to-point calls and named groups draw none."""
    assert advise(source, (0,)) == [line.format("rank 0") for line in PARTIAL[source]]
    assert advise(source, (0, 2)) == [line.format("ranks 0,2") for line in PARTIAL[source]]


def test_remarks_are_few_and_short() -> None:
    """A cell of a hundred such calls, under a long condition, does not bury its output."""
    condition = " and ".join(["rank == 0"] * 40)
    lines = advise(f"if {condition}:\n" + "    dist.barrier()\n" * 100)
    assert len(lines) == MAX_REMARKS
    assert all(len(line) < 200 for line in lines)


def test_it_depends_on_the_number_of_ranks() -> None:
    """A pool of one rank has no others; in a pool of two, rank 0 and rank 1 are all."""
    source = "if rank == 0 or rank == 1:\n    dist.barrier()"
    assert advise(source, (0, 1), 2) == []
    assert advise("if rank == 0:\n    dist.barrier()", (0,), 1) == []


def test_a_plain_cell_is_not_looked_at() -> None:
    """What names no collective costs one search."""
    assert not mentions_collective("x = 1\nif rank == 0:\n    print(x)\n")
    assert not mentions_collective("spreadsheet = 1; all = any")


def test_a_very_deep_tree_draws_nothing() -> None:
    source = "dist.barrier()\nx = " + "-" * 600 + "1"
    assert advise(source) == []
