"""The pool's machine in a world of fake ranks, whatever happens in whatever order.

Each example is a string of bytes, and each byte chooses what happens next: the user asks for something,
a node agent obeys or is heard, a rank does the next thing, fails or dies, a deadline comes. Orders and
messages travel in queues, so that what the pool hears may be out of date. A judge holds every effect
against what must always be so. (JUPYTER_DDP_POOL_EXAMPLES raises the number of examples.)
"""

from __future__ import annotations

import os
import random
import signal
from collections import deque
from collections.abc import Callable
from typing import Any, assert_never, get_args

import hypothesis
import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jupyter_ddp.core import events as ev
from jupyter_ddp.core import messages as m
from jupyter_ddp.core import pool as p
from jupyter_ddp.core.ladder import BREAK_CHANCE_S, NOTICE_S
from jupyter_ddp.core.topology import Plan, make_plan

EXAMPLES = int(os.environ.get("JUPYTER_DDP_POOL_EXAMPLES", "10000"))
MAX_RANKS = 4
SURROUNDINGS = m.Surroundings({}, "/", [], "127.0.0.1", 1, "run", 0)
AT_REST = (p.Phase.STOPPED, p.Phase.READY, p.Phase.RUNNING)


class Process:
    """One rank's process: asked for, born, then an inbox that it works through; at last dead."""

    def __init__(self, rank: int) -> None:
        self.rank = rank
        self.pid = 0
        self.alive = True
        self.connected = False
        self.inbox: deque[m.RankCommand] = deque()
        self.doing: m.FormGroup | m.RunCell | None = None
        self.broken = False
        self.confirmed = False  # a start or resize with it has succeeded: it is the user's now
        self.doomed = False  # to be killed at birth
        self.unkillable = False
        self.deaf = False  # hangs in its exit functions
        self.birth_heard = self.exit_heard = False
        self.without_gpu = False  # it has said that its accelerator is lost to it

    @property
    def unfit(self) -> bool:
        """As far as the pool knows."""
        return self.exit_heard or self.without_gpu

    def __repr__(self) -> str:
        return f"<rank {self.rank}, pid {self.pid}>"


