"""Point 5 of the issue: the pool's life, from its start to the end of the notebook kernel."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

import pytest

from tests.integration.notebook_kernel import NotebookKernel, command_of, eventually, process_state, tagged

RANKS = 4
STARTED = "open(f'started{rank}', 'w').close()\n"
"""A cell's first line: the test knows from it that the cell runs on a rank."""
REDUCE = "t = torch.ones(1); dist.all_reduce(t); t.item()"
GONE_S = 2.0


# --- %ddp -----------------------------------------------------------------------------------------


def test_a_different_n_runs_nothing(nb: NotebookKernel) -> None:
    """`-n` other than the pool's size fails in one line that says how to resize; nothing runs."""
    before = nb.rank_pids()
    error = nb.bad("%%ddp -n 3\nran = True").error
    assert "%ddp resize 3" in error
    assert "4 ranks" in error
    assert nb.ranks("'ran' in globals()").values == [False] * 4
    assert nb.rank_pids() == before


def test_status(nb: NotebookKernel) -> None:
    """`%ddp status` lists each rank's device and state; in a notebook, which is saved, no process."""
    assert [(rank, device, state) for rank, _, device, state in nb.status()] == [
        (r, "cpu", "idle") for r in range(4)
    ]
    assert nb.rank_pids() == nb.ranks("import os; os.getpid()").values
    for line in ("%ddp", "%ddp status"):
        shown = nb.good(line)
        rows = shown.text.splitlines()
        assert rows[0] == "4 ranks, gloo, ready"
        assert rows[1].split()[:3] == ["rank", "device", "state"]
        assert [row.split()[:3] for row in rows[2:]] == [[str(r), "cpu", "idle"] for r in range(4)]
        assert not any(str(pid) in shown.text + shown.html for pid in nb.rank_pids())


@pytest.mark.promise("a notebook run again from the top finds its pool")
def test_run_again_from_the_top(nb: NotebookKernel) -> None:
    """Loading the extension and starting the pool again keeps the pool as it is."""
    before = nb.rank_pids()
    nb.good("%load_ext jupyter_ddp")
    assert nb.good("%ddp start -n 4").outputs == []
    assert nb.good("%%ddp -n 4\npass").outputs == []
    assert nb.rank_pids() == before


def test_reload_ext_keeps_the_pool(nb: NotebookKernel) -> None:
    """`%reload_ext` does no harm: the same ranks run on with their variables."""
    nb.ranks("kept = rank + 10")
    before, n_processes = nb.rank_pids(), len(nb.others())
    for _ in range(2):
        nb.good("%reload_ext jupyter_ddp", 30)
    assert nb.ranks("kept").values == [10, 11, 12, 13]
    assert nb.rank_pids() == before
    assert len(nb.others()) == n_processes


def test_resize(nb: NotebookKernel) -> None:
    """Ranks that stay keep their processes and variables; new ones have the right world; back again too."""
    nb.ranks("kept = rank + 100")
    before = nb.rank_pids()
    nb.good("%ddp resize 2", 60)
    assert nb.rank_pids() == before[:2]
    again = (
        "import os\nt = torch.ones(1); dist.all_reduce(t)\n"
        "(t.item(), world_size, os.environ['WORLD_SIZE'], globals().get('kept'))"
    )
    assert nb.ranks(again).values == [(2.0, 2, "2", 100), (2.0, 2, "2", 101)]
    eventually(lambda: not set(before[2:]) & set(nb.others()), GONE_S + 1)
    nb.good("%ddp resize 4", 60)
    assert nb.rank_pids()[:2] == before[:2]
    assert nb.ranks(again).values == [(4.0, 4, "4", r + 100 if r < 2 else None) for r in range(4)]


def test_resize_to_the_same_and_to_nonsense(nb: NotebookKernel) -> None:
    """Resizing to the present size changes nothing; to 0 or "x" it fails in one line."""
    before = nb.rank_pids()
    nb.good("%ddp resize 4")
    for n in ("0", "x", "-2", "100000", ""):
        nb.bad(f"%ddp resize {n}")
    assert nb.rank_pids() == before
    assert nb.ranks(REDUCE).values == [4.0] * 4


