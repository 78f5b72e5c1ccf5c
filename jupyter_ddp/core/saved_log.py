"""A cell's log as a text file: a section for each rank and stream, in the order of ranks.

Owns the file's form. Reads and writes in pieces, for a log may be larger than the memory.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from typing import BinaryIO, NamedTuple

from jupyter_ddp.core.log import KeptStream, size_words


class Saved(NamedTuple):
    """What was written: lines of the ranks, and bytes of the file."""

    lines: int
    size_bytes: int

    def __str__(self) -> str:
        return f"{self.lines:,} line{'s' * (self.lines != 1)}, {size_words(self.size_bytes)}"


def write(
    streams: Iterable[KeptStream], to: BinaryIO, lock: contextlib.AbstractContextManager[object]
) -> Saved:
    """Copy the streams to a file. `lock` is held for each piece that is read, not for all of it."""
    lines = size_bytes = 0
    for stream in streams:
        which = f"rank {stream.rank}" + (f" · {stream.stream}" if stream.stream != "stdout" else "")
        size_bytes += to.write(f"{chr(10) * bool(size_bytes)}[{which}]\n".encode())
        pieces, ended = stream.read(), True
        while True:
            with lock:
                piece = next(pieces, None)
            if piece is None:
                break
            if isinstance(piece, int):
                piece = gap(piece).encode()
            elif piece:
                lines += piece.count(b"\n")
                ended = piece.endswith(b"\n")
            size_bytes += to.write(piece)
        if not ended:
            lines += 1
            size_bytes += to.write(b"\n")
    return Saved(lines, size_bytes)


def gap(n_bytes: int) -> str:
    """In place of what was not kept."""
    return f"\n… {n_bytes:,} bytes were not kept …\n"
