"""The pool's state machine: `handle(event, now) -> effects`.

Owns the membership: which ranks exist, which group they form, which cell runs on whom. It reads no
clock and sends nothing: time comes with each event, and what is to be done goes out as effects. Every
wait has a deadline, so ticks alone bring the machine to rest.
"""

from __future__ import annotations

import enum
import signal
from collections.abc import Iterable, Sequence
from typing import assert_never

from jupyter_ddp.core import healing
from jupyter_ddp.core import messages as m
from jupyter_ddp.core.events import (
    Announced,
    CellRefused,
    CellRequested,
    Effect,
    Event,
    HealRequested,
    InterruptRequested,
    LookRequested,
    NodeLost,
    ResizeRequested,
    SendToNodes,
    StartFinished,
    StartRequested,
    StopFinished,
    StopRequested,
    Ticked,
)
from jupyter_ddp.core.faults import describe_exit, describe_status
from jupyter_ddp.core.ladder import Turn
from jupyter_ddp.core.lookout import Lookout, Purpose
from jupyter_ddp.core.running_cell import RunningCell
from jupyter_ddp.core.topology import Plan, named
from jupyter_ddp.core.verdicts import Verdict

START_TIMEOUT_S = 120.0
"""From the request for a pool until its group is formed: a cold import of torch on a slow disk."""
FORM_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 2.0
"""How long ranks may take over their exit functions before they are killed."""
KILL_TIMEOUT_S = 5.0
"""How long the system may take to end a killed process before it is reported as unkillable."""
PEER_FAILED_TIMEOUT_S = 5.0
"""After a rank's exception, how long the others may take before waits on it are broken."""
PEER_DIED_TIMEOUT_S = 1.0

OUT_OF_STEP_MEANS = (
    "the cell's results may be wrong; the process group is formed again and variables are kept"
)


class Phase(enum.Enum):
    STOPPED = "stopped"
    STARTING = "starting"
    READY = "ready"
    RUNNING = "running"
    FORMING = "forming"
    """A later generation of the group is being formed, between cells."""
    STOPPING = "stopping"


class RankState:
    """What is known of one rank's process."""

    def __init__(self, place: m.WorkerPlace) -> None:
        self.place = place
        self.pid = 0
        self.connected = False
        self.generation = 0
        """The generation of the group that it is a member of; 0 for none."""
        self.exited: m.WorkerExited | None = None

    @property
    def alive(self) -> bool:
        return self.exited is None


