"""A real node agent and its real forkserver, with ranks that have no torch (`fake_rank`).

The test is the notebook kernel: it holds the other end of the agent's socket. Ranks run Python source, so
each test says what its rank does.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import select
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import pytest

from jupyter_ddp.core import codec
from jupyter_ddp.core import messages as m
from jupyter_ddp.core.topology import make_plan
from jupyter_ddp.node.linux import children

pytestmark = pytest.mark.processes

TIMEOUT_S = 10.0
"""How long a test waits for what should come at once."""
GONE_S = 2.0
"""How soon nothing may be left of a pool whose kernel or agent is gone."""
KILLS = int(os.environ.get("JUPYTER_DDP_KILLS", "12"))

_HERE = Path(__file__).parent
_IMPORT_PATH = json.dumps([str(_HERE), str(_HERE.parents[1])])
_BOOTSTRAP = (
    "import sys, json; sys.path[:0] = json.loads(sys.argv[3]); "
    "from jupyter_ddp.node.agent import main; main()"
)
M = TypeVar("M", bound=m.Message)


class Agent:
    """A node agent, and what it says."""

    def __init__(self, kernel_pid: int = 0, preload: tuple[str, ...] = ()) -> None:
        self.link, theirs = socket.socketpair()
        self.link.settimeout(TIMEOUT_S)
        arguments = [str(theirs.fileno()), str(kernel_pid or os.getpid()), _IMPORT_PATH]
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-c", _BOOTSTRAP, *arguments, json.dumps(preload), "fake_rank:begin"],
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
                cwd="/",
            )
        self.pids: dict[int, int] = {}
        self.heard: list[m.NodeToKernel] = []
        self._unread: list[m.NodeToKernel] = []
        self._reader = codec.FrameReader()
        self._cells = 0

    def __enter__(self) -> Agent:
        return self

    def __exit__(self, *_: object) -> None:
        self.link.close()
        try:
            self.process.wait(TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise

    # -- the kernel's side -------------------------------------------------------------------------

    def tell(self, order: m.KernelToNode) -> None:
        self.link.sendall(codec.encode(order))

    def ask_for(self, *ranks: int, prelude: str = "") -> None:
        """Ask for ranks; `prelude` is what each runs before it connects."""
        places = [make_plan(rank + 1, []).places[rank] for rank in ranks]
        self.tell(m.StartRanks(places, m.Surroundings({}, "/", [], "", 0, prelude, 0)))

    def start(self, *ranks: int) -> list[int]:
        """Start ranks and wait until they have connected; their PIDs."""
        self.ask_for(*ranks)
        wanted = {(kind, rank) for kind in (m.WorkerForked, m.WorkerConnected) for rank in ranks}
        while wanted:
            message = self.next_message()
            wanted.discard((type(message), getattr(message, "rank", -1)))
        return [self.pids[rank] for rank in ranks]

    def run(self, source: str, *ranks: int) -> int:
        """Have ranks (0 unless given) run a cell; its number."""
        self._cells += 1
        targets = list(ranks or (0,))
        self.tell(m.Tell(targets, m.RunCell(self._cells, source)))
        return self._cells

    def signal(self, number: int, *ranks: int, group: bool = False) -> None:
        self.tell(m.SignalRanks(list(ranks or (0,)), int(number), group))

    def next_message(self) -> m.NodeToKernel:
        while not self._unread:
            data = self.link.recv(1 << 20)
            assert data, "the agent has ended"
            self._unread = [codec.decode(codec.from_node, body) for body in self._reader.feed(data)]
        message = self._unread.pop(0)
        self.heard.append(message)
        if isinstance(message, m.WorkerForked):
            self.pids[message.rank] = message.pid
        return message

    def next(self, kind: type[M]) -> M:
        """Read on to the next message of this kind. TimeoutError: none came."""
        deadline = time.monotonic() + TIMEOUT_S
        while time.monotonic() < deadline:
            message = self.next_message()
            if isinstance(message, kind):
                return message
        raise TimeoutError(f"no {kind.__name__}")

    def run_to_end(self, source: str, *ranks: int) -> list[m.NodeToKernel]:
        """Run a cell on one rank; all that came with it, its end included."""
        before = len(self.heard)
        self.run(source, *ranks)
        self.next(m.CellFinished)
        return self.heard[before:]

    def clear(self) -> None:
        """End all ranks, so that the next test finds none."""
        ended = {exited.pid for exited in self.heard if isinstance(exited, m.WorkerExited)}
        living = {rank for rank, pid in self.pids.items() if pid not in ended}
        if living:
            self.signal(signal.SIGKILL, *living, group=True)
        while living:
            living.discard(self.next(m.WorkerExited).rank)
        self.pids.clear()
        self.heard.clear()


@pytest.fixture(scope="module")
def warm() -> Iterator[Agent]:
    with Agent() as agent:
        agent.next(m.Preloaded)
        yield agent


@pytest.fixture
def agent(warm: Agent) -> Iterator[Agent]:
    """An agent without ranks, shared by the tests of this module that leave it as it was."""
    yield warm
    warm.clear()


@pytest.fixture
def mortal() -> Iterator[Agent]:
    """An agent of the test's own, which may come to any harm."""
    with Agent() as agent:
        yield agent


