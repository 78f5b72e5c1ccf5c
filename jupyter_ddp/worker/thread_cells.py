"""Which cell the user's threads belong to: what one prints after its cell has ended is shown with that cell.

Owns `threading.Thread.start`, which notes it. A thread that a library starts (an executor's worker, a
progress bar's monitor) serves whichever cell runs, and belongs to none.
"""

from __future__ import annotations

import functools
import threading
from typing import Any

from jupyter_ddp.worker.outbox import Outbox

_USERS = ("__main__", "builtins")
"""Where functions of cells are from, and those that a cell may give a thread as they are: `print`."""


class ThreadCells:
    """Notes threads as they are started."""

    def __init__(self, outbox: Outbox) -> None:
        self._outbox = outbox

    def install(self) -> None:
        """For all threads that are started from now on."""
        start = threading.Thread.start

        @functools.wraps(start)
        def noted(thread: threading.Thread) -> None:
            if _is_users(thread):
                thread._jupyter_ddp_cell = self._outbox.own_cell  # type: ignore[attr-defined]  # lives as long as it
            start(thread)

        threading.Thread.start = noted  # type: ignore[method-assign,assignment]


def cell_of_thread(ident: int) -> int | None:
    """The cell that started the thread; None for one that belongs to none."""
    # Not `current_thread()`: of a thread that C code started it makes an object, which stays.
    thread = getattr(threading, "_active", {}).get(ident)
    cell: int | None = getattr(thread, "_jupyter_ddp_cell", None)
    return cell


def _is_users(thread: Any) -> bool:
    if type(thread).__module__ == "__main__":
        return True
    function = thread.function if isinstance(thread, threading.Timer) else getattr(thread, "_target", None)
    while isinstance(function, functools.partial):
        function = function.func
    return type(thread).__module__ == "threading" and getattr(function, "__module__", "") in _USERS
