"""The pool's machine while cells run, by example: ends, deaths, interrupts and limits."""

from __future__ import annotations

import pytest

from jupyter_ddp.core import bounds
from jupyter_ddp.core import events as ev
from jupyter_ddp.core import messages as m
from jupyter_ddp.core import pool as p
from jupyter_ddp.core.ladder import BREAK_CHANCE_S, INTERRUPT_TIMEOUT_S, NOTICE_S, SIGNAL_CHANCE_S
from tests.unit.desk import Desk, breaks, died, interrupts, kills, only, tells

DIED_1 = died(1, left="ranks 0,2 keep")

# --- cells ------------------------------------------------------------------------------------------


def test_a_cell_on_all_ranks_and_one_on_some(three: Desk) -> None:
    """Members are named where the cell is not for the whole world."""
    assert three.run(0, 1, 2) == [
        ev.SendToNodes((0, 1, 2), m.Tell([0, 1, 2], m.RunCell(1, "pass", False, True, (), 7)))
    ]
    assert [*three.ends(0), *three.ends(2)] == []
    assert three.ends(1) == [ev.CellEnded(1, {0: "ok", 2: "ok", 1: "ok"})]
    assert three.run(0, 2) == [
        ev.SendToNodes((0, 2), m.Tell([0, 2], m.RunCell(2, "pass", False, True, (0, 2), 7)))
    ]


@pytest.mark.parametrize(
    ("ranks", "words"),
    [
        ((), "the cell names no rank to run on"),
        ((0, 3), "the pool has no rank 3; it has 0-2"),
    ],
)
def test_a_cell_for_ranks_that_are_not_there(three: Desk, ranks: tuple[int, ...], words: str) -> None:
    """It is refused with the reason, and the pool takes the next one."""
    assert three.run(*ranks) == [ev.CellRefused(1, words)]
    assert tells(three.run(0), m.RunCell) == [0]


def test_a_second_cell_is_told_busy(three: Desk) -> None:
    """One cell at a time."""
    three.run(0)
    assert "busy" in only(three.run(1), ev.CellRefused).reason


def test_a_cell_without_a_pool(desk: Desk) -> None:
    """The refusal says how to start one."""
    assert "%ddp start -n 4" in only(desk.run(0), ev.CellRefused).reason


def test_a_reply_to_another_cell_or_a_second_reply_counts_for_nothing(three: Desk) -> None:
    """Only the first reply of a rank to this very cell ends it there."""
    three.run(0, 1)
    assert three.handle(m.CellFinished(0, 1, 99, 0, "ok", 0.1)) == []
    three.ends(0, "error")
    assert three.ends(0, "ok") == []
    assert three.ends(2) == []
    assert only(three.ends(1), ev.CellEnded).verdicts == {0: "error", 1: "ok"}


def test_when_a_rank_fails_the_others_are_freed_after_five_seconds(three: Desk) -> None:
    """They may go on that long; then that is said, the group is broken, and they were blocked by the one
    that failed."""
    three.run(0, 1, 2)
    three.ends(1, "error")
    assert three.after(bounds.PEER_FAILED_TIMEOUT_S - 0.01) == []
    assert tells(three.after(0.02), m.Look) == [0, 1, 2]
    three.answers(0, waits_in="all_reduce", entered=1)
    three.answers(1)
    assert three.answers(2, waits_in="all_reduce", entered=1) == [
        frees("rank 1 failed, ranks 0,2 wait for it")
    ]
    assert three.after(NOTICE_S - 0.01) == []
    assert three.after(0.02) == [breaks(1, 0, 1, 2)]
    three.ends(0, "interrupted", broken=True)
    effects = three.ends(2, "interrupted", broken=True)
    ended = only(effects, ev.CellEnded)
    assert ended.verdicts == {0: "interrupted", 1: "error", 2: "interrupted"}
    assert ended.reasons == {0: "blocked by rank 1", 2: "blocked by rank 1"}
    assert tells(effects, m.FormGroup) == [0, 1, 2]
    assert three.pool.generation == 2


def test_ranks_that_compute_on_are_never_killed_unasked(three: Desk) -> None:
    """Nobody waits for the failed rank, so nothing is broken: a rank may compute for hours."""
    three.run(0, 1, 2)
    three.ends(1, "error")
    three.after(bounds.PEER_FAILED_TIMEOUT_S)
    assert [*three.answers(0), *three.answers(1), *three.answers(2)] == []
    assert three.pool.next_deadline is None
    assert three.after(86400) == []
    assert [*three.ends(0), *three.ends(2)][-1] == ev.CellEnded(1, {1: "error", 0: "ok", 2: "ok"})


