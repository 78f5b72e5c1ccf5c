"""At which collective this rank is, from torch's flight recorder and a wrapper of isend and irecv.

Owns the counts of the rank's process groups. At a cell's end it counts at the cost of a microsecond a
group; the recorder is read, which takes milliseconds, only when somebody looks. Never keeps a tensor, a
frame or a group alive.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import inspect
import pickle
import select
import sys
import threading
import time
import types
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch.distributed import distributed_c10d as c10d

from jupyter_ddp.core import messages as m
from jupyter_ddp.worker.frames import is_users, place_of

CALLS_SHOWN = 16
"""Of each group's calls, so many of the last go into an answer."""
_OPEN_KEPT = 64
_FINISH_TRIES = 20
_FINISH_STEP_S = 0.0001

# Older versions of torch have no recorder for gloo: then collectives are counted, and no more.
_dump: Callable[..., bytes] | None = getattr(torch._C._distributed_c10d, "_dump_fr_trace", None)


class PointToPoint(NamedTuple):
    """A send or a receive that the rank has begun."""

    op: str
    peer: int
    """The other rank's global number; -1: any."""
    file: str
    line: int
    began: float
    work: Any
    """A weak reference to torch's Work; None while a blocking call is under way."""


class Collectives:
    """The counts and calls of one rank. `report` is the main thread's, `see` the control thread's."""

    def __init__(self, is_cell_file: Callable[[str], bool]) -> None:
        self._is_cell_file = is_cell_file
        self._reported: dict[str, int] = {}
        """Operations of each group that the cell's end before this one knew of."""
        self._sends: dict[str, int] = {}
        """Point-to-point operations of each group, which are no collectives but are counted among them."""
        self._open: deque[PointToPoint] = deque(maxlen=_OPEN_KEPT)
        self._gone: set[str] = set()
        """Groups of earlier generations, by the recorder's numbers: what hung in them stays unfinished."""

    # -- point to point --------------------------------------------------------------------------

    def install(self) -> None:
        """Note every send and receive from here on. Before user code gets hold of torch's functions."""
        for name, other in (("isend", "dst"), ("irecv", "src")):
            self._wrap(name, other)
        for name, other in (("send", "dst"), ("recv", "src")):
            # In newer versions of torch these are made of isend and irecv.
            if "i" + name not in inspect.unwrap(getattr(c10d, name)).__code__.co_names:
                self._wrap(name, other)

    def _wrap(self, name: str, other: str) -> None:
        real = getattr(c10d, name)
        group_other = f"group_{other}"
        is_compiling = torch.compiler.is_compiling

        @functools.wraps(real)
        def noted(tensor: Any, *args: Any, **kwargs: Any) -> Any:
            if is_compiling():  # or the graph would break here
                return real(tensor, *args, **kwargs)
            group = kwargs.get("group", args[1] if len(args) > 1 else None)
            peer = kwargs.get(other, args[0] if args else None)
            if peer is None and (number := kwargs.get(group_other)) is not None:
                peer = number if group is None else dist.get_global_rank(group, number)
            op, file, line = _caller(name)
            call = PointToPoint(op, -1 if peer is None else peer, file, line, time.monotonic(), None)
            if name in ("send", "recv"):
                self._open.append(call)
                self._count_send(group)
                try:
                    return real(tensor, *args, **kwargs)
                finally:
                    self._open.remove(call)
            work = real(tensor, *args, **kwargs)
            if work is not None:
                self._count_send(group)
                self._open.append(call._replace(work=weakref.ref(work)))
            return work

        for module in (dist, c10d):
            vars(module)[name] = noted

    def _count_send(self, group: Any) -> None:
        names: dict[Any, Any] = c10d._world.pg_names
        name = str(names.get(group or dist.GroupMember.WORLD, ""))
        self._sends[name] = self._sends.get(name, 0) + 1

    def waiting_send(self) -> PointToPoint | None:
        """The oldest send or receive that has not come to its end."""
        for call in list(self._open):
            if call.work is None:
                return call
            work = call.work()
            if work is not None and not work.is_completed():
                return call
        return None

    # -- counting --------------------------------------------------------------------------------

    def begin_generation(self) -> None:
        """Groups that are formed from here on count from 1, and what the recorder has is not theirs."""
        self._reported.clear()
        self._sends.clear()
        self._open.clear()
        self._gone = set(_statuses())

    @property
    def progress(self) -> int:
        """Changes whenever a rank enters an operation of a group."""
        return sum(number for _, number, _ in _operations())

    def report(self) -> tuple[tuple[m.GroupCount, ...], bool]:
        """The groups used since the last report, and whether an operation of theirs is unfinished."""
        used: list[m.GroupCount] = []
        reported = self._reported
        for name, number, group in _operations():
            if reported.get(name, 0) != number:
                reported[name] = number
                used.append(m.GroupCount(name, _members(group), number - self._sends.get(name, 0)))
        return (tuple(used), self._stays_unfinished()) if used else ((), False)

    def _stays_unfinished(self) -> bool:
        """Of a collective that the rank has waited for, the recorder hears a moment later."""
        for _ in range(_FINISH_TRIES):
            if not self.unfinished:
                return False
            select.select([], [], [], _FINISH_STEP_S)
        return True

    @property
    def unfinished(self) -> bool:
        """A group of this generation has a collective that was begun and has not come to its end."""
        return any(
            one["last_completed_collective"] < one["last_enqueued_collective"]
            for number, one in _statuses().items()
            if number not in self._gone
        )

    # -- looking ---------------------------------------------------------------------------------

    def see(self) -> tuple[m.GroupState, ...]:
        """Every group of this rank, with its last calls."""
        calls: dict[str, list[m.Call]] = {}
        for record in _records():
            if str(record["pg_id"]) not in self._gone and not record.get("is_p2p"):
                calls.setdefault(record["process_group"][0], []).append(self._call(record))
        return tuple(
            _state(name, _members(group), number - self._sends.get(name, 0), calls.get(name, []))
            for name, number, group in _operations()
        )

    def _call(self, record: dict[str, Any]) -> m.Call:
        frames = [(frame["filename"], frame["line"]) for frame in record.get("frames", ())]
        users = [(file, line) for file, line in frames if is_users(file, self._is_cell_file)]
        lines = [line for file, line in users if self._is_cell_file(file)]
        return m.Call(
            number=record["collective_seq_id"],
            op=record["profiling_name"].partition(":")[2] or record["profiling_name"],
            line=lines[0] if lines else 0,
            place=place_of(*users[0], self._is_cell_file) if users else "",
            finished=bool(record["retired"]),
            background=bool(frames) and frames[-1][0] == threading.__file__,
        )


