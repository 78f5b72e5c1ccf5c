"""One cell's record, for every sequence of messages."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import example, given
from hypothesis import strategies as st

from jupyter_ddp.core import messages as m
from jupyter_ddp.core.record import CellRecord
from jupyter_ddp.core.transcript import Text

WORLD = 3
FROM = st.tuples(st.integers(0, WORLD), st.just(1), st.just(1), st.integers(0, 30))
STREAMS = st.sampled_from(["stdout", "stderr"])
LINES = st.integers(0, 9)
ERRORS = st.none() | st.builds(m.CellError, st.just("E"), st.text(max_size=20), LINES, st.just([]))
BUNDLES = st.dictionaries(st.sampled_from(["text/plain", "text/html"]), st.text(max_size=5)).map(json.dumps)
MESSAGES = st.one_of(
    st.builds(lambda f, *rest: m.Output(*f, *rest), FROM, STREAMS, st.just(0), st.binary(max_size=12)),
    st.builds(
        m.FdOutput,
        *(st.integers(0, WORLD), st.just(1), st.integers(0, 30), STREAMS, st.binary(max_size=9)),
    ),
    st.builds(
        lambda f, *rest: m.Display(*f, *rest),
        *(FROM, BUNDLES, st.just("{}"), st.sampled_from(["", "d"]), st.booleans(), st.booleans()),
    ),
    st.builds(lambda f, wait: m.ClearOutput(*f, wait), FROM, st.booleans()),
    st.builds(lambda f, text: m.Notice(*f, text), FROM, st.text(max_size=9)),
    st.builds(
        lambda f, verdict, error: m.CellFinished(*f, verdict, 0.5, False, error),
        *(FROM, st.sampled_from(["ok", "error", "interrupted"]), ERRORS),
    ),
)


def drawn(record: CellRecord) -> Any:
    """Everything that a view would draw."""
    return [
        (
            *(r.rank, r.verdict, r.error, r.death, r.notices),
            [s.parts() if isinstance(s, Text) else (dict(s.data), s.result) for s in r.segments],
        )
        for r in record.snapshot().ranks
    ]


def folded(messages: list[m.CellMessage]) -> CellRecord:
    record = CellRecord(1, range(WORLD))
    for message in messages:
        record.fold(message)
    return record


@given(st.lists(MESSAGES, max_size=30))
def test_streams_are_exactly_what_was_said(messages: list[m.CellMessage]) -> None:
    """Each rank's stdout and stderr are the bytes of its messages in order, whatever came between."""
    record = folded(messages)
    for rank in range(WORLD):
        for stream in ("stdout", "stderr"):
            said = b"".join(
                x.data
                for x in messages
                if isinstance(x, m.Output | m.FdOutput) and (x.rank, x.stream) == (rank, stream)
            )
            assert getattr(record[rank], stream) == said.decode("utf-8", "replace")


@given(st.lists(MESSAGES, max_size=20), st.lists(MESSAGES, max_size=10))
def test_no_later_message_changes_a_snapshot(before: list[m.CellMessage], after: list[m.CellMessage]) -> None:
    """A snapshot draws the same after anything more was folded."""
    record = folded(before)
    snapshot = record.snapshot()
    record.snapshot = lambda: snapshot  # type: ignore[method-assign]
    first = drawn(record)
    for message in after:
        record.fold(message)
    assert drawn(record) == first


@given(st.lists(MESSAGES, max_size=30))
def test_folding_again_gives_the_same_record(messages: list[m.CellMessage]) -> None:
    """A record is a function of its messages."""
    assert drawn(folded(messages)) == drawn(folded(messages))


@given(st.lists(MESSAGES, max_size=30))
def test_ranks_do_not_see_each_other(messages: list[m.CellMessage]) -> None:
    """What one rank's part looks like depends on that rank's messages alone."""
    whole = drawn(folded(messages))
    for rank in range(WORLD):
        own = [x for x in messages if x.rank == rank]
        assert drawn(folded(own))[rank] == whole[rank]


@given(st.lists(MESSAGES, max_size=10), st.permutations(range(WORLD)))
def test_good_ends_together_are_good_ends_one_by_one(before: list[m.CellMessage], ranks: list[int]) -> None:
    """What an agent has gathered folds as what it gathered."""
    ends = [m.CellFinished(rank, 1, 1, 99, "ok", 0.5) for rank in ranks]
    together = [*before, m.GoodEnds(1, tuple(ends))]
    assert drawn(folded(together)) == drawn(folded([*before, *ends]))


@given(st.lists(MESSAGES, max_size=30))
@example([m.CellFinished(0, 1, 1, 0, "error", 0.5, False, m.CellError("E", "a\x0bb", 0, []))])
def test_a_summary_is_one_line_that_names_each_rank_once(messages: list[m.CellMessage]) -> None:
    """Whatever the exceptions say, the summary is one line, and empty just when every rank is ok."""
    record = folded(messages)
    assert len(record.summary().splitlines()) <= 1
    assert (record.summary() == "") == record.ok
