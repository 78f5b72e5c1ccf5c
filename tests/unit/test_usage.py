"""The samples of what ranks use."""

from __future__ import annotations

from jupyter_ddp.core.messages import RankUsage
from jupyter_ddp.core.usage import SAMPLES_KEPT, UsageBook


def test_the_last_samples_are_kept() -> None:
    """A history is short, oldest first."""
    book = UsageBook()
    for n in range(SAMPLES_KEPT + 5):
        book.fold(RankUsage(2, n, 0.0, 0, "S"))
    assert [u.memory_bytes for u in book.history(2)] == list(range(5, SAMPLES_KEPT + 5))
    last = book.last(2)
    assert last is not None
    assert last.memory_bytes == SAMPLES_KEPT + 4
    assert book.history(0) == ()
    assert book.last(0) is None


def test_a_rank_that_is_born_anew_begins_anew() -> None:
    """A replacement has neither the age nor the history of the process before it."""
    book = UsageBook()
    book.bear(1, 10.0)
    book.fold(RankUsage(1, 5, 0.0, 0, "S"))
    assert book.age_s(1, 14.0) == 4.0
    book.bear(1, 20.0)
    assert book.age_s(1, 21.0) == 1.0
    assert book.history(1) == ()
    assert book.age_s(7, 21.0) == 0.0