def test_when_a_rank_dies_the_others_are_freed_after_one_second(three: Desk) -> None:
    """They say that they wait for it, and are told to let go; no group is formed without it."""
    three.run(0, 1, 2)
    assert three.dies(1) == []
    assert tells(three.after(bounds.PEER_DIED_TIMEOUT_S), m.Look) == [0, 2]
    three.answers(0, waits_in="all_reduce", entered=1)
    assert three.answers(2, waits_in="all_reduce", entered=1) == [frees("rank 1 died, ranks 0,2 wait for it")]
    assert three.after(NOTICE_S) == [breaks(1, 0, 2)]
    three.ends(0, "interrupted", broken=True)
    effects = three.ends(2, "interrupted", broken=True)
    ended = only(effects, ev.CellEnded)
    assert tells(effects, m.FormGroup) == []
    assert ended.verdicts == {0: "interrupted", 1: "died", 2: "interrupted"}
    assert [exit.rank for exit in ended.deaths] == [1]
    assert ended.reasons == {0: "blocked by rank 1", 2: "blocked by rank 1"}
    assert three.pool.phase is p.Phase.READY


def test_a_death_leaves_alone_who_does_not_wait_for_it(three: Desk) -> None:
    """They compute, or wait for each other in a group of their own: nothing is broken, nobody blamed."""
    three.run(0, 1, 2)
    three.dies(0)
    assert three.frees_peers() == []
    assert three.pool.next_deadline is None
    three.ends(1)
    ended = only(three.ends(2), ev.CellEnded)
    assert (ended.verdicts, ended.reasons) == ({0: "died", 1: "ok", 2: "ok"}, {})
    assert three.pool.phase is p.Phase.READY


def test_who_comes_to_wait_for_a_dead_rank_later_is_freed_soon(three: Desk) -> None:
    """One of them finds out by itself, from the connection; a second later the others are asked again."""
    three.run(0, 1, 2)
    three.dies(0)
    three.frees_peers()
    three.after(60)
    three.ends(1, "interrupted", broken=True)
    assert three.frees_peers(2) == [breaks(1, 1, 2)]


def test_a_death_hastens_the_breaking_but_a_failure_does_not_delay_it(three: Desk) -> None:
    """The earlier deadline counts."""
    three.run(0, 1, 2)
    three.dies(1)
    three.ends(2, "error")
    assert three.frees_peers(0) == [breaks(1, 0, 2)]


def test_a_press_does_not_delay_the_breaking(three: Desk) -> None:
    """A user's interrupt 0.9 s after a death does not keep the others waiting for two more seconds."""
    three.run(0, 1)
    three.dies(1)
    three.after(0.9)
    three.interrupt()
    assert breaks(1, 0, 2) in three.after(0.1)


def test_a_press_does_not_have_the_others_asked_first(three: Desk) -> None:
    """Five seconds after a failure they are freed, not asked whether they wait: the user wants an end."""
    three.run(0, 1)
    three.ends(1, "error")
    three.after(bounds.PEER_FAILED_TIMEOUT_S - 1)
    three.interrupt()
    assert breaks(1, 0, 1, 2) in three.after(1)


def test_a_rank_that_dies_after_its_own_end_keeps_its_verdict_and_is_announced(three: Desk) -> None:
    """Its reply was made; its death is told all the same."""
    three.run(0, 1)
    three.ends(1, "ok")
    assert three.dies(1) == [ev.Announced(DIED_1.text, 1)]
    assert three.ends(0) == [ev.CellEnded(1, {1: "ok", 0: "ok"})]


def test_a_rank_that_dies_beside_the_cell_is_announced_and_leaves_the_cell_alone(three: Desk) -> None:
    """No rank of the cell can wait for one that is not in it: nothing is broken."""
    three.run(0, 1)
    assert three.dies(2) == [ev.Announced(died(2).text, 1)]
    assert three.after(60) == []
    assert [*three.ends(0), *three.ends(1)] == [ev.CellEnded(1, {0: "ok", 1: "ok"})]


