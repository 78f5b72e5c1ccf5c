"""What the ranks tell of a heal, in the words that the user sees.

Owns those words. The pool's machine decides what is done (`core/healing.py`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from jupyter_ddp.core import messages as m
from jupyter_ddp.core.topology import named

_MAX_NAMES = 12


def outcome(dead: Sequence[int], world_size: int, source: int | None, told: Iterable[m.RankHealed]) -> str:
    """Who was replaced, what the new ranks have, and what is lost: a line each."""
    alive = [rank for rank in range(world_size) if rank not in dead]
    lines = [f"{named(dead, '-')} replaced" + (f"; {named(alive, '-')} kept all variables" if alive else "")]
    told = list(told)
    lost = {note.name: note for message in told for note in message.lost}  # each name once
    if source is not None:
        copied = max((message.copied for message in told if message.rank in dead), default=0)
        lines.append(f"{copied} variable{'s' if copied != 1 else ''} copied from rank {source}")
        if others := [note for note in lost.values() if not note.shards]:
            lines[-1] += f"; not as they were: {_listed(f'{note.name} ({note.why})' for note in others)}"
    if shards := [note.name for note in lost.values() if note.shards]:
        where = f"the part of {named(dead, '-')} was nowhere else"
        lines.append(f"lost: {_listed(shards)} (sharded: {where}); load a checkpoint on all ranks")
    return "\n".join(lines)


def _listed(names: Iterable[str]) -> str:
    every = list(names)
    more = f" and {len(every) - _MAX_NAMES} more" if len(every) > _MAX_NAMES else ""
    return ", ".join(every[:_MAX_NAMES]) + more