class Watch:
    """Waits for processes that are not our children to end."""

    def __init__(self, *pids: int) -> None:
        self._pidfds: dict[int, int] = {}
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):  # it is gone already
                self._pidfds[os.pidfd_open(pid)] = pid

    def all_gone(self, within_s: float) -> list[int]:
        """Wait; the PIDs of those that did not end in time, killed so that they do not stay."""
        deadline = time.monotonic() + within_s
        waiting = dict(self._pidfds)
        while waiting and (left_s := deadline - time.monotonic()) > 0:
            for fd in select.select(list(waiting), [], [], left_s)[0]:
                del waiting[fd]
        for fd in waiting:
            signal.pidfd_send_signal(fd, signal.SIGKILL)
        for fd in self._pidfds:
            os.close(fd)
        return list(waiting.values())


def written(messages: list[m.NodeToKernel], stream: str, fd: bool) -> bytes:
    """What came by fd 1 or 2, or by the rank's own messages, in the order of its coming."""
    kind = m.FdOutput if fd else m.Output
    return b"".join(x.data for x in messages if isinstance(x, kind) and x.stream == stream)


# --- birth and death ----------------------------------------------------------------------------------


def test_the_agent_introduces_itself_first(mortal: Agent) -> None:
    """Version, PID and host come before anything else, without waiting for the preload."""
    ready = mortal.next_message()
    assert isinstance(ready, m.NodeReady)
    assert ready.version == m.PROTOCOL_VERSION
    assert ready.pid == mortal.process.pid
    assert ready.hostname == socket.gethostname()


def test_a_rank_is_the_agents_own_child_in_a_group_of_its_own(agent: Agent) -> None:
    """So the agent reaps it, it ends with the agent, and the kernel's interrupts do not hit it."""
    pids = agent.start(0, 1, 2)
    assert set(pids) < set(children(agent.process.pid))
    assert [os.getpgid(pid) for pid in pids] == pids


def test_a_rank_has_nothing_open_but_its_own(agent: Agent) -> None:
    """Two sockets, two pipes, the shared page and the null device: nothing of the forkserver or a sibling."""
    agent.start(0, 1)
    said = agent.run_to_end(
        "import os, glob\n"
        "links = [os.readlink(path) for path in glob.glob('/proc/self/fd/*') if os.path.islink(path)]\n"
        "os.write(1, ' '.join(sorted(link.partition(':')[0] for link in links)).encode())",
        1,
    )
    assert written(said, "stdout", fd=True).decode().split() == [
        "/dev/null",
        "/memfd",
        "anon_inode",  # the control thread's eventfd
        "pipe",
        "pipe",
        "socket",
        "socket",
    ]


@pytest.mark.parametrize(
    ("source", "status"),
    [
        ("import os; os._exit(0)", 0),
        ("import os; os._exit(3)", 3 << 8),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", signal.SIGKILL),
        ("import os, signal; os.kill(os.getpid(), signal.SIGTERM)", signal.SIGTERM),
        ("import faulthandler; faulthandler._sigsegv()", signal.SIGSEGV),
        ("import os; os.abort()", signal.SIGABRT),
    ],
)
def test_how_a_rank_ended_is_reported_exactly(agent: Agent, source: str, status: int) -> None:
    """The status is waitpid's own, with the cell it was in and the last it wrote to stderr."""
    (pid,) = agent.start(0)
    cell = agent.run(f"import os; os.write(2, b'last words'); {source}")
    exited = agent.next(m.WorkerExited)
    assert (exited.rank, exited.pid, exited.cell) == (0, pid, cell)
    assert exited.status & ~0x80 == status  # without the flag that says whether a core was dumped
    assert exited.stderr.startswith("last words")


