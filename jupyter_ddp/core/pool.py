"""The pool's state machine: `handle(event, now) -> effects`.

Owns the membership: which ranks exist, which group they form, which cell runs on whom. It reads no
clock and sends nothing: time comes with each event, and what is to be done goes out as effects. Every
wait has a deadline, so ticks alone bring the machine to rest.
"""

from __future__ import annotations

import enum
import signal
from collections.abc import Iterable
from typing import assert_never

from msgspec import Struct

from jupyter_ddp.core import messages as m
from jupyter_ddp.core.faults import describe_exit
from jupyter_ddp.core.record import Verdict
from jupyter_ddp.core.topology import Plan, named

START_TIMEOUT_S = 120.0
"""From the request for a pool until its group is formed: a cold import of torch on a slow disk."""
FORM_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 2.0
"""How long ranks may take over their exit functions before they are killed."""
KILL_TIMEOUT_S = 5.0
"""How long the system may take to end a killed process before it is reported as unkillable."""
INTERRUPT_TIMEOUT_S = 2.0
"""After SIGINT, how long a rank may take before the group is broken under it."""
PEER_FAILED_TIMEOUT_S = 5.0
"""After a rank's exception, how long the others may take before waits on it are broken."""
PEER_DIED_TIMEOUT_S = 1.0


class Phase(enum.Enum):
    STOPPED = "stopped"
    STARTING = "starting"
    READY = "ready"
    RUNNING = "running"
    FORMING = "forming"
    """A later generation of the group is being formed, between cells."""
    STOPPING = "stopping"


# --- events: what happened ----------------------------------------------------------------------


class StartRequested(Struct, frozen=True):
    plan: Plan
    surroundings: m.Surroundings


class CellRequested(Struct, frozen=True):
    cell: int
    targets: tuple[int, ...]
    source: str
    awaits: bool
    count: int


class ResizeRequested(Struct, frozen=True):
    plan: Plan
    surroundings: m.Surroundings


class InterruptRequested(Struct, frozen=True):
    pass


class StopRequested(Struct, frozen=True):
    pass


class NodeLost(Struct, frozen=True):
    """The connection to a node agent ended: none of its ranks can be reached."""

    node_rank: int
    reason: str


class Ticked(Struct, frozen=True):
    """The time that `next_deadline` named has come."""


Event = (
    StartRequested
    | CellRequested
    | ResizeRequested
    | InterruptRequested
    | StopRequested
    | NodeLost
    | Ticked
    | m.PreloadFailed
    | m.WorkerForked
    | m.WorkerConnected
    | m.GroupFormed
    | m.GroupFailed
    | m.WorkerExited
    | m.CellFinished
)


# --- effects: what to do ------------------------------------------------------------------------


class SendToNodes(Struct, frozen=True):
    """Send this to the agents of the nodes that these ranks are on."""

    ranks: tuple[int, ...]
    message: m.KernelToNode


class StartFinished(Struct, frozen=True):
    """The pool stands, or (`error`) it does not and nothing of it is left."""

    error: str = ""


class CellEnded(Struct, frozen=True):
    """The cell has a verdict on each of its ranks. `deaths` are the ranks that died in it."""

    cell: int
    verdicts: dict[int, Verdict]
    deaths: tuple[m.WorkerExited, ...] = ()
    reasons: dict[int, str] = {}
    """Words for a verdict that the rank itself did not give: {0: "blocked by rank 1"}."""


class CellRefused(Struct, frozen=True):
    """The cell ran nowhere."""

    cell: int
    reason: str


class StopFinished(Struct, frozen=True):
    """No process of the pool is left, but for the `unkillable` ones (PIDs)."""

    unkillable: tuple[int, ...] = ()


class Announced(Struct, frozen=True):
    """One line about what the pool does to the user's ranks, before it is done."""

    text: str


Effect = SendToNodes | StartFinished | CellEnded | CellRefused | StopFinished | Announced


# --- the machine --------------------------------------------------------------------------------


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


