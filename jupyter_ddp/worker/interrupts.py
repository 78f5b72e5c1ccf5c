"""When a signal may raise in a rank: while a cell's code runs, and never inside our own link.

Owns the rank's SIGINT handler. A signal that comes at another moment is kept or dropped, so it can
neither end the rank nor tear a message in two. `signal_handlers.py` does so for the user's own handlers.
"""

from __future__ import annotations

import signal

# Without signal's look-up in an enum, which takes a tenth of a no-op cell; and as they are before
# `signal_handlers.py` takes their place.
from _signal import getsignal
from _signal import signal as set_handler
from types import FrameType


class InterruptGate:
    """Used by the main thread alone, where Python runs its signal handlers."""

    def __init__(self) -> None:
        self._open = False
        self._kept: BaseException | None = None
        self.in_code = False
        """The cell's own code runs: also what the user's own signal handlers raise belongs there. A plain
        attribute: Python runs no signal handler between the end of a `try` and setting it."""
        self.shields = 0
        """While this is not 0, a signal is kept. A plain number: it is on the path of every print."""
        self.handler = self._on_signal
        self.count = 0
        """Signals that came while a cell's code ran; reset when a cell begins."""

    def install(self) -> None:
        """Take SIGINT (again: a cell may have set a handler of its own)."""
        if getsignal(signal.SIGINT) is not self.handler:
            set_handler(signal.SIGINT, self.handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if not self._open:
            return
        self.count += 1
        if self.shields:
            self._kept = KeyboardInterrupt()
        else:
            raise KeyboardInterrupt

    def takes(self, number: int) -> bool:
        """What a handler of the user's raises for this signal may be raised where the signal came."""
        return (self._open if number == signal.SIGINT else self.in_code) and not self.shields

    def keep(self, error: BaseException) -> bool:
        """Whether this will be raised: by the cell's code, which is in the midst of a message."""
        if not (self.in_code and self.shields and self._kept is None):
            return False
        self._kept = error
        return True

    def open(self) -> None:
        """The cell's code runs from here to `close`: a signal raises KeyboardInterrupt there."""
        self._kept, self.count = None, 0
        self.install()
        self._open = True

    def reopen(self) -> None:
        """Again from here to `close`, for what belongs to the same cell: nothing is counted anew."""
        self._kept = None
        self._open = True

    def close(self) -> None:
        self._open = self.in_code = False

    def after_fork(self) -> None:
        """In a process that the user's code forked: all of it is the user's."""
        self._open = self.in_code = True
        self.shields = 0

    def unshield(self) -> None:
        """The end of what no signal may interrupt, which began with raising `shields`."""
        self.shields -= 1
        if self._kept is not None and not self.shields and self._open:
            error, self._kept = self._kept, None
            raise error
