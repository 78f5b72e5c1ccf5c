"""Cells that harm what they run in: hostile objects, forks, streams, handlers, clocks, descriptors."""

from __future__ import annotations

import re
import signal
import socket
import time

import pytest

from tests.fault.pools import (
    REDUCE,
    Pools,
    RunningCell,
    eventually,
    kill,
    pids_of,
    run_to_failure,
    values_of,
)
from tests.promises import Stopwatch

CLASS = "class Hostile:\n    def {}"
HOSTILE = {
    "a repr that raises": (CLASS.format("__repr__(self): raise ValueError('none')"), "ValueError: none"),
    "a repr that is no text": (CLASS.format("__repr__(self): return 5"), "TypeError: __repr__ returned"),
    "a repr that exits": (CLASS.format("__repr__(self): raise SystemExit(4)"), r"sys.exit\(4\)"),
    "HTML that raises": (CLASS.format("_repr_html_(self): raise KeyError('x')"), "KeyError: 'x'"),
}
HARMLESS = {
    "a reduce that aborts": CLASS.format("__reduce__(self): import os; os.abort()"),
    "a mimebundle of nonsense": CLASS.format("_repr_mimebundle_(self, **_): return {'text/plain': object()}"),
    "attributes that raise": CLASS.format("__getattr__(self, name): raise RuntimeError(name)"),
    "a finalizer that raises": CLASS.format("__del__(self): raise RuntimeError('in the end')"),
}


@pytest.mark.promise("an object with a hostile repr is an ordinary error of the cell", bound_s=3)
@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_repr(pools: Pools, promised: Stopwatch, what: str) -> None:
    """The cell fails with what the object raised; the rank lives and goes on."""
    cluster = pools.of(2)
    source, told = HOSTILE[what]
    pids = pids_of(cluster)
    with promised():
        words, _ = run_to_failure(cluster, f"{source}\nHostile()")
    assert words.startswith("ranks 0-1: ")
    assert re.search(told, words), words
    assert pids_of(cluster) == pids
    assert cluster.run(REDUCE).ok


@pytest.mark.promise("a recursion without end is an ordinary error of the cell", bound_s=3)
def test_a_repr_without_end(pools: Pools, promised: Stopwatch) -> None:
    """Of a thousand frames few are made readable; how many are not is said."""
    cluster = pools.of(2)
    with promised():
        words, record = run_to_failure(
            cluster, f"{CLASS.format('__repr__(self): return repr(self)')}\nHostile()"
        )
    assert words.startswith("ranks 0-1: RecursionError")
    error = record[0].error
    assert error is not None
    assert len(error.traceback) < 10
    assert re.search(r"\[… \d+ frames of a deep recursion are left out\]", error.traceback[-2])
    assert cluster.run(REDUCE).ok


@pytest.mark.parametrize("what", HARMLESS)
def test_a_hostile_object(pools: Pools, what: str) -> None:
    """Nothing is pickled, and nothing of the object is needed but its repr."""
    cluster = pools.of(2)
    assert cluster.run(f"{HARMLESS[what]}\nHostile()").ok
    assert cluster.run(REDUCE).ok


@pytest.mark.promise("a huge repr is cut, and says so", bound_s=3)
@pytest.mark.parametrize("n", [2])
def test_a_huge_repr(pools: Pools, promised: Stopwatch, n: int) -> None:
    """Of 300 MB of text a megabyte is shown and kept, with how much there was."""
    cluster = pools.of(n)
    with promised():
        record = cluster.run("class Huge:\n    def __repr__(self): return 'x' * 300_000_000\nHuge()", "1")
    value = record[1].value
    assert value is not None
    assert len(value.text) < 1_100_000
    assert value.text.endswith("… (300,000,000 characters; the rest was left out)")


