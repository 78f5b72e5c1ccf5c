"""What a running cell has to tell the browser since it was last told: one message, as JSON.

Owns the form of these messages (view/live.js reads them) and how much of each rank fits into one. Never
sends anything, and never makes HTML: a rank's text goes as it is, and the browser shows it as text.

A message is idempotent: lines and displays carry their numbers, so a browser that gets some of them
twice shows them once, and one that missed some shows how many.

    {"n": 7, "entries": [[ranks, cleared, pieces], …], "states": {…}, "groups": […], "notes": […]}

`ranks` are spans, [0, 3, 5, 5] for 0–3 and 5. Of the pieces, ["t", segment, is_stderr, line, lines, open] is
text, ["r", segment, kind, content, alt, width, height] a display, ["e", title, state, traceback, blocked]
how the rank failed. What has not changed is left out. `"whole": true` marks a message that stands for all
before it; it says which ranks there are.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from jupyter_ddp.core.healing import what_survives
from jupyter_ddp.core.long_lines import end_of
from jupyter_ddp.core.rank_record import RankRecord, RankSnapshot
from jupyter_ddp.core.record import CellRecord, Snapshot
from jupyter_ddp.core.topology import named
from jupyter_ddp.core.transcript import NewRich, News, NewText, Position
from jupyter_ddp.view import wording
from jupyter_ddp.view.alike import Folding, Shown
from jupyter_ddp.view.ansi import strip
from jupyter_ddp.view.blocks import traceback
from jupyter_ddp.view.grouping import Group
from jupyter_ddp.view.media import Drawn, draw, plain_text

MESSAGE_BYTES = 75_000
"""Of text in one message: ten a second of these are within the rate."""
WHOLE_BYTES = 300_000
"""Of text in a message that stands for all before it."""
MIN_SHARE = 160
"""The least of a rank's news that is told at all, in characters; the other ranks' turn comes next time."""
WATCHED_SHARE = 16_000
"""Of a rank that somebody has asked for."""
MAX_DRAWN_BYTES = 700_000
"""A larger display waits for the end of the cell."""
_MAX_VALUE_CHARS = 16_000
_PIECE_BYTES = 40
_GAP_BYTES = 45
_ENTRY_BYTES = 30
_FAILED = ("error", "died", "unknown", "interrupted", "not-run")

Json = dict[str, Any]


class NewsReader:
    """Reads one record for one audience, and remembers how far it came."""

    def __init__(self, record: CellRecord, clock: Callable[[], float] = time.monotonic) -> None:
        self._record, self._clock = record, clock
        self._folding = Folding()
        self._positions = {rank: Position() for rank in record.ranks}
        self._seen = dict.fromkeys(record.ranks, 0)
        self._turn = 0  # the rank that was not told of last time, though it had news
        self._owed: dict[tuple[int, int], NewRich] = {}
        self._last: Json = {}
        self._restate = False
        self._ends: dict[int, list[Any]] = {}
        self._messages = 0
        self.watched: set[int] = set()
        """Ranks that somebody looks at: more of them is told."""

    @property
    def behind(self) -> bool:
        """There is more than the last message had room for."""
        return bool(self._owed) or any(r.changed_at > self._seen[r.rank] for r in self._record)

    def read(self, text_bytes: int, drawn_bytes: int) -> Json | None:
        """What is new, of at most about so many bytes; None where there is nothing to tell."""
        with self._record.reading():
            changed = [r for r in self._record if r.changed_at > self._seen[r.rank]]
            message = _Message(text_bytes, head_share=0.0)
            for left, r in _counting_down(self._in_turn(changed)):
                if message.room < MIN_SHARE:
                    self._turn = r.rank
                    break
                self._tell(message, r, message.room // left)
            self._pay(message, drawn_bytes)
            told = message.entries() | self._changes(changed)
        if not told:
            return None
        self._messages += 1
        return {"n": self._messages, **told}

    def whole(self, text_bytes: int = WHOLE_BYTES, drawn_bytes: int = MAX_DRAWN_BYTES) -> Json:
        """All there is so far, bounded: of each rank the first lines and the last. Nothing counts as told."""
        with self._record.reading():
            return self._whole(list(self._record), text_bytes, drawn_bytes)

    def of_rank(self, rank: int, text_bytes: int = WHOLE_BYTES, drawn_bytes: int = MAX_DRAWN_BYTES) -> Json:
        """All that is kept of one rank's output, for whoever looks at it."""
        with self._record.reading():
            return self._whole([self._record[rank]], text_bytes, drawn_bytes)

    def _whole(self, ranks: list[RankRecord], text_bytes: int, drawn_bytes: int) -> Json:
        message = _Message(text_bytes, head_share=0.25)
        for left, r in _counting_down(ranks):
            news = r.transcript.since(Position(epoch=-1))
            message.add(r.rank, news, _end(r), max(MIN_SHARE, message.room // left))
            for piece in news.pieces:
                if isinstance(piece, NewRich):
                    used = message.draw(r.rank, piece, drawn_bytes)
                    if used < 0:
                        message.leave_out(r.rank, piece)
                    drawn_bytes -= max(0, used)
        told = {"n": self._messages, "whole": True, "ranks": spans([r.rank for r in ranks])}
        standing = self._standing()
        self._restate = standing != self._last  # who is not told the whole has to learn it too
        return told | standing | message.entries()

    # -- one rank's turn -------------------------------------------------------------------------

    def _in_turn(self, changed: list[RankRecord]) -> list[RankRecord]:
        """Who somebody looks at first, then who had to wait."""
        return sorted(changed, key=lambda r: (r.rank not in self.watched, r.rank < self._turn))

    def _tell(self, message: _Message, r: RankRecord, share: int) -> None:
        news = r.transcript.since(self._positions[r.rank])
        end = _end(r)
        if end == self._ends.get(r.rank):
            end = None
        else:
            self._ends[r.rank] = end or []
        if news.cleared:
            self._owed = {key: piece for key, piece in self._owed.items() if key[0] != r.rank}
        if r.rank in self.watched:
            share = max(share, WATCHED_SHARE)
        message.add(r.rank, news, end, max(MIN_SHARE, share))
        for piece in news.pieces:
            if isinstance(piece, NewRich):
                self._owed[r.rank, piece.segment] = piece
        self._positions[r.rank], self._seen[r.rank] = news.position, r.changed_at

    def _pay(self, message: _Message, drawn_bytes: int) -> None:
        """The displays that there is room for, those of the watched ranks and the oldest first."""
        for rank, segment in sorted(self._owed, key=lambda key: key[0] not in self.watched):
            piece = self._owed[rank, segment]
            used = message.draw(rank, piece, drawn_bytes)
            if used < 0:
                break
            drawn_bytes -= used
            del self._owed[rank, segment]

    # -- what concerns all -----------------------------------------------------------------------

    def _changes(self, changed: list[RankRecord]) -> Json:
        if not (changed or self._restate or self._folding.is_due(self._clock())):
            return {}
        self._restate = False
        now = self._standing()
        new = {name: value for name, value in now.items() if self._last.get(name) != value}
        self._last = now
        return new

    def _standing(self) -> Json:
        states: dict[str, list[int]] = {}
        for r in self._record:
            states.setdefault(r.verdict or "running", []).append(r.rank)
        groups = self._folding.groups(map(_shown, self._record), self._clock())
        return {
            "states": {state: spans(ranks) for state, ranks in states.items()},
            "groups": [spans(group) for group in groups],
            "notes": _notes(self._record),
        }


class _Message:
    """Entries of one message while it is filled: news that several ranks share is in it once."""

    def __init__(self, room: int, head_share: float) -> None:
        self.room = room
        """Bytes of text that are left."""
        self._head_share = head_share
        self._entries: dict[Any, tuple[list[int], bool, list[list[Any]]]] = {}
        self._drawn: dict[tuple[int, Drawn | str], tuple[list[int], list[Any]]] = {}

    def add(self, rank: int, news: News, end: list[Any] | None, share: int) -> None:
        """A rank's text and how it failed, within its share."""
        texts = [piece for piece in news.pieces if isinstance(piece, NewText)]
        key = (news.cleared, tuple(_identity(text) for text in texts), tuple(end) if end else None)
        if (same := self._entries.get(key)) is not None:
            same[0].append(rank)
            return
        pieces: list[list[Any]] = []
        if end is not None:
            cut_end = [*end[:3], _last_lines(end[3], max(share, 8_000)), *end[4:]]
            pieces.append(cut_end)
            share -= _size(cut_end)
        pieces[:0] = _cut(texts, max(share, MIN_SHARE // 2), self._head_share)
        self.room -= _ENTRY_BYTES + sum(map(_size, pieces))
        self._entries[key] = [rank], news.cleared, pieces

    def draw(self, rank: int, piece: NewRich, room: int) -> int:
        """Add a display, or in its place what it is; the bytes that took, or -1 where there is no room."""
        drawn = draw(piece.rich)
        key = (piece.segment, drawn)
        if (same := self._drawn.get(key)) is not None:
            same[0].append(rank)
            return 0
        if isinstance(drawn, str):
            form = ["r", piece.segment, "text", drawn[:_MAX_VALUE_CHARS], "", None, None]
        elif drawn.chars > MAX_DRAWN_BYTES:
            form = _later(piece)
        else:
            form = ["r", piece.segment, drawn.kind, drawn.content, drawn.alt, drawn.width, drawn.height]
        size = _ENTRY_BYTES + _size(form)
        if size > room:
            return -1
        self._drawn[key] = [rank], form
        return size

    def leave_out(self, rank: int, piece: NewRich) -> None:
        """In place of a display that there is no room for."""
        form = _later(piece)
        self._drawn.setdefault((piece.segment, form[3]), ([], form))[0].append(rank)

    def entries(self) -> Json:
        found = [
            [spans(ranks), int(cleared), pieces]
            for ranks, cleared, pieces in self._entries.values()
            if cleared or pieces
        ]
        found += [[spans(ranks), 0, [form]] for ranks, form in self._drawn.values()]
        return {"entries": found} if found else {}


def spans(ranks: Iterable[int]) -> list[int]:
    """Ascending ranks as first and last of each run: [0, 3, 5, 5]."""
    found: list[int] = []
    for rank in ranks:
        if found and rank == found[-1] + 1:
            found[-1] = rank
        else:
            found += [rank, rank]
    return found


def size_bytes(message: Json) -> int:
    """What a message takes on the wire, without its envelope."""
    return len(json.dumps(message, ensure_ascii=False).encode("utf-8", "replace"))


def _later(piece: NewRich) -> list[Any]:
    return ["r", piece.segment, "later", wording.one_line(plain_text(piece.rich), 200), "", None, None]


def _counting_down(ranks: list[RankRecord]) -> Iterator[tuple[int, RankRecord]]:
    return ((len(ranks) - at, r) for at, r in enumerate(ranks))


def _identity(text: NewText) -> tuple[Any, ...]:
    return text.segment, text.stream, text.line, tuple(text.lines), text.open


def _shown(r: RankRecord) -> Shown:
    failed, error = r.verdict in _FAILED, r.own_error
    why = error and (error.ename, error.evalue, error.line, tuple(error.traceback))
    failure = (r.verdict, why, r.death) if failed else None
    return Shown(r.rank, r.transcript.trail, failure, bool(r.transcript) or failed, r.verdict is not None)


def _end(r: RankRecord) -> list[Any] | None:
    """How a rank failed, in the words of the static page."""
    if r.verdict not in _FAILED:
        return None
    group = Group((r.rank,), _without_output(r))
    title = wording.title(group).partition(" · ")[2]
    error = group.shown.error
    lines = traceback(error) if error is not None and r.verdict != "interrupted" else ""
    return ["e", title, wording.state(group), lines, int(r.verdict == "interrupted" and bool(r.death))]


def _without_output(r: RankRecord) -> RankSnapshot:
    return RankSnapshot(r.rank, r.verdict, [], r.own_error, r.death, tuple(r.notices))


def _notes(record: CellRecord) -> list[str]:
    dead = [r.rank for r in record if r.verdict == "died"]
    if not (dead or record.held_up or record.announced or any(r.notices for r in record)):
        return []
    ranks = [_without_output(r) for r in record]
    found = wording.notes(Snapshot(ranks, record.held_up, tuple(record.announced)), live=True)
    if dead:  # the static page leaves that to the error's line, which is not there yet
        alive = [r.rank for r in record if r.verdict != "died"]
        found.insert(0, f"{named(dead, '-')} died: {what_survives(dead, alive)}")
    return found


# -- cutting ---------------------------------------------------------------------------------------


def _size(piece: list[Any]) -> int:
    """About what a piece takes in JSON, rather more than less."""
    return _PIECE_BYTES + sum(_chars(part) for part in piece)


def _chars(part: Any) -> int:
    if isinstance(part, str):
        extra = 0 if part.isascii() else 2 * sum(not c.isascii() for c in part)
        return len(part) + extra + 5 * part.count("\x1b") + part.count('"') + part.count("\\")
    return 4 * len(part) + _chars("".join(part)) if isinstance(part, list) else 0


def _cut(texts: list[NewText], share: int, head_share: float) -> list[list[Any]]:
    """The texts' last lines, and some of their first, as pieces."""
    if sum(map(_text_size, texts)) <= share:
        return [_piece(text, text.line, text.lines) for text in texts]
    head = _first(texts, int(share * head_share)) if head_share else []
    tail = _last(texts, share - sum(map(_size, head)))
    return [*head, *tail]


def _text_size(text: NewText) -> int:
    return _PIECE_BYTES + _chars(text.open) + _chars(text.lines)


def _piece(text: NewText, line: int, lines: list[str], open: str | None = None) -> list[Any]:
    stderr = int(text.stream == "stderr")
    return ["t", text.segment, stderr, line, lines, text.open if open is None else open]


def _first(texts: list[NewText], room: int) -> list[list[Any]]:
    for text in texts:
        if text.lines:
            lines: list[str] = []
            for line in text.lines:
                room -= 4 + _chars(line)
                if room < 0:
                    break
                lines.append(line)
            return [_piece(text, text.line, lines, "")] if lines else []
    return []


def _last(texts: list[NewText], room: int) -> list[list[Any]]:
    """At least the end of the last line."""
    kept: list[list[Any]] = []
    for text in reversed(texts):
        room -= _PIECE_BYTES
        if room < 0 and kept:
            break
        open_line = _end_of(text.open, room)
        room -= _chars(open_line)
        lines: list[str] = []
        for line in reversed(text.lines):
            size = 4 + _chars(line)
            if size > room:
                if not (lines or open_line or kept):
                    lines.append(_end_of(line, room - 4))
                    room = 0
                break
            room -= size
            lines.append(line)
        line_at = text.line + len(text.lines) - len(lines)
        kept.append(_piece(text, line_at, lines[::-1], open_line))
        if len(lines) < len(text.lines):
            break
    return kept[::-1]


def _end_of(line: str, room: int) -> str:
    """Cut only where no control sequence can be cut in two."""
    if _chars(line) <= room:
        return line
    words = strip(line)
    room -= _GAP_BYTES
    return end_of(words, max(20, room if words.isascii() else room // 3))


def _last_lines(text: str, room: int) -> str:
    if len(text) <= room:
        return text
    return "…\n" + text[-room:].partition("\n")[2]
