"""One cell's record, by example."""

from __future__ import annotations

import errno
import io
import itertools
import json
from typing import Any, NoReturn

import msgspec
import pytest

from jupyter_ddp.core import messages as m
from jupyter_ddp.core.record import CellRecord, RankError
from jupyter_ddp.core.transcript import Rich, Text

GENERATION = 1


class Ranks:
    """Says things for ranks, with the sequence numbers they would have."""

    def __init__(self, cell: int = 1) -> None:
        self.cell = cell
        self._seq: dict[tuple[int, bool], int] = {}

    def _next(self, rank: int, agent: bool = False) -> int:
        number = self._seq[rank, agent] = self._seq.get((rank, agent), -1) + 1
        return number

    def _from(self, rank: int) -> tuple[int, int, int, int]:
        return rank, GENERATION, self.cell, self._next(rank)

    def prints(self, rank: int, text: str, stream: m.Stream = "stdout") -> m.Output:
        return m.Output(*self._from(rank), stream, 0, text.encode())

    def fd_prints(self, rank: int, data: bytes, stream: m.Stream = "stdout") -> m.FdOutput:
        return m.FdOutput(rank, self.cell, self._next(rank, agent=True), stream, data)

    def displays(self, rank: int, text: str, **options: Any) -> m.Display:
        data = json.dumps({"text/plain": text})
        return m.Display(*self._from(rank), data, '{"isolated": true}', **options)

    def clears(self, rank: int, wait: bool) -> m.ClearOutput:
        return m.ClearOutput(*self._from(rank), wait)

    def notes(self, rank: int, text: str) -> m.Notice:
        return m.Notice(*self._from(rank), text)

    def ends(self, rank: int, verdict: Any = "ok") -> m.CellFinished:
        return m.CellFinished(*self._from(rank), verdict, 0.25)

    def is_freed(self, rank: int, line: int = 0) -> m.CellFinished:
        error = m.CellError("KeyboardInterrupt", "", line, [])
        return m.CellFinished(*self._from(rank), "interrupted", 0.5, group_broken=True, error=error)

    def fails(
        self, rank: int, ename: str, evalue: str = "", line: int = 0, after_s: float = 0.5
    ) -> m.CellFinished:
        error = m.CellError(ename, evalue, line, [f"{ename}: {evalue}"])
        return m.CellFinished(*self._from(rank), "error", after_s, error=error)


def died(rank: int, status: int = 9, line: int = 0) -> m.WorkerExited:
    return m.WorkerExited(rank, 100 + rank, status, 1, line, "", 0)


@pytest.fixture
def ranks() -> Ranks:
    return Ranks()


@pytest.fixture
def record() -> CellRecord:
    return CellRecord(1, [0, 1, 2, 3])


def test_a_new_record_is_running_everywhere(record: CellRecord) -> None:
    """Before any message there is a part for each rank, in rank order, without a verdict."""
    assert CellRecord(1, [3, 1]).ranks == (1, 3)
    assert [r.rank for r in record] == [0, 1, 2, 3]
    assert record.verdicts == {0: None, 1: None, 2: None, 3: None}
    assert not record.ok
    assert len(record) == 4
    assert repr(record) == "<cell 1: ranks 0–3 running>"
    assert repr(record[2]) == "<rank 2: running>"
    assert record.silent


def test_a_record_of_success(record: CellRecord, ranks: Ranks) -> None:
    """When every rank ended well the record is ok, says so, and raises nothing."""
    for rank in record.ranks:
        record.fold(ranks.ends(rank))
    assert record.ok
    assert record[1].duration_s == 0.25
    assert repr(record) == "<cell 1: ranks 0–3 ok>"
    assert record.summary() == ""
    record.raise_for_error()


