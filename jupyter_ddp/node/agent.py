"""One machine's agent: forks ranks from a warm forkserver, relays and batches what they say.

Owns its ranks' processes. Ends, with all of them, when the notebook kernel's end of its socket closes
or the kernel's process ends. Never imports torch or IPython; never blocks on a rank.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from typing import assert_never

from jupyter_ddp.core import codec
from jupyter_ddp.core import messages as m
from jupyter_ddp.node.forkserver_link import Forkserver
from jupyter_ddp.node.gpus import list_gpus
from jupyter_ddp.node.linux import become_subreaper, children, raise_descriptor_limit
from jupyter_ddp.node.looks import Looks
from jupyter_ddp.node.rank_process import RankProcess
from jupyter_ddp.node.stops import Stops
from jupyter_ddp.node.usage import UsageSampler

_READ_BYTES = 1024 * 1024
_MAX_WAITING_BYTES = 16 * 1024 * 1024
"""With more than this on its way to the notebook kernel, ranks are not read: they wait to print."""
_END_TIMEOUT_S = 1.0
_MAX_EVENTS = 64  # at a time; by default room is made, and paid for, for a thousand
_NEVER_RAN = 1 << 8  # as waitpid gives an exit with code 1
_GATHER_S = 0.02
"""The longest that a rank's good end waits for those of the others."""


def main() -> None:
    """`python -c … FD KERNEL_PID SYS_PATH PRELOAD ENTRY`."""
    fd, kernel_pid, sys_path, preload, entry = sys.argv[1:6]
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    become_subreaper()
    raise_descriptor_limit()
    kernel = socket.socket(fileno=int(fd))
    forkserver = Forkserver(json.loads(sys_path), json.loads(preload), entry)
    agent = Agent(kernel, int(kernel_pid), forkserver)
    agent.take_signals()
    agent.serve()


