"""Ranks that a signal or a debugger has stopped: alive, and doing nothing.

Owns what is known of it. Learns it from waitid(2), which a parent is told of such changes by; what does
not last is not worth a word.
"""

from __future__ import annotations

import os
from collections.abc import Iterable

from jupyter_ddp.core import messages as m
from jupyter_ddp.node.rank_process import RankProcess

_LASTS_S = 0.5
_CHANGES = os.WSTOPPED | os.WCONTINUED | os.WNOHANG


class Stops:
    """Which ranks are stopped, since when, and whether that was told."""

    def __init__(self) -> None:
        self._since: dict[RankProcess, float] = {}
        self._told: set[RankProcess] = set()

    def __bool__(self) -> bool:
        """A rank is stopped that was not told of yet."""
        return len(self._since) > len(self._told)

    def look(self, processes: Iterable[RankProcess], now: float) -> list[m.WorkerSuspended]:
        """After a SIGCHLD: note who was stopped; give who goes on, of those that were told of."""
        resumed: list[m.WorkerSuspended] = []
        for process in processes:
            if process.pidfd < 0:
                continue
            try:
                change = os.waitid(os.P_PIDFD, process.pidfd, _CHANGES)
            except ChildProcessError:
                continue  # its end is being reaped
            if change is None:
                continue
            if change.si_code == os.CLD_STOPPED:
                self._since.setdefault(process, now)
            elif self.forget(process):
                resumed.append(m.WorkerSuspended(process.rank, process.pid, False))
        return resumed

    def due(self, now: float) -> list[m.WorkerSuspended]:
        """Those that have been stopped for so long that somebody should know; each once."""
        late = [p for p, since in self._since.items() if p not in self._told and now - since >= _LASTS_S]
        self._told.update(late)
        return [m.WorkerSuspended(process.rank, process.pid, True) for process in late]

    def timeout_s(self, now: float) -> float:
        """Until `due` gives something."""
        untold = [since for process, since in self._since.items() if process not in self._told]
        return max(0.0, min(untold) + _LASTS_S - now)

    def forget(self, process: RankProcess) -> bool:
        """It goes on, or has ended; True when it was told of."""
        self._since.pop(process, None)
        told = process in self._told
        self._told.discard(process)
        return told