def test_output_of_both_kinds_is_kept_whole(record: CellRecord, ranks: Ranks) -> None:
    """stdout is what Python and what C code wrote, in order; stderr is apart; ranks are apart."""
    record.fold(ranks.prints(0, "python "))
    record.fold(ranks.fd_prints(0, b"c "))
    record.fold(ranks.prints(0, "oops", "stderr"))
    record.fold(ranks.prints(0, "again"))
    record.fold(ranks.prints(1, "other"))
    assert record[0].stdout == "python c again"
    assert record[0].stderr == "oops"
    assert record[1].stdout == "other"
    assert record[2].stdout == ""


def test_what_the_display_leaves_out_the_record_keeps(record: CellRecord, ranks: Ranks) -> None:
    """A thousand lines and a cleared display shorten what is shown, not what the rank wrote."""
    whole = "".join(f"line {n}\n" for n in range(1000))
    record.fold(ranks.prints(0, whole))
    (text,) = record.snapshot().ranks[0].segments
    assert isinstance(text, Text)
    assert text.parts()[1] == 800
    record.fold(ranks.clears(0, wait=False))
    assert record.snapshot().ranks[0].segments == []
    assert record[0].stdout == whole


def test_bytes_that_are_no_text_read_as_replacement_characters(record: CellRecord, ranks: Ranks) -> None:
    """A subprocess may write anything: reading it as text never fails."""
    record.fold(ranks.fd_prints(0, b"a\xffb"))
    assert record[0].stdout == "a\ufffdb"


def test_the_last_expression_is_the_value(record: CellRecord, ranks: Ranks) -> None:
    """A result is shown like a display and is also the rank's value; a display is not."""
    record.fold(ranks.displays(0, "figure"))
    assert record[0].value is None
    record.fold(ranks.displays(0, "42", result=True))
    value = record[0].value
    assert value is not None
    assert (value.text, repr(value)) == ("42", "42")
    assert value._repr_mimebundle_() == ({"text/plain": "42"}, {"isolated": True})
    segments = [s for s in record.snapshot().ranks[0].segments if isinstance(s, Rich)]
    assert [(s.data["text/plain"], s.result) for s in segments] == [("figure", False), ("42", True)]


def test_an_update_changes_what_was_displayed(record: CellRecord, ranks: Ranks) -> None:
    """update_display() on a rank changes that rank's display under the id, and no other rank's."""
    for rank in (0, 1):
        record.fold(ranks.displays(rank, "old", display_id="d"))
    record.fold(ranks.displays(0, "new", display_id="d", update=True))
    texts = [s.data["text/plain"] for r in record.snapshot().ranks for s in r.segments if isinstance(s, Rich)]
    assert texts == ["new", "old"]


def test_a_later_cell_updates_what_was_displayed(record: CellRecord, ranks: Ranks) -> None:
    """It counts as a change of that rank; where nothing is under the id, nothing changes."""
    record.fold(ranks.displays(0, "old", display_id="d"))
    before = record.version
    later = ranks.displays(0, "new", display_id="d", update=True)
    for other in (
        ranks.displays(0, "x", display_id="e", update=True),
        msgspec.structs.replace(later, rank=9),
    ):
        assert not record.update_display(other)
    assert record.version == before
    assert record.displays(0, "d")
    assert not record.displays(1, "d")
    assert not record.displays(9, "d")
    assert record.update_display(later)
    assert record.version > before
    texts = [s.data["text/plain"] for s in record.snapshot().ranks[0].segments if isinstance(s, Rich)]
    assert texts == ["new"]


def test_a_notice_is_said_once(record: CellRecord, ranks: Ranks) -> None:
    """The same notice, however often a rank gives it, is one line."""
    for text in ("mind", "mind", "also"):
        record.fold(ranks.notes(0, text))
    assert record[0].notices == ["mind", "also"]
    assert not record.silent


def test_a_rank_that_the_cell_is_not_for_is_left_out(ranks: Ranks) -> None:
    """Output of a rank outside the targets changes nothing, not even the version."""
    record = CellRecord(1, [0])
    record.fold(ranks.prints(3, "x"))
    assert record.version == 0
    assert record.ranks == (0,)


