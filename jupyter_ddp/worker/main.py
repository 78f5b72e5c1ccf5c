"""A rank's life: begin, form the group, run cells until told to end."""

from __future__ import annotations

import atexit
import ctypes
import faulthandler
import functools
import mmap
import os
import random
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import NoReturn, assert_never

import torch
import torch.distributed as dist

from jupyter_ddp.core import codec
from jupyter_ddp.core import messages as m
from jupyter_ddp.core.crash import CRASH_OFFSET_BYTES
from jupyter_ddp.core.journal import PAGE_BYTES, Journal
from jupyter_ddp.core.kept_states import SHARED_BYTES, KeptStates
from jupyter_ddp.worker.accelerator import Accelerator
from jupyter_ddp.worker.adoption import Adoption
from jupyter_ddp.worker.checked_collectives import CheckedCollectives, CollectiveMismatch
from jupyter_ddp.worker.collectives import Collectives
from jupyter_ddp.worker.control import ControlThread
from jupyter_ddp.worker.group import Group
from jupyter_ddp.worker.inheritance import Inheritance, introduced
from jupyter_ddp.worker.interrupts import InterruptGate
from jupyter_ddp.worker.late_imports import WithoutCollections
from jupyter_ddp.worker.outbox import Outbox
from jupyter_ddp.worker.partial_world import BROKEN, PartialWorlds, RefusedCollective
from jupyter_ddp.worker.random_states import RandomStates, peepholes
from jupyter_ddp.worker.shell import RankShell
from jupyter_ddp.worker.signal_handlers import SignalHandlers
from jupyter_ddp.worker.streams import Streams
from jupyter_ddp.worker.surroundings import apply_surroundings, torchrun_environ
from jupyter_ddp.worker.thread_cells import ThreadCells, cell_of_thread
from jupyter_ddp.worker.tracebacks import cell_line

_PR_SET_PDEATHSIG = 1
_REAP_S = 0.25


def prepare() -> None:
    """In the forkserver, before any rank exists: make the shell, whose memory all ranks then share.

    It has no threads: without history there is nothing that would start one. A first cell makes what
    IPython makes on first use.
    """
    shell = RankShell.instance(outbox=_Mute())
    shell.run(m.RunCell(m.NO_CELL, "None\n1\n"))
    shell.displayhook.flush()  # type: ignore[no-untyped-call]  # `_` and `Out` begin without a value
    # What it forgets: a `_` that is not the hidden one counts as the user's own, and is never set again.
    shell.user_ns_hidden.update({name: shell.user_ns[name] for name in ("_", "__", "___")})
    del shell.user_ns[f"_{m.NO_CELL}"]
    peepholes()


class _Mute:
    """An outbox where there is nobody to talk to."""

    def say(self, kind: type[m.FromRank], **fields: object) -> None: ...


def begin(cells_fd: int, control_fd: int, page_fd: int, agent_pid: int) -> None:
    """The entry of a freshly forked rank, with its ends of the agent's sockets and the shared page."""
    gate = InterruptGate()
    gate.install()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    handlers = SignalHandlers(gate)
    handlers.install()
    faulthandler.enable(file=2)
    _end_with(agent_pid)
    page = memoryview(mmap.mmap(page_fd, SHARED_BYTES))
    journal = Journal(page)
    os.lseek(page_fd, CRASH_OFFSET_BYTES, os.SEEK_SET)
    faulthandler.enable(file=page_fd)  # where the agent reads it: addresses are nothing to show
    for fd in (
        cells_fd,
        control_fd,
        page_fd,
    ):  # passed descriptors are inheritable: no business of a command's
        os.set_inheritable(fd, False)
    cells = socket.socket(fileno=cells_fd)
    control = socket.socket(fileno=control_fd)
    orders = _orders(cells)
    first = next(orders)
    assert isinstance(first, m.BeginWorker)
    outbox = Outbox(cells, journal, gate)
    worker = Worker(first, outbox, journal, gate, handlers, control, KeptStates(page[PAGE_BYTES:]))
    worker.serve(orders)


def _end_with(agent_pid: int) -> None:
    """Be killed when the agent ends, also while C code holds the GIL.

    The signal follows the parent: so first wait to be the agent's child, which happens when the
    short-lived process between it and us has ended.
    """
    deadline = time.monotonic() + 10
    while os.getppid() != agent_pid:
        if time.monotonic() > deadline:
            raise RuntimeError("the node agent did not become this rank's parent")
        select.select([], [], [], 0.0005)
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGKILL), 0, 0, 0)
    if os.getppid() != agent_pid:
        os._exit(1)


def _orders(cells: socket.socket) -> Iterator[m.NodeToRank]:
    """What the agent says, until it closes its end."""
    reader, buffer = codec.FrameReader(), bytearray(64 * 1024)
    # Who waits in recv() is woken also when the agent has read what this rank said, for nothing.
    waiting = select.poll()
    waiting.register(cells, select.POLLIN)
    while waiting.poll() and (length := cells.recv_into(buffer)):
        for body in reader.feed(memoryview(buffer)[:length]):
            yield codec.decode(codec.to_rank, body)