def test_a_pool_with_a_dead_rank_refuses_all_and_runs_on_the_living(three: Desk) -> None:
    """The refusal names the rank, why it died, and both ways on."""
    assert three.dies(1, status=11) == [died(1, "SIGSEGV", left="ranks 0,2 keep")]
    reason = only(three.run(0, 1, 2), ev.CellRefused).reason
    way_on = "-t with living ranks (ranks 0,2), or %ddp heal, which replaces the dead"
    assert reason == f"rank 1 died: killed by SIGSEGV; nothing was run. To go on: {way_on}"
    assert tells(three.run(0, 2), m.RunCell) == [0, 2]


def test_a_cell_submitted_while_the_group_is_formed_waits_for_it(three: Desk) -> None:
    """It is sent when the last rank has joined; a second one is refused."""
    three.run(0, 1, 2)
    for rank in range(3):
        three.ends(rank, "ok", broken=True)
    assert three.pool.phase is p.Phase.FORMING
    assert three.run(0, 1, 2) == []
    assert "forming" in only(three.run(0), ev.CellRefused).reason
    assert three.forms(0, 1) == []
    assert three.forms(2, generation=1) == []
    (sent,) = three.forms(2)
    assert sent == ev.SendToNodes((0, 1, 2), m.Tell([0, 1, 2], m.RunCell(2, "pass", False, True, (), 7)))


def test_a_cell_that_waits_is_refused_when_a_rank_of_it_dies(three: Desk) -> None:
    """The death is told first; the living give up forming; then comes the refusal."""
    three.run(0)
    three.ends(0, broken=True)
    three.run(0, 1, 2)
    died, free, refused = three.dies(1)
    assert died == DIED_1
    assert free == breaks(2, 0, 2)
    assert isinstance(refused, ev.CellRefused)


def test_an_interrupt_takes_back_a_cell_that_waits(three: Desk) -> None:
    """What the user interrupts before it begins is never run."""
    three.run(0)
    three.ends(0, broken=True)
    three.run(0, 1, 2)
    assert three.interrupt() == [ev.CellRefused(2, "interrupted before it began; nothing was run")]
    assert three.forms(0, 1, 2) == []


def test_a_group_that_is_never_formed_is_announced_and_the_cell_goes_out(three: Desk) -> None:
    """Forming ends at a deadline too, and names who did not come."""
    three.run(0)
    three.ends(0, broken=True)
    three.run(0, 1, 2)
    three.forms(0, 2)
    effects = three.after(bounds.FORM_TIMEOUT_S)
    words = "rank 1 did not join the process group within 30 s; %ddp restart starts anew"
    assert effects[0] == ev.Announced(words)
    assert tells(effects, m.RunCell) == [0, 1, 2]


def test_a_group_that_cannot_be_formed_is_announced_and_whoever_waits_in_it_freed(three: Desk) -> None:
    """Everybody lets go, and the cell that waited goes out; what comes of the forming later is nothing."""
    three.run(0)
    three.ends(0, broken=True)
    three.run(0, 1, 2)
    announced, freed, sent = three.fails_to_form(1)
    words = "rank 1 could not join the process group: refused; %ddp restart starts anew"
    assert announced == ev.Announced(words)
    assert freed == breaks(2, 0, 1, 2)
    assert tells([sent], m.RunCell) == [0, 1, 2]
    assert three.fails_to_form(0) == []


def test_at_the_end_of_a_cell_without_its_group_all_the_living_know(three: Desk) -> None:
    """Also the rank that the cell was not for: it would wait for those that have let go."""
    three.run(0, 1)
    three.dies(0)
    three.frees_peers(1)
    effects = three.ends(1, "interrupted", broken=True)
    assert effects[0] == breaks(1, 1, 2)
    assert only(effects, ev.CellEnded).reasons == {1: "blocked by rank 0"}


def test_only_who_was_interrupted_without_its_group_was_blocked(three: Desk) -> None:
    """One that ended well, or of itself, after the breaking was not blocked by the one that failed."""
    three.run(0, 1, 2)
    three.ends(1, "error")
    three.ends(0, "interrupted")
    ended = only(three.ends(2, "ok", broken=True), ev.CellEnded)
    assert ended.reasons == {}


def test_nobody_is_blamed_where_nobody_failed(three: Desk) -> None:
    """Ranks may lose their group together, to the network say."""
    three.run(0, 1)
    three.ends(0, "interrupted", broken=True)
    assert only(three.ends(1, "interrupted", broken=True), ev.CellEnded).reasons == {}