def test_restart(nb: NotebookKernel) -> None:
    """`%ddp restart` gives fresh ranks in the same number, and the old processes are gone."""
    nb.ranks("old = 1")
    before = nb.rank_pids()
    nb.good("%ddp restart", 60)
    after = nb.rank_pids()
    assert len(after) == 4
    assert not set(before) & set(after)
    assert not set(before) & set(nb.others())
    assert nb.ranks("'old' in globals()").values == [False] * 4


def test_stop_and_start(nb: NotebookKernel) -> None:
    """After `%ddp stop` no rank is left, status says so, stop again is harmless, start starts."""
    before = nb.rank_pids()
    nb.good("%ddp stop")
    assert not set(before) & set(nb.others())
    assert "no pool" in nb.good("%ddp status").text
    nb.good("%ddp stop")
    nb.good("%ddp interrupt")
    nb.good("%ddp start -n 4", 60)
    assert nb.ranks(REDUCE).values == [4.0] * 4


@pytest.mark.promise("children of ranks end with the pool, in sessions of their own too", bound_s=2)
def test_stop_ends_children_of_ranks(nb: NotebookKernel) -> None:
    """Children that a rank's cell started end with the pool, in sessions of their own too."""
    nb.ranks(
        "import subprocess\nchildren = [subprocess.Popen(['sleep', '300']),"
        " subprocess.Popen(['sleep', '301'], start_new_session=True)]"
    )
    pids = [pid for found in nb.ranks("[c.pid for c in children]").values for pid in found]
    assert set(pids) <= set(nb.others())
    nb.good("%ddp stop", 30)
    eventually(lambda: not set(pids) & set(nb.others()), GONE_S)
    nb.good("%ddp start -n 4", 60)


# --- interrupt ------------------------------------------------------------------------------------


@pytest.mark.parametrize("live", [False, True])
@pytest.mark.parametrize(
    "busy",
    [
        "while True:\n    pass",
        "import time\ntime.sleep(300)",
        "import asyncio\nawait asyncio.sleep(300)",
        "while True:\n    print('x' * 50)",
        "import subprocess\nsubprocess.run(['sh', '-c', f'touch deep{rank}; exec sleep 300'])",
        "!touch deep{rank}; sleep 300",
    ],
    ids=["loop", "sleep", "await", "print", "subprocess", "shell"],
)
def test_interrupt(kernel: NotebookKernel, busy: str, live: bool) -> None:
    """The interrupt button ends the cell within 2 s with status error; processes and variables stay."""
    kernel.live = live
    kernel.ranks("kept = [rank]")
    before = kernel.rank_pids()
    cell = kernel.send(f"%%ddp\n{STARTED}{busy}")
    kernel.wait_for_files("started*", 4)
    if "deep" in busy:
        kernel.wait_for_files("deep*", 4)
    kernel.interrupt()
    kernel.wait(cell, 2)
    assert cell.status == "error"
    assert cell.error.startswith("RankError: rank")
    assert "interrupted" in cell.error
    assert kernel.rank_pids() == before
    # Python's own subprocess.run reaps a child that it killed when the next one is started.
    assert kernel.ranks("import subprocess; subprocess.run(['true'])\nkept").values == [[r] for r in range(4)]
    assert kernel.ranks(REDUCE).values == [4.0] * 4
    eventually(
        lambda: "sleep 300" not in map(command_of, kernel.others()), 3, "the end of what the cell had started"
    )


def test_partial_output_stays_after_an_interrupt(nb: NotebookKernel) -> None:
    """What a rank wrote before the interrupt is shown and in the record."""
    cell = nb.send(f"%%ddp -o _record\nprint('before', rank)\nimport time\n{STARTED}time.sleep(300)")
    nb.wait_for_files("started*", 4)
    nb.interrupt()
    nb.wait(cell, 2)
    assert "before 3" in cell.text
    assert nb.evaluate("[(r.stdout, r.verdict) for r in _record]") == [
        (f"before {r}\n", "interrupted") for r in range(4)
    ]


def test_interrupt_in_a_blocked_collective(nb: NotebookKernel) -> None:
    """Ranks that wait for one that never comes are freed, and the next collective works."""
    nb.ranks("kept = rank")
    before = nb.rank_pids()
    cell = nb.send(
        f"%%ddp\n{STARTED}if rank != 1:\n    {REDUCE}\nelse:\n    import time\n    time.sleep(300)"
    )
    nb.wait_for_files("started*", 4)
    nb.interrupt()
    nb.wait(cell, 5)
    assert cell.status == "error"
    assert "interrupted" in cell.error
    assert nb.ranks(f"{REDUCE[:-8]}(t.item(), kept)").values == [(4.0, r) for r in range(4)]
    assert nb.rank_pids() == before


