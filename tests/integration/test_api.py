"""Point 6 of the issue: `Cluster` from Python, and the record of a cell."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.integration.notebook_kernel import NotebookKernel, eventually, process_state, run_script

RANKS = 2


# --- scripts --------------------------------------------------------------------------------------


def test_cluster_in_a_script(tmp_path: Path) -> None:
    """A plain script without IPython: context manager, record, failure, and nothing left at its end."""
    printed = run_script(
        tmp_path,
        """
import os
from jupyter_ddp import Cluster, RankError

if __name__ == "__main__":
    with Cluster(2) as cluster:
        record = cluster.run("t = torch.ones(1); dist.all_reduce(t); print('says', rank); t.item()")
        print(record.ok, record[0].value, record[1].stdout.strip(), sorted(record.verdicts.items()))
        try:
            cluster.run("if rank == 1: 1 / 0")
        except RankError as error:
            print(error, error.record[1].error.ename, error.record[0].verdict)
        pids = [status.pid for status in cluster.status()]
        print(cluster, cluster.world_size, cluster.backend)
    print([os.path.exists(f"/proc/{pid}") for pid in pids], cluster.running)
""",
    )
    assert printed.splitlines() == [
        "True 2.0 says 1 [(0, 'ok'), (1, 'ok')]",
        "rank 1: ZeroDivisionError: division by zero (line 1) ZeroDivisionError ok",
        "<Cluster: 2 ranks, gloo, ready> 2 gloo",
        "[False, False] False",
    ]


def test_a_script_that_just_ends(tmp_path: Path) -> None:
    """A script that never closes its cluster ends all the same, and its ranks with it."""
    printed = run_script(
        tmp_path,
        "from jupyter_ddp import Cluster\nc = Cluster(2)\nc.run('1')\nprint(*[s.pid for s in c.status()])",
    )
    eventually(lambda: not any(process_state(int(pid)).strip("Z") for pid in printed.split()), 2)


def test_importing_starts_nothing(tmp_path: Path) -> None:
    """`from jupyter_ddp import Cluster` and `Cluster(4)` import no torch and start no process."""
    printed = run_script(
        tmp_path,
        "import os, sys\nfrom jupyter_ddp import Cluster\nc = Cluster(4)\nprint('torch' in sys.modules)\n"
        "print(open(f'/proc/{os.getpid()}/task/{os.getpid()}/children').read() == '')",
    )
    assert printed.split() == ["False", "True"]


# --- in a notebook --------------------------------------------------------------------------------


def test_cluster_in_a_notebook(nb: NotebookKernel) -> None:
    """A second cluster in one kernel: its own processes and variables; ending it leaves the magics' pool."""
    mine = nb.rank_pids()
    nb.ranks("name = 'magics'")
    nb.good(
        "from jupyter_ddp import Cluster\nwith Cluster(2) as other:\n    other.run(\"name = 'other'\")\n"
        "    theirs = [s.pid for s in other.status()]\n    said = other.run('name')[1].value.text",
        60,
    )
    assert nb.evaluate("said") == "'other'"
    assert not set(nb.evaluate("theirs")) & set(mine)
    assert not set(nb.evaluate("theirs")) & set(nb.others())
    assert nb.ranks("name").values == ["magics"] * 2
    assert nb.rank_pids() == mine


def test_a_start_that_fails_leaves_nothing(nb: NotebookKernel) -> None:
    """`with Cluster(…)` that cannot start ends what it had begun."""
    before = nb.others()
    nb.bad("from jupyter_ddp import Cluster\nwith Cluster(2, backend='nccl'):\n    pass")
    assert nb.others() == before