class Judge:
    """Knows what was asked and what has truly happened, and checks every effect against it."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.members: dict[int, Process] = {}
        self.cells: dict[int, ev.CellRequested] = {}
        self.ended: set[int] = set()
        self.running: ev.CellRequested | None = None
        self.replies: dict[tuple[int, int], str] = {}
        self.exits: set[tuple[int, int]] = set()
        self.unreported: dict[int, Process] = {}
        self.presses = self.generation = 0
        self.forming = False
        """For the request that is open, the ranks were told to form a group."""
        self.announced: dict[str, float] = {}
        """What was said of the running cell's ranks and not taken back, and when each kind first was."""
        self.broken_at = 0.0
        self.due: float | None = None
        """When the running cell's own limit interrupts it."""
        self.broken = False
        self.stuck = False  # a rank has said that it waits
        self.hang_shown = ""
        """What the user sees of a hang of the running cell."""
        self.looks: set[int] = set()
        """Questions of the user's that have not gone out."""
        self.stops_open = self.starts_open = self.launches_due = 0
        self.wanted = 0
        self.request: ev.StartRequested | ev.ResizeRequested | ev.HealRequested | None = None
        self.replaced: dict[int, Process] = {}

    # -- before and after each event ---------------------------------------------------------------

    def hear(self, event: ev.Event, source: Process | None) -> None:
        phase = self.world.pool.phase
        match event:
            case ev.StartRequested() | ev.ResizeRequested():
                self.starts_open += 1
                self._hear_request(event, phase)
            case ev.HealRequested():
                self.starts_open += 1
                self._hear_heal(event, phase)
            case ev.StopRequested():
                self.stops_open += 1
            case ev.CellRequested():
                self.cells[event.cell] = event
            case ev.InterruptRequested():
                self.presses += 1
            case ev.LookRequested() if any(not q.exit_heard for q in self.members.values()):
                self.looks.add(event.number)
            case ev.Ticked() if self.due is not None and self.world.now >= self.due:
                self.presses, self.due = max(1, self.presses), None
            case m.CellFinished():
                self._hear_end(event)
            case m.GoodEnds():
                for end in event.ends:
                    self._hear_end(end)
            case m.RankStuck() if self.running is not None and event.cell == self.running.cell:
                self.stuck |= event.for_s > 0
            case m.WorkerForked() | m.WorkerConnected():
                assert source is not None
                source.birth_heard = True
            case m.WorkerExited():
                assert source is not None
                source.exit_heard = True
                self.exits.add((event.rank, event.pid))
                asked_for = phase in (p.Phase.STOPPING, p.Phase.STOPPED)
                if self.members.get(event.rank) is source and not asked_for:
                    self.unreported[event.rank] = source
            case _:
                pass

    def _hear_request(self, event: ev.StartRequested | ev.ResizeRequested, phase: p.Phase) -> None:
        n = len(event.plan.places)
        starts = isinstance(event, ev.StartRequested)
        if starts:
            accepted = phase is p.Phase.STOPPED
        else:
            accepted = phase is p.Phase.READY and not any(q.unfit for q in self.members.values())
        if not accepted:
            return
        self.request = event
        if not starts and n < self.wanted:
            self.members = {r: q for r, q in self.members.items() if r < n}
            self.wanted = n  # what is let go cannot come back, whatever becomes of the resize
        self.launches_due = n if starts else max(0, n - self.wanted)
        self.forming = False

    def _hear_end(self, end: m.CellFinished) -> None:
        its = self.running is not None and end.cell == self.running.cell
        if its and end.doomed and (end.cell, end.rank) not in self.replies:
            self.members[end.rank].without_gpu = True
        self.replies.setdefault((end.cell, end.rank), end.verdict)
        self.broken |= end.group_broken and its

    def _hear_heal(self, event: ev.HealRequested, phase: p.Phase) -> None:
        dead = {r for r, q in self.members.items() if q.unfit}
        if (
            phase is p.Phase.READY
            and dead
            and (event.source is None or event.source in self.members.keys() - dead)
        ):
            self.request, self.launches_due, self.forming = event, len(dead), False

    def judge(self, event: ev.Event, before: p.Phase, effects: list[ev.Effect]) -> None:
        stuck = {q.pid for q in self.members.values() if q.birth_heard and not q.exit_heard}
        self._judge_breaking(effects)
        for effect in effects:
            match effect:
                case ev.SendToNodes(ranks, message):
                    assert ranks
                    self._judge_order(message)
                case ev.StartFinished(error):
                    self._judge_start(error, event)
                case ev.StopFinished():
                    self.stops_open -= 1
                    assert self.stops_open >= 0
                case ev.CellEnded():
                    self._judge_cell(effect, event)
                case ev.CellRefused(cell, reason):
                    assert reason
                    self._end(cell)
                case ev.Announced(text, cell, withdrawn):
                    self._reported(text)
                    self._judge_announcement(text, cell, withdrawn)
                case ev.HangSeen(cell, text):
                    assert self.running is not None, "a hang where no cell runs"
                    assert cell == self.running.cell
                    assert text != self.hang_shown, "told again, or taken back unsaid"
                    self.hang_shown = text
                case _:
                    assert_never(effect)
        assert not self.looks, "a question that nobody was asked"
        self._judge_forming([e.message.command for e in effects if _forms(e)], effects)
        if self.world.pool.phase is p.Phase.STOPPED:
            if not isinstance(event, ev.NodeLost):  # then nobody knows
                assert stuck == {pid for e in effects for pid in _unkillable(e)}, "unkillable ones not named"
            self.members, self.launches_due, self.request, self.wanted = {}, 0, None, 0
            self.replaced = {}
        if isinstance(event, ev.NodeLost):
            assert effects or before is p.Phase.STOPPED
            self.unreported.clear()

    # -- kinds of effects --------------------------------------------------------------------------

    def _judge_order(self, message: m.KernelToNode) -> None:
        match message:
            case m.StartRanks(places, _, replaces):
                self.launches_due -= len(places)
                assert self.launches_due >= 0, "more launches than were asked for"
                assert replaces == isinstance(self.request, ev.HealRequested)
                for place in places:
                    if replaces:
                        self.replaced[place.rank] = self.members[place.rank]
                        assert self.members[place.rank].unfit, "a rank that is well was replaced"
                    self.members[place.rank] = Process(place.rank)
            case m.Tell(ranks, m.RunCell() as run):
                asked = self.cells[run.cell]
                assert self.running is None, "two cells at a time"
                assert run.cell not in self.ended
                assert tuple(ranks) == asked.targets
                assert len(self.members) == self.wanted, "not at the wanted world size"
                assert run.members == (() if len(ranks) == self.wanted else asked.targets)
                assert not any(self.members[r].unfit for r in ranks), "sent to a dead or doomed rank"
                self.running, self.presses, self.broken, self.stuck = asked, 0, False, False
                self.announced, self.hang_shown = {}, ""
                self.due = self.world.now + asked.timeout_s if asked.timeout_s else None
            case m.Tell(_, m.BreakGroup()):
                self.broken, self.broken_at = True, self.world.now
            case m.Tell(ranks, m.Look(number)):
                living = {r for r, q in self.members.items() if not q.exit_heard}
                assert {r for r in living if self.members[r].birth_heard} <= set(ranks) <= living
                assert number < 0 or number in self.looks, "asked for nobody"
                self.looks.discard(number)
            case m.Tell():
                pass
            case m.SignalRanks(ranks, number):
                if number == signal.SIGKILL:
                    assert all(self._may_be_killed(r) for r in ranks), "killed unasked"
                else:
                    copies = isinstance(self.request, ev.HealRequested) and ranks == [self.request.source]
                    assert self.presses or copies or self.stuck, "interrupted unasked"

    def _judge_breaking(self, effects: list[ev.Effect]) -> None:
        """Where nothing hangs, and nobody presses, that a running cell's group is broken is said before."""
        breaks = any(isinstance(e, ev.SendToNodes) and _breaks(e.message) for e in effects)
        if not breaks or self.running is None or any(isinstance(e, ev.CellEnded) for e in effects):
            return
        hangs = self.hang_shown or any(isinstance(e, ev.HangSeen) for e in effects)
        if hangs or (self.presses and any(self.members[r].exit_heard for r in self.running.targets)):
            return
        said = [at for text, at in self.announced.items() if "breaking the process group" in text]
        assert said, "broken without a word"
        assert self.world.now >= min(said) + NOTICE_S, "broken before anybody could read of it"

    def _judge_forming(self, forms: list[m.FormGroup], effects: list[ev.Effect]) -> None:
        """A group is formed of all ranks, under a number never used, and always after it was broken."""
        assert len(forms) in (0, len(self.members))
        assert all(form.generation > self.generation for form in forms)
        assert all(form.place.world_size == len(self.members) for form in forms)
        assert {form.place.rank for form in forms} in (set(), set(self.members))
        source = self.request.source if isinstance(self.request, ev.HealRequested) else None
        assert all(form.replaced == tuple(self.replaced) for form in forms)
        assert all(form.source == (-1 if source is None else source) for form in forms)
        self.forming |= bool(forms)
        self.generation = max([self.generation, *(form.generation for form in forms)])
        if self.world.pool.phase in (p.Phase.READY, p.Phase.FORMING) and any(_ended(e) for e in effects):
            unfit = [q for q in self.members.values() if q.unfit]
            assert bool(forms) == (self.broken and not unfit)

    def _may_be_killed(self, rank: int) -> bool:
        process = self.members.get(rank)
        if process is None or process.exit_heard or not process.confirmed or self.stops_open:
            return True
        if process.without_gpu and isinstance(self.request, ev.HealRequested):
            return True
        if self.running is None or self.presses < 3 or rank not in self.running.targets:
            return False
        said = [at for text, at in self.announced.items() if "killing" in text]
        assert said, "killed without a word"
        assert self.world.now >= said[0] + NOTICE_S, "killed before anybody could read of it"
        assert self.world.now >= self.broken_at + BREAK_CHANCE_S, "the breaking had no chance"
        return True

    def _judge_announcement(self, text: str, cell: int, withdrawn: bool) -> None:
        """It belongs to the cell that runs, is said once, and only taken back when it was said."""
        if not cell:
            assert not withdrawn
            return
        assert self.running is not None
        assert cell == self.running.cell
        assert (text in self.announced) == withdrawn
        if not withdrawn:
            self.announced.setdefault(text, self.world.now)
        else:
            began = self.announced.pop(text)
            self.announced = {f"{text} (no more)": began, **self.announced}

    def _judge_start(self, error: str, event: ev.Event) -> None:
        self.starts_open -= 1
        assert self.starts_open >= 0
        self._reported(error)
        if (
            isinstance(event, ev.StartRequested | ev.ResizeRequested | ev.HealRequested)
            and event is not self.request
        ):
            assert error  # refused at once: what is under way is not concerned
            return
        assert self.request is not None
        request, self.request = self.request, None
        assert self.forming or "could not join" not in error, "blamed for an earlier group"
        if error and isinstance(request, ev.HealRequested) and self.members:
            self.members |= self.replaced  # all is as it was
        self.replaced = {}
        if not error:
            if not isinstance(request, ev.HealRequested):
                self.wanted = len(request.plan.places)
            assert set(self.members) == set(range(self.wanted))
            for process in self.members.values():
                assert process.connected
                process.confirmed = True
        elif isinstance(request, ev.ResizeRequested):
            self.members = {r: q for r, q in self.members.items() if q.confirmed}

    def _judge_cell(self, effect: ev.CellEnded, event: ev.Event) -> None:
        asked = self.running
        assert asked is not None
        assert asked.cell == effect.cell
        assert set(effect.verdicts) == set(asked.targets)
        self._end(effect.cell)
        self.running = self.due = None
        self.broken |= bool(effect.warnings)
        deaths = {exit.rank: exit.pid for exit in effect.deaths}
        assert len(deaths) == len(effect.deaths), "a death told twice"
        for rank, verdict in effect.verdicts.items():
            reply = self.replies.get((effect.cell, rank))
            if verdict in ("ok", "error", "interrupted"):
                assert reply == verdict, "credit for a reply that was never made"
            elif verdict == "died" and not (isinstance(event, ev.NodeLost) and rank in effect.reasons):
                assert (rank, deaths[rank]) in self.exits, "a death that never was"
                self.unreported.pop(rank, None)
            else:
                assert effect.reasons[rank], "an end without words"

    def _end(self, cell: int) -> None:
        assert cell in set(self.cells) - self.ended, "a cell ended twice"
        self.ended.add(cell)

    def _reported(self, text: str) -> None:
        for rank in list(self.unreported):
            if f"rank {rank} died" in text or f"rank {rank} ended" in text:
                del self.unreported[rank]

    def at_rest(self) -> None:
        pool = self.world.pool
        assert pool.phase in AT_REST
        assert (self.starts_open, self.stops_open) == (0, 0), "a request without an answer"
        running = {self.running.cell} if self.running else set()
        assert set(self.cells) - self.ended == running, "a cell that never ends"
        assert (pool.phase is p.Phase.RUNNING) == bool(running)
        if pool.phase is p.Phase.RUNNING:  # a rank may compute for ever: nothing is killed unasked
            assert self.presses < 3
            assert any(self.members[r].alive for r in pool.running_on)
        awaited = set(self.running.targets) if self.running else set()
        assert set(self.unreported) <= awaited, "a death that nobody was told of"