def test_the_order_to_break_the_group_comes_before_the_cells_behind_it(agent: Agent) -> None:
    """It goes to the control thread at once and to the main thread in its place: no cell overtakes it."""
    agent.start(0)
    agent.tell(m.Tell([0], m.BreakGroup(1)))
    said = agent.run_to_end("outbox.write('stdout', b'the cell')")
    assert written(said, "stdout", fd=False).decode().split("\n") == ["told to break the group", "the cell"]


def test_a_rank_that_is_told_to_leave_exits_with_0(agent: Agent) -> None:
    """An exit between cells belongs to no cell."""
    agent.start(0)
    agent.run_to_end("pass")
    agent.tell(m.Tell([0], m.EndWorker()))
    exited = agent.next(m.WorkerExited)
    assert (exited.status, exited.cell) == (0, m.NO_CELL)


def test_a_rank_that_fails_before_it_connects_says_why(agent: Agent) -> None:
    """The end of its stderr travels with the exit: the only words that there are."""
    agent.ask_for(0, prelude="raise RuntimeError('no luck')")
    exited = agent.next(m.WorkerExited)
    assert exited.status == 1 << 8
    assert exited.stderr.endswith("RuntimeError: no luck")


def test_the_death_of_one_rank_leaves_the_others(agent: Agent) -> None:
    """A sibling runs cells before and after."""
    agent.start(0, 1)
    agent.run("import os; os._exit(1)", 0)
    agent.next(m.WorkerExited)
    said = agent.run_to_end("outbox.write('stdout', b'still here')", 1)
    assert written(said, "stdout", fd=False) == b"still here"


def test_a_number_may_be_given_again(agent: Agent) -> None:
    """A rank that has ended makes room for another of the same number."""
    (first,) = agent.start(0)
    agent.run("import os; os._exit(1)")
    agent.next(m.WorkerExited)
    (second,) = agent.start(0)
    assert second != first
    agent.run_to_end("pass")


def test_sigint_goes_to_the_rank_alone(mortal: Agent) -> None:
    """The cell is interrupted; a child in the rank's process group is not."""
    mortal.start(0)
    mortal.run(
        "import os, subprocess, time\n"
        "child = subprocess.Popen(['sleep', '600'])\n"
        "os.write(1, b'on')\n"
        "time.sleep(600)"
    )
    mortal.next(m.FdOutput)
    mortal.signal(signal.SIGINT)
    assert mortal.next(m.CellFinished).verdict == "interrupted"
    said = mortal.run_to_end("os.write(1, repr(child.poll()).encode())")
    assert written(said, "stdout", fd=True) == b"None"


def test_sigkill_for_the_group_takes_the_ranks_children(mortal: Agent) -> None:
    """What the rank started in its process group ends with it."""
    mortal.start(0)
    mortal.run(
        "import os, subprocess, time\n"
        "child = subprocess.Popen(['sleep', '600'])\n"
        "os.write(1, str(child.pid).encode())\n"
        "time.sleep(600)"
    )
    watch = Watch(int(mortal.next(m.FdOutput).data))
    mortal.signal(signal.SIGKILL, group=True)
    assert mortal.next(m.WorkerExited).status == signal.SIGKILL
    assert watch.all_gone(GONE_S) == []


def test_a_preload_that_fails_is_told_with_its_traceback() -> None:
    """The forkserver's last words come as a message, and the agent lives."""
    with Agent(preload=("no_such_module",)) as agent:
        failed = agent.next(m.PreloadFailed)
        assert failed.stderr.endswith("ModuleNotFoundError: No module named 'no_such_module'")
        assert agent.process.poll() is None


def test_forty_ranks_and_more_in_one_order(agent: Agent) -> None:
    """More ranks than descriptors fit into one message."""
    pids = agent.start(*range(45))
    assert len(set(pids)) == 45


# --- what ranks write -----------------------------------------------------------------------------------

LINE = "f'{i:06d}\\n'.encode()"


def numbers(data: bytes) -> list[int]:
    return [int(line) for line in data.split()]


WRITERS = {
    "fd 1": f"os.write(1, {LINE})",
    "fd 2": f"os.write(2, {LINE})",
    "sys.stdout": f"outbox.write('stdout', {LINE})",
}


def heard_by(way: str, messages: list[m.NodeToKernel]) -> bytes:
    if way == "sys.stdout":
        outputs = [x for x in messages if isinstance(x, m.Output)]
        at = 0
        for output in outputs:
            assert output.offset == at, "a gap or a repetition"
            at += len(output.data)
    return written(messages, "stderr" if way == "fd 2" else "stdout", fd=way != "sys.stdout")


