"""`%ddp status`: the pool as a table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from jupyter_ddp.core.topology import named

_CHIPS = 32
"""Up to so many ranks are shown one by one."""


class RankLine(Protocol):
    """What a line of the table needs."""

    @property
    def rank(self) -> int: ...
    @property
    def pid(self) -> int: ...
    @property
    def device(self) -> str: ...
    @property
    def state(self) -> str: ...


def status_text(ranks: Sequence[RankLine], backend: str, phase: str) -> str:
    """The table; without a pool, how to start one."""
    if not ranks:
        return "no pool: %%ddp -n 4, or %ddp start -n 4, starts one"
    rows = [("rank", "pid", "device", "state")]
    rows += [(str(r.rank), str(r.pid), r.device, r.state) for r in ranks]
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    dead = [r.rank for r in ranks if r.state == "dead"]
    state = f"{named(dead, '-')} died: %ddp heal" if dead else phase
    return "\n".join([f"{len(ranks)} rank{'s' if len(ranks) != 1 else ''}, {backend}, {state}", *lines])


_STEPS = {"waiting": "·", "forked": "◔", "connected": "◑"}
_TIME_SHOWN_AFTER_S = 2.0


def progress_text(seconds: float, ranks: Sequence[RankLine]) -> str:
    """A starting pool in one line: "starting 4 ranks: ✓0 ✓1 ◑2 ·3", with the time once it takes long."""
    count = f"starting {len(ranks)} rank{'s' if len(ranks) != 1 else ''}"
    time = f" ({seconds:.0f} s)" if seconds >= _TIME_SHOWN_AFTER_S else ""
    if all(r.state == "waiting" for r in ranks):
        return f"{count}{time}: importing torch"
    if len(ranks) > _CHIPS:
        ready = sum(r.state not in _STEPS for r in ranks)
        return f"{count}{time}: {ready} ready"
    return f"{count}{time}: " + " ".join(f"{_STEPS.get(r.state, '✓')}{r.rank}" for r in ranks)
