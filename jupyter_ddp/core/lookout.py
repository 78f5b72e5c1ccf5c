"""The pool's look-out: who is stuck, whom to ask about it, and what came of that.

Owns the questions that the pool asks its ranks of its own accord, one at a time, and their deadline.
What follows from the answers the pool decides.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Set

from msgspec import Struct

from jupyter_ddp.core import messages as m
from jupyter_ddp.core.events import Effect, HangSeen, SendToNodes
from jupyter_ddp.core.hang import Explanation, explain, may_need, needs, unheard
from jupyter_ddp.core.steps import Sight, Sights, Steps, out_of_step

LOOK_TIMEOUT_S = 1.5
"""An agent answers for a silent rank after a second."""
LOOKS_AGAIN = 3
"""So often who gave no clear answer about a failed peer is asked again, each time after a pause."""
LOOK_AGAIN_S = 0.25
SILENT_S = 9.5
"""So long in C code that holds the GIL is told unasked: ten seconds, but for the time between two looks."""
LOOK_PAUSE_S = 5.0
"""Ranks that are stuck say so each ten seconds, each at its own time: one look serves them all."""


class Purpose(enum.Enum):
    """Why the ranks are asked."""

    HANG = "hang"
    INTERRUPT = "interrupt"
    """The user has asked twice, or waited; what keeps the ranks?"""
    PEERS = "peers"
    """A rank has failed: does anybody wait for it?"""
    SILENCE = "silence"
    """The cell takes long: does the Python code of every rank run?"""
    STEPS = "steps"
    """The cell has ended: are all at the same collective?"""


def silence(sights: Sights, running: Set[int]) -> str:
    """Who has not run any Python code for long; a process that is stopped has a notice of its own."""
    long = {rank: s for rank, s in sights.items() if isinstance(s, m.RankUnseen) and s.silent_s >= SILENT_S}
    return unheard({rank: s for rank, s in long.items() if rank in running and s.state not in ("T", "t")})


class Findings(Struct, frozen=True):
    """What a look has brought, for each purpose that it had."""

    purposes: frozenset[Purpose]
    hang: Explanation | None
    unheard: str
    """Who does not hear an interrupt, in words."""
    silence: str
    """Who has been in C code for long, in words."""
    out_of_step: str
    certain: bool
    """Every rank has answered."""
    blocked: frozenset[int]
    """Who waits for a rank that has failed."""
    doubtful: frozenset[int]
    """Who waits, and may do so for one that has failed."""
    silent: frozenset[int]
    """Who runs the cell and has not answered: nothing can be said of it."""


class Lookout:
    """Of one pool; what concerns a cell goes with it."""

    def __init__(self) -> None:
        self.steps = Steps()
        self._number = 0
        self._forget()

    def _forget(self) -> None:
        self._purposes: set[Purpose] = set()
        self._awaited: set[int] = set()
        self._sights: dict[int, Sight] = {}
        self._stuck: dict[int, float] = {}
        """Since when each rank that waits for others has done so."""
        self._looked: float | None = None
        self._explained: float | None = None
        """When the ranks were last asked for a reason that explains a hang too."""
        self.hang_text = ""
        """What the user sees of a hang."""
        self.deadline: float | None = None
        """Of the answers that are awaited."""

    def end_cell(self, *, in_step: bool = False) -> None:
        """What was seen of a cell goes with it. `in_step`: a look has shown that its ranks are."""
        self.steps.settle(in_step)
        if self._looked is not None:  # as it is where a rank was stuck
            self._forget()

    def note(self, finished: m.CellFinished) -> None:
        """A rank has ended the cell."""
        self._stuck.pop(finished.rank, None)
        if finished.generation != self.steps.generation:  # whose groups count from 1
            self.steps = Steps(finished.generation)
        self.steps.note(finished)

    # -- asking ----------------------------------------------------------------------------------

    def look(self, purpose: Purpose, ranks: Iterable[int], now: float) -> list[Effect]:
        """Ask these ranks what they do. An earlier question that is open is asked again with it."""
        asked = tuple(sorted(ranks))
        self._purposes.add(purpose)
        self._number -= 1
        self._awaited, self._sights = set(asked), {}
        self.deadline, self._looked = now + LOOK_TIMEOUT_S, now
        if purpose is not Purpose.SILENCE:
            self._explained = now
        return [SendToNodes(asked, m.Tell(list(asked), m.Look(self._number)))]

    @property
    def open_look(self) -> int | None:
        """The number of the question that is open."""
        return self._number if self.deadline is not None else None

    def take(self, sight: Sight) -> bool:
        """Take an answer; True when it was the last that was awaited."""
        if sight.look != self._number or sight.rank not in self._awaited:
            return False
        self._sights[sight.rank] = sight
        self._awaited.discard(sight.rank)
        return not self._awaited

    def conclude(
        self, running: Set[int], ended: Set[int], world_size: int, *, broken: bool = False
    ) -> Findings:
        """What the answers mean, late ones left out. `broken`: the group was broken under the ranks."""
        purposes, sights = frozenset(self._purposes), self._sights
        late = frozenset(self._awaited)
        seen = {rank: sight for rank, sight in sights.items() if rank in running}
        self._purposes, self._awaited, self._sights, self.deadline = set(), set(), {}, None
        hang = explain(sights, running, world_size) if running else None
        return Findings(
            purposes,
            hang,
            unheard(seen, broken),
            silence(sights, running),
            "" if running else out_of_step(sights),
            not late,
            frozenset(rank for rank, sight in seen.items() if needs(sight, ended, world_size)),
            frozenset(rank for rank, sight in seen.items() if may_need(sight)),
            frozenset(rank for rank in running if isinstance(sights.get(rank), m.RankUnseen | None)),
        )

    def words(self, found: Findings, pressed: bool) -> str:
        """What the user is to see of all that: the hang, where a rank is stuck, else who is silent."""
        if found.hang is not None and (self._stuck or Purpose.HANG in found.purposes):
            return found.hang.text
        return found.unheard if pressed else found.silence

    # -- hangs -----------------------------------------------------------------------------------

    def hear(self, event: m.RankStuck, running: Set[int], alive: Iterable[int], now: float) -> list[Effect]:
        """A rank says that it waits for others, or that it goes on again."""
        if event.rank not in running:
            return []
        if not event.for_s:
            self._stuck.pop(event.rank, None)
            return [] if self._stuck else self.tell(event.cell, "")
        self._stuck.setdefault(event.rank, now - event.for_s)
        is_open = self.deadline is not None and self._purposes != {Purpose.SILENCE}
        if is_open or (self._explained is not None and now < self._explained + LOOK_PAUSE_S):
            return []
        return self.look(Purpose.HANG, alive, now)

    def tell(self, cell: int, text: str) -> list[Effect]:
        """Have the user see this, if it is not what they see."""
        if text == self.hang_text:
            return []
        self.hang_text = text
        return [HangSeen(cell, text)]

    @property
    def stuck(self) -> Set[int]:
        """Who says that it has waited in one place for long."""
        return self._stuck.keys()

    @property
    def hang(self) -> str:
        """Who waits for whom, where a hang goes on and the user was told so; else ""."""
        return self.hang_text if self._stuck else ""

    def hang_deadline(self, timeout_s: float) -> float | None:
        """When a hang has lasted this long; None while there is none."""
        if not (timeout_s and self.hang):
            return None
        return min(self._stuck.values()) + timeout_s
