"""Doomed ranks: their processes live, and their accelerators are lost to them for good.

Owns the words for it. That a rank is doomed it says itself, at a cell's end (`CellFinished.doomed`, which
names device, cause and line); the pool then runs nothing on it any more, and leaves it alone until a heal.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from jupyter_ddp.core.healing import way_on
from jupyter_ddp.core.topology import named


def note(rank: int, why: str) -> str:
    """In the cell that it happened in."""
    return f"rank {rank} is doomed: {why}; its process runs no more cells, and %ddp heal replaces it"


def are_doomed(why: Mapping[int, str]) -> str:
    """ "rank 1 is doomed: cuda:1: CUDA error: …": the beginning of a line."""
    ranks = sorted(why)
    return f"{named(ranks, '-')} {verb(ranks)} doomed: {why[ranks[0]]}"


def refusal(why: Mapping[int, str], fit: Sequence[int]) -> str:
    """Why a cell does not run on these ranks."""
    return f"{are_doomed(why)}; nothing was run. To go on: {way_on(fit, 'doomed')}"


def verb(ranks: Sequence[int]) -> str:
    return "is" if len(ranks) == 1 else "are"
