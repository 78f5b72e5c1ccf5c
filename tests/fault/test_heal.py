"""`%ddp heal`: dead ranks are replaced, the others keep everything, and a training loop goes on as it was."""

from __future__ import annotations

import ast
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from jupyter_ddp import Cluster
from jupyter_ddp.core.errors import PoolError
from jupyter_ddp.core.record import RankError
from tests.fault.pools import Pools, eventually
from tests.integration.notebook_kernel import NotebookKernel

RANKS = 2
MODEL = """
from torch import nn
from torch.nn.parallel import DistributedDataParallel

class Net(nn.Module):
    # The order in which gradients become ready is not the one that the parameters are registered in.
    def __init__(self, dropout):
        super().__init__()
        self.last = nn.Linear(16, 1)
        self.middle = nn.Linear(32, 16)
        self.first = nn.Linear(8, 32)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x):
        return self.last(torch.tanh(self.middle(self.dropout(torch.tanh(self.first(x))))))

torch.manual_seed(0)
net = Net(DROPOUT)
model = DistributedDataParallel(net, bucket_cap_mb=0.0005)
optimizer = OPTIMIZER
schedule = torch.optim.lr_scheduler.StepLR(optimizer, 4, 0.5)
torch.manual_seed(100 + rank)
losses = []
step = 0

def batch(step):
    generator = torch.Generator().manual_seed(1000 * step + rank)
    x = torch.randn(12, 8, generator=generator)
    return x, x.sin().sum(1, keepdim=True)

def train(until):
    global step
    while step < until:
        x, y = batch(step)
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(model(x), y)
        if step == DIES and rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        loss.backward()
        optimizer.step()
        schedule.step()
        mean = loss.detach().clone()
        dist.all_reduce(mean)
        losses.append(round(mean.item() / world_size, 6))
        step += 1

import os, signal
DIES = -1
"""
ADAM = "torch.optim.Adam(model.parameters(), lr=0.02)"
SGD = "torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)"


def values(cluster: Cluster, expression: str, targets: str | None = None) -> list[Any]:
    """An expression's value on each rank, of a literal."""
    record = cluster.run(expression, targets)
    return [ast.literal_eval(r.value.text) if r.value else None for r in record]


def kill(cluster: Cluster, *ranks: int) -> None:
    """kill -9, and wait until the pool knows."""
    for rank in ranks:
        os.kill(pids(cluster)[rank], signal.SIGKILL)
    eventually(lambda: all(cluster.status()[rank].state == "dead" for rank in ranks), 5)


def pids(cluster: Cluster) -> list[int]:
    return [r.pid for r in cluster.status()]


@pytest.fixture
def pool(pools: Pools, request: pytest.FixtureRequest) -> Iterator[Cluster]:
    """A pool of fresh ranks; `n` in a test's parameters says how many."""
    params = getattr(request.node, "callspec", None)
    cluster = pools.of(params.params.get("n", RANKS) if params else RANKS)
    yield cluster
    cluster.restart()  # each test has ranks without variables


def unbroken(cluster: Cluster, model: str) -> list[float]:
    cluster.run(model)
    cluster.run("train(12)")
    return list(values(cluster, "losses")[0])


# --- the group and who lives on -------------------------------------------------------------------


@pytest.mark.parametrize("n", [2, 3])
def test_a_dead_rank_is_replaced(pool: Cluster, n: int) -> None:
    """The new one has the dead one's number and place; the others keep their processes and variables."""
    pool.run("kept = [rank]")
    before = pids(pool)
    kill(pool, 1)
    assert pool.heal().startswith("rank 1 replaced; rank")
    after = pids(pool)
    assert [a == b for a, b in zip(before, after, strict=True)] == [rank != 1 for rank in range(n)]
    assert values(pool, "t = torch.ones(1); dist.all_reduce(t); (rank, world_size, t.item())") == [
        (rank, n, float(n)) for rank in range(n)
    ]
    assert values(pool, "globals().get('kept')") == [[rank] if rank != 1 else None for rank in range(n)]
    assert pool.heal() == "no rank is dead or doomed: there is nothing to heal"


