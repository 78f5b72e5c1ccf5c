"""The process that ranks are forked from, with torch and IPython preloaded.

Ours rather than multiprocessing's: it takes requests between the steps of its preload, and its ranks
become the agent's own children (each batch is forked by a short-lived child of this process, and the
agent is the subreaper), so the agent reaps them and they end with it.

It has one thread whenever it forks, never computes, and never asks CUDA anything.
"""

from __future__ import annotations

import array
import gc
import importlib
import json
import os
import select
import signal
import socket
import struct
import sys
import time
from collections.abc import Sequence
from typing import NoReturn

from jupyter_ddp.node.heap import settle

FDS_PER_RANK = 5
MAX_BATCH = 40  # Linux passes at most 253 descriptors in one message

_PATIENCE_S = 1.0
"""So long after its first stage it waits for a request: a user who runs a cell at once is served at once."""
FORK, GO_ON = b"fork", b"go on"

_LATER_STEPS = (
    "stack_data",
    "pygments.lexers.python",
    "sympy",
    "torch._inductor.config",
    "torch._functorch.aot_autograd",
    "torch._dynamo",
    "matplotlib_inline.backend_inline",
)
"""What a first traceback, the first DistributedDataParallel and the first figure import: a second or
more, in steps between which we look up."""


def main() -> None:
    """`python -c … FD SYS_PATH PRELOAD ENTRY`: serve until the agent closes its end."""
    fd, sys_path, preload, entry = sys.argv[1:5]
    sys.path[:0] = [p for p in json.loads(sys_path) if p not in sys.path]
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with socket.socket(fileno=int(fd)) as link:
        _serve(link, json.loads(preload), entry)


def _serve(link: socket.socket, preload: Sequence[str], entry: str) -> None:
    started = time.monotonic()
    gc.disable()  # halves the time of the imports; and a collection would unshare the ranks' memory
    for name in preload:
        importlib.import_module(name)
    module, _, function = entry.partition(":")
    worker = importlib.import_module(module)
    if hasattr(worker, "prepare"):
        worker.prepare()
    begin = getattr(worker, function)
    filling = settle(collect=False)
    _say(link, "torch", time.monotonic() - started)
    steps = list(_LATER_STEPS)
    settled_at = len(steps)
    paused, patience_s = False, _PATIENCE_S
    while True:
        readable = select.select([link], [], [], patience_s if steps and not paused else None)[0]
        patience_s = 0.0
        if readable:
            request, fds = _receive(link)
            if not request:
                return
            # What is imported from now on is not shared with ranks that exist: it would only cost.
            paused = request == FORK
            if paused:
                if len(steps) < settled_at:
                    filling += settle(collect=False)
                    settled_at = len(steps)
                pids = _fork_batch(fds, begin)
                link.send(json.dumps({"pids": pids}).encode())
        else:
            try:
                importlib.import_module(steps.pop(0))
            except ImportError:
                continue  # another version of torch: its first DDP constructor imports it then
            if not steps:
                filling += settle(collect=True)
                _say(link, "dynamo", time.monotonic() - started)


def _say(link: socket.socket, stage: str, seconds: float) -> None:
    link.send(json.dumps({"stage": stage, "seconds": seconds}).encode())


def _receive(link: socket.socket) -> tuple[bytes, list[int]]:
    """FORK with the descriptors of the ranks, FDS_PER_RANK each; GO_ON; or b"": the agent is gone."""
    size = array.array("i").itemsize
    data, ancillary, _, _ = link.recvmsg(64, socket.CMSG_SPACE(MAX_BATCH * FDS_PER_RANK * size))
    fds = array.array("i")
    for level, kind, payload in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(payload[: len(payload) - len(payload) % size])
    return data, list(fds)


def _fork_batch(fds: list[int], begin: object) -> list[int]:
    """Fork a rank for each set of descriptors; when this returns they are the agent's children."""
    agent = os.getppid()
    out, into = os.pipe()
    middle = os.fork()
    if middle == 0:
        try:
            for at in range(0, len(fds), FDS_PER_RANK):
                pid = os.fork()  # OSError: the ranks that are missing were not forked
                if pid == 0:
                    _become_rank(fds[at : at + FDS_PER_RANK], agent, begin)
                os.write(into, struct.pack("<q", pid))
        finally:
            os._exit(0)
    os.close(into)
    told = b""
    while piece := os.read(out, 65536):
        told += piece
    os.close(out)
    os.waitpid(middle, 0)
    for fd in fds:
        os.close(fd)
    return [pid for (pid,) in struct.iter_unpack("<q", told)]


def _become_rank(fds: list[int], agent: int, begin: object) -> NoReturn:
    """In the new process: nothing of the forkserver's stays open, then the worker's entry runs."""
    try:
        os.setpgid(0, 0)
        cells, control, out, err, page = fds
        os.dup2(out, 1)
        os.dup2(err, 2)
        keep = {0, 1, 2, cells, control, page}
        for entry in list(os.scandir("/proc/self/fd")):
            if int(entry.name) not in keep:
                try:
                    os.close(int(entry.name))
                except OSError:
                    pass  # the descriptor of the listing itself
        gc.enable()
        begin(cells, control, page, agent)  # type: ignore[operator]  # the entry was named, not imported
    except BaseException:  # noqa: BLE001  # the last frame of a process: say why, then end
        import traceback

        traceback.print_exc(file=open(2, "w", closefd=False))  # noqa: SIM115  # nothing runs after this
        os._exit(1)
    os._exit(0)


if __name__ == "__main__":
    main()
