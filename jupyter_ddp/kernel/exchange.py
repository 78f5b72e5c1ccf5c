"""The one I/O thread: the sockets to the node agents, the pool's machine, and its clock.

Owns the sockets and feeds the pool. It never prints and never displays: what there is to tell goes to
the two callables that it is given, and they must be quick.
"""

from __future__ import annotations

import os
import select
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Protocol

from jupyter_ddp.core import codec
from jupyter_ddp.core import messages as m
from jupyter_ddp.core.events import Effect, Event, NodeLost, SendToNodes, Ticked
from jupyter_ddp.core.pool import Pool

_READ_BYTES = 1024 * 1024


class Link(Protocol):
    """A connected stream socket, or what behaves like one."""

    def fileno(self) -> int: ...
    def setblocking(self, flag: bool, /) -> None: ...
    def recv(self, size: int, /) -> bytes: ...
    def send(self, data: memoryview, /) -> int: ...


class Node(Protocol):
    """A node agent as a launcher gives it."""

    @property
    def link(self) -> Link: ...
    def obituary(self) -> str: ...
    def close(self) -> None: ...


class _Connection:
    def __init__(self, node_rank: int, node: Node) -> None:
        self.node_rank, self.node = node_rank, node
        self.reader, self.writer = codec.FrameReader(), codec.FrameWriter()
        self.lost = False


class Exchange:
    """Runs until closed. `post` and `close` may be called from any other thread."""

    def __init__(
        self,
        pool: Pool,
        nodes: list[Node],
        on_effect: Callable[[Effect], None],
        on_message: Callable[[m.NodeToKernel], None],
    ) -> None:
        self._pool, self._on_effect, self._on_message = pool, on_effect, on_message
        self._connections = {rank: _Connection(rank, node) for rank, node in enumerate(nodes)}
        self._events: deque[Event] = deque()
        self._wake_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._closing = False
        self._waking = threading.RLock()  # a signal handler may post in the midst of a post
        self.lost_reason = ""
        """Why a node agent is gone."""
        self._poll = select.poll()
        self._poll.register(self._wake_fd, select.POLLIN)
        self._by_fd: dict[int, _Connection] = {}
        for connection in self._connections.values():
            connection.node.link.setblocking(False)
            fd = connection.node.link.fileno()
            self._by_fd[fd] = connection
            self._poll.register(fd, select.POLLIN)
        self._thread = threading.Thread(target=self._serve, name="jupyter_ddp exchange", daemon=True)
        self._thread.start()

    # -- from other threads ----------------------------------------------------------------------

    def post(self, event: Event) -> None:
        """Have the pool handle an event."""
        self._events.append(event)
        self._wake()

    def _wake(self) -> None:
        with self._waking:
            if self._wake_fd >= 0:
                os.eventfd_write(self._wake_fd, 1)

    @property
    def lost(self) -> bool:
        """A node agent is gone: a new pool needs a new exchange."""
        return any(connection.lost for connection in self._connections.values())

    def close(self) -> None:
        """End the thread and the node agents."""
        if self._closing:
            return
        self._closing = True
        self._wake()
        self._thread.join(timeout=5)
        with self._waking:  # nobody writes to its number when it is somebody else's
            os.close(self._wake_fd)
            self._wake_fd = -1
        for connection in self._connections.values():
            connection.node.close()

    # -- the thread ------------------------------------------------------------------------------

    def _serve(self) -> None:
        try:
            self._loop()
        except Exception as error:  # noqa: BLE001  # a defect of ours must not leave anyone waiting for ever
            reason = f"the exchange with the ranks failed: {type(error).__name__}: {error}"
            for connection in self._connections.values():
                connection.lost = True
                self._handle(NodeLost(connection.node_rank, reason))

    def _loop(self) -> None:
        while not self._closing:
            for fd, _ in self._poll.poll(self._timeout_ms()):
                if fd == self._wake_fd:
                    os.eventfd_read(self._wake_fd)
                else:
                    self._read(self._by_fd[fd])
            while self._events:
                self._handle(self._events.popleft())
            deadline = self._pool.next_deadline
            if deadline is not None and time.monotonic() >= deadline:
                self._handle(Ticked())
            for connection in self._connections.values():
                self._flush(connection)

    def _timeout_ms(self) -> float | None:
        deadline = self._pool.next_deadline
        return None if deadline is None else max(0.0, (deadline - time.monotonic()) * 1000 + 1)

    def _handle(self, event: Event) -> None:
        for effect in self._pool.handle(event, time.monotonic()):
            if isinstance(effect, SendToNodes):
                self._send(effect)
            else:
                self._on_effect(effect)

    def _send(self, effect: SendToNodes) -> None:
        """To each node that has one of the ranks. (One node per pool, so far: all are on the first.)"""
        self._connections[0].writer.push(codec.encode(effect.message))

    def _flush(self, connection: _Connection) -> None:
        if connection.lost:
            return
        waiting = connection.writer.waiting_bytes
        try:
            done = connection.writer.flush(connection.node.link.send)
        except OSError:
            self._lose(connection)
            return
        if waiting:
            self._poll.modify(connection.node.link.fileno(), select.POLLIN | (0 if done else select.POLLOUT))

    def _read(self, connection: _Connection) -> None:
        try:
            data = connection.node.link.recv(_READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._lose(connection)
            return
        try:
            for body in connection.reader.feed(data):
                self._take(codec.decode(codec.from_node, body))
        except codec.CorruptStream:
            self._lose(connection)

    def _take(self, message: m.NodeToKernel) -> None:
        self._on_message(message)
        if isinstance(message, Event):
            self._handle(message)

    def _lose(self, connection: _Connection) -> None:
        if connection.lost:
            return
        connection.lost = True
        self._poll.unregister(connection.node.link.fileno())
        self.lost_reason = connection.node.obituary()
        self._handle(NodeLost(connection.node_rank, self.lost_reason))
