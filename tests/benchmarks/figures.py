"""What was measured: raw numbers under names, and nothing of what they mean."""

from __future__ import annotations

import statistics
from collections.abc import Sequence


class Figures:
    """Append-only lists of numbers, by key: "start 4 jupyter_ddp" → [1.9, 1.8, 2.0] (s)."""

    def __init__(self) -> None:
        self.values: dict[str, list[float]] = {}

    def add(self, key: str, *values: float) -> None:
        self.values.setdefault(key, []).extend(values)

    def median(self, key: str) -> float | None:
        """None where nothing was measured."""
        return statistics.median(self.values[key]) if self.values.get(key) else None

    def largest(self, key: str) -> float | None:
        return max(self.values[key]) if self.values.get(key) else None

    def ratio(self, key: str, to: str) -> float | None:
        """The median of one over the median of the other."""
        one, other = self.median(key), self.median(to)
        return one / other if one is not None and other else None


def busiest(events: Sequence[tuple[float, int]], window_s: float) -> tuple[float, float]:
    """(events per second, bytes per second) of the busiest window, over (time, bytes) in order of time."""
    most_events = most_bytes = 0
    first, inside_bytes = 0, 0
    for last, (at_s, size_bytes) in enumerate(events):
        inside_bytes += size_bytes
        while events[first][0] <= at_s - window_s:
            inside_bytes -= events[first][1]
            first += 1
        most_events = max(most_events, last - first + 1)
        most_bytes = max(most_bytes, inside_bytes)
    return most_events / window_s, most_bytes / window_s