@pytest.mark.promise("interrupt: with DataLoader workers, which are reaped")
def test_interrupt_with_data_loader_workers(nb: NotebookKernel) -> None:
    """With DataLoader workers running, the rank is interrupted and its children are reaped."""
    nb.ranks(
        "import time\nclass Slow(torch.utils.data.Dataset):\n    def __len__(self):\n        return 10_000\n"
        "    def __getitem__(self, i):\n        time.sleep(0.01)\n        return i"
    )
    before, n_processes = nb.rank_pids(), len(nb.others())
    cell = nb.send(
        f"%%ddp -t 0,1\n"
        f"for i, batch in enumerate(torch.utils.data.DataLoader(Slow(), num_workers=2)):\n"
        f"    if i == 3:\n        {STARTED}"
    )
    nb.wait_for_files("started*", 2)
    nb.interrupt()
    nb.wait(cell, 3)
    assert "interrupted" in cell.error
    eventually(lambda: len(nb.others()) <= n_processes, 8, "the workers' end")
    assert nb.ranks(REDUCE).values == [4.0] * 4
    assert nb.rank_pids() == before
    assert nb.ranks("len(Slow())").values == [10_000] * 4


def test_interrupt_between_cells_and_of_nothing(nb: NotebookKernel) -> None:
    """Interrupts while no cell runs change nothing."""
    before = nb.rank_pids()
    for _ in range(3):
        nb.interrupt()
    nb.run("pass")
    for pid in before:
        os.kill(pid, signal.SIGINT)
    assert nb.ranks(REDUCE).values == [4.0] * 4
    assert nb.rank_pids() == before


def test_interrupt_from_a_thread(nb: NotebookKernel) -> None:
    """`%ddp interrupt`'s call, `Cluster.interrupt()`, works from another thread."""
    nb.good(
        "import threading, pathlib\n"
        "magics = get_ipython().magics_manager.registry['DDPMagics']\n"
        "def press():\n"
        "    while len(list(pathlib.Path().glob('started*'))) < 4:\n        pass\n"
        "    magics.cluster.interrupt()\n"
        "threading.Thread(target=press).start()"
    )
    cell = nb.run(f"%%ddp\n{STARTED}import time\ntime.sleep(300)", 10)
    assert cell.error.startswith("RankError: rank")
    assert "interrupted" in cell.error
    nb.wait_for_files("started*", 4)


def test_interrupt_just_after_the_start(nb: NotebookKernel) -> None:
    """An interrupt in the moment between ordering a cell and waiting for it reaches the ranks."""
    nb.good(
        "import signal\n"
        "exchange = get_ipython().magics_manager.registry['DDPMagics'].cluster._life.exchange\n"
        "real = exchange.order\n"
        "def order(event, meanwhile):\n    real(event, meanwhile)\n"
        "    signal.raise_signal(signal.SIGINT)\nexchange.order = order"
    )
    cell = nb.run("%%ddp\nwhile True:\n    pass", 8)
    nb.good("del exchange.order")
    assert cell.error.startswith("RankError: "), cell
    assert nb.ranks(REDUCE).values == [4.0] * 4


# --- failures -------------------------------------------------------------------------------------


def test_one_rank_raises_while_others_wait(nb: NotebookKernel) -> None:
    """The cell ends within 7 s; the culprit is named first, the others as blocked by it; all live on."""
    nb.ranks("kept = rank")
    before = nb.rank_pids()
    cell = nb.bad(f"%%ddp\nif rank == 1:\n    raise ValueError('culprit')\n{REDUCE}")
    assert cell.execution_s < 7
    assert cell.error.startswith("RankError: rank 1: ValueError: culprit (line 3)")
    assert "blocked by rank 1" in cell.error
    assert nb.ranks(f"{REDUCE[:-8]}(t.item(), kept)").values == [(4.0, r) for r in range(4)]
    assert nb.rank_pids() == before


