"""The panel: what a cluster is and does, as the widget's state and as a table.

The state is plain data; all words that the widget shows are made here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from jupyter_ddp.core.doomed import verb
from jupyter_ddp.core.messages import RankUsage
from jupyter_ddp.core.topology import named

GLYPHS = {
    "waiting": "·",
    "forked": "◔",
    "connected": "◑",
    "idle": "✓",
    "running": "▶",
    "stopped": "⏸",
    "dead": "☠",
    "doomed": "⚠",
}
"""A state's sign, so that none is told by colour alone."""
CLOSED = "this panel was closed together with its cluster; %ddp opens a new one"
NO_POOL = "no pool: %%ddp -n 4, or %ddp start -n 4, starts one"


class PanelRank(Protocol):
    """What a row of the panel needs."""

    @property
    def rank(self) -> int: ...
    @property
    def pid(self) -> int: ...
    @property
    def device(self) -> str: ...
    @property
    def state(self) -> str: ...
    @property
    def node(self) -> str: ...
    @property
    def cell(self) -> int: ...
    @property
    def line(self) -> int: ...
    @property
    def age_s(self) -> float: ...
    @property
    def error(self) -> str: ...
    @property
    def usage(self) -> tuple[RankUsage, ...]: ...


def panel_state(ranks: Sequence[PanelRank], backend: str, phase: str) -> dict[str, Any]:
    """What the widget shows now, as JSON takes it."""
    return {
        "title": title(ranks, backend, phase),
        "pool": bool(ranks),
        "running": any(r.state == "running" for r in ranks),
        "lost": [r.rank for r in ranks if r.state in ("dead", "doomed")],
        "ranks": [_row(r) for r in ranks],
    }


def title(ranks: Sequence[PanelRank], backend: str, phase: str) -> str:
    """The panel's first line: how many ranks there are, and what is to be done for the lost."""
    if not ranks:
        return NO_POOL
    count = f"{len(ranks)} rank{'s' if len(ranks) != 1 else ''}"
    lost = lost_words(ranks, "–")
    return f"{count} · {backend} · " + (f"{lost}: Heal, or %ddp heal" if lost else phase)


def lost_words(ranks: Sequence[PanelRank], dash: str) -> str:
    """ "rank 1 died, ranks 2-3 are doomed"; "" when all ranks take cells."""
    dead = [r.rank for r in ranks if r.state == "dead"]
    doomed = [r.rank for r in ranks if r.state == "doomed"]
    words = [f"{named(dead, dash)} died"] if dead else []
    words += [f"{named(doomed, dash)} {verb(doomed)} doomed"] if doomed else []
    return ", ".join(words)


def _row(r: PanelRank) -> dict[str, Any]:
    last, state = _last_usage(r), state_word(r)
    gpu = last is not None and last.gpu_memory_bytes >= 0
    return {
        "rank": r.rank,
        "node": r.node,
        "pid": r.pid,
        "device": r.device,
        "state": state,
        "glyph": GLYPHS.get(state, "·"),
        "memory": memory_words(r),
        "use": _use(last),
        "memories": [u.gpu_memory_bytes if gpu else u.memory_bytes for u in r.usage],
        "uses": [round(u.gpu if gpu else u.cpu, 2) for u in r.usage],
        "where": place_words(r),
        "age": duration(r.age_s),
        "error": r.error,
    }


def state_word(r: PanelRank) -> str:
    """What the rank does, in a word: a process that a signal has stopped does nothing else."""
    last = _last_usage(r)
    return "stopped" if last is not None and last.process_state == "T" else r.state


def _last_usage(r: PanelRank) -> RankUsage | None:
    return r.usage[-1] if r.usage and r.state != "dead" else None


def memory_words(r: PanelRank) -> str:
    """The memory of its own, and of its GPU; "" where nobody has looked."""
    last = _last_usage(r)
    if last is None:
        return ""
    own = size(last.memory_bytes)
    if last.gpu_memory_bytes < 0:
        return own
    return f"{size(last.gpu_memory_bytes)} of {size(last.gpu_total_bytes)} GPU · {own}"


def _use(last: RankUsage | None) -> str:
    if last is None:
        return ""
    cores = f"{last.cpu * 100:.0f} % CPU"
    return f"{last.gpu * 100:.0f} % GPU · {cores}" if last.gpu >= 0 else cores


def place_words(r: PanelRank) -> str:
    """The cell that runs on it, and the line it was last seen on."""
    if not r.cell:
        return ""
    return f"In [{r.cell}], line {r.line}" if r.line else f"In [{r.cell}]"


def size(n: int) -> str:
    """Bytes in words: "33 MiB", "1.2 GiB"."""
    mebibytes = n / 2**20
    return f"{mebibytes:.0f} MiB" if mebibytes < 1000 else f"{mebibytes / 1024:.1f} GiB"


def duration(seconds: float) -> str:
    """ "12 s", "3 min", "5.2 h"."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
