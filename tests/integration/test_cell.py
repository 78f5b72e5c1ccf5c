"""Point 3 of the issue: what runs in a cell, and what a traceback shows of it."""

from __future__ import annotations

import re

import pytest

from jupyter_ddp.core.terminal import strip
from tests.integration.notebook_kernel import NotebookKernel

RANKS = 4


# --- IPython on the ranks -------------------------------------------------------------------------


def test_top_level_await(nb: NotebookKernel) -> None:
    """`await` works at the top of a cell, in `async for` too, and the loop's tasks live on."""
    nb.ranks(
        "import asyncio\nasync def later(x):\n    await asyncio.sleep(0)\n    return x\n"
        "task = await later(later(rank))"
    )
    assert nb.ranks("await task").values == [0, 1, 2, 3]
    found = nb.ranks(
        "async def count():\n    for i in range(3):\n        yield i\n[i async for i in count()]"
    ).values
    assert found == [[0, 1, 2]] * 4
    assert nb.ranks("sum(await asyncio.gather(later(1), later(2)))").values == [3] * 4


def test_timeit_and_other_magics(nb: NotebookKernel) -> None:
    """%timeit, %%time, %env and %who run on each rank."""
    assert all("per loop" in text for text in nb.ranks("%timeit -n 2 -r 2 1 + 1").stdout)
    assert all("Wall time" in text for text in nb.ranks("%time print('x')").stdout)
    assert nb.ranks("%env DDP_TEST=5\nimport os; os.environ['DDP_TEST']").values == ["5"] * 4
    assert nb.ranks("%%capture caught\nprint('hidden')\n").stdout == [""] * 4
    assert nb.ranks("caught.stdout").values == ["hidden\n"] * 4


def test_shell_commands(nb: NotebookKernel) -> None:
    """`!command` writes in order with the cell's prints; `x = !command` takes the lines; names expand."""
    ranks = nb.ranks("print('before')\n!echo shell {rank} $world_size; echo oops >&2\nprint('after')")
    assert ranks.stdout == [f"before\nshell {r} 4\nafter\n" for r in range(4)]
    assert ranks.all("stderr") == ["oops\n"] * 4
    assert nb.ranks("lines = !printf 'a\\nb\\n'\nlist(lines)").values == [["a", "b"]] * 4
    assert nb.ranks("!exit 3\n_exit_code").values == [3] * 4


def test_script_magic(nb: NotebookKernel) -> None:
    """A `%%bash` cell inside the rank's cell runs there."""
    assert nb.ranks("%%bash\necho from bash $RANK").stdout == [f"from bash {r}\n" for r in range(4)]


def test_last_value(nb: NotebookKernel) -> None:
    """The last expression is the value; `_` is it afterwards; None and assignments give none."""
    assert nb.ranks("1\nrank + 10").values == [10, 11, 12, 13]
    assert nb.ranks("_ + 1").values == [11, 12, 13, 14]
    assert nb.ranks("None").all("value") == [None] * 4
    assert nb.ranks("x = 5").all("value") == [None] * 4


def test_which_values_are_shown(nb: NotebookKernel) -> None:
    """IPython's `ast_node_interactivity` holds on a rank."""
    nb.ranks("get_ipython().ast_node_interactivity = 'last_expr_or_assign'")
    try:
        assert nb.ranks("x = rank + 5").values == [5, 6, 7, 8]
        assert nb.ranks("x += 1").values == [6, 7, 8, 9]
        assert nb.ranks("x, y = 1, 2").all("value") == [None] * 4
        nb.ranks("get_ipython().ast_node_interactivity = 'all'")
        assert nb.ranks("1\nx = 2\nx").cell.text.count("1") >= 1
    finally:
        nb.ranks("get_ipython().ast_node_interactivity = 'last_expr'")
    assert nb.ranks("x = 5").all("value") == [None] * 4


def test_future_statements_hold_in_later_cells(nb: NotebookKernel) -> None:
    """`from __future__ import annotations` in one cell is still there in the next, as in a notebook."""
    assert nb.ranks("def f(x: int): pass\nf.__annotations__['x'] is int").values == [True] * 4
    nb.ranks("from __future__ import annotations")
    assert nb.ranks("def f(x: int): pass\nf.__annotations__['x']").values == ["int"] * 4
    nb.ranks("get_ipython().compile.reset_compiler_flags()")
    assert nb.ranks("def f(x: int): pass\nf.__annotations__['x'] is int").values == [True] * 4


