"""Point 7 of the issue: torchrun scripts pasted into a cell.

The three programs are those of the article that the project started from, changed only where it is
wrong (`out=`) or needs a GPU (`.to(rank)`, `device_ids`).
"""

from __future__ import annotations

import re

import pytest

from tests.integration.notebook_kernel import NotebookKernel, Ranks

RANKS = 4
REDUCE = "t = torch.ones(1); dist.all_reduce(t); t.item()"

TRAIN = """\
# train.py
import torch
import torch.distributed as dist
import os

def train():
    dist.init_process_group(backend="nccl")
    rank = dist.get_rank()
    world_size = dist.get_world_size()
    print(f"Process {rank} of {world_size} reporting in!")

    # Simulate some data processing
    local_data = torch.ones(10) * (rank + 1) # different values for demonstration

    # All-reduce operation to get sums from each rank
    dist.all_reduce(local_data, op=dist.ReduceOp.SUM)

    if rank == 0:
        print(f"Combined data from all ranks: {local_data}")

    dist.destroy_process_group()

if __name__ == "__main__":
    train()
"""

MODEL_TRAIN = """\
# model_train.py
import torch
import torch.nn as nn
import torch.optim as optim
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel as DDP
import os
import random

def setup_ddp(rank, world_size):
    os.environ['MASTER_ADDR'] = 'localhost'
    os.environ['MASTER_PORT'] = '12355'

    dist.init_process_group("nccl", rank=rank, world_size=world_size)

class SimpleModel(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(10, 1)

    def forward(self, x):
        return self.fc(x)


def train(rank, world_size):
  setup_ddp(rank, world_size)

  model = SimpleModel().to("cpu")
  model = DDP(model)
  optimizer = optim.SGD(model.parameters(), lr=0.01)
  loss_fn = nn.MSELoss()

  data_input = torch.randn(10, 10).to("cpu")
  label_output = torch.randn(10, 1).to("cpu")


  optimizer.zero_grad()
  output = model(data_input)
  loss = loss_fn(output, label_output)
  loss.backward()
  optimizer.step()

  print(f"Process {rank}: Loss {loss.item()}")
  dist.destroy_process_group()

if __name__ == "__main__":
    local_rank = int(os.environ.get("LOCAL_RANK", 0))
    world_size = int(os.environ.get("WORLD_SIZE", 1))
    train(local_rank, world_size)
"""

COMPLEX_TRAIN = """\
# complex_train.py
import torch
import torch.nn as nn
import torch.optim as optim
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel as DDP
import os
import random
import socket
import sys


def setup_ddp(rank, world_size):
    os.environ['MASTER_ADDR'] = 'host1' # can also be IP
    os.environ['MASTER_PORT'] = '12355'
    dist.init_process_group("nccl", rank=rank, world_size=world_size)

class ComplexModel(nn.Module):
  def __init__(self):
      super().__init__()
      self.linear1 = nn.Linear(10, 20)
      self.relu = nn.ReLU()
      self.linear2 = nn.Linear(20, 1)

  def forward(self, x):
      x = self.linear1(x)
      x = self.relu(x)
      x = self.linear2(x)
      return x



def train(rank, world_size):
    setup_ddp(rank, world_size)
    model = ComplexModel().to("cpu")
    model = DDP(model)
    optimizer = optim.Adam(model.parameters(), lr=0.001)
    loss_fn = nn.MSELoss()

    data_input = torch.randn(64, 10).to("cpu")
    label_output = torch.randn(64, 1).to("cpu")

    optimizer.zero_grad()
    output = model(data_input)
    loss = loss_fn(output, label_output)
    loss.backward()
    optimizer.step()

    print(f"Process on node rank {rank}: Loss {loss.item()}")

    dist.destroy_process_group()


if __name__ == "__main__":
    local_rank = int(os.environ.get("LOCAL_RANK", 0))
    world_size = int(os.environ.get("WORLD_SIZE", 1))
    train(local_rank, world_size)
"""


def run_twice(nb: NotebookKernel, source: str) -> list[Ranks]:
    """Run a script as a cell, two times in a row, on the same processes."""
    before = nb.rank_pids()
    found = [nb.ranks(source, timeout_s=60) for _ in range(2)]
    assert nb.rank_pids() == before
    assert nb.ranks(REDUCE).values == [4.0] * 4
    return found


# --- the article's programs -----------------------------------------------------------------------


def test_train(nb: NotebookKernel) -> None:
    """train.py: the sum over all ranks, both times."""
    found = run_twice(nb, TRAIN)
    for ranks in found:
        assert [text.splitlines()[0] for text in ranks.stdout] == [
            f"Process {r} of 4 reporting in!" for r in range(4)
        ]
        assert f"Combined data from all ranks: tensor([{', '.join(['10.'] * 10)}])" in ranks.stdout[0]
    assert [len(ranks[0]["notices"]) for ranks in found] == [
        1,
        0,
    ]  # what is not as the script asks is said once


@pytest.mark.parametrize(
    ("source", "line"),
    [(MODEL_TRAIN, r"Process {}: Loss \d"), (COMPLEX_TRAIN, r"Process on node rank {}: Loss \d")],
)
def test_model_train(nb: NotebookKernel, source: str, line: str) -> None:
    """model_train.py and complex_train.py: a DDP step on every rank, MASTER_ADDR='host1' notwithstanding."""
    for ranks in run_twice(nb, source):
        for rank, text in enumerate(ranks.stdout):
            assert re.fullmatch(line.format(rank) + ".*\n", text), text


