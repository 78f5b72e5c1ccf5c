"""What a running cell tells the browser: only what is new, within bounds, nothing twice and nothing lost."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from jupyter_ddp.core import messages as m
from jupyter_ddp.core.record import CellRecord
from jupyter_ddp.view.alike import BEHIND_S
from jupyter_ddp.view.news import MIN_SHARE, NewsReader, size_bytes, spans

ROOM = 1_000_000
PNG = "iVBORw0KGgo" * 20


def wrote(record: CellRecord, rank: int, text: str, stream: m.Stream = "stdout") -> None:
    record.fold(m.Output(rank, 1, 1, 0, stream, 0, text.encode()))


def displayed(record: CellRecord, rank: int, update: bool = False, **mime: str) -> None:
    data = json.dumps({name.replace("__", "/"): value for name, value in mime.items()})
    record.fold(m.Display(rank, 1, 1, 0, data, "{}", "d", update, False))


def ended(record: CellRecord, rank: int, error: m.CellError | None = None) -> None:
    record.fold(m.CellFinished(rank, 1, 1, 0, "error" if error else "ok", 0.1, False, error))


def pieces(message: dict[str, Any] | None, rank: int) -> list[list[Any]]:
    """What a message has for a rank."""
    found = []
    for told, _, some in (message or {}).get("entries", []):
        if any(a <= rank <= b for a, b in zip(told[::2], told[1::2], strict=True)):
            found += some
    return found


def test_only_what_is_new_is_told() -> None:
    """The first message has the first line and every rank's state, the next one the next line alone."""
    record = CellRecord(1, range(2))
    reader = NewsReader(record)
    wrote(record, 0, "one\n")
    first = reader.read(ROOM, ROOM)
    assert first is not None
    assert pieces(first, 0) == [["t", 0, 0, 0, ["one"], ""]]
    assert first["states"] == {"running": [0, 1]}
    assert first["groups"] == [[0, 0]]
    assert reader.read(ROOM, ROOM) is None
    wrote(record, 0, "two\nthr")
    assert reader.read(ROOM, ROOM) == {"n": 2, "entries": [[[0, 0], 0, [["t", 0, 0, 1, ["two"], "thr"]]]]}


def test_what_ranks_share_is_told_once() -> None:
    """A thousand ranks that write the same are one entry."""
    record = CellRecord(1, range(1000))
    reader = NewsReader(record)
    for rank in range(1000):
        wrote(record, rank, "the same\n")
    message = reader.read(ROOM, ROOM)
    assert message is not None
    assert message["entries"] == [[[0, 999], 0, [["t", 0, 0, 0, ["the same"], ""]]]]
    assert message["groups"] == [[0, 999]]
    assert size_bytes(message) < 300


def test_a_rank_that_is_a_line_ahead_is_in_the_group() -> None:
    """While a cell runs ranks are never quite level: they are the same as far as both have come."""
    record = CellRecord(1, range(3))
    reader = NewsReader(record)
    wrote(record, 0, "a\nb\n")
    wrote(record, 1, "a\n")
    wrote(record, 2, "x\n")
    message = reader.read(ROOM, ROOM)
    assert message is not None
    assert message["groups"] == [[0, 1], [2, 2]]


@pytest.mark.parametrize("n_ranks", [1, 64, 1024])
def test_a_message_is_bounded_and_every_rank_has_its_turn(n_ranks: int) -> None:
    """However much is written, a message stays near its room, and no rank waits for ever."""
    record = CellRecord(1, range(n_ranks))
    reader = NewsReader(record)
    told: set[int] = set()
    rounds = 0
    while len(told) < n_ranks:
        rounds += 1
        for rank in range(n_ranks):
            wrote(
                record,
                rank,
                "".join(f"rank {rank} round {rounds} line {i} \x1b[31m'\"é\n" for i in range(50)),
            )
        message = reader.read(40_000, 0)
        assert message is not None
        assert size_bytes(message) < 40_000 + 30 * n_ranks + 20 * MIN_SHARE
        told |= {rank for rank in range(n_ranks) if pieces(message, rank)}
        assert rounds < 20
    assert rounds == 1 or n_ranks == 1024


