"""Processes that nobody owns any more, known by a mark in the environment that they began with.

Only our own marks are looked for, so nothing is signalled that we have not started. What began with an
emptied environment is not found.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path

_SWEEPS = 20
"""One that is found may start another meanwhile."""


def end_strays(name: str, value: str) -> None:
    """Kill all processes with this variable, of the user's own."""
    for _ in range(_SWEEPS):
        if not [pid for pid in _pids() if _is_marked(pid, name, value) and _kill(pid, name, value)]:
            return


def _pids() -> list[int]:
    try:
        return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]
    except OSError:  # no descriptor is free
        return []


def _is_marked(pid: int, name: str, value: str) -> bool:
    try:
        return f"{name}={value}".encode() in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return False  # it has ended, or is another user's


def _kill(pid: int, name: str, value: str) -> bool:
    """Kill it, if its number is not another's by now."""
    try:
        fd = os.pidfd_open(pid)
    except OSError:
        return False
    try:
        if not _is_marked(pid, name, value):
            return False
        signal.pidfd_send_signal(fd, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        return False
    finally:
        os.close(fd)
    return True
