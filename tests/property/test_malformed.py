"""Malformed frames by the hundred thousand: each is a message or a corrupt stream, and nothing else.

Own random numbers, not Hypothesis: it is the number that counts here, and a seed replays it.
(JUPYTER_DDP_FRAMES and JUPYTER_DDP_FRAMES_SEED choose both; `make soak` takes a million.)
"""

from __future__ import annotations

import gc
import os
import random
import struct
import typing
from pathlib import Path
from types import NoneType, UnionType
from typing import Any

import msgspec

from jupyter_ddp.core import codec
from jupyter_ddp.core import messages as m
from tests import soak_figures

FRAMES = int(os.environ.get("JUPYTER_DDP_FRAMES", "100000"))
SEED = int(os.environ.get("JUPYTER_DDP_FRAMES_SEED", "1"))
GROWTH_BYTES = 50_000_000
STREAM_FRAMES = 8
"""After so many frames a new connection begins: one wrong length hides all that comes behind it."""
DECODERS = [codec.from_node, codec.from_rank, codec.to_node, codec.to_rank]
KINDS: tuple[type[m.Message], ...] = tuple(
    {
        kind
        for union in (m.NodeToKernel, m.RankMessage, m.KernelToNode, m.NodeToRank)
        for kind in typing.get_args(union)
    }
)
pack = msgspec.msgpack.encode


def pack_array_head(length: int) -> bytes:
    """What MessagePack begins an array of so many items with."""
    return b"\xdc" + struct.pack(">H", length)


