"""The few Linux calls that Python has no function for, and what /proc tells of our own processes."""

from __future__ import annotations

import ctypes
import os
import resource
from pathlib import Path

_PR_SET_CHILD_SUBREAPER = 36


def become_subreaper() -> None:
    """From now on orphaned descendants of this process become its children (prctl(2))."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def _prctl(option: int, argument: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, ctypes.c_ulong(argument), 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def raise_descriptor_limit() -> None:
    """Use as many descriptors as the system allows: a rank costs its agent six."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard == resource.RLIM_INFINITY or hard > 65536:
        hard = 65536
    if soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))


def children(pid: int) -> list[int]:
    """PIDs of the direct children of a process of ours."""
    found: list[int] = []
    try:
        for listing in Path(f"/proc/{pid}/task").glob("*/children"):
            found += map(int, listing.read_text().split())
    except OSError:
        pass  # it ended while we looked
    return found


def process_state(pid: int) -> str:
    """ "R", "S", "T", "Z", … as /proc has it; "" for a process that is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return ""


def oom_kills() -> int:
    """How often the kernel's out-of-memory killer struck in this process's cgroup so far."""
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
        path = next(line.split(":", 2)[2] for line in lines if line.startswith("0::"))
        events = Path("/sys/fs/cgroup" + path, "memory.events").read_text()
    except (OSError, StopIteration):
        return 0
    return sum(int(line.split()[1]) for line in events.splitlines() if line.startswith("oom_kill "))
