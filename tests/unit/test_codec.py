"""The wire format, by example."""

from __future__ import annotations

import random
import struct
import typing

import msgspec
import pytest

from jupyter_ddp.core import codec
from jupyter_ddp.core import messages as m

PLACE = m.WorkerPlace(1, 1, 4, 4, 0, 1, "cuda:1")
SURROUNDINGS = m.Surroundings({"A": "ä"}, "/tmp", ["", "/x"], "127.0.0.1", 29500, "run", 7)
FROM = (3, 2, 5, 11)  # rank, generation, cell, sequence number
TEXT = "Grüße 🎉\n".encode() + b"\xff\x00"
JSON = '{"text/plain": "é", "image/png": "iVBO"}'

SAMPLES: list[m.Message] = [
    m.BeginWorker(PLACE, SURROUNDINGS, b"\x00\xff"),
    m.FormGroup(3, "gloo", PLACE, (1, 2), 0),
    m.RunCell(7, "print(1)\n", True, True, (0, 2), 4),
    m.RunCell(8, "pass\n", False, False, (), 5, code=b"\xe3\x00"),
    m.BreakGroup(3),
    m.EndWorker(),
    m.Look(-3, True),
    m.StartRanks([PLACE], SURROUNDINGS, True),
    m.WatchUsage(1.5),
    m.Usage([m.RankUsage(0, 1 << 25, 0.5, 3, "R"), m.RankUsage(1, 1 << 25, 0.5, 3, "S", 0.9, 5, 6)]),
    m.Tell([0, 1], m.RunCell(7, "1/0", checks=True)),
    m.SignalRanks([0], 2, True),
    m.NodeReady(m.PROTOCOL_VERSION, 99, "höst", [m.Gpu(0, "GPU-1", "H200", 1 << 37)]),
    m.Preloaded("torch", 1.5),
    m.PreloadFailed("no torch"),
    m.WorkerForked(0, 123),
    m.WorkerExited(0, 123, 9, 4, 2, "bye", 1),
    m.WorkerSuspended(0, 123, True),
    m.RankUnseen(1, -3, 4, 2, "T", 1.5),
    m.FdOutput(0, 4, 1, "stderr", TEXT),
    m.WorkerConnected(*FROM, pid=1),
    m.GroupFormed(*FROM, seconds=0.01),
    m.GroupFailed(*FROM, reason="no route"),
    m.RankHealed(*FROM, copied=3, lost=[m.NotCopied("f", "an open file", True)]),
    m.Output(*FROM, stream="stdout", offset=1 << 40, data=TEXT),
    m.Display(*FROM, data=JSON, metadata="{}", display_id="d", result=True),
    m.ClearOutput(*FROM, wait=True),
    m.Notice(*FROM, text="mind"),
    m.Notice(*FROM, text="mind", withdrawn=True),
    m.CellFinished(*FROM, verdict="error", duration_s=0.5, error=m.CellError("E", "v", 2, ["tb"])),
    m.CellFinished(
        *FROM, verdict="ok", duration_s=0.5, counts=(m.GroupCount("0", (0, 2), 7),), unfinished=True
    ),
    m.GoodEnds(4, (m.CellFinished(*FROM, verdict="ok", duration_s=0.5),)),
    m.CellFinished(*FROM, verdict="error", duration_s=0.5, doomed="cuda:1: no longer there (line 2)"),
    m.RankSeen(
        *FROM,
        look=-3,
        doing="waiting",
        line=3,
        place="data.py:31",
        function="load",
        for_s=10.5,
        waits_in="recv",
        peer=2,
        groups=(m.GroupState("0", (), 7, (m.Call(7, "all_reduce", 3, "line 3", False, True),)),),
        stacks="File …",
    ),
    m.RankStuck(*FROM, for_s=10.2),
]
UNIONS = {"to_rank": m.NodeToRank, "to_node": m.KernelToNode, "from_node": m.NodeToKernel}
UNIONS["from_rank"] = m.RankMessage

CASES = [
    pytest.param(name, sample, id=f"{name}-{type(sample).__name__}")
    for name, union in UNIONS.items()
    for sample in SAMPLES
    if type(sample) in typing.get_args(union)
]


def test_there_is_a_sample_of_every_message() -> None:
    """The cases below leave no member of any union out."""
    assert {type(s) for s in SAMPLES} == {member for u in UNIONS.values() for member in typing.get_args(u)}


@pytest.mark.parametrize(("decoder", "message"), CASES)
def test_a_message_comes_out_as_it_went_in(decoder: str, message: m.Message) -> None:
    """Each message survives the wire in each direction that it travels."""
    (body,) = codec.FrameReader().feed(codec.encode(message))
    assert codec.decode(getattr(codec, decoder), body) == message


@pytest.mark.parametrize("decoder", ["to_rank", "to_node", "from_rank"])
def test_a_direction_takes_only_its_own_messages(decoder: str) -> None:
    """A well-formed message that does not belong to a direction is refused there."""
    foreign = [s for s in SAMPLES if type(s) not in typing.get_args(UNIONS[decoder])]
    for message in foreign:
        with pytest.raises(codec.CorruptStream):
            codec.decode(getattr(codec, decoder), codec.encode(message)[4:])