def test_a_rank_is_killed(nb: NotebookKernel) -> None:
    """kill -9 of a rank in a cell: the rank and SIGKILL are named, the others are freed at once."""
    pids = nb.rank_pids()
    cell = nb.send(f"%%ddp\n{STARTED}if rank == 2:\n    import time\n    time.sleep(300)\n{REDUCE}")
    nb.wait_for_files("started*", 4)
    os.kill(pids[2], signal.SIGKILL)
    nb.wait(cell, 8)
    assert cell.status == "error"
    assert "rank 2: killed by SIGKILL" in cell.error
    assert "\n" not in cell.error
    assert "SIGKILL" in cell.pages[0]["text/plain"]
    states = [state for *_, state in nb.status()]
    assert states == ["idle", "idle", "dead", "idle"]
    refused = nb.bad("%%ddp\nprint('ran')")
    assert "rank 2 died" in refused.error
    assert "SIGKILL" in refused.error
    assert nb.ranks("rank", "-t 0-1").values == [0, 1]
    nb.good("%ddp restart", 60)
    assert nb.ranks(REDUCE).values == [4.0] * 4


def test_survivors_of_a_broken_group(nb: NotebookKernel) -> None:
    """Where a death broke the group, `-t` keeps processes and variables; a collective there is refused."""
    pids = nb.rank_pids()
    nb.ranks("kept = rank + 40")
    cell = nb.send(f"%%ddp\n{STARTED}if rank == 2:\n    import time\n    time.sleep(300)\n{REDUCE}")
    nb.wait_for_files("started*", 4)
    os.kill(pids[2], signal.SIGKILL)
    nb.wait(cell, 8)
    refused = nb.ranks("dist.all_reduce(torch.ones(1), group=group)", "-t 0,3", ok=False)
    assert refused.all("verdict") == ["error", "error"]
    assert "%ddp heal" in refused.cell.error
    assert nb.ranks("import os; (kept, os.getpid())", "-t 0,1,3").values == [
        (rank + 40, pids[rank]) for rank in (0, 1, 3)
    ]
    nb.good("%ddp restart", 60)


def test_a_rank_is_killed_between_cells(nb: NotebookKernel) -> None:
    """The next cell runs nothing and says which rank died of what."""
    pids = nb.rank_pids()
    os.kill(pids[0], signal.SIGKILL)
    eventually(lambda: pids[0] not in tagged(nb.tag), 5)
    eventually(lambda: nb.status()[0][3] == "dead", 5)
    refused = nb.bad("%%ddp\nopen('ran', 'w').close()")
    assert "rank 0 died" in refused.error
    assert "SIGKILL" in refused.error
    assert not (nb.folder / "ran").exists()
    nb.good("%ddp restart", 60)


def test_the_forkserver_is_killed(nb: NotebookKernel) -> None:
    """Without its forkserver the pool goes on, also where it cannot grow; a restart makes a new one."""
    forkservers = set(nb.others()) - {nb.agent_pid} - set(nb.rank_pids())
    assert len(forkservers) == 1, [command_of(pid) for pid in forkservers]
    os.kill(forkservers.pop(), signal.SIGKILL)
    nb.ranks("kept = rank")
    before = nb.rank_pids()
    if not nb.run("%ddp resize 5", 60).ok:
        assert nb.ranks(f"{REDUCE[:-8]}(t.item(), kept)").values == [(4.0, r) for r in range(4)]
    assert nb.rank_pids()[:4] == before
    nb.good("%ddp restart", 60)
    assert nb.ranks(REDUCE).values == [4.0] * 4


def test_the_agent_is_killed(nb: NotebookKernel) -> None:
    """Without the agent every rank is gone within a second; the kernel says so, and a start works."""
    agent, pids = nb.agent_pid, nb.rank_pids()
    os.kill(agent, signal.SIGKILL)
    eventually(lambda: not set(pids) & set(nb.others()), GONE_S)
    said = nb.run("%ddp status").text
    assert "pool lost" in said
    assert "SIGKILL" in said
    nb.good("%ddp start -n 4", 60)
    assert nb.ranks(REDUCE).values == [4.0] * 4


# --- the end of the notebook kernel ---------------------------------------------------------------