def test_a_huge_picture(pools: Pools) -> None:
    """What is no text cannot be cut: it is left out, and a note says how large it was."""
    cluster = pools.of(2)
    record = cluster.run(
        "from IPython.display import display\n"
        "display({'text/plain': 'a map', 'text/html': 'x' * 100_000_000}, raw=True)",
        "1",
    )
    assert record[1].notices == ["text/html of 100 MB was left out: what is shown may have 64 MiB"]


@pytest.mark.promise("an exception with a huge or raising text is an ordinary error of the cell", bound_s=3)
@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("return 'z' * 100_000_000", "E: zzz"),
        ("raise ValueError", "E: (its text could not be made: ValueError)"),
    ],
)
def test_a_hostile_exception(pools: Pools, promised: Stopwatch, text: str, told: str) -> None:
    """Its name is told, and of its text what there is room for."""
    cluster = pools.of(2)
    with promised():
        words, _ = run_to_failure(cluster, f"class E(Exception):\n    def __str__(self): {text}\nraise E()")
    assert words.startswith(f"ranks 0-1: {told}")
    assert len(words) < 1000


FORKS = {
    "that leaves": "if not pid:\n    print('child'); os._exit(0)",
    "that exits": "if not pid:\n    print('child'); sys.exit(3)",
    "that raises": "if not pid:\n    print('child'); 1 / 0",
    "that runs the cell's rest": "if not pid:\n    print('child')",
    "that crashes": "if not pid:\n    print('child'); os.abort()",
    "that closes everything": "if not pid:\n    os.write(1, b'child\\n'); os.closerange(0, 99); os._exit(0)",
}


@pytest.mark.promise("a cell that forks: the child harms neither the rank nor the group", bound_s=3)
@pytest.mark.parametrize("child", FORKS)
def test_a_fork(pools: Pools, promised: Stopwatch, child: str) -> None:
    """The child's words are the cell's; then all_reduce works, in the same cell and the next."""
    cluster = pools.of(2)
    pids = pids_of(cluster)
    with promised():
        record = cluster.run(
            f"import os, sys\npid = os.fork()\n{FORKS[child]}\nelse:\n    os.waitpid(pid, 0)\n    {REDUCE}"
        )
    assert [r.stdout for r in record] == ["child\n"] * 2
    assert pids_of(cluster) == pids
    assert cluster.run(REDUCE).ok


def test_a_cells_changes_to_its_process(pools: Pools) -> None:
    """stdout and SIGINT are restored for the next cell; directory, environment, other handlers persist."""
    cluster = pools.of(2)
    cluster.run(
        "import io, os, signal, sys\n"
        "sys.stdout = sys.stderr = io.StringIO(); sys.displayhook = print\n"
        "signal.signal(signal.SIGINT, signal.SIG_IGN); signal.signal(signal.SIGUSR1, signal.SIG_IGN)\n"
        "os.chdir('/usr'); os.environ['MINE'] = 'kept'"
    )
    record = cluster.run(
        "print('heard'); (os.getcwd(), os.environ['MINE'], signal.getsignal(signal.SIGUSR1) == 1)"
    )
    assert values_of(record) == dict.fromkeys(range(2), "('/usr', 'kept', True)")
    assert [r.stdout for r in record] == ["heard\n"] * 2
    cell = RunningCell(
        cluster, "signal.signal(signal.SIGINT, signal.default_int_handler)\nprint('on')\nwhile 1: 1"
    )
    cell.until("on")
    cluster.interrupt()
    cell.end(3)
    assert "interrupted" in cell.words


RAISES_WHEN_IDLE = {
    "an exception": ("raise TimeoutError('late')", "TimeoutError: late"),
    "an exit": ("sys.exit(3)", "SystemExit: 3"),
    "an interrupt": ("raise KeyboardInterrupt", "KeyboardInterrupt"),
}