def test_who_registers_for_a_cells_events_hears_of_it(nb: NotebookKernel) -> None:
    """IPython's events come on a rank: what watches cells (autoreload, matplotlib) works there."""
    nb.ranks(
        "heard = []\nwatch = {'pre_execute': lambda: heard.append('pre'), "
        "'pre_run_cell': lambda info: heard.append(info.raw_cell.strip()), "
        "'post_run_cell': lambda result: heard.append((result.success, result.result)), "
        "'post_execute': lambda: heard.append('post')}\n"
        "for name, callback in watch.items(): get_ipython().events.register(name, callback)"
    )
    nb.ranks("rank * 0 + 7")
    nb.bad("%%ddp\n1/0")
    heard = nb.ranks(
        "for name, callback in watch.items(): get_ipython().events.unregister(name, callback)\nheard"
    ).values[3]
    # The cell that registered them ends with them registered, and the one that lists them begins so.
    assert heard[:2] == ["post", (True, None)]
    assert heard[2:6] == ["pre", "rank * 0 + 7", "post", (True, 7)]
    assert heard[6:10] == ["pre", "1/0", "post", (False, None)]


def test_syntax_transformers(nb: NotebookKernel) -> None:
    """An AST transformer registered on a rank works there; one that raises is removed, and harms no cell."""
    nb.ranks(
        "import ast\nclass Twice(ast.NodeTransformer):\n    def visit_Constant(self, node):\n"
        "        return ast.copy_location(ast.Constant(node.value * 2), node)\n"
        "twice = Twice(); get_ipython().ast_transformers.append(twice)"
    )
    assert nb.ranks("x = 21\nx").values == [42] * 4
    nb.ranks("get_ipython().ast_transformers.clear()")
    assert nb.ranks("x = 21\nx").values == [21] * 4


def test_the_line_takes_the_notebooks_variables(nb: NotebookKernel) -> None:
    """`$name` and `{expression}` in a magic's line, as in IPython's own."""
    nb.good("some, size = '0,2', 4")
    assert nb.ranks("rank", "-n $size -t $some").cell.ok
    assert nb.ranks("rank", "-t {size - 1}").values[-1] == 3
    nb.good("%%rank $some\nrank")


def test_a_stream_that_a_cell_closes_or_takes_apart(nb: NotebookKernel) -> None:
    """sys.stdout outlives close() and detach(); the next cell prints."""
    nb.ranks("import sys\nsys.stdout.close(); print('still')")
    cell = nb.bad("%%ddp\nsys.stdout.detach()")
    assert "UnsupportedOperation" in cell.error
    assert nb.ranks("print('here')").stdout == ["here\n"] * 4


def test_semicolon_suppresses_the_value(nb: NotebookKernel) -> None:
    """A semicolon at the end keeps the value from being shown."""
    for code in ("rank + 10;", "rank + 10;  # why", "f'a;b';"):
        ranks = nb.ranks(code)
        assert ranks.all("value") == [None] * 4
        assert ranks.cell.outputs == []
    assert nb.ranks("'a;'").values == ["a;"] * 4


def test_source_is_transformed_once(nb: NotebookKernel) -> None:
    """Text that looks like a magic inside a string stays as it is, and comes to the rank unchanged."""
    code = "text = '''\n%timeit 1\n!ls\n%%ddp\nx?\n'''\ntext"
    assert nb.ranks(code).values == ["\n%timeit 1\n!ls\n%%ddp\nx?\n"] * 4


def test_an_empty_line_first(nb: NotebookKernel) -> None:
    """Empty lines and comments before the code change nothing but the line numbers."""
    ranks = nb.ranks("\n\n# comment\n\n1/0", ok=False)
    assert ranks.all("error") == [("ZeroDivisionError", "division by zero", 6)] * 4


def test_unicode_source(nb: NotebookKernel) -> None:
    """Names and strings in any script arrive."""
    assert nb.ranks("größe = '→ 字 🎉'\ngröße").values == ["→ 字 🎉"] * 4


