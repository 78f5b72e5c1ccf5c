"""The notebook's interrupt button while a thread waits for the pool."""

from __future__ import annotations

import signal
import threading
from _signal import signal as set_handler  # without signal's look-up in an enum
from collections.abc import Callable
from types import FrameType


class InterruptsTo:
    """Inside, SIGINT calls `interrupt` and raises nothing here.

    A KeyboardInterrupt could come between any two steps of ours, and leave a cell that nobody follows;
    what `interrupt` does instead has to be such that it may be done at any moment. In a thread that
    gets no signals, nothing changes.
    """

    def __init__(self, interrupt: Callable[[], None]) -> None:
        self._interrupt = interrupt
        self._taken = False

    def __enter__(self) -> None:
        if threading.current_thread() is threading.main_thread():
            self._before = set_handler(signal.SIGINT, self._on_signal)
            self._taken = True

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._interrupt()

    def __exit__(self, *_: object) -> None:
        if self._taken:
            # None: a handler of C code's, which Python cannot name; Python's own takes its place.
            set_handler(signal.SIGINT, self._before or signal.default_int_handler)