def test_an_error_raises_with_its_cause(record: CellRecord, ranks: Ranks) -> None:
    """One rank's exception is one line that names the rank, the exception and the cell's line, and carries
    the record."""
    for rank in (0, 1, 3):
        record.fold(ranks.ends(rank))
    record.fold(ranks.fails(2, "ZeroDivisionError", "division by zero", line=5))
    with pytest.raises(RankError) as caught:
        record.raise_for_error()
    assert str(caught.value) == "rank 2: ZeroDivisionError: division by zero (line 5)"
    assert caught.value.record is record
    assert record.verdicts == {0: "ok", 1: "ok", 2: "error", 3: "ok"}
    assert repr(record) == "<cell 1: ranks 0–1,3 ok, rank 2 error>"


def test_the_same_error_everywhere_is_told_once(record: CellRecord, ranks: Ranks) -> None:
    """Ranks with the same cause share one clause."""
    for rank in record.ranks:
        record.fold(ranks.fails(rank, "ValueError", "no\nsecond line", line=1))
    assert record.summary() == "ranks 0-3: ValueError: no (line 1)"


@pytest.mark.parametrize(
    ("evalue", "words"),
    [
        ("", "E"),
        ("  \n  ", "E"),
        ("\n\nfirst\nsecond", "E: first"),
        ("windows\r\nlines", "E: windows"),
        ("x" * 1000, "E: " + "x" * 297),
    ],
)
def test_an_error_in_one_short_line(record: CellRecord, ranks: Ranks, evalue: str, words: str) -> None:
    """Whatever the exception says, the summary is its first line, and not too long."""
    record.fold(ranks.fails(0, "E", evalue))
    assert record.summary().split("; ")[0] == f"rank 0: {words}"


def test_every_kind_of_end_has_words(record: CellRecord, ranks: Ranks) -> None:
    """Death, interruption, a cell that was never run and a rank without an answer are told apart."""
    record.die(died(0, line=3))
    record.fold(ranks.ends(1, "interrupted"))
    record.settle(2, "not-run")
    record.settle(3, "unknown", "the connection to its node was lost")
    assert record.verdicts == {0: "died", 1: "interrupted", 2: "not-run", 3: "unknown"}
    first, *rest = record.summary().split("; ")
    assert first == "rank 0: killed by SIGKILL (line 3)"
    assert set(rest) == {
        "rank 1: interrupted",
        "rank 2 failed too",
        "rank 3: the connection to its node was lost",
        "%ddp heal replaces rank 0, the others keep their variables",
    }
    assert record[0].death == "killed by SIGKILL (line 3)"


def test_the_first_death_comes_first(record: CellRecord, ranks: Ranks) -> None:
    """Gloo may end ranks seconds after one was killed."""
    record.die(died(0, status=6), 15.0)
    record.die(died(3), 10.0)
    record.die(died(2), 10.5)
    assert record.summary().startswith("ranks 2-3: killed by SIGKILL; rank 0: killed by SIGABRT")


def test_where_all_died_nothing_is_kept(record: CellRecord) -> None:
    """There are no others whose variables could be."""
    for rank in range(4):
        record.die(died(rank))
    assert record.summary() == "ranks 0-3: killed by SIGKILL; %ddp heal replaces ranks 0-3"


def test_a_rank_that_is_freed_from_a_wait(record: CellRecord, ranks: Ranks) -> None:
    """For whom it waited is known at the cell's end; until then it is not said to have been interrupted."""
    for rank in (0, 1):
        record.fold(ranks.is_freed(rank, line=4))
        assert record[rank].death == "freed from its wait (line 4)"
    record.settle(0, "interrupted", "blocked by rank 2")
    record.conclude()
    assert record.failure_of(0) == "blocked by rank 2 (line 4)"
    assert record.failure_of(1) == "interrupted (line 4)"


