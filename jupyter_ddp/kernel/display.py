"""Puts a cell's record on the screen: live where a front end can show it, once where not.

Owns the display of one running cell, and of a pool that starts. All their calls are made by the
thread that runs the magic.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Sequence
from typing import Any

import msgspec
from IPython.display import DisplayHandle, clear_output, display

from jupyter_ddp.core.record import CellRecord
from jupyter_ddp.kernel.front_end import is_terminal
from jupyter_ddp.kernel.live import LiveView, LiveViews
from jupyter_ddp.view.bundle import bundle
from jupyter_ddp.view.status import RankLine, progress_text
from jupyter_ddp.view.wording import asides

SILENT_S = 1.0
"""So long may a cell say nothing before it is shown that it runs."""


class CellDisplay:
    """One display id from the first output to the static page that is saved.

    Live, it is a widget that is told what is new; in a front end that has none, the page as it is so far.
    In a terminal the page comes at the end; what the pool says of the cell is printed at once.
    """

    def __init__(self, live: bool, views: LiveViews) -> None:
        self._live, self._views = live, views
        self._began = time.monotonic()
        self.alone = True
        """The cell has no other outputs, which would go with the view of one that ends without any."""
        self._handle: DisplayHandle | None = None
        self._view: LiveView | None = None
        self._shown_version = -1
        self._said: set[str] = set()

    def show(self, record: CellRecord, done: bool) -> bool:
        """Called as news of the cell comes (at most ten times a second), once a second without any, and at
        its end.

        True: not all was told, so it is to be called again though no more news comes.
        """
        if done:
            self._end(record)
        elif self._live and (self._handle is not None or not record.silent or self._is_long):
            self._show(record)
        elif self._in_terminal:
            self._say(record)
        return self._view is not None and not done and self._view.behind

    @property
    def _is_long(self) -> bool:
        """Who waits wants to see that it runs, though it says nothing."""
        return self.alone and time.monotonic() - self._began >= SILENT_S

    @functools.cached_property
    def _in_terminal(self) -> bool:
        return not self._live and is_terminal()

    def _say(self, record: CellRecord) -> None:
        """In a terminal: what the pool says of the cell, above the page that comes at the end."""
        for line in asides(record.held_up, record.announced):
            if line not in self._said:
                self._said.add(line)
                print(line, flush=True)  # noqa: T201  # this is what the user sees

    def _show(self, record: CellRecord) -> None:
        if self._view is not None:
            self._view.tell()
        elif self._handle is None:
            self._open(record)
        elif record.version != self._shown_version:
            self._handle.update(bundle(record.snapshot(), live=True), raw=True)
        self._shown_version = record.version

    def _open(self, record: CellRecord) -> None:
        page: dict[str, Any] = dict(bundle(record.snapshot(), live=True))
        metadata: dict[str, Any] = {}
        self._view = self._views.open(record, self._began)
        if self._view is not None:
            widget, metadata = self._view.bundle()
            page = {**widget, **page}
        self._handle = display(page, metadata=metadata, raw=True, display_id=True)

    def _end(self, record: CellRecord) -> None:
        if record.silent and (self._handle is None or self.alone):
            if self._handle is not None:  # what is saved is the same whether it took long or not
                clear_output()
                self._handle = None
                self._let_go()
            return
        page = self._page(record)
        if self._handle is not None:
            self._handle.update(page, raw=True)
        else:
            self._handle = display(page, raw=True, display_id=True)
        self._let_go()

    def _let_go(self) -> None:
        if self._view is not None:
            self._views.end(self._view)
            self._view = None  # it knows the record, which would keep itself then

    def redraw(self, record: CellRecord) -> None:
        """A later cell has updated what this one displayed, or a thread of this one has written more."""
        if self._handle is not None:
            self._handle.update(self._page(record), raw=True)

    @property
    def stays(self) -> bool:
        """It can be redrawn."""
        return self._handle is not None and not self._in_terminal

    @property
    def printed(self) -> bool:
        """It stands in a terminal, which takes nothing back."""
        return self._handle is not None and self._in_terminal

    def _page(self, record: CellRecord) -> dict[str, str]:
        """The static page."""
        snapshot = record.snapshot()
        if self._said:
            unsaid = tuple(
                text for text in snapshot.announced if not self._said.issuperset(asides("", [text]))
            )
            snapshot = msgspec.structs.replace(snapshot, announced=unsaid)
        return bundle(snapshot)


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
