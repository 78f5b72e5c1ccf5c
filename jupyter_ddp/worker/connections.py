"""This process's TCP sockets, torch's and the user's: found, and ended where a wait has to end.

Owns none of them. Never shuts down a listening socket: gloo aborts the process then.
"""

from __future__ import annotations

import contextlib
import os
import resource
import socket
import stat
import struct
from collections.abc import Collection, Iterator, Sequence
from typing import Self

from msgspec import Struct

_MAX_FD = 65536
"""As many descriptors are looked at where they cannot be listed."""
_KNOCK_TIMEOUT_S = 0.1


class Connections(Struct, frozen=True):
    """The ports that some sockets listen on, and the inodes of others."""

    ports: frozenset[int] = frozenset()
    inodes: frozenset[int] = frozenset()

    @classmethod
    def now(cls) -> Self:
        """All of this process."""
        ports: set[int] = set()
        inodes: set[int] = set()
        for fd in _socket_fds():
            with contextlib.suppress(OSError), _look_at(fd) as sock:
                if sock.family not in (socket.AF_INET, socket.AF_INET6):
                    continue
                if _listens(sock):
                    ports.add(sock.getsockname()[1])
                else:
                    inodes.add(os.fstat(fd).st_ino)
        return cls(frozenset(ports), frozenset(inodes))

    def __or__(self, other: Connections) -> Connections:
        return Connections(self.ports | other.ports, self.inodes | other.inodes)

    def __sub__(self, other: Connections) -> Connections:
        return Connections(self.ports - other.ports, self.inodes - other.inodes)


class Deafened:
    """Connections that gloo hears nothing from any more. Their other ends notice nothing until `close`.

    When gloo finds out by writing that a connection has ended, it loses the message, and whoever waits for it
    to be sent waits for ever (gloo/transport/tcp/pair.cc: at EPIPE and ECONNRESET `write` says nothing, and
    `signalException` leaves out what is in `tx_`). So it is to find out by reading: each rank ends the
    reading half of its own connections alone, and holds on to them when gloo closes them.
    """

    def __init__(self) -> None:
        self._held: dict[int, int] = {}  # inode: our descriptor

    def deafen(self, fd: int, sock: socket.socket) -> None:
        """End what gloo reads there; all of it where there is no descriptor left to hold it by."""
        inode = os.fstat(fd).st_ino
        try:
            if inode not in self._held:
                self._held[inode] = os.dup(fd)
        except OSError:
            sock.shutdown(socket.SHUT_RDWR)
        else:
            sock.shutdown(socket.SHUT_RD)

    def close(self) -> None:
        """Let go of them, when nobody on this or any other rank waits in them any more."""
        while self._held:
            os.close(self._held.popitem()[1])


def shut_down(
    formed: Connections,
    deafened: Deafened,
    forming: Connections,
    store: tuple[str, int],
    spared: Connections,
) -> None:
    """End these connections, those accepted on their ports, and those to the store but the `spared` ones.

    Over those of `formed` groups messages go, and they become `deafened`.
    """
    for fd in _socket_fds():
        with contextlib.suppress(OSError):
            if os.fstat(fd).st_ino in spared.inodes:
                continue
            with _borrow(fd) as sock:
                if sock.family not in (socket.AF_INET, socket.AF_INET6) or _listens(sock):
                    continue
                if _is_among(fd, sock, formed):
                    deafened.deafen(fd, sock)
                elif _is_among(fd, sock, forming) or _goes_to(sock, store):
                    sock.shutdown(socket.SHUT_RDWR)


def _is_among(fd: int, sock: socket.socket, these: Connections) -> bool:
    return os.fstat(fd).st_ino in these.inodes or sock.getsockname()[1] in these.ports


def _goes_to(sock: socket.socket, store: tuple[str, int]) -> bool:
    # A rank that waits in the store (new_group, store.get) is freed by ending its client, which
    # is an IPv6 socket also where the address is 127.0.0.1.
    host, port = sock.getpeername()[:2]
    return (host.removeprefix("::ffff:"), port) == store


def knock(ports: Collection[int], peers: int) -> None:
    """Stand in for peers that gloo waits for to connect to these ports of ours, and hang up.

    A wait for a first connection has no socket that could be shut down. Each peer says by one number
    which of the listener's pairs it is for (gloo/transport/tcp/listener.cc); they count from 0.
    """
    for fd in _socket_fds() if ports else ():
        with contextlib.suppress(OSError), _borrow(fd) as sock:
            if sock.family in (socket.AF_INET, socket.AF_INET6) and _listens(sock):
                address = sock.getsockname()[:2]
                for number in range(peers + 1) if address[1] in ports else ():
                    with socket.create_connection(address, _KNOCK_TIMEOUT_S) as caller:
                        caller.sendall(struct.pack("<q", number))


def _socket_fds() -> Iterator[int]:
    for fd in _open_fds():
        with contextlib.suppress(OSError):
            if stat.S_ISSOCK(os.fstat(fd).st_mode):
                yield fd


def _open_fds() -> Sequence[int]:
    try:
        return [int(name) for name in os.listdir("/proc/self/fd")]  # noqa: PTH208 - names are all it takes
    except OSError:  # the cell has used up all descriptors: a group must be broken without a new one
        return range(min(resource.getrlimit(resource.RLIMIT_NOFILE)[1], _MAX_FD))


def _look_at(fd: int) -> socket.socket:
    """A socket object for a copy of a descriptor that is somebody else's.

    With SOCK_NONBLOCK given Python leaves the descriptor's flags alone; else `socket.setdefaulttimeout`
    would make every socket of this process non-blocking.
    """
    return socket.socket(type=socket.SOCK_STREAM | socket.SOCK_NONBLOCK, fileno=os.dup(fd))


@contextlib.contextmanager
def _borrow(fd: int) -> Iterator[socket.socket]:
    """As `_look_at`, of the descriptor itself, where there may be no other. In a thread without signals."""
    sock = socket.socket(type=socket.SOCK_STREAM | socket.SOCK_NONBLOCK, fileno=fd)
    try:
        yield sock
    finally:
        sock.detach()


def _listens(sock: socket.socket) -> bool:
    return bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))
