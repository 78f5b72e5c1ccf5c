"""A cell's output as plain text."""

from textwrap import dedent

import pytest

from jupyter_ddp.core.messages import CellError, Stream
from jupyter_ddp.core.rank_record import RankSnapshot
from jupyter_ddp.core.record import Snapshot
from jupyter_ddp.core.transcript import Rich, Segment, Text
from jupyter_ddp.core.verdicts import Verdict
from jupyter_ddp.view.text import text


def written(text: str, stream: Stream = "stdout") -> Text:
    run = Text(stream)
    run.append(text)
    return run


def rank(
    number: int,
    *segments: Segment,
    verdict: Verdict | None = "ok",
    error: CellError | None = None,
    death: str = "",
    notices: tuple[str, ...] = (),
) -> RankSnapshot:
    return RankSnapshot(number, verdict, list(segments), error, death, notices)


def shown(*ranks: RankSnapshot) -> str:
    return text(Snapshot(list(ranks)))


def test_identical_output_once() -> None:
    """Four ranks that print the same are one group."""
    assert shown(*(rank(n, written("hello\n")) for n in range(4))) == "[ranks 0–3 · identical]\nhello"


def test_one_rank() -> None:
    """A cell on one rank names it, and compares it with nobody."""
    assert shown(rank(2, written("hello\n"))) == "[rank 2]\nhello"


def test_a_cell_that_failed() -> None:
    """Who failed of itself first, deaths before errors; then who was not stopped by that, by rank."""
    error = CellError("ZeroDivisionError", "by zero", 5, ["\x1b[31mTraceback\x1b[0m", "\x1b[1mZero…"])
    blocked = "blocked by rank 2"
    assert shown(
        rank(0, written("a\n"), written("careful\n", "stderr"), verdict="interrupted", death=blocked),
        rank(1, verdict="interrupted", death=blocked),
        rank(2, written("a\n"), verdict="error", error=error),
        rank(3, written("last words"), verdict="died", death="killed by SIGKILL (line 5)"),
        rank(4, verdict="not-run"),
        rank(5, verdict="interrupted"),
        rank(6, notices=("the group was restored",)),
        rank(7),
        rank(8),
    ) == dedent("""\
        [rank 3 · died]
        last words
        ☠ rank 3: killed by SIGKILL (line 5)
        [rank 2 · ZeroDivisionError]
        a
        Traceback
        Zero…
        [rank 5] interrupted
        [rank 0 · blocked by rank 2]
        a
        careful
        [rank 1] blocked by rank 2
        [rank 4] not run
        [ranks 6–8] no output
        note (rank 6): the group was restored""")


def test_a_failed_rank_stands_above_those_that_ended_well() -> None:
    """However many they are; of several causes the first one first."""
    errors = {n: CellError("ValueError", f"{n}", 5, []) for n in (7, 8)}
    ranks = [
        rank(n, written(f"{n}\n"), verdict="error" if n in errors else "ok", error=errors.get(n))
        for n in range(9)
    ]
    lines = text(Snapshot(ranks, causes=(8, 7))).split("\n")
    assert lines[:6] == [
        "[rank 8 · ValueError]",
        "8",
        "ValueError: 8",
        "[rank 7 · ValueError]",
        "7",
        "ValueError: 7",
    ]
    assert lines[6] == "[rank 0]"


def test_a_line_without_its_middle_is_no_identical_line() -> None:
    """The ranks show the same; what they do not show is anyone's guess."""
    out = shown(*(rank(n, written("x" * 5000 + "\n")) for n in range(2)))
    assert out.startswith("[ranks 0–1 · identical where shown]\nxxx")
    assert " … 904 characters not shown … " in out


def test_identical_errors_once() -> None:
    """The same exception everywhere is one traceback; without a traceback, the exception itself."""
    error = CellError("SystemExit", "3", 0, [])
    assert shown(*(rank(n, verdict="error", error=error) for n in range(4))) == (
        "[ranks 0–3 · SystemExit · identical]\nSystemExit: 3"
    )


