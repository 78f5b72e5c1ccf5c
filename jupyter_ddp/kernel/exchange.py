"""The sockets to the node agents, the pool's machine, and its clock, served by one thread at a time.

Owns the sockets and feeds the pool. A thread of its own serves them, so that the pool is looked after
whatever the notebook does; a thread that waits for a cell serves them itself meanwhile, and one that
posts an event handles it on the spot, since every hand-over between threads costs a short cell a tenth
of its time. It never prints and never displays: what there is to tell goes to the two callables that
it is given, and they must be quick.
"""

from __future__ import annotations

import os
import select
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from threading import get_ident
from typing import Protocol, TypeVar, get_args

from jupyter_ddp.core import codec
from jupyter_ddp.core import messages as m
from jupyter_ddp.core.events import Effect, Event, NodeLost, SendToNodes, Ticked
from jupyter_ddp.core.pool import Pool

_READ_BYTES = 256 * 1024
T = TypeVar("T")
_EVENTS = frozenset(get_args(Event))  # one look-up, where isinstance would compare with each


class Link(Protocol):
    """A connected stream socket, or what behaves like one."""

    def fileno(self) -> int: ...
    def setblocking(self, flag: bool, /) -> None: ...
    def recv_into(self, buffer: bytearray, /) -> int: ...
    def send(self, data: memoryview, /) -> int: ...


class Node(Protocol):
    """A node agent as a launcher gives it."""

    @property
    def link(self) -> Link: ...
    def obituary(self) -> str: ...
    def end_strays(self) -> None: ...
    def close(self) -> None: ...


class _Connection:
    def __init__(self, node_rank: int, node: Node) -> None:
        self.node_rank, self.node = node_rank, node
        self.reader, self.writer = codec.FrameReader(), codec.FrameWriter()
        self.lost = False
        self.interest = select.EPOLLIN
        """What the exchange's own thread waits for on this link."""


