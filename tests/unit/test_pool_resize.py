"""The pool's machine when a pool grows or shrinks, by example; and news of processes that it let go of."""

from __future__ import annotations

import pytest

from jupyter_ddp.core import bounds
from jupyter_ddp.core import events as ev
from jupyter_ddp.core import messages as m
from jupyter_ddp.core import pool as p
from tests.unit.desk import Desk, breaks, died, kills, only, tells


def test_growing_keeps_the_old_ranks_and_asks_for_the_new_only(three: Desk) -> None:
    """Only the new rank is forked; all of them form a later generation of the new size."""
    asked = only(three.resize(4), ev.SendToNodes)
    assert [place.rank for place in asked.message.places] == [3]
    three.forks(3)
    effects = three.connects(3)
    assert tells(effects, m.FormGroup) == [0, 1, 2, 3]
    assert {e.message.command.place.world_size for e in effects} == {4}
    assert three.forms(0, 1, 2, 3) == [ev.StartFinished()]
    assert [three.pool.ranks[r].pid for r in range(4)] == [100, 101, 102, 103]


@pytest.mark.parametrize("fault", ["dies", "late", "interrupted", "group", "forkserver"])
def test_a_resize_that_fails_keeps_the_old_ranks(three: Desk, fault: str) -> None:
    """Whatever became of the new rank, the old ones form a later generation and take cells."""
    three.resize(4)
    effects: list[ev.Effect] = []
    if fault == "forkserver":
        effects = three.handle(m.PreloadFailed("it was killed"))
    else:
        three.forks(3)
    if fault == "dies":
        effects = three.dies(3)
    if fault == "late":
        effects = three.after(bounds.START_TIMEOUT_S)
    if fault == "interrupted":
        effects = three.interrupt()
    if fault == "group":
        three.connects(3)
        effects = three.fails_to_form(3)
    assert only(effects, ev.StartFinished).error
    assert (kills(3) in effects) == (fault in ("late", "interrupted", "group"))
    assert not any(e == kills(r) for r in range(3) for e in effects)
    assert tells(effects, m.FormGroup) == [0, 1, 2]
    assert three.pool.generation == (3 if fault == "group" else 2)
    assert three.run(0, 1, 2) == []
    assert tells(three.forms(0, 1, 2), m.RunCell) == [0, 1, 2]


def test_a_resize_is_told_at_once_where_an_old_rank_has_died_in_it(three: Desk) -> None:
    """A group that cannot be complete is not waited for; the pool goes on with a dead rank."""
    three.resize(4)
    three.forks(3)
    effects = three.dies(1)
    assert effects == [
        kills(3),
        breaks(1, 0, 2),
        ev.StartFinished("rank 1 ended before the pool was up: killed by SIGKILL"),
    ]
    assert three.pool.phase is p.Phase.READY
    assert tells(three.run(0, 2), m.RunCell) == [0, 2]


def test_shrinking_lets_the_surplus_leave(three: Desk) -> None:
    """The last ranks are told to leave, their exits are nobody's failure, the rest form a group of two."""
    effects = three.resize(2)
    assert tells(effects, m.EndWorker) == [2]
    assert tells(effects, m.FormGroup) == [0, 1]
    assert three.dies(2, 0) == []
    assert three.forms(0, 1) == [ev.StartFinished()]
    assert three.pool.world_size == 2


@pytest.mark.parametrize("fault", ["late", "interrupted", "group"])
def test_a_shrinking_that_fails_kills_nobody(three: Desk, fault: str) -> None:
    """The ranks that stay are the user's: they form again, and their variables live."""
    three.resize(2)
    three.dies(2, 0)
    effects = {
        "late": lambda: three.after(bounds.START_TIMEOUT_S),
        "interrupted": three.interrupt,
        "group": lambda: three.fails_to_form(0),
    }[fault]()
    assert only(effects, ev.StartFinished).error
    assert tells(effects, m.FormGroup) == [0, 1]
    assert not [e for e in effects if isinstance(e, ev.SendToNodes) and isinstance(e.message, m.SignalRanks)]
    assert three.forms(0, 1) == []
    assert tells(three.run(0, 1), m.RunCell) == [0, 1]


