"""Who the ranks are: their processes, the group that they form, and those that were let go.

Owns what is known of each rank's process, and what a change of them that fails goes back to. It waits
for nothing and decides nothing: the pool's machine says when ranks come, go and form a group.
"""

from __future__ import annotations

import signal
from collections.abc import Iterable

from jupyter_ddp.core import healing
from jupyter_ddp.core import messages as m
from jupyter_ddp.core.bounds import STOP_TIMEOUT_S
from jupyter_ddp.core.events import (
    Announced,
    Effect,
    HealRequested,
    ResizeRequested,
    SendToNodes,
    StartRequested,
    signal_ranks,
    tell_ranks,
)
from jupyter_ddp.core.faults import describe_exit, describe_status
from jupyter_ddp.core.topology import Plan, named


class RankState:
    """What is known of one rank's process."""

    def __init__(self, place: m.WorkerPlace) -> None:
        self.place = place
        self.pid = 0
        self.connected = False
        self.generation = 0
        """The generation of the group that it is a member of; 0 for none."""
        self.exited: m.WorkerExited | None = None
        self.doomed = ""
        """Why its accelerator is lost to its process for good; "" when it is not."""

    @property
    def alive(self) -> bool:
        return self.exited is None

    @property
    def fit(self) -> bool:
        """It can run cells."""
        return self.exited is None and not self.doomed


