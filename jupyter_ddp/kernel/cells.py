"""The cells of one cluster: from the order to run one until its record is complete.

Owns the records of the last cells, and what the exchange's thread tells of those that run. Who the
ranks are, and how a pool comes to be, is no business of it.
"""

from __future__ import annotations

import itertools
import tempfile
import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import BinaryIO

from jupyter_ddp.core import events as ev
from jupyter_ddp.core import messages as m
from jupyter_ddp.core.advice import remarks
from jupyter_ddp.core.compiled_cell import cell_file
from jupyter_ddp.core.errors import PoolError
from jupyter_ddp.core.record import CellRecord
from jupyter_ddp.kernel.conditions import stopped_note
from jupyter_ddp.kernel.exchange import Exchange
from jupyter_ddp.kernel.execution import Execution, Follower, OnNews
from jupyter_ddp.kernel.interrupts import InterruptsTo
from jupyter_ddp.kernel.source import PreparedSource

RECORDS_KEPT = 20
_LATE = (m.Output, m.FdOutput, m.Display, m.ClearOutput)
"""What a thread or a child process that outlives its cell may say."""


class Cells:
    """Numbered from 1 in the order in which they were asked for.

    `order` has the pool handle an event, calls what it is given before any answer is read, and says who
    serves it; it raises PoolError without a pool.
    `interrupt` is what the notebook's interrupt button does while a cell runs. `conditions` gives what is
    to be said of ranks at a cell's begin, by rank.
    """

    def __init__(
        self,
        order: Callable[[ev.Event, Callable[[], None]], Exchange],
        interrupt: Callable[[], None],
        conditions: Callable[[], dict[int, str]],
    ) -> None:
        self._order, self._interrupt, self._conditions = order, interrupt, conditions
        self._executions: OrderedDict[int, Execution] = OrderedDict()
        self._numbers = itertools.count(1)
        self.last = 0
        """The number of the last one."""
        self._early: dict[int, ev.CellRefused | ev.CellEnded] = {}
        """What has become of a cell before its record was made: refused, or its node agent is gone."""
        self._outdated: dict[int, CellRecord] = {}

    def run(
        self,
        prepared: PreparedSource,
        ranks: tuple[int, ...],
        world_size: int,
        log_quota_bytes: int,
        *,
        check_collectives: bool,
        timeout_s: float,
        on_news: OnNews | None,
        count: int,
        hang_timeout_s: float,
    ) -> CellRecord:
        """Run a cell and wait for its end on all of `ranks`. Raises PoolError when it was not run."""
        self.last = cell = next(self._numbers)
        execution: Execution | None = None

        def begin() -> None:
            nonlocal execution
            record = CellRecord(cell, ranks, _open_spool, threading.RLock(), log_quota_bytes)
            record.prompt = count
            execution = self._begin(Execution(record, count))

        with InterruptsTo(self._interrupt):
            request = ev.CellRequested(
                cell,
                ranks,
                prepared.source,
                prepared.awaits,
                prepared.shows,
                count,
                check_collectives,
                timeout_s,
                hang_timeout_s,
                prepared.packed(cell_file(cell, count)),
            )
            # The record is made while the ranks are at work, before anything that they say is read.
            exchange = self._order(request, begin)
            try:
                if execution is None:
                    raise PoolError("the cluster was closed; %ddp start starts a pool")
                if prepared.tree is not None:
                    execution.advise(remarks(prepared.source, prepared.tree, ranks, world_size))
                self._forget_surplus()
                for rank, text in self._conditions().items():
                    execution.note(rank, text)
                took_long = ev.CellTookLong(cell)
                follow = Follower(execution, exchange.wait, on_news, lambda: exchange.submit(took_long))
                while not execution.done:
                    follow.step()
            finally:
                exchange.rest()
            if on_news is not None and not execution.refusal:
                on_news(execution.record, True)
        if execution.refusal:
            raise PoolError(execution.refusal)
        return execution.record

    def _begin(self, execution: Execution) -> Execution:
        """From here on what the ranks say of the cell is taken."""
        cell = execution.record.cell
        self._executions[cell] = execution
        match self._early.pop(cell, None):
            case ev.CellRefused() as refused:
                self.refuse(refused)
            case ev.CellEnded() as ended:
                self.end(ended)
        return execution

    def _forget_surplus(self) -> None:
        """Of the records that nobody else holds, keep the last."""
        surplus = len(self._executions) - RECORDS_KEPT
        if surplus > 0:
            ended = (cell for cell, kept in list(self._executions.items()) if kept.done)
            for cell in list(itertools.islice(ended, surplus)):
                self._executions.pop(cell, None)
                self._outdated.pop(cell, None)  # nobody may ever ask

    # -- what others may read --------------------------------------------------------------------

    def records(self) -> list[CellRecord]:
        """Of the last cells, oldest first."""
        return [execution.record for execution in self._executions.values()]

    def outdated(self) -> list[CellRecord]:
        """Those that have changed since the last call, though their cells had ended."""
        found = []
        while self._outdated:
            found.append(self._outdated.popitem()[1])
        return found

    def count_of(self, record: CellRecord) -> int:
        """The notebook's prompt number of a cell whose record is kept; 0 where no notebook asked for it."""
        execution = self._executions.get(record.cell)
        return execution.count if execution is not None else 0

    @property
    def running(self) -> Execution | None:
        return next((e for e in reversed(list(self._executions.values())) if not e.done), None)

    def last_error(self, rank: int, after: int) -> str:
        """Of the last of its cells after that one that failed, in one line; "" if none of those that are kept
        did."""
        for execution in reversed(list(self._executions.values())):
            if execution.record.cell <= after:
                break
            if rank in execution.record.ranks and (words := execution.record.failure_of(rank)):
                return words
        return ""

    # -- from the exchange's thread --------------------------------------------------------------

    def fold(self, message: m.CellMessage) -> None:
        """Take what a rank says of a cell into the cell's record."""
        execution = self._executions.get(message.cell) or self._for_late(message)
        if execution is not None:
            execution.record.fold(message)
            if execution.done and isinstance(message, _LATE):
                self._outdated[execution.record.cell] = execution.record
            if type(message) is m.Display and message.update:
                self._update_earlier(execution.record, message)
            execution.tell(message)

    def _for_late(self, message: m.CellMessage) -> Execution | None:
        """Where the output goes of a cell whose record is gone: a thread of it prints for ever."""
        kept = list(self._executions.values())
        if not (kept and isinstance(message, _LATE) and m.NO_CELL < message.cell < kept[0].record.cell):
            return None
        return next((e for e in reversed(kept) if message.rank in e.record.ranks), None)

    def _update_earlier(self, record: CellRecord, message: m.Display) -> None:
        """What an earlier cell displayed is updated in that cell's record."""
        if record.displays(message.rank, message.display_id):
            return
        for earlier in reversed(self.records()):
            if earlier is not record and earlier.update_display(message):
                self._outdated[earlier.cell] = earlier
                return
        record.note(
            message.rank,
            f"an update was not shown: the last {RECORDS_KEPT} cells have no display {message.display_id!a}",
        )

    def note_death(self, exit: m.WorkerExited) -> None:
        """A rank has died that a cell waits for. Said in the cell at once: others may compute for hours."""
        for execution in self._open():
            if exit.rank in execution.record.ranks:
                execution.record.die(exit, execution.age_s)
                execution.tell_at_once()

    def note_suspended(self, message: m.WorkerSuspended) -> None:
        text = stopped_note(message.rank, message.pid)
        for execution in self._open():
            execution.note(message.rank, text, message.suspended)

    def show(self, said: ev.Announced | ev.HangSeen) -> bool:
        """What the pool says of a cell that runs; False where it is not said of one."""
        execution = self._executions.get(said.cell)
        if execution is not None:
            execution.show(said)
        return execution is not None

    def refuse(self, effect: ev.CellRefused) -> None:
        refused = self._executions.pop(effect.cell, None)
        if refused is None:
            self._early[effect.cell] = effect
            return
        refused.refusal = effect.reason
        refused.finish()

    def end(self, effect: ev.CellEnded) -> None:
        """Complete the cell's record with what no rank has said of itself."""
        execution = self._executions.get(effect.cell)
        if execution is None:
            self._early[effect.cell] = effect
            return
        for exit in effect.deaths:
            execution.record.die(exit, execution.age_s)
        dead = {exit.rank for exit in effect.deaths}
        for rank, reason in effect.reasons.items():
            if rank not in dead:
                execution.record.settle(rank, effect.verdicts[rank], reason)
        for warning in effect.warnings:
            execution.record.warn(warning)
        execution.record.conclude(effect.hang)
        execution.finish()

    def end_all(self, why: str) -> None:
        """Nobody will say any more how those that run have ended."""
        for execution in self._open():
            execution.abandon(why)

    def _open(self) -> list[Execution]:
        return [execution for execution in list(self._executions.values()) if not execution.done]


def _open_spool() -> BinaryIO:
    """Without a name, so it goes with the record or with this process, however that ends."""
    return tempfile.TemporaryFile(prefix="jupyter_ddp-", buffering=0)
