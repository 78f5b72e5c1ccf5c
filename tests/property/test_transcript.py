"""How output looks, for every output and every way that it arrives."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from jupyter_ddp.core import transcript as module
from jupyter_ddp.core.transcript import Text, Transcript

TERMINAL = st.text(alphabet="ab\r\b\n é🎉", max_size=60)
COLOURED = st.lists(st.sampled_from(["a", "bc", "\r", "\n", "é", "\x1b[31m", "\x1b[0m"]), max_size=30)
STREAMS = st.sampled_from(["stdout", "stderr"])


@pytest.fixture(scope="module", autouse=True)
def _small_limits() -> Iterator[None]:
    """So that Hypothesis reaches every bound with little text."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "HEAD_LINES", 3)
        patch.setattr(module, "TAIL_LINES", 4)
        patch.setattr(module, "HEAD_CHARS", 200)
        patch.setattr(module, "TAIL_CHARS", 250)
        patch.setattr(module, "MAX_LINE_CHARS", 80)
        yield


def seen(writes: list[bytes]) -> list[tuple[str, tuple[str, int, str]]]:
    """Everything that is shown after these writes to one stream."""
    transcript = Transcript()
    for data in writes:
        transcript.write("stdout", "python", data)
    transcript.finish()
    return [(s.stream, s.parts()) for s in transcript if isinstance(s, Text)]


def pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    places = sorted(cut % (len(data) + 1) for cut in cuts)
    return [data[a:b] for a, b in zip([0, *places], [*places, len(data)], strict=True)]


CUTS = st.lists(st.integers(0, 10**6), max_size=12)


@given(TERMINAL | COLOURED.map("".join), CUTS)
@example("abc\ry\r\bz\n", [9])
@example("header" + "\rx" * 250, [306])
def test_how_output_is_split_does_not_show(text: str, cuts: list[int]) -> None:
    """The same bytes, cut anywhere, give the same display."""
    data = text.encode()
    assert seen(pieces(data, cuts)) == seen([data])


@given(st.binary(max_size=60), CUTS)
def test_bytes_that_are_no_text_are_split_alike(data: bytes, cuts: list[int]) -> None:
    """Also what is no UTF-8 shows the same however it is cut."""
    assert seen(pieces(data, cuts)) == seen([data])


@given(st.text(alphabet="ab\n", max_size=400), CUTS)
def test_wide_lines_are_split_alike(text: str, cuts: list[int]) -> None:
    """Lines beyond the bound on their width are cut to the same ends however they arrive."""
    data = text.replace("a", "0123456789").encode()
    assert seen(pieces(data, cuts)) == seen([data])


@given(st.text(alphabet="ab", max_size=400), CUTS)
def test_what_is_missing_of_a_wide_line_is_counted(text: str, cuts: list[int]) -> None:
    """What is shown of a line and what is said to be missing are the line."""
    line = text.replace("a", "0123456789")
    shown = "".join(
        part for _, parts in seen(pieces(line.encode(), cuts)) for part in parts if isinstance(part, str)
    )
    gap = re.search(r" … ([\d,]+) characters? not shown … ", shown)
    missing = int(gap[1]) if gap else 0
    assert len(line) == len(shown) - len(gap[0] if gap else "") + missing
    assert bool(gap) == (len(line) > module.MAX_LINE_CHARS)


def terminal(line: str) -> str:
    """A model: a return starts over what is there, a step back takes back what came since."""
    shown = ""
    for piece in line.split("\r"):
        kept: list[str] = []
        for character in piece:
            if character != "\b":
                kept.append(character)
            elif kept:
                kept.pop()
        shown = "".join(kept) + shown[len(kept) :]
    return shown


@given(st.text(alphabet="abc\r\b", max_size=40))
@example("ab\r\bc")
def test_a_line_looks_as_on_the_model_terminal(line: str) -> None:
    """Returns and steps back agree with a model of a dozen lines."""
    parts = seen([line.encode()])
    assert "".join(head for _, (head, _, _) in parts) == terminal(line)


@given(st.lists(st.text(alphabet="xy", max_size=100), max_size=40), CUTS)
def test_no_line_is_lost_without_being_counted(lines: list[str], cuts: list[int]) -> None:
    """Lines shown and lines counted as left out add up, and both ends keep to their bounds."""
    data = "".join(line + "\n" for line in lines).encode()
    for _, (head, omitted, tail) in seen(pieces(data, cuts)):
        assert head.count("\n") + omitted + tail.count("\n") == len(lines)
        if omitted:
            assert len(head) <= module.HEAD_CHARS
            assert head.count("\n") <= module.HEAD_LINES
            assert len(tail) <= module.TAIL_CHARS
            assert tail.count("\n") <= module.TAIL_LINES


@given(st.lists(st.text(alphabet="xyz", max_size=30), max_size=40))
def test_what_is_shown_is_the_beginning_and_the_end(lines: list[str]) -> None:
    """Of lines that are not too wide, the head is a prefix and the tail a suffix of what was written."""
    whole = "".join(line + "\n" for line in lines)
    for _, (head, omitted, tail) in seen([whole.encode()]):
        assert whole.startswith(head)
        assert whole.endswith(tail)
        assert omitted or head == whole


@given(st.lists(st.tuples(STREAMS, st.text(alphabet="a\n\r", min_size=1, max_size=8)), max_size=20))
def test_neighbours_of_one_stream_are_one_segment(writes: list[tuple[str, str]]) -> None:
    """Segments alternate between streams: a new one begins only when the stream changes."""
    transcript = Transcript()
    for stream, text in writes:
        transcript.write(stream, "python", text.encode())  # type: ignore[arg-type]
    streams = [s.stream for s in transcript if isinstance(s, Text)]
    assert all(a != b for a, b in pairwise(streams))
