"""How far the interrupt of a running cell has climbed, and when its next step comes.

Owns the ladder's times and words. However quickly the user presses, each step has its chance before the
next one, and what a step costs is said before it is taken. What a step does the pool knows.
"""

from __future__ import annotations

import enum
from collections.abc import Collection

from jupyter_ddp.core.events import Announced, Effect
from jupyter_ddp.core.topology import named

INTERRUPT_TIMEOUT_S = 2.0
"""After SIGINT, how long ranks may take before the group is broken under them unasked."""
SIGNAL_CHANCE_S = 0.5
"""The same where the user has pressed again: ranks that compute in Python need no more."""
BREAK_CHANCE_S = 1.5
"""After the group was broken, how long ranks have to end before a third press kills them."""
NOTICE_S = 0.25
"""How long before it is taken a step is announced: a view is told ten times a second."""


class Turn(enum.Enum):
    """What is due now."""

    ANNOUNCE = "say which step comes next"
    BREAK = "break the process group"
    LOOK = "see what keeps the ranks"
    KILL = "kill the ranks"


class _Step(enum.IntEnum):
    NONE = 0
    SIGNAL = 1
    BREAK = 2
    KILL = 3


class Ladder:
    """Of one cell. `turn` says what is due; each of the other methods reports that something was done."""

    def __init__(self, cell: int) -> None:
        self._cell = cell
        self.presses = 0
        """How often the user asked to interrupt the cell."""
        self._step = _Step.NONE
        self._since = 0.0
        """When the last step was taken."""
        self._announced_at: float | None = None
        self._announcement = ""
        """The words of a step that was announced and not taken yet."""
        self._looked = False

    @property
    def deadline(self) -> float | None:
        """When something is due; None: at the next press."""
        upcoming = self._next() if self._step else None
        return upcoming[1] if upcoming else None

    def turn(self, now: float) -> Turn | None:
        """What is due now; None where nothing is."""
        upcoming = self._next()
        return upcoming[0] if upcoming and now >= upcoming[1] else None

    def _next(self) -> tuple[Turn, float] | None:
        since, announced = self._since, self._announced_at
        if self._step is _Step.SIGNAL:
            due = since + (SIGNAL_CHANCE_S if self.presses > 1 else INTERRUPT_TIMEOUT_S)
            if announced is None:
                return Turn.ANNOUNCE, since if self.presses > 1 else due - NOTICE_S
            return Turn.BREAK, max(due, announced + NOTICE_S)
        if self._step is _Step.BREAK and self.presses > 2:
            if announced is None:
                return Turn.ANNOUNCE, since
            return Turn.KILL, max(since + BREAK_CHANCE_S, announced + NOTICE_S)
        if self._step is _Step.BREAK and self.presses and not self._looked:
            return Turn.LOOK, since + BREAK_CHANCE_S
        return None

    # -- what was done -----------------------------------------------------------------------------

    def press(self, now: float) -> bool:
        """The user asks (again) to interrupt the cell. True: SIGINT is the answer, now."""
        self.presses += 1
        if self.presses > 2 or (self.presses == 2 and self._step is _Step.SIGNAL):
            return False
        self._step, self._since = max(self._step, _Step.SIGNAL), now
        return True

    def announce(self, ranks: Collection[int], now: float) -> list[Effect]:
        """Say what comes, to whom, and what it costs."""
        self._announced_at, self._announcement = now, self._words(ranks)
        return [Announced(self._announcement, self._cell)]

    def confirm(self, ranks: Collection[int]) -> list[Effect]:
        """The announced step is taken, on these ranks: maybe fewer than when it was announced."""
        words, before = self._words(ranks), self._announcement
        self._announcement = ""
        if words == before:
            return []
        return [Announced(before, self._cell, withdrawn=True), Announced(words, self._cell)]

    def withdraw(self) -> list[Effect]:
        """The cell has ended: a step that was only announced does not come."""
        words, self._announcement = self._announcement, ""
        return [Announced(words, self._cell, withdrawn=True)] if words else []

    def broke(self, now: float) -> None:
        """The group was broken, for whatever reason."""
        self._step, self._since, self._announced_at = max(self._step, _Step.BREAK), now, None

    def looked(self) -> None:
        self._looked = True

    def killed(self) -> None:
        self._step = _Step.KILL

    def _words(self, ranks: Collection[int]) -> str:
        whom = named(sorted(ranks), "-")
        if self._step is _Step.SIGNAL:
            return f"interrupt: {whom}: breaking the process group; variables are kept"
        hold = "they hold" if len(ranks) > 1 else "it holds"
        return f"interrupt: killing {whom}; what only {hold} is lost"
