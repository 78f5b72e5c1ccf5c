"""A rank's end of a fuse, preloaded by its forkserver: the rank dies in a moment that no cell can choose.

For a rank that comes up, the variable FUSE of the notebook kernel's environment says which, when and how
(JSON: rank, moment, way, note). One that runs cells calls `lay`.
"""

from __future__ import annotations

import atexit
import json
import os
import threading
import time
from pathlib import Path
from typing import Any

from jupyter_ddp.core import messages as m
from jupyter_ddp.worker.group import Group
from jupyter_ddp.worker.main import Worker
from tests.fault.ways_to_die import DEATHS, FUSE, IMPORTS, NO_DEATHS, OTHERS_DEATHS

FORKSERVER = os.getpid()
SOURCES = {way: source for way, (source, _) in DEATHS.items()} | NO_DEATHS | OTHERS_DEATHS


class _Fuse:
    """Of this rank: the moment in which it burns, what it does then, and where it notes the time before."""

    moment = way = note = ""

    def lay(self, moment: str, way: str, note: str) -> None:
        self.moment, self.way, self.note = moment, way, note

    def burn(self, moment: str) -> None:
        if moment == self.moment:
            self.moment = ""
            Path(self.note).write_text(str(time.monotonic()))
            exec(f"{IMPORTS}\n{SOURCES[self.way]}", {})


_fuse = _Fuse()


def lay(moment: str, way: str, note: str, fifo: str = "") -> None:
    """`moment`: "joining" a group, "stopping", or "told": when `fifo` has been opened for writing."""
    _fuse.lay(moment, way, note)
    if moment == "stopping":
        atexit.register(_fuse.burn, moment)
    elif moment == "told":
        threading.Thread(target=_wait, args=[fifo], daemon=True).start()


def _wait(fifo: str) -> None:
    Path(fifo).read_bytes()
    _fuse.burn("told")


def _install() -> None:
    begin, connect = Worker.__init__, Group._connect

    def begin_with_fuse(self: Worker, order: m.BeginWorker, *rest: Any) -> None:
        laid = order.surroundings.environ.get(FUSE)
        if laid:
            fuse = json.loads(laid)
            if fuse.pop("rank") == order.place.rank:
                _fuse.lay(**fuse)
        _fuse.burn("forked")
        begin(self, order, *rest)
        _fuse.burn("connected")

    def connect_with_fuse(self: Group, prefix: str) -> Any:
        store = connect(self, prefix)
        _fuse.burn("joining")
        return store

    Worker.__init__ = begin_with_fuse  # type: ignore[method-assign,assignment]
    Group._connect = connect_with_fuse  # type: ignore[method-assign]


_install()