def test_frames_may_be_split_at_every_byte() -> None:
    """Two frames cut anywhere, once, come out whole, once and in order."""
    frames = [codec.encode(m.Notice(*FROM, text="é")), codec.encode(m.EndWorker())]
    stream = b"".join(frames)
    for cut in range(len(stream) + 1):
        reader = codec.FrameReader()
        bodies = [*reader.feed(stream[:cut]), *reader.feed(stream[cut:])]
        assert bodies == [frame[4:] for frame in frames]
        assert reader.pending_bytes == 0


def test_pending_bytes_are_those_of_the_unfinished_frame() -> None:
    """What has not arrived whole is counted, so an end of file inside a frame differs from a clean one."""
    reader = codec.FrameReader()
    frame = codec.encode(m.EndWorker())
    assert list(reader.feed(frame + frame[:3])) == [frame[4:]]
    assert reader.pending_bytes == 3


def test_a_reader_may_stop_between_two_frames() -> None:
    """Frames that the reader of the iterator did not take are given at the next call, none twice."""
    reader = codec.FrameReader()
    frame = codec.encode(m.EndWorker())
    bodies = reader.feed(frame * 3)
    assert next(bodies) == frame[4:]
    bodies.close()  # type: ignore[attr-defined]
    assert list(reader.feed(b"")) == [frame[4:]] * 2


def test_an_oversized_frame_is_refused_before_it_arrives() -> None:
    """A length over the limit ends the stream at once: nothing is collected for it."""
    reader = codec.FrameReader()
    with pytest.raises(codec.CorruptStream, match="over the limit"):
        list(reader.feed(struct.pack("<I", codec.MAX_FRAME_BYTES + 1)))


def test_a_frame_of_exactly_the_limit_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit itself is allowed, one byte more is not, on both ends alike."""
    notice = m.Notice(*FROM, text="x" * 40)
    size = len(codec.encode(notice)) - 4
    monkeypatch.setattr(codec, "MAX_FRAME_BYTES", size)
    assert list(codec.FrameReader().feed(codec.encode(notice)))
    monkeypatch.setattr(codec, "MAX_FRAME_BYTES", size - 1)
    with pytest.raises(ValueError, match=f"{size} bytes is over the limit of {size - 1}"):
        codec.encode(notice)


@pytest.mark.parametrize(
    "change",
    [
        ["Nothing"],
        ["EndWorker", 1],
        ["BreakGroup"],
        ["BreakGroup", "1"],
        ["RunCell", 1, None],
        {"type": "EndWorker"},
        {},
        [],
        None,
        "EndWorker",
    ],
)
def test_what_is_no_message_is_refused(change: object) -> None:
    """Unknown tags, superfluous, missing or mistyped fields and other values are one error: CorruptStream."""
    with pytest.raises(codec.CorruptStream):
        codec.decode(codec.to_rank, msgspec.msgpack.encode(change))


def test_bad_utf8_in_a_text_field_is_refused() -> None:
    """Bytes that are no UTF-8 where text is due do not surface as a UnicodeDecodeError."""
    body = codec.encode(m.RunCell(1, "MARK"))[4:].replace(b"MARK", b"\xff\xff\xff\xff")
    with pytest.raises(codec.CorruptStream):
        codec.decode(codec.to_rank, body)


@pytest.mark.parametrize("place", ["field", "surplus", "tag"])
def test_deep_nesting_is_refused(place: str) -> None:
    """A value nested beyond the recursion limit is a corrupt stream like any other."""
    pack = msgspec.msgpack.encode
    deep = b"\x91" * 100_000 + b"\xc0"
    connected = [pack("WorkerConnected"), *[pack(1)] * 5]
    items = {"field": connected[:-1], "surplus": connected, "tag": []}[place]
    body = bytes([0x91 + len(items)]) + b"".join(items) + deep
    with pytest.raises(codec.CorruptStream):
        codec.decode(codec.from_rank, body)


def test_a_relayed_body_is_the_frame_it_came_in() -> None:
    """An agent passes on what it did not need to read: cut out and framed again, the bytes are the same."""
    frame = codec.encode(m.Notice(*FROM, text="é"))
    (body,) = codec.FrameReader().feed(frame)
    assert codec.frame(body) == frame


class Socket:
    """Takes at most `room` bytes until more room is made, as a non-blocking socket does."""

    def __init__(self, room: int) -> None:
        self.room = room
        self.taken = b""

    def send(self, data: memoryview) -> int:
        if not self.room:
            raise BlockingIOError
        taken = data[: self.room]
        self.room -= len(taken)
        self.taken += taken
        return len(taken)


def test_what_a_socket_does_not_take_waits() -> None:
    """Frames go out whole and in order, however little the socket takes at a time."""
    frames = [codec.encode(m.Notice(*FROM, text="x" * size)) for size in (1, 50, 7)]
    writer, socket, numbers = codec.FrameWriter(), Socket(0), random.Random(1)
    for frame in frames:
        writer.push(frame)
    assert not writer.flush(socket.send)
    assert writer.waiting_bytes == sum(map(len, frames))
    while not writer.flush(socket.send):
        assert writer.waiting_bytes == sum(map(len, frames)) - len(socket.taken)
        socket.room = numbers.randint(1, 9)
    assert socket.taken == b"".join(frames)
    assert writer.waiting_bytes == 0
    assert writer.flush(socket.send)
