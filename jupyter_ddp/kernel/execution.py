"""A cell while it runs: its record, the news of it, and how often who waits for it is told."""

from __future__ import annotations

import threading
from collections.abc import Callable

from jupyter_ddp.core import messages as m
from jupyter_ddp.core.record import CellRecord


class Execution:
    """One cell while it runs: its record, and the news of it."""

    def __init__(self, record: CellRecord) -> None:
        self.record = record
        self.refusal = ""
        self._news = threading.Event()
        self._done = threading.Event()
        self._something_shown = False

    def tell(self, message: m.CellMessage) -> None:
        """Wake who waits, unless all that happened is that a silent cell ended well on one more rank."""
        if not isinstance(message, m.CellFinished) or message.verdict != "ok":
            self._something_shown = True
        if self._something_shown and not self._news.is_set():
            self._news.set()

    def finish(self) -> None:
        self._done.set()
        self._news.set()

    @property
    def done(self) -> bool:
        return self._done.is_set()

    def wait_done(self, timeout_s: float) -> bool:
        return self._done.wait(timeout_s)

    def wait_news(self, timeout_s: float) -> bool:
        """True when something came since the last call."""
        if not self._news.wait(timeout_s):
            return False
        self._news.clear()
        return True


class Follower:
    """Paces what a waiting thread hears of a cell: soon after the first output, then ten times a second."""

    FIRST_S = 0.05
    """A cell that ends this soon after its first output is shown once, at its end."""
    INTERVAL_S = 0.1

    def __init__(self, execution: Execution, on_news: Callable[[CellRecord, bool], None] | None) -> None:
        self._execution, self._on_news = execution, on_news
        self._pause_s = self.FIRST_S

    def step(self) -> None:
        """Wait for news, and pass it on."""
        execution = self._execution
        if self._on_news is None:
            execution.wait_done(1.0)
        elif execution.wait_news(1.0) and not execution.wait_done(self._pause_s):
            self._pause_s = self.INTERVAL_S
            self._on_news(execution.record, False)