class Exchange:
    """Runs until closed. All its public methods may be called from any other thread."""

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
        self._serving = threading.Lock()
        """Held while the pool and the connections change."""
        self._leading = threading.Lock()
        self._leader = 0
        """The thread that reads the links while it is in `wait`; 0: the exchange's own does."""
        self._closing = False
        self._waking = threading.RLock()  # a signal handler may post in the midst of a post
        self._watches: list[tuple[Callable[[], bool], threading.Event]] = []
        """Conditions of the pool that somebody waits for, and what is set when they hold."""
        self.lost_reason = ""
        """Why a node agent is gone."""
        self._wake_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._wake_leader_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._own_poll, self._leader_poll = select.epoll(), select.poll()
        self._own_poll.register(self._wake_fd, select.EPOLLIN)
        self._leader_poll.register(self._wake_leader_fd, select.POLLIN)
        self._by_fd: dict[int, _Connection] = {}
        self._read_buffer = bytearray(_READ_BYTES)
        for connection in self._connections.values():
            connection.node.link.setblocking(False)
            fd = connection.node.link.fileno()
            self._by_fd[fd] = connection
            self._own_poll.register(fd, connection.interest)
            self._leader_poll.register(fd, select.POLLIN)
        self._thread = threading.Thread(target=self._serve, name="jupyter_ddp exchange", daemon=True)
        self._thread.start()

    # -- from other threads ----------------------------------------------------------------------

    def post(self, event: Event) -> None:
        """Have the pool handle an event soon. Also for a signal handler: it takes none of our locks."""
        self._events.append(event)
        self._wake()

    def submit(self, event: Event) -> None:
        """Have the pool handle an event before this returns. Once closed, nothing is done."""
        before = self._pool.next_deadline
        with self._serving:
            if self._closing:
                return
            self._events.append(event)
            self._settle()
        if self._pool.next_deadline != before:
            self._wake()

    def order(self, event: Event, meanwhile: Callable[[], None]) -> None:
        """`submit`, for a thread that waits for the answer next: what comes is read when it does.

        Else the exchange's own thread might wake for an answer that is sooner there than this one waits,
        and the two would hinder each other. `meanwhile` is called when all was sent that comes of the
        event, and nothing read yet. Once closed, nothing is done. The caller ends with `rest`.
        """
        before = self._pool.next_deadline
        with self._serving:
            if self._closing:
                return
            self._events.append(event)
            self._settle()
            if self._leading.acquire(blocking=False):  # behind the sending: no answer can be there so soon
                self._hand_links_to(get_ident())
            meanwhile()
        if self._pool.next_deadline != before:
            self._wake()

    def rest(self) -> None:
        """Leave the links to the exchange's own thread, if this one reads them."""
        if self._leader == get_ident():
            with self._serving:
                self._hand_links_to(0)
            self._leading.release()
            if self._pool.next_deadline is not None:
                self._wake()

    def tell_nodes(self, message: m.KernelToNode) -> None:
        """Send what is no business of the pool's to every node."""
        with self._serving:
            if self._closing:
                return
            for connection in self._connections.values():
                connection.writer.push(codec.encode(message))
            self._settle()

    def wait(self, event: threading.Event, timeout_s: float) -> bool:
        """Wait for what this exchange will set, serving the links meanwhile; True when it is set."""
        if self._leader != get_ident():
            if event.is_set() or self._closing or not self._leading.acquire(blocking=False):
                return event.wait(timeout_s)
            with self._serving:
                self._hand_links_to(get_ident())
        try:
            end = time.monotonic() + timeout_s
            while not (event.is_set() or self._closing) and (left := end - time.monotonic()) > 0:
                self._round(self._leader_poll.poll(1000 * min(left, self._timeout_s(left))))
        finally:
            self.rest()
        return event.is_set()

    def wait_until(self, holds: Callable[[], bool], timeout_s: float) -> bool:
        """Wait until something holds of the pool, or this is closed; True when that is so.

        `holds` is asked after each round of events, on whatever thread handles them.
        """
        watch = (holds, threading.Event())
        with self._serving:
            if self._closing or holds():
                return True
            self._watches.append(watch)
        try:
            return self.wait(watch[1], timeout_s) or self._closing
        finally:
            with self._serving:
                self._watches.remove(watch)

    def _hand_links_to(self, thread: int) -> None:
        """From here on this thread reads the links; 0: the exchange's own does."""
        self._leader = thread
        for connection in self._connections.values():
            self._watch(connection)

    def _wake(self) -> None:
        """Have whoever sleeps over the links look up."""
        with self._waking:
            if self._wake_fd >= 0:
                os.eventfd_write(self._wake_fd, 1)
                if self._leader:
                    os.eventfd_write(self._wake_leader_fd, 1)

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
        # Whoever is in the midst of serving comes to its end; who comes later finds it closed.
        held = [lock for lock in (self._leading, self._serving) if lock.acquire(timeout=5)]
        with self._waking:  # nobody writes to their numbers when they are somebody else's
            for fd in (self._wake_fd, self._wake_leader_fd):
                os.close(fd)
            self._wake_fd = -1
        self._own_poll.close()
        for _, reached in list(self._watches):
            reached.set()
        for lock in held:
            lock.release()
        for connection in self._connections.values():
            connection.node.close()

    # -- one round -------------------------------------------------------------------------------

    def _serve(self) -> None:
        while not self._closing:
            self._round(self._own_poll.poll(self._timeout_s(None)))

    def _timeout_s(self, longest: T) -> float | T:
        """Until the pool wants to be told the time."""
        deadline = self._pool.next_deadline
        return longest if deadline is None else max(0.0, deadline - time.monotonic() + 0.001)

    def _round(self, ready: Iterable[tuple[int, int]]) -> None:
        try:
            with self._serving:
                for fd, _ in ready:
                    connection = self._by_fd.get(fd)
                    if connection is None:
                        os.eventfd_read(fd)
                    elif not connection.lost:
                        self._read(connection)
                self._settle()
        except Exception as error:  # noqa: BLE001  # a defect of ours must not leave anyone waiting for ever
            self._give_up(f"the exchange with the ranks failed: {type(error).__name__}: {error}")

    def _settle(self) -> None:
        """Handle what was posted and what is due, and send what came of it."""
        while self._events:
            self._handle(self._events.popleft())
        deadline = self._pool.next_deadline
        if deadline is not None and time.monotonic() >= deadline:
            self._handle(Ticked())
        for connection in self._connections.values():
            if connection.writer.waiting_bytes:
                self._flush(connection)
        for holds, reached in self._watches:
            if holds():
                reached.set()
        if self._leader and self._leader != get_ident():
            os.eventfd_write(self._wake_leader_fd, 1)  # what it waits for may have been set here

    def _give_up(self, reason: str) -> None:
        with self._serving:
            for connection in self._connections.values():
                self._lose(connection, reason)

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
        try:
            connection.writer.flush(connection.node.link.send)
        except OSError:
            self._lose(connection)
            return
        self._watch(connection)

    def _watch(self, connection: _Connection) -> None:
        """Our own thread reads when nobody else does, and sends what did not go at once."""
        interest = 0 if self._leader else select.EPOLLIN
        if connection.writer.waiting_bytes:
            interest |= select.EPOLLOUT
        if interest != connection.interest and not connection.lost:
            connection.interest = interest
            self._own_poll.modify(connection.node.link.fileno(), interest)

    def _read(self, connection: _Connection) -> None:
        try:
            length = connection.node.link.recv_into(self._read_buffer)
        except BlockingIOError:
            return
        except OSError:
            length = 0
        if not length:
            self._lose(connection)
            return
        try:
            for body in connection.reader.feed(memoryview(self._read_buffer)[:length]):
                self._take(codec.decode(codec.from_node, body))
        except codec.CorruptStream:
            self._lose(connection)

    def _take(self, message: m.NodeToKernel) -> None:
        self._on_message(message)
        if type(message) in _EVENTS:
            self._handle(message)  # type: ignore[arg-type]  # which is what was asked

    def _lose(self, connection: _Connection, reason: str = "") -> None:
        if connection.lost:
            return
        connection.lost = True
        fd = connection.node.link.fileno()
        self._own_poll.unregister(fd)
        self._leader_poll.unregister(fd)
        self.lost_reason = reason or connection.node.obituary()
        self._handle(NodeLost(connection.node_rank, self.lost_reason))
        # It reads all of /proc: nobody waits for that.
        threading.Thread(target=connection.node.end_strays, name="jupyter_ddp strays", daemon=True).start()
