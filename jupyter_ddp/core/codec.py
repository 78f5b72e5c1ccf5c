"""Frames on a byte stream: four bytes of length, then one message in MessagePack.

Owns the wire format. Never touches a socket: a `FrameReader` is fed bytes and gives whole frames.
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import msgspec

from jupyter_ddp.core import messages as m

MAX_FRAME_BYTES = 256 * 1024 * 1024
"""A longer frame is refused: it is a corrupt stream, or a display that no browser could show."""

_JOINED_BYTES = 64 * 1024

_LENGTH = struct.Struct("<I")
T = TypeVar("T")

_encoder = msgspec.msgpack.Encoder()

from_node = msgspec.msgpack.Decoder(m.NodeToKernel)
from_rank = msgspec.msgpack.Decoder(m.RankMessage)
to_node = msgspec.msgpack.Decoder(m.KernelToNode)
to_rank = msgspec.msgpack.Decoder(m.NodeToRank)


class CorruptStream(Exception):
    """The peer sent something that is no frame or no message."""


def encode(message: m.Message) -> bytes:
    """One whole frame. Raises ValueError if the message is longer than MAX_FRAME_BYTES."""
    body = _encoder.encode(message)
    if len(body) > MAX_FRAME_BYTES:
        raise ValueError(f"a message of {len(body)} bytes is over the limit of {MAX_FRAME_BYTES}")
    return _LENGTH.pack(len(body)) + body


def frame(body: bytes) -> bytes:
    """A body that was cut out of a stream, as a frame again: how an agent relays a message."""
    return _LENGTH.pack(len(body)) + body


def decode(decoder: msgspec.msgpack.Decoder[T], body: bytes | memoryview) -> T:
    """The message in a frame's body. Raises CorruptStream."""
    try:
        return decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        # UnicodeDecodeError: bad UTF-8 in a str. RecursionError: a skipped value nested too deep.
        raise CorruptStream(f"no message: {error}") from None


class FrameReader:
    """Cuts a byte stream into frame bodies, however the bytes arrive."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes | memoryview) -> Iterable[bytes]:
        """Add bytes; give the body of each frame that is now whole. Raises CorruptStream.

        `data` may be reused as soon as the first body is out. All bodies must be taken.
        """
        if not self._buffer and len(data) >= 4 and _LENGTH.unpack_from(data)[0] == len(data) - 4:
            return (bytes(data[4:]),)  # one whole frame, as mostly: at less than half the cost
        return self._cut(data)

    def _cut(self, data: bytes | memoryview) -> Iterator[bytes]:
        buffer = self._buffer
        if buffer:
            buffer += data
        # Mostly the data are whole frames: then they never come into the buffer.
        source = buffer or bytes(data)
        at, available = 0, len(source)
        try:
            while available - at >= 4:
                (length,) = _LENGTH.unpack_from(source, at)
                if length > MAX_FRAME_BYTES:
                    raise CorruptStream(f"a frame of {length} bytes is over the limit")
                end = at + 4 + length
                if available < end:
                    break
                body = bytes(memoryview(source)[at + 4 : end])
                at = end
                yield body
        finally:
            if source is buffer:
                del buffer[:at]
            elif at < available:
                buffer += source[at:]

    @property
    def pending_bytes(self) -> int:
        """Bytes of a frame that has not arrived whole."""
        return len(self._buffer)


class FrameWriter:
    """Frames on their way into a socket that takes what it can."""

    def __init__(self) -> None:
        self._waiting: deque[memoryview] = deque()
        self.waiting_bytes = 0

    def push(self, frame: bytes) -> None:
        self._waiting.append(memoryview(frame))
        self.waiting_bytes += len(frame)

    def write(self, frame: bytes, send: Callable[[bytes | memoryview], int]) -> bool:
        """Send a frame behind those that wait, as far as it goes; True when nothing waits any more."""
        if self._waiting:
            self.push(frame)
            return self.flush(send)
        try:
            sent = send(frame)
        except BlockingIOError:
            sent = 0
        if sent == len(frame):
            return True
        self._waiting.append(memoryview(frame)[sent:])
        self.waiting_bytes = len(frame) - sent
        return False

    def flush(self, send: Callable[[memoryview], int]) -> bool:
        """Give `send` (a non-blocking socket's) what it takes; True when nothing waits any more."""
        waiting = self._waiting
        if len(waiting) > 1 and self.waiting_bytes <= _JOINED_BYTES:
            joined = memoryview(b"".join(waiting))  # one system call for many small frames
            waiting.clear()
            waiting.append(joined)
        while waiting:
            try:
                sent = send(waiting[0])
            except BlockingIOError:
                return False
            self.waiting_bytes -= sent
            if sent < len(waiting[0]):
                waiting[0] = waiting[0][sent:]
            else:
                waiting.popleft()
        return True
