"""Ranks that show the same so far, while the cell runs and one is always a little ahead of another.

Owns what "the same so far" means, and for how long a rank may be behind. `grouping` says what is the
same once a cell has ended.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Set
from typing import NamedTuple

from jupyter_ddp.core.trail import Trail

BEHIND_S = 1.0
"""A rank that has not come so much later to where another is does not show the same."""
MAX_REMEMBERED = 64
"""Groups whose last steps are remembered; of more than these, only ranks that are level are folded."""


class Shown(NamedTuple):
    """A rank, what it has shown, and how it failed, if it did."""

    rank: int
    trail: Trail
    failure: Hashable = None
    begun: bool = True
    """It has something on the screen, be it an unfinished line."""
    ended: bool = False
    """Nothing more will come of it."""


class Folding:
    """Of one cell's ranks, for one audience: which of them show the same so far."""

    def __init__(self) -> None:
        self._behind: dict[int, tuple[int, float]] = {}
        """Of each rank that another is ahead of: how far it has come, and since when that was so."""
        self._apart: set[int] = set()
        """Those of them that have been there for too long."""

    def is_due(self, now: float) -> bool:
        """The groups are others than they were, though no rank has shown anything."""
        return any(
            now - since >= BEHIND_S for rank, (_, since) in self._behind.items() if rank not in self._apart
        )

    def groups(self, ranks: Iterable[Shown], now: float) -> list[list[int]]:
        """The ranks in groups, each ascending, ordered by their lowest; those that show nothing are in none.

        Two ranks are together when what the one behind has shown is how the other began too, and it has
        not been behind for BEHIND_S. A rank that could be with several is with the one that has come
        furthest.
        """
        begun = sorted((r for r in ranks if r.begun), key=lambda r: (-r.trail.steps, r.rank))
        groups = _partition(begun, apart=set())
        self._note(groups, now)
        if self._apart:
            groups = _partition(begun, self._apart)
        return sorted(sorted(shown.rank for shown in group) for group in groups)

    def _note(self, groups: list[list[Shown]], now: float) -> None:
        """Who is behind the first of its group, and for how long."""
        before, self._behind, self._apart = self._behind, {}, set()
        for first, *others in groups:
            for shown in others:
                steps = shown.trail.steps
                if steps == first.trail.steps:
                    continue
                was_at, since = before.get(shown.rank, (-1, now))
                self._behind[shown.rank] = steps, since if was_at == steps else now
                if shown.ended or now - self._behind[shown.rank][1] >= BEHIND_S:
                    self._apart.add(shown.rank)


def _partition(begun: list[Shown], apart: Set[int]) -> list[list[Shown]]:
    """Groups with the one first that has come furthest, from ranks in that order. Those `apart` are only
    with who has shown just as much.
    """
    groups: list[list[Shown]] = []
    level: dict[tuple[Hashable, int, int], list[Shown]] = {}
    passed: dict[tuple[Hashable, int, int], list[Shown]] = {}
    for shown in begun:
        here = (shown.failure, *shown.trail.here)
        group = (level if shown.rank in apart else passed).get(here)
        if group is None:
            group = level[here] = []
            groups.append(group)
            steps = shown.trail.passed() if len(groups) <= MAX_REMEMBERED else []
            for steps_then, digest in (shown.trail.here, *steps):
                passed.setdefault((shown.failure, steps_then, digest), group)
        group.append(shown)
    return groups