class World:
    """A user, one node agent and its ranks, around a pool; all of it in one thread and on a fake clock."""

    def __init__(self) -> None:
        self.pool = p.Pool()
        self.judge = Judge(self)
        self.now = 100.0
        self.history: list[tuple[float, ev.Event, p.Phase, list[ev.Effect]]] = []
        self.cells = 0
        self.processes: list[Process] = []
        self.orders: deque[tuple[m.KernelToNode, list[Process]]] = deque()
        self.said: deque[tuple[Any, Process | None]] = deque()
        self._new_agent()

    def _new_agent(self) -> None:
        self.orders.clear()
        self.said.clear()
        self.by_rank: dict[int, Process] = {}
        self.unborn: deque[Process] = deque()
        self.preloaded = self.forkserver_gone = False

    # -- the pool and its exchange -----------------------------------------------------------------

    def handle(self, event: ev.Event, source: Process | None = None) -> None:
        before = self.pool.phase
        self.judge.hear(event, source)
        effects = self.pool.handle(event, self.now)
        self.history.append((self.now, event, self.pool.phase, effects))
        self.judge.judge(event, before, effects)
        for effect in effects:
            if isinstance(effect, ev.SendToNodes):
                new: list[Process] = []
                if isinstance(effect.message, m.StartRanks):
                    new = [self.judge.members[place.rank] for place in effect.message.places]
                    self.processes += new
                self.orders.append((effect.message, new))
        deadline = self.pool.next_deadline
        if isinstance(event, ev.Ticked) and deadline is not None:
            assert deadline > self.now, "a deadline that has passed stays: the clock would spin"

    def deliver(self) -> None:
        message, source = self.said.popleft()
        ends = [message]
        while _is_good_end(message) and self.said and _is_good_end(self.said[0][0]):
            ends.append(self.said.popleft()[0])  # as an agent sends them
        if len(ends) > 1:
            self.handle(m.GoodEnds(ends[0].cell, tuple(ends)))
        else:
            self.handle(message, source)

    def tick(self) -> None:
        if (deadline := self.pool.next_deadline) is not None:
            self.now = max(self.now, deadline)
            self.handle(ev.Ticked())

    # -- the node agent ----------------------------------------------------------------------------

    def obey(self) -> None:
        order, new = self.orders.popleft()
        match order:
            case m.StartRanks():
                self.by_rank |= {q.rank: q for q in new}
                self.unborn += new
                if self.forkserver_gone:
                    self.lose_forkserver()
            case m.Tell(ranks, command):
                for process in self._living(ranks):
                    if isinstance(command, m.BreakGroup):
                        process.broken = True
                    elif isinstance(command, m.Look):
                        self.said.append((_seen(process, command.number), process))
                    else:
                        process.inbox.append(command)
            case m.SignalRanks(ranks, number):
                for process in self._living(ranks):
                    if number == signal.SIGKILL:
                        self._kill(process)

    def _living(self, ranks: list[int]) -> list[Process]:
        return [self.by_rank[r] for r in ranks if r in self.by_rank and self.by_rank[r].alive]

    def _kill(self, process: Process) -> None:
        """SIGKILL also reaches a rank that is only asked for: it is withdrawn, or killed at birth."""
        if process.pid:
            if not process.unkillable:
                self.die(process, signal.SIGKILL)
        elif self.preloaded:
            process.doomed = True
        elif process in self.unborn:
            self.unborn.remove(process)
            self.die(process, signal.SIGKILL)

    def lose_forkserver(self) -> None:
        self.forkserver_gone = True
        for process in self.unborn:
            process.alive = False
        self.unborn.clear()
        self.said.append((m.PreloadFailed("no torch"), None))

    def fork(self, choice: int) -> None:
        process = self.unborn.popleft()
        taken = {q.pid for q in self.processes if q.alive}
        process.pid = next(pid for pid in range(100, 200) if pid not in taken)  # PIDs come round again
        namesakes = [q for q in self.processes if q.alive and q.rank == process.rank and q is not process]
        if choice & 1 and not namesakes:  # its first words overtake the forkserver's
            self._connect(process)
        self.said.append((m.WorkerForked(process.rank, process.pid), process))
        if process.doomed:
            self.die(process, signal.SIGKILL)

    def die(self, process: Process, status: int) -> None:
        process.alive = False
        exit = m.WorkerExited(process.rank, process.pid, status, 0, 0, "", 0)
        self.said.append((exit, process))

    # -- ranks -------------------------------------------------------------------------------------

    def _connect(self, process: Process) -> None:
        process.connected = True
        self.said.append((m.WorkerConnected(process.rank, 0, 0, 0, process.pid), process))

    def act(self, process: Process) -> None:
        """The next thing that a rank does of itself; one that runs a cell goes on computing."""
        if not process.connected:
            self._connect(process)
            return
        order = process.inbox.popleft()
        if isinstance(order, m.EndWorker):
            if process.deaf:
                process.doing = m.RunCell(0, "")
            else:
                self.die(process, 0)
            return
        assert isinstance(order, m.FormGroup | m.RunCell)
        process.doing = order
        if isinstance(order, m.FormGroup):
            process.broken = False
            self._maybe_formed(order)

    def _maybe_formed(self, order: m.FormGroup) -> None:
        """The group stands when every rank of the world has come to it."""
        there = [q for q in self.processes if q.alive and _generation(q) == order.generation]
        if len(there) == order.place.world_size:
            for process in there:
                process.doing = None
                formed = m.GroupFormed(process.rank, order.generation, 0, 0, 0.01)
                self.said.append((formed, process))

    def fail_forming(self, process: Process) -> None:
        assert isinstance(process.doing, m.FormGroup)
        failed = m.GroupFailed(process.rank, process.doing.generation, 0, 0, "refused")
        process.doing = None
        self.said.append((failed, process))

    def finish(self, process: Process, choice: int) -> None:
        assert isinstance(process.doing, m.RunCell)
        verdict: Any = ("ok", "ok", "error", "interrupted")[choice % 4]
        counts = (m.GroupCount("0", (), choice // 32),) if choice & 16 else ()
        finished = m.CellFinished(
            rank=process.rank,
            generation=1,
            cell=process.doing.cell,
            seq=0,
            verdict=verdict,
            duration_s=0.1,
            group_broken=process.broken,
            counts=counts,
            unfinished=choice > 60,
            doomed="cuda:0: lost" if verdict == "error" and choice & 8 else "",
        )
        process.doing = None
        self.said.append((finished, process))
        if choice % 16 == 15:  # a rank that stammers, and contradicts itself
            other: Any = "error" if verdict == "ok" else "ok"
            self.said.append((msgspec.structs.replace(finished, verdict=other), process))

    def be_stuck(self, process: Process, choice: int) -> None:
        """It has waited for others for long, or goes on again."""
        stuck = m.RankStuck(process.rank, 1, _cell(process), 0, 10.0 if choice & 3 else 0.0)
        self.said.append((stuck, process))

    def active(self) -> list[Process]:
        free = [q for q in self.processes if q.alive and q.pid and not q.doing]
        return [q for q in free if q.inbox or not q.connected]

    def settle(self, ranks_act: bool = True) -> None:
        """Until nothing more happens by itself."""
        while True:
            if self.orders:
                self.obey()
            elif self.said:
                self.deliver()
            elif self.unborn and (self.preloaded or ranks_act) and not self.forkserver_gone:
                self.preloaded = True
                self.fork(0)
            elif ranks_act and (active := self.active()):
                self.act(active[0])
            else:
                return

    # -- what may happen next ----------------------------------------------------------------------

    def choices(self) -> list[Callable[[int], None]]:
        """Everything that is possible now, the likely things several times."""
        may: list[Callable[[int], None]] = [lambda _: self.settle()] * 8
        if self.orders:
            may += [lambda _: self.obey()] * 4
        if self.said:
            may += [lambda _: self.deliver()] * 4
        if self.unborn and self.preloaded:
            may += [self.fork] * 4
        if not self.preloaded and not self.forkserver_gone:
            may += [self._preload] * 4
        if not self.forkserver_gone:
            may += [lambda _: self.lose_forkserver()]
        if active := self.active():
            may += [lambda c: self.act(active[c % len(active)])] * 4
        if running := [q for q in self.processes if q.alive and _cell(q)]:
            may += [lambda c: self.finish(running[c % len(running)], c // 4)] * 16
            may += [lambda c: self.be_stuck(running[c % len(running)], c // 4)] * 4
        if forming := [q for q in self.processes if q.alive and _generation(q)]:
            may += [lambda c: self.fail_forming(forming[c % len(forming)])]
        if born := [q for q in self.processes if q.alive and q.pid and not q.unkillable]:
            may += [lambda c: self.die(born[c % len(born)], (9, 11, 256, 0)[c // 4 % 4])] * 2
            may += [lambda c: _spoil(born[c % len(born)], c)]
        may += [lambda c: self._user_cell(range(self.pool.world_size or 1), c // 128)] * 8
        may += [lambda c: self._user_cell([r for r in range(MAX_RANKS) if c >> r & 1], c // 64)] * 2
        may += [lambda c: self.handle(ev.StartRequested(_plan(1 + c % MAX_RANKS), SURROUNDINGS))] * 2
        may += [lambda c: self.handle(ev.ResizeRequested(_plan(1 + c % MAX_RANKS), SURROUNDINGS))] * 4
        may += [lambda c: self.handle(ev.HealRequested(SURROUNDINGS, c // 4 if c % 2 else None))] * 4
        may += [lambda _: self.handle(ev.InterruptRequested())] * 4
        may += [lambda c: self.handle(ev.LookRequested(1 + c, c % 2 > 0))]
        may += [lambda _: self.handle(ev.CellTookLong(self.cells))]
        may += [lambda _: self.handle(ev.StopRequested())]
        may += [lambda _: self.tick()] * 2
        may += [lambda c: self._wait(c / 10)]
        may += [self._lose_node]
        return may

    def _user_cell(self, targets: Any, timeout_s: float) -> None:
        self.cells += 1
        self.handle(
            ev.CellRequested(
                self.cells,
                tuple(targets),
                "pass",
                count=1,
                timeout_s=timeout_s,
                hang_timeout_s=20.0 * (self.cells % 3),
            )
        )

    def _preload(self, _: int) -> None:
        self.preloaded = True

    def _wait(self, seconds: float) -> None:
        """Time passes, but never past a deadline: the exchange keeps those."""
        deadline = self.pool.next_deadline
        self.now = self.now + seconds if deadline is None else min(self.now + seconds, deadline)
        self.handle(ev.Ticked())

    def _lose_node(self, _: int) -> None:
        for process in self.processes:
            process.alive = False
        self._new_agent()
        self.handle(ev.NodeLost(0, "the node agent was killed"))

    # -- the end -----------------------------------------------------------------------------------

    def come_to_rest(self) -> None:
        """Nobody does anything any more but to be killed: the deadlines alone must do."""
        for _ in range(20):
            self.settle(ranks_act=False)
            if self.pool.next_deadline is None and not self.orders and not self.said:
                break
            self.tick()
        else:
            raise AssertionError("deadlines do not bring it to rest")
        self.judge.at_rest()

    def play(self, script: bytes) -> None:
        if script[0] % 4:
            self.handle(ev.StartRequested(_plan(script[0] % 4), SURROUNDINGS))
            self.settle()
        for first, second in zip(script[1::2], script[2::2], strict=False):
            may = self.choices()
            may[first % len(may)](second)
        self.come_to_rest()
        self.handle(ev.StopRequested())
        self.preloaded = not self.forkserver_gone
        self.come_to_rest()
        assert self.pool.phase is p.Phase.STOPPED
        left = [q for q in self.processes if q.alive and not q.unkillable]
        assert not left, f"processes left: {left}"

    def replay(self) -> None:
        """The record of one run drives a fresh machine to the same effects."""
        again = p.Pool()
        for now, event, phase, effects in self.history:
            assert again.handle(event, now) == effects
            assert again.phase is phase


def _plan(n: int) -> Plan:
    return make_plan(n, [])


def _forms(effect: ev.Effect) -> bool:
    message = effect.message if isinstance(effect, ev.SendToNodes) else None
    return isinstance(message, m.Tell) and isinstance(message.command, m.FormGroup)


def _breaks(message: m.KernelToNode) -> bool:
    return isinstance(message, m.Tell) and isinstance(message.command, m.BreakGroup)


def _ended(effect: ev.Effect) -> bool:
    return isinstance(effect, ev.CellEnded)


def _generation(process: Process) -> int:
    return process.doing.generation if isinstance(process.doing, m.FormGroup) else 0


def _cell(process: Process) -> int:
    return process.doing.cell if isinstance(process.doing, m.RunCell) else 0


def _seen(process: Process, look: int) -> m.RankSeen | m.RankUnseen:
    """An answer out of the rank's number and the question's: in step, behind, elsewhere, or none at all."""
    kind = (process.rank * 7 - look * 3) % 8
    if kind == 7:
        return m.RankUnseen(process.rank, look, 1, 1, "RT"[look % 2], 2.0 + look % 3 * 6)
    waits = bool(_cell(process)) and kind < 4
    op = "broadcast" if kind == 6 else "all_reduce"
    call = m.Call(1 + kind % 2, op, 3, "line 3", finished=not waits)
    state = m.GroupState("0", (), call.number, (call,))
    doing = ("waiting" if waits else "computing") if _cell(process) else "idle"
    return m.RankSeen(process.rank, 1, 1, 0, look, doing, waits_in=op if waits else "", groups=(state,))


def _is_good_end(message: Any) -> bool:
    return isinstance(message, m.CellFinished) and message.verdict == "ok"


def _spoil(process: Process, choice: int) -> None:
    process.deaf = True
    process.unkillable = choice >= 128


def _unkillable(effect: ev.Effect) -> set[int]:
    if isinstance(effect, ev.StopFinished):
        return set(effect.unkillable)
    if isinstance(effect, ev.StartFinished):
        _, found, pids = effect.error.partition("does not end these processes: ")
        return {int(pid) for pid in pids.split(", ") if found}
    return set()


@pytest.mark.timeout(900)  # ten thousand sequences take half a minute; on a busy machine, minutes
@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(hypothesis.HealthCheck))
@given(st.binary(min_size=24, max_size=120))
def test_whatever_happens(script: bytes) -> None:
    """Whatever users, ranks and agents do, the machine keeps its promises and comes to rest."""
    world = World()
    try:
        world.play(script)
        world.replay()
    except Exception:
        hypothesis.note("\n".join(_told(*entry) for entry in world.history))
        raise


def test_the_world_has_all_that_can_happen() -> None:
    """Every event is heard, every effect and order given, every phase come to, in a few sequences."""
    orders = {*get_args(m.RankCommand), m.StartRanks, m.SignalRanks}
    missing = {*get_args(ev.Event), *get_args(ev.Effect), *orders, *p.Phase}
    for seed in range(1000):
        world = World()
        world.play(random.Random(seed).randbytes(120))
        for _, event, phase, effects in world.history:
            sent = [effect.message for effect in effects if isinstance(effect, ev.SendToNodes)]
            told = [type(message.command) for message in sent if isinstance(message, m.Tell)]
            missing -= {type(event), phase, *map(type, effects), *map(type, sent), *told}
        if not missing:
            return
    raise AssertionError(f"not seen: {missing}")


def _told(now: float, event: ev.Event, phase: p.Phase, effects: list[ev.Effect]) -> str:
    arrow = "\n        → "
    return f"{now:7.1f} {event} ({phase.value})" + "".join(f"{arrow}{effect}" for effect in effects)
