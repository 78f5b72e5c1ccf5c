"""What the main thread does, seen from the control thread: where, for how long, and whether it waits.

Owns the notice that a rank waits for others. Looks four times a second at the main thread's frames,
and reads torch's flight recorder only when nothing has moved for ten seconds, or when asked.
"""

from __future__ import annotations

import linecache
import re
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator
from types import FrameType
from typing import NamedTuple, Protocol

from jupyter_ddp.core import messages as m
from jupyter_ddp.core.journal import Journal
from jupyter_ddp.worker.frames import is_users, place_of
from jupyter_ddp.worker.outbox import Outbox

STUCK_S = 10.0
"""So long in one place, waiting for others, is said."""
_MAX_STACKS_CHARS = 64 * 1024
_COMPUTES = 0.2
"""A thread that uses this part of a processor computes."""

_SLEEPS = re.compile(r"\bsleep\s*\(")
_STORE_WAIT = re.compile(r"([A-Za-z_][\w.]*)\.(?:get|wait)\s*\(")
_WORK_WAIT = re.compile(r"\.(?:wait|synchronize|wait_tensor)\s*\(")
_C10D = ("torch.distributed.distributed_c10d", "torch.distributed.c10d_logger")
_SENDS = ("send", "recv", "isend", "irecv", "batch_isend_irecv", "send_object_list", "recv_object_list")


class SendOrReceive(Protocol):
    """A point-to-point call under way."""

    @property
    def op(self) -> str: ...
    @property
    def peer(self) -> int: ...


class Calls(Protocol):
    """What the watcher needs of the rank's collectives."""

    @property
    def progress(self) -> int: ...
    def see(self) -> tuple[m.GroupState, ...]: ...
    def waiting_send(self) -> SendOrReceive | None: ...


class Wait(NamedTuple):
    """What the main thread waits in, and for which rank, where it is one."""

    op: str
    peer: int = -1


