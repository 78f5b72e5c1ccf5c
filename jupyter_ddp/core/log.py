"""All that the ranks wrote in one cell, whole, in one file of bytes with an index beside it."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import BinaryIO

from jupyter_ddp.core.messages import Stream


class CellLog:
    """Appends pieces of many streams to one file and reads one stream back.

    The file is the caller's choice: in memory, or one that moves to disk when it grows. `open_file` is
    called when there is something to keep.
    """

    def __init__(self, open_file: Callable[[], BinaryIO]) -> None:
        self._open_file = open_file
        self._file: BinaryIO | None = None
        self._closed = False
        self._pieces: dict[tuple[int, Stream], list[tuple[int, int]]] = {}
        self._end = 0

    def append(self, rank: int, stream: Stream, data: bytes) -> None:
        if self._closed:  # what comes late for a record that was closed
            return
        if self._file is None:
            self._file = self._open_file()
            weakref.finalize(self, self._file.close)  # whoever holds the log can read it
        pieces = self._pieces.setdefault((rank, stream), [])
        self._file.seek(self._end)
        self._file.write(data)
        if pieces and sum(pieces[-1]) == self._end:
            start, length = pieces[-1]
            pieces[-1] = (start, length + len(data))
        else:
            pieces.append((self._end, len(data)))
        self._end += len(data)

    def read(self, rank: int, stream: Stream) -> bytes:
        """Everything that this rank wrote to this stream."""
        if self._file is None:
            return b""
        parts: list[bytes] = []
        for start, length in self._pieces.get((rank, stream), ()):
            self._file.seek(start)
            parts.append(self._file.read(length))
        return b"".join(parts)

    def size_bytes(self, rank: int, stream: Stream) -> int:
        return sum(length for _, length in self._pieces.get((rank, stream), ()))

    def close(self) -> None:
        """Let go of the file. Every stream reads as empty afterwards."""
        self._closed = True
        self._pieces.clear()
        if self._file is not None:
            self._file.close()
