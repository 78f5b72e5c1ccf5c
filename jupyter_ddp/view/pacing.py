"""How much a running cell may tell the browser, and when.

Owns the rate. Never reads the clock: the time comes with each question.
"""

from __future__ import annotations

RATE_BYTES_PER_S = 700_000
BURST_BYTES = 700_000
"""Over any 3 s, at most the burst and three times the rate: 2.8 MB, where Jupyter Server allows 3."""
INTERVAL_S = 0.1
"""From one message to the next, at least: over any 3 s, at most 30."""


class Allowance:
    """A bucket of bytes that fills at a constant rate, and one place for a message in each interval."""

    def __init__(self, now: float) -> None:
        self._level = float(BURST_BYTES)
        self._at = now
        self._next_at = now

    def room(self, now: float) -> int:
        """Bytes that may be sent now."""
        self._level = min(float(BURST_BYTES), self._level + RATE_BYTES_PER_S * max(0.0, now - self._at))
        self._at = max(self._at, now)
        return max(0, int(self._level))

    def spend(self, sent_bytes: int) -> None:
        self._level -= sent_bytes

    def is_free(self, now: float) -> bool:
        """A message may be sent now."""
        return now >= self._next_at

    def take_place(self, now: float) -> float:
        """Seconds until a message may be sent; that place is then taken."""
        wait_s = max(0.0, self._next_at - now)
        self._next_at = now + wait_s + INTERVAL_S
        return wait_s