class Watcher:
    """Used by the control thread alone, but for `begin` and `end`."""

    def __init__(
        self,
        outbox: Outbox,
        journal: Journal,
        is_cell_file: Callable[[str], bool],
        calls: Calls | None = None,
    ) -> None:
        self._outbox, self._journal, self._is_cell_file = outbox, journal, is_cell_file
        self._calls = calls
        main = threading.main_thread()
        self._main = main.ident or 0
        self._clock = time.pthread_getcpuclockid(self._main)
        self._marks: deque[tuple[float, float]] = deque(maxlen=2)
        """(time, processor time of the main thread) at the last ticks."""
        self._mark(time.monotonic())
        self.watching = False
        """A cell runs: its line is noted in the page."""
        self._place: tuple[object, ...] = ()
        self._since = 0.0
        self._looked = 0.0
        self._told = False

    def watch(self, on: bool) -> None:
        """A cell runs from now on, or has ended. The main thread's: at no cost."""
        self.watching = on
        if on:
            self._journal.line = 0

    def tick(self) -> None:
        """Note the cell's line; once nothing has moved for long, see whether the rank waits for others."""
        now = time.monotonic()
        self._journal.seen_ns = time.monotonic_ns()
        self._mark(now)
        if not self.watching:
            self._rest()
            return
        frame = self._frame()
        line, name = self.note_line_of(frame)
        # Its number, not the cell's alone: two cells may be at the same line.
        place = (self._outbox.cell, name, line, self._progress())
        if place != self._place:
            self._rest()
            self._place, self._since, self._looked = place, now, now
        elif now - self._looked >= STUCK_S:
            self._looked = now
            if self._wait(frame, self._groups()) is not None:
                self._told = True
                self._outbox.say_aside(m.RankStuck, for_s=now - self._since)
            else:
                self._take_back()

    def note_line_of(self, frame: FrameType | None) -> tuple[int, str]:
        """The cell's line that this frame was called from is where the rank is now; and its code's name."""
        line, name = self._line(frame)
        if line:
            self._journal.line = line
        return line, name

    def _rest(self) -> None:
        self._take_back()
        self._place = ()

    def _take_back(self) -> None:
        """It does not wait for others, or no more."""
        if self._told:
            self._told = False
            self._outbox.say_aside(m.RankStuck, for_s=0.0)

    def forget(self) -> None:
        """Begin anew, after what was seen could not be made sense of."""
        self._place = ()

    def answer(self, look: m.Look) -> None:
        """Say what this rank does."""
        frame = self._frame()
        stacks = self._stacks() if look.full else ""
        if not self.watching:
            self._outbox.say_aside(
                m.RankSeen, look=look.number, doing="idle", groups=self._groups(), stacks=stacks
            )
            return
        groups = self._groups()
        wait = self._wait(frame, groups)
        line, _ = self._line(frame)
        users = next((f for f in _outwards(frame) if self._is_users(f)), None)
        name = users.f_code.co_name if users is not None else ""
        self._outbox.say_aside(
            m.RankSeen,
            look=look.number,
            doing="waiting" if wait is not None else self._doing(frame),
            line=line,
            place=self._place_of(users),
            function="" if name == "<module>" else name,
            for_s=max(0.0, time.monotonic() - self._since) if self._place else 0.0,
            waits_in=wait.op if wait is not None else "",
            peer=wait.peer if wait is not None else -1,
            groups=groups,
            stacks=stacks,
        )

    # -- frames ----------------------------------------------------------------------------------

    def _frame(self) -> FrameType | None:
        return sys._current_frames().get(self._main)

    def _is_users(self, frame: FrameType) -> bool:
        return is_users(frame.f_code.co_filename, self._is_cell_file)

    def _place_of(self, frame: FrameType | None) -> str:
        if frame is None:
            return ""
        return place_of(frame.f_code.co_filename, frame.f_lineno or 0, self._is_cell_file)

    def _line(self, frame: FrameType | None) -> tuple[int, str]:
        """The cell's line, and the name of its code; 0 where no frame is a cell's."""
        for each in _outwards(frame):
            if self._is_cell_file(each.f_code.co_filename):
                return each.f_lineno or 0, each.f_code.co_name
        return 0, ""

    def _progress(self) -> int:
        return self._calls.progress if self._calls is not None else 0

    def _groups(self) -> tuple[m.GroupState, ...]:
        return self._calls.see() if self._calls is not None else ()

    def _wait(self, frame: FrameType | None, groups: tuple[m.GroupState, ...]) -> Wait | None:
        """What of other ranks' the main thread waits in; None while it does something of its own."""
        if frame is None or self._calls is None:
            return None
        text = _call_text(frame)
        if (store := _STORE_WAIT.search(text)) is not None and _is_store(frame, store[1]):
            return Wait("a store")
        inside = _c10d_function(frame)
        if not inside and not _WORK_WAIT.search(text) and (_SLEEPS.search(text) or self._computes()):
            return None
        send = self._calls.waiting_send()
        if send is not None and inside in _SENDS:
            return Wait(send.op, send.peer)
        pending = [c for g in groups for c in g.calls if not c.finished and not c.background]
        if pending:
            return Wait(pending[0].op)
        if send is not None and _WORK_WAIT.search(text):
            return Wait(send.op, send.peer)
        return Wait(inside) if inside else None

    def _doing(self, frame: FrameType | None) -> str:
        if frame is not None and _SLEEPS.search(_call_text(frame)):
            return "sleeping"
        return "computing" if self._computes() else "waiting"

    def _mark(self, now: float) -> None:
        self._marks.append((now, time.clock_gettime(self._clock)))

    def _computes(self) -> bool:
        """The main thread has used the processor lately. (Its state in /proc would not tell: while this
        thread looks, that one waits for the GIL.)"""
        then, used = self._marks[0]
        elapsed = time.monotonic() - then
        return time.clock_gettime(self._clock) - used > _COMPUTES * elapsed

    def _stacks(self) -> str:
        names = {thread.ident: thread.name for thread in threading.enumerate()}
        parts = []
        for ident, frame in sys._current_frames().items():
            if ident == threading.get_ident():
                continue  # our own, which is here
            stack = "".join(traceback.format_list(self._users_stack(frame)))
            parts.append(f"{names.get(ident, 'a thread')}:\n{stack}")
        return "\n".join(parts)[:_MAX_STACKS_CHARS]

    def _users_stack(self, frame: FrameType) -> traceback.StackSummary:
        """The stack from the user's outermost frame on; whole, where there is none."""
        frames = list(traceback.walk_stack(frame))[::-1]
        first = next((at for at, (each, _) in enumerate(frames) if self._is_users(each)), 0)
        return traceback.StackSummary.extract(iter(frames[first:]))


def _outwards(frame: FrameType | None) -> Iterator[FrameType]:
    while frame is not None:
        yield frame
        frame = frame.f_back


def _c10d_function(frame: FrameType) -> str:
    """The function of torch.distributed's in which the innermost Python code is, as the user knows it."""
    name = ""
    for each in _outwards(frame):
        module = each.f_globals.get("__name__", "")
        if module in _C10D and each.f_code.co_name != "wrapper":
            name = each.f_code.co_name
        elif module not in _C10D and not module.startswith("jupyter_ddp."):
            break  # ours stand in for functions of torch's, and check what these are called with
    return name


def _call_text(frame: FrameType) -> str:
    """The source of the call that this frame is in; "" where it is not known."""
    positions = list(frame.f_code.co_positions())
    at = frame.f_lasti // 2
    if not 0 <= at < len(positions):
        return ""
    first, last, start, end = positions[at]
    if first is None or last is None or start is None or end is None:
        return ""
    lines = [linecache.getline(frame.f_code.co_filename, n).encode() for n in range(first, last + 1)]
    if not lines:
        return ""
    lines[-1] = lines[-1][:end]
    lines[0] = lines[0][start:]
    return b"".join(lines).decode("utf-8", "replace")


def _is_store(frame: FrameType, name: str) -> bool:
    """The dotted name means one of torch's stores in this frame."""
    first, *attributes = name.split(".")
    found = frame.f_locals.get(first, frame.f_globals.get(first))
    for attribute in attributes:
        found = vars(found).get(attribute) if hasattr(found, "__dict__") else None
    return any(kind.__name__ == "Store" and kind.__module__.startswith("torch") for kind in type(found).mro())