def test_who_needs_one_that_was_dead_before_is_blocked_by_it(three: Desk) -> None:
    """It used a group of an earlier cell; the reason says what to do."""
    three.dies(1)
    three.run(0, 2)
    three.ends(0)
    ended = only(three.ends(2, "interrupted", broken=True), ev.CellEnded)
    assert ended.reasons == {2: "blocked by rank 1, which is dead; %ddp heal replaces it"}


def test_a_group_found_broken_frees_the_others_though_nobody_failed(three: Desk) -> None:
    """A rank may have lost its group and ended well: who waits for it is freed like after an error."""
    three.run(0, 1)
    three.ends(0, "ok", broken=True)
    assert tells(three.after(bounds.PEER_FAILED_TIMEOUT_S), m.Look) == [0, 1, 2]
    three.answers(0)
    three.answers(2)
    assert three.answers(1, waits_in="all_reduce", entered=1) == [
        frees("rank 0 has lost the process group, rank 1 waits for it")
    ]
    assert three.after(NOTICE_S) == [breaks(1, 0, 1, 2)]


def waits_for_a_failed_one(desk: Desk) -> None:
    """Rank 1 has failed, ranks 0 and 2 wait for it, and are to be freed."""
    desk.run(0, 1, 2)
    desk.ends(1, "error")
    desk.after(bounds.PEER_FAILED_TIMEOUT_S)
    for rank in (1, 0, 2):
        desk.answers(rank, waits_in="all_reduce" if rank != 1 else "", entered=1)


def test_who_ends_before_it_is_freed_is_named_no_more(three: Desk) -> None:
    """What was announced is taken back for what is done; it stays where nothing has changed."""
    waits_for_a_failed_one(three)
    three.ends(2)
    assert three.after(NOTICE_S) == [
        frees("rank 1 failed, ranks 0,2 wait for it", withdrawn=True),
        frees("rank 1 failed, rank 0 waits for it"),
        breaks(1, 0, 1, 2),
    ]
    assert not [e for e in three.ends(0, "interrupted", broken=True) if isinstance(e, ev.Announced)]


def test_nobody_is_freed_who_has_ended(three: Desk) -> None:
    """They went on of themselves meanwhile: the announcement is taken back, and the group stays."""
    waits_for_a_failed_one(three)
    three.ends(2)
    taken_back, ended = three.ends(0)
    assert taken_back == frees("rank 1 failed, ranks 0,2 wait for it", withdrawn=True)
    assert isinstance(ended, ev.CellEnded)
    assert three.pool.phase is p.Phase.READY


def test_whoever_else_is_left_is_asked_again(three: Desk) -> None:
    """It did not wait when the others were seen to; they have ended, so it is looked at, and computes on."""
    three.run(0, 1, 2)
    three.ends(1, "error")
    three.after(bounds.PEER_FAILED_TIMEOUT_S)
    three.answers(0, waits_in="all_reduce", entered=1)
    three.answers(1)
    three.answers(2)
    three.ends(0)
    taken_back, *look = three.after(NOTICE_S)
    assert taken_back == frees("rank 1 failed, rank 0 waits for it", withdrawn=True)
    assert tells(look, m.Look) == [0, 1, 2]
    assert [*three.answers(0), *three.answers(1), *three.answers(2)] == []


def test_a_death_does_not_wait_for_what_was_announced(three: Desk) -> None:
    """Who is to be freed in a moment is: the group is broken once, and the dead one is not healed."""
    waits_for_a_failed_one(three)
    three.dies(0)
    assert three.after(NOTICE_S)[-1] == breaks(1, 1, 2)
    assert only(three.ends(2, "interrupted", broken=True), ev.CellEnded).reasons == {
        2: "blocked by ranks 0-1"
    }


def frees(words: str, *, withdrawn: bool = False) -> ev.Announced:
    return ev.Announced(f"{words}: breaking the process group; variables are kept", 1, withdrawn)


def test_a_killed_rank_has_its_time_to_end(three: Desk) -> None:
    """A rank is given up when SIGKILL has not ended it for five seconds, not before."""
    three.run(0)
    for _ in range(3):
        three.interrupt()
    assert kills(0) in three.after(SIGNAL_CHANCE_S + BREAK_CHANCE_S)
    assert three.after(bounds.KILL_TIMEOUT_S - 0.1) == []
    assert only(three.after(0.2), ev.CellEnded).verdicts == {0: "unknown"}


