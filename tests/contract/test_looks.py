"""The agent's answers for ranks that do not say what they do (`node/looks.py`), with real processes."""

from __future__ import annotations

import os
import select
import signal
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from jupyter_ddp.core import codec
from jupyter_ddp.core import messages as m
from jupyter_ddp.core.topology import make_plan
from jupyter_ddp.node.looks import ANSWER_TIMEOUT_S, Looks
from jupyter_ddp.node.rank_process import RankProcess

pytestmark = pytest.mark.processes


@pytest.fixture
def ranks() -> Iterator[list[RankProcess]]:
    """Two ranks as their agent has them; each is a process that only waits to be ended."""
    made = []
    for place in make_plan(2, []).places:
        process = RankProcess(place)
        pid = os.fork()
        if not pid:
            while True:
                signal.pause()
        process.born(pid)
        made.append(process)
    yield made
    for process in made:
        os.kill(process.pid, signal.SIGKILL)
        os.waitpid(process.pid, 0)
        os.close(process.pidfd)
        process.pidfd = -1
        process.close()


def question(process: RankProcess) -> m.NodeToRank | None:
    """What has come to the rank's control thread, if anything has."""
    link = process._their_control
    if not select.select([link], [], [], 0)[0]:
        return None
    (body,) = codec.FrameReader().feed(link.recv(65536))
    return codec.decode(codec.to_rank, body)


def overdue(looks: Looks) -> list[m.RankUnseen]:
    """The answers that the agent gives, once they are due."""
    threading.Event().wait(looks.timeout_s() + 0.01)
    return list(looks.overdue())


def until(look: Callable[[], object]) -> None:
    deadline = time.monotonic() + 5
    while not look():
        assert time.monotonic() < deadline
        threading.Event().wait(0.005)


def test_who_answers_is_not_answered_for(ranks: list[RankProcess]) -> None:
    """The question goes to the control thread as it is; after the answer nothing is awaited."""
    looks = Looks()
    assert looks.ask(ranks[0], m.Look(5, True)) is None
    assert question(ranks[0]) == m.Look(5, True)
    assert 0 < looks.timeout_s() <= ANSWER_TIMEOUT_S
    looks.answered(ranks[0], 5)
    assert not looks.asked
    assert list(looks.overdue()) == []


def test_who_does_not_answer_is_answered_for_after_a_second(ranks: list[RankProcess]) -> None:
    """Once, with the process's state, its cell and the line that it was last seen on."""
    looks = Looks()
    silent, quick = ranks
    silent.cell, silent.journal.line = 7, 3
    silent.journal.seen_ns = time.monotonic_ns() - 4_000_000_000
    for process in ranks:
        looks.ask(process, m.Look(-2))
    looks.answered(quick, -2)
    assert list(looks.overdue()) == []
    (told,) = overdue(looks)
    assert (told.rank, told.look, told.cell, told.line, told.state) == (0, -2, 7, 3, "S")
    assert 4.9 < told.silent_s < 10
    assert not looks.asked


def test_who_owes_an_answer_is_not_asked_again(ranks: list[RankProcess]) -> None:
    """The next question is answered on the spot; an answer, however late, ends that."""
    looks = Looks()
    looks.ask(ranks[0], m.Look(1))
    overdue(looks)
    assert question(ranks[0]) == m.Look(1)
    told = looks.ask(ranks[0], m.Look(2))
    assert told is not None
    assert (told.rank, told.look) == (0, 2)
    assert question(ranks[0]) is None
    looks.answered(ranks[0], 1)
    assert looks.ask(ranks[0], m.Look(3)) is None
    assert question(ranks[0]) == m.Look(3)


def test_a_stopped_rank_is_told_as_stopped(ranks: list[RankProcess]) -> None:
    """As /proc has it when the answer is due."""
    looks = Looks()
    looks.ask(ranks[0], m.Look(1))
    os.kill(ranks[0].pid, signal.SIGSTOP)
    until(lambda: ranks[0].unseen(0).state == "T")
    assert [told.state for told in overdue(looks)] == ["T"]


def test_a_rank_that_ends_is_answered_for_at_once(ranks: list[RankProcess]) -> None:
    """Every question that it leaves open, and no other rank's."""
    looks = Looks()
    for process in ranks:
        looks.ask(process, m.Look(1))
    looks.ask(ranks[0], m.Look(2))
    assert [(told.rank, told.look) for told in looks.forget(ranks[0])] == [(0, 1), (0, 2)]
    assert list(looks.asked) == [(ranks[1], 1)]


def test_a_link_that_takes_no_more_blocks_nobody(ranks: list[RankProcess]) -> None:
    """A rank that holds the GIL reads nothing: its questions are dropped, and answered for."""
    looks = Looks()
    for number in range(5_000):
        assert looks.ask(ranks[0], m.Look(number)) is None
    told: list[m.RankUnseen] = []
    while looks.asked:
        told += overdue(looks)
    assert [each.look for each in told] == list(range(5_000))
