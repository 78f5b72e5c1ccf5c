"""`%ddp status`: the pool as a table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol


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
    return "\n".join([f"{len(ranks)} rank{'s' if len(ranks) != 1 else ''}, {backend}, {phase}", *lines])
