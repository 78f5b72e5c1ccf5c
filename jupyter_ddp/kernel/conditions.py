"""What is known of the ranks' processes beside that they live: a rank may be stopped.

Owns the words for it: in the pool's table, and in a cell that waits for such a rank.
"""

from __future__ import annotations

from jupyter_ddp.core import messages as m


class Conditions:
    """By rank and PID: of a rank that was replaced nothing is left."""

    def __init__(self) -> None:
        self._stopped: dict[int, int] = {}

    def __bool__(self) -> bool:
        return bool(self._stopped)

    def take(self, message: m.WorkerSuspended) -> None:
        if message.suspended:
            self._stopped[message.rank] = message.pid
        elif self._stopped.get(message.rank) == message.pid:
            del self._stopped[message.rank]

    def state(self, rank: int, pid: int) -> str:
        """For the table; "" where there is nothing beyond the usual."""
        return "stopped (state T)" if self._stopped.get(rank) == pid else ""

    def notes(self, alive: dict[int, int]) -> dict[int, str]:
        """For a cell, of each of these living ranks (rank: PID) that has a condition."""
        self._stopped = {r: pid for r, pid in self._stopped.items() if alive.get(r) == pid}
        return {rank: stopped_note(rank, pid) for rank, pid in self._stopped.items()}


def stopped_note(rank: int, pid: int) -> str:
    return f"rank {rank} stopped (state T): a signal or a debugger holds it; `kill -CONT {pid}` lets it go on"
