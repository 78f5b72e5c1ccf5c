"""What Python's faulthandler writes when a rank crashes: where it is kept, and what of it is shown.

It stands in the memory that a rank shares with its agent, not in the rank's stderr: it names addresses,
frames of ours and every extension module, which no page should hold.
"""

from __future__ import annotations

import re

CRASH_OFFSET_BYTES = 128 * 1024
"""Behind all else in the shared memory; a multiple of every system's page size."""
CRASH_BYTES = 16 * 1024

_STACK = re.compile(r"^(Current t|T)hread 0x\w+.*\n((?:  .*\n?)*)", re.MULTILINE)
"""A thread's stack as faulthandler writes it; `Current`: the one that failed, where it ran Python."""

_CELL_FRAME = re.compile(r'File "<[^"\n]*-cell-(\d+)>", line (\d+)')


def line_of_crash(dump: str, cell: int) -> int:
    """The line of this cell that a crash came from, by faulthandler's own words; 0 where it wrote none."""
    frames = _CELL_FRAME.findall(_failed_stack(dump, cell))
    return next((int(line) for number, line in frames if int(number) == cell), 0)


def words_of_crash(dump: str, cell: int) -> str:
    """faulthandler's words without what differs from run to run: the cause, and the stack down to the cell.

    Empty where it wrote none.
    """
    cause = re.search(r"^(Fatal Python error: .*|Windows fatal exception: .*)", dump, re.MULTILINE)
    if cause is None:
        return ""
    frames = _failed_stack(dump, cell).splitlines()
    cells = [at for at, frame in enumerate(frames) if _CELL_FRAME.search(frame)]
    shown = frames[: cells[-1] + 1] if cells else []  # below are ours
    lines = [_CELL_FRAME.sub(r'File "<cell>", line \2', frame) for frame in shown]
    return "\n".join([cause[1], *lines]) + "\n"


def _failed_stack(dump: str, cell: int) -> str:
    """The stack of the thread that failed; where that was none of Python's, of one that runs the cell."""
    stacks = _STACK.findall(dump)
    current = [frames for kind, frames in stacks if kind.startswith("Current")]
    if current:
        return str(current[-1])
    of_cell = [frames for _, frames in stacks if f"-cell-{cell}>" in frames]
    return str(of_cell[-1]) if of_cell else ""