def test_what_is_said_of_an_adopted_group(nb: NotebookKernel) -> None:
    """That a script that asks for nccl gets the pool's gloo is said in one line, once, in the page too."""
    cell = nb.ranks("dist.init_process_group('nccl')").cell
    assert all(text.count("gloo, not nccl") <= 1 for text in cell.texts)
    nb.good("%ddp restart", 60)
    ranks = nb.ranks("dist.init_process_group('nccl')\ndist.init_process_group('nccl')")
    assert [len(notices) for notices in ranks.all("notices")] == [1] * 4
    assert ranks.cell.text.count("gloo, not nccl") == 1


# --- other scripts --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ("'gloo', rank=rank, world_size=2", "%ddp resize 2"),
        ("'gloo', rank=0, world_size=1", "world_size=1"),
        ("'gloo', rank=(rank + 1) % 4, world_size=4", "leave rank out"),
        ("'gloo', 'env://', None, 8", "world_size=8"),
    ],
)
def test_a_wrong_size_or_rank_is_said_in_one_line(nb: NotebookKernel, arguments: str, named: str) -> None:
    """A world size or rank that is not the pool's raises one line that says which it is."""
    ranks = nb.ranks(f"dist.init_process_group({arguments})", ok=False)
    assert ranks.cell.status == "error"
    for name, text, line in ranks.all("error"):
        assert (name, line) == ("ValueError", 2)
        assert named in text
        assert "\n" not in text
    assert nb.ranks(REDUCE).values == [4.0] * 4


@pytest.mark.parametrize(
    "arguments",
    [
        "",
        "'gloo'",
        "backend='cpu:gloo,cuda:nccl'",
        "'gloo', init_method='env://'",
        "'gloo', init_method='tcp://127.0.0.1:29500', rank=rank, world_size=world_size",
        "'gloo', store=dist.HashStore(), rank=rank, world_size=world_size",
        "timeout=__import__('datetime').timedelta(seconds=30)",
        "device_id=torch.device('cpu')",
    ],
)
def test_ways_to_initialise(nb: NotebookKernel, arguments: str) -> None:
    """Whatever way a script forms its group, it gets the pool's, before and after it destroyed one."""
    code = (
        f"dist.init_process_group({arguments})\ndist.destroy_process_group()\n"
        f"dist.init_process_group({arguments})\n{REDUCE}"
    )
    assert nb.ranks(code).values == [4.0] * 4


def test_destroyed_group_in_the_same_cell(nb: NotebookKernel) -> None:
    """After destroy_process_group the cell has no group, as in a script; the next cell has the pool's."""
    ranks = nb.ranks("dist.destroy_process_group()\ndist.is_initialized()")
    assert ranks.values == [False] * 4
    assert nb.ranks(f"{REDUCE[:-8]}(t.item(), dist.is_initialized())").values == [(4.0, True)] * 4
    ranks = nb.ranks("dist.destroy_process_group()\ndist.all_reduce(torch.ones(1))", ok=False)
    assert all(name == "ValueError" for name, *_ in ranks.all("error"))
    assert nb.ranks(REDUCE).values == [4.0] * 4


def test_a_model_of_an_earlier_cell_still_trains(nb: NotebookKernel) -> None:
    """A DDP model outlives a script cell that destroyed the group: gradients are still averaged."""
    nb.ranks(
        "from torch.nn.parallel import DistributedDataParallel\n"
        "model = DistributedDataParallel(torch.nn.Linear(2, 1, bias=False))\n"
        "def gradient():\n    model.zero_grad()\n"
        "    model(torch.full((1, 2), float(rank))).sum().backward()\n"
        "    return model.module.weight.grad.tolist()\ngradient()",
        timeout_s=60,
    )
    run_twice(nb, TRAIN)
    assert nb.ranks("gradient()").values == [[[1.5, 1.5]]] * 4


def test_subgroups_of_a_script(nb: NotebookKernel) -> None:
    """A script's own subgroups and device mesh form, twice in a row, and are destroyed alone."""
    code = (
        "from torch.distributed.device_mesh import init_device_mesh\ndist.init_process_group('gloo')\n"
        "mesh = init_device_mesh('cpu', (2, 2), mesh_dim_names=('a', 'b'))\n"
        "pair = dist.new_group([0, 1])\nt = torch.tensor([rank])\n"
        "dist.all_reduce(t, group=mesh['b'].get_group())\n"
        "if rank < 2:\n    dist.destroy_process_group(pair)\ndist.destroy_process_group()\nt.item()"
    )
    for _ in range(2):
        assert nb.ranks(code).values == [1, 1, 5, 5]
    assert nb.ranks(REDUCE).values == [4.0] * 4


def test_changed_environment_is_harmless(nb: NotebookKernel) -> None:
    """A cell's MASTER_ADDR and MASTER_PORT reach no group of the pool: restart and resize go on to work."""
    nb.ranks("import os\nos.environ.update(MASTER_ADDR='host1', MASTER_PORT='1', WORLD_SIZE='99', RANK='7')")
    assert nb.ranks(REDUCE).values == [4.0] * 4
    nb.ranks("g = dist.new_group([0, 3])")
    nb.good("%ddp resize 5", 60)
    assert nb.ranks(REDUCE).values == [5.0] * 5
    nb.good("%ddp resize 4", 60)
    assert nb.ranks(REDUCE).values == [4.0] * 4


def test_main_guard_and_argv(nb: NotebookKernel) -> None:
    """`__name__ == "__main__"` holds, argparse finds no arguments, sys.exit(main()) ends well."""
    code = (
        "import argparse, sys\ndef main():\n"
        "    given = argparse.ArgumentParser().parse_args()\n    print('ran', vars(given))\n"
        "    return 0\nif __name__ == '__main__':\n    sys.exit(main())"
    )
    assert nb.ranks(code).stdout == ["ran {}\n"] * 4
