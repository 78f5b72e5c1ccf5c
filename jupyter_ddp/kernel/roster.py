"""Each rank's process and what it does, as `%ddp status` and the panel show it.

Owns what is known of the ranks beside their membership: what they use, and whether they are stopped.
"""

from __future__ import annotations

from msgspec import Struct

from jupyter_ddp.core import messages as m
from jupyter_ddp.core.faults import describe_exit
from jupyter_ddp.core.membership import RankState
from jupyter_ddp.core.pool import Pool
from jupyter_ddp.core.usage import UsageBook
from jupyter_ddp.kernel.cells import Cells
from jupyter_ddp.kernel.conditions import Conditions
from jupyter_ddp.kernel.execution import Execution


class RankStatus(Struct, frozen=True):
    """One rank, as `%ddp status` and the panel show it.

    `cell` is the prompt number of the cell that runs on it, 0 if none; `line` that cell's line it was last
    seen on, 0 if nobody looked. `error` is its last failure, or why it died.
    """

    rank: int
    pid: int
    device: str
    state: str
    node: str = ""
    cell: int = 0
    line: int = 0
    age_s: float = 0.0
    error: str = ""
    usage: tuple[m.RankUsage, ...] = ()
    """What it used lately, oldest first, while somebody looks (`watch_usage`)."""


class Roster:
    """Of one cluster, whose cells these are."""

    def __init__(self, cells: Cells) -> None:
        self._cells = cells
        self._conditions = Conditions()
        self._usage = UsageBook()
        self._born_after: dict[int, int] = {}
        """By rank, the last cell before its process: what befell an earlier one is not its."""
        self.hostname = ""
        """Of the node that the ranks are on."""

    # -- what is heard of ranks ------------------------------------------------------------------

    def bear(self, message: m.WorkerForked, now: float) -> None:
        """`now`: seconds, monotonic."""
        self._born_after[message.rank] = self._cells.last
        self._usage.bear(message.rank, now)

    def suspend(self, message: m.WorkerSuspended) -> None:
        self._conditions.take(message)

    def use(self, message: m.Usage) -> None:
        for usage in message.ranks:
            self._usage.fold(usage)

    # -- what is said of them --------------------------------------------------------------------

    def notes(self, pool: Pool) -> dict[int, str]:
        """By rank, what a cell that begins has to say of it."""
        if not self._conditions:
            return {}
        alive = {rank: state.pid for rank, state in list(pool.ranks.items()) if state.alive}
        return self._conditions.notes(alive)

    def status(self, pool: Pool, now: float) -> list[RankStatus]:
        """Of each rank of the pool; `now` in seconds, monotonic."""
        running = self._cells.running
        return [self._status_of(pool, rank, state, running, now) for rank, state in list(pool.ranks.items())]

    def _status_of(
        self, pool: Pool, rank: int, state: RankState, running: Execution | None, now: float
    ) -> RankStatus:
        word, history = self._state_of(pool, rank, state), self._usage.history(rank)
        busy = running is not None and word == "running"
        return RankStatus(
            rank=rank,
            pid=state.pid,
            device=state.place.device,
            state=word,
            node=self.hostname,
            cell=running.count if running is not None and busy else 0,
            line=history[-1].line if history and busy else 0,
            age_s=self._usage.age_s(rank, now),
            error=self._error_of(rank, state),
            usage=history,
        )

    def _error_of(self, rank: int, state: RankState) -> str:
        if state.exited is not None:
            return describe_exit(state.exited)
        return state.doomed or self._cells.last_error(rank, self._born_after.get(rank, 0))

    def _state_of(self, pool: Pool, rank: int, state: RankState) -> str:
        if not state.alive:
            return "dead"
        if state.doomed:
            return "doomed"
        if condition := self._conditions.state(rank, state.pid):
            return condition
        if state.generation:
            return "running" if rank in pool.running_on else "idle"
        return "connected" if state.connected else "forked" if state.pid else "waiting"
