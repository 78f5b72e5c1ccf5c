"""A browser that is told the news knows what one knows that was there from the start."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from jupyter_ddp.core.record import CellRecord
from jupyter_ddp.core.trail import Trail
from jupyter_ddp.core.transcript import NewRich, NewText, Position, Text, Transcript
from jupyter_ddp.view.alike import Folding, Shown
from jupyter_ddp.view.news import NewsReader
from tests.property.test_record import MESSAGES, WORLD

ROOM = 10_000_000


class Browser:
    """What view/live.js keeps, unbounded: of each rank the lines of each segment by number, and displays."""

    def __init__(self) -> None:
        self.ranks: dict[int, dict[int, Any]] = {rank: {} for rank in range(WORLD)}
        self.failures: dict[int, Any] = {}
        self.standing: dict[str, Any] = {}

    def take(self, message: dict[str, Any] | None) -> None:
        for spans, cleared, pieces in (message or {}).get("entries", []):
            for first, last in zip(spans[::2], spans[1::2], strict=True):
                for rank in range(first, last + 1):
                    if cleared:
                        self.ranks[rank].clear()
                    for piece in pieces:
                        self.piece(rank, piece)
        for name in ("states", "groups", "notes"):
            if message and name in message:
                self.standing[name] = message[name]

    def piece(self, rank: int, piece: list[Any]) -> None:
        if piece[0] == "e":
            self.failures[rank] = piece
        elif piece[0] == "r":
            self.ranks[rank][piece[1]] = piece[2:]
        else:
            _, number, stderr, first, lines, open_line = piece
            text = self.ranks[rank].setdefault(number, {"stderr": stderr, "lines": {}, "open": ""})
            for at, line in enumerate(lines, first):
                assert text["lines"].setdefault(at, line) == line, "a line has changed"
            text["open"] = open_line


@given(st.lists(st.tuples(MESSAGES, st.sampled_from([None, None, 0, 200, 600, ROOM])), max_size=40))
def test_told_bit_by_bit_or_all_at_once(said: list[tuple[Any, int | None]]) -> None:
    """However the news was cut into messages, at the end the browser has the lines, displays and states."""
    record, browser = CellRecord(1, range(WORLD)), Browser()
    reader = NewsReader(record)
    for message, room in said:
        record.fold(message)
        if room is not None:
            browser.take(reader.read(room, room))
    while reader.behind:
        browser.take(reader.read(ROOM, ROOM))
    late = Browser()
    late.take(reader.whole(ROOM, ROOM))
    for rank in range(WORLD):
        now = late.ranks[rank]
        assert {n: s for n, s in browser.ranks[rank].items() if isinstance(s, list)} == {
            n: s for n, s in now.items() if isinstance(s, list)
        }
        for number, text in now.items():
            if isinstance(text, dict):
                told = browser.ranks[rank][number]
                assert told["lines"].items() <= text["lines"].items()
    assert browser.failures == late.failures
    if browser.standing:
        assert browser.standing == late.standing


@given(st.lists(st.tuples(st.sampled_from("tr"), st.text("ab\n\r", max_size=8), st.booleans()), max_size=40))
def test_what_is_new_since_a_position(steps: list[tuple[str, str, bool]]) -> None:
    """Reading now and then gives each whole line and display once, in order, with its number."""
    transcript, position, read = Transcript(), Position(), []
    for kind, text, look in [*steps, ("t", "", True)]:
        if kind == "t":
            transcript.write("stderr" if text.startswith("b") else "stdout", "python", text.encode())
        else:
            transcript.display(_rich(text))
        if look:
            news = transcript.since(position)
            assert not news.cleared
            for piece in news.pieces:
                if isinstance(piece, NewRich):
                    read.append((piece.segment, piece.rich))
                else:
                    read += [(piece.segment, at, line) for at, line in enumerate(piece.lines, piece.line)]
            position = news.position
    expected: list[Any] = []
    for segment in transcript:
        if isinstance(segment, Text):
            lines = [line for _, run in segment.since(0) for line in run]
            expected += [(segment.number, at, line) for at, line in enumerate(lines)]
        else:
            expected.append((segment.number, segment))
    assert read == expected
    assert not any(isinstance(p, NewText) and p.lines for p in transcript.since(position).pieces)


def _rich(text: str) -> Any:
    from jupyter_ddp.core.transcript import Rich

    return Rich({"text/plain": text}, {}, "", False)


TRAILS = st.lists(st.lists(st.sampled_from("ab"), max_size=6), min_size=1, max_size=8)


def _trail(steps: list[str]) -> Trail:
    trail = Trail()
    for step in steps:
        trail.step(step)
    return trail


@given(TRAILS)
def test_ranks_are_together_just_when_one_is_how_the_other_began(histories: list[list[str]]) -> None:
    """Every rank that shows something is in one group; a group's members began alike; equals are together."""
    shown = [Shown(rank, _trail(steps), None, bool(steps)) for rank, steps in enumerate(histories)]
    groups = Folding().groups(shown, 0.0)
    assert sorted(rank for group in groups for rank in group) == [
        r for r, steps in enumerate(histories) if steps
    ]
    assert groups == sorted(sorted(group) for group in groups)
    of = {rank: at for at, group in enumerate(groups) for rank in group}
    for a in of:
        for b in of:
            if histories[a] == histories[b]:
                assert of[a] == of[b]
            elif of[a] == of[b]:
                n = min(len(histories[a]), len(histories[b]))
                assert histories[a][:n] == histories[b][:n]