class Membership:
    """Of one pool."""

    def __init__(self) -> None:
        self.ranks: dict[int, RankState] = {}
        self.plan: Plan | None = None
        self.generation = 0
        self.awaited = 0
        """The generation that the ranks were last told to form; 0 while new processes are to come first."""
        self.healing: healing.Healing | None = None
        self._before_change: tuple[Plan, dict[int, RankState]] | None = None
        """What a resize or a heal that fails goes back to."""
        self._gone: list[RankState] = []
        """Let go of, and not known to have ended; their ranks' numbers may have new processes."""
        self.gone_deadline: float | None = None

    @property
    def dead(self) -> tuple[int, ...]:
        return tuple(rank for rank, state in self.ranks.items() if not state.alive)

    @property
    def alive(self) -> tuple[int, ...]:
        return tuple(rank for rank, state in self.ranks.items() if state.alive)

    @property
    def fit(self) -> tuple[int, ...]:
        return tuple(rank for rank, state in self.ranks.items() if state.fit)

    @property
    def unfit(self) -> tuple[int, ...]:
        """Dead or doomed: without them there is no group of all ranks, and a heal replaces them."""
        return tuple(rank for rank, state in self.ranks.items() if not state.fit)

    @property
    def doomed(self) -> dict[int, str]:
        """Those that live, and why."""
        return {rank: state.doomed for rank, state in self.ranks.items() if state.alive and state.doomed}

    # -- who comes -------------------------------------------------------------------------------

    def start(self, event: StartRequested) -> list[Effect]:
        """A rank for each place of the plan."""
        self.plan = event.plan
        self.ranks = {place.rank: RankState(place) for place in event.plan.places}
        return self._launch(list(event.plan.places), event.surroundings)

    def _launch(
        self, places: list[m.WorkerPlace], surroundings: m.Surroundings, replaces: bool = False
    ) -> list[Effect]:
        """Ask for processes; what still lingers under the same numbers could not be reached afterwards."""
        new = tuple(place.rank for place in places)
        self.awaited = 0  # what is heard of an earlier one comes late
        lingering = {state.place.rank for state in self._gone} & set(new)
        return [*_kill(lingering), SendToNodes(new, m.StartRanks(places, surroundings, replaces))]

    def forked(self, event: m.WorkerForked) -> bool:
        """A process was born; True when it is a rank's, and not one that was let go of before its birth."""
        if (gone := self._departed(event.rank, 0, event.pid)) is not None:
            gone.pid = event.pid
        elif (state := self.ranks.get(event.rank)) is not None and not state.pid:
            state.pid = event.pid
            return True
        return False

    def connected(self, event: m.WorkerConnected) -> bool:
        """A process answers; True when it is a rank's, and all ranks do now."""
        if (gone := self._departed(event.rank, 0, event.pid)) is not None:
            gone.pid = event.pid
            return False
        state = self.ranks.get(event.rank)
        if state is None or state.pid not in (0, event.pid):  # nobody else takes a rank's place
            return False
        state.connected, state.pid = True, event.pid
        return all(s.connected for s in self.ranks.values())

    # -- the group -------------------------------------------------------------------------------

    def form(self) -> list[Effect]:
        """A new generation of the group among all ranks."""
        assert self.plan is not None
        self.generation += 1
        self.awaited = self.generation
        order = self.healing.order if self.healing else m.FormGroup
        return [
            tell_ranks([rank], order(self.generation, self.plan.backend, state.place))
            for rank, state in self.ranks.items()
        ]

    def formed(self, event: m.GroupFormed) -> bool:
        """A rank has joined; True when it is the last one of the newest generation."""
        state = self.ranks.get(event.rank)
        if state is None or event.generation != self.generation:
            return False
        state.generation = event.generation
        return all(s.generation == self.generation for s in self.ranks.values())

    def free(self) -> list[Effect]:
        """Whatever waits in the group, or for it to be formed, gives up."""
        return [tell_ranks(self.alive, m.BreakGroup(self.generation))] if self.alive else []

    def late(self, bound_s: float) -> str:
        """Who is not there, or not in the group, after so long."""
        unconnected = [r for r, s in self.ranks.items() if not s.connected]
        if unconnected:
            return f"{named(unconnected, '-')} did not connect within {bound_s:.0f} s"
        apart = [r for r, s in self.ranks.items() if s.generation != self.generation]
        return f"{named(apart, '-')} did not join the process group within {bound_s:.0f} s"

    # -- changes ---------------------------------------------------------------------------------

    @property
    def changing(self) -> bool:
        """Between the request for a change and its end, there is something to go back to."""
        return self._before_change is not None

    def settle(self) -> None:
        """The change has come to a good end."""
        self._before_change = self.healing = None

    def resize(self, event: ResizeRequested, now: float) -> list[Effect]:
        """End surplus ranks, and launch new ones or, without any, form the group of those that stay."""
        old, places = self.ranks, {place.rank: place for place in event.plan.places}
        new = [place for rank, place in places.items() if rank not in old]
        surplus = tuple(rank for rank in old if rank not in places)
        assert self.plan is not None
        # Ranks that are let go cannot come back: then it is the smaller pool that goes on.
        kept = {rank: old[rank] for rank in places if rank in old}
        self._before_change = (event.plan if surplus else self.plan, kept)
        self.plan, self.ranks = event.plan, {}
        for rank, place in places.items():
            self.ranks[rank] = old.get(rank) or RankState(place)
            self.ranks[rank].place = place
        effects: list[Effect] = [tell_ranks(surplus, m.EndWorker())] if surplus else []
        self._let_go(old[rank] for rank in surplus)
        if surplus:
            self.gone_deadline = now + STOP_TIMEOUT_S
        return [*effects, *(self._launch(new, event.surroundings) if new else self.form())]

    def heal(self, event: HealRequested) -> list[Effect]:
        """Launch new ranks in the place of the dead and the doomed; the others stay as they are."""
        assert self.plan is not None
        self._before_change = (self.plan, dict(self.ranks))
        self.healing = healing.Healing(self.unfit, event.source, self.generation)
        places = [self.ranks[rank].place for rank in self.unfit]
        self._let_go(self.ranks[place.rank] for place in places)
        for place in places:
            self.ranks[place.rank] = RankState(place)
        return self._launch(places, event.surroundings, replaces=True)

    def undo_change(self) -> list[Effect]:
        """End the new ranks; the old ones are as they were."""
        assert self._before_change is not None
        self.plan, old = self._before_change
        new = [state for rank, state in self.ranks.items() if state is not old.get(rank) and state.alive]
        self._let_go(new)
        self._gone = [state for state in self._gone if state not in old.values()]
        self.ranks = old
        for place in self.plan.places:
            old[place.rank].place = place
        self.settle()
        return _kill(state.place.rank for state in new)

    # -- who goes --------------------------------------------------------------------------------

    def exited(self, event: m.WorkerExited) -> bool:
        """A process has ended; True when a rank died with it, and it was not one that was let go of."""
        if (gone := self._departed(event.rank, event.pid)) is not None:
            self._gone.remove(gone)
            gone.exited, gone.generation = event, 0
            return False
        state = self.ranks.get(event.rank)
        if state is None or not state.alive or state.pid != event.pid:
            return False
        state.exited, state.generation = event, 0
        return True

    def doom(self, rank: int, why: str) -> None:
        """Its process lives, and is of no more use."""
        self.ranks[rank].doomed = why

    def death(self, exit: m.WorkerExited, cell: int = m.NO_CELL) -> Announced:
        left = healing.what_survives(self.dead, self.alive)
        return Announced(f"rank {exit.rank} died: {describe_exit(exit)}; {left}", cell)

    def lost(self) -> Announced:
        """Nobody is left, and with the ranks all variables are gone."""
        ends = {describe_status(s.exited.status) for s in self.ranks.values() if s.exited}
        why = ", ".join(sorted(ends))
        return Announced(f"pool lost: every rank died ({why}); {healing.NOBODY_LEFT}")

    def kill(self) -> list[Effect]:
        return _kill(self.alive)

    def kill_lingering(self, now: float) -> list[Effect]:
        """Ranks that were let go have had their time."""
        if self.gone_deadline is None or now < self.gone_deadline:
            return []
        self.gone_deadline = None
        return _kill({state.place.rank for state in self._gone} - set(self.ranks))

    def forget_unborn(self) -> bool:
        """What has no process yet will never have one; True where ranks are lost by that."""
        self._gone = [state for state in self._gone if state.pid]
        unborn = [rank for rank, state in self.ranks.items() if not state.pid]
        for rank in unborn:
            del self.ranks[rank]
        return bool(unborn)

    def forget(self) -> None:
        """No process can be reached any more, and none will be heard of."""
        self.ranks, self._gone, self.gone_deadline = {}, [], None

    def dissolve(self) -> tuple[int, ...]:
        """There is no pool any more; the PIDs of what has not ended, though it was killed."""
        stuck = tuple(s.pid for s in self.ranks.values() if s.alive and s.pid)
        self._let_go(self.ranks.values())
        self.ranks, self.plan = {}, None
        self.settle()
        return stuck

    def _let_go(self, states: Iterable[RankState]) -> None:
        self._gone += [state for state in states if state.alive]

    def _departed(self, rank: int, *pids: int) -> RankState | None:
        """The process let go of that this is news of, if it is: the rank may be a new one's by now."""
        return next((s for s in self._gone if s.place.rank == rank and s.pid in pids), None)


def _kill(ranks: Iterable[int]) -> list[Effect]:
    """With all their descendants."""
    chosen = tuple(ranks)
    return [signal_ranks(chosen, signal.SIGKILL, group=True)] if chosen else []
