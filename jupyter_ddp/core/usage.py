"""What the ranks used lately: a fold over their agents' samples."""

from __future__ import annotations

from collections import deque

from jupyter_ddp.core.messages import RankUsage

SAMPLES_KEPT = 60


class UsageBook:
    """The last samples of each rank, and since when each has lived. Forgets a rank that is born anew."""

    def __init__(self) -> None:
        self._samples: dict[int, deque[RankUsage]] = {}
        self._born: dict[int, float] = {}

    def bear(self, rank: int, now: float) -> None:
        """A process for this rank exists since `now` (seconds, monotonic)."""
        self._born[rank] = now
        self._samples.pop(rank, None)

    def fold(self, usage: RankUsage) -> None:
        self._samples.setdefault(usage.rank, deque(maxlen=SAMPLES_KEPT)).append(usage)

    def age_s(self, rank: int, now: float) -> float:
        """How long the rank's process has lived."""
        return max(0.0, now - self._born.get(rank, now))

    def last(self, rank: int) -> RankUsage | None:
        samples = self._samples.get(rank)
        return samples[-1] if samples else None

    def history(self, rank: int) -> tuple[RankUsage, ...]:
        """Oldest first."""
        return tuple(self._samples.get(rank, ()))
