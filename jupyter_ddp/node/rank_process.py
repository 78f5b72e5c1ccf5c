"""One rank as its agent has it: process, sockets, pipes and the shared page.

Owns the rank's descriptors and its reaping. Signals go through the pidfd, so they cannot hit another
process that got the same number.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator

from jupyter_ddp.core import codec
from jupyter_ddp.core import messages as m
from jupyter_ddp.core.crash import CRASH_BYTES, CRASH_OFFSET_BYTES, line_of_crash, words_of_crash
from jupyter_ddp.core.journal import PAGE_BYTES, Journal
from jupyter_ddp.core.kept_states import SHARED_BYTES, KeptStates
from jupyter_ddp.node.linux import oom_kills, process_state

_READ_BYTES = 256 * 1024
_STDERR_BYTES = 4 * 1024
_MAX_READS = 64
_MAX_REASON_CHARS = 200
_STREAMS: tuple[m.Stream, m.Stream] = ("stdout", "stderr")


class RankProcess:
    """The descriptors exist before the process does: its first message waits in the socket."""

    def __init__(
        self, place: m.WorkerPlace, visible_devices: str | None = None, read_buffer: bytearray | None = None
    ) -> None:
        self.rank, self.device = place.rank, place.device
        self.visible_devices = visible_devices
        """The rank's CUDA_VISIBLE_DEVICES, which its device's number counts in."""
        self._read_view = memoryview(bytearray(_READ_BYTES) if read_buffer is None else read_buffer)
        self.pid = 0
        self.pidfd = -1
        self.cell = m.NO_CELL
        self.torn = ""
        """What is wrong with what it sends, which it is killed for."""
        self._doomed = False  # an order to kill it came before it was born
        self.ended: set[m.Stream] = set()
        """Pipes that nothing more will come from."""
        self.cells, self._their_cells = socket.socketpair()
        self.control, self._their_control = socket.socketpair()
        self.pipes = dict.fromkeys(_STREAMS, -1)
        self._their_pipes: list[int] = []
        for stream in _STREAMS:
            self.pipes[stream], theirs = os.pipe()
            os.set_blocking(self.pipes[stream], False)
            self._their_pipes.append(theirs)
        self._page_fd = os.memfd_create(f"jupyter_ddp rank {self.rank}")
        os.ftruncate(self._page_fd, CRASH_OFFSET_BYTES + CRASH_BYTES)
        self._page = mmap.mmap(self._page_fd, SHARED_BYTES)
        self._crash = mmap.mmap(self._page_fd, CRASH_BYTES, offset=CRASH_OFFSET_BYTES)
        self.journal = Journal(memoryview(self._page))
        self.random_states = KeptStates(memoryview(self._page)[PAGE_BYTES:])
        self.cells.setblocking(False)
        self.control.setblocking(False)
        self.writer = codec.FrameWriter()
        self._reader = codec.FrameReader()
        self._sent_bytes = 0  # of output, as the rank counts
        self._next_seq = 0
        self._generation = 0
        self._fd_seq = 0
        self._stderr = b""
        self._oom_kills = oom_kills()

    # -- birth -----------------------------------------------------------------------------------

    def their_fds(self) -> list[int]:
        """What the process inherits, in the forkserver's order."""
        return [self._their_cells.fileno(), self._their_control.fileno(), *self._their_pipes, self._page_fd]

    def passed(self) -> None:
        """The descriptors are with the forkserver; ours are closed, so that an end of file is one."""
        self._their_cells.close()
        self._their_control.close()
        for fd in (*self._their_pipes, self._page_fd):
            os.close(fd)
        self._their_pipes, self._page_fd = [], -1

    def born(self, pid: int) -> None:
        """It exists: a child of ours, which nobody else reaps."""
        self.pid, self.pidfd = pid, os.pidfd_open(pid)
        if self._doomed:
            self.signal(signal.SIGKILL, group=True)

    # -- talking ---------------------------------------------------------------------------------

    def tell(self, frame: bytes) -> bool:
        """Queue a frame for the rank's main thread and send what goes; True when all went."""
        try:
            return self.writer.write(frame, self.cells.send)
        except ConnectionError:
            return True  # it ended; its pidfd tells

    def flush(self) -> bool:
        """Send what waits; True when all went."""
        try:
            return self.writer.flush(self.cells.send)
        except ConnectionError:
            return True  # it ended; its pidfd tells

    def tell_control(self, frame: bytes) -> None:
        """Reach the rank's control thread, whatever its main thread does."""
        try:
            self.control.send(frame)
        except (BlockingIOError, ConnectionError):
            pass  # it ended, or holds the GIL and has thousands of commands waiting already

    def receive(self) -> memoryview | None:
        """What the rank has sent, until the next call; None when there is nothing now, empty when no
        more will come."""
        try:
            return self._read_view[: self.cells.recv_into(self._read_view)]
        except BlockingIOError:
            return None
        except ConnectionError:
            return self._read_view[:0]

    def messages(self, data: bytes | memoryview) -> Iterator[tuple[m.RankMessage, bytes]]:
        """The messages that `data` completes, each with its body. Raises CorruptStream for what is none."""
        for body in self._reader.feed(data):
            message = codec.decode(codec.from_rank, body)
            if message.rank != self.rank:
                raise codec.CorruptStream(f"it speaks as rank {message.rank}")
            self._next_seq, self._generation = message.seq + 1, message.generation
            if isinstance(message, m.Output):
                self._sent_bytes = message.offset + len(message.data)
            yield message, body

    def drain(self) -> Iterator[m.FdOutput]:
        """What C code and subprocesses have written to fd 1 and 2 so far."""
        for stream in _STREAMS:
            yield from self.drain_one(stream)

    def drain_one(self, stream: m.Stream, max_reads: int = _MAX_READS) -> Iterator[m.FdOutput]:
        """One pipe's content. A child that never stops writing does not keep us here."""
        for _ in range(max_reads):
            try:
                data = os.read(self.pipes[stream], _READ_BYTES)
            except BlockingIOError:
                return
            if not data:  # nobody holds the other end any more
                self.ended.add(stream)
                return
            self.journal.note_pipe_read()
            if stream == "stderr":
                self._stderr = (self._stderr + data)[-_STDERR_BYTES:]
            seq, self._fd_seq = self._fd_seq, self._fd_seq + 1
            yield m.FdOutput(self.rank, self.cell, seq, stream, data)

    @property
    def line(self) -> int:
        """The running cell's line that the rank was last seen on."""
        return self.journal.line

    def unseen(self, look: int) -> m.RankUnseen:
        """What is known of a rank that does not say itself what it does."""
        seen_ns = self.journal.seen_ns
        return m.RankUnseen(
            rank=self.rank,
            look=look,
            cell=self.cell,
            line=self.journal.line,
            state=process_state(self.pid) if self.pid else "",
            silent_s=max(0.0, time.monotonic() - seen_ns / 1e9) if seen_ns else 0.0,
        )

    # -- death -----------------------------------------------------------------------------------

    def signal(self, number: int, group: bool) -> None:
        """Signal the rank's process, and with `group` all that it started in its process group."""
        if self.pidfd < 0:
            self._doomed |= number == signal.SIGKILL
            return
        try:
            if group:
                os.killpg(self.pid, number)
            signal.pidfd_send_signal(self.pidfd, number)
        except (ProcessLookupError, PermissionError):
            pass  # it has just ended

    def reap(self, say: Callable[[m.FdOutput | m.Output | bytes], None], busy: bool) -> m.WorkerExited | None:
        """The process has ended: give all it wrote to `say`, then the facts. None if it is not so.

        `busy`: a cell ran on it.
        """
        try:
            os.killpg(self.pid, signal.SIGKILL)  # before the reaping, while the number is still its own
        except (ProcessLookupError, PermissionError):
            pass  # nothing of its group is left
        pid, status = os.waitpid(self.pid, os.WNOHANG)
        if not pid:
            return None
        self._last_words(say)
        dump = self._crash[:].rstrip(b"\0").decode("utf-8", "replace")
        stderr = self._stderr.decode("utf-8", "replace").strip()
        words = words_of_crash(dump, self.cell)
        if self.torn:
            why = self.torn[:_MAX_REASON_CHARS]
            words = f"rank {self.rank} was killed: what it sends is no message of its own ({why})\n"
        if words:
            say(m.FdOutput(self.rank, self.cell, self._fd_seq, "stderr", words.encode()))
            stderr = f"{stderr}\n{words}".strip()
        return m.WorkerExited(
            rank=self.rank,
            pid=self.pid,
            status=status,
            cell=self.cell if busy else m.NO_CELL,
            line=(line_of_crash(dump, self.cell) or self.journal.line) if busy else 0,
            stderr=stderr,
            oom_kills=max(0, oom_kills() - self._oom_kills),
        )

    def _last_words(self, say: Callable[[m.FdOutput | m.Output | bytes], None]) -> None:
        """What it had sent, what it had written to its pipes, and what it had not sent yet."""
        with contextlib.suppress(codec.CorruptStream):  # it was killed for that
            while data := self.receive():
                for _, body in self.messages(data):
                    say(codec.frame(body))
        for output in self.drain():
            say(output)
        waiting = self.journal.waiting()
        unsent = waiting[max(0, self._sent_bytes - self.journal.offset) :]
        if unsent:
            journal = self.journal
            say(
                m.Output(
                    rank=self.rank,
                    generation=self._generation,
                    cell=journal.cell,
                    seq=self._next_seq,
                    stream=journal.stream,
                    offset=self._sent_bytes,
                    data=unsent,
                )
            )

    def close(self) -> None:
        """Let go of every descriptor."""
        if self._their_pipes:
            self.passed()
        self.cells.close()
        self.control.close()
        for fd in self.pipes.values():
            os.close(fd)
        if self.pidfd >= 0:
            os.close(self.pidfd)
        self.journal.release()
        self.random_states.release()
        self._page.close()
        self._crash.close()