def test_the_dead_ranks_last_error_is_not_the_new_ones(pool: Cluster) -> None:
    """The status tells of each process what befell it; a restarted pool begins without errors."""
    error = "ZeroDivisionError: division by zero (line 2)"
    pool.run("if rank == 1: import os, signal; os.kill(os.getpid(), signal.SIGKILL)\n1 / 0", check=False)
    assert [r.error for r in pool.status()] == [
        error,
        "killed by SIGKILL",
    ]
    pool.heal()
    assert [r.error for r in pool.status()] == [error, ""]
    pool.run("if rank == 1: raise ValueError('its own')", check=False)
    assert pool.status()[1].error == "ValueError: its own (line 1)"
    pool.restart()
    assert [r.error for r in pool.status()] == ["", ""]


@pytest.mark.parametrize("n", [3])
def test_the_users_groups_go_on_with_the_new_rank_in_them(pool: Cluster, n: int) -> None:
    """A group of `new_group` that the dead rank was in is whole again, and new ones get names that agree."""
    pool.run("pair = dist.new_group([0, 1]); rest = dist.new_group([0, 2])")
    kill(pool, 1)
    pool.heal(source=0)
    reduce = "t = torch.ones(1) + rank; dist.all_reduce(t, group={0}) if rank in {1} else None; t.item()"
    assert values(pool, reduce.format("pair", "(0, 1)")) == [3.0, 3.0, 3.0]
    assert values(pool, reduce.format("rest", "(0, 2)")) == [4.0, 2.0, 4.0]
    pool.run("last = dist.new_group([1, 2])")
    assert values(pool, reduce.format("last", "(1, 2)")) == [1.0, 5.0, 5.0]


@pytest.mark.parametrize("n", [3])
def test_groups_that_the_source_is_no_member_of(pool: Cluster, n: int) -> None:
    """The new rank has its own part in each group, wherever a variable refers to it, not the source's."""
    pool.run(
        "pair = dist.new_group([1, 2]); other = dist.new_group([0, 2]); number = -100\n"
        "class Holder: pass\n"
        "holder = Holder(); holder.group = pair\n"
        "listed = [other, (pair, {'pair': pair})]"
    )
    looks = (
        "outside = dist.GroupMember.NON_GROUP_MEMBER\n"
        "[g == outside for g in (pair, other, holder.group, listed[0], listed[1][0], listed[1][1]['pair'])]"
    )
    before = values(pool, looks)
    kill(pool, 1)
    said = pool.heal(source=0)
    assert "not as they were" not in said
    assert values(pool, looks) == before
    for group in ("pair", "listed[1][0]"):
        reduce = f"t = torch.ones(1) + rank; dist.all_reduce(t, group={group}); t.item()"
        assert values(pool, reduce) == [1.0, 5.0, 5.0]
    assert values(pool, "number") == [-100] * 3


@pytest.mark.parametrize("n", [3])
def test_all_but_one_die_in_a_collective(pool: Cluster, n: int) -> None:
    """Also after the group was broken by a death; and all may die: then the new ones begin anew."""
    pool.run("kept = rank")
    with pytest.raises(RankError, match=r"%ddp heal replaces ranks 1-2") as failed:
        pool.run(
            "import os, signal\nif rank: os.kill(os.getpid(), signal.SIGKILL)\ndist.all_reduce(torch.ones(1))"
        )
    assert "rank 0: blocked by" in str(failed.value)
    pool.heal(0)
    assert values(pool, "t = torch.ones(1); dist.all_reduce(t); (kept, t.item())") == [(0, 3.0)] * 3
    kill(pool, 0, 1, 2)
    assert pool.heal() == "ranks 0-2 replaced"
    assert values(pool, "t = torch.ones(1); dist.all_reduce(t); t.item()") == [3.0] * 3


