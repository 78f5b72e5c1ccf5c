"""The journal of a rank that may be killed at any store."""

from __future__ import annotations

from collections.abc import Callable

from hypothesis import given
from hypothesis import strategies as st

from jupyter_ddp.core.journal import CAPACITY_BYTES, PAGE_BYTES, Journal


class WatchedWords:
    """The header's words; after each store, somebody looks."""

    def __init__(self, words: memoryview, look: Callable[[], None]) -> None:
        self._words, self._look = words, look

    def __getitem__(self, index: int) -> int:
        return self._words[index]

    def __setitem__(self, index: int, value: int) -> None:
        self._words[index] = value
        self._look()


class Rank:
    """Writes, and sends what waits when told to or when the page is full, as a printing thread does."""

    def __init__(self) -> None:
        page = memoryview(bytearray(PAGE_BYTES))
        self.agents = Journal(page)
        self.journal = Journal(page)
        self.journal._words = WatchedWords(self.journal._words, self.look)  # type: ignore[assignment]
        self.written = b""
        self.kept = 0
        self.sent = 0

    def look(self) -> None:
        """What the agent would report, were the rank killed now: the truth, with no gap before it."""
        offset, waiting = self.agents.offset, self.agents.waiting()
        assert waiting == self.written[offset : offset + len(waiting)]
        assert offset <= self.sent
        assert offset + len(waiting) >= self.kept or self.sent >= self.kept

    def write(self, data: bytes) -> None:
        self.written += data
        if self.journal.append(data):
            self.kept = len(self.written)
        else:
            self.sent = self.kept = len(self.written)
            self.journal.mark_sent(extra_bytes=len(data))
        self.look()

    def flush(self) -> None:
        self.sent = self.kept
        self.journal.mark_sent()
        self.look()


LENGTHS = st.sampled_from([0, 1, 5, 40, CAPACITY_BYTES // 3, CAPACITY_BYTES, CAPACITY_BYTES + 1])


@given(st.lists(st.tuples(st.integers(0, 255), LENGTHS) | st.none(), max_size=12))
def test_a_rank_killed_at_any_store_leaves_the_truth(steps: list[tuple[int, int] | None]) -> None:
    """After every single store, offset and waiting bytes are a true piece of what the rank wrote, with no
    gap between what was sent and what waits."""
    rank = Rank()
    for step in steps:
        if step is None:
            rank.flush()
        else:
            byte, length = step
            rank.write(bytes([byte]) * length)
