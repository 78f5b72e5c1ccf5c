"""Point 8 of the issue: bad input gets one line with the remedy, and the pool is untouched."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.integration.notebook_kernel import NotebookKernel

RANKS = 2


@pytest.fixture(autouse=True)
def _pool_untouched(kernel: NotebookKernel) -> Iterator[None]:
    """After each test: the same processes, no cell was run by the bad one, and cells go on to work."""
    kernel.live = False
    before = kernel.rank_pids()
    yield
    assert kernel.rank_pids() == before
    assert (
        kernel.ranks("t = torch.ones(1); dist.all_reduce(t); (t.item(), 'ran' in globals())").values
        == [(2.0, False)] * 2
    )


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("-n 0", "-n 1"),
        ("-n x", "-n 4"),
        ("-n -3", "at least one"),
        ("-n 2.5", "-n 4"),
        ("-n", "-n"),
        ("-n 1000", "write -n"),
        ("-n 100000", "limit"),
        ("--fast", "--fast"),
        ("--nope 3", "%%ddp?"),
        ("-n 2 stray", "stray"),
        ("-t 7", "7"),
        ("-t 0,9", "9"),
        ("-t 1-0", "1-0"),
        ("-t x", "::2"),
        ("-t ''", "-t"),
        ("-o 2x", "2x"),
        ("-o for", "for"),
        ("--backend mpi", "gloo"),
        ("--backend nccl", "nccl"),
        ("--devices a", "--devices"),
        ("-n 'unclosed", "quot"),
    ],
)
def test_bad_options(kernel: NotebookKernel, line: str, named: str) -> None:
    """A bad option of `%%ddp` runs nothing and is answered in one line."""
    cell = kernel.bad(f"%%ddp {line}\nran = True")
    assert cell.error.startswith(("UsageError: ", "PoolError: "))
    assert named in cell.error
    assert [output["output_type"] for output in cell.outputs] == ["error"]
    assert cell.text == cell.error
    assert len(cell.error) < 300


@pytest.mark.parametrize(
    "command",
    [
        "%ddp nonsense",
        "%ddp resize",
        "%ddp resize x",
        "%ddp resize 0",
        "%ddp start -n 3",
        "%ddp start -n x",
        "%ddp restart --bad",
        "%ddp stop now",
        "%ddp log x",
        "%ddp log 9999",
        "%%rank\nran = True",
        "%%rank -t 0\nran = True",
        "%%rank 9\nran = True",
    ],
)
def test_bad_commands(kernel: NotebookKernel, command: str) -> None:
    """So is a bad `%ddp` command or `%%rank`."""
    cell = kernel.bad(command)
    assert cell.error.startswith(("UsageError: ", "PoolError: "))
    assert cell.text == cell.error


def test_ranks_as_several_words(kernel: NotebookKernel) -> None:
    """`%%rank 0 1` is answered with how it is written."""
    assert kernel.bad("%%rank 0 1\nran = True").error.endswith("as in %%rank 0,2-3")


@pytest.mark.parametrize(
    ("code", "line"),
    [
        ("ran = True\nx = (1,\n", 3),
        ("ran = True\nif True\n    pass", 3),
        ("\n\nran = True\nreturn 5", 5),
        ("ran = True\n  indented", 3),
        ("ran = True\nx = 'unclosed", 3),
        ("ran = True\nawait = 3", 3),
        ("ran = True\nf(**, 1)", 3),
    ],
)
def test_syntax_errors(kernel: NotebookKernel, code: str, line: int) -> None:
    """A syntax error is one line with the notebook cell's line number; it reaches no rank."""
    cell = kernel.bad(f"%%ddp -n 2\n{code}")
    assert f"line {line}" in cell.error
    assert "nothing was run" in cell.error
    assert cell.text == cell.error


@pytest.mark.parametrize("body", ["", "\n", "   \n\n  ", "\t\n"])
def test_empty_cells(kernel: NotebookKernel, body: str) -> None:
    """An empty cell says that it is empty (IPython itself does where there is no line at all)."""
    assert "is empty" in kernel.bad(f"%%ddp\n{body}").error


def test_only_a_comment(kernel: NotebookKernel) -> None:
    """A cell of comments alone is no error, and shows nothing."""
    assert kernel.good("%%ddp\n# nothing to do").outputs == []


def test_null_bytes_and_bad_cookies(kernel: NotebookKernel) -> None:
    """Source that Python cannot take at all is answered in one line as well."""
    kernel.bad("%%ddp\nran = True\nx = '\0'")
    assert kernel.run("%%ddp\nx = " + "(" * 5000 + ")" * 5000).status == "error"


def test_help(kernel: NotebookKernel) -> None:
    """`%%ddp?` shows the options."""
    cell = kernel.wait(kernel.send("%%ddp?"))
    assert cell.ok


def test_a_start_that_fails(kernel: NotebookKernel, fresh: Callable[..., NotebookKernel]) -> None:
    """A pool that cannot import what it preloads: one line that names the module, and no process left."""
    other = fresh()
    other.good("from jupyter_ddp import Cluster\nc = Cluster(2, preload=['no_such_module'])")
    for code in ("c.start()", "c.run('1')"):
        error = other.bad(code, 20).error
        assert "no_such_module" in error
        assert error.startswith("PoolError: ")
    other.good("c.close()")
    assert other.others() == []


def test_before_a_start_without_a_pool(kernel: NotebookKernel, fresh: Callable[..., NotebookKernel]) -> None:
    """Bad input before any pool starts none, and the first good cell works."""
    other = fresh()
    other.good("%load_ext jupyter_ddp")
    for code in (
        "%%ddp -n 0\n1",
        "%%ddp -n 1000\n1",
        "%%ddp -n 2 --oops\n1",
        "%%ddp -n 2\n1 +",
        "%%ddp -n 3 -t 7\n1",
        "%%ddp -t x\n1",
        "%%ddp -n 2\n",
    ):
        other.bad(code)
    assert "no pool" in other.good("%ddp status").text
    other.bad("%ddp resize 0")
    assert "no pool" in other.good("%ddp status").text
    assert other.ranks("rank", "-n 2", 60).values == [0, 1]


def test_a_working_directory_that_is_gone(
    kernel: NotebookKernel, fresh: Callable[..., NotebookKernel]
) -> None:
    """Ranks cannot have it: said in one line, and the pool that is to be restarted runs on."""
    other = fresh()
    other.good("%load_ext jupyter_ddp")
    before = other.ranks("rank", "-n 2", 60).values
    for code in ("import os; os.mkdir('gone'); os.chdir('gone'); os.rmdir('../gone')", "%ddp restart -n 2"):
        last = other.wait(other.send(code))
    assert last.error == "UsageError: the working directory was deleted; %cd to one that is there"
    assert other.ranks("rank").values == before == [0, 1]
