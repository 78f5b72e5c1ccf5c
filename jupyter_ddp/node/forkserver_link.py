"""The agent's end of its forkserver: starts it, asks for ranks, hears of its progress."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
from collections.abc import Sequence

from jupyter_ddp.core import messages as m
from jupyter_ddp.node.forkserver import FORK, GO_ON, MAX_BATCH
from jupyter_ddp.node.rank_process import RankProcess

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
        self._asked: list[Sequence[RankProcess]] = []
        self._stderr = b""

    def request(self, ranks: Sequence[RankProcess]) -> None:
        """Ask for a process for each rank; its descriptors are passed, and are the caller's to close.

        OSError: it is gone.
        """
        for at in range(0, len(ranks), MAX_BATCH):
            batch = ranks[at : at + MAX_BATCH]
            socket.send_fds(self.link, [FORK], [fd for rank in batch for fd in rank.their_fds()])
            self._asked.append(batch)

    def go_on(self) -> None:
        """No rank lives: import what was put off for them."""
        with contextlib.suppress(OSError):  # it is gone: `read` tells
            self.link.send(GO_ON)

    def read(self) -> m.Preloaded | list[tuple[RankProcess, int]] | None:
        """What it says now: a stage, or the PIDs of the ranks asked for first (0 where the fork failed);
        None when it is gone. Called when `link` is readable."""
        try:
            packet = self.link.recv(64 * 1024)
        except ConnectionError:
            packet = b""
        if not packet:
            return None
        told = json.loads(packet)
        if "stage" in told:
            return m.Preloaded(told["stage"], told["seconds"])
        asked, pids = self._asked.pop(0), told["pids"]
        return list(zip(asked, pids + [0] * (len(asked) - len(pids)), strict=True))

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

    def wait(self) -> None:
        """It has closed its end: its last words are written when its process has ended too."""
        with contextlib.suppress(subprocess.TimeoutExpired):  # the system does not end it: nor can we
            self.process.wait(1.0)

    def close(self) -> None:
        """End it. Ranks that it forked live on."""
        self.link.close()
        self.process.kill()
        self.wait()
        os.close(self.stderr_fd)
