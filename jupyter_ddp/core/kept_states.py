"""Where a rank keeps its random states, behind its journal in the memory that it shares with its agent.

They outlive the rank, and the one that replaces it goes on with them. Owns the layout: two slots that
are written in turn, and a count that says which is whole, so that a rank killed while it writes leaves
the states before. What is kept is for the rank alone to understand.
"""

from __future__ import annotations

from jupyter_ddp.core.journal import PAGE_BYTES

KEPT_BYTES = 32 * 1024
SHARED_BYTES = PAGE_BYTES + KEPT_BYTES
"""All that a rank shares with its agent: the journal's page, then this."""
_HEADER_BYTES = 64
SLOT_BYTES = (KEPT_BYTES - _HEADER_BYTES) // 2
_COUNT, _LENGTH = 0, 1


class KeptStates:
    """The newest of what was put, over a writable buffer of KEPT_BYTES."""

    def __init__(self, region: memoryview) -> None:
        self._words = region[:_HEADER_BYTES].cast("Q")
        self._slots = region[_HEADER_BYTES : _HEADER_BYTES + 2 * SLOT_BYTES]

    def put(self, states: bytes) -> bool:
        """Keep these from now on. False, and those before stay, if they do not fit."""
        if len(states) > SLOT_BYTES:
            return False
        words = self._words
        slot = (words[_COUNT] + 1) % 2
        self._slots[slot * SLOT_BYTES : slot * SLOT_BYTES + len(states)] = states
        words[_LENGTH + slot] = len(states)
        words[_COUNT] += 1
        return True

    def newest(self) -> bytes:
        """What was put last; empty when nothing ever was."""
        slot = self._words[_COUNT] % 2
        return bytes(self._slots[slot * SLOT_BYTES :][: self._words[_LENGTH + slot]])

    def release(self) -> None:
        """Let go of the memory, so that its mapping can be closed."""
        self._words.release()
        self._slots.release()
