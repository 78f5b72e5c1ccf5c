"""The pool's state machine: `handle(event, now) -> effects`.

Owns the membership: which ranks exist, which group they form, which cell runs on whom. It reads no
clock and sends nothing: time comes with each event, and what is to be done goes out as effects. Every
wait has a deadline, so ticks alone bring the machine to rest.
"""

from __future__ import annotations

import enum
import signal
from collections.abc import Sequence
from typing import assert_never

from jupyter_ddp.core import doomed, healing
from jupyter_ddp.core import messages as m
from jupyter_ddp.core.bounds import FORM_TIMEOUT_S, KILL_TIMEOUT_S, START_TIMEOUT_S, STOP_TIMEOUT_S
from jupyter_ddp.core.events import (
    Announced,
    CellRefused,
    CellRequested,
    CellTookLong,
    Effect,
    Event,
    HealRequested,
    InterruptRequested,
    LookRequested,
    NodeLost,
    ResizeRequested,
    StartFinished,
    StartRequested,
    StopFinished,
    StopRequested,
    Ticked,
    signal_ranks,
    tell_ranks,
)
from jupyter_ddp.core.faults import describe_exit
from jupyter_ddp.core.lookout import Lookout
from jupyter_ddp.core.membership import Membership, RankState
from jupyter_ddp.core.running_cell import RunningCell
from jupyter_ddp.core.topology import Plan, named
from jupyter_ddp.core.verdicts import Verdict


class Phase(enum.Enum):
    STOPPED = "stopped"
    STARTING = "starting"
    READY = "ready"
    RUNNING = "running"
    FORMING = "forming"
    """A later generation of the group is being formed, between cells."""
    STOPPING = "stopping"