def test_input_is_refused_in_one_line(nb: NotebookKernel) -> None:
    """input() on a rank does not wait for ever: it says what to do."""
    ranks = nb.ranks("input('name?')", ok=False)
    assert all("ask in the notebook" in error[1] for error in ranks.all("error"))


def test_a_variable_named_like_ours(nb: NotebookKernel) -> None:
    """A user may overwrite `rank` or `torch`; the next cell has what they wrote, not ours."""
    nb.ranks("mine, rank = rank, 'first'")
    assert nb.ranks("rank").values == ["first"] * 4
    nb.ranks("rank = mine")


# --- tracebacks -----------------------------------------------------------------------------------


def test_traceback_has_the_notebooks_line_numbers(nb: NotebookKernel) -> None:
    """Lines count from the top of the notebook's cell, `%%ddp` included, with the source beside them."""
    ranks = nb.ranks("x = 1\ny = 0\nx / y  # here", ok=False)
    assert ranks.all("error") == [("ZeroDivisionError", "division by zero", 4)] * 4
    for text in ranks.tracebacks():
        assert re.search(r"line 4|> +4", text), text
        assert "x / y  # here" in text
    assert ranks.cell.error == "RankError: ranks 0-3: ZeroDivisionError: division by zero (line 4)"


def test_a_traceback_is_the_same_whatever_counts_the_cells(nb: NotebookKernel) -> None:
    """The running cell has no number in what is saved; an earlier one has the notebook's."""
    nb.ranks("def fails():\n    raise ValueError('so')")
    plain = {strip(text) for text in nb.ranks("fails()", ok=False).tracebacks()}
    assert len(plain) == 1
    (text,) = plain
    assert "This cell, line 2" in text
    assert re.search(r"Cell In\[\d+\], line 3, in fails\(\)", text)
    assert len(re.findall(r"In ?\[|<ipython", text)) == 1


def test_statements_on_one_line(nb: NotebookKernel) -> None:
    """Which of them failed is told alike on every rank, so that the traceback is shown once."""
    sources = "def f(): raise ValueError('so')\nf()", "x = 1; y = 1 / 0\nz = 2", "g = lambda: 1 / 0\ng()"
    for source in sources:
        texts = {strip(text) for text in nb.ranks(source, ok=False).tracebacks()}
        assert len(texts) == 1, texts


def test_only_the_users_frames(nb: NotebookKernel) -> None:
    """Neither our frames nor IPython's are shown; a library's own frame is, where it raised."""
    nb.ranks("def inner(n):\n    return 1 / n\ndef outer(n):\n    return inner(n)")
    for text in nb.ranks("outer(0)", ok=False).tracebacks():
        assert "jupyter_ddp/" not in text
        assert "IPython" not in text.replace("<ipython", "")
        assert text.index("outer(0)") < text.index("return inner(n)") < text.index("return 1 / n")
    raised_in_library = nb.ranks("import json\njson.loads('{')", ok=False)
    assert raised_in_library.all("error")[0][0] == "JSONDecodeError"
    assert raised_in_library.all("error")[0][2] == 3
    assert "json.loads('{')" in raised_in_library.tracebacks()[0]


def test_frames_of_a_module_beside_the_notebook(nb: NotebookKernel) -> None:
    """A module of the user's own is the user's: its lines are in the traceback."""
    (nb.folder / "fails_beside.py").write_text("def fail():\n    raise ValueError('from the module')\n")
    ranks = nb.ranks("import fails_beside\nfails_beside.fail()", ok=False)
    for text in ranks.tracebacks():
        assert "raise ValueError('from the module')" in text
    assert ranks.all("error") == [("ValueError", "from the module", 3)] * 4


def test_chained_exceptions(nb: NotebookKernel) -> None:
    """`raise … from` shows both, each with its own lines and without our frames."""
    code = (
        "def first():\n    {}['key']\ntry:\n    first()\nexcept KeyError as error:\n"
        "    raise RuntimeError('second') from error"
    )
    ranks = nb.ranks(code, ok=False)
    assert ranks.all("error") == [("RuntimeError", "second", 7)] * 4
    for text in ranks.tracebacks():
        assert "KeyError" in text
        assert "direct cause" in text
        assert "{}['key']" in text
        assert "jupyter_ddp/" not in text


