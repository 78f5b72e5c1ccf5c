"""The live view's end in the notebook kernel: a widget that is told what is new, and never waited for.

Owns the widgets that are open. What is told is `view.news`'s, how much of it `view.pacing`'s, how it
looks `view/live.js`'s. Called by the thread that runs the magic; the browser's messages may come in
another one (a subshell), where the front end can reach a notebook kernel that is busy.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections import deque
from collections.abc import Callable
from functools import cache, partial
from typing import Any

from IPython.core.getipython import get_ipython

from jupyter_ddp.core.record import CellRecord
from jupyter_ddp.kernel.late_pages import LatePages
from jupyter_ddp.kernel.subshell import Subshell
from jupyter_ddp.view.news import MESSAGE_BYTES, WHOLE_BYTES, NewsReader, size_bytes
from jupyter_ddp.view.pacing import INTERVAL_S, Allowance

_SETTLING_S = 1.5
"""A browser that opens the view hears nothing until it has loaded it: so long, all is told again."""
_SETTLING_BYTES = 40_000
_END_S = 2.0
_KEPT_OPEN = 2
"""Views of cells that have ended: a page that was loaded again meanwhile has nothing else to show."""


class LiveView:
    """One running cell's widget. `began`: when the cell did, monotonic, in seconds."""

    def __init__(self, record: CellRecord, subshell: Subshell, began: float) -> None:
        self._reader, self._began, self._made = NewsReader(record), began, time.monotonic()
        self._allowance = Allowance(self._made)
        self._ranks = frozenset(record.ranks)
        self._telling = threading.Lock()
        self._opened = False
        self.reloaded = False
        """A page has asked for the widget's state after it was opened."""
        self._widget = _widget_class()(self._whole, name=secrets.token_hex(16))
        self._widget.on_msg(self._on_message)
        subshell.hear(self._widget.comm)
        self._opened = True
        self._told_at = 0.0

    def bundle(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """What a front end needs to show the view: data and metadata."""
        shown: tuple[dict[str, Any], dict[str, Any]] = self._widget._repr_mimebundle_()
        return shown

    @property
    def behind(self) -> bool:
        """There is more to tell than fitted the last message."""
        return self._reader.behind

    def tell(self) -> None:
        """Send what is new, as much as the rate allows; nothing where an answer has taken the place."""
        now = time.monotonic()
        with self._telling:
            if not self._allowance.is_free(now):
                return
            room = self._allowance.room(now)
            if now - self._made < _SETTLING_S:
                self._allowance.take_place(now)
                self._widget.send_state("whole")
            elif (message := self._reader.read(min(room, MESSAGE_BYTES), room - MESSAGE_BYTES)) is not None:
                self._allowance.take_place(now)
                self._allowance.spend(size_bytes(message))
                self._widget.send(message)

    def tell_the_end(self) -> None:
        """Send what is left to tell, at the same rate; a page that was loaded again sees nothing else."""
        deadline = time.monotonic() + _END_S
        while self.behind and time.monotonic() < deadline:
            self.tell()
            if self.behind:
                time.sleep(INTERVAL_S)  # the rate is the only thing that is waited for: nothing tells of it

    def _whole(self) -> dict[str, Any]:
        """For a view that opens now: when the cell begins, or after the page was loaded again."""
        now = time.monotonic()
        self.reloaded = self.reloaded or (self._opened and now - self._made > _SETTLING_S)
        room = self._allowance.room(now)
        settling = now - self._made < _SETTLING_S
        text = _SETTLING_BYTES if settling else max(_SETTLING_BYTES, min(WHOLE_BYTES, room))
        message = self._reader.whole(text, max(0, room - WHOLE_BYTES))
        message["elapsed"] = round(now - self._began, 1)
        self._allowance.spend(size_bytes(message))
        return message

    def _on_message(self, _widget: object, content: Any, _buffers: object) -> None:
        """The browser looks at a rank, or has missed a message."""
        if not isinstance(content, dict):
            return
        if content.get("again"):
            self._answer(self._reader.whole)
        watched = content.get("watch")
        if isinstance(watched, list):
            ranks = self._ranks.intersection(rank for rank in watched if isinstance(rank, int))
            self._reader.watched = set(ranks)
            for rank in ranks:
                self._answer(partial(self._reader.of_rank, rank))

    def _answer(self, read: Callable[[int, int], dict[str, Any]]) -> None:
        """Send what the browser asks for, in the next place that is free: it is at most a few tenths away."""
        with self._telling:
            wait_s = self._allowance.take_place(time.monotonic())
        time.sleep(wait_s)  # until the place that was just taken; others may take theirs meanwhile
        with self._telling:
            room = self._allowance.room(time.monotonic())
            text = min(WHOLE_BYTES, room)
            message = read(text, room - text)
            self._allowance.spend(size_bytes(message))
            self._widget.send(message)

    def close(self) -> None:
        """The page lets go of the view; one that was loaded again keeps it, as it has nothing else."""
        if self.reloaded:
            self._widget.comm.close(deleting=True)  # without telling the page
        self._widget.close()


class LiveViews:
    """Opens a view for a cell, where there is a front end for it; keeps what a reloaded page shows."""

    def __init__(self) -> None:
        self._kept: deque[LiveView] = deque()
        self._subshell: Subshell | None = None
        self._late_pages: LatePages | None = None

    def open(self, record: CellRecord, began: float) -> LiveView | None:
        """Of a cell that began then. None without a notebook kernel, or where anywidget is missing."""
        if getattr(get_ipython(), "kernel", None) is None:
            return None
        try:
            _widget_class()
        except ImportError:
            return None
        if self._subshell is None:
            self._subshell = Subshell()
            self._late_pages = LatePages(self._subshell)
        view = LiveView(record, self._subshell, began)
        if self._late_pages is not None:
            self._late_pages.begin()
        return view

    def end(self, view: LiveView) -> None:
        """The cell has ended, and the static page stands where the view was."""
        if self._late_pages is not None:
            self._late_pages.end()
        if view.reloaded:
            view.tell_the_end()
        self._kept.append(view)
        while len(self._kept) > _KEPT_OPEN:
            self._kept.popleft().close()

    def close(self) -> None:
        while self._kept:
            self._kept.popleft().close()
        if self._subshell is not None:
            self._subshell.close()
            self._subshell = None


@cache
def _widget_class() -> Any:
    """The widget; made when first needed, for `%load_ext` is to be quick."""
    from importlib.resources import files

    import anywidget
    import traitlets

    source = files("jupyter_ddp.view")

    class LiveWidget(anywidget.AnyWidget):  # type: ignore[misc,unused-ignore]  # older anywidget has no types
        _esm = traitlets.Unicode(source.joinpath("live.js").read_text("utf-8")).tag(sync=True)
        _css = traitlets.Unicode(source.joinpath("live.css").read_text("utf-8")).tag(sync=True)
        layout = traitlets.Any(None, allow_none=True).tag(sync=True)  # one comm less
        name = traitlets.Unicode().tag(sync=True)
        whole = traitlets.Dict().tag(sync=True)

        def __init__(self, current: Any, **traits: Any) -> None:
            self._current = current
            super().__init__(**traits)

        def get_state(self, key: Any = None, drop_defaults: bool = False) -> Any:
            """The state as it is now: it is only made when it is asked for."""
            state = super().get_state(key, drop_defaults)
            if "whole" in state:
                state["whole"] = self._current()
            return state

    return LiveWidget