class Pool:
    """One pool of ranks. All changes go through `handle`."""

    def __init__(self) -> None:
        self.phase = Phase.STOPPED
        self._members = Membership()
        self._cell: RunningCell | None = None
        self._lookout = Lookout()
        self._next: CellRequested | None = None  # waits for the group that is being formed
        self._deadline: float | None = None
        self._failure = ""  # why a start is being undone
        self._kill_sent = False
        self._stops = 0  # requests to stop that wait for an answer

    # -- what others may read --------------------------------------------------------------------

    @property
    def ranks(self) -> dict[int, RankState]:
        return self._members.ranks

    @property
    def world_size(self) -> int:
        return len(self._members.ranks)

    @property
    def plan(self) -> Plan | None:
        return self._members.plan

    @property
    def generation(self) -> int:
        return self._members.generation

    @property
    def dead(self) -> tuple[int, ...]:
        return self._members.dead

    @property
    def alive(self) -> tuple[int, ...]:
        return self._members.alive

    @property
    def unfit(self) -> tuple[int, ...]:
        return self._members.unfit

    @property
    def next_deadline(self) -> float | None:
        """When `Ticked` is due, on the clock that `now` comes from; None: nothing is waited for."""
        earliest, cell = self._deadline, self._cell
        others = [self._members.gone_deadline]
        if cell is not None:
            others += [cell.deadline, cell.timeout_at, cell.climbs_at]
            others += [self._lookout.deadline, cell.hang_deadline]
        for other in others:  # asked for several times a cell: min() takes longer
            if other is not None and (earliest is None or other < earliest):
                earliest = other
        return earliest

    @property
    def open_look(self) -> int | None:
        """The number of the pool's own question to its ranks that is not answered yet."""
        return self._lookout.open_look

    @property
    def running_on(self) -> frozenset[int]:
        """The ranks that the current cell has not ended on."""
        return frozenset(self._cell.waiting if self._cell else ())

    # -- events ----------------------------------------------------------------------------------

    def handle(self, event: Event, now: float) -> list[Effect]:
        """Take one event at time `now` (seconds, monotonic); give what is to be done, in order."""
        match event:
            case m.GoodEnds():
                return self._go_on(self._cell.finished(event.ends, now), now) if self._cell else []
            case m.CellFinished():
                return self._go_on(self._cell.finished((event,), now), now) if self._cell else []
            case m.RankStuck():
                return self._cell.stuck(event, now) if self._cell else []
            case m.RankSeen() | m.RankUnseen():
                last = self._lookout.take(event)
                return self._go_on(self._cell.looked(now), now) if last and self._cell else []
            case CellTookLong():
                return self._cell.took_long(event, now) if self._cell else []
            case LookRequested():
                return [tell_ranks(self.alive, m.Look(event.number, event.full))] if self.alive else []
            case CellRequested():
                return self._run(event, now)
            case StartRequested():
                return self._start(event, now)
            case ResizeRequested():
                return self._resize(event, now)
            case HealRequested():
                return self._heal(event, now)
            case InterruptRequested():
                return self._interrupt(now)
            case StopRequested():
                return self._stop(now)
            case NodeLost():
                return self._node_lost(event)
            case Ticked():
                return self._tick(now)
            case m.PreloadFailed():
                return self._preload_failed(event, now)
            case m.WorkerForked():
                return self._forked(event)
            case m.WorkerConnected():
                return self._connected(event)
            case m.GroupFormed():
                return self._formed(event, now)
            case m.GroupFailed():
                return self._group_failed(event, now)
            case m.WorkerExited():
                return self._exited(event, now)
            case _:
                assert_never(event)

    def _rest(self, phase: Phase) -> None:
        """Come to rest in a phase in which nothing is waited for."""
        self.phase, self._deadline = phase, None

    def _ready(self, now: float) -> list[Effect]:
        """Come to rest with ranks that take cells, and take the one that waits."""
        self._rest(Phase.READY)
        waiting, self._next = self._next, None
        return self._run(waiting, now) if waiting else []

    # -- starting --------------------------------------------------------------------------------

    def _start(self, event: StartRequested, now: float) -> list[Effect]:
        if self.phase is not Phase.STOPPED:
            return [StartFinished(f"the pool is {self.phase.value}; %ddp stop ends it")]
        self.phase, self._deadline = Phase.STARTING, now + START_TIMEOUT_S
        return self._members.start(event)

    def _forked(self, event: m.WorkerForked) -> list[Effect]:
        if self._members.forked(event) and self.phase is Phase.STOPPING:  # born after the order to end it
            return [signal_ranks([event.rank], signal.SIGKILL, group=True)]
        return []

    def _connected(self, event: m.WorkerConnected) -> list[Effect]:
        complete = self._members.connected(event)
        return self._members.form() if complete and self.phase is Phase.STARTING else []

    def _formed(self, event: m.GroupFormed, now: float) -> list[Effect]:
        if not self._members.formed(event) or self.phase not in (Phase.STARTING, Phase.FORMING):
            return []
        started = self.phase is Phase.STARTING
        self._members.settle()
        ready = self._ready(now)
        return [StartFinished(), *ready] if started else ready

    def _group_failed(self, event: m.GroupFailed, now: float) -> list[Effect]:
        if event.generation != self._members.awaited:
            return []
        why = f"rank {event.rank} could not join the process group: {event.reason}"
        if self.phase is Phase.STARTING:
            return self._undo_start(why, now)
        if self.phase is Phase.FORMING:
            return [Announced(f"{why}; %ddp restart starts anew"), *self._members.free(), *self._ready(now)]
        return []

    def _preload_failed(self, event: m.PreloadFailed, now: float) -> list[Effect]:
        """What has no process yet will never have one; what has one goes on."""
        if not self._members.forget_unborn():
            return []
        if self.phase is Phase.STARTING:
            cause = event.stderr.strip().rpartition("\n")[2] or "its process ended"
            why = f"what ranks are forked from could not be prepared: {cause}"
            return self._undo_start(f"{why}; repair that, then start again", now)
        return [] if self.alive else self._stopped()

    def _undo_start(self, why: str, now: float) -> list[Effect]:
        """Leave nothing of a pool that did not come up; say why once nothing is left."""
        if self._members.changing:
            return self._undo_change(why, now)
        self._failure, self.phase, self._kill_sent = why, Phase.STOPPING, True
        self._deadline = now + KILL_TIMEOUT_S
        return self._members.kill() or self._stopped()

    # -- cells -----------------------------------------------------------------------------------

    def _run(self, event: CellRequested, now: float) -> list[Effect]:
        if self.phase is Phase.FORMING and self._next is None:
            self._next = event
            return []
        if refusal := self._refusal(event.targets):
            return [CellRefused(event.cell, refusal)]
        self.phase, self._cell = Phase.RUNNING, RunningCell(event, self._members, self._lookout, now)
        members = () if len(event.targets) == len(self._members.ranks) else event.targets
        run = m.RunCell(
            event.cell,
            event.source,
            event.awaits,
            event.shows,
            members,
            event.count,
            event.checks,
            event.code,
        )
        return [tell_ranks(event.targets, run)]

    def _refusal(self, targets: Sequence[int]) -> str:
        ranks = self._members.ranks
        if self.phase is Phase.RUNNING:
            return "busy: another cell runs on the pool; wait for it, or stop it with %ddp interrupt"
        if self.phase is Phase.STOPPED:
            return "there is no pool; %ddp start -n 4 starts one"
        if self.phase is not Phase.READY:
            return f"the pool is {self.phase.value}; run the cell again when it is ready (%ddp status)"
        if not targets:
            return "the cell names no rank to run on"
        if unknown := [r for r in targets if r not in ranks]:
            return f"the pool has no {named(unknown, '-')}; it has 0-{len(ranks) - 1}"
        if not (unfit := [r for r in targets if not ranks[r].fit]):
            return ""
        if not (gone := [r for r in unfit if not ranks[r].alive]):
            return doomed.refusal({r: ranks[r].doomed for r in unfit}, self._members.fit)
        exit = ranks[gone[0]].exited
        why = f": {describe_exit(exit)}" if exit else ""
        lost = "" if self.alive else "pool lost: "
        way_on = healing.way_on(self._members.fit)
        return f"{lost}{named(gone, '-')} died{why}; nothing was run. To go on: {way_on}"

    def _go_on(self, effects: list[Effect], now: float) -> list[Effect]:
        """What the cell asks for; and when it is over with that, see to the group."""
        cell = self._cell
        if cell is None or not cell.over:
            return effects
        self._cell = None
        self._rest(Phase.READY)
        if cell.group_broken and not self.unfit:
            self.phase, self._deadline = Phase.FORMING, now + FORM_TIMEOUT_S
            return [*effects, *self._members.form(), *cell.ended()]
        # Without the dead there is no group: all of the living have to know, also who did not wait in it.
        return [*effects, *(self._members.free() if cell.group_broken else []), *cell.ended()]

    def _interrupt(self, now: float) -> list[Effect]:
        if self.phase is Phase.STARTING:
            return self._undo_start("interrupted", now)
        if self._cell is None:
            return self._refuse_next("interrupted before it began; nothing was run")
        return self._go_on(self._cell.interrupt(now), now)

    # -- changing --------------------------------------------------------------------------------

    def _resize(self, event: ResizeRequested, now: float) -> list[Effect]:
        if self.phase is not Phase.READY or self.plan is None:
            return [StartFinished(f"the pool is {self.phase.value}; it can be resized when it is ready")]
        if self.unfit:
            words = f"{named(self.dead, '-')} died" if self.dead else doomed.are_doomed(self._members.doomed)
            return [StartFinished(f"{words}; %ddp heal comes before a resize")]
        self.phase, self._deadline = Phase.STARTING, now + START_TIMEOUT_S
        return self._members.resize(event, now)

    def _heal(self, event: HealRequested, now: float) -> list[Effect]:
        members = self._members
        if why := healing.refusal(
            self.phase.value, tuple(self.ranks), members.fit, members.doomed, event.source
        ):
            return [StartFinished(why)]
        effects = members.heal(event)
        self.phase, self._deadline = Phase.STARTING, now + self._start_timeout_s
        return effects

    @property
    def _start_timeout_s(self) -> float:
        heal = self._members.healing
        return heal.timeout_s if heal else START_TIMEOUT_S

    def _undo_change(self, why: str, now: float) -> list[Effect]:
        """The new ranks did not come up: end them, and go on with the old ones as they were."""
        members = self._members
        heal, kill = members.healing, members.undo_change()
        if heal is not None:  # without its dead rank there is no group to form; whoever waits in one is freed
            free = [*members.free(), *self._stop_copying(heal)] if self.generation > heal.generation else []
            return [*kill, *free, StartFinished(heal.failed(why)), *self._ready(now)]
        free = members.free()
        self.phase, self._deadline = Phase.FORMING, now + FORM_TIMEOUT_S
        return [*kill, *free, *(self._ready(now) if self.unfit else members.form()), StartFinished(why)]

    def _stop_copying(self, heal: healing.Healing) -> list[Effect]:
        """A rank that still collects its variables gives up; SIGINT does nothing to one that does not."""
        source = self.ranks.get(-1 if heal.source is None else heal.source)
        return [signal_ranks([source.place.rank], signal.SIGINT)] if source and source.alive else []

    # -- ends ------------------------------------------------------------------------------------

    def _exited(self, event: m.WorkerExited, now: float) -> list[Effect]:
        if not self._members.exited(event):
            return []
        if self.phase is Phase.STARTING:
            return self._undo_start(_start_failure(event, self._members.healing), now)
        if self.phase is Phase.STOPPING:
            return [] if self.alive else self._stopped()
        cell = self._cell
        effects = self._go_on(cell.died(event, now), now) if cell else self._died_idle(event, now)
        return effects if self.alive else [*effects, self._members.lost()]

    def _died_idle(self, event: m.WorkerExited, now: float) -> list[Effect]:
        died = self._members.death(event)
        return [died, *self._members.free(), *self._ready(now)] if self.phase is Phase.FORMING else [died]

    def _stop(self, now: float) -> list[Effect]:
        if self.phase is Phase.STOPPED:
            return [StopFinished()]
        self._stops += 1
        if self.phase is Phase.STOPPING:
            return []
        if self.phase is Phase.STARTING:
            self._failure = "the pool was stopped while it started"
        effects: list[Effect] = self._give_up_cell("unknown", "the pool was stopped")
        living = self.alive
        self.phase, self._deadline, self._kill_sent = Phase.STOPPING, now + STOP_TIMEOUT_S, False
        if not living:
            return [*effects, *self._stopped()]
        return [*effects, tell_ranks(living, m.EndWorker())]

    def _give_up_cell(self, verdict: Verdict, why: str) -> list[Effect]:
        cell, self._cell = self._cell, None
        effects = self._refuse_next(why)
        return effects if cell is None else [*effects, *cell.give_up(verdict, why)]

    def _refuse_next(self, why: str) -> list[Effect]:
        waiting, self._next = self._next, None
        return [CellRefused(waiting.cell, why)] if waiting else []

    def _stopped(self) -> list[Effect]:
        """Nothing is left but what the system does not end: answer whoever asked for it."""
        stuck = self._members.dissolve()
        failure, self._failure = self._failure, ""
        stops, self._stops = self._stops, 0
        self._rest(Phase.STOPPED)
        if failure and stuck:
            failure += f"\nthe system does not end these processes: {', '.join(map(str, stuck))}"
        started: list[Effect] = [StartFinished(failure)] if failure else []
        return [*started, *[StopFinished(stuck)] * stops]

    def _node_lost(self, event: NodeLost) -> list[Effect]:
        self._members.forget()
        if self.phase is Phase.STOPPED:
            return []
        effects = self._give_up_cell("died", event.reason)
        if self.phase is Phase.STARTING:
            self._failure = event.reason
        elif self.phase is not Phase.STOPPING:
            effects.append(Announced(f"pool lost: {event.reason}; the variables of all ranks are lost"))
        return [*effects, *self._stopped()]

    # -- deadlines -------------------------------------------------------------------------------

    def _tick(self, now: float) -> list[Effect]:
        lingering = self._members.kill_lingering(now)
        in_cell = self._go_on(self._cell.tick(now), now) if self._cell else []
        return [*lingering, *in_cell, *self._pass_deadline(now)]

    def _pass_deadline(self, now: float) -> list[Effect]:
        if self._deadline is None or now < self._deadline:
            return []
        self._deadline = None
        match self.phase:
            case Phase.STARTING:
                return self._undo_start(self._members.late(self._start_timeout_s), now)
            case Phase.FORMING:
                late = self._members.late(FORM_TIMEOUT_S)
                return [Announced(f"{late}; %ddp restart starts anew"), *self._ready(now)]
            case Phase.STOPPING if not self._kill_sent:
                self._kill_sent, self._deadline = True, now + KILL_TIMEOUT_S
                return self._members.kill()
            case Phase.STOPPING:
                return self._stopped()
            case Phase.STOPPED | Phase.READY | Phase.RUNNING:
                return []  # what is due in a cell is the cell's affair
            case _:
                assert_never(self.phase)


def _start_failure(exit: m.WorkerExited, heal: healing.Healing | None) -> str:
    if heal is not None:
        return heal.ended_early(exit)
    what = f"rank {exit.rank} ended before the pool was up: {describe_exit(exit)}"
    return f"{what}\n{exit.stderr}".rstrip()