def _state(name: str, members: tuple[int, ...], counted: int, calls: list[m.Call]) -> m.GroupState:
    calls.sort(key=lambda call: call.number)
    # What was entered so long ago that the recorder has forgotten it has no sure number.
    forgotten = -1 if counted and _dump is not None else counted
    entered = calls[-1].number if calls else forgotten
    unfinished = [call for call in calls if not call.finished]
    shown = sorted({*calls[-CALLS_SHOWN:], *unfinished[:1]}, key=lambda call: call.number)
    return m.GroupState(name, members, entered, tuple(shown))


def _operations() -> Iterator[tuple[str, int, Any]]:
    """(name, operations entered, group) of every group of this rank."""
    groups: list[tuple[Any, str]] = list(c10d._world.pg_names.items())
    for group, name in groups:
        try:
            number = group._get_sequence_number_for_group()
        except RuntimeError:
            continue  # a stand-in, or a group that is being destroyed
        yield name, number, group


def _members(group: Any) -> tuple[int, ...]:
    """Global ranks; empty for the whole world."""
    ranks = c10d._world.pg_group_ranks.get(group, {})
    world = dist.GroupMember.WORLD
    return () if world is not None and len(ranks) == world.size() else tuple(sorted(ranks))


def _records() -> list[dict[str, Any]]:
    if _dump is None:
        return []
    with _without_inductor():
        trace: dict[str, Any] = pickle.loads(_dump())  # of this process's own making
    return list(trace.get("entries", ()))


class _NoInductor(types.ModuleType):
    """In place of torch._inductor while the recorder is read; for anybody else, the module itself."""

    def __getattr__(self, name: str) -> Any:
        if name == "codecache":
            raise AttributeError(name)
        return getattr(importlib.import_module("torch._inductor"), name)


@contextlib.contextmanager
def _without_inductor() -> Iterator[None]:
    """To name a frame the recorder asks for torch._inductor's code cache (combined_traceback.cpp), and
    torch would import it, and 800 modules with it: two seconds, in which this rank answers nobody."""
    attributes = vars(torch)
    if "_inductor" in attributes:
        yield
        return
    stand_in = attributes["_inductor"] = _NoInductor("torch._inductor")
    try:
        yield
    finally:
        if attributes.get("_inductor") is stand_in:
            del attributes["_inductor"]


def _statuses() -> dict[str, dict[str, int]]:
    """The recorder's numbers of the last operation begun and ended, by group. Takes microseconds."""
    if _dump is None:
        return {}
    found: dict[str, dict[str, int]] = pickle.loads(_dump(includeCollectives=False)).get("pg_status", {})
    return found


def _caller(name: str) -> tuple[str, str, int]:
    """(the function of torch's that was called, and from where)."""
    frame = sys._getframe(2)
    op = name
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith("torch."):
        if frame.f_code.co_name in ("send", "recv"):
            op = frame.f_code.co_name
        frame = frame.f_back
    return op, frame.f_code.co_filename, frame.f_lineno or 0