def test_what_was_cut_is_counted() -> None:
    """The last lines come, with their numbers: the browser sees how many it was not told."""
    record = CellRecord(1, range(1))
    reader = NewsReader(record)
    wrote(record, 0, "".join(f"line {i}\n" for i in range(10_000)))
    message = reader.read(1_000, 0)
    [[_, _, _, first, lines, _]] = pieces(message, 0)
    assert lines[-1] == "line 9999"
    assert lines[0] == f"line {first}"
    assert first + len(lines) == 10_000


def test_a_whole_has_head_and_tail() -> None:
    """Whoever comes late is told the first lines and the last, within bounds."""
    record = CellRecord(1, range(4))
    reader = NewsReader(record)
    for rank in range(4):
        wrote(record, rank, "".join(f"rank {rank} line {i}\n" for i in range(10_000)))
    whole = reader.whole(8_000)
    assert whole["whole"]
    assert whole["ranks"] == [0, 3]
    assert size_bytes(whole) < 9_000
    for rank in range(4):
        lines = [line for piece in pieces(whole, rank) for line in piece[4]]
        assert lines[0] == f"rank {rank} line 0"
        assert lines[-1] == f"rank {rank} line 9999"


def test_a_display_waits_for_room_and_is_not_lost() -> None:
    """A figure that does not fit is told when it does; an update meanwhile takes its place."""
    record = CellRecord(1, range(1))
    reader = NewsReader(record)
    displayed(record, 0, image__png=PNG)
    assert pieces(reader.read(ROOM, 100), 0) == []
    assert reader.behind
    displayed(record, 0, update=True, image__png=PNG + "AAAA")
    [[kind, number, drawn, content, *_]] = pieces(reader.read(ROOM, ROOM), 0)
    assert (kind, number, drawn) == ("r", 0, "image")
    assert content.endswith("AAAA")
    assert not reader.behind


def test_a_display_that_is_too_large_is_named() -> None:
    """What would fill the rate for seconds is left to the end of the cell."""
    record = CellRecord(1, range(1))
    displayed(record, 0, text__html="x" * 1_000_000, text__plain="<Map of\nthe world>")
    [piece] = pieces(NewsReader(record).read(ROOM, 10_000_000), 0)
    assert piece[:4] == ["r", 0, "later", "<Map of the world>"]


def test_a_failure_is_told_with_its_traceback_once() -> None:
    """Ranks that fail alike are one entry; a rank that was blocked is marked so."""
    record = CellRecord(1, range(3))
    reader = NewsReader(record)
    for rank in (0, 1):
        ended(record, rank, m.CellError("ValueError", "no", 3, ["line 3", "ValueError: no"]))
    record.settle(2, "interrupted", "blocked by rank 0")
    message = reader.read(ROOM, ROOM)
    assert pieces(message, 0) == [["e", "ValueError", "error", "line 3\nValueError: no", 0]]
    assert pieces(message, 2) == [["e", "blocked by rank 0", "blocked by rank 0", "", 1]]
    assert message is not None
    assert message["states"] == {"error": [0, 1], "interrupted": [2, 2]}
    assert message["groups"] == [[0, 1], [2, 2]]
    assert reader.read(ROOM, ROOM) is None


def test_a_rank_that_stays_behind_is_shown_by_itself() -> None:
    """What one rank alone has printed is not said to be identical for longer than a second."""
    record, now = CellRecord(1, range(4)), [100.0]
    reader = NewsReader(record, clock=lambda: now[0])
    for rank in range(4):
        wrote(record, rank, "same\n")
    wrote(record, 2, "alone\n")
    assert groups(reader) == [[0, 3]]
    now[0] += BEHIND_S / 2
    assert reader.read(ROOM, ROOM) is None
    wrote(record, 3, "alone\n")  # as one does that comes a little later
    assert reader.read(ROOM, ROOM) is not None
    now[0] += BEHIND_S / 2
    assert groups(reader) == [[0, 1], [2, 3]]
    assert reader.read(ROOM, ROOM) is None
    for rank in (0, 1):
        wrote(record, rank, "alone\n")
    assert groups(reader) == [[0, 3]]


