"""How one rank's output looks, by example."""

from __future__ import annotations

import time

import pytest

from jupyter_ddp.core.transcript import (
    HEAD_CHARS,
    HEAD_LINES,
    MAX_LINE_CHARS,
    TAIL_CHARS,
    TAIL_LINES,
    Rich,
    Text,
    Transcript,
)


def shown(transcript: Transcript) -> str:
    """All that is to be seen, in one string."""
    return "".join(s.head + s.tail if isinstance(s, Text) else str(s.data) for s in transcript)


def text_of(*pieces: str | bytes) -> str:
    """What one stream shows after these writes, where nothing is left out."""
    transcript = Transcript()
    for piece in pieces:
        transcript.write("stdout", "python", piece.encode() if isinstance(piece, str) else piece)
    transcript.finish()
    segments = list(transcript)
    if not segments:
        return ""
    (text,) = segments
    assert isinstance(text, Text)
    whole, omitted, rest = text.parts()
    assert (omitted, rest) == (0, "")
    return whole


def rich(text: str, display_id: str = "", result: bool = False) -> Rich:
    return Rich({"text/plain": text}, {}, display_id, result)


@pytest.mark.parametrize(
    ("written", "seen"),
    [
        ("", ""),
        ("a", "a"),
        ("a\n", "a\n"),
        ("a\n\nb", "a\n\nb"),
        ("10%\r20%\r30%", "30%"),
        ("10%\r20%\n", "20%\n"),
        ("long line\rno", "nong line"),
        ("done\r", "done"),
        ("done\r\n", "done\n"),
        ("\rstart", "start"),
        ("a\r\rb", "b"),
        ("-\b/\b|\b", ""),
        ("-\b/\b|", "|"),
        ("abc\b\b\bxyz", "xyz"),
        ("\b\ba", "a"),
        ("a\n\bb", "a\nb"),
        ("ab\r\bc", "cb"),
        ("abc\ry\r\bz", "zbc"),
        ("\x1b[31mred\x1b[0m\rplain", "plain"),
        ("longer\r\x1b[32mok\x1b[0m", "\x1b[32mok\x1b[0m"),
        ("tab\there", "tab\there"),
    ],
)
def test_control_characters_do_what_a_terminal_does(written: str, seen: str) -> None:
    """Returns start again over what is there, steps back take back, and a line with colours is replaced."""
    assert text_of(written) == seen
    assert text_of(*written) == seen  # a character at a time
    assert text_of(written + "\n") == seen + "\n"


def test_a_progress_bar_is_one_line() -> None:
    """A thousand redrawings of a bar, in writes of any size, show the last one."""
    bar = "".join(f"\r{step:4d}/1000 |{'█' * (step // 100):<10}|" for step in range(1001))
    assert text_of(bar) == "1000/1000 |██████████|"
    assert text_of(*[bar[at : at + 7] for at in range(0, len(bar), 7)]) == "1000/1000 |██████████|"


@pytest.mark.parametrize("width", [100, 3000, 5000])
def test_a_line_redrawn_shows_its_last_drawing(width: int) -> None:
    """However wide the line is, nothing of the drawing before shines through a full redrawing."""
    text = text_of("a" * width, "\r" + "b" * width, "\r" + "c" * width)
    drawn = text.replace(" … 904 characters not shown … ", "")
    assert set(drawn) == {"c"}
    assert len(drawn) == min(width, MAX_LINE_CHARS)


def test_many_steps_back_on_a_wide_line() -> None:
    """A line written, taken back to its start and written again shows the second writing only."""
    width = MAX_LINE_CHARS - 96
    assert text_of("a" * width, "\b" * width, "b" * 10) == "b" * 10


def test_steps_back_cost_time_in_proportion() -> None:
    """A long run of backspaces does not hold up whoever folds it: 20,000 take well under a second."""
    started = time.monotonic()
    assert text_of("x" * 20_000 + "\b" * 20_000 + "end\n") == "end\n"
    assert time.monotonic() - started < 1.0


@pytest.mark.parametrize("character", ["é", "€", "🎉", "\u0301"])
def test_a_character_split_between_writes(character: str) -> None:
    """A character whose bytes come in two writes, cut at any byte, is shown whole."""
    data = f"a{character}b".encode()
    for cut in range(len(data) + 1):
        assert text_of(data[:cut], data[cut:]) == f"a{character}b"


