"""What a rank has shown so far, in a form that two ranks can be compared by.

Owns the short memory that tells whether two ranks show the same as far as both have come, though one is
ahead. Never keeps what was shown: only a digest of it after each step.
"""

from __future__ import annotations

import zlib
from collections import deque

MEMORY = 64
"""Steps back at which a rank can still be compared with one that is behind."""


class Trail:
    """A digest of the steps (lines that ended, displays) up to each of the last ones."""

    __slots__ = ("_digest", "_last", "steps")

    def __init__(self) -> None:
        self.steps = 0
        self._digest = 0
        self._last: deque[int] = deque(maxlen=MEMORY)

    def step(self, shown: str) -> None:
        self.steps += 1
        self._add(shown)

    def leap(self, lines: str) -> None:
        """As many steps as there are lines, not looked at one by one: what was passed is forgotten."""
        self.steps += lines.count("\n") + 1
        self._last.clear()
        self._add(lines)

    def _add(self, shown: str) -> None:
        # A checksum that goes on: however output is cut into steps and leaps, it comes to the same.
        self._digest = zlib.crc32(b"\n", zlib.crc32(shown.encode("utf-8", "surrogatepass"), self._digest))
        self._last.append(self._digest)

    @property
    def here(self) -> tuple[int, int]:
        """(steps, digest of all of them): the same for two ranks that showed the same."""
        return self.steps, self._digest

    def passed(self) -> list[tuple[int, int]]:
        """`here` as it was after each of the last steps, the newest first."""
        return [(self.steps - back, digest) for back, digest in enumerate(reversed(self._last))]
