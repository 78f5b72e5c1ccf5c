"""Ranks that show the same so far, while the cell runs and one is always a little ahead of another.

Owns what "the same so far" means. `grouping` says what is the same once a cell has ended.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from typing import NamedTuple

from jupyter_ddp.core.trail import Trail

MAX_REMEMBERED = 64
"""Groups whose last steps are remembered; of more than these, only ranks that are level are folded."""


class Shown(NamedTuple):
    """A rank, what it has shown, and how it failed, if it did."""

    rank: int
    trail: Trail
    failure: Hashable = None
    begun: bool = True
    """It has something on the screen, be it an unfinished line."""


def partition(ranks: Iterable[Shown]) -> list[list[int]]:
    """The ranks in groups, each ascending, ordered by their lowest; those that show nothing are in none.

    Two ranks are together when what the one behind has shown is how the other began too. A rank that
    could be with several is with the one that has come furthest.
    """
    groups: list[list[int]] = []
    passed: dict[tuple[Hashable, int, int], list[int]] = {}
    for shown in sorted((r for r in ranks if r.begun), key=lambda r: (-r.trail.steps, r.rank)):
        group = passed.get((shown.failure, *shown.trail.here))
        if group is None:
            group = []
            groups.append(group)
            steps = shown.trail.passed() if len(groups) <= MAX_REMEMBERED else []
            for steps_then, digest in (shown.trail.here, *steps):
                passed.setdefault((shown.failure, steps_then, digest), group)
        group.append(shown.rank)
    return sorted(sorted(group) for group in groups)