def test_record_fields(nb: NotebookKernel) -> None:
    """stdout, stderr, value with its MIME data, error, verdict and duration of each rank."""
    nb.good(
        "%%ddp -o r\nimport sys, time\nfrom IPython.display import HTML\nprint('out', rank)\n"
        "print('err', rank, file=sys.stderr)\ntime.sleep(0.2)\nHTML(f'<i>{rank}</i>')"
    )
    assert nb.evaluate("[(x.rank, x.stdout, x.stderr, x.verdict, x.error) for x in r]") == [
        (rank, f"out {rank}\n", f"err {rank}\n", "ok", None) for rank in range(2)
    ]
    assert nb.evaluate("[x.value.data['text/html'] for x in r]") == ["<i>0</i>", "<i>1</i>"]
    assert nb.evaluate("'IPython.core.display.HTML' in repr(r[0].value)")
    assert nb.evaluate("all(0.2 <= x.duration_s < 5 for x in r)")
    assert nb.evaluate("(r.ok, len(r), r.ranks, repr(r))") == (True, 2, (0, 1), nb.evaluate("repr(r)"))
    shown = nb.good("r[1].value")
    assert shown.pages[0]["text/html"] == "<i>1</i>"


def test_record_of_a_failed_cell(nb: NotebookKernel) -> None:
    """`-o` binds the record of a cell that failed too: error with name, text and line."""
    nb.bad("%%ddp -o r\nprint('kept')\nif rank:\n    {}['k']")
    assert nb.evaluate("[x.verdict for x in r]") == ["ok", "error"]
    assert nb.evaluate("(r[1].error.ename, r[1].error.evalue, r[1].error.line)") == ("KeyError", "'k'", 4)
    assert nb.evaluate("r[1].stdout") == "kept\n"
    assert nb.evaluate("'KeyError' in ''.join(r[1].error.traceback)")
    assert nb.evaluate("r.ok") is False


def test_record_is_whole(nb: NotebookKernel) -> None:
    """However little the display shows, `stdout` has all 50,000 lines."""
    cell = nb.good("%%ddp -o r\nfor i in range(50_000):\n    print(i)", 60)
    assert len(cell.text) < 200_000
    assert nb.evaluate("[x.stdout == ''.join(f'{i}\\n' for i in range(50_000)) for x in r]") == [True, True]


def test_records_stay_readable(nb: NotebookKernel) -> None:
    """A record that a name holds is whole after many later cells, and nothing warns of open files."""
    nb.good("%%ddp -o first\nprint('the first')")
    code = (
        "import gc, warnings\nmagics = get_ipython().magics_manager.registry['DDPMagics']\n"
        "with warnings.catch_warnings(record=True) as caught:\n    warnings.simplefilter('always')\n"
        "    for i in range(25):\n        magics.cluster.run('print(1)')\n    gc.collect()"
    )
    nb.good(code)
    assert nb.evaluate("first[1].stdout") == "the first\n"
    assert nb.evaluate("len(magics.cluster.records())") == 20
    assert nb.evaluate("[str(w.message) for w in caught if w.category is ResourceWarning]") == []


def test_check_false(nb: NotebookKernel) -> None:
    """`check=False` gives the record of a failed cell instead of raising."""
    nb.good("c = get_ipython().magics_manager.registry['DDPMagics'].cluster\nr = c.run('1 / 0', check=False)")
    assert nb.evaluate("[x.error.ename for x in r]") == ["ZeroDivisionError"] * 2
    assert (
        nb.bad("c.run('1 / 0')").error == "RankError: ranks 0-1: ZeroDivisionError: division by zero (line 1)"
    )


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("with Cluster(2, backend='mpi'): pass", "backend 'mpi': there are nccl, gloo and auto"),
        ("with Cluster(2.5): pass", "2.5: not a number of ranks; write a whole one, as in Cluster(4)"),
        ("Cluster(2, preload='math')", "preload='math': a list of modules' names is wanted: ['math']"),
        ("Cluster(2).run(123)", "int is no source: a cell's text is wanted; nothing was run"),
    ],
)
def test_arguments_that_make_no_sense(nb: NotebookKernel, code: str, words: str) -> None:
    """One line, as for the magics; no pool is started, and no process of one ends."""
    assert nb.bad(f"from jupyter_ddp import Cluster\n{code}").error == f"UsageError: {words}"


def test_targets_of_run(nb: NotebookKernel) -> None:
    """`targets` is text as after `-t`, or numbers."""
    nb.good("c = get_ipython().magics_manager.registry['DDPMagics'].cluster")
    for targets in ("'1'", "[1]", "(1,)", "'1:2'"):
        assert nb.evaluate(f"[(x.rank, x.value.text) for x in c.run('rank', {targets})]") == [(1, "1")]
    nb.bad("c.run('rank', [5])")
    nb.bad("c.run('rank', [])")