def test_a_character_that_never_ends() -> None:
    """Bytes that are no UTF-8, and a character cut off by the end, are shown as U+FFFD."""
    assert text_of(b"a\xffb") == "a\ufffdb"
    assert text_of("🎉".encode()[:2]) == "\ufffd"


def test_another_source_does_not_complete_a_character() -> None:
    """Half a character from Python and bytes of a subprocess do not become one character."""
    transcript = Transcript()
    transcript.write("stdout", "python", "é".encode()[:1])
    transcript.write("stdout", "fd", b"x")
    transcript.write("stdout", "python", "é".encode()[1:])
    assert shown(transcript) == "xé"


def test_finish_is_once() -> None:
    """A second end, as when a rank dies after its cell, adds nothing."""
    transcript = Transcript()
    transcript.write("stdout", "python", b"\xc3")
    transcript.finish()
    transcript.finish()
    assert shown(transcript) == "\ufffd"


def lines(count: int, text: str = "line") -> str:
    return "".join(f"{text} {n}\n" for n in range(count))


def only(transcript: Transcript) -> Text:
    (text,) = transcript
    assert isinstance(text, Text)
    return text


@pytest.mark.parametrize("chunk", [1, 64, 10**9])
def test_the_first_and_the_last_lines_are_shown(chunk: int) -> None:
    """Of too many lines the first hundred and the last hundred stay, and what is left out is counted."""
    transcript = Transcript()
    whole = lines(1000).encode()
    for at in range(0, len(whole), chunk):
        transcript.write("stdout", "python", whole[at : at + chunk])
    head, omitted, tail = only(transcript).parts()
    assert head.splitlines() == [f"line {n}" for n in range(HEAD_LINES)]
    assert tail.splitlines() == [f"line {n}" for n in range(1000 - TAIL_LINES, 1000)]
    assert omitted == 1000 - HEAD_LINES - TAIL_LINES
    assert only(transcript).omitted_chars == len(lines(1000)) - len(head) - len(tail)


@pytest.mark.parametrize(("count", "omitted"), [(200, 0), (201, 1)])
def test_nothing_is_left_out_before_it_must(count: int, omitted: int) -> None:
    """As many lines as fit are all shown; one more leaves out one."""
    transcript = Transcript()
    transcript.write("stdout", "python", lines(count).encode())
    head, left_out, tail = only(transcript).parts()
    assert left_out == omitted
    assert len((head + tail).splitlines()) == count - omitted


def test_wide_lines_are_bounded_by_characters() -> None:
    """Few but wide lines keep to the bound on characters at either end."""
    transcript = Transcript()
    transcript.write("stdout", "python", lines(100, "w" * 1000).encode())
    head, omitted, tail = only(transcript).parts()
    assert omitted > 0
    assert len(head) <= HEAD_CHARS
    assert len(tail) <= TAIL_CHARS
    assert len((head + tail).splitlines()) + omitted == 100


def test_an_endless_line_is_cut_in_its_middle() -> None:
    """A line without end keeps its first and last characters, and says how many are between them, whether
    it comes whole or bit by bit, with an end or without.
    """
    line = "<" + "x" * 1_000_000 + ">"
    seen = text_of(line)
    assert (seen[0], seen[-1]) == ("<", ">")
    half = MAX_LINE_CHARS // 2
    assert seen[half:-half] == " … 995,906 characters not shown … "
    assert len(line) == 995_906 + 2 * half
    assert text_of(*[line[at : at + 1000] for at in range(0, len(line), 1000)]) == seen
    assert text_of(line + "\n", "next") == f"{seen}\nnext"


@pytest.mark.parametrize("line", ["line {}", "\rold {}\rline {}"])
def test_a_flood_leaves_the_same_trail_however_it_comes(line: str) -> None:
    """Two ranks that print the same are seen to, whole or in pieces; one that prints another line is not."""
    text = "".join(line.format(n, n) + "\n" for n in range(3000))
    trails = set()
    for size in (len(text), 10_000, 7_777, 100):
        transcript = Transcript()
        for at in range(0, len(text), size):
            transcript.write("stdout", "python", text[at : at + size].encode())
        trails.add(transcript.trail.here)
    assert len(trails) == 1
    other = Transcript()
    other.write("stdout", "python", text.replace("line 1500", "line 1501").encode())
    assert other.trail.here not in trails
    assert other.trail.steps == 3000