class Pool:
    """One pool of ranks. All changes go through `handle`."""

    def __init__(self) -> None:
        self.phase = Phase.STOPPED
        self.generation = 0
        self.ranks: dict[int, RankState] = {}
        self.plan: Plan | None = None
        self._cell: RunningCell | None = None
        self._lookout = Lookout()
        self._next: CellRequested | None = None  # waits for the group that is being formed
        self._deadline: float | None = None
        self._failure = ""  # why a start is being undone
        self._kill_sent = False
        self._before_change: tuple[Plan, dict[int, RankState]] | None = None
        """What a resize or a heal that fails goes back to."""
        self._healing: healing.Healing | None = None
        self._stops = 0  # requests to stop that wait for an answer
        self._gone: list[RankState] = []
        """Let go of, and not known to have ended; their ranks' numbers may have new processes."""
        self._gone_deadline: float | None = None

    # -- what others may read --------------------------------------------------------------------

    @property
    def world_size(self) -> int:
        return len(self.ranks)

    @property
    def next_deadline(self) -> float | None:
        """When `Ticked` is due, on the clock that `now` comes from; None: nothing is waited for."""
        earliest, cell = self._deadline, self._cell
        others = [self._gone_deadline]
        if cell is not None:
            others += [cell.timeout_at, cell.climbs_at, self._lookout.deadline, self._hang_deadline]
        for other in others:  # asked for several times a cell: min() takes longer
            if other is not None and (earliest is None or other < earliest):
                earliest = other
        return earliest

    @property
    def open_look(self) -> int | None:
        """The number of the pool's own question to its ranks that is not answered yet."""
        return self._lookout.open_look

    @property
    def _hang_deadline(self) -> float | None:
        cell = self._cell
        if not self._lookout.hang_text or cell is None or cell.break_sent:
            return None
        return self._lookout.hang_deadline(cell.hang_timeout_s)

    @property
    def dead(self) -> tuple[int, ...]:
        return tuple(rank for rank, state in self.ranks.items() if not state.alive)

    @property
    def alive(self) -> tuple[int, ...]:
        return tuple(rank for rank, state in self.ranks.items() if state.alive)

    @property
    def running_on(self) -> frozenset[int]:
        """The ranks that the current cell has not ended on."""
        return frozenset(self._cell.waiting if self._cell else ())

    # -- events ----------------------------------------------------------------------------------

    def handle(self, event: Event, now: float) -> list[Effect]:
        """Take one event at time `now` (seconds, monotonic); give what is to be done, in order."""
        match event:
            case m.GoodEnds():
                return self._finished(event.ends, now)
            case m.CellFinished():
                return self._finished((event,), now)
            case m.RankStuck():
                return self._stuck(event, now)
            case m.RankSeen() | m.RankUnseen():
                return self._looked(now) if self._lookout.take(event) else []
            case LookRequested():
                return [_tell(self.alive, m.Look(event.number, event.full))] if self.alive else []
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
        self.plan = event.plan
        self.ranks = {place.rank: RankState(place) for place in event.plan.places}
        self.phase, self._deadline = Phase.STARTING, now + START_TIMEOUT_S
        return self._launch(list(event.plan.places), event.surroundings)

    def _launch(
        self, places: list[m.WorkerPlace], surroundings: m.Surroundings, replaces: bool = False
    ) -> list[Effect]:
        """Ask for processes; what still lingers under the same numbers could not be reached afterwards."""
        new = tuple(place.rank for place in places)
        lingering = {state.place.rank for state in self._gone} & set(new)
        kill: list[Effect] = [_signal(lingering, signal.SIGKILL, group=True)] if lingering else []
        return [*kill, SendToNodes(new, m.StartRanks(places, surroundings, replaces))]

    def _forked(self, event: m.WorkerForked) -> list[Effect]:
        if (gone := self._departed(event.rank, 0, event.pid)) is not None:
            gone.pid = event.pid
        elif (state := self.ranks.get(event.rank)) is not None and not state.pid:
            state.pid = event.pid
            if self.phase is Phase.STOPPING:  # born after the order to end it
                return [_signal([event.rank], signal.SIGKILL, group=True)]
        return []

    def _connected(self, event: m.WorkerConnected) -> list[Effect]:
        if (gone := self._departed(event.rank, 0, event.pid)) is not None:
            gone.pid = event.pid
            return []
        if (state := self.ranks.get(event.rank)) is None:
            return []
        state.connected, state.pid = True, event.pid
        if self.phase is not Phase.STARTING or any(not s.connected for s in self.ranks.values()):
            return []
        return self._form()

    def _form(self) -> list[Effect]:
        """A new generation of the group among all ranks."""
        assert self.plan is not None
        self.generation += 1
        order = self._healing.order if self._healing else m.FormGroup
        return [
            _tell([rank], order(self.generation, self.plan.backend, state.place))
            for rank, state in self.ranks.items()
        ]

    def _formed(self, event: m.GroupFormed, now: float) -> list[Effect]:
        state = self.ranks.get(event.rank)
        if state is None or event.generation != self.generation:
            return []
        state.generation = event.generation
        if any(s.generation != self.generation for s in self.ranks.values()):
            return []
        if self.phase not in (Phase.STARTING, Phase.FORMING):
            return []
        started = self.phase is Phase.STARTING
        self._before_change = self._healing = None
        ready = self._ready(now)
        return [StartFinished(), *ready] if started else ready

    def _group_failed(self, event: m.GroupFailed, now: float) -> list[Effect]:
        if event.generation != self.generation:
            return []
        why = f"rank {event.rank} could not join the process group: {event.reason}"
        if self.phase is Phase.STARTING:
            return self._undo_start(why, now)
        if self.phase is Phase.FORMING:
            return [Announced(f"{why}; %ddp restart starts anew"), *self._free(), *self._ready(now)]
        return []

    def _preload_failed(self, event: m.PreloadFailed, now: float) -> list[Effect]:
        """What has no process yet will never have one; what has one goes on."""
        self._gone = [state for state in self._gone if state.pid]
        unborn = [rank for rank, state in self.ranks.items() if not state.pid]
        for rank in unborn:
            del self.ranks[rank]
        if not unborn:
            return []
        if self.phase is Phase.STARTING:
            cause = event.stderr.strip().rpartition("\n")[2] or "its process ended"
            why = f"what ranks are forked from could not be prepared: {cause}"
            return self._undo_start(f"{why}; repair that, then start again", now)
        return [] if self.alive else self._stopped()

    def _undo_start(self, why: str, now: float) -> list[Effect]:
        """Leave nothing of a pool that did not come up; say why once nothing is left."""
        if self._before_change is not None:
            return self._undo_change(why, now)
        self._failure, self.phase, self._kill_sent = why, Phase.STOPPING, True
        self._deadline = now + KILL_TIMEOUT_S
        living = self.alive
        return [_signal(living, signal.SIGKILL, group=True)] if living else self._stopped()

    # -- cells -----------------------------------------------------------------------------------

    def _run(self, event: CellRequested, now: float) -> list[Effect]:
        if self.phase is Phase.FORMING and self._next is None:
            self._next = event
            return []
        if refusal := self._refusal(event.targets):
            return [CellRefused(event.cell, refusal)]
        self.phase, self._cell = Phase.RUNNING, RunningCell(event.cell, event.targets, event.hang_timeout_s)
        if event.timeout_s:
            self._cell.limit(event.timeout_s, now)
        members = () if len(event.targets) == len(self.ranks) else event.targets
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
        return [_tell(event.targets, run)]

    def _refusal(self, targets: Sequence[int]) -> str:
        if self.phase is Phase.RUNNING:
            return "busy: another cell runs on the pool; wait for it, or stop it with %ddp interrupt"
        if self.phase is Phase.STOPPED:
            return "there is no pool; %ddp start -n 4 starts one"
        if self.phase is not Phase.READY:
            return f"the pool is {self.phase.value}; run the cell again when it is ready (%ddp status)"
        if not targets:
            return "the cell names no rank to run on"
        if unknown := [r for r in targets if r not in self.ranks]:
            return f"the pool has no {named(unknown, '-')}; it has 0-{self.world_size - 1}"
        if not (gone := [r for r in targets if not self.ranks[r].alive]):
            return ""
        exit = self.ranks[gone[0]].exited
        why = f": {describe_exit(exit)}" if exit else ""
        lost = "" if self.alive else "pool lost: "
        return f"{lost}{named(gone, '-')} died{why}; nothing was run. To go on: {healing.way_on(self.alive)}"

    def _finished(self, ends: Iterable[m.CellFinished], now: float) -> list[Effect]:
        cell = self._cell
        if cell is None:
            return []
        before = len(cell.waiting)
        for end in ends:
            if end.cell != cell.cell or end.rank not in cell.waiting:
                continue
            cell.group_broken |= end.group_broken
            cell.end(end.rank, end.verdict, blocked=end.group_broken and end.verdict == "interrupted")
            self._lookout.note(end)
            if end.verdict == "error" or end.group_broken:
                self._break_by(now + PEER_FAILED_TIMEOUT_S)
        return self._maybe_end_cell(now) if len(cell.waiting) < before else []

    def _break_by(self, when: float) -> None:
        """Whoever still waits for a failed rank at that time is freed."""
        if self._cell and not self._cell.break_sent:
            self._deadline = when if self._deadline is None else min(self._deadline, when)

    def _maybe_end_cell(self, now: float) -> list[Effect]:
        cell = self._cell
        if cell is None or cell.waiting:
            return []
        suspect = self._lookout.steps.suspect(self.world_size)
        if suspect and not (cell.group_broken or self.dead):
            self._deadline = None
            return self._lookout.look(Purpose.STEPS, self.alive, now)
        return self._end_cell(cell, now)

    def _end_cell(self, cell: RunningCell, now: float, *, in_step: bool = False) -> list[Effect]:
        self._cell = None
        self._lookout.end_cell(in_step=in_step)
        self._rest(Phase.READY)
        ended = [*cell.ladder.withdraw(), cell.ended()]
        if cell.group_broken and not self.dead:
            self.phase, self._deadline = Phase.FORMING, now + FORM_TIMEOUT_S
            return [*self._form(), *ended]
        # Without the dead there is no group: all of the living have to know, also who did not wait in it.
        return [*(self._free() if cell.group_broken else []), *ended]

    def _free(self) -> list[Effect]:
        """Whatever waits in the group, or for it to be formed, gives up."""
        return [_tell(self.alive, m.BreakGroup(self.generation))] if self.alive else []

    def _interrupt(self, now: float) -> list[Effect]:
        """Each press goes one step further: SIGINT, break the group, kill what does not answer."""
        if self.phase is Phase.STARTING:
            return self._undo_start("interrupted", now)
        cell = self._cell
        if cell is None:
            return self._refuse_next("interrupted before it began; nothing was run")
        signalled = cell.ladder.press(now)
        if not cell.waiting:  # it has ended, but for a look at how
            return self._end_cell(cell, now)
        effects: list[Effect] = []
        if signalled:
            effects = [_signal(cell.waiting, signal.SIGINT)]
            effects += self._lookout.look(Purpose.INTERRUPT, self.alive, now)
        return [*effects, *self._climb(now)]

    def _climb(self, now: float) -> list[Effect]:
        """Take the steps of an interrupt that are due."""
        cell = self._cell
        effects: list[Effect] = []
        while cell is not None and cell.waiting and (turn := cell.ladder.turn(now)) is not None:
            match turn:
                case Turn.ANNOUNCE:
                    effects += cell.ladder.announce(cell.waiting, now)
                case Turn.BREAK:
                    effects += [*cell.ladder.confirm(cell.waiting), *self._break(now)]
                case Turn.LOOK:
                    cell.ladder.looked()
                    effects += self._lookout.look(Purpose.INTERRUPT, self.alive, now)
                case Turn.KILL:
                    effects += [*cell.ladder.confirm(cell.waiting), *self._kill(cell, now)]
                case _:
                    assert_never(turn)
        return effects

    def _kill(self, cell: RunningCell, now: float) -> list[Effect]:
        cell.kill_sent = True
        cell.ladder.killed()
        self._deadline = now + KILL_TIMEOUT_S
        return [_signal(cell.waiting, signal.SIGKILL, group=True)]

    def _break(self, now: float) -> list[Effect]:
        """Free whatever waits in the group: step 2 of the ladder."""
        cell = self._cell
        if cell is None or cell.break_sent:
            return []
        cell.break_sent = cell.group_broken = True
        cell.ladder.broke(now)
        self._deadline = None
        effects = self._free()
        if cell.ladder.presses or cell.hang:
            effects.append(_signal(cell.waiting, signal.SIGINT))
        if cell.hang:
            effects += self._lookout.look(Purpose.INTERRUPT, self.alive, now)
        return effects

    # -- looking ---------------------------------------------------------------------------------

    def _stuck(self, event: m.RankStuck, now: float) -> list[Effect]:
        cell = self._cell
        if cell is None or event.cell != cell.cell or not cell.waiting:
            return []
        return self._lookout.hear(event, cell.waiting, self.alive, now)

    def _looked(self, now: float) -> list[Effect]:
        """The answers are there, or as many as there will be."""
        cell = self._cell
        if cell is None:
            return []
        ended = set(cell.verdicts)
        found = self._lookout.conclude(cell.waiting, ended, self.world_size, broken=cell.break_sent)
        if not cell.waiting:
            if found.out_of_step:
                cell.group_broken = True
                cell.warnings.append(f"{found.out_of_step}: {OUT_OF_STEP_MEANS}")
            return self._end_cell(cell, now, in_step=found.certain and not found.out_of_step)
        effects: list[Effect] = []
        # Whoever comes to wait for a failed rank later says so when it has been stuck.
        if found.blocked and (Purpose.PEERS in found.purposes or (cell.failed and not cell.ladder.presses)):
            return self._break(now)
        if Purpose.INTERRUPT in found.purposes and found.unheard:
            return self._lookout.tell(cell.cell, found.unheard)
        if Purpose.HANG in found.purposes:
            effects += self._lookout.tell(cell.cell, found.hang.text if found.hang else "")
            if found.hang is not None and found.hang.out_of_step:
                effects += self._end_hang(cell, now)
        return effects

    def _end_hang(self, cell: RunningCell, now: float) -> list[Effect]:
        """What would not end of itself, or has not for as long as the user has set, is ended."""
        cell.hang = self._lookout.hang_text
        return self._break(now)

    def _give_up_unkillable(self, cell: RunningCell, now: float) -> list[Effect]:
        for rank in sorted(cell.waiting):
            cell.end(rank, "unknown", f"the system does not end its process {self.ranks[rank].pid}")
        return self._maybe_end_cell(now)

    # -- changing --------------------------------------------------------------------------------

    def _resize(self, event: ResizeRequested, now: float) -> list[Effect]:
        if self.phase is not Phase.READY or self.plan is None:
            return [StartFinished(f"the pool is {self.phase.value}; it can be resized when it is ready")]
        if self.dead:
            return [StartFinished(f"{named(self.dead, '-')} died; %ddp heal comes before a resize")]
        old, places = self.ranks, {place.rank: place for place in event.plan.places}
        new = [place for rank, place in places.items() if rank not in old]
        surplus = tuple(rank for rank in old if rank not in places)
        # Ranks that are let go cannot come back: then it is the smaller pool that goes on.
        kept = {rank: old[rank] for rank in places if rank in old}
        self._before_change = (event.plan if surplus else self.plan, kept)
        self.plan, self.ranks = event.plan, {}
        for rank, place in places.items():
            self.ranks[rank] = old.get(rank) or RankState(place)
            self.ranks[rank].place = place
        self.phase, self._deadline = Phase.STARTING, now + START_TIMEOUT_S
        effects: list[Effect] = [_tell(surplus, m.EndWorker())] if surplus else []
        self._let_go(old[rank] for rank in surplus)
        if surplus:
            self._gone_deadline = now + STOP_TIMEOUT_S
        return [*effects, *(self._launch(new, event.surroundings) if new else self._form())]

    def _heal(self, event: HealRequested, now: float) -> list[Effect]:
        if why := healing.refusal(self.phase.value, tuple(self.ranks), self.alive, event.source):
            return [StartFinished(why)]
        assert self.plan is not None
        self._before_change = (self.plan, dict(self.ranks))
        self._healing = healing.Healing(self.dead, event.source, self.generation)
        places = [self.ranks[rank].place for rank in self.dead]
        for place in places:
            self.ranks[place.rank] = RankState(place)
        self.phase, self._deadline = Phase.STARTING, now + self._healing.timeout_s
        return self._launch(places, event.surroundings, replaces=True)

    def _undo_change(self, why: str, now: float) -> list[Effect]:
        """The new ranks did not come up: end them, and go on with the old ones as they were."""
        assert self._before_change is not None
        (self.plan, old), self._before_change = self._before_change, None
        new = [state for rank, state in self.ranks.items() if state is not old.get(rank) and state.alive]
        self._let_go(new)
        self.ranks = old
        for place in self.plan.places:
            old[place.rank].place = place
        kill = [_signal((s.place.rank for s in new), signal.SIGKILL, group=True)] if new else []
        heal, self._healing = self._healing, None
        if heal is not None:  # without its dead rank there is no group to form; whoever waits in one is freed
            free = [*self._free(), *self._stop_copying(heal)] if self.generation > heal.generation else []
            return [*kill, *free, StartFinished(heal.failed(why)), *self._ready(now)]
        free = self._free()
        self.phase, self._deadline = Phase.FORMING, now + FORM_TIMEOUT_S
        return [*kill, *free, *(self._ready(now) if self.dead else self._form()), StartFinished(why)]

    def _stop_copying(self, heal: healing.Healing) -> list[Effect]:
        """A rank that still collects its variables gives up; SIGINT does nothing to one that does not."""
        source = self.ranks.get(-1 if heal.source is None else heal.source)
        return [_signal([source.place.rank], signal.SIGINT)] if source and source.alive else []

    def _let_go(self, states: Iterable[RankState]) -> None:
        self._gone += [state for state in states if state.alive]

    def _departed(self, rank: int, *pids: int) -> RankState | None:
        """The process let go of that this is news of, if it is: the rank may be a new one's by now."""
        return next((s for s in self._gone if s.place.rank == rank and s.pid in pids), None)

    # -- ends ------------------------------------------------------------------------------------

    def _exited(self, event: m.WorkerExited, now: float) -> list[Effect]:
        if (gone := self._departed(event.rank, event.pid)) is not None:
            self._gone.remove(gone)
            return []
        state = self.ranks.get(event.rank)
        if state is None or not state.alive or state.pid != event.pid:
            return []
        state.exited, state.generation = event, 0
        if self.phase is Phase.STARTING:
            return self._undo_start(_start_failure(event, self._healing), now)
        if self.phase is Phase.STOPPING:
            return [] if self.alive else self._stopped()
        effects = self._died_in_cell(self._cell, event, now) if self._cell else self._died_idle(event, now)
        return effects if self.alive else [*effects, self._lost()]

    def _died_idle(self, event: m.WorkerExited, now: float) -> list[Effect]:
        died = self._death(event)
        return [died, *self._free(), *self._ready(now)] if self.phase is Phase.FORMING else [died]

    def _lost(self) -> Announced:
        """Nobody is left, and with the ranks all variables are gone."""
        ends = {describe_status(s.exited.status) for s in self.ranks.values() if s.exited}
        why = ", ".join(sorted(ends))
        return Announced(f"pool lost: every rank died ({why}); {healing.NOBODY_LEFT}")

    def _died_in_cell(self, cell: RunningCell, event: m.WorkerExited, now: float) -> list[Effect]:
        effects: list[Effect] = []
        if event.rank in cell.waiting:
            cell.end(event.rank, "died")
            cell.deaths.append(event)
        else:
            effects.append(self._death(event, cell.cell))
        if event.rank in cell.targets:
            self._break_by(now + PEER_DIED_TIMEOUT_S)
        return [*effects, *self._maybe_end_cell(now)]

    def _death(self, exit: m.WorkerExited, cell: int = m.NO_CELL) -> Announced:
        left = healing.what_survives(self.dead, self.alive)
        return Announced(f"rank {exit.rank} died: {describe_exit(exit)}; {left}", cell)

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
        return [*effects, _tell(living, m.EndWorker())]

    def _give_up_cell(self, verdict: Verdict, why: str) -> list[Effect]:
        cell, self._cell = self._cell, None
        effects = self._refuse_next(why)
        if cell is not None:
            self._lookout.end_cell()
            for rank in sorted(cell.waiting):
                cell.end(rank, verdict, why)
            effects += [*cell.ladder.withdraw(), cell.ended()]
        return effects

    def _refuse_next(self, why: str) -> list[Effect]:
        waiting, self._next = self._next, None
        return [CellRefused(waiting.cell, why)] if waiting else []

    def _stopped(self) -> list[Effect]:
        """Nothing is left but what the system does not end: answer whoever asked for it."""
        stuck = tuple(s.pid for s in self.ranks.values() if s.alive and s.pid)
        failure, self._failure = self._failure, ""
        stops, self._stops = self._stops, 0
        self._rest(Phase.STOPPED)
        self._let_go(self.ranks.values())
        self.ranks, self.plan, self._before_change, self._healing = {}, None, None, None
        if failure and stuck:
            failure += f"\nthe system does not end these processes: {', '.join(map(str, stuck))}"
        started: list[Effect] = [StartFinished(failure)] if failure else []
        return [*started, *[StopFinished(stuck)] * stops]

    def _node_lost(self, event: NodeLost) -> list[Effect]:
        self._gone, self._gone_deadline = [], None
        if self.phase is Phase.STOPPED:
            return []
        effects = self._give_up_cell("died", event.reason)
        if self.phase is Phase.STARTING:
            self._failure = event.reason
        elif self.phase is not Phase.STOPPING:
            effects.append(Announced(f"pool lost: {event.reason}; the variables of all ranks are lost"))
        self.ranks = {}
        return [*effects, *self._stopped()]

    # -- deadlines -------------------------------------------------------------------------------

    def _tick(self, now: float) -> list[Effect]:
        return [
            *self._kill_lingering(now),
            *self._pass_look(now),
            *self._pass_deadline(now),
            *self._stop_late_cell(now),
            *self._climb(now),
        ]

    def _pass_look(self, now: float) -> list[Effect]:
        """Answers that have not come by now never will; a hang has lasted as long as it may."""
        overdue, hang = self._lookout.deadline, self._hang_deadline
        effects = self._looked(now) if overdue is not None and now >= overdue else []
        if self._cell is not None and hang is not None and now >= hang:
            effects += self._end_hang(self._cell, now)
        return effects

    def _kill_lingering(self, now: float) -> list[Effect]:
        """Ranks that were let go have had their time."""
        if self._gone_deadline is None or now < self._gone_deadline:
            return []
        self._gone_deadline = None
        late = {state.place.rank for state in self._gone} - set(self.ranks)
        return [_signal(late, signal.SIGKILL, group=True)] if late else []

    def _stop_late_cell(self, now: float) -> list[Effect]:
        """The cell has had the time that the user gave it: the first steps of an interrupt."""
        cell = self._cell
        if cell is None or not cell.is_late(now):
            return []
        cell.timeout_at = None
        if cell.ladder.presses:
            return []
        cell.late = set(cell.waiting)
        return self._interrupt(now)

    def _pass_deadline(self, now: float) -> list[Effect]:
        if self._deadline is None or now < self._deadline:
            return []
        self._deadline = None
        match self.phase:
            case Phase.STARTING:
                limit_s = self._healing.timeout_s if self._healing else START_TIMEOUT_S
                return self._undo_start(self._late(limit_s), now)
            case Phase.FORMING:
                late = self._late(FORM_TIMEOUT_S)
                return [Announced(f"{late}; %ddp restart starts anew"), *self._ready(now)]
            case Phase.RUNNING if self._cell and self._cell.kill_sent:
                return self._give_up_unkillable(self._cell, now)
            case Phase.RUNNING if self._cell and not (self._cell.ladder.presses or self._cell.deaths):
                return self._lookout.look(Purpose.PEERS, self.alive, now)
            case Phase.RUNNING:
                return self._break(now)
            case Phase.STOPPING if not self._kill_sent:
                self._kill_sent, self._deadline = True, now + KILL_TIMEOUT_S
                return [_signal(self.alive, signal.SIGKILL, group=True)]
            case Phase.STOPPING:
                return self._stopped()
            case Phase.STOPPED | Phase.READY:
                return []
            case _:
                assert_never(self.phase)

    def _late(self, bound_s: float) -> str:
        unconnected = [r for r, s in self.ranks.items() if not s.connected]
        if unconnected:
            return f"{named(unconnected, '-')} did not connect within {bound_s:.0f} s"
        apart = [r for r, s in self.ranks.items() if s.generation != self.generation]
        return f"{named(apart, '-')} did not join the process group within {bound_s:.0f} s"


def _start_failure(exit: m.WorkerExited, heal: healing.Healing | None) -> str:
    if heal is not None:
        return heal.ended_early(exit)
    what = f"rank {exit.rank} ended before the pool was up: {describe_exit(exit)}"
    return f"{what}\n{exit.stderr}".rstrip()


def _tell(ranks: Iterable[int], command: m.RankCommand) -> SendToNodes:
    chosen = tuple(sorted(ranks))
    return SendToNodes(chosen, m.Tell(list(chosen), command))


def _signal(ranks: Iterable[int], number: int, group: bool = False) -> SendToNodes:
    chosen = tuple(sorted(ranks))
    return SendToNodes(chosen, m.SignalRanks(list(chosen), int(number), group))
