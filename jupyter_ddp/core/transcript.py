"""What one rank's output looks like, bounded: the first and the last lines, every rich output.

Owns folding text for display: carriage returns and backspaces overwrite, as on a terminal. Never the
place where output is kept whole; that is the log.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterator

from jupyter_ddp.core.messages import MimeBundle, Stream
from jupyter_ddp.core.terminal import overwritten

HEAD_CHARS = TAIL_CHARS = 16 * 1024
HEAD_LINES = TAIL_LINES = 100
MAX_LINE_CHARS = 4 * 1024
MAX_SEGMENTS = 200
"""Changes between streams and displays, of one rank, that are shown; some from the start, then the last."""


class Text:
    """A run of text from one stream; `omitted` lines and characters were left out after `head`."""

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self.head = ""
        self._tail: list[str] = []
        self._tail_chars = 0
        self._open = ""  # the unfinished last line, carriage returns not yet all resolved
        self.omitted_lines = 0
        self.omitted_chars = 0
        self._head_lines = 0

    def append(self, text: str) -> None:
        text = self._open + text
        if text.count("\n") > HEAD_LINES + TAIL_LINES + 1:
            text = self._leave_out(text)
        *whole, rest = text.split("\n")
        for line in whole:
            self._append_line(overwritten(line) + "\n")
        before, cr, after = rest.rpartition("\r")
        # Each by itself: a cut through the carriage return would mix two drawings of one line.
        self._open = _cut(overwritten(before)) + cr + _cut(overwritten(after))
        self._trim()

    def _leave_out(self, text: str) -> str:
        """Of a flood, what can be seen: looking at each line takes longer than printing them did."""
        if not (self._tail or self.omitted_lines):
            *first, text = text.split("\n", HEAD_LINES + 1)  # one more than the head takes
            for line in first:
                self._append_line(overwritten(line) + "\n")
        left_out, *last = text.rsplit("\n", TAIL_LINES + 1)
        if last:
            self.omitted_lines += left_out.count("\n") + 1
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
        del self._tail[:drop]

    @property
    def tail(self) -> str:
        return "".join(self._tail) + overwritten(self._open)

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
        twin = Text(self.stream)
        twin.__dict__.update(self.__dict__, _tail=list(self._tail))
        return twin


class Rich:
    """A mimebundle that the user's code displayed, or the value of the cell's last expression.

    Never changed once made: snapshots share it.
    """

    def __init__(self, data: MimeBundle, metadata: MimeBundle, display_id: str, result: bool) -> None:
        self.data = data
        self.metadata = metadata
        self.display_id = display_id
        self.result = result


Segment = Text | Rich


class Transcript:
    """The segments of one rank's display, in the order they came."""

    __slots__ = ("_clear_next", "_decoders", "_segments")

    def __init__(self) -> None:
        self._segments: list[Segment] = []
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
            self._text(stream).append(text)

    def finish(self) -> None:
        """No more will come: show the bytes of a character that was never completed."""
        for (stream, _), decoder in self._decoders.items():
            if rest := decoder.decode(b"", final=True):
                self._text(stream).append(rest)

    def _text(self, stream: Stream) -> Text:
        last = self._segments[-1] if self._segments else None
        if not isinstance(last, Text) or last.stream != stream:
            last = Text(stream)
            self._add(last)
        return last

    def display(self, rich: Rich) -> None:
        self._before_adding()
        self._add(rich)

    def _add(self, segment: Segment) -> None:
        """Keep the first segments and the last ones; what goes in between is counted as left out."""
        self._segments.append(segment)
        if len(self._segments) > MAX_SEGMENTS:
            gone = self._segments.pop(MAX_SEGMENTS // 2)
            before = self._segments[MAX_SEGMENTS // 2 - 1]
            if not isinstance(before, Text):
                before = Text("stdout")
                self._segments[MAX_SEGMENTS // 2 - 1] = before
                before.omitted_lines += 1
            before.omitted_lines += gone.lines if isinstance(gone, Text) else 1

    def update(self, rich: Rich) -> None:
        """Replace what was displayed under this display id; a result stays one."""
        for at, segment in enumerate(self._segments):
            if isinstance(segment, Rich) and rich.display_id and segment.display_id == rich.display_id:
                self._segments[at] = Rich(rich.data, rich.metadata, rich.display_id, segment.result)

    def clear(self, wait: bool) -> None:
        """Empty the display, at once or when the next output comes."""
        self._clear_next = wait
        if not wait:
            self._segments.clear()

    def _before_adding(self) -> None:
        if self._clear_next:
            self._segments.clear()
            self._clear_next = False

    def __iter__(self) -> Iterator[Segment]:
        return iter(self._segments)

    def __bool__(self) -> bool:
        return bool(self._segments)

    def copy(self) -> list[Segment]:
        """Segments that later output does not change."""
        return [s.copy() if isinstance(s, Text) else s for s in self._segments]


def _cut(line: str) -> str:
    if len(line) <= MAX_LINE_CHARS:
        return line
    newline = "\n" if line.endswith("\n") else ""
    return f"{line[: MAX_LINE_CHARS // 2]} … {line[-MAX_LINE_CHARS // 2 :].rstrip(chr(10))}{newline}"
