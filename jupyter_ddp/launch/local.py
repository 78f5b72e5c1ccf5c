"""The node agent of the machine that the notebook kernel runs on: a child process in its own session."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import socket
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from jupyter_ddp.core.errors import PoolError
from jupyter_ddp.core.faults import signal_name
from jupyter_ddp.core.messages import NODE_MARK
from jupyter_ddp.launch.strays import end_strays

PRELOAD = (
    "torch",
    "torch.distributed",
    "IPython.core.interactiveshell",
    "IPython.core.completerlib",
    "IPython.core.crashhandler",
    "IPython.core.magics",
    "IPython.core.oinspect",
)
"""What every rank needs, imported once before it is forked."""
WORKER_ENTRY = "jupyter_ddp.worker.main:begin"
_STDERR_BYTES = 4 * 1024

_BOOTSTRAP = (
    "import sys, json; sys.path[:0] = [p for p in json.loads(sys.argv[3]) if p not in sys.path]; "
    "from jupyter_ddp.node.agent import main; main()"
)


class LocalNode:
    """A node agent and the socket to it. Closing the socket ends the agent and all its ranks."""

    def __init__(self, preload: Sequence[str] = ()) -> None:
        """Start the agent. Raises PoolError where this system cannot run one."""
        if missing := missing_from_system():
            raise PoolError(missing)
        self.link, theirs = socket.socketpair()
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115  # lives as long as the agent
        self._mark = secrets.token_hex(8)
        names = json.dumps([*PRELOAD, *preload])
        arguments = [str(theirs.fileno()), str(os.getpid()), json.dumps(_import_path()), names, WORKER_ENTRY]
        try:
            # -P: a file beside the notebook must not stand in for a module of the standard library.
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-c", _BOOTSTRAP, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=self._stderr,
                stderr=self._stderr,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
                cwd="/",
                env={**os.environ, NODE_MARK: self._mark},
            )
        except OSError as error:
            self.link.close()
            self._stderr.close()
            raise PoolError(f"the node agent could not be started: {error}") from error
        finally:
            theirs.close()

    def obituary(self) -> str:
        """Why the agent is gone, once its socket has closed: its status and its last words."""
        try:
            status = self.process.wait(timeout=2)
        except subprocess.TimeoutExpired:
            return f"the node agent (process {self.process.pid}) does not answer"
        self._stderr.seek(max(0, self._stderr.seek(0, os.SEEK_END) - _STDERR_BYTES))
        words = self._stderr.read().decode("utf-8", "replace").strip()
        how = f"was killed by {signal_name(-status)}" if status < 0 else f"exited with code {status}"
        last = words.rpartition("\n")[2]
        more = f": {last}" if last else ""
        return f"the node agent {how}{more}; %ddp start, or the next %%ddp cell, starts anew"

    def end_strays(self) -> None:
        """Kill what an agent that was itself killed has left behind: what its ranks had started."""
        end_strays(NODE_MARK, self._mark)

    def close(self, timeout_s: float = 3.0) -> None:
        """End the agent, which ends its ranks; kill it if it has not ended in time."""
        with contextlib.suppress(OSError):  # a child that the notebook kernel forked may hold a copy of it
            self.link.shutdown(socket.SHUT_RDWR)
        self.link.close()
        try:
            self.process.wait(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(timeout=timeout_s)
        self._stderr.close()


def missing_from_system() -> str:
    """What keeps a pool from running here, in one line; "" on Linux with pidfds."""
    if sys.platform != "linux":
        return f"a pool of ranks needs Linux (this is {sys.platform}): use a container or a server"
    if not hasattr(os, "pidfd_open"):
        return "a pool of ranks needs Linux 5.3 or later and a Python built for it (os.pidfd_open is missing)"
    return ""


def _import_path() -> list[str]:
    """Where the agent imports from: as the notebook kernel does, but not from the notebook's directory.

    The package's own place comes along, for a checkout that is not installed.
    """
    here = str(Path(__file__).parents[2])
    working = {"", ".", str(Path.cwd())}
    inherited = [p for p in sys.path if isinstance(p, str) and p not in working]
    return inherited if here in inherited else [*inherited, here]
