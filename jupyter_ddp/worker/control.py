"""The rank's second thread: reachable while the main thread is busy or blocked.

Flushes output that waits, notes the line the cell is on, and breaks the process group when told.
"""

from __future__ import annotations

import os
import select
import socket
import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any, Protocol

from jupyter_ddp.core import codec
from jupyter_ddp.core import messages as m
from jupyter_ddp.core.journal import Journal
from jupyter_ddp.worker.outbox import FLUSH_INTERVAL_S, Outbox

LINE_INTERVAL_S = 0.25
_BREAK_INTERVAL_S = 0.02
"""Between attempts to free a rank that is stuck in forming a group."""


class Breakable(Protocol):
    """What the control thread needs of the process group."""

    def break_(self, generation: int) -> None: ...
    @property
    def stuck(self) -> bool: ...
    def break_again(self) -> None: ...


class ControlThread:
    """Runs until the agent closes its end of the control socket."""

    def __init__(
        self,
        link: socket.socket,
        outbox: Outbox,
        journal: Journal,
        group: Breakable,
        is_cell_file: Callable[[str], bool],
    ) -> None:
        self._link, self._outbox, self._journal, self._group = link, outbox, journal, group
        self._is_cell_file = is_cell_file
        self._wake_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._main = threading.main_thread().ident
        self.watching = False
        """A cell runs: its line is noted in the page."""
        outbox.wake = self._wake
        self._thread = threading.Thread(target=self._serve, name="jupyter_ddp control", daemon=True)
        self._thread.start()

    def _wake(self) -> None:
        os.eventfd_write(self._wake_fd, 1)

    def watch(self, on: bool) -> None:
        """Note the running cell's line from now on, or stop to."""
        self.watching = on
        if on:
            self._journal.line = 0

    def _serve(self) -> None:
        reader = codec.FrameReader()
        watched: list[Any] = [self._link, self._wake_fd]
        while True:
            # Also between cells: waking this thread at each cell's start would cost every cell.
            pause_s = _BREAK_INTERVAL_S if self._group.stuck else LINE_INTERVAL_S
            readable = select.select(watched, [], [], pause_s)[0]
            if self._group.stuck:
                self._group.break_again()
            if self.watching:
                self._note_line()
            if self._wake_fd in readable:
                os.eventfd_read(self._wake_fd)
                select.select([], [], [], FLUSH_INTERVAL_S)
                self._outbox.flush()
            if self._link in readable:
                data = self._link.recv(65536)
                if not data:
                    return
                for body in reader.feed(data):
                    command = codec.decode(codec.to_rank, body)
                    if isinstance(command, m.BreakGroup):
                        self._group.break_(command.generation)

    def _note_line(self) -> None:
        self.note_line_of(sys._current_frames().get(self._main or 0))

    def note_line_of(self, frame: FrameType | None) -> None:
        """The cell's line that this frame was called from is where the rank is now."""
        while frame is not None:
            if self._is_cell_file(frame.f_code.co_filename):
                self._journal.line = frame.f_lineno or 0
                return
            frame = frame.f_back

    def close_in_fork(self) -> None:
        """A process that the user's code forked has no business on this socket, or the rank's page."""
        self.watching = False
        self._link.close()
        os.close(self._wake_fd)