class Mint:
    """Makes frames: good ones, and ones that are wrong in some way."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._hints = {kind: typing.get_type_hints(kind) for kind in KINDS}
        self._kinds = sorted(KINDS, key=lambda kind: kind.__name__)

    def frame(self) -> bytes:
        body = self._body()
        return struct.pack("<I", self._length(len(body))) + body

    def _length(self, length: int) -> int:
        """Mostly the truth."""
        lie = self._random.random()
        if lie < 0.02:
            return self._random.choice([codec.MAX_FRAME_BYTES + 1, 2**32 - 1, 2**31])
        if lie < 0.06:
            return max(0, length + self._random.randint(-8, 8))
        return length

    def _body(self) -> bytes:
        chance = self._random
        match chance.randrange(8):
            case 0:
                return pack(self._message())
            case 1:
                body = pack(self._message())
                return body[: chance.randrange(len(body) + 1)]
            case 2:
                return self._flipped(pack(self._message()))
            case 3:
                return self._with_wrong_field()
            case 4:
                return chance.randbytes(chance.randrange(64))
            case 5:
                return pack(self._anything(4))
            case 6:
                return self._with_huge_length()
            case _:
                return self._nested()

    def _message(self) -> m.Message:
        kind = self._random.choice(self._kinds)
        return kind(**{name: self._value(hint) for name, hint in self._hints[kind].items()})

    def _value(self, hint: Any) -> Any:
        chance = self._random
        origin, arguments = typing.get_origin(hint), typing.get_args(hint)
        if origin is typing.Literal:
            return chance.choice(arguments)
        if origin in (typing.Union, UnionType):
            return self._value(chance.choice(arguments))
        if origin in (list, tuple):
            return origin(self._value(arguments[0]) for _ in range(chance.randrange(3)))
        if origin is dict:
            return {self._value(arguments[0]): self._value(arguments[1]) for _ in range(chance.randrange(3))}
        if isinstance(hint, type) and issubclass(hint, msgspec.Struct):
            hints = typing.get_type_hints(hint)
            return hint(**{name: self._value(hints[name]) for name in hint.__struct_fields__})
        simple: dict[Any, Any] = {
            int: chance.choice([0, 1, 2**31, 2**63]),
            float: chance.choice([0.0, -1.5, float("inf"), float("nan")]),
            str: chance.choice(["", "stdout", "é" * 9, "x" * 300]),
            bool: chance.random() < 0.5,
            bytes: chance.randbytes(chance.randrange(40)),
            NoneType: None,
        }
        return simple[hint]

    def _anything(self, depth: int) -> Any:
        chance = self._random
        leaves = [
            None,
            True,
            -1,
            2**63,
            0.5,
            "type",
            "Output",
            b"\xff\xfe",
            "é",
            msgspec.msgpack.Ext(5, b"?"),
        ]
        if not depth or chance.random() < 0.4:
            return chance.choice(leaves)
        items = [self._anything(depth - 1) for _ in range(chance.randrange(4))]
        if chance.random() < 0.5:
            return items
        return {chance.choice(["type", "rank", "seq", 3, ""]): item for item in items}

    def _flipped(self, body: bytes) -> bytes:
        flipped = bytearray(body)
        for _ in range(self._random.randint(1, 3)):
            flipped[self._random.randrange(len(flipped))] ^= 1 << self._random.randrange(8)
        return bytes(flipped)

    def _with_wrong_field(self) -> bytes:
        """In the place of one that is right, or behind the last."""
        fields = list(msgspec.to_builtins(self._message(), builtin_types=(bytes,)))
        at = self._random.randrange(len(fields) + 1)
        fields[at : at + 1] = [self._anything(2)]
        return pack(fields)

    def _with_huge_length(self) -> bytes:
        """An array, map, text, binary or extension that claims to go on for four billion items."""
        before, n_fields = self._begin()
        marker = self._random.choice([b"\xdd", b"\xdf", b"\xdb", b"\xc6", b"\xc9"])
        claim = struct.pack(">I", self._random.choice([2**32 - 1, 2**31, 2**24]))
        tail = self._random.randbytes(8)
        return pack_array_head(n_fields) + before + marker + claim + tail

    def _begin(self) -> tuple[bytes, int]:
        """Some fields of a message as they are on the wire, its tag first, and how many a message has."""
        fields = list(msgspec.to_builtins(self._message(), builtin_types=(bytes,)))
        n_first = self._random.randrange(len(fields) + 1)
        return b"".join(map(pack, fields[:n_first])), len(fields)

    def _nested(self) -> bytes:
        """Arrays or maps in one another, deeper than any stack of ours."""
        depth = self._random.choice([10, 100, 2000])
        opening = self._random.choice([b"\x91", b"\x81\xa1k", b"\x81\xa4type"])
        before, n_fields = self._begin()
        return pack_array_head(n_fields) + before + opening * depth + b"\xc0"


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_malformed_frames_harm_nobody() -> None:
    """Cut, flipped, lying, of wrong types or nested: CorruptStream or a message, and no memory is kept."""
    mint, cut = Mint(SEED), random.Random(SEED)
    good = refused = corrupt = before = 0
    for number in range(FRAMES):
        if number == FRAMES // 10:  # what is made once has been made
            gc.collect()
            before = _resident_bytes()
        if number % STREAM_FRAMES == 0:
            decoder, reader = cut.choice(DECODERS), codec.FrameReader()
        frame = mint.frame()
        split = cut.randrange(len(frame) + 1) if cut.random() < 0.3 else len(frame)
        try:
            for piece in (frame[:split], frame[split:]):
                for body in reader.feed(piece):
                    try:
                        codec.decode(decoder, body)
                        good += 1
                    except codec.CorruptStream:
                        refused += 1  # a receiver would end the connection; here the rest is tried too
        except codec.CorruptStream:
            corrupt += 1
            reader = codec.FrameReader()
    gc.collect()
    grown = _resident_bytes() - before
    assert grown < GROWTH_BYTES
    # Else the frames would be no test.
    assert good > FRAMES / 50
    assert refused > FRAMES / 4
    assert corrupt > FRAMES / 100
    soak_figures.note(
        f"{FRAMES:,} malformed frames",
        f"no uncaught error, {GROWTH_BYTES // 10**6} MB",
        f"{good:,} messages, {refused:,} refused, {corrupt:,} streams given up; {grown / 10**6:.1f} MB",
    )
