"""What the ranks of this machine use: memory, cores and GPUs, sampled while somebody looks.

Owns the samples' timing. Psutil and the GPU's library are imported when the first sample is asked for.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Container
from typing import Any

from jupyter_ddp.core import messages as m
from jupyter_ddp.core.topology import visible_gpus
from jupyter_ddp.node.gpus import GpuMeter, list_gpus
from jupyter_ddp.node.rank_process import RankProcess

_LARGEST_SHARE = 0.05
"""Of a core's time that sampling may take: reading a rank's share of memory walks its page tables."""
_AT_ONCE = 4
"""Ranks that are looked at between two looks at the agent's sockets."""


class UsageSampler:
    """Asked for `due_in_s`, and for a `sample` when that is 0. Never blocks on a rank."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._interval_s = 0.0
        self.watched = False
        """Somebody looks."""
        self._due = self._began = 0.0
        self._waiting: list[RankProcess] = []
        self._processes: dict[int, Any] = {}
        self._meters: dict[str, GpuMeter] = {}

    def watch(self, interval_s: float) -> None:
        """Sample every so many seconds from now on; 0 ends it."""
        self._interval_s, self._due = interval_s, self._clock()
        self.watched = interval_s > 0
        self._waiting = []
        if not interval_s:
            self._processes.clear()
            self.close()

    def due_in_s(self) -> float:
        """Seconds until the next sample."""
        return max(0.0, self._due - self._clock())

    def sample(self, ranks: Collection[RankProcess], busy: Container[RankProcess]) -> m.Usage:
        """What some of the ranks use now, in turn; a cell runs on those that are `busy`."""
        began = self._clock()
        if not self._waiting:
            self._began, self._waiting = began, [process for process in ranks if process.pid]
            living = {process.pid for process in self._waiting}
            self._processes = {pid: known for pid, known in self._processes.items() if pid in living}
        chosen, self._waiting = self._waiting[:_AT_ONCE], self._waiting[_AT_ONCE:]
        usage = [found for process in chosen if (found := self._of(process, process in busy)) is not None]
        rested = self._clock() + (self._clock() - began) / _LARGEST_SHARE
        self._due = rested if self._waiting else max(rested, self._began + self._interval_s)
        return m.Usage(usage)

    def _of(self, process: RankProcess, busy: bool) -> m.RankUsage | None:
        import psutil  # an agent that nobody watches has no use for it

        try:
            known = self._processes.get(process.pid)
            if known is None:
                known = self._processes[process.pid] = psutil.Process(process.pid)
                known.cpu_percent()  # counts from here
            with known.oneshot():
                memory, state = known.memory_full_info().pss, known.status()
                cpu = known.cpu_percent() / 100
        except psutil.Error:
            return None  # it has just ended
        meter = self._meter(process)
        gpu, used, total = meter.read() if meter else (-1.0, -1, -1)
        letter = _LETTERS.get(state, state[:1].upper())
        line = process.line if busy else 0
        return m.RankUsage(process.rank, memory, cpu, line, letter, gpu, used, total)

    def _meter(self, process: RankProcess) -> GpuMeter | None:
        kind, _, index = process.device.partition(":")
        if kind != "cuda":
            return None
        visible = visible_gpus(list_gpus(), process.visible_devices)
        uuid = visible[int(index)] if int(index or 0) < len(visible) else ""
        if uuid and uuid not in self._meters:
            self._meters[uuid] = GpuMeter(uuid)
        return self._meters.get(uuid)

    def close(self) -> None:
        """Let go of the GPUs' library."""
        for meter in self._meters.values():
            meter.close()
        self._meters.clear()


# psutil's words for what ps shows as one letter.
_LETTERS = {
    "running": "R",
    "sleeping": "S",
    "disk-sleep": "D",
    "stopped": "T",
    "tracing-stop": "T",
    "zombie": "Z",
    "dead": "Z",
    "idle": "I",
}