@pytest.mark.parametrize("way", WRITERS)
def test_what_was_written_before_the_rank_killed_itself_arrives(agent: Agent, way: str) -> None:
    """Exactly the lines before the SIGKILL, each once, whatever their number."""
    seeded = random.Random(way)
    for _ in range(KILLS):
        lines = seeded.choice([0, 1, 7, 8, 100, seeded.randrange(30_000)])
        agent.start(0)
        before = len(agent.heard)
        agent.run(f"import os\nfor i in range({lines}): {WRITERS[way]}\nos.kill(os.getpid(), 9)")
        agent.next(m.WorkerExited)
        assert numbers(heard_by(way, agent.heard[before:])) == list(range(lines))


@pytest.mark.parametrize("way", WRITERS)
def test_what_was_written_before_a_kill_at_any_moment_arrives(agent: Agent, way: str, tmp_path: Path) -> None:
    """The rank counts in a shared page what it has written; all of that arrives, and none of it twice."""
    seeded = random.Random(way)
    page = tmp_path / "count"
    count = f"count[0] = i + 1  # {way}"
    source = (
        "import mmap, os, itertools\n"
        f"count = memoryview(mmap.mmap(os.open({str(page)!r}, os.O_RDWR), 4096)).cast('Q')\n"
        f"for i in itertools.count():\n    {WRITERS[way]}\n    {count}"
    )
    for _ in range(KILLS):
        page.write_bytes(bytes(4096))
        agent.start(0)
        before = len(agent.heard)
        agent.run(source)
        for _ in range(seeded.randrange(12)):
            agent.next(m.Output if way == "sys.stdout" else m.FdOutput)
        agent.signal(signal.SIGKILL)
        agent.next(m.WorkerExited)
        (counted,) = struct.unpack_from("Q", page.read_bytes())
        arrived = numbers(heard_by(way, agent.heard[before:]))
        assert arrived == list(range(len(arrived)))
        assert counted <= len(arrived) <= counted + 1  # killed between the writing and the counting


def test_what_a_subprocess_wrote_comes_before_the_end_of_the_cell(agent: Agent) -> None:
    """A megabyte and more from a child, on both streams, then CellFinished."""
    agent.start(0)
    said = agent.run_to_end("import subprocess; subprocess.run('seq 200000; seq 1000 >&2', shell=True)")
    assert isinstance(said[-1], m.CellFinished)
    assert numbers(written(said, "stdout", fd=True)) == list(range(1, 200_001))
    assert numbers(written(said, "stderr", fd=True)) == list(range(1, 1001))


def test_a_pipe_that_was_read_comes_before_what_the_rank_says_next(agent: Agent) -> None:
    """A command between two prints stands between them, once its output has left the pipe."""
    agent.start(0)
    said = agent.run_to_end(
        "import array, fcntl, os, termios\n"
        "unread = array.array('i', [0])\n"
        "outbox.write('stdout', b'1')\n"
        "outbox.flush()\n"
        "os.system('printf 2')\n"
        "while fcntl.ioctl(1, termios.FIONREAD, unread) == 0 and unread[0]: pass\n"
        "outbox.write('stdout', b'3')"
    )
    assert b"".join(x.data for x in said if isinstance(x, m.Output | m.FdOutput)) == b"123"


class Gate:
    """A FIFO: a cell waits at it until the test opens it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        os.mkfifo(path)

    def wait_source(self) -> str:
        return f"open({str(self.path)!r}).read()"

    def open(self) -> None:
        self.path.write_text("")


def test_a_signal_that_comes_with_a_cell(agent: Agent) -> None:
    """What is ready together with a cell's order is looked after before the cell, and not once more."""
    agent.start(0)
    for _ in range(5):
        os.kill(agent.process.pid, signal.SIGSTOP)
        cell = agent.run("pass")
        os.kill(agent.process.pid, signal.SIGCHLD)
        os.kill(agent.process.pid, signal.SIGCONT)
        assert agent.next(m.CellFinished).cell == cell


def test_good_ends_come_together(agent: Agent) -> None:
    """One message says that a cell has ended well on both ranks; a bad end comes by itself, at once."""
    agent.start(0, 1)
    cell = agent.run("pass", 0, 1)
    together = agent.next(m.GoodEnds)
    assert together.cell == cell
    assert sorted((end.rank, end.cell, end.verdict) for end in together.ends) == [
        (0, cell, "ok"),
        (1, cell, "ok"),
    ]
    agent.run("1/0", 0)
    assert agent.next(m.CellFinished).verdict == "error"