def test_error_in_await(nb: NotebookKernel) -> None:
    """An exception in awaited code has the cell's line too."""
    code = "import asyncio\nasync def f():\n    raise KeyError('gone')\nawait f()"
    assert nb.ranks(code, ok=False).all("error") == [("KeyError", "'gone'", 4)] * 4


def test_system_exit(nb: NotebookKernel) -> None:
    """sys.exit(3) fails the cell, exit() and sys.exit(0) end it well; ranks live on with all variables."""
    before = nb.rank_pids()
    ranks = nb.ranks("import sys\nsys.exit(3)", ok=False)
    assert ranks.cell.status == "error"
    assert ranks.cell.error.startswith("RankError: ranks 0-3: sys.exit(3)")
    alone = nb.ranks("kept = rank\nif rank == 1:\n    exit(3)", ok=False)
    assert alone.cell.error.startswith("RankError: rank 1: sys.exit(3)")
    for code in ("exit()", "quit()", "sys.exit()", "sys.exit(0)"):
        ranks = nb.ranks(f"print('before')\n{code}\nprint('after')")
        assert ranks.stdout == ["before\n"] * 4
    assert nb.ranks("kept").values == [0, 1, 2, 3]
    assert nb.rank_pids() == before


def test_warnings_at_top_level(nb: NotebookKernel) -> None:
    """A warning comes on stderr with the user's text; a SyntaxWarning once, not from two compilations."""
    ranks = nb.ranks("import warnings\nwarnings.warn('take care')")
    words = "This cell:3: UserWarning: take care\n  warnings.warn('take care')\n"
    assert ranks.all("stderr") == [words] * 4
    ranks = nb.ranks("rank is 1000")
    assert all(text.count("SyntaxWarning") == 1 for text in ranks.all("stderr")), ranks.all("stderr")
    assert "SyntaxWarning" not in "".join(o.get("text", "") for o in ranks.cell.outputs)


def test_hostile_repr_and_str(nb: NotebookKernel) -> None:
    """A value whose repr raises, and an exception whose str raises, are ordinary errors of the cell."""
    nb.ranks("class Bad:\n    def __repr__(self):\n        raise ValueError('no repr')")
    ranks = nb.ranks("Bad()", ok=False)
    assert {r["verdict"] for r in ranks.records} <= {"ok", "error"}
    nb.ranks("class Worse(Exception):\n    def __str__(self):\n        raise ValueError('no text')")
    ranks = nb.ranks("raise Worse()", ok=False)
    assert [error[0] for error in ranks.all("error")] == ["Worse"] * 4
    assert nb.ranks("1").values == [1] * 4


def test_a_failed_cells_memory_is_freed(nb: NotebookKernel) -> None:
    """What the frames of a failed cell held is gone when the next cell runs, without a collection."""
    code = (
        "import weakref, gc\ngc.disable()\ndef f():\n    big = torch.zeros(10)\n    global seen\n"
        "    seen = weakref.ref(big)\n    1 / 0\nf()"
    )
    nb.ranks(code, ok=False)
    assert nb.ranks("gc.enable()\nseen() is None").values == [True] * 4


# --- some ranks -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("targets", "members"),
    [("0,2-3", [0, 2, 3]), ("::2", [0, 2]), ("1:3", [1, 2]), ("3", [3]), ("0-3", [0, 1, 2, 3])],
)
def test_targets(nb: NotebookKernel, targets: str, members: list[int]) -> None:
    """`-t` runs the cell on just these ranks; `group` is a process group of them."""
    ranks = nb.ranks("t = torch.tensor([rank])\nrank", f"-t {targets}")
    assert ranks.all("rank") == members
    if len(members) < 4:
        ranks = nb.ranks(
            "dist.all_reduce(t, group=group)\n(t.item(), dist.get_world_size(group))", f"-t {targets}"
        )
        assert ranks.values == [(sum(members), len(members))] * len(members)