@pytest.mark.promise("a signal handler that raises between cells ends no rank: the next cell tells it")
@pytest.mark.parametrize("what", RAISES_WHEN_IDLE)
def test_a_signal_handler_that_raises_between_cells(pools: Pools, what: str) -> None:
    """Rank 1's variables are there in the next cell, which says in a line what was raised; once."""
    cluster = pools.of(2)
    pids = pids_of(cluster)
    raises, told = RAISES_WHEN_IDLE[what]
    record = cluster.run(
        "import os, signal, sys\nkept, heard = rank, []\n"
        f"def handler(*_):\n    heard.append(1)\n    {raises}\n"
        "old = signal.signal(signal.SIGUSR1, handler); signal.getsignal(signal.SIGUSR1) is handler"
    )
    assert values_of(record) == {0: "True", 1: "True"}
    kill(pids[1], signal.SIGUSR1)
    record = cluster.run(f"{REDUCE}\nkept")
    assert values_of(record) == {0: "0", 1: "1"}
    assert list(record[0].notices) == []
    assert list(record[1].notices) == [f"a handler of SIGUSR1 raised, outside of a cell's code: {told}"]
    record = cluster.run(f"{REDUCE}\nlen(heard), signal.signal(signal.SIGUSR1, signal.SIG_DFL) is handler")
    assert values_of(record) == {0: "(0, True)", 1: "(1, True)"}
    assert list(record[1].notices) == []
    assert pids_of(cluster) == pids


def test_a_signal_handler_that_raises_at_any_moment(pools: Pools) -> None:
    """A timer whose handler raises 4,000 times a second, in and between cells that print: each cell has one
    end, behind all that was printed before it, and what is raised in its code is its error.
    """
    cluster = pools.of(2)
    pids = pids_of(cluster)
    cluster.run(
        "import signal\nkept = rank\nclass Tick(Exception): pass\ndef tick(*_): raise Tick('tick')\n"
        "signal.signal(signal.SIGALRM, tick)"
    )
    ends = set()
    for _ in range(40):
        record = RunningCell(
            cluster, "signal.setitimer(signal.ITIMER_REAL, 0.0003, 0.00025)\nfor i in range(300): print(i)"
        ).end()
        for rank in record:
            lines = rank.stdout.split("\n")
            expected = [str(i) for i in range(len(lines))]
            assert lines[:-1] == expected[:-1]
            assert lines[-1] in ("", expected[-1])  # a tick may part a line from its end
            ends.add(rank.error.ename if rank.error else "")
    assert "Tick" in ends
    assert ends <= {"Tick", ""}
    stop = "signal.setitimer(signal.ITIMER_REAL, 0); signal.signal(signal.SIGALRM, signal.SIG_DFL)"
    eventually(lambda: RunningCell(cluster, stop).end().ok, 20)  # it may be ended by a tick of its own
    assert values_of(cluster.run(f"{REDUCE}\nkept")) == {0: "0", 1: "1"}
    assert pids_of(cluster) == pids


@pytest.mark.promise("a DataLoader's worker that is killed between cells costs no rank")
def test_a_loaders_worker_killed_between_cells(pools: Pools) -> None:
    """Torch's handler of SIGCHLD raises while the rank waits; the next cell tells torch's words."""
    cluster = pools.of(2)
    pids = pids_of(cluster)
    record = cluster.run(
        "import multiprocessing, os\nkept = rank\n"
        "it = iter(torch.utils.data.DataLoader(torch.zeros(9), num_workers=1)); next(it)\n"
        "multiprocessing.active_children()[0].pid"
    )
    worker = int(values_of(record)[1])
    kill(worker)
    # A process whose other threads are still ending is gone for /proc before its parent has SIGCHLD.
    (notice,) = eventually(lambda: cluster.run(REDUCE)[1].notices, 5)
    assert f"RuntimeError: DataLoader worker (pid {worker}) is killed by signal: Killed" in notice
    assert values_of(cluster.run(f"{REDUCE}\nkept")) == {0: "0", 1: "1"}
    assert pids_of(cluster) == pids
    cluster.run("del it")