def test_late_output_belongs_to_the_cell_before(agent: Agent, tmp_path: Path) -> None:
    """What is written between two cells is not the second one's."""
    done = Gate(tmp_path / "done")
    agent.start(0)
    cell = agent.run(f"import os\ndef after():\n    os.write(1, b'late')\n    {done.wait_source()}")
    agent.next(m.CellFinished)
    done.open()
    agent.run_to_end("pass")
    late = [(x.cell, x.data) for x in agent.heard if isinstance(x, m.FdOutput)]
    assert late == [(cell, b"late")]


def test_a_pipe_drained_by_a_cells_end_is_still_heard(mortal: Agent, tmp_path: Path) -> None:
    """A cell's end and its fd output are found at once; the next cell's fd output comes all the same."""
    begin, done = Gate(tmp_path / "begin"), Gate(tmp_path / "done")
    mortal.start(0)
    mortal.run(
        f"import os\nos.write(1, b'on')\n{begin.wait_source()}\n"
        "outbox.write('stdout', b'print')\n"
        "os.write(1, b'fd')\n"
        f"after = lambda: {done.wait_source()}"
    )
    mortal.next(m.FdOutput)
    mortal.process.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, mortal.process.pid, os.WSTOPPED)
    begin.open()
    done.open()  # the rank has said CellFinished: the agent will read all of it in one round
    mortal.process.send_signal(signal.SIGCONT)
    mortal.next(m.CellFinished)
    said = mortal.run_to_end("for _ in range(100): os.write(1, bytes(4096))")  # more than a pipe holds
    assert len(written(said, "stdout", fd=True)) == 409_600


@pytest.mark.parametrize("fd", [1, 2])
def test_endless_output_does_not_deafen_the_agent(mortal: Agent, fd: int) -> None:
    """While a rank writes to a pipe as fast as it can, a sibling runs cells and SIGINT arrives in time."""
    mortal.start(0, 1)
    mortal.run(f"import os\nwhile True: os.write({fd}, bytes(65536))", 0)
    mortal.next(m.FdOutput)
    began = time.monotonic()
    mortal.run("pass", 1)
    assert mortal.next(m.CellFinished).rank == 1
    mortal.signal(signal.SIGINT, 0)
    assert mortal.next(m.CellFinished).verdict == "interrupted"
    assert time.monotonic() - began < 3.0


@pytest.mark.parametrize("way", ["os.write(1, block)", "outbox.write('stdout', block)"])
def test_a_kernel_that_does_not_read_makes_ranks_wait(mortal: Agent, way: str) -> None:
    """The agent keeps some of it and no more; when the kernel reads again, all of it comes."""
    mortal.start(0)
    megabytes = 160
    mortal.run(f"import os\nblock = bytes(1 << 16)\nfor _ in range({megabytes * 16}): {way}")
    peak = 0
    deadline = time.monotonic() + 1.0  # a second in which nobody reads: the agent must not fill up
    while (left_s := deadline - time.monotonic()) > 0:
        select.select([], [], [], min(left_s, 0.05))
        peak = max(peak, _resident_bytes(mortal.process.pid))
    before = len(mortal.heard)
    mortal.next(m.CellFinished)
    size = sum(len(x.data) for x in mortal.heard[before:] if isinstance(x, m.Output | m.FdOutput))
    assert size == megabytes << 20
    assert peak < 100 << 20


def _state(pid: int) -> str:
    """A process's state, as ps shows it."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def wait_until(condition: Callable[[], bool]) -> None:
    """For what no event tells of. TimeoutError: it did not come."""
    deadline = time.monotonic() + TIMEOUT_S
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError
        select.select([], [], [], 0.01)


def _resident_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


# --- the end of everything --------------------------------------------------------------------------------

ESCAPES = """
import os, subprocess, sys, time
plain = subprocess.Popen(['sleep', '600']).pid
apart = subprocess.Popen(['sleep', '600'], start_new_session=True).pid
into = os.pipe()
middle = os.fork()
if not middle:  # as a daemon does: twice forked, in a session of its own
    os.setsid()
    daemon = os.fork()
    if daemon:
        os.write(into[1], str(daemon).encode())
        os._exit(0)
    os.closerange(0, 100)
    time.sleep(600)
