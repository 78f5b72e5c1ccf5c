"""A rank without torch, for tests of the agent: the real outbox and control thread, and `exec` as its shell.

The agent's forkserver imports this module and calls `begin` in each rank that it forks.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

from jupyter_ddp.core import codec
from jupyter_ddp.core import messages as m
from jupyter_ddp.core.journal import PAGE_BYTES, Journal
from jupyter_ddp.worker.control import ControlThread
from jupyter_ddp.worker.interrupts import InterruptGate
from jupyter_ddp.worker.outbox import Outbox

# The forkserver imports these when it is idle. What is None here cannot be imported, which it takes well.
sys.modules.update(dict.fromkeys(("torch", "sympy", "stack_data", "pygments", "matplotlib_inline")))  # type: ignore[arg-type]


PR_SET_PDEATHSIG = 1


class NoGroup:
    """A process group that cannot be broken."""

    stuck = False

    def break_(self, generation: int) -> None:
        pass

    def break_again(self) -> None:
        pass


def begin(cells_fd: int, control_fd: int, page_fd: int, agent_pid: int) -> None:
    """As the real worker begins."""
    gate = InterruptGate()
    gate.install()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    deadline = time.monotonic() + 10
    while os.getppid() != agent_pid:
        assert time.monotonic() < deadline
        select.select([], [], [], 0.0005)
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGKILL), 0, 0, 0)
    if os.getppid() != agent_pid:
        os._exit(1)
    journal = Journal(memoryview(mmap.mmap(page_fd, PAGE_BYTES)))
    os.close(page_fd)
    cells = socket.socket(fileno=cells_fd)
    orders = _orders(cells)
    first = next(orders)
    assert isinstance(first, m.BeginWorker)
    outbox = Outbox(cells, journal, gate)
    outbox.rank = first.place.rank
    _control = ControlThread(socket.socket(fileno=control_fd), outbox, journal, NoGroup(), lambda _: False)
    namespace: dict[str, Any] = {"outbox": outbox, "cells": cells, "m": m}
    exec(first.surroundings.run_id, namespace)  # what a test wants of a rank before it connects
    outbox.say(m.WorkerConnected, pid=os.getpid())
    _serve(orders, outbox, gate, namespace)
    outbox.flush()


def _orders(cells: socket.socket) -> Iterator[m.NodeToRank]:
    reader = codec.FrameReader()
    while data := cells.recv(1024 * 1024):
        for body in reader.feed(data):
            yield codec.decode(codec.to_rank, body)


def _serve(
    orders: Iterator[m.NodeToRank], outbox: Outbox, gate: InterruptGate, namespace: dict[str, Any]
) -> None:
    for order in orders:
        if isinstance(order, m.FormGroup):
            outbox.generation = order.generation
            outbox.say(m.GroupFormed, seconds=0.0)
        elif isinstance(order, m.RunCell):
            outbox.begin_cell(order.cell)
            namespace["after"] = lambda: None
            verdict = _run(order.source, gate, namespace)
            outbox.say(m.CellFinished, verdict=verdict, duration_s=0.0)
            after: Callable[[], None] = namespace["after"]
            after()  # what a test wants of a rank that has said its last word
        elif isinstance(order, m.BreakGroup):
            outbox.write("stdout", b"told to break the group\n")
        elif isinstance(order, m.EndWorker):
            return


def _run(source: str, gate: InterruptGate, namespace: dict[str, Any]) -> str:
    try:
        gate.open()
        try:
            exec(source, namespace)
        finally:
            gate.close()
    except KeyboardInterrupt:
        gate.close()
        return "interrupted"
    except Exception as error:  # noqa: BLE001  # a cell may raise anything
        outbox: Outbox = namespace["outbox"]
        outbox.write("stderr", repr(error).encode())
        return "error"
    return "ok"