def test_streams_that_alternate_are_bounded_too() -> None:
    """Lines to stdout and stderr by turns, without end, stay a display that a browser can hold."""
    transcript = Transcript()
    for number in range(20_000):
        transcript.write("stdout" if number % 2 else "stderr", "python", b"line %d\n" % number)
    segments = [s for s in transcript if isinstance(s, Text)]
    assert len(segments) <= 1000
    assert sum(len(s.head) + len(s.tail) for s in segments) <= 2 * (HEAD_CHARS + TAIL_CHARS)


def test_segments_keep_the_order_of_what_came() -> None:
    """Text of both streams and rich output stand in the order in which they came."""
    transcript = Transcript()
    transcript.write("stdout", "python", b"a")
    transcript.write("stderr", "python", b"b")
    transcript.display(rich("c"))
    transcript.write("stderr", "python", b"d")
    transcript.write("stderr", "fd", b"e")
    kinds = [s.stream if isinstance(s, Text) else "rich" for s in transcript]
    assert kinds == ["stdout", "stderr", "rich", "stderr"]
    assert [s.parts()[0] for s in transcript if isinstance(s, Text)] == ["a", "b", "de"]


def test_nothing_written_is_no_segment() -> None:
    """A transcript is false until there is something to see."""
    transcript = Transcript()
    assert not transcript
    transcript.write("stdout", "python", b"")
    transcript.write("stdout", "python", b"\xc3")  # half a character
    assert not transcript
    transcript.write("stdout", "python", b"\xa9")
    assert transcript


def test_clear_output_at_once() -> None:
    """clear_output() empties the display."""
    transcript = Transcript()
    transcript.write("stdout", "python", b"old")
    transcript.clear(wait=False)
    assert not transcript
    transcript.write("stdout", "python", b"new")
    assert shown(transcript) == "new"


@pytest.mark.parametrize("what", ["text", "rich"])
def test_clear_output_that_waits(what: str) -> None:
    """clear_output(wait=True) empties the display when the next output comes, and only once."""
    transcript = Transcript()
    transcript.write("stdout", "python", b"old")
    transcript.clear(wait=True)
    assert [s.parts()[0] for s in transcript if isinstance(s, Text)] == ["old"]
    for _ in range(2):
        if what == "text":
            transcript.write("stdout", "python", b"new")
        else:
            transcript.display(rich("new"))
    assert "old" not in shown(transcript)
    assert len(list(transcript)) == (1 if what == "text" else 2)


def test_a_clear_at_once_ends_one_that_waits() -> None:
    """After wait=True and then wait=False, what comes next is not cleared away."""
    transcript = Transcript()
    transcript.clear(wait=True)
    transcript.clear(wait=False)
    transcript.write("stdout", "python", b"a")
    transcript.display(rich("b"))
    assert len(list(transcript)) == 2


def test_update_replaces_what_has_the_same_id() -> None:
    """Every display under that id changes, others do not, and a result stays a result."""
    transcript = Transcript()
    for segment in (rich("1", "a"), rich("2", "b"), rich("3", "a", result=True)):
        transcript.display(segment)
    transcript.update(rich("new", "a"))
    segments = [s for s in transcript if isinstance(s, Rich)]
    assert [s.data["text/plain"] for s in segments] == ["new", "2", "new"]
    assert [s.result for s in segments] == [False, False, True]


def test_an_update_of_nothing_shows_nothing() -> None:
    """An id that was never displayed, or no id at all, changes nothing."""
    transcript = Transcript()
    transcript.display(rich("plain"))
    transcript.update(rich("new", "a"))
    transcript.update(rich("new", ""))
    assert [s.data["text/plain"] for s in transcript if isinstance(s, Rich)] == ["plain"]


def test_a_copy_stays_as_it_was() -> None:
    """Neither more text nor an update of a display reaches a copy made before."""
    transcript = Transcript()
    transcript.display(rich("old", "a"))
    transcript.write("stdout", "python", lines(300).encode() + b"open")
    copied = transcript.copy()
    before = [s.parts() if isinstance(s, Text) else dict(s.data) for s in copied]
    transcript.write("stdout", "python", b" line\n" + lines(300).encode())
    transcript.update(rich("new", "a"))
    transcript.clear(wait=False)
    assert [s.parts() if isinstance(s, Text) else dict(s.data) for s in copied] == before
