"""All that the ranks wrote in one cell: whole up to a quota, beyond it the head and the tail.

Owns where each stream's bytes are. Output is never lost because a file cannot be had: it then goes on in
memory, and `failure` says why.
"""

from __future__ import annotations

import io
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import BinaryIO

from msgspec import Struct

from jupyter_ddp.core.messages import Stream

QUOTA_BYTES = 1024 * 1024 * 1024
"""What is kept of a cell, of all its ranks together, unless the user says otherwise."""
IN_MEMORY_BYTES = 1024 * 1024
"""What a cell writes before a file is opened for it."""
WITHOUT_FILE_BYTES = 16 * 1024 * 1024
"""What is kept, of the last, where there is no file to be had."""
READ_BYTES = 1024 * 1024
"""Of a stream that is read in pieces, the largest."""
MAX_PIECES = 200_000
"""Runs of one stream in head and in tail each: their index takes memory too."""

_Key = tuple[int, Stream]


class Kept(Struct, frozen=True):
    """One stream: its beginning, how many bytes of its middle were not kept, and its end."""

    head: bytes
    missing_bytes: int
    tail: bytes


class _Piece:
    """A run of one stream's bytes. `at` counts from the first byte of its file, or of all its ring took."""

    __slots__ = ("at", "file", "key", "length")

    def __init__(self, key: _Key, file: BinaryIO, at: int, length: int) -> None:
        self.key, self.file, self.at, self.length = key, file, at, length

    def read(self) -> bytes:
        self.file.seek(self.at)
        return self.file.read(self.length)


class _Ring:
    """A stretch of a file that keeps the last of what is written to it."""

    def __init__(self, file: BinaryIO, start: int, capacity_bytes: int) -> None:
        self._file, self._start, self._capacity = file, start, capacity_bytes
        self._written = 0
        self._pieces: deque[_Piece] = deque()

    def append(self, key: _Key, data: bytes) -> None:
        """OSError: nothing of this was kept."""
        skipped = max(0, len(data) - self._capacity)
        for part, at in self._split(memoryview(data)[skipped:], self._written + skipped):
            _write(self._file, at, part)
        last = self._pieces[-1] if self._pieces else None
        if last is not None and last.key == key and not skipped:
            last.length += len(data)
        else:
            self._pieces.append(_Piece(key, self._file, self._written + skipped, len(data) - skipped))
        self._written += len(data)
        self._forget()

    def _forget(self) -> None:
        oldest = self._written - self._capacity
        pieces = self._pieces
        while pieces and (pieces[0].at + pieces[0].length <= oldest or len(pieces) > MAX_PIECES):
            pieces.popleft()
        if pieces and (cut := oldest - pieces[0].at) > 0:
            pieces[0].at += cut
            pieces[0].length -= cut

    def _split(self, data: memoryview, at: int) -> list[tuple[memoryview, int]]:
        """The data where the ring's place for it goes over its end: (part, place in the file)."""
        if not self._capacity or not data:
            return []
        offset = at % self._capacity
        room = self._capacity - offset
        parts = [(data[:room], self._start + offset), (data[room:], self._start)]
        return [(part, place) for part, place in parts if part]

    @property
    def kept(self) -> list[_Piece]:
        """As they are now, in the order they came; `read` knows where they are."""
        return [_Piece(p.key, p.file, p.at, p.length) for p in self._pieces]

    def read(self, piece: _Piece) -> Iterator[bytes | int]:
        """A piece's bytes, and the number of those that were written over before they were read."""
        at, end = piece.at, piece.at + piece.length
        while at < end:
            if (gone := min(end, self._written - self._capacity) - at) > 0:
                yield gone
                at += gone
                continue
            offset = at % self._capacity
            n_bytes = min(end - at, self._capacity - offset, READ_BYTES)
            self._file.seek(self._start + offset)
            yield self._file.read(n_bytes)
            at += n_bytes

    def pieces(self) -> list[_Piece]:
        """Where the bytes are now, in the order they came."""
        found: list[_Piece] = []
        for piece in self._pieces:
            offset = piece.at % self._capacity if self._capacity else 0
            first = min(piece.length, self._capacity - offset)
            found.append(_Piece(piece.key, self._file, self._start + offset, first))
            if piece.length > first:
                found.append(_Piece(piece.key, self._file, self._start, piece.length - first))
        return found


class KeptStream:
    """One stream as it is kept, to be read in pieces while the log may go on."""

    def __init__(
        self, key: _Key, head: list[_Piece], missing_bytes: int, ring: _Ring | None, tail: Sequence[_Piece]
    ) -> None:
        self.rank, self.stream = key
        self._head, self._missing_bytes, self._ring, self._tail = head, missing_bytes, ring, tail

    def read(self) -> Iterator[bytes | int]:
        """READ_BYTES at most at a time; a number where so many bytes were not kept."""
        for piece in self._head:
            for at in range(piece.at, piece.at + piece.length, READ_BYTES):
                piece.file.seek(at)
                yield piece.file.read(min(READ_BYTES, piece.at + piece.length - at))
        if self._missing_bytes:
            yield self._missing_bytes
        if self._ring is not None:
            for piece in self._tail:
                yield from self._ring.read(piece)


