"""Puts a cell's record on the screen: live where a front end can show it, once where not.

Owns the display of one running cell, and of a pool that starts. All their calls are made by the
thread that runs the magic.
"""

from __future__ import annotations

from collections.abc import Sequence

from IPython.display import DisplayHandle, display

from jupyter_ddp.core.record import CellRecord
from jupyter_ddp.view.bundle import bundle
from jupyter_ddp.view.status import RankLine, progress_text


class CellDisplay:
    """One display id from the first output to the static page that is saved."""

    def __init__(self, live: bool) -> None:
        self._live = live
        self._handle: DisplayHandle | None = None
        self._shown_version = -1

    def show(self, record: CellRecord, done: bool) -> None:
        """Called as news of the cell comes (at most ten times a second), and at its end."""
        if not done and (not self._live or record.version == self._shown_version):
            return
        self._shown_version = record.version
        if record.silent and self._handle is None:
            return
        page = bundle(record.snapshot(), live=not done)
        if self._handle is not None:
            self._handle.update(page, raw=True)
        elif self._live and not done:
            self._handle = display(page, raw=True, display_id=True)
        else:
            display(page, raw=True)


class StartDisplay:
    """One line while a pool starts, and in its place what was chosen."""

    def __init__(self, live: bool) -> None:
        self._live = live
        self._handle: DisplayHandle | None = None
        self._shown = ""

    def show(self, seconds: float, ranks: Sequence[RankLine]) -> None:
        """Called a few times a second."""
        if self._live:
            self._put(progress_text(seconds, ranks))

    def end(self, choice: str) -> None:
        """The pool stands. What stays is the same whether it was watched or not."""
        self._put(choice)

    def fail(self) -> None:
        """The error says why; the line only that nothing goes on any more."""
        if self._handle is not None:
            self._put("the pool did not start")

    def _put(self, text: str) -> None:
        if text == self._shown:
            return
        self._shown, page = text, {"text/plain": text}
        if self._handle is not None:
            self._handle.update(page, raw=True)
        else:
            self._handle = display(page, raw=True, display_id=True)