class Agent:
    """The loop: one thread, one epoll, a callback for each descriptor."""

    def __init__(self, kernel: socket.socket, kernel_pid: int, forkserver: Forkserver) -> None:
        self._kernel = kernel
        self._kernel_pidfd = os.pidfd_open(kernel_pid)
        self._forkserver = forkserver
        self._writer = codec.FrameWriter()
        self._reader = codec.FrameReader()
        self._ranks: dict[int, RankProcess] = {}
        self._processes: set[RankProcess] = set()
        """Every rank that is not reaped: one that was let go may live on a while under a reused number."""
        self._random_states: dict[int, bytes] = {}
        """What the last process of each rank left, for the one that replaces it."""
        self._busy: set[RankProcess] = set()
        """Ranks that a cell runs on."""
        self._stops = Stops()
        self._looks = Looks()
        self._preloaded = False
        self._forkserver_lost = False
        self._start_waiting: list[m.StartRanks] = []
        self._gathered: list[tuple[RankProcess, m.CellFinished]] = []
        """Good ends that are still to be said, behind what their ranks' pipes hold."""
        self._gathered_at = 0.0
        self._pipes = select.poll()
        """Of all ranks, to be asked about at once."""
        self._usage = UsageSampler()
        self._has_duties = False
        """Usage is watched, a rank is stopped or was asked something: one look where three would be taken."""
        self._leaving = False
        self._throttled = False
        # Not `selectors`: with four ranks on two cores, its bookkeeping is a twentieth of a short cell.
        self._epoll = select.epoll()
        self._rounds = 0  # counts the times that it was asked
        self._more_came = False
        """Something had come from others too when the notebook kernel's order did."""
        self._watched: dict[int, tuple[int, Callable[[int], None]]] = {}
        """Descriptor: (what is waited for, who is called with what has come)."""
        self._read_buffer = bytearray(_READ_BYTES)

    # -- the loop --------------------------------------------------------------------------------

    def serve(self) -> None:
        """Until the notebook kernel is gone; then nothing of ours is left."""
        self._kernel.setblocking(False)
        self._watch(self._kernel.fileno(), self._on_kernel)
        self._watch(self._kernel_pidfd, lambda _: self.leave())
        self._watch(self._forkserver.link.fileno(), self._on_forkserver)
        self._watch(self._forkserver.stderr_fd, lambda _: self._forkserver.read_stderr())
        gpus = list_gpus()
        self._say(m.NodeReady(m.PROTOCOL_VERSION, os.getpid(), socket.gethostname(), gpus))
        self._flush()
        try:
            while not self._leaving:
                if self._gathered:
                    self._attend(_GATHER_S)
                    if self._gathered and time.monotonic() - self._gathered_at >= _GATHER_S:
                        self._say_gathered()
                else:
                    self._attend(self._pause_s() if self._has_duties else None)
                if self._has_duties:
                    self._do_duties()
                self._flush()
        finally:
            self._end_all()

    def _do_duties(self) -> None:
        """What has its own time, whatever happens on the descriptors."""
        if self._usage.watched and self._usage.due_in_s() == 0:
            self._say(self._usage.sample(self._ranks.values(), self._busy))
        if self._stops:
            self._say_all(self._stops.due(time.monotonic()))
        if self._looks.asked:
            self._say_all(self._looks.overdue())
        self._has_duties = bool(self._usage.watched or self._stops or self._looks.asked)

    def _pause_s(self) -> float:
        """How long no duty is due."""
        due = [self._usage.due_in_s()] if self._usage.watched else []
        if self._stops:
            due.append(self._stops.timeout_s(time.monotonic()))
        if self._looks.asked:
            due.append(self._looks.timeout_s())
        return min(due, default=0.0)

    def _attend(self, timeout_s: float | None, but: int = -1) -> None:
        """Wait for something to happen, on any descriptor `but` this one, and act on it."""
        happened = self._epoll.poll(timeout_s, _MAX_EVENTS)
        if len(happened) == 1 and but < 0:  # as mostly while a short cell ends on one rank after the other
            self._more_came = False
            self._rounds += 1
            fd, events = happened[0]
            self._watched[fd][1](events)
            return
        ready = [(fd, events, self._watched[fd]) for fd, events in happened if fd != but]
        self._more_came = len(ready) > 1
        self._rounds += 1
        this = self._rounds
        for fd, events, watch in ready:
            if self._watched.get(fd) is watch:  # its number may have become another's in this round
                watch[1](events)
                if self._rounds != this:
                    return  # a callback has attended to what there was; of what is left epoll tells again

    def leave(self) -> None:
        self._leaving = True

    def take_signals(self) -> None:
        """SIGTERM ends the agent; SIGCHLD has it reap. Each wakes the loop, through a pipe."""
        out, into = os.pipe()
        for fd in (out, into):
            os.set_blocking(fd, False)
        signal.set_wakeup_fd(into)
        signal.signal(signal.SIGTERM, lambda *_: self.leave())
        signal.signal(signal.SIGCHLD, lambda *_: None)

        def on_signal(_: int) -> None:
            os.read(out, 4096)
            self._reap_orphans()
            self._say_all(self._stops.look(self._processes, time.monotonic()))
            self._has_duties = True  # there may be one: the round's end tells

        self._watch(out, on_signal)

    def _watch(self, fd: int, callback: Callable[[int], None], events: int = select.EPOLLIN) -> None:
        """Wait for these events on a descriptor from now on; for none, let go of it."""
        before = self._watched.get(fd)
        if not events:
            if before is not None:
                del self._watched[fd]
                self._epoll.unregister(fd)
            return
        self._watched[fd] = (events, callback)
        if before is None:
            self._epoll.register(fd, events)
        elif before[0] != events:
            self._epoll.modify(fd, events)

    # -- the notebook kernel ---------------------------------------------------------------------

    def _say(self, message: m.Message | bytes) -> None:
        self._say_gathered()  # what a rank says keeps its order
        self._writer.push(message if isinstance(message, bytes) else codec.encode(message))

    def _say_all(self, messages: Iterable[m.Message]) -> None:
        self._say_gathered()  # before the first is made: both may read the same pipe
        for message in messages:
            self._say(message)

    def _flush(self) -> None:
        """Send what goes; where much is left, let the ranks wait until the kernel has read it."""
        if not (self._writer.waiting_bytes or self._throttled):
            return
        try:
            done = self._writer.flush(self._kernel.send)
        except ConnectionError:
            self.leave()
            return
        self._watch(self._kernel.fileno(), self._on_kernel, select.EPOLLIN | (0 if done else select.EPOLLOUT))
        crowded = self._writer.waiting_bytes > _MAX_WAITING_BYTES
        if crowded != self._throttled:
            self._throttled = crowded
            for process in self._ranks.values():
                self._watch_rank(process)

    def _on_kernel(self, events: int) -> None:
        if not events & ~select.EPOLLOUT:
            return
        try:
            length = self._kernel.recv_into(self._read_buffer)
        except BlockingIOError:
            return
        except ConnectionError:
            length = 0
        if not length:
            self.leave()
            return
        for body in self._reader.feed(memoryview(self._read_buffer)[:length]):
            self._obey(codec.decode(codec.to_node, body))

    def _obey(self, order: m.KernelToNode) -> None:
        match order:
            case m.StartRanks():
                self._start_waiting.append(order)
                self._start_ranks()
            case m.Tell():
                self._tell(order)
            case m.SignalRanks():
                if order.signal == signal.SIGKILL:
                    self._withdraw(order.ranks)
                for rank in order.ranks:
                    if rank in self._ranks:
                        self._ranks[rank].signal(order.signal, order.group)
            case m.WatchUsage():
                self._usage.watch(order.interval_s)
                self._has_duties = True
            case _:
                assert_never(order)

    def _withdraw(self, ranks: Sequence[int]) -> None:
        """Ranks that are to be killed and still wait for the preload never come to be."""
        for order in self._start_waiting:
            for place in [place for place in order.places if place.rank in ranks]:
                order.places.remove(place)
                self._say(m.WorkerExited(place.rank, 0, signal.SIGKILL, m.NO_CELL, 0, "", 0))

    def _tell(self, order: m.Tell) -> None:
        command = order.command
        frame = codec.encode(command)
        if isinstance(command, m.RunCell) and self._more_came:
            self._attend(0, but=self._kernel.fileno())  # what is late belongs to the cell before
        told = [self._ranks[rank] for rank in order.ranks if rank in self._ranks]
        match command:
            case m.RunCell():
                for process in told:
                    process.cell = command.cell
                self._busy.update(told)
            case m.BreakGroup():
                for process in told:  # at once; in its place among the other commands it comes below
                    process.tell_control(frame)
            case m.Look():
                self._has_duties = True
                unseen = [self._looks.ask(process, command) for process in told]
                self._say_all(one for one in unseen if one is not None)
                return
        for process in told:
            if not process.tell(frame):
                self._watch_rank(process)

    # -- the forkserver --------------------------------------------------------------------------

    def _start_ranks(self) -> None:
        if self._forkserver_lost:
            self._start_waiting.clear()
            self._say(m.PreloadFailed(self._forkserver.stderr))
        if not self._preloaded or self._forkserver_lost:
            return
        for order in self._start_waiting:
            started: list[RankProcess] = []
            for place in order.places:
                devices = order.surroundings.environ.get("CUDA_VISIBLE_DEVICES")
                process = RankProcess(place, devices, self._read_buffer)
                if not order.replaces:
                    self._random_states.pop(place.rank, None)
                elif place.rank in self._ranks:  # killed, but not reaped yet
                    self._keep_states(self._ranks[place.rank])
                states = self._random_states.get(place.rank, b"")
                process.tell(codec.encode(m.BeginWorker(place, order.surroundings, states)))
                self._ranks[place.rank] = process
                self._processes.add(process)
                started.append(process)
            try:
                self._forkserver.request(started)
            except OSError:  # it is gone, and its socket will say so
                for process in started:
                    self._forget(process)
                self._say(m.PreloadFailed("the process that ranks are forked from was killed"))
                continue
            for process in started:
                process.passed()
                self._watch_rank(process)
        self._start_waiting.clear()

    def _on_forkserver(self, _: int) -> None:
        told = self._forkserver.read()
        if told is None:
            self._watch(self._forkserver.link.fileno(), self._on_forkserver, 0)
            self._forkserver.wait()
            self._forkserver.read_stderr()
            self._forkserver_lost = True
            for process in [p for p in self._processes if not p.pid]:
                self._forget(process)
            self._reap_orphans()
            self._say(m.PreloadFailed(self._forkserver.stderr))
            return
        if isinstance(told, m.Preloaded):
            self._say(told)
            self._preloaded = True
            self._start_ranks()
            return
        for process, pid in told:
            if pid:
                self._note_birth(process, pid)
            elif not process.pid:
                self._bury(process, "the system could make no process for it")
        self._reap_orphans()  # which was put off while it was unknown who is a rank

    def _note_birth(self, process: RankProcess, pid: int) -> None:
        """The forkserver tells of it, or it does so itself: whichever comes first, one may never come."""
        if process.pid:
            return
        process.born(pid)
        self._watch(process.pidfd, self._exit_callback(process))
        self._say(m.WorkerForked(process.rank, pid))

    def _bury(self, process: RankProcess, why: str) -> None:
        """A rank that never came to be."""
        self._forget(process)
        self._say(m.WorkerExited(process.rank, 0, _NEVER_RAN, m.NO_CELL, 0, why, 0))

    # -- ranks -----------------------------------------------------------------------------------

    def _watch_rank(self, process: RankProcess) -> None:
        """Listen to a rank, unless the notebook kernel is behind; write to it, if something waits."""
        read = 0 if self._throttled else select.EPOLLIN
        write = select.EPOLLOUT if process.writer.waiting_bytes else 0
        self._watch(process.cells.fileno(), self._cells_callback(process), read | write)
        for stream, fd in process.pipes.items():
            if stream in process.ended:
                self._let_go_of_pipe(fd)
            else:
                self._watch(fd, self._pipe_callback(process, stream), read)
                self._pipes.register(fd, select.POLLIN)

    def _let_go_of_pipe(self, fd: int) -> None:
        self._watch(fd, _ignore, 0)
        with contextlib.suppress(KeyError):  # it was let go of before
            self._pipes.unregister(fd)

    def _cells_callback(self, process: RankProcess) -> Callable[[int], None]:
        def on_cells(events: int) -> None:
            if events & select.EPOLLOUT and process.flush():
                self._watch_rank(process)
            if events & ~select.EPOLLOUT and not self._listen(process):
                self._watch(process.cells.fileno(), on_cells, 0)  # its end; the pidfd tells how

        return on_cells

    def _listen(self, process: RankProcess) -> bool:
        """Take what a rank has sent, if anything; False at the end of what it will ever send."""
        data = process.receive()
        try:
            for message, body in process.messages(data or b""):
                self._heard(process, message, body)
        except codec.CorruptStream as error:  # the cell has torn its own link: this rank is lost, no other
            process.torn = str(error)
            process.signal(signal.SIGKILL, group=True)
            return False
        return data is None or len(data) > 0

    def _heard(self, process: RankProcess, message: m.RankMessage, body: bytes) -> None:
        """Relay what a rank says; what its cell wrote to fd 1 and 2 goes before the cell's end."""
        if isinstance(message, m.RankSeen):
            self._looks.answered(process, message.look)
        elif isinstance(message, m.WorkerConnected):
            self._note_birth(process, message.pid)
        if isinstance(message, m.CellFinished):
            self._busy.discard(process)
            if message.verdict == "ok":
                self._gather(process, message)
                return
            self._say_all(process.drain())
        self._say(codec.frame(body))

    def _gather(self, process: RankProcess, end: m.CellFinished) -> None:
        """Good ends go together, when no rank is busy any more: each message wakes the kernel's threads."""
        if not self._gathered:
            self._gathered_at = time.monotonic()
        elif self._gathered[0][1].cell != end.cell:
            self._say_gathered()
        self._gathered.append((process, end))
        if not self._busy:
            self._say_gathered()

    def _say_gathered(self) -> None:
        if gathered := self._gathered:
            self._gathered = []
            if self._pipes.poll(0):
                for process, _ in gathered:
                    self._say_all(process.drain())
            ends = [end for _, end in gathered]
            said = ends[0] if len(ends) == 1 else m.GoodEnds(ends[0].cell, tuple(ends))
            self._writer.push(codec.encode(said))

    def _pipe_callback(self, process: RankProcess, stream: m.Stream) -> Callable[[int], None]:
        def on_pipe(_: int) -> None:
            self._listen(process)  # what it said before it started the child that writes here
            self._say_all(process.drain_one(stream, 1))  # what comes next may come behind a print
            if stream in process.ended:
                self._watch_rank(process)

        return on_pipe

    def _exit_callback(self, process: RankProcess) -> Callable[[int], None]:
        def on_exit(_: int) -> None:
            self._say_gathered()  # its last word may be among them, and what its pipes hold goes before
            exit = process.reap(self._say, process in self._busy)
            if exit is None:
                return
            self._forget(process)
            self._say(exit)

        return on_exit

    def _end_orphans(self) -> None:
        """The pool has ended, and with it what its ranks had started in sessions of their own."""
        for pid in children(os.getpid()):
            if pid != self._forkserver.process.pid:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    def _reap_orphans(self) -> None:
        """Reap what ranks have left behind: it came to us, the subreaper. Ranks are reaped by name."""
        ours = {self._forkserver.process.pid, *(process.pid for process in self._processes)}
        if 0 in ours:
            return  # a rank is being born: which of our children it is, is still to be told
        for pid in children(os.getpid()):
            if pid not in ours:
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(pid, os.WNOHANG)

    def _forget(self, process: RankProcess) -> None:
        for fd in (process.cells.fileno(), process.pidfd):
            self._watch(fd, _ignore, 0)
        for fd in process.pipes.values():
            self._let_go_of_pipe(fd)
        if self._ranks.get(process.rank) is process:
            del self._ranks[process.rank]
            self._keep_states(process)
        self._processes.discard(process)
        self._busy.discard(process)
        self._stops.forget(process)
        self._say_all(self._looks.forget(process))
        process.close()
        if not self._processes:
            self._end_orphans()
            self._forkserver.go_on()

    def _keep_states(self, process: RankProcess) -> None:
        if states := process.random_states.newest():
            self._random_states[process.rank] = states

    # -- the end ---------------------------------------------------------------------------------

    def _end_all(self) -> None:
        """Kill every rank and every descendant that is ours to reap, and wait for them."""
        for process in self._processes:
            process.signal(signal.SIGKILL, group=True)
        self._kernel.close()
        self._forkserver.close()
        deadline = time.monotonic() + _END_TIMEOUT_S
        while time.monotonic() < deadline and (living := children(os.getpid())):
            for pid in living:  # what escaped its process group came to us, the subreaper
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    pass  # it has just ended
            self._reap_all()
            select.select([], [], [], 0.005)

    def _reap_all(self) -> None:
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass  # there may be more
        except ChildProcessError:
            pass  # none is left


def _ignore(_: int) -> None:
    """For a descriptor that nobody waits for any more."""


if __name__ == "__main__":
    main()
