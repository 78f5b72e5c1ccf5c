"""The rendezvous: a TCPStore in the notebook kernel's process, on a loopback socket that we bound.

Imports torch, and nothing of CUDA.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from datetime import timedelta
from typing import Any


class Rendezvous:
    """A store that the ranks' process groups are formed through.

    TCPStore by itself listens on every interface; a socket handed over confines it, and its port
    cannot be taken by another process in between.
    """

    def __init__(self, host: str = "127.0.0.1") -> None:
        # torch takes a second to import: not before it is needed.
        from torch.distributed import TCPStore  # type: ignore[attr-defined]  # its stub leaves it out

        listener = socket.create_server((host, 0), backlog=1024)
        self.host, self.port = host, int(listener.getsockname()[1])
        self._store: Any = make_store(TCPStore, host, self.port, listener)

    def close(self) -> None:
        """Stop listening."""
        self._store = None


def make_store(kind: Callable[..., Any], host: str, port: int, listener: socket.socket) -> Any:
    """A store that listens on this socket, which is the store's from then on.

    The newer of torch's two kinds of server cannot take one over before torch 2.8 and says so; the older
    one is to go some day.
    """
    fd = listener.detach()
    options = {"is_master": True, "wait_for_workers": False, "timeout": timedelta(seconds=60)}
    try:
        return kind(host, port, **options, master_listen_fd=fd)
    except NotImplementedError:
        return kind(host, port, **options, master_listen_fd=fd, use_libuv=False)