def _reap() -> None:
    """Commands that an interrupted `subprocess.run` has killed and not waited for: Python would do it when it
    next starts one. Not for long.
    """
    deadline = time.monotonic() + _REAP_S
    while getattr(subprocess, "_active", None) and time.monotonic() < deadline:
        subprocess._cleanup()  # type: ignore[attr-defined]  # private: Python's own way to reap them
        select.select([], [], [], 0.002)


class Worker:
    """One rank: its shell, its group, and the loop that serves the agent."""

    def __init__(
        self,
        begin: m.BeginWorker,
        outbox: Outbox,
        journal: Journal,
        gate: InterruptGate,
        handlers: SignalHandlers,
        control: socket.socket,
        kept: KeptStates,
    ) -> None:
        self._outbox, self._gate, self._handlers = outbox, gate, handlers
        self._surroundings = begin.surroundings
        outbox.rank = begin.place.rank
        apply_surroundings(begin.surroundings, begin.place)
        WithoutCollections.install()
        self._streams = Streams(outbox, journal)
        self._streams.install()
        self._group = Group(begin.surroundings)
        self._adoption = Adoption(self._group, lambda text: outbox.say(m.Notice, text=text))
        self._adoption.install()
        self._partial = PartialWorlds()
        self._shell = RankShell.instance()
        self._shell.outbox, self._shell.gate = outbox, gate
        is_cell_file = self._shell.is_cell_file
        self._checked = CheckedCollectives(self._group, self._note, is_cell_file)
        self._collectives = Collectives(is_cell_file)
        self._collectives.install()
        self._control = ControlThread(control, outbox, journal, self._group, is_cell_file, self._collectives)
        outbox.cell_of_thread = cell_of_thread
        ThreadCells(outbox).install()
        self._accelerator = Accelerator(begin.place.device)
        self._seed(begin.surroundings.seed + begin.place.rank)
        self._random = RandomStates(kept, seeded=True)
        if begin.random_states:
            self._random.restore(begin.random_states)
        self._random.keep()
        self._introduce(begin.place)
        self._note_exits()
        os.register_at_fork(after_in_child=self._after_fork)
        outbox.say(m.WorkerConnected, pid=os.getpid())

    def _note(self, text: str, holds: bool) -> None:
        self._outbox.say(m.Notice, text=text, withdrawn=not holds)

    def _seed(self, seed: int) -> None:
        """Forked ranks have the same generators' states: give each its own."""
        torch.default_generator.manual_seed(seed)
        torch.cuda.manual_seed_all(seed)  # takes effect when, and if, CUDA is initialised
        random.seed()
        if "numpy.random" in sys.modules:  # importing it later seeds it
            sys.modules["numpy.random"].seed()

    def _introduce(self, place: m.WorkerPlace) -> None:
        """The names that every rank has."""
        self._shell.user_ns.update(introduced(place))

    def _note_exits(self) -> None:
        """`os._exit()` tells nobody anything: note at least the line that it was called on."""
        real = os._exit

        @functools.wraps(real)
        def leave(status: int) -> NoReturn:
            if self._control.watcher.watching:
                self._control.watcher.note_line_of(sys._getframe(1))
            real(status)

        os._exit = leave

    def _after_fork(self) -> None:
        faulthandler.enable(file=2)
        self._gate.after_fork()
        self._outbox.after_fork()
        self._streams.after_fork()
        self._control.close_in_fork()

    def serve(self, orders: Iterator[m.NodeToRank]) -> None:
        for order in orders:
            match order:
                case m.RunCell():
                    self._run(order)
                case m.FormGroup():
                    self._form(order)
                case m.EndWorker():
                    break
                case m.BreakGroup():
                    # The control thread was told too, at once; here it comes before the cells behind it.
                    self._group.break_(order.generation)
                case m.Look() | m.BeginWorker():
                    pass  # the one comes to the control thread, the other came first of all
                case _:
                    assert_never(order)
        atexit._run_exitfuncs()
        self._outbox.flush()

    def _form(self, order: m.FormGroup) -> None:
        self._outbox.generation = order.generation
        self._adoption.restore()
        if order.place.world_size != self._group.world_size:
            os.environ.update(torchrun_environ(self._surroundings, order.place))
            self._introduce(order.place)
        whole = self._group.generation and not self._group.broken
        if whole and (self._collectives.unfinished or self._group.backend == "gloo"):
            # Torch would wait in its destructor for what was begun and is never to be finished.
            self._group.break_(self._group.generation)
        self._collectives.begin_generation()
        try:
            seconds = self._group.form(order)
            if order.replaced:
                self._inherit(order)
        except Exception as error:  # noqa: BLE001  # whatever torch raises is the reason, and is reported
            self._outbox.say(m.GroupFailed, reason=f"{type(error).__name__}: {error}")
        else:
            self._outbox.say(m.GroupFormed, seconds=seconds)
            self._group.forget_earlier()

    def _inherit(self, order: m.FormGroup) -> None:
        inheritance = Inheritance(self._shell, self._gate, self._random, self._surroundings)
        told = inheritance.settle(order, self._group.store)
        if told is not None:
            self._outbox.say(m.RankHealed, copied=told[0], lost=told[1])

    def _run(self, order: m.RunCell) -> None:
        self._outbox.begin_cell(order.cell)
        self._streams.begin_cell()
        self._control.watch(True)
        if self._handlers.untold:
            self._tell_handlers()
        started = time.monotonic()
        verdict, error = self._run_guarded(order)
        duration_s = time.monotonic() - started
        doomed = self._accelerator.doom(error) if error is not None else ""
        self._control.watch(False)
        self._adoption.restore()
        self._streams.install()
        self._streams.flush_c()
        counts, unfinished = self._collectives.report()
        if not doomed:  # asking it for its generator's state would raise
            self._random.keep()  # first: who is killed right after its end leaves the states of that end
        if self._handlers.untold:
            self._tell_handlers()
        self._outbox.say(
            m.CellFinished,
            verdict="error" if doomed else verdict,
            duration_s=duration_s,
            group_broken=self._group.broken,
            error=error,
            counts=counts,
            unfinished=unfinished,
            doomed=doomed,
        )

    def _tell_handlers(self) -> None:
        for text in self._handlers.take():
            self._outbox.say(m.Notice, text=text)

    def _run_guarded(self, order: m.RunCell) -> tuple[str, m.CellError | None]:
        error: m.CellError | None = None
        lost = self._group.broken  # in an earlier cell: who uses it still is told so, and is no one's victim
        try:
            error = self._run_checked(order) if order.checks else self._run_gated(order)
        except KeyboardInterrupt as stop:
            self._gate.close()  # it may have come just before that was done
            line = cell_line(stop.__traceback__, self._shell.is_cell_file)
            self._shell.forget_last_error()
            self._let_go(stop)
            return "interrupted", m.CellError("KeyboardInterrupt", "", line, [])
        except BaseException as failure:  # noqa: BLE001  # around the cell: its group, its signal handlers
            self._gate.close()
            error = self._shell.note_failure(failure)
        if error is None:
            return "ok", None
        if error.ename == "SystemExit":
            return self._exited(error)
        if not self._blames_peer(lost):
            return "error", error
        if lost:
            # On all ranks no cell is run where one is dead.
            why = BROKEN if order.members else "could not be formed again; %ddp restart starts anew"
            words = f"the process group {why}"
            text = [*error.traceback, words]
            return "error", m.CellError(error.ename, words, error.line, text)
        self._group.broken = True
        return "interrupted", error

    def _let_go(self, stop: KeyboardInterrupt) -> None:
        """Of what the cell was in the middle of, which its traceback holds: a DataLoader's workers, say.

        That may take long (torch waits 5 s for a worker that has not heard that it is to end), so here the
        next SIGINT is heard too.
        """
        try:
            self._gate.reopen()
            stop.__traceback__ = None
            self._gate.close()
        except KeyboardInterrupt:
            self._gate.close()
        _reap()

    def _blames_peer(self, lost: bool) -> bool:
        # Not where the cell is run from: that frame is in the exception's traceback, and a reference there
        # would keep both, and all that the cell's frames refer to, until the next garbage collection.
        raised = self._shell.raised
        refused = isinstance(raised, RefusedCollective | CollectiveMismatch)
        if raised is None or refused:
            return False
        return self._group.says_it_is_gone(raised) if lost else self._group.blames_peer(raised)

    def _run_gated(self, order: m.RunCell) -> m.CellError | None:
        self._gate.open()
        try:
            return self._run_members(order) if order.members else self._shell.run(order)
        finally:
            self._gate.close()

    def _run_checked(self, order: m.RunCell) -> m.CellError | None:
        members = order.members or range(self._group.world_size)
        with self._checked.during(order.cell, members):
            try:
                error = self._run_gated(order)
            finally:
                self._gate.close()  # nothing interrupts what `during` puts back
            self._checked.ended_well = error is None or error.ename == "SystemExit"
        return error

    def _run_members(self, order: m.RunCell) -> m.CellError | None:
        if not dist.is_initialized():
            return self._shell.run(order)
        broken = self._group.broken
        group = None if broken else self._partial.group(order.members, self._group.generation)
        self._shell.user_ns["group"] = group
        with self._partial.guarded(order.members, broken):
            return self._shell.run(order)

    def _exited(self, error: m.CellError) -> tuple[str, m.CellError | None]:
        """sys.exit() in a cell ends the cell. Code 0 or none is a good end, as for a script."""
        if error.evalue in ("", "0", "None"):
            self._outbox.say(m.Notice, text="sys.exit(): the cell ended there; the rank lives on")
            return "ok", None
        words = m.CellError(f"sys.exit({error.evalue})", "", error.line, [])
        return "error", words
