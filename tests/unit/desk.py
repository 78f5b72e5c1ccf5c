"""The pool's machine on a desk: a clock that the test moves, and effects in the words of who hears them."""

from __future__ import annotations

import signal
from typing import Any

from jupyter_ddp.core import events as ev
from jupyter_ddp.core import messages as m
from jupyter_ddp.core import pool as p
from jupyter_ddp.core.bounds import PEER_DIED_TIMEOUT_S
from jupyter_ddp.core.ladder import NOTICE_S
from jupyter_ddp.core.topology import make_plan

SURROUNDINGS = m.Surroundings({}, "/", [], "127.0.0.1", 1, "run", 0)
SIGKILLED, EXITED_3 = 9, 3 << 8


class Desk:
    """A pool, a clock that the test moves, and the words that users and ranks would say."""

    def __init__(self) -> None:
        self.pool = p.Pool()
        self.now = 1000.0
        self.cells = 0

    def handle(self, event: ev.Event) -> list[ev.Effect]:
        return self.pool.handle(event, self.now)

    # the user

    def start(self, n: int) -> list[ev.Effect]:
        return self.handle(ev.StartRequested(make_plan(n, []), SURROUNDINGS))

    def resize(self, n: int) -> list[ev.Effect]:
        return self.handle(ev.ResizeRequested(make_plan(n, []), SURROUNDINGS))

    def run(self, *targets: int, timeout_s: float = 0.0) -> list[ev.Effect]:
        self.cells += 1
        return self.handle(ev.CellRequested(self.cells, targets, "pass", count=7, timeout_s=timeout_s))

    def interrupt(self) -> list[ev.Effect]:
        return self.handle(ev.InterruptRequested())

    def stop(self) -> list[ev.Effect]:
        return self.handle(ev.StopRequested())

    # time

    def after(self, seconds: float) -> list[ev.Effect]:
        """Let time pass; the deadline that falls due by then is kept at its own time."""
        until = self.now + seconds
        due = self.pool.next_deadline
        if due is None or due > until:
            self.now = until
            return self.handle(ev.Ticked())
        self.now = due
        effects = self.handle(ev.Ticked())
        return [*effects, *self.after(until - due)]

    # ranks

    def forks(self, *ranks: int, pids: int = 100) -> list[ev.Effect]:
        return [e for r in ranks for e in self.handle(m.WorkerForked(r, pids + r))]

    def connects(self, *ranks: int, pids: int = 100) -> list[ev.Effect]:
        return [e for r in ranks for e in self.handle(m.WorkerConnected(r, 0, 0, 0, pids + r))]

    def forms(self, *ranks: int, generation: int | None = None) -> list[ev.Effect]:
        made = generation or self.pool.generation
        return [e for r in ranks for e in self.handle(m.GroupFormed(r, made, 0, 0, 0.01))]

    def fails_to_form(self, rank: int) -> list[ev.Effect]:
        return self.handle(m.GroupFailed(rank, self.pool.generation, 0, 0, "refused"))

    def ends(self, rank: int, verdict: Any = "ok", broken: bool = False) -> list[ev.Effect]:
        return self.handle(m.CellFinished(rank, 1, self.cells, 0, verdict, 0.1, broken))

    def answers(self, rank: int, *, waits_in: str = "", entered: int = 0) -> list[ev.Effect]:
        """What the rank says it does, when the pool asks: nothing, or a collective of all ranks."""
        look = self.pool.open_look
        assert look is not None
        call = m.Call(entered, waits_in or "all_reduce", 3, "line 3", finished=not waits_in)
        state = m.GroupState("0", (), entered, (call,) if entered else ())
        doing = "waiting" if waits_in else "computing"
        return self.handle(
            m.RankSeen(rank, 1, self.cells, 0, look, doing, 3, "line 3", waits_in=waits_in, groups=(state,))
        )

    def dies(self, rank: int, status: int = SIGKILLED, pid: int = 0, stderr: str = "") -> list[ev.Effect]:
        return self.handle(m.WorkerExited(rank, pid or 100 + rank, status, 0, 0, stderr, 0))

    def frees_peers(self, *waiting: int, after_s: float = PEER_DIED_TIMEOUT_S) -> list[ev.Effect]:
        """A rank has died, and the living are asked: these wait in a collective of all. What is done."""
        effects = self.after(after_s)
        for rank in tells(effects, m.Look):
            self.answers(rank, waits_in="all_reduce" if rank in waiting else "", entered=1)
        return self.after(NOTICE_S)

    def come_up(self, n: int) -> None:
        ranks = range(n)
        self.start(n)
        self.forks(*ranks)
        self.connects(*ranks)
        assert self.forms(*ranks) == [ev.StartFinished()]


def died(rank: int, signal: str = "SIGKILL", left: str = "ranks 0-1 keep") -> ev.Announced:
    words = f"rank {rank} died: killed by {signal}; {left} all variables; %ddp heal replaces rank {rank}"
    return ev.Announced(words)


def kills(*ranks: int) -> ev.SendToNodes:
    return ev.SendToNodes(ranks, m.SignalRanks(list(ranks), int(signal.SIGKILL), True))


def interrupts(*ranks: int) -> ev.SendToNodes:
    return ev.SendToNodes(ranks, m.SignalRanks(list(ranks), int(signal.SIGINT), False))


def breaks(generation: int, *ranks: int) -> ev.SendToNodes:
    return ev.SendToNodes(ranks, m.Tell(list(ranks), m.BreakGroup(generation)))


def tells(effects: list[ev.Effect], kind: type[m.Message]) -> list[int]:
    """The ranks that these effects tell a command of this kind."""
    told: list[int] = []
    for effect in effects:
        if isinstance(effect, ev.SendToNodes) and isinstance(effect.message, m.Tell):
            told += effect.message.ranks if isinstance(effect.message.command, kind) else []
    return told


def only(effects: list[ev.Effect], kind: type[Any]) -> Any:
    """The one effect of this kind."""
    found = [effect for effect in effects if isinstance(effect, kind)]
    assert len(found) == 1, effects
    return found[0]