class _RunningCell:
    def __init__(self, cell: int, targets: tuple[int, ...]) -> None:
        self.cell = cell
        self.waiting = set(targets)
        self.verdicts: dict[int, Verdict] = {}
        self.deaths: list[m.WorkerExited] = []
        self.reasons: dict[int, str] = {}
        self.presses = 0
        """How often the user asked to interrupt it."""
        self.break_sent = False
        self.group_broken = False
        self._blocked: set[int] = set()

    def end(self, rank: int, verdict: Verdict, reason: str = "", blocked: bool = False) -> None:
        self.waiting.discard(rank)
        self.verdicts[rank] = verdict
        if reason:
            self.reasons[rank] = reason
        if blocked:
            self._blocked.add(rank)

    def ended(self) -> CellEnded:
        """The blame goes to the ranks that failed of themselves, not to those that waited for them."""
        culprits = sorted(r for r, v in self.verdicts.items() if v in ("error", "died"))
        if culprits and not self.presses:
            for rank in self._blocked:
                self.reasons[rank] = f"blocked by {named(culprits, '-')}"
        return CellEnded(self.cell, self.verdicts, tuple(self.deaths), self.reasons)


class Pool:
    """One pool of ranks. All changes go through `handle`."""

    def __init__(self) -> None:
        self.phase = Phase.STOPPED
        self.generation = 0
        self.ranks: dict[int, RankState] = {}
        self.plan: Plan | None = None
        self._cell: _RunningCell | None = None
        self._next: CellRequested | None = None  # waits for the group that is being formed
        self._deadline: float | None = None
        self._failure = ""  # why a start is being undone
        self._kill_sent = False
        self._before_resize: tuple[Plan, dict[int, RankState]] | None = None
        self._left: set[int] = set()  # PIDs of ranks that a resize let go

    # -- what others may read --------------------------------------------------------------------

    @property
    def world_size(self) -> int:
        return len(self.ranks)

    @property
    def next_deadline(self) -> float | None:
        """When `Ticked` is due, on the clock that `now` comes from; None: nothing is waited for."""
        return self._deadline

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
            case StartRequested():
                return self._start(event, now)
            case CellRequested():
                return self._run(event)
            case ResizeRequested():
                return self._resize(event, now)
            case InterruptRequested():
                return self._interrupt(now)
            case StopRequested():
                return self._stop(now)
            case NodeLost():
                return self._node_lost(event)
            case Ticked():
                return self._tick(now)
            case m.PreloadFailed():
                return self._preload_failed(event)
            case m.WorkerForked():
                return self._forked(event)
            case m.WorkerConnected():
                return self._connected(event)
            case m.GroupFormed():
                return self._formed(event)
            case m.GroupFailed():
                return self._group_failed(event, now)
            case m.WorkerExited():
                return self._exited(event, now)
            case m.CellFinished():
                return self._finished(event, now)
            case _:
                assert_never(event)

    def _rest(self, phase: Phase) -> None:
        """Come to rest in a phase in which nothing is waited for."""
        self.phase, self._deadline = phase, None

    def _ready(self) -> list[Effect]:
        """Come to rest with ranks that take cells, and take the one that waits."""
        self._rest(Phase.READY)
        waiting, self._next = self._next, None
        return self._run(waiting) if waiting else []

    # -- starting --------------------------------------------------------------------------------

    def _start(self, event: StartRequested, now: float) -> list[Effect]:
        if self.phase is not Phase.STOPPED:
            return [StartFinished(f"the pool is {self.phase.value}; %ddp stop ends it")]
        self.plan = event.plan
        self.ranks = {place.rank: RankState(place) for place in event.plan.places}
        self.phase, self._deadline = Phase.STARTING, now + START_TIMEOUT_S
        start = m.StartRanks(list(event.plan.places), event.surroundings)
        return [SendToNodes(tuple(self.ranks), start)]

    def _forked(self, event: m.WorkerForked) -> list[Effect]:
        if (state := self.ranks.get(event.rank)) is not None and not state.pid:
            state.pid = event.pid
        return []

    def _connected(self, event: m.WorkerConnected) -> list[Effect]:
        if (state := self.ranks.get(event.rank)) is None or self.phase is not Phase.STARTING:
            return []
        state.connected, state.pid = True, event.pid
        return self._form() if all(s.connected for s in self.ranks.values()) else []

    def _form(self) -> list[Effect]:
        """A new generation of the group among all ranks."""
        assert self.plan is not None
        self.generation += 1
        return [
            _tell([rank], m.FormGroup(self.generation, self.plan.backend, state.place))
            for rank, state in self.ranks.items()
        ]

    def _formed(self, event: m.GroupFormed) -> list[Effect]:
        state = self.ranks.get(event.rank)
        if state is None or event.generation != self.generation:
            return []
        state.generation = event.generation
        if any(s.generation != self.generation for s in self.ranks.values()):
            return []
        if self.phase not in (Phase.STARTING, Phase.FORMING):
            return []
        started = self.phase is Phase.STARTING
        self._before_resize = None
        ready = self._ready()
        return [StartFinished(), *ready] if started else ready

    def _group_failed(self, event: m.GroupFailed, now: float) -> list[Effect]:
        if event.generation != self.generation:
            return []
        why = f"rank {event.rank} could not join the process group: {event.reason}"
        if self.phase is Phase.STARTING:
            return self._undo_start(why, now)
        if self.phase is Phase.FORMING:
            return [Announced(f"{why}; %ddp restart starts anew"), *self._ready()]
        return []

    def _preload_failed(self, event: m.PreloadFailed) -> list[Effect]:
        if self.phase is not Phase.STARTING:
            return []
        self._rest(Phase.STOPPED)
        self.ranks, self.plan = {}, None
        return [StartFinished(f"the ranks could not import torch\n{event.stderr}".rstrip())]

    def _undo_start(self, why: str, now: float) -> list[Effect]:
        """Leave nothing of a pool that did not come up; say why once nothing is left."""
        if self._before_resize is not None:
            return self._undo_resize(why, now)
        self._failure, self.phase, self._kill_sent = why, Phase.STOPPING, True
        self._deadline = now + KILL_TIMEOUT_S
        living = self.alive
        return [_signal(living, signal.SIGKILL, group=True)] if living else self._stopped()

    # -- cells -----------------------------------------------------------------------------------

    def _run(self, event: CellRequested) -> list[Effect]:
        if self.phase is Phase.FORMING and self._next is None:
            self._next = event
            return []
        if refusal := self._refusal(event.targets):
            return [CellRefused(event.cell, refusal)]
        self.phase, self._cell = Phase.RUNNING, _RunningCell(event.cell, event.targets)
        members = () if len(event.targets) == len(self.ranks) else event.targets
        run = m.RunCell(event.cell, event.source, event.awaits, members, event.count)
        return [_tell(event.targets, run)]

    def _refusal(self, targets: Iterable[int]) -> str:
        if self.phase is Phase.RUNNING:
            return "busy: another cell runs on the pool; wait for it, or stop it with %ddp interrupt"
        if self.phase is Phase.STOPPED:
            return "there is no pool; %ddp start -n 4 starts one"
        if self.phase is not Phase.READY:
            return f"the pool is {self.phase.value}; run the cell again when it is ready (%ddp status)"
        if unknown := [r for r in targets if r not in self.ranks]:
            return f"the pool has no {named(unknown, '-')}; it has 0-{self.world_size - 1}"
        if not (gone := [r for r in targets if not self.ranks[r].alive]):
            return ""
        exit = self.ranks[gone[0]].exited
        why = f": {describe_exit(exit)}" if exit else ""
        way = f"-t with living ranks ({named(self.alive, '-')}), or " if self.alive else ""
        return f"{named(gone, '-')} died{why}; nothing was run. To go on: {way}%ddp restart"

    def _finished(self, event: m.CellFinished, now: float) -> list[Effect]:
        cell = self._cell
        if cell is None or event.cell != cell.cell or event.rank not in cell.waiting:
            return []
        cell.group_broken |= event.group_broken
        blocked = event.group_broken and event.verdict == "interrupted"
        cell.end(event.rank, event.verdict, blocked=blocked)
        if event.verdict == "error" or event.group_broken:
            self._break_by(now + PEER_FAILED_TIMEOUT_S)
        return self._maybe_end_cell(now)

    def _break_by(self, when: float) -> None:
        """Whoever still waits for a failed rank at that time is freed."""
        if self._cell and not self._cell.break_sent:
            self._deadline = when if self._deadline is None else min(self._deadline, when)

    def _maybe_end_cell(self, now: float) -> list[Effect]:
        cell = self._cell
        if cell is None or cell.waiting:
            return []
        self._cell = None
        self._rest(Phase.READY)
        if cell.group_broken and not self.dead:
            self.phase, self._deadline = Phase.FORMING, now + FORM_TIMEOUT_S
            return [*self._form(), cell.ended()]
        return [cell.ended()]

    def _interrupt(self, now: float) -> list[Effect]:
        """Each press goes one step further: SIGINT, break the group, kill what does not answer."""
        if self.phase is Phase.STARTING:
            return self._undo_start("interrupted", now)
        cell = self._cell
        if cell is None:
            return []
        cell.presses += 1
        whom = named(sorted(cell.waiting), "-")
        if cell.presses == 1:
            self._deadline = now + INTERRUPT_TIMEOUT_S
            return [_signal(cell.waiting, signal.SIGINT)]
        if not cell.break_sent:
            text = f"interrupt: {whom}: breaking the process group; variables are kept"
            return [Announced(text), *self._break()]
        kill = _signal(cell.waiting, signal.SIGKILL, group=True)
        return [Announced(f"interrupt: killing {whom}; what only they hold is lost"), kill]

    def _break(self) -> list[Effect]:
        """Free whatever waits in the group: step 2 of the ladder."""
        cell = self._cell
        if cell is None or cell.break_sent:
            return []
        cell.break_sent = cell.group_broken = True
        self._deadline = None
        effects: list[Effect] = [_tell(self.alive, m.BreakGroup(self.generation))]
        if cell.presses:
            effects.append(_signal(cell.waiting, signal.SIGINT))
        return effects

    # -- resizing --------------------------------------------------------------------------------

    def _resize(self, event: ResizeRequested, now: float) -> list[Effect]:
        if self.dead:
            return [StartFinished(f"{named(self.dead, '-')} died; %ddp restart comes before a resize")]
        if self.phase is not Phase.READY or self.plan is None:
            return [StartFinished(f"the pool is {self.phase.value}; it can be resized when it is ready")]
        old, places = self.ranks, {place.rank: place for place in event.plan.places}
        new = [place for rank, place in places.items() if rank not in old]
        surplus = tuple(rank for rank in old if rank not in places)
        # Ranks that are let go cannot come back, so only a growing pool can be put back as it was.
        self._before_resize = (self.plan, old) if new else None
        self.plan, self.ranks = event.plan, {}
        for rank, place in places.items():
            self.ranks[rank] = old.get(rank) or RankState(place)
            self.ranks[rank].place = place
        self.phase, self._deadline = Phase.STARTING, now + START_TIMEOUT_S
        self._left |= {old[rank].pid for rank in surplus}
        effects: list[Effect] = [_tell(surplus, m.EndWorker())] if surplus else []
        if new:
            start = m.StartRanks(new, event.surroundings)
            return [*effects, SendToNodes(tuple(p.rank for p in new), start)]
        return [*effects, *self._form()]

    def _undo_resize(self, why: str, now: float) -> list[Effect]:
        """The new ranks did not come up: end them, and go on with the old ones as they were."""
        assert self._before_resize is not None
        (self.plan, old), self._before_resize = self._before_resize, None
        new = tuple(rank for rank in self.ranks if rank not in old)
        self._left |= {self.ranks[rank].pid for rank in new}
        self.ranks = old
        for place in self.plan.places:
            old[place.rank].place = place
        self.phase, self._deadline = Phase.FORMING, now + FORM_TIMEOUT_S
        return [_signal(new, signal.SIGKILL, group=True), *self._form(), StartFinished(why)]

    # -- ends ------------------------------------------------------------------------------------

    def _exited(self, event: m.WorkerExited, now: float) -> list[Effect]:
        state = self.ranks.get(event.rank)
        if event.pid in self._left:
            self._left.discard(event.pid)
            return []
        if state is None or not state.alive or (state.pid and state.pid != event.pid):
            return []
        state.exited, state.generation = event, 0
        if self.phase is Phase.STARTING:
            return self._undo_start(_start_failure(event), now)
        if self.phase is Phase.STOPPING:
            return [] if self.alive else self._stopped()
        if self._cell is not None:
            return self._died_in_cell(self._cell, event, now)
        died = Announced(f"rank {event.rank} died: {describe_exit(event)}")
        return [died, *self._ready()] if self.phase is Phase.FORMING else [died]

    def _died_in_cell(self, cell: _RunningCell, event: m.WorkerExited, now: float) -> list[Effect]:
        if event.rank in cell.waiting:
            cell.end(event.rank, "died")
            cell.deaths.append(event)
        self._break_by(now + PEER_DIED_TIMEOUT_S)
        return self._maybe_end_cell(now)

    def _stop(self, now: float) -> list[Effect]:
        if self.phase is Phase.STOPPED:
            return [StopFinished()]
        if self.phase is Phase.STOPPING:
            return []
        effects: list[Effect] = self._give_up_cell("unknown", "the pool was stopped")
        living = self.alive
        self.phase, self._deadline, self._kill_sent = Phase.STOPPING, now + STOP_TIMEOUT_S, False
        if not living:
            return [*effects, *self._stopped()]
        return [*effects, _tell(living, m.EndWorker())]

    def _give_up_cell(self, verdict: Verdict, why: str) -> list[Effect]:
        cell, self._cell = self._cell, None
        waiting, self._next = self._next, None
        effects: list[Effect] = [CellRefused(waiting.cell, why)] if waiting else []
        if cell is not None:
            for rank in sorted(cell.waiting):
                cell.end(rank, verdict, why)
            effects.append(cell.ended())
        return effects

    def _stopped(self) -> list[Effect]:
        stuck = tuple(s.pid for s in self.ranks.values() if s.alive and s.pid)
        failure, self._failure = self._failure, ""
        self._rest(Phase.STOPPED)
        self.ranks, self.plan, self._before_resize = {}, None, None
        return [StartFinished(failure)] if failure else [StopFinished(stuck)]

    def _node_lost(self, event: NodeLost) -> list[Effect]:
        phase, failure = self.phase, self._failure
        if phase is Phase.STOPPED:
            return []
        effects = self._give_up_cell("died", event.reason)
        self._stopped()
        if failure or phase is Phase.STARTING:
            return [*effects, StartFinished(failure or event.reason)]
        if phase is Phase.STOPPING:
            return [*effects, StopFinished()]
        return [*effects, Announced(f"pool lost: {event.reason}")]

    # -- deadlines -------------------------------------------------------------------------------

    def _tick(self, now: float) -> list[Effect]:
        if self._deadline is None or now < self._deadline:
            return []
        self._deadline = None
        match self.phase:
            case Phase.STARTING:
                return self._undo_start(self._late(START_TIMEOUT_S), now)
            case Phase.FORMING:
                late = self._late(FORM_TIMEOUT_S)
                return [Announced(f"{late}; %ddp restart starts anew"), *self._ready()]
            case Phase.RUNNING:
                return self._break()
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


def _start_failure(exit: m.WorkerExited) -> str:
    what = f"rank {exit.rank} ended before the pool was up: {describe_exit(exit)}"
    return f"{what}\n{exit.stderr}".rstrip()


def _tell(ranks: Iterable[int], command: m.RankCommand) -> SendToNodes:
    chosen = tuple(sorted(ranks))
    return SendToNodes(chosen, m.Tell(list(chosen), command))


def _signal(ranks: Iterable[int], number: int, group: bool = False) -> SendToNodes:
    chosen = tuple(sorted(ranks))
    return SendToNodes(chosen, m.SignalRanks(list(chosen), int(number), group))
