"""Puts a cell's record on the screen: live where a front end can show it, once where not.

Owns the display of one running cell. All its calls are made by the thread that runs the magic.
"""

from __future__ import annotations

from IPython.display import DisplayHandle, display

from jupyter_ddp.core.record import CellRecord
from jupyter_ddp.view.bundle import bundle


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
        snapshot = record.snapshot()
        if snapshot.silent and self._handle is None:
            return
        page = bundle(snapshot, live=not done)
        if self._handle is not None:
            self._handle.update(page, raw=True)
        elif self._live and not done:
            self._handle = display(page, raw=True, display_id=True)
        else:
            display(page, raw=True)
