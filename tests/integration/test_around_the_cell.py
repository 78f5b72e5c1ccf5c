"""What goes wrong beside a cell's own code costs no rank; and what goes on after the group was broken."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.integration.notebook_kernel import NotebookKernel

RANKS = 3
REDUCE = "t = torch.ones(1); dist.all_reduce(t); t.item()"


@pytest.fixture(autouse=True)
def _ranks_live_on(kernel: NotebookKernel) -> Iterator[None]:
    """Each test leaves the ranks that it found, with their variables and a group that works."""
    kernel.live = False
    before = kernel.rank_pids()
    kernel.ranks("kept = rank + 40")
    yield
    assert kernel.rank_pids() == before
    assert kernel.ranks(f"{REDUCE}, kept").values == [(3.0, rank + 40) for rank in range(RANKS)]


def test_models_and_groups_go_on(nb: NotebookKernel) -> None:
    """After a rank failed in a collective, DDP models and groups of earlier cells use the new group."""
    nb.ranks(
        "from torch.nn.parallel import DistributedDataParallel as DDP\n"
        "torch.manual_seed(0)\n"
        "net = DDP(torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 1)))\n"
        "optimizer = torch.optim.SGD(net.parameters(), 0.1)\n"
        "pair = dist.new_group([0, 1]); holder = {'in a list': [pair]}\n"
        "def step():\n"
        "    optimizer.zero_grad()\n"
        "    net(torch.full((2, 4), float(rank))).sum().backward()\n"
        "    optimizer.step()\n"
        "step()\n"
        "from jupyter_ddp.worker.carry_over import note_groups\n"
        "known = [old.note for old in note_groups().others]",
        timeout_s=60,
    )
    failed = nb.ranks("if rank == 1:\n    1 / 0\nstep()", ok=False)
    assert failed.all("verdict") == ["interrupted", "error", "interrupted"]
    after = nb.ranks(
        "step(); step()\n"
        "weight = net.module[0].weight.detach()\n"
        "mean = weight.clone(); dist.all_reduce(mean)\n"
        "t = torch.ones(1)\n"
        "if rank < 2:\n"
        "    dist.all_reduce(t, group=pair); dist.all_reduce(t, group=holder['in a list'][0])\n"
        # A rank that a death stopped half-way compares its notes with those of ranks that came through.
        "assert len(known) == (rank < 2) and known == [old.note for old in note_groups().others]\n"
        "((mean / world_size - weight).abs().max().item() < 1e-6, t.item())"
    )
    assert after.values == [(True, 4.0), (True, 4.0), (True, 1.0)]


def test_an_error_that_is_no_unicode(nb: NotebookKernel) -> None:
    """A file name that is no UTF-8 in an exception's text is shown escaped."""
    ranks = nb.ranks("raise ValueError('caf\\udce9')", ok=False)
    assert [error[1] for error in ranks.all("error")] == ["caf\\udce9"] * RANKS


def test_a_default_timeout_of_sockets(nb: NotebookKernel) -> None:
    """`socket.setdefaulttimeout` holds for the cell's own sockets, and for none of ours or torch's."""
    code = "import socket\nsocket.setdefaulttimeout(5)\ng = dist.new_group([0, 1, 2])\n" + REDUCE
    assert nb.ranks(code).values == [3.0] * RANKS
    nb.ranks("socket.setdefaulttimeout(None)")


def test_a_signal_handler_that_prints(nb: NotebookKernel) -> None:
    """A handler that prints in the midst of a print tears no message; nothing is lost."""
    ranks = nb.ranks(
        "import signal\n"
        "ticks = 0\n"
        "def tick(*_):\n"
        "    global ticks\n"
        "    ticks += 1\n"
        "    print('tick')\n"
        "signal.signal(signal.SIGALRM, tick)\n"
        "signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)\n"
        "for i in range(20_000):\n"
        "    print('x' * 50)\n"
        "signal.setitimer(signal.ITIMER_REAL, 0)\n"
        "ticks"
    )
    for text, ticks in zip(ranks.stdout, ranks.values, strict=True):
        assert ticks > 0
        assert text.count("tick") == ticks
        assert text.count("x") == 50 * 20_000


def test_an_interrupted_await_is_over(nb: NotebookKernel) -> None:
    """What the cell awaited does not go on inside the next one."""
    cell = nb.send(
        "%%ddp\nimport asyncio\nopen(f'waits{rank}', 'w').close()\n"
        "for i in range(1000):\n    print('old', i)\n    await asyncio.sleep(0.01)"
    )
    nb.wait_for_files("waits*", RANKS)
    nb.interrupt()
    assert "interrupted" in nb.wait(cell).error
    assert nb.ranks("await asyncio.sleep(0.2)").stdout == [""] * RANKS


def test_bytes_of_c_code_and_prints_in_turn(nb: NotebookKernel) -> None:
    """Both ways of writing, thousands of times: the agent loses neither, nor the rank."""
    ranks = nb.ranks(
        "import os\nfor i in range(2000):\n    os.write(1, b'fd\\n')\n    print('py', flush=True)",
        timeout_s=60,
    )
    # Two ways into one text: print() writes its line's end by itself, and the other's line may come before.
    counts = [(text.count("fd\n"), text.count("py"), len(text)) for text in ranks.stdout]
    assert counts == [(2000, 2000, 4000 * 3)] * RANKS


def test_a_restart_that_cannot_be_had(nb: NotebookKernel) -> None:
    """It is refused before anything is stopped."""
    for options in ("-n 100000", "--backend nccl", "--devices 9"):
        assert nb.bad(f"%ddp restart {options}").error


def test_a_rank_that_waits_in_the_store(nb: NotebookKernel) -> None:
    """One rank alone in `new_group` is freed by an interrupt."""
    cell = nb.send("%%ddp\nopen(f'alone{rank}', 'w').close()\nif rank == 0:\n    dist.new_group([0, 1])")
    nb.wait_for_files("alone*", RANKS)
    nb.interrupt()
    assert "rank 0: interrupted" in nb.wait(cell, 5).error