def _with_pool(fresh: Callable[..., NotebookKernel]) -> tuple[NotebookKernel, list[int]]:
    """A kernel with a pool whose ranks have children, one in a session of its own; and its processes."""
    kernel = fresh()
    kernel.start_pool(2)
    kernel.ranks(
        "import subprocess\nsubprocess.Popen(['sleep', '300'])\n"
        "subprocess.Popen(['sleep', '301'], start_new_session=True);"
    )
    processes = kernel.others()
    assert len(processes) >= 2 + 2 * 2 + 2
    return kernel, processes


@pytest.mark.promise("the notebook kernel is killed: no process is left, whatever ranks do", bound_s=2)
@pytest.mark.parametrize(
    "busy", ["", "import ctypes; ctypes.PyDLL(None).sleep(300)"], ids=["idle", "holding the GIL"]
)
def test_kernel_killed(fresh: Callable[..., NotebookKernel], busy: str) -> None:
    """kill -9 of the notebook kernel leaves no process of ours after 2 s, whatever the ranks do."""
    kernel, _ = _with_pool(fresh)
    if busy:
        kernel.send(f"%%ddp\n{STARTED}{busy}")
        kernel.wait_for_files("started*", 2)
    os.kill(kernel.pid, signal.SIGKILL)
    eventually(lambda: not kernel.others(), GONE_S, f"the end of {kernel.others()}")


@pytest.mark.promise("a notebook kernel that forked is killed: no process of ours is left", bound_s=2)
def test_kernel_that_forked_is_killed(fresh: Callable[..., NotebookKernel]) -> None:
    """A child that the notebook kernel forked holds its descriptors open; the ranks end all the same."""
    kernel, processes = _with_pool(fresh)
    child = int(
        kernel.good(
            "import os, time\npid = os.fork()\nif pid == 0:\n    time.sleep(60)\n    os._exit(0)\nprint(pid)"
        ).text
    )
    os.kill(kernel.pid, signal.SIGKILL)
    eventually(lambda: not set(processes) & set(kernel.others()), GONE_S)
    os.kill(child, signal.SIGKILL)


@pytest.mark.promise("the notebook kernel is shut down: no process of ours is left", bound_s=2)
def test_kernel_shut_down(fresh: Callable[..., NotebookKernel]) -> None:
    """A regular shutdown leaves none either, 2 s after the kernel's own process has ended."""
    kernel, processes = _with_pool(fresh)
    pid = kernel.pid
    kernel.client.shutdown()
    eventually(lambda: process_state(pid) in ("", "Z"), 15, "the notebook kernel's own end")
    eventually(lambda: not set(processes) & set(tagged(kernel.tag)), GONE_S)


@pytest.mark.promise("the notebook kernel is restarted: the old ranks are gone", bound_s=2)
def test_kernel_restarted(fresh: Callable[..., NotebookKernel]) -> None:
    """After a restart the old ranks are gone, and the notebook runs again from the top."""
    kernel, processes = _with_pool(fresh)
    kernel.restart()
    eventually(lambda: not set(processes) & set(kernel.others()), GONE_S)
    kernel.start_pool(2)
    assert kernel.ranks(REDUCE).values == [2.0] * 2


@pytest.mark.promise("the end of one notebook kernel leaves the pool of another alone")
def test_two_kernels(fresh: Callable[..., NotebookKernel], nb: NotebookKernel) -> None:
    """The end of one kernel and its pool leaves another's alone."""
    before = nb.rank_pids()
    other = fresh()
    other.start_pool(2)
    assert nb.ranks(REDUCE).values == [4.0] * 4
    other.good("%ddp stop")
    assert nb.ranks(REDUCE).values == [4.0] * 4
    os.kill(other.pid, signal.SIGKILL)
    eventually(lambda: not other.others(), GONE_S)
    assert nb.ranks(REDUCE).values == [4.0] * 4
    assert nb.rank_pids() == before


@pytest.mark.promise("`%unload_ext` ends every process; twice is harmless", bound_s=5)
def test_unload_ext(nb: NotebookKernel) -> None:
    """`%unload_ext` ends all processes within 5 s; twice is harmless; it can be loaded again."""
    nb.good("%unload_ext jupyter_ddp", 5)
    assert nb.others() == []
    nb.good("%unload_ext jupyter_ddp")
    assert nb.run("%%ddp\npass").status == "error"
    nb.start_pool(4)
    assert nb.ranks(REDUCE).values == [4.0] * 4