def test_rank_magic(nb: NotebookKernel) -> None:
    """`%%rank 0` and `%%rank [1-2]` are short for `-t`."""
    assert nb.good("%%rank 0\nprint('zero', rank)").text.split() == ["[rank", "0]", "zero", "0"]
    text = nb.good("%%rank [1-2]\nprint('one or two', rank)").text
    assert "one or two 1" in text
    assert "one or two 2" in text
    assert "one or two 0" not in text


@pytest.mark.parametrize(
    "call",
    [
        "dist.all_reduce(torch.ones(1))",
        "dist.barrier()",
        "dist.broadcast(torch.ones(1), 0)",
        "dist.all_gather([torch.ones(1) for _ in range(4)], torch.ones(1))",
        "dist.all_gather_object([None] * 4, rank)",
        "dist.broadcast_object_list([1], 0)",
        "dist.gather(torch.ones(1), [torch.ones(1) for _ in range(4)] if rank == 0 else None, 0)",
        "dist.reduce(torch.ones(1), 0)",
        "dist.scatter(torch.ones(1), [torch.ones(1) for _ in range(4)] if rank == 0 else None, 0)",
        "dist.reduce_scatter_tensor(torch.ones(1), torch.ones(4))",
        "dist.all_gather_into_tensor(torch.ones(4), torch.ones(1))",
        "dist.send(torch.ones(1), 2 - rank)",
        "dist.new_group([0, 1])",
        "dist.all_to_all_single(torch.ones(4), torch.ones(4))",
        "dist.monitored_barrier()",
        "torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(1, 1))",
    ],
)
def test_a_world_collective_on_some_ranks_raises_at_once(nb: NotebookKernel, call: str) -> None:
    """Where the others would never join, the call raises and says to use `group`."""
    ranks = nb.ranks(call, "-t 0,2", timeout_s=20, ok=False)
    assert ranks.cell.status == "error"
    assert ranks.cell.execution_s < 4  # rather than after a rank's failure, 5 s, or never
    assert all("this cell runs on ranks 0,2 only" in error[1] for error in ranks.all("error")), ranks.all(
        "error"
    )
    assert nb.ranks("t = torch.ones(1); dist.all_reduce(t); t.item()").values == [4.0] * 4


def test_send_and_receive_on_some_ranks(nb: NotebookKernel) -> None:
    """Point-to-point works among the targets, with the world's ranks or with `group`."""
    code = (
        "t = torch.zeros(1)\nif rank == 0:\n    dist.send(torch.ones(1), 2, group=group)\n"
        "else:\n    dist.recv(t, 0, group=group)\nt.item()"
    )
    assert nb.ranks(code, "-t 0,2").values == [0.0, 1.0]


def test_destroying_the_group_in_a_partial_cell(nb: NotebookKernel) -> None:
    """destroy_process_group in a `-t` cell is undone after it like anywhere else."""
    nb.ranks("dist.destroy_process_group()", "-t 0,1")
    ranks = nb.ranks("t = torch.ones(1); dist.all_reduce(t); t.item()", timeout_s=20, ok=False)
    assert ranks.all("error") == [None] * 4
    assert ranks.values == [4.0] * 4


def test_subgroup_of_an_earlier_cell(nb: NotebookKernel) -> None:
    """A group made by all ranks serves in later cells, in a `-t` cell of its members too."""
    nb.ranks("pair = dist.new_group([1, 3])")
    code = "t = torch.tensor([rank])\ndist.all_reduce(t, group=pair)\nt.item()"
    assert nb.ranks(code, "-t 1,3").values == [4, 4]


# --- forks ----------------------------------------------------------------------------------------


def test_fork_in_a_cell(nb: NotebookKernel) -> None:
    """A cell may fork: the child's output arrives, and the rank takes part in the next collective."""
    code = (
        "import os, sys\npid = os.fork()\nif pid == 0:\n"
        "    print('child of', rank, flush=True)\n    os._exit(0)\n"
        "os.waitpid(pid, 0)\nt = torch.ones(1)\ndist.all_reduce(t)\nt.item()"
    )
    ranks = nb.ranks(code)
    assert ranks.values == [4.0] * 4
    assert ranks.stdout == [f"child of {r}\n" for r in range(4)]
    assert nb.ranks("t = torch.ones(1); dist.all_reduce(t); t.item()").values == [4.0] * 4
