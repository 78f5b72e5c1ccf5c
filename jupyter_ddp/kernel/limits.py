"""How many ranks this machine can have, and what they will find little of."""

from __future__ import annotations

import math
import os

import psutil

from jupyter_ddp.core.errors import UsageError
from jupyter_ddp.core.topology import MAX_WORLD_SIZE

RANK_BYTES = 64 * 1024 * 1024
"""What a rank needs at the least before the user's own data: measured in docs/speed.md, rounded up."""

SHARED_MEMORY = "/dev/shm"
SHARED_BYTES_PER_RANK = 8 * 1024 * 1024
"""Of 64 MiB, which is what containers have by default, eight ranks can make do."""


def check_world_size(n: int, running: int = 0) -> None:
    """Raise UsageError for a number of ranks that no pool, or not this machine, can have."""
    if isinstance(n, bool) or not hasattr(n, "__index__"):
        raise UsageError(f"{n!r}: not a number of ranks; write a whole one, as in Cluster(4)")
    if n < 1:
        raise UsageError(f"-n {n}: a pool has at least one rank; write -n 1 or more")
    if n > MAX_WORLD_SIZE:
        raise UsageError(f"-n {n}: over the limit of {MAX_WORLD_SIZE} ranks; write fewer")
    free = psutil.virtual_memory().available // RANK_BYTES + running
    if n > free:
        raise UsageError(
            f"-n {n}: {n} ranks need about {n * RANK_BYTES / 2**30:.0f} GiB of memory, "
            f"and there is room for {free} here; write -n {max(1, min(free, 4 * usable_cores()))} or so"
        )


def shared_memory_remark(n: int) -> str:
    """In one line, that /dev/shm is too small for what libraries on `n` ranks put there; "" if not."""
    try:
        room = os.statvfs(SHARED_MEMORY)
    except OSError:
        return ""  # there is none: libraries have other ways then
    n_bytes = room.f_bavail * room.f_frsize
    if n_bytes >= n * SHARED_BYTES_PER_RANK:
        return ""
    return (
        f"{SHARED_MEMORY} has room for {n_bytes // 2**20} MiB: DataLoader workers and NCCL need more there; "
        "give a container more with --shm-size"
    )


def check_timeout(seconds: float) -> None:
    """Raise UsageError for a time that no cell can be given."""
    if not 0 < seconds < math.inf:
        raise UsageError(
            f"--timeout {seconds:g}: not a time that can pass; write --timeout 60, or leave it out"
        )


def usable_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