os.waitpid(middle, 0)
daemon = int(os.read(into[0], 20))
os.write(1, f'{plain} {apart} {daemon}'.encode())
"""


def start_family(agent: Agent) -> Watch:
    """Three ranks: one idle, one that never looks at its socket, and one with descendants that escape it."""
    ranks = agent.start(0, 1, 2)
    said = agent.run_to_end(ESCAPES, 0)
    descendants = [int(pid) for pid in written(said, "stdout", fd=True).split()]
    assert len(descendants) == 3
    agent.run("import os; os.write(1, b'on')\nwhile True: pass", 1)
    agent.next(m.FdOutput)
    forkserver = set(children(agent.process.pid)) - set(ranks) - set(descendants)
    assert len(forkserver) == 1
    return Watch(*ranks, *descendants, *forkserver)


def test_a_closed_socket_ends_everything(mortal: Agent) -> None:
    """Agent, forkserver, ranks, their children and those that went to sessions of their own: gone in 2 s."""
    watch = start_family(mortal)
    mortal.link.close()
    began = time.monotonic()
    mortal.process.wait(GONE_S)
    assert watch.all_gone(GONE_S - (time.monotonic() - began)) == []
    assert mortal.process.returncode == 0


def test_the_death_of_the_kernels_process_ends_everything() -> None:
    """Also where something else holds the kernel's end of the socket open, as a fork of it does."""
    kernel = subprocess.Popen(["sleep", "600"])
    with Agent(kernel_pid=kernel.pid) as agent:
        watch = start_family(agent)
        began = time.monotonic()
        kernel.kill()
        kernel.wait()
        agent.process.wait(GONE_S)
        assert watch.all_gone(GONE_S - (time.monotonic() - began)) == []


def test_sigterm_ends_an_idle_agent(mortal: Agent) -> None:
    """Python resumes a wait after a signal's handler: the agent must wake up by itself."""
    watch = Watch(*mortal.start(0))
    mortal.run_to_end("pass")
    wait_until(lambda: _state(mortal.process.pid) == "S")
    mortal.process.terminate()
    assert watch.all_gone(GONE_S) == []
    mortal.process.wait(GONE_S)


def test_sigterm_ends_everything(mortal: Agent) -> None:
    """As a service manager or a job scheduler ends an agent."""
    watch = start_family(mortal)
    began = time.monotonic()
    mortal.process.terminate()
    mortal.process.wait(GONE_S)
    assert watch.all_gone(GONE_S - (time.monotonic() - began)) == []


def test_the_death_of_the_agent_ends_the_ranks(mortal: Agent) -> None:
    """Killed with SIGKILL it can do nothing more: the ranks end with it, the forkserver by itself."""
    ranks = mortal.start(0, 1)
    mortal.run("import os; os.write(1, b'on')\nwhile True: pass", 1)
    mortal.next(m.FdOutput)
    watch = Watch(*ranks, *(set(children(mortal.process.pid)) - set(ranks)))
    mortal.process.kill()
    assert watch.all_gone(GONE_S) == []


def test_a_death_with_a_child_that_escaped_is_reported_at_once(mortal: Agent) -> None:
    """The rank's exit does not wait for a descendant that holds its pipes, which ends with the last rank."""
    mortal.start(0)
    mortal.run(
        "import os, subprocess\n"
        "child = subprocess.Popen(['sleep', '600'], start_new_session=True)\n"
        "os.write(1, str(child.pid).encode())\n"
        "os._exit(3)"
    )
    watch = Watch(int(mortal.next(m.FdOutput).data))
    began = time.monotonic()
    assert mortal.next(m.WorkerExited).status == 3 << 8
    assert time.monotonic() - began < 1.0
    assert watch.all_gone(GONE_S) == []


def test_what_a_dead_rank_left_behind_does_not_stay_as_a_zombie(mortal: Agent) -> None:
    """The agent inherits a rank's children; those that have ended are reaped when the rank is."""
    (pid,) = mortal.start(0)
    said = mortal.run_to_end(
        "import os, subprocess\nchild = subprocess.Popen(['true'])\n"
        "os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)\nos.write(1, str(child.pid).encode())"
    )
    child = int(written(said, "stdout", fd=True))
    mortal.signal(signal.SIGKILL)
    assert mortal.next(m.WorkerExited).pid == pid
    wait_until(lambda: child not in children(mortal.process.pid))


def last_words(heard: list[m.NodeToKernel]) -> list[tuple[int, type]]:
    """Who has ended a cell, or itself, in the order in which it was said."""
    said: list[tuple[int, type]] = []
    for message in heard:
        ends = message.ends if isinstance(message, m.GoodEnds) else [message]
        said += [(end.rank, type(end)) for end in ends if isinstance(end, m.CellFinished | m.WorkerExited)]
    return said