def test_a_loaders_worker_killed_in_a_cell(pools: Pools) -> None:
    """The user sees a whole traceback and torch's words, whichever error the loop meets first."""
    cluster = pools.of(2)
    _, record = run_to_failure(
        cluster,
        "import multiprocessing, os\n"
        "for i, b in enumerate(torch.utils.data.DataLoader(torch.zeros(5000), num_workers=2)):\n"
        "    if rank and i == 50: [os.kill(p.pid, 9) for p in multiprocessing.active_children()]",
    )
    error = record[1].error
    assert error is not None
    assert error.line in (2, 3)
    shown = re.sub("\x1b.*?m", "", "\n".join([*error.traceback, *record[1].notices]))
    assert "could not be made" not in shown
    assert "multiprocessing.active_children" in shown  # the cell's own lines
    assert "is killed by signal: Killed" in shown
    assert cluster.run(REDUCE).ok


@pytest.mark.promise("a script whose MASTER_PORT is taken joins the pool's group all the same")
def test_a_port_that_is_taken(pools: Pools) -> None:
    """Ours was bound once and is passed on; `env://` in a cell binds none, whatever the environment says."""
    cluster = pools.of(2)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        script = (
            f"import os\nos.environ.update(MASTER_ADDR='127.0.0.1', MASTER_PORT='{port}')\n"
            f"dist.init_process_group('gloo')\n{REDUCE}\ndist.destroy_process_group()"
        )
        for _ in range(2):
            assert cluster.run(script).ok
    assert cluster.run(REDUCE).ok
    cluster.restart()
    assert cluster.run(REDUCE).ok


@pytest.mark.promise("a jump of the clock changes nothing")
def test_a_clock_jump(pools: Pools, monkeypatch: pytest.MonkeyPatch) -> None:
    """`time.time` an hour ahead, then an hour back, in the notebook kernel and on a rank."""
    cluster = pools.of(2)
    real = time.time
    cluster.run("import time; real = time.time")
    for jump in (3600, -3600):
        monkeypatch.setattr(time, "time", lambda jump=jump: real() + jump)
        cluster.run(f"time.time = lambda: real() + {jump}", "1")
        record = cluster.run(f"print('on'); {REDUCE}")
        assert all(r.duration_s is not None and r.duration_s < 30 for r in record)
        cell = RunningCell(cluster, "print('on'); time.sleep(60)")
        cell.until("on")
        cluster.interrupt()
        cell.end(5)
    monkeypatch.undo()
    cluster.restart()


@pytest.mark.promise("a cell that tears its own link to the pool loses that rank alone", bound_s=3)
def test_a_cell_that_closes_all_descriptors(pools: Pools, promised: Stopwatch) -> None:
    """The rank is lost and named; the other keeps its variables."""
    cluster = pools.of(2)
    cluster.run("kept = 5")
    with promised():
        words, _ = run_to_failure(cluster, f"import os\nif rank: os.closerange(3, 300)\n{REDUCE}")
    assert words.startswith("rank 1: "), words
    assert values_of(cluster.run("kept", "0")) == {0: "5"}


@pytest.mark.promise("what a failed cell held in its frames (tensors) is freed before the next cell")
@pytest.mark.parametrize("ending", ["raise MemoryError('no memory')", "1 / 0", "print('on'); time.sleep(60)"])
def test_a_failed_cells_tensors(pools: Pools, ending: str) -> None:
    """As after "out of memory" on a GPU: weak references show that nothing holds them any more."""
    cluster = pools.of(2)
    cluster.run(
        "import time, weakref\nheld = []\n"
        "def fill():\n    big = torch.ones(1000)\n    held.append(weakref.ref(big))\n    work(big)\n"
        f"def work(it):\n    {ending}"
    )
    cell = RunningCell(cluster, "fill()")
    if "sleep" in ending:
        cell.until("on")
        cluster.interrupt()
    cell.end()
    assert cell.words.startswith("ranks 0-1: ")
    assert values_of(cluster.run("[it() for it in held]")) == {0: "[None]", 1: "[None]"}