class CellLog:
    """Appends pieces of many streams to one file and reads one stream back.

    `open_file` gives an unbuffered file on disk; it is called when there is more to keep than fits into
    IN_MEMORY_BYTES.
    """

    def __init__(self, open_file: Callable[[], BinaryIO], quota_bytes: int = QUOTA_BYTES) -> None:
        self._open_file = open_file
        self._quota_bytes = quota_bytes
        self._head_bytes = quota_bytes - quota_bytes // 2
        self._file: BinaryIO | None = None
        self._in_memory = True
        self._closed = False
        self._pieces: dict[_Key, list[_Piece]] = {}
        self._n_pieces = 0
        self._end = 0
        self._tail: _Ring | None = None
        self._written: dict[_Key, int] = {}
        self.failure: OSError | None = None
        """Why output goes on in memory."""

    @property
    def full(self) -> bool:
        """Something may be missing: head and tail are kept, and the middle no more."""
        return self._tail is not None

    def append(self, rank: int, stream: Stream, data: bytes) -> None:
        if self._closed:  # what comes late for a record that was closed
            return
        key = (rank, stream)
        self._written[key] = self._written.get(key, 0) + len(data)
        try:
            self._append(key, data)
        except OSError as error:  # no space, no descriptor, no such device
            self._go_on_in_memory(error)
            assert self._tail is not None
            self._tail.append(key, data)

    def _append(self, key: _Key, data: bytes) -> None:
        room = self._head_bytes - self._end
        if room > 0 and self._n_pieces < MAX_PIECES:
            head, data = (data, b"") if len(data) <= room else (data[:room], data[room:])
            self._append_to_head(key, head)
        if data:
            if self._tail is None:
                file = self._file_for(self._quota_bytes)
                self._tail = _Ring(file, self._head_bytes, self._quota_bytes - self._head_bytes)
            self._tail.append(key, data)

    def _append_to_head(self, key: _Key, data: bytes) -> None:
        file = self._file_for(self._end + len(data))
        _write(file, self._end, data)
        pieces = self._pieces.setdefault(key, [])
        if pieces and pieces[-1].at + pieces[-1].length == self._end:
            pieces[-1].length += len(data)
        else:
            pieces.append(_Piece(key, file, self._end, len(data)))
            self._n_pieces += 1
        self._end += len(data)

    def _file_for(self, n_bytes: int) -> BinaryIO:
        """In memory while it is little, then on disk."""
        if self._file is None:
            self._use(io.BytesIO())
        if self._in_memory and n_bytes > IN_MEMORY_BYTES:
            in_memory, on_disk = self._file, self._open_file()
            try:
                _write(on_disk, 0, in_memory.getvalue())  # type: ignore[union-attr]  # a BytesIO so far
            except OSError:
                on_disk.close()
                raise
            for pieces in self._pieces.values():
                for piece in pieces:
                    piece.file = on_disk
            self._use(on_disk)
            self._in_memory = False
        assert self._file is not None
        return self._file

    def _use(self, file: BinaryIO) -> None:
        self._file = file
        weakref.finalize(self, file.close)  # whoever holds the log can read it

    def _go_on_in_memory(self, error: OSError) -> None:
        """What was kept so far stays as it is; of what comes, the last is kept."""
        self.failure = error
        for piece in self._tail.pieces() if self._tail is not None else ():
            self._pieces.setdefault(piece.key, []).append(piece)
        self._head_bytes = 0
        self._tail = _Ring(io.BytesIO(), 0, min(self._quota_bytes, WITHOUT_FILE_BYTES))

    def read(self, rank: int, stream: Stream) -> Kept:
        """What is kept of all that this rank wrote to this stream."""
        key = (rank, stream)
        if self._closed:
            return Kept(b"", 0, b"")
        head = b"".join(piece.read() for piece in self._pieces.get(key, ()))
        later = self._tail.pieces() if self._tail is not None else ()
        tail = b"".join(piece.read() for piece in later if piece.key == key)
        return Kept(head, self._written.get(key, 0) - len(head) - len(tail), tail)

    def streams(self) -> list[KeptStream]:
        """Each stream that something was written to, by rank, standard output first."""
        tails: dict[_Key, list[_Piece]] = {}
        for piece in self._tail.kept if self._tail is not None else ():
            tails.setdefault(piece.key, []).append(piece)
        found = []
        for key in sorted(self._written, key=lambda key: (key[0], key[1] != "stdout")):
            head, tail = list(self._pieces.get(key, ())), tails.get(key, ())
            kept_bytes = sum(piece.length for part in (head, tail) for piece in part)
            found.append(KeptStream(key, head, self._written[key] - kept_bytes, self._tail, tail))
        return found

    def close(self) -> None:
        """Let go of the file. Every stream reads as empty afterwards."""
        self._closed = True
        self._pieces.clear()
        self._written.clear()
        self._tail = None
        if self._file is not None:
            self._file.close()


def size_words(n_bytes: int) -> str:
    """ "1.5 MiB"."""
    for unit, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if n_bytes >= size:
            return f"{n_bytes / size:.3g} {unit}"
    return f"{n_bytes} bytes"


def _write(file: BinaryIO, at: int, data: bytes | memoryview) -> None:
    """All of it; a file may take less at once."""
    file.seek(at)
    rest = memoryview(data)
    while rest:
        rest = rest[file.write(rest) :]