def test_a_pool_with_a_dead_rank_refuses_and_says_how_to_go_on(pool: Cluster) -> None:
    """A cell on all ranks runs nowhere; its one line names the rank, why it died, and `%ddp heal`."""
    kill(pool, 1)
    with pytest.raises(PoolError, match=r"rank 1 died: killed by SIGKILL; nothing was run\..*%ddp heal"):
        pool.run("ran = True")
    assert values(pool, "'ran' in globals()", "0") == [False]


# --- training goes on -----------------------------------------------------------------------------


@pytest.mark.parametrize("n", [2, 3])
@pytest.mark.parametrize("optimizer", [SGD, ADAM], ids=["sgd", "adam"])
@pytest.mark.parametrize("moment", ["between cells", "in a cell"])
def test_the_losses_are_those_of_an_unbroken_run(pool: Cluster, n: int, optimizer: str, moment: str) -> None:
    """A rank is killed, healed from another, and the loop goes on: the same losses, to 6 decimals."""
    model = MODEL.replace("OPTIMIZER", optimizer).replace("DROPOUT", "0.0")
    expected = unbroken(pool, model)
    pool.run(model)
    pool.run("train(5)")
    if moment == "between cells":
        kill(pool, 1)
    else:
        pool.run("DIES = 7")
        with pytest.raises(RankError, match=r"rank 1: killed by SIGKILL"):
            pool.run("train(12)")
        assert values(pool, "step", "0") == [7]
    assert "copied from rank 0" in pool.heal(source=0)
    pool.run("DIES = -1\ntrain(12)")
    assert values(pool, "losses") == [expected] * n
    assert len(set(values(pool, "sum(p.double().sum().item() for p in net.parameters())"))) == 1


@pytest.mark.parametrize("n", [2, 3])
def test_dropout_goes_on_where_the_dead_rank_left_it(pool: Cluster, n: int) -> None:
    """The new rank draws what the dead one would have drawn: each cell's end carries the random states."""
    model = MODEL.replace("OPTIMIZER", ADAM).replace("DROPOUT", "0.5")
    draw = "import random, numpy.random\n(random.random(), numpy.random.rand(), torch.rand(1).item())"
    seeds = "import random, numpy.random\nrandom.seed(rank); numpy.random.seed(rank)\nnumpy.random.randn()"
    pool.run(seeds)
    expected = unbroken(pool, model)
    drawn = values(pool, draw)
    pool.run(seeds)
    pool.run(model)
    pool.run("train(5)")
    for _ in range(2):  # one that has drawn nothing of its own dies too
        kill(pool, 1)
        pool.heal(source=0)
    pool.run("train(12)")
    assert values(pool, "losses") == [expected] * n
    assert values(pool, draw) == drawn


def test_without_a_source_the_survivors_model_goes_on(pool: Cluster) -> None:
    """A new model on the new rank, with the survivor's weights, trains with the survivor's old model."""
    model = MODEL.replace("OPTIMIZER", SGD).replace("DROPOUT", "0.0")
    pool.run(model)
    pool.run("train(3)")
    kill(pool, 1)
    pool.heal()
    pool.run(model.replace("losses = []", "losses = list(globals().get('losses', []))"))
    pool.run("train(6)")
    assert len(set(values(pool, "losses[-1]"))) == 1


# --- what is copied -------------------------------------------------------------------------------


