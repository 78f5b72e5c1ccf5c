"""When SIGINT may raise in a rank: while a cell's code runs, and never inside our own link.

Owns the rank's SIGINT handler. A signal that comes at another moment is kept or dropped, so it can
neither end the rank nor tear a message in two.
"""

from __future__ import annotations

import signal
from _signal import getsignal  # without signal's look-up in an enum, which takes a tenth of a no-op cell
from types import FrameType


class InterruptGate:
    """Used by the main thread alone, where Python runs its signal handlers."""

    def __init__(self) -> None:
        self._open = False
        self._kept = False
        self.shields = 0
        """While this is not 0, a signal is kept. A plain number: it is on the path of every print."""
        self._handler = self._on_signal
        self.count = 0
        """Signals that came while a cell's code ran; reset when a cell begins."""

    def install(self) -> None:
        """Take SIGINT (again: a cell may have set a handler of its own)."""
        if getsignal(signal.SIGINT) is not self._handler:
            signal.signal(signal.SIGINT, self._handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if not self._open:
            return
        self.count += 1
        if self.shields:
            self._kept = True
        else:
            raise KeyboardInterrupt

    def open(self) -> None:
        """The cell's code runs from here to `close`: a signal raises KeyboardInterrupt there."""
        self._kept, self.count = False, 0
        self.install()
        self._open = True

    def reopen(self) -> None:
        """Again from here to `close`, for what belongs to the same cell: nothing is counted anew."""
        self._kept = False
        self._open = True

    def close(self) -> None:
        self._open = False

    def unshield(self) -> None:
        """The end of what no signal may interrupt, which began with raising `shields`."""
        self.shields -= 1
        if self._kept and not self.shields and self._open:
            self._kept = False
            raise KeyboardInterrupt