def test_a_surplus_rank_that_does_not_leave_is_killed(three: Desk) -> None:
    """Who hangs in its exit functions has two seconds, whatever the pool does meanwhile."""
    three.resize(2)
    three.forms(0, 1)
    assert three.pool.next_deadline == three.now + bounds.STOP_TIMEOUT_S
    assert three.handle(ev.Ticked()) == []
    assert three.after(bounds.STOP_TIMEOUT_S) == [kills(2)]
    assert three.pool.next_deadline is None


def test_a_number_given_again_is_the_new_process(three: Desk) -> None:
    """Rank 2 let go and rank 2 asked for: births, words and exits of the old one do not touch the new."""
    three.resize(2)
    three.forms(0, 1)
    kill, _asked = three.resize(3)
    assert kill == kills(2)
    assert three.connects(2) == []
    assert three.dies(2, pid=102) == []
    three.forks(2, pids=200)
    three.connects(2, pids=200)
    assert three.forms(0, 1, 2) == [ev.StartFinished()]
    assert three.pool.ranks[2].pid == 202
    assert three.dies(2, pid=202) == [died(2)]


def test_a_number_given_again_before_the_first_was_born(three: Desk) -> None:
    """Births come in the order of the requests: the first is the one that was let go."""
    three.resize(4)
    three.interrupt()
    three.forms(0, 1, 2)
    three.resize(4)
    three.forks(3, pids=200)
    three.forks(3, pids=300)
    assert three.dies(3, pid=203) == []
    assert three.pool.ranks[3].pid == 303


def test_a_number_given_again_before_the_first_connected(three: Desk) -> None:
    """It may answer before the forkserver tells of its birth: still the first is the one that was let go."""
    three.resize(4)
    three.interrupt()
    three.forms(0, 1, 2)
    three.resize(4)
    assert three.connects(3, pids=200) == []
    assert three.dies(3, pid=203) == []
    assert tells(three.connects(3, pids=300), m.FormGroup) == [0, 1, 2, 3]
    assert three.pool.ranks[3].pid == 303


def test_an_exit_or_a_word_of_nobody_we_know_changes_nothing(three: Desk) -> None:
    """A PID that is no rank's, a rank that is not there, a group of long ago."""
    assert three.dies(1, pid=999) == []
    assert three.dies(7) == []
    assert three.pool.alive == (0, 1, 2)
    three.run(0)
    three.ends(0, broken=True)
    three.forms(0, 1)
    three.forms(0, 1, generation=1)
    assert three.pool.phase is p.Phase.FORMING
    three.forms(2)
    assert three.pool.phase is p.Phase.READY


def test_a_process_of_nobody_we_know_is_no_rank(three: Desk) -> None:
    """Born, connected or in a group under a number that there is not, or that another process has."""
    three.run(0)
    three.ends(0, broken=True)
    for rank in (1, 7):
        assert three.forks(rank, pids=500) == []
        assert three.connects(rank, pids=500) == []
    assert three.forms(7) == []
    assert [state.pid for state in three.pool.ranks.values()] == [100, 101, 102]
    assert three.forms(0, 1, 2) == []
    assert three.pool.phase is p.Phase.READY


def test_a_doomed_rank_that_has_died_is_dead(three: Desk) -> None:
    """What is said of it is its death: it lives no more."""
    three.run(0, 1, 2)
    for rank in range(3):
        doomed = "cuda:1: lost" if rank == 1 else ""
        three.handle(m.CellFinished(rank, 1, three.cells, 0, "error", 0.1, doomed=doomed))
    assert three.pool._members.doomed == {1: "cuda:1: lost"}
    three.dies(1)
    assert three.pool._members.doomed == {}


def test_a_resize_of_a_pool_with_a_dead_rank_is_refused(three: Desk) -> None:
    """A restart comes first."""
    three.dies(0)
    assert three.resize(4) == [ev.StartFinished("rank 0 died; %ddp heal comes before a resize")]


def test_a_resize_waits_for_nothing(three: Desk) -> None:
    """While a cell runs it is refused at once."""
    three.run(0)
    error = only(three.resize(4), ev.StartFinished).error
    assert error == "the pool is running; it can be resized when it is ready"
