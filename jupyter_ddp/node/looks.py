"""Who was asked what it does and has not answered: the agent answers for it after a second.

Owns the deadlines of those questions. Never asks a rank that owes an answer already.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

from jupyter_ddp.core import codec
from jupyter_ddp.core import messages as m
from jupyter_ddp.node.rank_process import RankProcess

ANSWER_TIMEOUT_S = 1.0
"""A control thread answers within milliseconds, unless its process holds the GIL or is stopped."""


class Looks:
    def __init__(self) -> None:
        self.asked: dict[tuple[RankProcess, int], float] = {}
        """Who has still to answer which question, and by when."""
        self._owing: set[RankProcess] = set()

    def ask(self, process: RankProcess, look: m.Look) -> m.RankUnseen | None:
        """Pass the question on; or answer it, for a rank that has left an earlier one unanswered."""
        if process in self._owing:
            return process.unseen(look.number)
        self.asked[process, look.number] = time.monotonic() + ANSWER_TIMEOUT_S
        process.tell_control(codec.encode(look))
        return None

    def answered(self, process: RankProcess, number: int) -> None:
        """The rank has said what it does."""
        self._owing.discard(process)
        self.asked.pop((process, number), None)

    def timeout_s(self) -> float:
        """Until the first answer is overdue. Only while one is awaited."""
        return max(0.0, min(self.asked.values()) - time.monotonic())

    def overdue(self) -> Iterator[m.RankUnseen]:
        """Answers for those that have not given theirs in time."""
        now = time.monotonic()
        for (process, number), deadline in list(self.asked.items()):
            if now >= deadline:
                del self.asked[process, number]
                self._owing.add(process)
                yield process.unseen(number)

    def forget(self, process: RankProcess) -> Iterator[m.RankUnseen]:
        """The process has ended: answers for what it was asked."""
        self._owing.discard(process)
        for asked, number in list(self.asked):
            if asked is process:
                del self.asked[asked, number]
                yield process.unseen(number)