def test_what_is_copied_and_what_is_said_of_the_rest(pool: Cluster) -> None:
    """One graph: what was shared stays shared; what cannot be copied is named with the reason."""
    pool.run(
        "import math, threading, numpy as np\n"
        "my_rank = rank\n"
        "big = torch.arange(1000.); view = big[10:20]\n"
        "array = np.asfortranarray(np.arange(20000.).reshape(100, 200))\n"
        "def counter():\n    n = 0\n    def up():\n        nonlocal n; n += 1; return n\n"
        "    def look(): return n\n    return up, look\n"
        "up, look = counter(); up()\n"
        "def outer():\n    def rec(k): return 0 if k == 0 else 1 + rec(k - 1)\n    return rec\n"
        "rec = outer()\n"
        "class Point:\n    def __init__(self, a): self.a, self.lock = a, threading.Lock()\n"
        "    def twice(self): return factor * self.a\n"
        "factor = 2\np = Point(3); pair = [p, p]; pair.append(pair)\n"
        "grown = torch.nn.Parameter(torch.ones(3)); (grown * 2).sum().backward()\n"
        "data = torch.utils.data.TensorDataset(torch.arange(12.))\n"
        "sampler = torch.utils.data.DistributedSampler(data)\n"
        "loader = torch.utils.data.DataLoader(data, sampler=sampler, batch_size=2)\n"
        "generator = torch.Generator().manual_seed(5)\n"
        "torch.set_default_dtype(torch.float64)\n"
        "import os; os.environ['OF_THE_CELL'] = 'yes'\n"
        "numbers = (i for i in range(3)); file = open(os.devnull); thread = threading.Thread(target=print)\n"
        "class Bad:\n    def __reduce__(self): raise ValueError('no way')\n"
        "some_bad = [1, Bad()]\n"
        "class Sour:\n    def __setstate__(self, state): raise ValueError('not here')\n"
        "sour = Sour(); sour.x = 1\n"
        "loss = (grown * 3).sum()\n"
    )
    kill(pool, 1)
    said = pool.heal(source=0)
    assert "\n" not in said.partition("\n")[2]
    for words in (
        "my_rank (it has rank 0's value)",
        "numbers ('generator')",
        "file (an open file)",
        "thread (a running Thread)",
        "some_bad (no way)",
        "sour (ValueError: not here)",
        "loss (without its autograd history)",
    ):
        assert words in said, said
    pool.run("factor = 5\nview.zero_(); up()")
    assert values(
        pool,
        "(rank, local_rank, big[10:20].sum().item(), float(array.sum()), array.flags.f_contiguous, look(), "
        "rec(4), p.twice(), pair[0] is pair[1] is p, pair[2] is pair, type(p) is Point, "
        "p.lock.acquire(False), grown.grad.tolist())",
        "1",
    )[0][2:13] == (0.0, 199990000.0, True, 2, 4, 15, True, True, True, True, [2.0, 2.0, 2.0])
    one, two = values(
        pool,
        "(sampler.rank, loader.sampler is sampler, len(list(loader)), torch.ones(1).dtype is torch.float64, "
        "os.environ['OF_THE_CELL'], math.floor(2.5), os.environ['RANK'])",
    )
    assert one == (0, True, 3, True, "yes", 2, "0")
    assert two == (1, True, 3, True, "yes", 2, "1")
    assert len(set(values(pool, "torch.rand(1, generator=generator).item()"))) == 1
    with pytest.raises(RankError, match=r"numbers was not copied from rank 0: 'generator'"):
        pool.run("next(iter(numbers))", "1")


def test_a_class_of_a_cell_has_its_source_on_the_new_rank(pool: Cluster) -> None:
    """A traceback through a copied function shows the user's line."""
    pool.run("def divide(a):\n    return a / 0")
    kill(pool, 1)
    pool.heal(source=0)
    record = pool.run("divide(1)", check=False)
    own, copied = (r.error.traceback for r in record if r.error)
    assert own == copied


def test_shards_are_said_to_be_lost(pool: Cluster) -> None:
    """What is spread over the ranks is not copied as if it were whole: it is named, with the way back."""
    pool.run(
        "from torch.distributed.fsdp import fully_shard\n"
        "sharded = torch.nn.Linear(8, 8); fully_shard(sharded)\n"
        "steps = torch.optim.SGD(sharded.parameters(), lr=0.1)\nwhole = 7",
    )
    kill(pool, 1)
    said = pool.heal(source=0)
    assert "lost: sharded, steps" in said
    assert "checkpoint" in said
    assert values(pool, "whole") == [7, 7]
    kill(pool, 1)
    assert "lost: sharded, steps" in pool.heal()


# --- a heal that fails ----------------------------------------------------------------------------