def test_a_rank_that_ends_right_behind_its_last_word(mortal: Agent, tmp_path: Path) -> None:
    """While another is busy and writes: word and end come in order, whatever came first to the agent."""
    pids = mortal.start(0, 1)
    fifos = [tmp_path / f"fifo{rank}" for rank in (0, 1)]
    for fifo in fifos:
        os.mkfifo(fifo)
    mortal.run(
        "import os, pathlib\noutbox.write('stdout', b'on')\n"
        f"pathlib.Path('{tmp_path}', f'fifo{{outbox.rank}}').read_text()\n"
        "if outbox.rank == 0: after = lambda: os._exit(0)\n"
        f"else: os.write(1, b'late'); pathlib.Path('{tmp_path}', 'written').touch()",
        0,
        1,
    )
    for _ in pids:
        mortal.next(m.Output)
    mortal.process.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, mortal.process.pid, os.WSTOPPED)
    fifos[0].write_text("")
    wait_until(lambda: _state(pids[0]) == "Z")
    fifos[1].write_text("")
    wait_until((tmp_path / "written").exists)
    mortal.process.send_signal(signal.SIGCONT)
    while len(last := last_words(mortal.heard)) < 3:  # the two ends may come together, or apart
        mortal.next_message()
    assert [kind for rank, kind in last if rank == 0] == [m.CellFinished, m.WorkerExited]
    assert written(mortal.heard, "stdout", fd=True) == b"late"


def test_bytes_that_are_no_order_end_the_agent_and_all(mortal: Agent) -> None:
    """A kernel that talks nonsense is none."""
    watch = Watch(*mortal.start(0))
    mortal.link.sendall(struct.pack("<I", 3) + b"\xc1\xc1\xc1")
    assert watch.all_gone(GONE_S) == []
    mortal.process.wait(GONE_S)


# --- what the pool relies on when things go wrong ---------------------------------------------------------


def test_a_rank_killed_before_its_birth_ends(mortal: Agent) -> None:
    """An interrupt during the preload: the order to kill outlives the fork, and an exit is reported."""
    mortal.ask_for(0)
    mortal.signal(signal.SIGKILL, group=True)
    assert mortal.next(m.WorkerExited).status == signal.SIGKILL


def test_a_rank_killed_while_it_is_forked_ends(agent: Agent) -> None:
    """The same when the forkserver is warm and has been asked."""
    agent.ask_for(0)
    agent.signal(signal.SIGKILL, group=True)
    assert agent.next(m.WorkerExited).status == signal.SIGKILL


def test_ranks_asked_for_without_a_forkserver_are_refused(mortal: Agent) -> None:
    """A resize after the forkserver's death fails with a message; the agent and its ranks go on."""
    (pid,) = mortal.start(0)
    (forkserver,) = set(children(mortal.process.pid)) - {pid}
    os.kill(forkserver, signal.SIGKILL)
    mortal.next(m.PreloadFailed)
    mortal.ask_for(1)
    mortal.next(m.PreloadFailed)
    mortal.run_to_end("pass", 0)


def test_a_number_may_be_given_again_while_the_first_still_lives(mortal: Agent) -> None:
    """A resize down and up again: the one that leaves is reaped and reported too, under its own PID."""
    (first,) = mortal.start(0)
    (second,) = mortal.start(0)
    os.kill(first, signal.SIGKILL)
    assert mortal.next(m.WorkerExited).pid == first
    mortal.run_to_end("pass")
    mortal.signal(signal.SIGKILL)
    assert mortal.next(m.WorkerExited).pid == second


def test_a_forkserver_that_ends_as_ranks_are_asked_for(mortal: Agent) -> None:
    """The agent learns of both in one round: it refuses, and goes on."""
    (pid,) = mortal.start(0)
    (forkserver,) = set(children(mortal.process.pid)) - {pid}
    mortal.process.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, mortal.process.pid, os.WSTOPPED)
    mortal.ask_for(1)
    os.kill(forkserver, signal.SIGKILL)
    wait_until(lambda: _state(forkserver) == "Z")
    mortal.process.send_signal(signal.SIGCONT)
    mortal.next(m.PreloadFailed)
    mortal.run_to_end("pass", 0)