def test_a_cell_that_would_have_hung(record: CellRecord, ranks: Ranks) -> None:
    """That is the reason of those that have no other."""
    record.fold(ranks.is_freed(0, line=4))
    record.fold(ranks.is_freed(1, line=5))
    record.settle(1, "interrupted", "blocked by rank 2")
    record.conclude("rank 2 has not come")
    assert record.failure_of(0) == "rank 2 has not come"
    assert record.failure_of(1) == "blocked by rank 2 (line 5)"


def test_a_rank_that_still_runs_gave_no_answer(record: CellRecord, ranks: Ranks) -> None:
    """A summary made before the end names the ranks that have not answered."""
    record.fold(ranks.ends(0))
    assert record.summary() == "ranks 1-3: no answer"


def test_the_first_cause_comes_first(record: CellRecord, ranks: Ranks) -> None:
    """The rank that failed first leads the line, also when its rank is not the lowest, and is heard last."""
    record.fold(ranks.fails(0, "RuntimeError", "Connection closed by peer", after_s=5.1))
    record.fold(ranks.fails(2, "ZeroDivisionError", "division by zero", after_s=0.1))
    record.fold(ranks.ends(1))
    record.fold(ranks.ends(3))
    assert record.summary() == (
        "rank 2: ZeroDivisionError: division by zero; rank 0: RuntimeError: Connection closed by peer"
    )
    assert record.snapshot().causes == (2, 0)


@pytest.mark.parametrize("order", list(itertools.permutations((0, 1, 3))))
def test_causes_at_once_are_in_the_order_of_ranks(
    record: CellRecord, ranks: Ranks, order: tuple[int, ...]
) -> None:
    """Which of them was first is chance, and a saved notebook must not tell runs apart by it."""
    for at, rank in enumerate(order):
        record.fold(ranks.fails(rank, f"Error{rank}", after_s=2 + at * 0.3))
    record.fold(ranks.fails(2, "Late", after_s=3.7))
    assert record.summary() == "rank 0: Error0; rank 1: Error1; rank 3: Error3; rank 2 failed too"


def test_a_death_comes_before_the_errors_it_caused(record: CellRecord, ranks: Ranks) -> None:
    """Neighbours may notice a death before it is reported: the death still leads the line."""
    record.fold(ranks.fails(0, "RuntimeError", "Connection closed by peer"))
    record.die(died(2, line=4))
    assert record.summary().startswith("rank 2: killed by SIGKILL (line 4); rank 0: RuntimeError")


def test_half_a_character_is_shown_at_the_end(record: CellRecord, ranks: Ranks) -> None:
    """When a rank ends in the middle of a character, the display shows that something was there."""
    record.fold(ranks.fd_prints(0, b"a\xf0\x9f"))
    record.die(died(0))
    (text,) = record.snapshot().ranks[0].segments
    assert isinstance(text, Text)
    assert text.parts()[0] == "a\ufffd"


def test_messages_in_order_are_none_lost(record: CellRecord, ranks: Ranks) -> None:
    """The rank's own numbers and the agent's numbers for the same rank are counted apart."""
    for message in (ranks.prints(0, "a"), ranks.fd_prints(0, b"b"), ranks.prints(0, "c"), ranks.ends(0)):
        record.fold(message)
    assert record[0].lost_messages == 0


def test_missing_messages_are_counted(record: CellRecord, ranks: Ranks) -> None:
    """A gap in a rank's numbers is what was lost, on that rank only, and is counted once."""
    record.fold(ranks.prints(0, "a"))
    ranks.prints(0, "lost")
    ranks.prints(0, "lost")
    record.fold(ranks.prints(0, "b"))
    record.fold(ranks.prints(0, "c"))
    record.fold(ranks.prints(1, "x"))
    assert record[0].lost_messages == 2
    assert record[1].lost_messages == 0


