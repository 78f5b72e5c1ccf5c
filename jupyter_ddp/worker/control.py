"""The rank's second thread: reachable while the main thread is busy or blocked.

Flushes output that waits, has the main thread watched, answers who asks what the rank does, and breaks the
process group when told.
"""

from __future__ import annotations

import os
import select
import socket
import threading
from collections.abc import Callable
from typing import Any, Protocol

from jupyter_ddp.core import codec
from jupyter_ddp.core import messages as m
from jupyter_ddp.core.journal import Journal
from jupyter_ddp.worker.outbox import FLUSH_INTERVAL_S, Outbox
from jupyter_ddp.worker.watcher import Calls, Watcher

WATCH_INTERVAL_S = 0.25
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
        calls: Calls | None = None,
    ) -> None:
        self._link, self._outbox, self._group = link, outbox, group
        self.watcher = Watcher(outbox, journal, is_cell_file, calls)
        self.watch = self.watcher.watch
        self._wake_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        outbox.wake = self._wake
        self._thread = threading.Thread(target=self._serve, name="jupyter_ddp control", daemon=True)
        self._thread.start()

    def _wake(self) -> None:
        os.eventfd_write(self._wake_fd, 1)

    def _serve(self) -> None:
        reader = codec.FrameReader()
        watched: list[Any] = [self._link, self._wake_fd]
        self._watch(self.watcher.tick)  # a cell may come, and hold the GIL, before the first pause is over
        while True:
            # Also between cells: waking this thread at each cell's start would cost every cell.
            pause_s = _BREAK_INTERVAL_S if self._group.stuck else WATCH_INTERVAL_S
            readable = select.select(watched, [], [], pause_s)[0]
            if self._group.stuck:
                self._group.break_again()
            self._watch(self.watcher.tick)
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
                    elif isinstance(command, m.Look):
                        self._watch(self.watcher.answer, command)

    def _watch(self, act: Callable[..., None], *args: Any) -> None:
        try:
            act(*args)
        except Exception:  # noqa: BLE001  # frames and groups change under us; without this thread nobody is freed
            self.watcher.forget()

    def close_in_fork(self) -> None:
        """A process that the user's code forked has no business on this socket, or the rank's page."""
        self.watcher.watch(False)
        self._link.close()
        os.close(self._wake_fd)