def test_ranks_outlive_a_forkserver_that_is_killed_before_it_tells_of_them() -> None:
    """Who has connected is a rank like any; who has not never will, and finds the agent's end closed."""
    with Agent(preload=("silent_forkserver",)) as agent:
        agent.next(m.Preloaded)
        (forkserver,) = children(agent.process.pid)
        agent.ask_for(0, 1, 2, prelude="if outbox.rank == 2: cells.recv(1)")
        connected = [agent.next(m.WorkerConnected) for _ in range(2)]
        assert agent.pids == {message.rank: message.pid for message in connected}
        (unknown,) = set(children(agent.process.pid)) - {forkserver, *agent.pids.values()}
        watch = Watch(unknown)
        os.kill(forkserver, signal.SIGKILL)
        agent.next(m.PreloadFailed)
        assert watch.all_gone(GONE_S) == []
        agent.run_to_end("pass", 0)
        agent.signal(signal.SIGKILL, 1)
        assert agent.next(m.WorkerExited).pid == agent.pids[1]


def test_a_rank_lives_that_the_forkserver_knows_nothing_of() -> None:
    """Who forked it was killed before it could tell: it says itself that it is there."""
    with Agent(preload=("silent_forkserver",)) as agent:
        agent.next(m.Preloaded)
        (forkserver,) = children(agent.process.pid)
        agent.ask_for(0)
        agent.next(m.WorkerConnected)
        os.kill(forkserver, signal.SIGUSR1)
        agent.ask_for(1)  # answered behind what is said of the first
        agent.next(m.WorkerConnected)
        agent.run_to_end("pass", 0)
        assert not any(isinstance(message, m.WorkerExited) for message in agent.heard)


def test_a_rank_that_talks_nonsense_is_lost_alone(mortal: Agent) -> None:
    """User code that writes to a descriptor it does not own ends its rank, not the pool."""
    mortal.start(0, 1)
    mortal.run("import struct; cells.send(struct.pack('<I', 3) + bytes([0xc1] * 3)); cells.recv(1)", 0)
    assert mortal.next(m.WorkerExited).rank == 0
    mortal.run_to_end("pass", 1)


@pytest.mark.promise("a rank that speaks as another is lost alone, and nothing of it is passed on")
def test_a_rank_that_speaks_as_another_is_lost_alone(mortal: Agent) -> None:
    """Nothing of what it says for the other is passed on; the reason stands in its cell's stderr."""
    mortal.start(0, 1)
    mortal.run(
        "import time\noutbox.rank = 1\n"
        "for _ in range(1000): outbox.say(m.Notice, text='forged')\nouter = cells.recv(1)",
        0,
    )
    assert mortal.next(m.WorkerExited).rank == 0
    assert not any(isinstance(message, m.Notice) for message in mortal.heard)
    told = b"".join(message.data for message in mortal.heard if isinstance(message, m.FdOutput))
    assert b"rank 0 was killed: what it sends is no message of its own" in told
    assert b"it speaks as rank 1" in told
    mortal.run_to_end("pass", 1)


# --- what ranks use -------------------------------------------------------------------------------


def test_usage_is_told_while_somebody_looks(agent: Agent) -> None:
    """Every rank's memory and state, again and again, until nobody looks any more."""
    agent.start(*range(6))
    agent.tell(m.WatchUsage(0.01))
    seen: dict[int, list[m.RankUsage]] = {}
    while len(seen) < 6 or min(map(len, seen.values())) < 3:
        for usage in agent.next(m.Usage).ranks:
            seen.setdefault(usage.rank, []).append(usage)
    assert all(
        u.memory_bytes > 100_000 and u.process_state in {"R", "S", "D"} for us in seen.values() for u in us
    )
    assert all(u.line == 0 and u.gpu_memory_bytes == -1 for us in seen.values() for u in us)
    agent.tell(m.WatchUsage(0))
    agent.run_to_end("pass")  # what was on its way has come
    agent.heard.clear()
    agent.run_to_end("import time; time.sleep(0.1)")
    assert not any(isinstance(message, m.Usage) for message in agent.heard)


def test_usage_tells_a_stopped_rank(agent: Agent) -> None:
    """SIGSTOP shows as T, as ps has it; the others go on."""
    agent.start(0, 1)
    agent.signal(signal.SIGSTOP, 1)
    agent.tell(m.WatchUsage(0.01))
    states: dict[int, str] = {}
    while states.get(1) != "T" or 0 not in states:
        states |= {usage.rank: usage.process_state for usage in agent.next(m.Usage).ranks}
    assert states[0] in {"R", "S", "D"}
    agent.signal(signal.SIGCONT, 1)
    while states[1] == "T":
        states |= {usage.rank: usage.process_state for usage in agent.next(m.Usage).ranks}
