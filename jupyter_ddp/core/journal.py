"""The page of memory that a rank shares with its node agent.

A rank's printing thread puts what it writes here before it is sent: a store costs nothing like a
system call, and the page outlives a rank that is killed. Output is sent from here when the page is
full, when 20 ms have passed, or when the cell ends; the agent reads what a dead rank left behind.

Owns the page's layout. The rank alone writes, but for the one word that says how often the agent has read
its pipes; every update that matters is one aligned 8-byte store.
"""

from __future__ import annotations

from jupyter_ddp.core.messages import Stream

PAGE_BYTES = 64 * 1024
_HEADER_WORDS = 8
_HEADER_BYTES = _HEADER_WORDS * 8
CAPACITY_BYTES = PAGE_BYTES - _HEADER_BYTES

_BASE, _END, _STREAM, _CELL, _LINE, _GENERATION, _SEEN, _READS = range(_HEADER_WORDS)
_STREAMS: tuple[Stream, Stream] = ("stdout", "stderr")


class Journal:
    """Output not yet sent, and the line the rank is on, over a writable buffer of PAGE_BYTES."""

    def __init__(self, page: memoryview) -> None:
        self._words = page[:_HEADER_BYTES].cast("Q")
        self._text = page[_HEADER_BYTES:PAGE_BYTES]

    def append(self, data: bytes) -> bool:
        """Keep `data` behind what waits. False, and nothing kept, if it does not fit."""
        words = self._words
        base = words[_BASE]
        at = max(0, words[_END] - base)
        after = at + len(data)
        if after > CAPACITY_BYTES:
            return False
        self._text[at:after] = data
        words[_END] = base + after
        return True

    def begin(self, stream: Stream, generation: int, cell: int) -> None:
        """What is appended from now on belongs to this stream and cell. Only when nothing waits."""
        words = self._words
        words[_STREAM] = _STREAMS.index(stream)
        words[_GENERATION] = generation
        words[_CELL] = cell

    @property
    def has_waiting(self) -> bool:
        return self._words[_END] > self._words[_BASE]

    def waiting(self) -> bytes:
        """What was appended and not yet marked as sent."""
        return bytes(self._text[: max(0, self._words[_END] - self._words[_BASE])])

    def mark_sent(self, extra_bytes: int = 0) -> None:
        """All that waits was sent, and `extra_bytes` more that never were on the page."""
        # The base first: whoever looks between the two stores sees a base beyond the end, and so that
        # nothing waits, which is the truth.
        sent = self._words[_END] + extra_bytes
        self._words[_BASE] = sent
        self._words[_END] = sent

    @property
    def offset(self) -> int:
        """Bytes sent so far: the place of the first waiting byte in all that the rank wrote."""
        return self._words[_BASE]

    @property
    def stream(self) -> Stream:
        return _STREAMS[self._words[_STREAM] & 1]

    @property
    def cell(self) -> int:
        return self._words[_CELL]

    @property
    def generation(self) -> int:
        return self._words[_GENERATION]

    @property
    def line(self) -> int:
        """The cell's line that the rank's main thread was last seen on; 0 when unknown."""
        return self._words[_LINE]

    @line.setter
    def line(self, line: int) -> None:
        self._words[_LINE] = line

    @property
    def seen_ns(self) -> int:
        """When a Python thread of the rank last ran, on the system's monotonic clock; 0: never yet."""
        return self._words[_SEEN]

    @seen_ns.setter
    def seen_ns(self, now_ns: int) -> None:
        self._words[_SEEN] = now_ns

    @property
    def pipe_reads(self) -> int:
        """How often the agent has read something from the pipes behind the rank's fd 1 and 2."""
        return self._words[_READS]

    def note_pipe_read(self) -> None:
        """The agent alone does."""
        self._words[_READS] += 1

    def release(self) -> None:
        """Let go of the page, so that its mapping can be closed."""
        self._words.release()
        self._text.release()
