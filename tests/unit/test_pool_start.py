"""The pool's machine while a pool starts, by example."""

from __future__ import annotations

from jupyter_ddp.core import bounds
from jupyter_ddp.core import events as ev
from jupyter_ddp.core import messages as m
from jupyter_ddp.core import pool as p
from tests.unit.desk import EXITED_3, SIGKILLED, Desk, kills, tells

PREPARED = "what ranks are forked from could not be prepared: {}; repair that, then start again"


def test_a_start_forks_then_forms_then_says_so_once(desk: Desk) -> None:
    """Ranks are asked for at once, told to form when all are there, and the pool stands when all joined."""
    (asked,) = desk.start(2)
    assert isinstance(asked, ev.SendToNodes)
    assert isinstance(asked.message, m.StartRanks)
    assert [place.rank for place in asked.message.places] == [0, 1]
    assert desk.forks(0, 1) == []
    assert desk.connects(0) == []
    assert tells(desk.connects(1), m.FormGroup) == [0, 1]
    assert desk.forms(0) == []
    assert desk.forms(1) == [ev.StartFinished()]
    assert desk.pool.phase is p.Phase.READY
    assert desk.pool.next_deadline is None


def test_a_second_start_is_refused_and_starts_nothing(three: Desk) -> None:
    """A pool that stands is not started again."""
    assert three.start(3) == [ev.StartFinished("the pool is ready; %ddp stop ends it")]


def test_a_rank_that_dies_at_start_is_named_with_its_last_words(desk: Desk) -> None:
    """The error names the rank, how it ended and what it wrote; the others are killed first."""
    desk.start(2)
    desk.forks(0, 1)
    assert desk.dies(1, EXITED_3, stderr="ImportError: no libgomp") == [kills(0)]
    (done,) = desk.dies(0)
    assert done == ev.StartFinished(
        "rank 1 ended before the pool was up: exited with code 3\nImportError: no libgomp"
    )
    assert desk.pool.phase is p.Phase.STOPPED


def test_a_start_that_takes_too_long_names_who_is_missing(desk: Desk) -> None:
    """The deadline of a start tells which rank did not connect."""
    desk.start(3)
    desk.forks(0, 1, 2)
    desk.connects(0, 2)
    assert desk.after(bounds.START_TIMEOUT_S) == [kills(0, 1, 2)]
    assert [*desk.dies(0), *desk.dies(1)] == []
    assert desk.dies(2) == [ev.StartFinished("rank 1 did not connect within 120 s")]


def test_a_start_without_its_group_names_who_did_not_join(desk: Desk) -> None:
    """When all have connected, the late ones are those that have not joined the group."""
    desk.start(3)
    desk.forks(0, 1, 2)
    desk.connects(0, 1, 2)
    desk.forms(1)
    desk.after(bounds.START_TIMEOUT_S)
    effects = [e for rank in range(3) for e in desk.dies(rank)]
    assert effects == [ev.StartFinished("ranks 0,2 did not join the process group within 120 s")]


def test_a_group_that_fails_at_start_is_the_starts_failure(desk: Desk) -> None:
    """A rank that cannot join ends the start, with its reason."""
    desk.start(1)
    desk.forks(0)
    desk.connects(0)
    assert desk.fails_to_form(0) == [kills(0)]
    assert desk.dies(0) == [ev.StartFinished("rank 0 could not join the process group: refused")]


def test_an_interrupt_while_starting_undoes_the_start(desk: Desk) -> None:
    """Nothing of the pool is left before the user hears of it."""
    desk.start(2)
    desk.forks(0, 1)
    assert desk.interrupt() == [kills(0, 1)]
    assert desk.interrupt() == []
    assert desk.dies(0) == []
    assert desk.dies(1) == [ev.StartFinished("interrupted")]


def test_a_rank_born_after_the_order_to_end_it_is_killed(desk: Desk) -> None:
    """An interrupt while ranks are forked: who is born late is ended like the others."""
    desk.start(1)
    assert desk.interrupt() == [kills(0)]
    assert desk.forks(0) == [kills(0)]
    assert desk.dies(0) == [ev.StartFinished("interrupted")]


def test_a_rank_withdrawn_before_its_birth_counts_as_ended(desk: Desk) -> None:
    """An agent that has not forked yet reports an exit without a PID: the undoing need not wait."""
    desk.start(1)
    assert desk.interrupt() == [kills(0)]
    withdrawn = m.WorkerExited(0, 0, SIGKILLED, 0, 0, "", 0)
    assert desk.handle(withdrawn) == [ev.StartFinished("interrupted")]


def test_a_stop_while_starting_answers_both(desk: Desk) -> None:
    """Who waits for the start hears that it was stopped, and who asked to stop hears of the end."""
    desk.start(1)
    desk.forks(0)
    desk.stop()
    assert desk.dies(0, 0) == [ev.StartFinished("the pool was stopped while it started"), ev.StopFinished()]


def test_a_stop_while_a_start_is_undone_is_answered(desk: Desk) -> None:
    """The pool that is being undone ends once, for both who wait."""
    desk.start(1)
    desk.forks(0)
    desk.interrupt()
    assert desk.stop() == []
    assert desk.dies(0) == [ev.StartFinished("interrupted"), ev.StopFinished()]


def test_a_preload_that_fails_ends_the_start_with_its_words(desk: Desk) -> None:
    """Nothing was forked, so nothing is waited for."""
    desk.start(2)
    effects = desk.handle(m.PreloadFailed("ModuleNotFoundError: No module named 'torch'"))
    assert effects == [ev.StartFinished(PREPARED.format("ModuleNotFoundError: No module named 'torch'"))]
    assert desk.pool.phase is p.Phase.STOPPED


def test_a_forkserver_that_ends_after_the_forks_does_no_harm(desk: Desk) -> None:
    """Ranks that have a process need it no more, and no process is forgotten."""
    desk.start(1)
    desk.forks(0)
    assert desk.handle(m.PreloadFailed("")) == []
    desk.connects(0)
    assert desk.forms(0) == [ev.StartFinished()]


def test_a_forkserver_that_ends_between_the_forks_leaves_nothing(desk: Desk) -> None:
    """The rank that does exist is killed before the failure is told."""
    desk.start(2)
    desk.forks(0)
    assert desk.handle(m.PreloadFailed("")) == [kills(0)]
    assert desk.dies(0) == [ev.StartFinished(PREPARED.format("its process ended"))]


def test_unkillable_processes_are_named_where_a_start_is_undone(desk: Desk) -> None:
    """Five seconds after SIGKILL the wait ends, and the PIDs are told."""
    desk.start(2)
    desk.forks(0, 1)
    desk.interrupt()
    desk.dies(0)
    assert desk.after(bounds.KILL_TIMEOUT_S) == [
        ev.StartFinished("interrupted\nthe system does not end these processes: 101")
    ]


def test_the_late_exit_of_an_unkillable_process_is_not_the_next_pools(desk: Desk) -> None:
    """A new rank 0 has nothing to do with the old one, whose end arrives before its own birth."""
    desk.come_up(1)
    desk.stop()
    assert desk.after(bounds.STOP_TIMEOUT_S + bounds.KILL_TIMEOUT_S)[-1] == ev.StopFinished((100,))
    desk.start(1)
    assert desk.dies(0, pid=100) == []
    desk.forks(0, pids=200)
    desk.connects(0, pids=200)
    assert desk.forms(0) == [ev.StartFinished()]
