"""The rank's process group: the only place that forms, breaks and re-forms it.

Each generation has its own store client and key prefix. `break_` comes from the control thread while
the main thread waits inside a collective; everything else is the main thread's.
"""

from __future__ import annotations

import contextlib
import os
import re
import resource
import socket
import stat
import threading
import time
from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import TCPStore  # type: ignore[attr-defined]  # its stub leaves it out
from torch.distributed import distributed_c10d as c10d

from jupyter_ddp.core import messages as m
from jupyter_ddp.worker.carry_over import carry_over, note_groups

COLLECTIVE_TIMEOUT = timedelta(days=7)
"""A user at a breakpoint is no fault: waits are bounded by the pool, not by torch."""
STORE_TIMEOUT = timedelta(seconds=60)
_MAX_FD = 65536
"""As many descriptors are looked at where they cannot be listed."""

_PEER_GONE = re.compile(r"gloo/transport/|Connection closed by peer \[|NCCL communicator was aborted")
# What has to be set before the first NCCL group: a communicator that fails must not end the process.
_NCCL_ENVIRON = {
    "TORCH_NCCL_ASYNC_ERROR_HANDLING": "0",
    "TORCH_NCCL_ENABLE_MONITORING": "0",
    "TORCH_NCCL_DUMP_ON_TIMEOUT": "0",
    "TORCH_NCCL_PROPAGATE_ERROR": "0",
    "TORCH_NCCL_RETHROW_CUDA_ERRORS": "0",
}

_real_destroy = dist.destroy_process_group
_real_init = dist.init_process_group
_real_helper = c10d._new_process_group_helper


class Group:
    """The pool's group on this rank, and what is needed to break it."""

    def __init__(self, surroundings: m.Surroundings) -> None:
        self._address = (surroundings.master_addr, surroundings.master_port)
        self._prefix = surroundings.run_id
        self._lock = threading.Lock()
        self._given_up = 0  # the last generation that was to be broken
        self.generation = 0
        self.backend: m.Backend = "gloo"
        self.world_size = 0
        self.rank = 0
        self.broken = False
        """The group was broken under whoever waited in it: it will be formed again."""
        self._gloo_ports: set[int] = set()
        self._gloo_inodes: set[int] = set()
        """Of the connections that were there when a group was formed, whichever end was accepted."""
        for name, value in _NCCL_ENVIRON.items():
            os.environ.setdefault(name, value)
        if self._address[0] == "127.0.0.1":
            # gloo otherwise listens on whatever the host's name resolves to.
            os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        c10d._new_process_group_helper = self._noting_sockets

    # -- forming ---------------------------------------------------------------------------------

    def form(self, order: m.FormGroup) -> float:
        """Join the group of this generation; seconds it took. Raises what torch raises."""
        started = time.monotonic()
        old = note_groups()
        with self._lock:  # an order to break the last generation that comes after this is too late
            if order.generation <= self._given_up:
                raise RuntimeError("the pool gave this group up before this rank came to form it")
            self.generation = order.generation
        self.leave()
        self.broken = False
        self.backend = order.backend
        self.rank, self.world_size = order.place.rank, order.place.world_size
        host, port = self._address
        client = TCPStore(host, port, is_master=False, timeout=STORE_TIMEOUT, wait_for_workers=False)
        # A generation has its own prefix: on used keys a group would meet those of its predecessor.
        store = c10d.PrefixStore(f"{self._prefix}/{order.generation}", client)
        device = torch.device(order.place.device)
        if device.type == "cuda":
            torch.cuda.set_device(device)
        options: dict[str, Any] = {"device_id": device} if order.backend == "nccl" else {}
        _real_init(
            order.backend,
            store=store,
            rank=self.rank,
            world_size=self.world_size,
            timeout=COLLECTIVE_TIMEOUT,
            **options,
        )
        if order.generation > 1:  # all ranks take part, those that are new too
            carry_over(old, self.rank, self.world_size, store, COLLECTIVE_TIMEOUT)
        return time.monotonic() - started

    def leave(self) -> None:
        """End the group, if there is one."""
        if dist.is_initialized():
            if self.broken and self.backend == "nccl":
                c10d._abort_process_group()
            else:
                _real_destroy()
        self._gloo_ports.clear()
        self._gloo_inodes.clear()

    def _noting_sockets(self, *args: Any, **kwargs: Any) -> Any:
        """torch's own way to make any group; gloo opens a listening socket and connections for each."""
        ports, inodes = _internet_sockets()
        try:
            return _real_helper(*args, **kwargs)
        finally:
            ports_now, inodes_now = _internet_sockets()
            self._gloo_ports |= ports_now - ports
            self._gloo_inodes |= inodes_now - inodes

    # -- breaking --------------------------------------------------------------------------------

    def break_(self, generation: int) -> None:
        """Free whatever waits in this generation's groups or its store. Variables are untouched.

        For gloo by shutting down its connections: those that it had when the group was formed, and those
        accepted on its listening ports since. Both ends' ranks are told, but one of them may be stopped, or
        hold the GIL. Never a listening socket: gloo aborts the process then.
        """
        with self._lock:
            self._given_up = max(self._given_up, generation)
            if generation == self.generation:
                self._break()

    def _break(self) -> None:
        self.broken = True
        if self.backend == "nccl":
            for group in list(c10d._world.pg_names):
                with contextlib.suppress(RuntimeError, AttributeError):  # ended already, or our stand-in
                    group.abort()
        for fd in _socket_fds():
            with contextlib.suppress(OSError):
                self._shut_down(fd)

    def _shut_down(self, fd: int) -> None:
        with _borrow(fd) as sock:
            if sock.family not in (socket.AF_INET, socket.AF_INET6) or _listens(sock):
                return
            gloos = os.fstat(fd).st_ino in self._gloo_inodes or sock.getsockname()[1] in self._gloo_ports
            # A rank that waits in the store (new_group, store.get) is freed by ending its client, which
            # is an IPv6 socket also where the address is 127.0.0.1.
            host, port = sock.getpeername()[:2]
            if gloos or (host.removeprefix("::ffff:"), port) == self._address:
                sock.shutdown(socket.SHUT_RDWR)

    def blames_peer(self, error: BaseException) -> bool:
        """The exception says that the group is gone, not that this rank did something wrong."""
        if not isinstance(error, RuntimeError):
            return False
        return self.broken or isinstance(error, dist.DistError) or bool(_PEER_GONE.search(str(error)))


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


def _internet_sockets() -> tuple[set[int], set[int]]:
    """The ports that this process listens on, and the inodes of its other internet sockets."""
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
    return ports, inodes
