"""Everything a rank says, on one ordered socket; what it prints waits in the shared page first.

Owns the rank's end of the socket to its agent and the rank's sequence numbers. Output is sent by the
thread that printed it, or by the control thread 20 ms later; what was not sent when the process is
killed is still in the page, where the agent reads it.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from threading import get_ident
from typing import Any

from jupyter_ddp.core import codec
from jupyter_ddp.core import messages as m
from jupyter_ddp.core.journal import Journal
from jupyter_ddp.worker.interrupts import InterruptGate

FLUSH_INTERVAL_S = 0.02
_PIECE_BYTES = 1024 * 1024
LINE_ENDS = (b"\n", b"\r")


class Outbox:
    """Says things for a rank. Safe from any thread."""

    def __init__(self, link: socket.socket, journal: Journal, gate: InterruptGate) -> None:
        self._link, self._journal, self._gate = link, journal, gate
        self._lock = threading.RLock()
        self._main = get_ident()
        self._seq = 0
        self._last_flush = 0.0
        self._armed = False
        self._forked = False
        self._acting = False
        self._later: deque[tuple[Callable[..., None], tuple[Any, ...]]] = deque()
        self.rank = 0
        self.generation = 0
        self.cell = m.NO_CELL
        self.wake: Callable[[], None] = lambda: None
        """Asks the control thread to call `flush` in FLUSH_INTERVAL_S."""
        self.cell_of_thread: Callable[[int], int | None] = lambda ident: None
        """The cell that a thread belongs to, if to one; not asked of the main thread."""

    def begin_cell(self, cell: int) -> None:
        """What is said from now on belongs to this cell. Its first line is sent at once, however soon after
        an earlier cell's output it comes: C code that holds the GIL may follow it.
        """
        self.cell, self._last_flush = cell, 0.0

    @property
    def own_cell(self) -> int:
        """The cell that what this thread says belongs to."""
        ident = get_ident()
        if ident == self._main:
            return self.cell
        cell = self.cell_of_thread(ident)
        return self.cell if cell is None else cell

    # -- output ----------------------------------------------------------------------------------

    def write(self, stream: m.Stream, data: bytes) -> None:
        """Bytes for sys.stdout or sys.stderr."""
        if self._forked:
            os.write(1 if stream == "stdout" else 2, data)
        else:
            self._exclusively(self._write, stream, data, self.own_cell)

    def _write(self, stream: m.Stream, data: bytes, cell: int) -> None:
        self._keep(stream, data, cell)
        now = time.monotonic()
        # `print` writes a text and its line's end one after the other: nothing of C code's comes between.
        if data.endswith(LINE_ENDS) and now - self._last_flush > FLUSH_INTERVAL_S:
            self._send_waiting(now)
        elif not self._armed:
            self._armed = True
            self.wake()

    def _exclusively(self, act: Callable[..., None], *args: Any) -> None:
        """One at a time, and whole: an interrupt waits, and so does who speaks in the midst of it.

        A signal handler or a finalizer of the user's may print while this thread is sending: what it
        has to say comes after.
        """
        mine = get_ident() == self._main
        if mine:
            self._gate.shields += 1
        try:
            with self._lock:
                if self._acting:
                    self._later.append((act, args))
                    return
                self._acting = True
                try:
                    act(*args)
                    while self._later:
                        act, args = self._later.popleft()
                        act(*args)
                finally:
                    self._acting = False
        finally:
            if mine:
                self._gate.unshield()

    def _keep(self, stream: m.Stream, data: bytes, cell: int) -> None:
        journal = self._journal
        if stream != journal.stream or cell != journal.cell or self.generation != journal.generation:
            self._send_waiting(self._last_flush)
            journal.begin(stream, self.generation, cell)
        if journal.append(data):
            return
        self._send_waiting(self._last_flush)
        if journal.append(data):
            return
        for at in range(0, len(data), _PIECE_BYTES):
            piece = data[at : at + _PIECE_BYTES]
            fields = {"stream": stream, "offset": journal.offset, "data": piece}
            self._send_as(m.Output, self.generation, cell, fields)
            journal.mark_sent(extra_bytes=len(piece))

    def flush(self) -> None:
        """Send what waits in the page."""
        if not self._forked:
            self._exclusively(self._flush)

    def _flush(self) -> None:
        self._armed = False
        self._send_waiting(time.monotonic())

    def _send_waiting(self, now: float) -> None:
        journal = self._journal
        if journal.has_waiting:
            data = journal.waiting()
            # The page may still hold the cell before: it says itself where its bytes belong.
            self._send_as(
                m.Output,
                journal.generation,
                journal.cell,
                {"stream": journal.stream, "offset": journal.offset, "data": data},
            )
            journal.mark_sent()
        self._last_flush = now

    # -- messages --------------------------------------------------------------------------------

    def say(self, kind: type[m.FromRank], **fields: Any) -> None:
        """Send a message of this kind, behind all output so far. ValueError: it is too large."""
        if not self._forked:
            self._exclusively(self._say, kind, fields, self.own_cell)

    def _say(self, kind: type[m.FromRank], fields: dict[str, Any], cell: int) -> None:
        if self._journal.has_waiting:
            self._send_waiting(time.monotonic())
        self._send_as(kind, self.generation, cell, fields)

    def say_aside(self, kind: type[m.FromRank], **fields: Any) -> None:
        """Send a message that is no part of any cell's record: it takes no number."""
        if not self._forked:
            self._exclusively(self._say_aside, kind, fields)

    def _say_aside(self, kind: type[m.FromRank], fields: dict[str, Any]) -> None:
        if self._journal.has_waiting:
            self._send_waiting(time.monotonic())
        seq = self._seq
        self._seq = max(0, seq - 1)
        try:
            self._send_as(kind, self.generation, self.cell, fields)
        finally:
            self._seq = seq

    def _send_as(self, kind: type[m.FromRank], generation: int, cell: int, fields: dict[str, Any]) -> None:
        # What comes late, for an earlier cell, takes no number: this cell's record counts what it misses.
        late = cell != self.cell
        seq = max(0, self._seq - 1) if late else self._seq
        message = kind(self.rank, generation, cell, seq, **fields)
        try:
            self._link.sendall(codec.encode(message))
        except ConnectionError:
            os._exit(1)  # the agent is gone, and nobody is left to serve
        if not late:
            self._seq += 1

    # -- forks -----------------------------------------------------------------------------------

    def after_fork(self) -> None:
        """In a process that the user's code forked: it prints through fd 1 and 2, and says nothing."""
        self._forked = True
        self._link.close()
