"""What one rank's output looks like, bounded: the first and the last lines, every rich output.

Owns folding text for display: carriage returns and backspaces overwrite, as on a terminal. Never the
place where output is kept whole; that is the log.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator
from typing import NamedTuple

from jupyter_ddp.core.long_lines import without_middle
from jupyter_ddp.core.messages import MimeBundle, Stream
from jupyter_ddp.core.terminal import overwritten
from jupyter_ddp.core.trail import Trail

HEAD_CHARS = TAIL_CHARS = 16 * 1024
HEAD_LINES = TAIL_LINES = 100
MAX_LINE_CHARS = 4 * 1024
MAX_SEGMENTS = 200
"""Changes between streams and displays, of one rank, that are shown; some from the start, then the last."""


class Position(NamedTuple):
    """How far a reader has come in a transcript; the default is its beginning."""

    epoch: int = 0
    """How often the display had been emptied."""
    segment: int = 0
    """The number of the segment to go on with."""
    line: int = 0
    """Whole lines of it that were read, if it is text."""
    update: int = 0
    """How many displays had been replaced."""


class NewText(NamedTuple):
    """Whole lines of the text numbered `segment`, the first of them its line `line`; and its last, open one.

    Lines are counted from 0, those that are not kept any more included: a reader sees what it missed.
    """

    segment: int
    stream: Stream
    line: int
    lines: list[str]
    open: str


class NewRich(NamedTuple):
    """A display, or what has taken the place of one."""

    segment: int
    rich: Rich


class News(NamedTuple):
    """What a transcript has beyond a position; `cleared`: what was read before is gone from the display."""

    cleared: bool
    pieces: list[NewText | NewRich]
    position: Position


class Text:
    """A run of text from one stream; `omitted` lines and characters were left out after `head`."""

    def __init__(self, stream: Stream, number: int = 0) -> None:
        self.stream = stream
        self.number = number
        """Its place among all segments that its transcript ever had."""
        self.head = ""
        self._tail: list[str] = []
        self._tail_chars = 0
        self._open = ""  # the unfinished last line, carriage returns not yet all resolved
        self.omitted_lines = 0
        self.omitted_chars = 0
        self._head_lines = 0
        self._trimmed_lines = 0

    def append(self, text: str, trail: Trail | None = None) -> None:
        """Add text; tell `trail` of each line that it completes."""
        text = self._open + text
        if text.count("\n") > HEAD_LINES + TAIL_LINES + 1:
            text = self._leave_out(text, trail)
        *whole, rest = text.split("\n")
        for line in whole:
            line = overwritten(line)
            self._append_line(line + "\n")
            if trail is not None:
                trail.step(line)
        before, cr, after = rest.rpartition("\r")
        # Each by itself: a cut through the carriage return would mix two drawings of one line.
        self._open = _cut(overwritten(before)) + cr + _cut(overwritten(after))
        self._trim()

    def _leave_out(self, text: str, trail: Trail | None) -> str:
        """Of a flood, what can be seen: looking at each line takes longer than printing them did."""
        if not (self._tail or self.omitted_lines):
            *first, text = text.split("\n", HEAD_LINES + 1)  # one more than the head takes
            for line in first:
                line = overwritten(line)
                self._append_line(line + "\n")
                if trail is not None:
                    trail.step(line)
        left_out, *last = text.rsplit("\n", TAIL_LINES + 1)
        if last:
            lines = left_out.count("\n") + 1
            self.omitted_lines += lines
            self._trimmed_lines += lines
            if trail is not None:
                drawn = "\r" in left_out or "\b" in left_out
                trail.leap("\n".join(map(overwritten, left_out.split("\n"))) if drawn else left_out)
            self.omitted_chars += len(left_out) + 1
            text = "\n".join(last)
        return text

    def _append_line(self, line: str) -> None:
        line = _cut(line)
        head_has_room = self._head_lines < HEAD_LINES and len(self.head) + len(line) <= HEAD_CHARS
        if head_has_room and not self._tail and not self.omitted_lines:
            self.head += line
            self._head_lines += 1
        else:
            self._tail.append(line)
            self._tail_chars += len(line)

    def _trim(self) -> None:
        drop = 0
        while len(self._tail) - drop > TAIL_LINES or self._tail_chars > TAIL_CHARS:
            self._tail_chars -= len(self._tail[drop])
            self.omitted_chars += len(self._tail[drop])
            drop += 1
        self.omitted_lines += drop
        self._trimmed_lines += drop
        del self._tail[:drop]

    @property
    def tail(self) -> str:
        return "".join(self._tail) + overwritten(self._open)

    @property
    def open(self) -> str:
        """The last line, while it has no end: a progress bar, say."""
        return overwritten(self._open)

    @property
    def whole_lines(self) -> int:
        """Lines that have ended, whether they are still kept or not."""
        return self._head_lines + self._trimmed_lines + len(self._tail)

    def since(self, line: int) -> list[tuple[int, list[str]]]:
        """Whole lines from number `line` on that are kept, in runs, each with the number of its first."""
        runs: list[tuple[int, list[str]]] = []
        if line < self._head_lines:
            runs.append((line, self.head.split("\n")[line:-1]))
        tail_at = self._head_lines + self._trimmed_lines
        if line < tail_at + len(self._tail):
            rest = [kept[:-1] for kept in self._tail[max(0, line - tail_at) :]]
            if rest:
                runs.append((max(line, tail_at), rest))
        return runs

    @property
    def lines(self) -> int:
        """Lines written so far, shown or not."""
        return self._head_lines + self.omitted_lines + len(self._tail) + bool(self._open)

    def parts(self) -> tuple[str, int, str]:
        """(text before the gap, lines left out, text after it); no gap: ("whole text", 0, "")."""
        if not self.omitted_lines:
            return self.head + self.tail, 0, ""
        return self.head, self.omitted_lines, self.tail

    def copy(self) -> Text:
        twin = Text(self.stream, self.number)
        twin.__dict__.update(self.__dict__, _tail=list(self._tail))
        return twin


class Rich:
    """A mimebundle that the user's code displayed, or the value of the cell's last expression.

    Never changed once made: snapshots share it.
    """

    __slots__ = ("data", "display_id", "metadata", "number", "result")

    def __init__(
        self, data: MimeBundle, metadata: MimeBundle, display_id: str, result: bool, number: int = 0
    ) -> None:
        self.data = data
        self.metadata = metadata
        self.display_id = display_id
        self.result = result
        self.number = number
        """Its place among all segments that its transcript ever had."""


Segment = Text | Rich


class Transcript:
    """The segments of one rank's display, in the order they came."""

    __slots__ = ("_begun", "_clear_next", "_decoders", "_epoch", "_segments", "_updated", "trail")

    def __init__(self) -> None:
        self._segments: list[Segment] = []
        self._begun = 0  # segments so far, those that were cleared or left out included
        self._epoch = 0
        self._updated: list[int] = []  # the segments that were replaced, one number for each time
        self.trail = Trail()
        self._decoders: dict[tuple[Stream, str], codecs.IncrementalDecoder] = {}
        self._clear_next = False

    def write(self, stream: Stream, source: str, data: bytes) -> None:
        """Add bytes of a stream. Bytes of another `source` never complete this one's characters."""
        decoder = self._decoders.get((stream, source))
        if decoder is None:
            decoder = codecs.getincrementaldecoder("utf-8")("replace")
            self._decoders[stream, source] = decoder
        text = decoder.decode(data)
        if text:
            self._before_adding()
            self._text(stream).append(text, self.trail)

    def finish(self) -> None:
        """No more will come: show the bytes of a character that was never completed."""
        for (stream, _), decoder in self._decoders.items():
            if rest := decoder.decode(b"", final=True):
                self._text(stream).append(rest, self.trail)

    def _text(self, stream: Stream) -> Text:
        last = self._segments[-1] if self._segments else None
        if not isinstance(last, Text) or last.stream != stream:
            last = Text(stream)
            self._add(last)
        return last

    def display(self, rich: Rich) -> None:
        self._before_adding()
        self._add(rich)
        self.trail.step(_content(rich))

    def _add(self, segment: Segment) -> None:
        """Keep the first segments and the last ones; what goes in between is counted as left out."""
        last = self._segments[-1] if self._segments else None
        if isinstance(last, Text) and last.open:  # it stays as it is, below something else
            self.trail.step(last.open)
        segment.number = self._begun
        self._begun += 1
        self._segments.append(segment)
        if len(self._segments) > MAX_SEGMENTS:
            gone = self._segments.pop(MAX_SEGMENTS // 2)
            before = self._segments[MAX_SEGMENTS // 2 - 1]
            if not isinstance(before, Text):
                before = Text("stdout", before.number)
                self._segments[MAX_SEGMENTS // 2 - 1] = before
                before.omitted_lines += 1
            before.omitted_lines += gone.lines if isinstance(gone, Text) else 1

    def update(self, rich: Rich) -> bool:
        """Replace what was displayed under this display id; a result stays one. False: nothing was."""
        found = False
        for at, segment in enumerate(self._segments):
            if isinstance(segment, Rich) and rich.display_id and segment.display_id == rich.display_id:
                new = Rich(rich.data, rich.metadata, rich.display_id, segment.result, segment.number)
                self._segments[at] = new
                self._updated.append(segment.number)
                self.trail.step(_content(new))
                found = True
        return found

    def clear(self, wait: bool) -> None:
        """Empty the display, at once or when the next output comes."""
        self._clear_next = wait
        if not wait:
            self._empty()

    def _before_adding(self) -> None:
        if self._clear_next:
            self._empty()
            self._clear_next = False

    def _empty(self) -> None:
        self._segments.clear()
        self._updated.clear()
        self._epoch += 1
        self.trail = Trail()

    def since(self, position: Position) -> News:
        """What there is beyond `position`, of what is kept; the open line is given each time."""
        cleared = position.epoch != self._epoch
        if cleared:
            position = Position(self._epoch, 0, 0, 0)
        replaced = set(self._updated[position.update :])
        pieces: list[NewText | NewRich] = []
        for segment in self._segments:
            if segment.number < position.segment and segment.number not in replaced:
                continue
            if isinstance(segment, Rich):
                pieces.append(NewRich(segment.number, segment))
                continue
            read = position.line if segment.number == position.segment else 0
            runs = segment.since(read) or [(segment.whole_lines, [])]
            for line, lines in runs[:-1]:
                pieces.append(NewText(segment.number, segment.stream, line, lines, ""))
            pieces.append(NewText(segment.number, segment.stream, *runs[-1], segment.open))
        return News(cleared, pieces, self._end())

    def _end(self) -> Position:
        last = self._segments[-1] if self._segments else None
        if isinstance(last, Text):
            return Position(self._epoch, last.number, last.whole_lines, len(self._updated))
        return Position(self._epoch, self._begun, 0, len(self._updated))

    @property
    def open(self) -> str:
        """The last line, where it has no end so far."""
        last = self._segments[-1] if self._segments else None
        return last.open if isinstance(last, Text) else ""

    def __iter__(self) -> Iterator[Segment]:
        return iter(self._segments)

    def __bool__(self) -> bool:
        return bool(self._segments)

    def copy(self) -> list[Segment]:
        """Segments that later output does not change."""
        return [s.copy() if isinstance(s, Text) else s for s in self._segments]


def _content(rich: Rich) -> str:
    """What is displayed, as text: the same for two ranks just when the same is displayed."""
    return json.dumps([rich.data, rich.metadata], sort_keys=True)


def _cut(line: str) -> str:
    if len(line) <= MAX_LINE_CHARS:
        return line
    if line.endswith("\n"):
        return without_middle(line[:-1], MAX_LINE_CHARS) + "\n"
    return without_middle(line, MAX_LINE_CHARS)