def test_a_view_that_opens_meanwhile_does_not_keep_the_others_from_learning() -> None:
    """A whole that shows ranks apart is followed by a message that says so."""
    record, now = CellRecord(1, range(2)), [100.0]
    reader = NewsReader(record, clock=lambda: now[0])
    wrote(record, 0, "same\nalone\n")
    wrote(record, 1, "same\n")
    assert groups(reader) == [[0, 1]]
    now[0] += BEHIND_S
    assert reader.whole()["groups"] == [[0, 0], [1, 1]]
    assert groups(reader) == [[0, 0], [1, 1]]
    assert reader.read(ROOM, ROOM) is None


def test_a_rank_that_goes_on_is_not_behind_for_long() -> None:
    """In a loop one rank is always the last: it is with the others as long as it comes on."""
    record, now = CellRecord(1, range(2)), [100.0]
    reader = NewsReader(record, clock=lambda: now[0])
    wrote(record, 0, "0\n")
    for step in range(5):
        wrote(record, 0, f"{step + 1}\n")
        wrote(record, 1, f"{step}\n")
        message = reader.read(ROOM, ROOM)
        assert message is not None
        assert message.get("groups", [[0, 1]]) == [[0, 1]]
        now[0] += BEHIND_S * 0.9


def test_a_rank_that_has_ended_does_not_catch_up() -> None:
    """What it has shown is all it will show."""
    record = CellRecord(1, range(2))
    reader = NewsReader(record, clock=lambda: 100.0)
    for rank in range(2):
        wrote(record, rank, "same\n")
    wrote(record, 0, "alone\n")
    record.settle(1, "ok")
    assert groups(reader) == [[0, 0], [1, 1]]


def groups(reader: NewsReader) -> Any:
    message = reader.read(ROOM, ROOM)
    assert message is not None
    return message["groups"]


def test_notes_come_and_go() -> None:
    """A note that holds no more is gone with the next message."""
    record = CellRecord(1, range(2))
    reader = NewsReader(record)
    record.note(1, "rank 1 waits")
    message = reader.read(ROOM, ROOM)
    assert message is not None
    assert message["notes"] == ["note (rank 1): rank 1 waits"]
    record.take_back(1, "rank 1 waits")
    message = reader.read(ROOM, ROOM)
    assert message is not None
    assert message["notes"] == []


def test_a_dead_rank_comes_with_the_remedy() -> None:
    """What survived and what to type is told while the others still run, before there is an error's line."""
    record = CellRecord(1, range(3))
    reader = NewsReader(record)
    record.die(m.WorkerExited(1, 1, 9, 1, 3, "", 0))
    message = reader.read(ROOM, ROOM)
    assert message is not None
    assert message["notes"] == ["rank 1 died: ranks 0,2 keep all variables; %ddp heal replaces rank 1"]


def test_a_cleared_display_is_said_to_be() -> None:
    """clear_output() reaches the browser, with what came after it."""
    record = CellRecord(1, range(1))
    reader = NewsReader(record)
    wrote(record, 0, "old\n")
    reader.read(ROOM, ROOM)
    record.fold(m.ClearOutput(0, 1, 1, 0, False))
    wrote(record, 0, "new\n")
    message = reader.read(ROOM, ROOM)
    assert message is not None
    [[_, cleared, told]] = message["entries"]
    assert cleared == 1
    assert [piece[4] for piece in told] == [["new"]]


def test_a_rank_that_is_watched_is_told_more() -> None:
    """Who looks at one rank of a thousand sees more of it than its share."""
    record = CellRecord(1, range(1000))
    reader = NewsReader(record)
    reader.watched = {700}
    for rank in range(1000):
        wrote(record, rank, "".join(f"rank {rank} line {i}\n" for i in range(100)))
    message = reader.read(40_000, 0)
    lines: Callable[[int], int] = lambda rank: sum(len(piece[4]) for piece in pieces(message, rank))  # noqa: E731
    assert lines(700) == 100
    assert 0 < lines(0) < 10
    assert len([line for piece in pieces(reader.of_rank(3), 3) for line in piece[4]]) == 100


@pytest.mark.parametrize(
    ("ranks", "expected"), [([], []), ([0], [0, 0]), ([0, 1, 2, 5], [0, 2, 5, 5]), ([3, 5], [3, 3, 5, 5])]
)
def test_spans(ranks: list[int], expected: list[int]) -> None:
    """First and last of each run."""
    assert spans(ranks) == expected
