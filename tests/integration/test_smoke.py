"""The main path, once and quickly: what `make test-oldest` runs under the oldest supported versions."""

from __future__ import annotations

import pytest

from tests.integration.notebook_kernel import NotebookKernel

RANKS = 4


def test_print_and_all_reduce(nb: NotebookKernel) -> None:
    """`%%ddp -n 4` runs a cell on four ranks that share a group; identical output is shown once."""
    cell = nb.good("%%ddp -n 4\nt = torch.ones(1)\ndist.all_reduce(t)\nprint('sum', t.item(), world_size)")
    assert cell.text.count("sum 4.0 4") == 1
    assert "ranks 0–3" in cell.text
    assert nb.ranks("print('rank', rank)").stdout == [f"rank {r}\n" for r in range(4)]


def test_live_output_is_replaced_by_the_saved_one(lab: NotebookKernel) -> None:
    """In a front end that somebody watches, output comes while the cell runs, in one place."""
    wait = "import os, time\nwhile not os.path.exists('go'): time.sleep(0.01)"
    running = lab.send(f"%%ddp\nprint('early')\n{wait}\nprint('late')")
    lab.pump_until(lambda: "early" in running.text, 10, "the first print of a running cell")
    assert not running.done
    (lab.folder / "go").touch()
    lab.wait(running)
    assert len(running.outputs) == 1
    assert "late" in running.text


def test_streams_in_order(nb: NotebookKernel) -> None:
    """Python's prints, a subprocess's and stderr arrive whole, each with its rank."""
    ranks = nb.ranks("import sys\nprint('one')\n!echo two\nprint('three')\nprint('err', file=sys.stderr)")
    assert ranks.stdout == ["one\ntwo\nthree\n"] * 4
    assert ranks.all("stderr") == ["err\n"] * 4


def test_value_and_display(nb: NotebookKernel) -> None:
    """The last expression's value, and display(), are shown and recorded."""
    assert nb.ranks("rank + 10").values == [10, 11, 12, 13]
    cell = nb.good("%%ddp\nfrom IPython.display import HTML, display\ndisplay(HTML('<b>bold</b>'))\n6 * 7")
    assert "<b>bold</b>" in cell.html
    assert "42" in cell.text


def test_magics_and_await(nb: NotebookKernel) -> None:
    """%timeit and top-level await work on the ranks."""
    assert all("per loop" in text for text in nb.ranks("%timeit -n 1 -r 1 1 + 1").stdout)
    assert nb.ranks("import asyncio\nawait asyncio.sleep(0, rank)").values == [0, 1, 2, 3]


def test_error_names_rank_and_line(nb: NotebookKernel) -> None:
    """An exception on one rank fails the cell in one line, with the user's own frames."""
    cell = nb.bad("%%ddp\nif rank == 2:\n    1 / 0")
    assert cell.error == "RankError: rank 2: ZeroDivisionError: division by zero (line 3)"
    text = nb.ranks("def f():\n    return [][1]\nf()", ok=False).tracebacks()[0]
    assert "return [][1]" in text
    assert "IPython" not in text.replace("<ipython", "")


def test_interrupt_frees_a_collective(nb: NotebookKernel) -> None:
    """The interrupt button frees ranks that wait for one another; variables stay, and the group works."""
    nb.ranks("kept = rank * 100")
    code = "open(f'waits{rank}', 'w').close()\nimport time\nif rank: dist.barrier()\nelse: time.sleep(60)"
    running = nb.send("%%ddp\n" + code)
    nb.wait_for_files("waits*", 4)
    nb.interrupt()
    assert nb.wait(running, 20).status == "error"
    ranks = nb.ranks("t = torch.tensor([kept])\ndist.all_reduce(t)\nt.item()")
    assert ranks.values == [600] * 4


def test_class_of_a_cell_pickles(nb: NotebookKernel) -> None:
    """What a cell defines can be pickled, and its source is found."""
    nb.ranks("class Net(torch.nn.Module):\n    def size(self):\n        return 3")
    assert nb.ranks("import pickle\npickle.loads(pickle.dumps(Net())).size()").values == [3] * 4
    assert nb.ranks("import inspect\n'return 3' in inspect.getsource(Net)").values == [True] * 4


def test_distributed_data_parallel(nb: NotebookKernel) -> None:
    """A DDP step leaves the same gradients everywhere."""
    code = (
        "net = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(2, 1, bias=False))\n"
        "net(torch.full((1, 2), float(rank))).sum().backward()\nnet.module.weight.grad.tolist()"
    )
    assert nb.ranks(code, timeout_s=60).values == [[[1.5, 1.5]]] * 4


def test_figure(nb: NotebookKernel) -> None:
    """A matplotlib figure of a rank is an image in the cell's output."""
    pytest.importorskip("matplotlib")
    cell = nb.good("%%rank 0\nimport matplotlib.pyplot as plt\n_ = plt.plot([1, 2])", 60)
    assert "data:image/png;base64," in cell.html


def test_pool_commands(nb: NotebookKernel) -> None:
    """status, resize and stop do what they say; what makes no sense is refused in one line."""
    assert len(nb.status()) == 4
    assert "%ddp resize 3" in nb.bad("%%ddp -n 3\npass").error
    nb.good("%ddp resize 3", 60)
    assert nb.ranks("world_size").values == [3] * 3
    nb.good("%ddp stop")
    assert "no pool" in nb.good("%ddp status").text