def test_a_cell_may_begin_at_any_number(record: CellRecord) -> None:
    """A rank counts over all its cells, so a cell's first number is taken as it is."""
    record.fold(m.Output(0, 1, 1, 4711, "stdout", 0, b"x"))
    record.fold(m.Output(0, 1, 1, 4712, "stdout", 1, b"y"))
    assert record[0].lost_messages == 0


def test_the_version_counts_what_was_folded(record: CellRecord, ranks: Ranks) -> None:
    """Every change raises the version, and reading does not: a view may skip what it has seen."""
    record.fold(ranks.prints(0, "a"))
    record.die(died(1))
    record.settle(2, "not-run")
    assert record.version == 3
    record.snapshot()
    _ = record.summary(), record[0].stdout
    assert record.version == 3


def test_a_snapshot_stays_as_it_was(record: CellRecord, ranks: Ranks) -> None:
    """Text, displays, notices and verdicts of a snapshot do not change when the record grows."""

    def drawn(rank: Any) -> Any:
        texts = [s.parts() if isinstance(s, Text) else str(s.data) for s in rank.segments]
        return rank.verdict, texts, rank.error, rank.death, rank.notices

    record.fold(ranks.displays(0, "old", display_id="d"))
    record.fold(ranks.prints(0, "text"))
    snapshot = record.snapshot()
    before = [drawn(r) for r in snapshot.ranks]
    record.fold(ranks.prints(0, " and more\n" * 500))
    record.fold(ranks.displays(0, "new", display_id="d", update=True))
    record.fold(ranks.notes(0, "mind"))
    record.fold(ranks.fails(0, "E"))
    record.die(died(1))
    assert [drawn(r) for r in snapshot.ranks] == before
    assert [drawn(r) for r in record.snapshot().ranks] != before


@pytest.mark.parametrize("kind", ["output", "display", "error", "death", "notice"])
def test_what_breaks_the_silence(record: CellRecord, ranks: Ranks, kind: str) -> None:
    """A cell is silent until there is anything to show, and a good end is nothing to show."""
    record.fold(ranks.ends(3))
    assert record.silent
    if kind == "death":
        record.die(died(0))
    else:
        said: dict[str, m.CellMessage] = {
            "output": ranks.prints(0, "x"),
            "display": ranks.displays(0, "x"),
            "error": ranks.fails(0, "E"),
            "notice": ranks.notes(0, "x"),
        }
        record.fold(said[kind])
    assert not record.silent


def test_a_closed_record_keeps_its_verdicts_and_reads_as_empty(record: CellRecord, ranks: Ranks) -> None:
    """After close the log is gone and streams read as empty; verdicts and values stay."""
    record.fold(ranks.prints(0, "x"))
    record.fold(ranks.displays(0, "42", result=True))
    record.fold(ranks.ends(0))
    record.close()
    assert record[0].stdout == ""
    assert record[0].verdict == "ok"
    assert str(record[0].value) == "42"


class SingleEntryLock:
    """A lock that can be held once, as threading.Lock, but fails where that would hang."""

    def __init__(self) -> None:
        self.held = False
        self.entries = 0

    def __enter__(self) -> None:
        assert not self.held, "would deadlock"
        self.held, self.entries = True, self.entries + 1

    def __exit__(self, *_: object) -> None:
        self.held = False


def test_every_change_and_every_reading_of_output_holds_the_lock(ranks: Ranks) -> None:
    """The I/O thread folds while the notebook's thread reads: both take the lock, and never twice."""
    lock = SingleEntryLock()

    class CheckedFile(io.BytesIO):
        def write(self, data: Any) -> int:
            assert lock.held
            return super().write(data)

        def read(self, size: int | None = -1) -> bytes:
            assert lock.held
            return super().read(size)

    record = CellRecord(1, [0, 1, 2], CheckedFile, lock)  # type: ignore[arg-type]
    steps = [
        lambda: record.fold(ranks.prints(0, "x")),
        lambda: record[0].stdout,
        lambda: record[0].stderr,
        record.snapshot,
        lambda: record.fold(ranks.fails(0, "E")),
        lambda: record.die(died(1)),
        lambda: record.settle(2, "not-run"),
        record.close,
    ]
    for step in steps:
        before = lock.entries
        step()
        assert lock.entries == before + 1
        assert not lock.held
    assert "rank 0: E" in record.summary()