def test_tracebacks_of_one_place_once() -> None:
    """Ranks that wrote different things and failed at one line: its lines once, what was raised each time."""
    place = ["Traceback", "----> 3 table[rank]"]
    errors = [CellError("KeyError", str(n), 3, [*place, f"KeyError: {n}"]) for n in range(2)]
    other = CellError("KeyError", "0", 4, ["Traceback", "----> 4 names[rank]", "KeyError: 0"])
    failed = [
        rank(n, written(f"{n}\n"), verdict="error", error=e)
        for n, e in enumerate([*errors, errors[0], other])
    ]
    assert shown(*failed) == dedent("""\
        [rank 0 · KeyError]
        0
        Traceback
        ----> 3 table[rank]
        KeyError: 0
        [rank 1 · KeyError]
        1
        KeyError: 1  (traceback as on rank 0)
        [rank 2 · KeyError]
        2
        KeyError: 0  (traceback as on rank 0)
        [rank 3 · KeyError]
        3
        Traceback
        ----> 4 names[rank]
        KeyError: 0""")


@pytest.mark.parametrize(("lines", "words"), [(1434, "… 1,234 lines not shown"), (201, "… 1 line not shown")])
def test_lines_left_out_are_counted(lines: int, words: str) -> None:
    """Head and tail, and between them how many lines there were."""
    out = shown(rank(0, written("".join(f"line {n}\n" for n in range(lines))))).split("\n")
    assert out[100:103] == ["line 99", words, f"line {lines - 100}"]
    assert out[-2] == f"line {lines - 1}"
    assert out[-1].endswith("%ddp log writes all of the text to a file.")


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ({"text/plain": "tensor([1.])", "text/html": "<b>1</b>"}, "tensor([1.])"),
        ({"text/plain": ["a\n", "b"]}, "a\nb"),
        ({"image/png": "QQ==", "text/html": "x"}, "<image/png, text/html>"),
        ({"text/plain": "\x1b[31mred\x1b[0m"}, "red"),
    ],
)
def test_values_by_their_plain_text(data: dict[str, object], expected: str) -> None:
    """A value without text/plain is named by what it is."""
    assert shown(rank(0, Rich(data, {}, "", True))) == f"[rank 0]\n{expected}"


def test_pieces_start_on_lines_of_their_own() -> None:
    """What lacks a newline at its end does not run into the next piece; blank lines stay."""
    assert shown(rank(0, written("10%", "stderr"), written("\nloss\n\n"), written("b", "stderr"))) == (
        "[rank 0]\n10%\n\nloss\n\nb"
    )


def test_nothing_to_show_is_no_text() -> None:
    """Ranks that ended well in silence, or wrote only control characters, are not listed."""
    assert shown(rank(0), rank(1, written("\x00\x1b[K"))) == ""


def test_silence_where_another_rank_spoke() -> None:
    """One closing line for all silent ranks."""
    assert shown(rank(0), rank(1, written("\x00")), rank(2, written("a\n"))) == (
        "[rank 2]\na\n[ranks 0–1] no output"
    )


def test_a_running_cell() -> None:
    """A rank that has not ended and not spoken is running."""
    running = rank(0, written("a\n"), verdict=None), rank(1, verdict=None)
    assert shown(*running) == "[rank 0]\na\n[rank 1] running"


def test_a_thousand_different_ranks_stay_below_a_megabyte() -> None:
    """Each is there with less of its text, and what is missing is said."""
    out = shown(*(rank(n, written(f"rank {n} line\n" * 1000)) for n in range(1024)))
    assert len(out) < 1_000_000
    assert all(f"[rank {n}]\nrank {n} line\n" in out for n in range(1024))
    assert out.endswith("Shortened to keep the notebook small; %ddp log writes all of the text to a file.")