# --- interrupts ---------------------------------------------------------------------------------------


def test_blame_is_not_laid_where_the_user_interrupted(three: Desk) -> None:
    """Ranks that were freed by the user were not blocked by one that failed in the turmoil."""
    three.run(0, 1)
    three.interrupt()
    three.interrupt()
    three.after(SIGNAL_CHANCE_S)
    three.ends(0, "error", broken=True)
    assert only(three.ends(1, "interrupted", broken=True), ev.CellEnded).reasons == {}


def test_who_was_freed_before_the_user_interrupted_was_blocked(three: Desk) -> None:
    """The user stops one that computes on; that the other was freed from a wait for a dead one stays."""
    three.run(0, 1, 2)
    three.dies(1)
    three.frees_peers(0)
    three.ends(0, "interrupted", broken=True)
    three.interrupt()
    ended = only(three.ends(2, "interrupted"), ev.CellEnded)
    assert ended.reasons == {0: "blocked by rank 1"}


def test_a_rank_that_even_sigkill_does_not_end_ends_the_cell(three: Desk) -> None:
    """Five seconds after SIGKILL the cell is over, and the PID is named."""
    three.run(0, 1)
    for _ in range(3):
        three.interrupt()
    assert kills(0, 1) in three.after(SIGNAL_CHANCE_S + BREAK_CHANCE_S)
    three.dies(0)
    ended = only(three.after(bounds.KILL_TIMEOUT_S), ev.CellEnded)
    assert ended.verdicts == {0: "died", 1: "unknown"}
    assert ended.reasons == {1: "the system does not end its process 101"}


def test_a_cell_over_its_time_is_interrupted_as_by_one_press(three: Desk) -> None:
    """SIGINT when the time is over, the group broken 2 s later, nobody killed; the reason says why."""
    three.run(0, 1, 2, timeout_s=60)
    three.ends(2)
    assert three.after(59.9) == []
    assert three.after(0.1)[0] == interrupts(0, 1)
    announced, *broken = three.after(INTERRUPT_TIMEOUT_S)
    words = "interrupt: ranks 0-1: breaking the process group; variables are kept"
    assert announced == ev.Announced(words, 1)
    assert broken == [breaks(1, 0, 1, 2), interrupts(0, 1)]
    assert not any(e == kills(*ranks) for e in three.after(600) for ranks in ((0,), (1,), (0, 1)))
    three.ends(0, "interrupted", broken=True)
    ended = three.ends(1, "interrupted", broken=True)[-1]
    assert isinstance(ended, ev.CellEnded)
    assert ended.reasons == dict.fromkeys((0, 1), "interrupted by --timeout 60")


def test_a_cell_that_ends_in_time_leaves_no_deadline(three: Desk) -> None:
    three.run(0, timeout_s=60)
    three.ends(0)
    assert three.pool.next_deadline is None
    three.run(0)
    assert three.after(600) == []


def test_the_limit_says_nothing_where_the_user_was_first(three: Desk) -> None:
    """A press before the limit: the limit adds nothing, and is not blamed."""
    three.run(0, timeout_s=3)
    three.after(1)
    three.interrupt()
    assert breaks(1, 0, 1, 2) not in three.after(1.9)
    assert breaks(1, 0, 1, 2) in three.after(10)
    ended = [e for e in three.ends(0, "interrupted") if isinstance(e, ev.CellEnded)]
    assert ended[0].reasons == {}


def test_the_limit_outlives_the_freeing_of_peers(three: Desk) -> None:
    """A rank that computes on after another has failed is interrupted when its time is over."""
    three.run(0, 1, timeout_s=20)
    three.ends(0, "error")
    three.after(5)
    assert [three.answers(rank) for rank in range(3)] == [[], [], []]
    assert three.after(15)[0] == interrupts(1)


def test_a_cells_time_begins_when_it_goes_out(three: Desk) -> None:
    """Not while the group is formed that it waits for."""
    three.run(0, 1, 2)
    for rank in range(3):
        three.ends(rank, "interrupted", broken=True)
    three.run(0, 1, 2, timeout_s=5)
    three.after(10)
    three.forms(0, 1, 2)
    assert three.after(4.9) == []
    assert three.after(0.1)[0] == interrupts(0, 1, 2)


def test_an_interrupt_without_a_cell_does_nothing(three: Desk) -> None:
    """The notebook's button may be pressed at any time."""
    assert three.interrupt() == []
