"""The agent's end of its forkserver: starts it, asks for ranks, hears of its progress."""

from __future__ import annotations

import array
import contextlib
import json
import os
import socket
import subprocess
import sys
from collections.abc import Sequence

from jupyter_ddp.core import messages as m
from jupyter_ddp.node.forkserver import FDS_PER_RANK, FORK, GO_ON, MAX_BATCH

_STDERR_BYTES = 8 * 1024

# One thread when it forks: OpenBLAS would start its own at import. The rest keeps CUDA out of it.
_ENVIRON = {"OPENBLAS_NUM_THREADS": "1", "PYTORCH_NVML_BASED_CUDA_CHECK": "1"}


class Forkserver:
    """A running forkserver. Requests are answered in order with the PIDs of the new ranks."""

    def __init__(self, sys_path: Sequence[str], preload: Sequence[str], entry: str) -> None:
        self.link, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.stderr_fd, err = os.pipe()
        arguments = [str(theirs.fileno()), json.dumps(sys_path), json.dumps(preload), entry]
        bootstrap = (
            "import sys, json; sys.path[:0] = [p for p in json.loads(sys.argv[2]) if p not in sys.path]; "
            "from jupyter_ddp.node.forkserver import main; main()"
        )
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-c", bootstrap, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=err,
            stderr=err,
            pass_fds=[theirs.fileno()],
            env={**os.environ, **_ENVIRON},
        )
        theirs.close()
        os.close(err)
        os.set_blocking(self.stderr_fd, False)
        self._asked: list[list[int]] = []
        self._stderr = b""

    def request(self, ranks: Sequence[int], fds: Sequence[Sequence[int]]) -> None:
        """Ask for a process for each rank; its descriptors are passed, and are the caller's to close."""
        for at in range(0, len(ranks), MAX_BATCH):
            batch = array.array("i", [fd for rank_fds in fds[at : at + MAX_BATCH] for fd in rank_fds])
            assert len(batch) == FDS_PER_RANK * len(ranks[at : at + MAX_BATCH])
            socket.send_fds(self.link, [FORK], list(batch))
            self._asked.append(list(ranks[at : at + MAX_BATCH]))

    def go_on(self) -> None:
        """No rank lives: import what was put off for them."""
        with contextlib.suppress(OSError):  # it is gone: `read` tells
            self.link.send(GO_ON)

    def read(self) -> list[m.WorkerForked | m.Preloaded] | None:
        """What it says now; None when it is gone. Called when `link` is readable."""
        try:
            packet = self.link.recv(64 * 1024)
        except ConnectionError:
            packet = b""
        if not packet:
            return None
        told = json.loads(packet)
        if "stage" in told:
            return [m.Preloaded(told["stage"], told["seconds"])]
        return [m.WorkerForked(rank, pid) for rank, pid in zip(self._asked.pop(0), told["pids"], strict=True)]

    def read_stderr(self) -> None:
        """Keep the end of what it writes, for the day it fails."""
        try:
            while data := os.read(self.stderr_fd, 65536):
                self._stderr = (self._stderr + data)[-_STDERR_BYTES:]
        except BlockingIOError:
            pass  # all that is there was read

    @property
    def stderr(self) -> str:
        return self._stderr.decode("utf-8", "replace").strip()

    def close(self) -> None:
        """End it. Ranks that it forked live on."""
        self.link.close()
        self.process.kill()
        self.process.wait()
        os.close(self.stderr_fd)
