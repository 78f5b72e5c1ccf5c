"""How a thread waits for what the exchange's thread will say, and never longer than a bound."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from jupyter_ddp.core.errors import PoolError

NO_ANSWER = "the pool does not answer; %ddp restart starts anew"
WAIT_STEP_S = 0.25


class Waiter:
    """Something that will be finished by the exchange's thread."""

    def __init__(self) -> None:
        self._event = threading.Event()
        self.error = ""

    def finish(self, error: str = "") -> None:
        self.error = error
        self._event.set()

    def wait(self, timeout_s: float) -> bool:
        return self._event.wait(timeout_s)


def wait_for(wait: Callable[[float], bool], limit_s: float) -> None:
    """Wait for the exchange's thread. Raises PoolError when it takes longer than any of its own bounds."""
    deadline = time.monotonic() + limit_s
    while not wait(WAIT_STEP_S):
        if time.monotonic() > deadline:
            raise PoolError(NO_ANSWER)
