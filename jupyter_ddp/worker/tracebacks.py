"""The part of a traceback that is the user's: their frames, and the one that raised."""

from __future__ import annotations

import ast
import functools
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any

from jupyter_ddp.worker.frames import OURS, is_users

MAX_FRAMES = 40
"""IPython reads the source of each anew, a millisecond or two: a thousand of them held up the cell's end."""
_FIRST_CALLS, _LAST_CALLS = 2, 1
"""Of a line that calls itself so many are shown, which is no more than stack_data shows."""


@contextmanager
def user_traceback(
    error: BaseException, tb: TracebackType | None, is_cell_file: Callable[[str], bool]
) -> Iterator[tuple[TracebackType | None, int]]:
    """(the user's frames of `error`, at most MAX_FRAMES; the cell's line of the innermost; 0 if none).

    Inside, the exceptions that led to this one show their users' frames too; afterwards each has its
    own traceback again, as a debugger wants it.
    """
    kept: list[tuple[BaseException, TracebackType | None]] = []
    for cause in _chain(error):
        kept.append((cause, cause.__traceback__))
        cause.__traceback__ = _trim(cause.__traceback__, is_cell_file)
    try:
        yield _trim(tb, is_cell_file), cell_line(tb, is_cell_file)
    finally:
        for cause, whole in kept:
            cause.__traceback__ = whole


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen = {id(error)}
    following = error.__cause__ or error.__context__
    while following is not None and id(following) not in seen:
        seen.add(id(following))
        yield following
        following = following.__cause__ or following.__context__


def _frames(tb: TracebackType | None) -> list[TracebackType]:
    frames: list[TracebackType] = []
    while tb is not None:
        frames.append(tb)
        tb = tb.tb_next
    return frames


def _trim(tb: TracebackType | None, is_cell_file: Callable[[str], bool]) -> TracebackType | None:
    frames = _frames(tb)
    first = next((i for i, f in enumerate(frames) if _is_users(f, is_cell_file)), len(frames) - 1)
    shown = [f for f in frames[first:] if _is_users(f, is_cell_file)]
    raised_in = frames[-1] if frames else None
    if raised_in is not None and raised_in not in shown and not _is_ours(raised_in):
        shown.append(raised_in)
    trimmed: TracebackType | None = None
    for f in reversed(_bounded(shown)):
        trimmed = TracebackType(trimmed, f.tb_frame, f.tb_lasti, f.tb_lineno)
    return trimmed


def _bounded(frames: list[TracebackType]) -> list[TracebackType]:
    """Of a deep recursion how it began and how it ended."""
    if len(frames) <= MAX_FRAMES:
        return frames
    to_come = Counter(map(_place, frames))
    been: Counter[object] = Counter()
    kept = []
    for f in frames:
        place = _place(f)
        been[place] += 1
        if been[place] <= _FIRST_CALLS or to_come[place] <= _LAST_CALLS:
            kept.append(f)
        to_come[place] -= 1
    half = MAX_FRAMES // 2
    return kept if len(kept) <= MAX_FRAMES else [*kept[:half], *kept[-half:]]


def _place(frame: TracebackType) -> object:
    return frame.tb_frame.f_code, frame.tb_lineno


def left_out(
    tb: TracebackType | None, shown: TracebackType | None, is_cell_file: Callable[[str], bool]
) -> str:
    """In one line, how many of the user's frames are not shown; "" when all are."""
    count = sum(_is_users(f, is_cell_file) for f in _frames(tb)) - len(_frames(shown))
    return f"[… {count:,} frames of a deep recursion are left out]" if count > 0 else ""


def _is_users(frame: TracebackType, is_cell_file: Callable[[str], bool]) -> bool:
    return is_users(frame.tb_frame.f_code.co_filename, is_cell_file)


def _is_ours(frame: TracebackType) -> bool:
    return frame.tb_frame.f_code.co_filename.startswith(OURS)


def cell_line(tb: TracebackType | None, is_cell_file: Callable[[str], bool]) -> int:
    """The innermost line of a cell in a traceback; 0 if there is none."""
    lines = [f.tb_lineno for f in _frames(tb) if is_cell_file(f.tb_frame.f_code.co_filename)]
    return lines[-1] if lines else 0


@functools.cache  # once in a process
def settle_scopes() -> None:
    """Have ranks show the same lines around a statement that shares its line with others.

    Of `def f(): 1 / 0`, stack_data (as of 0.6) takes either statement for the one that runs, as the
    addresses of the syntax tree's nodes have it; here it is the innermost.
    """
    from stack_data.core import FrameInfo  # with the first traceback: it takes a while

    def scope(frame: FrameInfo) -> ast.AST | None:
        if not frame.source.tree or not frame.executing.statements:
            return None
        node: Any = max(frame.executing.statements, key=lambda node: (node.lineno, node.col_offset))
        while not isinstance(node := node.parent, _SCOPES):
            pass
        return node

    FrameInfo.scope = property(scope)  # type: ignore[assignment,method-assign]


_SCOPES = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Module)
_KEEPERS = ("executing.executing", "executing._position_node_finder", "stack_data.core", "stack_data.utils")


def forget_sources(is_cell_file: Callable[[str], bool]) -> None:
    """What stack_data keeps of a cell it has shown in a traceback: 34 KB, for as long as the process lives.

    What it keeps of libraries' files it will need again; but its functions' own caches have no end, and go
    as a whole. The names are those of its base class (executing.Source); where a version has others, all
    is kept.
    """
    stack_data = sys.modules.get("stack_data")
    if stack_data is None:
        return
    for name in ("__source_cache_with_lines", "__executing_cache"):
        cache = vars(stack_data.Source).get(name, {})
        for key in list(cache):  # begins with a file's name, or with code, which has it
            first = key[0] if isinstance(key, tuple) else key
            if is_cell_file(str(getattr(first, "co_filename", first))):
                del cache[key]
    for module in map(sys.modules.get, _KEEPERS):
        for owner in (module, getattr(module, "Source", None)):
            for function in list(vars(owner).values()) if owner else ():
                if hasattr(function, "cache_clear"):
                    function.cache_clear()
