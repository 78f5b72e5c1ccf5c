"""The wire format, for every message and for what is none."""

from __future__ import annotations

import contextlib
import struct
import tracemalloc
import typing
from types import NoneType, UnionType
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jupyter_ddp.core import codec
from jupyter_ddp.core import messages as m

DECODERS = [codec.from_node, codec.from_rank, codec.to_node, codec.to_rank]
# What JSON can say: no lone surrogates.
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


def values(kind: Any) -> st.SearchStrategy[Any]:
    """Values of a field's type."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Literal:
        return st.sampled_from(arguments)
    if origin in (typing.Union, UnionType):
        return st.one_of([values(a) for a in arguments])
    if origin is list:
        return st.lists(values(arguments[0]), max_size=3)
    if origin is tuple:
        return st.lists(values(arguments[0]), max_size=3).map(tuple)
    if origin is dict:
        return st.dictionaries(values(arguments[0]), values(arguments[1]), max_size=3)
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        hints = typing.get_type_hints(kind)
        return st.builds(kind, **{name: values(hints[name]) for name in kind.__struct_fields__})
    leaves: dict[Any, st.SearchStrategy[Any]] = {
        int: st.integers(0, 2**63),
        float: st.floats(0, 1e9),
        str: TEXT,
        bool: st.booleans(),
        bytes: st.binary(max_size=40),
        NoneType: st.none(),
    }
    return leaves[kind]


@given(st.lists(values(m.NodeToKernel), max_size=4), st.data())
def test_any_messages_survive_any_split_of_the_stream(messages: list[m.Message], data: st.DataObject) -> None:
    """However the bytes arrive, the same messages come out once, in order."""
    stream = b"".join(codec.encode(message) for message in messages)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=8)))
    reader = codec.FrameReader()
    got = []
    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        got += [codec.decode(codec.from_node, body) for body in reader.feed(stream[start:end])]
    assert got == messages
    assert reader.pending_bytes == 0


@given(values(m.KernelToNode))
def test_any_order_to_a_node_survives(message: m.KernelToNode) -> None:
    """What the notebook kernel tells an agent arrives as it was said."""
    assert codec.decode(codec.to_node, codec.encode(message)[4:]) == message


@given(values(m.NodeToRank))
def test_any_command_to_a_rank_survives(message: m.NodeToRank) -> None:
    """What an agent tells a rank arrives as it was said."""
    assert codec.decode(codec.to_rank, codec.encode(message)[4:]) == message


@given(st.lists(st.binary(max_size=64), max_size=8))
def test_random_bytes_are_frames_or_a_corrupt_stream(pieces: list[bytes]) -> None:
    """No bytes make the reader or a decoder raise anything but CorruptStream."""
    reader = codec.FrameReader()
    for piece in pieces:
        with contextlib.suppress(codec.CorruptStream):
            for body in reader.feed(piece):
                codec.decode(codec.from_node, body)


@given(st.binary(max_size=80))
def test_a_random_body_is_a_message_or_corrupt(body: bytes) -> None:
    """A frame of random bytes is refused with CorruptStream in every direction."""
    for decoder in DECODERS:
        with contextlib.suppress(codec.CorruptStream):
            codec.decode(decoder, body)


@given(values(m.NodeToKernel), st.data())
def test_a_damaged_message_is_a_message_or_corrupt(message: m.Message, data: st.DataObject) -> None:
    """One flipped byte in a real message gives another message or CorruptStream, nothing else."""
    body = bytearray(codec.encode(message)[4:])
    at = data.draw(st.integers(0, len(body) - 1))
    body[at] ^= data.draw(st.integers(1, 255))
    with contextlib.suppress(codec.CorruptStream):
        codec.decode(codec.from_node, bytes(body))


@given(st.sampled_from([b"\xdd", b"\xdf", b"\xc6", b"\xdb", b"\xc9"]), st.sampled_from(DECODERS))
def test_a_length_in_a_body_reserves_no_memory(marker: bytes, decoder: Any) -> None:
    """An array, map, text or binary that claims four billion items costs no more than what arrived."""
    pack = msgspec.msgpack.encode
    fields = [(m.StartRanks, "places"), (m.RunCell, "members"), (m.Output, "data"), (m.Notice, "text")]
    before: dict[str, object] = {"source": "", "awaits": False, "shows": False, "stream": "stdout"}
    for kind, field in fields:
        names = kind.__struct_fields__
        items = [kind.__name__, *(before.get(name, 1) for name in names[: names.index(field)])]
        head = bytes([0x90 + len(items) + 1]) + b"".join(map(pack, items))
        body = head + marker + b"\xff\xff\xff\xf0" + b"\x01" * 16
        tracemalloc.start()
        try:
            with contextlib.suppress(codec.CorruptStream):
                codec.decode(decoder, body)
            assert tracemalloc.get_traced_memory()[1] < 1_000_000
        finally:
            tracemalloc.stop()


@given(st.lists(st.binary(max_size=64), max_size=20), st.integers(4, 100))
def test_what_a_reader_keeps_is_bounded(pieces: list[bytes], limit: int) -> None:
    """Never more than one frame of the largest size, and its length, waits in a reader."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(codec, "MAX_FRAME_BYTES", limit)
        reader = codec.FrameReader()
        for piece in [struct.pack("<I", limit), *pieces]:
            try:
                list(reader.feed(piece))
            except codec.CorruptStream:
                return  # the connection ends here
            assert reader.pending_bytes <= limit + 4