def test_on_news(nb: NotebookKernel) -> None:
    """`on_news` hears of output while the cell runs, and once at its end."""
    nb.good(
        "c = get_ipython().magics_manager.registry['DDPMagics'].cluster\nheard = []\n"
        'code = "import time\\nfor i in range(4):\\n    print(i)\\n    time.sleep(0.15)"\n'
        "c.run(code, on_news=lambda record, done: heard.append((record[0].stdout, done)))"
    )
    heard = nb.evaluate("heard")
    assert heard[-1] == ("0\n1\n2\n3\n", True)
    assert [done for _, done in heard].count(True) == 1
    assert any("0\n" in text and "3" not in text for text, done in heard if not done)


@pytest.mark.promise("of many threads that run cells one runs, the others are told `busy`")
@pytest.mark.parametrize("n", [2, 30])
def test_threads(nb: NotebookKernel, n: int) -> None:
    """Of many threads that run cells at once one runs at a time; the others are told `busy`; none hangs."""
    nb.good(
        "import threading\nfrom jupyter_ddp import PoolError\n"
        "c = get_ipython().magics_manager.registry['DDPMagics'].cluster\n"
        f"barrier, told = threading.Barrier({n}), []\n"
        "def work():\n    barrier.wait()\n    try:\n"
        "        c.run('import time; time.sleep(0.5)')\n        told.append('ran')\n"
        "    except PoolError as error:\n        told.append(str(error))\n"
        f"threads = [threading.Thread(target=work, daemon=True) for _ in range({n})]\n"
        "for t in threads: t.start()\nfor t in threads: t.join(10)"
    )
    told = nb.evaluate("told")
    assert len(told) == n, told
    assert told.count("ran") == 1
    assert all("busy" in text for text in told if text != "ran")
    assert nb.ranks("1").values == [1, 1]


def test_start_twice(nb: NotebookKernel) -> None:
    """start() on a running pool fails in one line that says what to do instead."""
    assert (
        "%ddp restart" in nb.bad("get_ipython().magics_manager.registry['DDPMagics'].cluster.start(2)").error
    )


def test_backend_and_devices_are_kept(fresh: Callable[..., NotebookKernel]) -> None:
    """A cluster of zero ranks is refused, not silently made larger; restart keeps the number of ranks."""
    kernel = fresh()
    kernel.good("from jupyter_ddp import Cluster\nc = Cluster(0)")
    assert "at least one rank" in kernel.bad("c.start()", 30).error
    kernel.good("c.close()\nc = Cluster(3)\nc.start()\nc.restart()", 60)
    assert kernel.evaluate("c.world_size") == 3
    kernel.good("c.resize(2)\nr = c.run('world_size')\nc.close()\nc.close()", 60)
    assert kernel.evaluate("[x.value.text for x in r]") == ["2", "2"]
    assert kernel.others() == []


def test_a_closed_cluster_gives_the_magics_the_one_before(fresh: Callable[..., NotebookKernel]) -> None:
    """Of several that were activated the last that is open is used; without any, the magics' own."""
    kernel = fresh()
    kernel.good("from jupyter_ddp import Cluster\n%load_ext jupyter_ddp")
    kernel.good("%%ddp -n 1\nx = 'own'", 60)
    kernel.good("a, b = Cluster(1), Cluster(1)\na.activate()\nb.activate()\na.activate()")
    kernel.good("%%ddp\nx = 'a'", 60)
    kernel.good("b.close()")
    assert kernel.ranks("x").values == ["a"]
    kernel.good("a.close()\na.close()")
    assert kernel.ranks("x").values == ["own"]
    kernel.good("a.activate()\nb.activate()\nb.close()")
    assert kernel.evaluate("get_ipython().magics_manager.registry['DDPMagics'].cluster is a")
    kernel.good("%unload_ext jupyter_ddp", 60)
    assert kernel.others() == []
