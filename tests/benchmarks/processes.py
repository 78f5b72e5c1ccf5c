"""The processes that one notebook kernel started, found by a tag in their environment.

Owns finding, weighing and ending them. Never touches a process without the tag: a signal goes through a
pidfd, after a second look.
"""

from __future__ import annotations

import os
import signal
import time
import uuid
from pathlib import Path

_VARIABLE = "JUPYTER_DDP_BENCHMARK_TAG"
_END_TIMEOUT_S = 10.0
_POLL_S = 0.05


class Tag:
    """A mark that every descendant of a process inherits, also one that has got away from it."""

    def __init__(self) -> None:
        self._value = uuid.uuid4().hex

    @property
    def environ(self) -> dict[str, str]:
        return {_VARIABLE: self._value}

    def pids(self) -> list[int]:
        """The living processes that carry the tag; what has ended and is not reaped does not count."""
        names = filter(str.isdigit, os.listdir("/proc"))  # noqa: PTH208 - names are all it takes
        return sorted(pid for pid in map(int, names) if self._carried_by(pid))

    def _carried_by(self, pid: int) -> bool:
        try:
            environ = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return False
        return f"{_VARIABLE}={self._value}".encode() in environ and state not in ("Z", "X")

    def end(self) -> None:
        """Kill every process that carries the tag, and wait. Raises RuntimeError if one is left."""
        deadline = time.monotonic() + _END_TIMEOUT_S
        while left := self.pids():
            if time.monotonic() > deadline:
                raise RuntimeError(f"processes {left} do not end")
            for pid in left:
                self._kill(pid)
            time.sleep(_POLL_S)

    def _kill(self, pid: int) -> None:
        try:
            pidfd = os.pidfd_open(pid)
        except ProcessLookupError:
            return
        try:
            if self._carried_by(pid):  # the number may have become another process's since
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        except ProcessLookupError:
            pass  # it has just ended
        finally:
            os.close(pidfd)


def pss_bytes(pid: int) -> int:
    """Proportional set size: a page that k processes share counts 1/k (proc(5), smaps_rollup)."""
    return _field(f"/proc/{pid}/smaps_rollup", "Pss")


def rss_bytes(pid: int) -> int:
    """Resident memory now."""
    return _field(f"/proc/{pid}/status", "VmRSS")


def reset_peak(pid: int) -> None:
    """Let `peak_bytes` begin anew (proc(5), clear_refs)."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")


def peak_bytes(pid: int) -> int:
    """The most resident memory since `reset_peak`."""
    return _field(f"/proc/{pid}/status", "VmHWM")


def _field(path: str, name: str) -> int:
    """A field of a /proc file, in bytes; 0 when the process is gone."""
    try:
        lines = Path(path).read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))
