"""A cell while it runs: its record, the news of it, and how often who waits for it is told."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable

from jupyter_ddp.core import events as ev
from jupyter_ddp.core import messages as m
from jupyter_ddp.core.record import CellRecord

Wait = Callable[[threading.Event, float], bool]
"""Waits for an event, so many seconds at most; True when it is set."""


OnNews = Callable[[CellRecord, bool], object]
"""Is told of a cell's record, and whether the cell has ended. True: there is more to tell than it could."""


class Execution:
    """One cell while it runs: its record, and the news of it."""

    def __init__(self, record: CellRecord, count: int = 0) -> None:
        self.record = record
        self.count = count
        """The notebook's prompt number."""
        self.refusal = ""
        self.news = threading.Event()
        """There is something to show that was not shown; who shows it clears it."""
        self.ended = threading.Event()
        self._something_shown = False
        self._began = time.monotonic()

    @property
    def age_s(self) -> float:
        """Seconds since it began."""
        return time.monotonic() - self._began

    def advise(self, lines: Iterable[str]) -> None:
        """Remarks on the cell, to be shown while it runs."""
        for line in lines:
            self.record.advise(line)
            self._something_shown = True
            self.news.set()

    def tell(self, message: m.CellMessage) -> None:
        """Wake who waits, unless all that happened is that a silent cell ended well on one more rank."""
        good = isinstance(message, m.GoodEnds)
        if not (good or (isinstance(message, m.CellFinished) and message.verdict == "ok")):
            self._something_shown = True
        if self._something_shown and not self.news.is_set():
            self.news.set()

    def note(self, rank: int, text: str, holds: bool = True) -> None:
        """Say something of a rank while the cell runs; or (not `holds`) take it back."""
        if rank not in self.record.ranks:
            return
        if holds:
            self.record.note(rank, text)
        else:
            self.record.take_back(rank, text)
        self.tell_at_once()

    def show(self, said: ev.Announced | ev.HangSeen) -> None:
        """What the pool says of the cell while it runs."""
        if isinstance(said, ev.HangSeen):
            self.record.hang(said.text)
        else:
            self.record.announce(said.text, said.withdrawn)
        self.tell_at_once()

    def tell_at_once(self) -> None:
        """Wake who waits: something is to be shown that no message of a rank says."""
        self._something_shown = True
        self.news.set()

    def abandon(self, why: str) -> None:
        """Nothing more will be heard of it: it ends here on the ranks that it has not ended on."""
        self.record.conclude()
        for r in self.record:
            if r.verdict is None:
                self.record.settle(r.rank, "unknown", why)
        self.finish()

    def finish(self) -> None:
        self.ended.set()
        self.news.set()

    @property
    def done(self) -> bool:
        return self.ended.is_set()


class Follower:
    """Paces what a waiting thread hears of a cell: soon after the first output, then ten times a second;
    once a second while there is none.
    """

    FIRST_S = 0.05
    """A cell that ends this soon after its first output is shown once, at its end."""
    INTERVAL_S = 0.1

    LONG_S, AGAIN_S, HELD_UP_S = 10.0, 5.0, 2.0
    """When it is asked what the ranks do: first, then every so often, and while something holds them up."""

    def __init__(
        self,
        execution: Execution,
        wait: Wait,
        on_news: OnNews | None,
        on_long: Callable[[], object] = lambda: None,
    ) -> None:
        self._execution, self._wait, self._on_news, self._on_long = execution, wait, on_news, on_long
        self._pause_s = self.FIRST_S
        self._ask_at = 0.0

    def step(self) -> None:
        """Wait for news, and pass it on."""
        self._step()
        if not self._execution.done:
            self._wonder()

    def _wonder(self) -> None:
        """It takes long: have somebody ask the ranks what they do."""
        now = time.monotonic()
        if not self._ask_at:
            self._ask_at = now + self.LONG_S
        elif now >= self._ask_at:
            self._ask_at = now + (self.HELD_UP_S if self._execution.record.held_up else self.AGAIN_S)
            self._on_long()

    def _step(self) -> None:
        execution = self._execution
        if self._on_news is None:
            self._wait(execution.ended, 1.0)
        elif not self._wait(execution.news, 1.0):
            self._pass_on()
        else:
            execution.news.clear()
            if not execution.done and not self._wait(execution.ended, self._pause_s):
                self._pause_s = self.INTERVAL_S
                self._pass_on()

    def _pass_on(self) -> None:
        assert self._on_news is not None
        if self._on_news(self._execution.record, False) is True:
            self._execution.news.set()
