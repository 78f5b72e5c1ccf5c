"""sys.stdout and sys.stderr of a rank, and the C library's buffers behind fd 1."""

from __future__ import annotations

import ctypes
import fcntl
import functools
import io
import os
import select
import subprocess
import sys
import termios
import time
from collections.abc import Callable
from typing import Any, TextIO

from jupyter_ddp.core.journal import Journal
from jupyter_ddp.core.messages import Stream
from jupyter_ddp.worker.outbox import LINE_ENDS, Outbox

_IOLBF = 1
_C_BUFFER_BYTES = 8192
_READ_TIMEOUT_S = 0.5
_READ_STEP_S = 0.0005
_NOTHING = bytes(4)  # an int of 0
_CALM_WRITES = 200
"""After so many without anything from C code it is looked for at times only: the system calls of each print
took a quarter of a flood's lines a second."""
_CALM_LOOK_S = 0.001
_FDS = {"stdout": 1, "stderr": 2}


class _RawStream(io.RawIOBase):
    """Takes bytes for the outbox. `fileno` is the real descriptor, for subprocesses."""

    def __init__(self, stream: Stream, outbox: Outbox, others: PipeOutput) -> None:
        self._stream, self._outbox, self._others = stream, outbox, others

    @property
    def name(self) -> str:
        return f"<{self._stream}>"

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return _FDS[self._stream]

    def isatty(self) -> bool:
        return False

    def write(self, data: Any) -> int:
        piece = bytes(data)
        near = self._others.let_pass()
        self._outbox.write(self._stream, piece)
        if near and piece.endswith(LINE_ENDS):  # else the end of `print`'s line comes next
            self._outbox.flush()
        return len(piece)

    def flush(self) -> None:
        """`print(…, flush=True)` is on its way before what a child process writes next."""
        self._outbox.flush()

    def close(self) -> None:
        """A cell that closes sys.stdout closes nothing of ours."""


class _TextStream(io.TextIOWrapper):
    """Outlives the cells that close it or take it apart."""

    def close(self) -> None:
        self.flush()

    def detach(self) -> Any:
        raise io.UnsupportedOperation("a rank's own stream cannot be detached")


class PipeOutput:
    """What C code and child processes write to fd 1 and 2, which comes to the agent another way than prints.

    What was written there before a print is shown before it: the print waits until the agent has read it.
    And for some prints after something was written there, each line is sent when it is printed: what is
    written there next comes after.
    """

    def __init__(self, outbox: Outbox, journal: Journal) -> None:
        self._outbox, self._journal = outbox, journal
        self._near = False
        self._calm = 0  # writes since there was anything
        self._look_at = 0.0
        self._reads = 0
        self._pipes = {fd: _identity(fd) for fd in _FDS.values()}

    def begin(self) -> None:
        """A cell begins."""
        self._near, self._calm, self._reads = False, 0, self._journal.pipe_reads

    def let_pass(self) -> bool:
        """Before a print: let pass what was written before it. True where there was any a moment ago."""
        if self._calm >= _CALM_WRITES:
            now = time.monotonic()
            if now < self._look_at:
                return False
            self._look_at = now + _CALM_LOOK_S
        if self._is_unread(1) or self._is_unread(2):
            self._outbox.flush()  # printed before that
            self.wait_until_read()
        elif self._journal.pipe_reads == self._reads:
            self._calm += 1
            self._near &= self._calm < _CALM_WRITES
            return self._near
        self._near, self._calm, self._reads = True, 0, self._journal.pipe_reads
        return True

    def wait_until_read(self) -> None:
        """Until the agent has read what is in the pipes now; not for long."""
        deadline = time.monotonic() + _READ_TIMEOUT_S
        # A read takes all there is, and one may have been under way: what comes meanwhile is not waited for.
        enough = self._journal.pipe_reads + 2 * len(_FDS)
        for fd in _FDS.values():
            while self._is_unread(fd) and self._journal.pipe_reads < enough:
                if time.monotonic() > deadline:
                    return
                select.select([], [], [], _READ_STEP_S)

    def _is_unread(self, fd: int) -> bool:
        try:
            unread = fcntl.ioctl(fd, termios.FIONREAD, _NOTHING) != _NOTHING
            # A cell may have put something else there, which nobody reads.
            return unread and _identity(fd) == self._pipes[fd]
        except OSError:
            return False


def _identity(fd: int) -> tuple[int, int]:
    status = os.fstat(fd)
    return status.st_dev, status.st_ino


class Streams:
    """The rank's own two streams, put back before each cell."""

    def __init__(self, outbox: Outbox, journal: Journal) -> None:
        self._outbox, self._others = outbox, PipeOutput(outbox, journal)
        self._libc = ctypes.CDLL(None)
        self._c_buffers: list[ctypes.Array[ctypes.c_char]] = []  # C's for as long as the process lives
        for name in ("stdout", "stderr"):
            # C code's lines arrive while the cell runs, not when its buffer is full.
            # A buffer of ours: with PYTHONUNBUFFERED, CPython has left the library one of a single byte.
            buffer = ctypes.create_string_buffer(_C_BUFFER_BYTES)
            self._c_buffers.append(buffer)
            file = ctypes.c_void_p.in_dll(self._libc, name)
            self._libc.setvbuf(file, buffer, _IOLBF, ctypes.c_size_t(_C_BUFFER_BYTES))
        self.stdout = self._open("stdout")
        self.stderr = self._open("stderr")
        self._order_children()

    def _open(self, stream: Stream) -> TextIO:
        # write_through: each write goes to the outbox at once. backslashreplace: what cannot be
        # encoded (a lone surrogate) is shown, as on Python's own stderr, and stops no cell.
        return _TextStream(
            _RawStream(stream, self._outbox, self._others),  # serves as the buffer itself: no second copy
            encoding="utf-8",
            errors="backslashreplace",
            newline="\n",
            write_through=True,
        )

    def _order_children(self) -> None:
        """What the cell prints before and after a child process stands before and after its output."""
        for owner, name in ((subprocess.Popen, "__init__"), (subprocess.Popen, "wait"), (os, "system")):
            setattr(owner, name, self._ordered(getattr(owner, name)))
        os.register_at_fork(before=self._outbox.flush)

    def _ordered(self, call: Callable[..., Any]) -> Callable[..., Any]:
        outbox, others = self._outbox, self._others

        @functools.wraps(call)
        def ordered(*args: Any, **kwargs: Any) -> Any:
            outbox.flush()
            result = call(*args, **kwargs)
            others.wait_until_read()
            return result

        return ordered

    def begin_cell(self) -> None:
        self.install()
        self._others.begin()

    def install(self) -> None:
        """In place of whatever a cell has put there."""
        sys.stdout, sys.stderr = self.stdout, self.stderr

    def after_fork(self) -> None:
        """In a process that the user's code forked: fd 1 and 2, line by line, as Python has them."""
        for name, fd in _FDS.items():
            stream = open(  # noqa: SIM115  # lives as long as the process; a descriptor, no path
                fd, "w", buffering=1, encoding="utf-8", errors="backslashreplace", newline="\n", closefd=False
            )
            setattr(sys, name, stream)

    def flush_c(self) -> None:
        """What C code has printed and its library still holds goes to fd 1 and 2."""
        self._libc.fflush(None)