def check_as_it_was(pool: Cluster, before: list[int]) -> None:
    assert pids(pool)[0] == before[0]
    assert [r.state for r in pool.status()] == ["idle", "dead"]
    assert values(pool, "kept", "0") == [[0]]


def test_the_source_cannot_give(pool: Cluster) -> None:
    """Variables whose copying never ends: an interrupt leaves the pool as it was, and heal works after it."""
    pool.run(
        "kept = [rank]\nimport time\nclass Slow:\n    def __reduce__(self):\n"
        "        open('slow', 'w').close()\n        time.sleep(300)\nslow = Slow()"
    )
    before = pids(pool)
    kill(pool, 1)
    path = Path("slow")
    path.unlink(missing_ok=True)

    def press() -> None:
        eventually(path.exists, 10)
        pool.interrupt()

    thread = threading.Thread(target=press)
    thread.start()
    try:
        with pytest.raises(PoolError, match=r"^rank 1 was not replaced: interrupted$"):
            pool.heal(source=0)
    finally:
        thread.join()
        path.unlink(missing_ok=True)
    check_as_it_was(pool, before)
    pool.run("del slow", "0")
    pool.heal(source=0)
    assert values(pool, "kept") == [[0], [0]]


def test_a_survivor_dies_meanwhile(pool: Cluster) -> None:
    """The heal ends at once and names it; the next one replaces both."""
    pool.run(
        "import os, signal\nclass Deadly:\n    def __reduce__(self):\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\nx = Deadly()"
    )
    kill(pool, 1)
    with pytest.raises(PoolError, match=r"^rank 1 was not replaced: rank 0 died: killed by SIGKILL"):
        pool.heal(source=0)
    assert pool.heal() == "ranks 0-1 replaced"
    assert values(pool, "t = torch.ones(1); dist.all_reduce(t); t.item()") == [2.0, 2.0]


def test_the_new_rank_dies(pool: Cluster) -> None:
    """In the midst of taking over variables: one line, the pool as it was, and the model not lost."""
    model = MODEL.replace("OPTIMIZER", SGD).replace("DROPOUT", "0.0")
    expected = unbroken(pool, model)
    pool.run(model + "\nkept = [rank]")
    pool.run("train(5)")
    pool.run(
        "class Deadly:\n    def __setstate__(self, state):\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\nx = Deadly(); x.a = 1"
    )
    before = pids(pool)
    kill(pool, 1)
    with pytest.raises(PoolError, match=r"^rank 1 was not replaced: the new rank 1 died: killed by SIGKILL"):
        pool.heal(source=0)
    check_as_it_was(pool, before)
    pool.run("del x", "0")
    pool.heal(source=0)
    pool.run("train(12)")
    assert values(pool, "losses") == [expected] * 2


@pytest.mark.parametrize("source", [1, 5])
def test_a_source_that_is_none(pool: Cluster, source: int) -> None:
    """A dead rank, or one that there is not, cannot be copied from; nothing is started."""
    kill(pool, 1)
    with pytest.raises(PoolError, match=rf"--from {source}: .*name a living one"):
        pool.heal(source=source)


# --- in the notebook ------------------------------------------------------------------------------


def test_heal_in_a_notebook(fresh: Any) -> None:
    """The magic says what it did; bad options are one line; status names the command where it is needed."""
    nb: NotebookKernel = fresh()
    nb.start_pool(2)
    assert "nothing to heal" in nb.good("%ddp heal").text
    nb.ranks("kept = 'yes'")
    for line in ("%ddp heal --from x", "%ddp heal 1", "%ddp heal --from"):
        nb.bad(line)
    os.kill(nb.rank_pids()[1], signal.SIGKILL)
    eventually(lambda: nb.status()[1][3] == "dead", 5)
    assert "rank 1 died: %ddp heal" in nb.good("%ddp status").text
    said = nb.good("%ddp heal --from 0").text
    assert said.startswith("rank 1 replaced; rank 0 kept all variables\n1 variable copied from rank 0")
    assert nb.ranks("kept, dist.get_rank()").values == [("yes", 0), ("yes", 1)]