def test_beyond_the_quota_the_text_says_what_is_missing() -> None:
    """Head and tail with a line between them; a note says so once."""
    record = CellRecord(1, [0], quota_bytes=10)
    for piece in (b"abcde", b"fghij", b"klmno"):
        record.fold(m.Output(0, 1, 1, 0, "stdout", 0, piece))
    assert record[0].stdout == "abcde\n… 5 bytes were not kept …\nklmno"
    assert record[0].notices == ["the cell's log is full (10 bytes): head and tail are kept"]


def test_without_a_file_the_text_is_kept_in_memory() -> None:
    """The note names the error and what is kept."""

    def refuse() -> NoReturn:
        raise OSError(errno.ENOSPC, "No space left on device")

    record = CellRecord(1, [0], refuse)
    record.fold(m.Output(0, 1, 1, 0, "stdout", 0, b"x" * 3_000_000))
    assert record[0].stdout == "x" * 3_000_000
    (note,) = record[0].notices
    assert note == ("output can be kept in memory alone, the last 16 MiB: No space left on device (ENOSPC)")


def test_a_death_is_told_once_and_stays() -> None:
    """It is folded when it is heard of, while the cell runs, and again at the cell's end."""
    record = CellRecord(1, [0, 1])
    record.die(m.WorkerExited(1, 4711, 9, 1, 3, "", 0))
    version = record.version
    assert (record[1].verdict, record[1].death) == ("died", "killed by SIGKILL (line 3)")
    record.die(m.WorkerExited(1, 4711, 9, 1, 3, "", 0))
    assert record.version == version


def test_a_note_can_be_taken_back() -> None:
    """What held for a while is not on the saved page."""
    record = CellRecord(1, [0])
    record.note(0, "stopped")
    record.note(0, "stopped")
    assert record[0].notices == ["stopped"]
    record.take_back(0, "stopped")
    assert record[0].notices == []


def test_what_ended_once_does_not_end_otherwise() -> None:
    """A second end of the same rank, which nobody should send, changes nothing."""
    record = CellRecord(1, [0])
    error = m.CellError("ValueError", "no", 1, [])
    record.fold(m.CellFinished(0, 1, 1, 0, "error", 0.1, error=error))
    record.fold(m.CellFinished(0, 1, 1, 1, "ok", 0.2))
    assert (record[0].verdict, record[0].error, record[0].duration_s) == ("error", error, 0.1)


def test_a_rank_that_is_doomed_is_said_to_be_so_once() -> None:
    """A notice names device, cause and line; the one line of the failure ends with the way on."""
    cell = CellRecord(1, range(2))
    why = "cuda:1 (H200): CUDA error: device-side assert triggered (line 2)"
    error = m.CellError("AcceleratorError", "CUDA error: device-side assert triggered", 2, [])
    cell.fold(m.CellFinished(1, 1, 1, 0, "error", 0.1, error=error, doomed=why))
    cell.fold(m.CellFinished(0, 1, 1, 0, "ok", 0.1))
    assert cell[1].notices == [
        f"rank 1 is doomed: {why}; its process runs no more cells, and %ddp heal replaces it"
    ]
    assert not cell[0].notices
    assert cell.summary() == (
        "rank 1: AcceleratorError: CUDA error: device-side assert triggered (line 2); "
        "%ddp heal replaces rank 1, the others keep their variables"
    )
