"""The page that a rank shares with its node agent, by example."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from jupyter_ddp.core.journal import CAPACITY_BYTES, PAGE_BYTES, Journal


@pytest.fixture
def page() -> memoryview:
    return memoryview(bytearray(PAGE_BYTES))


@pytest.fixture
def rank(page: memoryview) -> Iterator[Journal]:
    journal = Journal(page)
    yield journal
    journal.release()


@pytest.fixture
def agent(page: memoryview) -> Iterator[Journal]:
    """The same page, as another process sees it."""
    journal = Journal(page)
    yield journal
    journal.release()


def test_a_new_page_is_an_empty_journal(agent: Journal) -> None:
    """Zeroes, as a mapping begins, mean that nothing waits and nothing is known."""
    assert agent.waiting() == b""
    assert (agent.offset, agent.stream, agent.cell, agent.generation, agent.line) == (0, "stdout", 0, 0, 0)


def test_what_is_appended_waits_in_order(rank: Journal, agent: Journal) -> None:
    """The agent reads what the rank wrote, whole and in order, until it is marked as sent."""
    assert rank.append(b"one ")
    assert rank.append(b"two")
    assert agent.waiting() == b"one two"
    assert agent.offset == 0
    rank.mark_sent()
    assert agent.waiting() == b""
    assert agent.offset == 7


def test_the_page_is_used_again_after_sending(rank: Journal, agent: Journal) -> None:
    """What was sent makes room: offsets go on counting, positions on the page begin anew."""
    for turn in range(5):
        assert rank.append(bytes([turn]) * CAPACITY_BYTES)
        assert agent.waiting() == bytes([turn]) * CAPACITY_BYTES
        assert agent.offset == turn * CAPACITY_BYTES
        rank.mark_sent()


def test_what_does_not_fit_is_not_kept(rank: Journal, agent: Journal) -> None:
    """One byte too many is refused whole, and what waited is still there."""
    assert rank.append(b"x" * (CAPACITY_BYTES - 1))
    assert not rank.append(b"yz")
    assert agent.waiting() == b"x" * (CAPACITY_BYTES - 1)
    assert rank.append(b"y")
    assert not rank.append(b"z")
    assert rank.append(b"")
    assert len(agent.waiting()) == CAPACITY_BYTES


def test_bytes_that_never_were_on_the_page_count(rank: Journal, agent: Journal) -> None:
    """A piece too long for the page is sent by itself, and the offset of what comes next includes it."""
    rank.append(b"abc")
    rank.mark_sent(extra_bytes=100_000)
    assert agent.offset == 100_003
    assert rank.append(b"next")
    assert (agent.waiting(), agent.offset) == (b"next", 100_003)


def test_the_agent_knows_whose_output_waits(rank: Journal, agent: Journal) -> None:
    """Stream, generation, cell and line are the rank's last word on each."""
    rank.begin("stderr", generation=3, cell=12)
    rank.line = 7
    assert (agent.stream, agent.generation, agent.cell, agent.line) == ("stderr", 3, 12, 7)
    rank.begin("stdout", generation=3, cell=13)
    assert (agent.stream, agent.cell) == ("stdout", 13)


def test_a_released_page_can_be_closed() -> None:
    """Nothing keeps the memory exported after release, so that a mapping over it may be closed."""
    memory = bytearray(PAGE_BYTES)
    with memoryview(memory) as view:
        Journal(view).release()
    memory.clear()  # raises BufferError while a view is exported
