"""The pool's machine when ranks are out of step, or hang."""

from __future__ import annotations

from typing import Any

import pytest

from jupyter_ddp.core import bounds
from jupyter_ddp.core import events as ev
from jupyter_ddp.core import messages as m
from jupyter_ddp.core import pool as p
from jupyter_ddp.core.ladder import NOTICE_S
from jupyter_ddp.core.lookout import LOOK_AGAIN_S, LOOK_TIMEOUT_S, LOOKS_AGAIN
from tests.unit.desk import Desk, breaks, interrupts, only, tells


@pytest.fixture
def two() -> Desk:
    """A pool of two ranks that takes cells."""
    desk = Desk()
    desk.come_up(2)
    return desk


def ends(desk: Desk, rank: int, entered: int) -> list[ev.Effect]:
    """The rank ends the cell well, having entered so many collectives of the world."""
    counts = (m.GroupCount("0", (), entered),) if entered else ()
    return desk.handle(m.CellFinished(rank, 1, desk.cells, 0, "ok", 0.1, counts=counts))


def sees(desk: Desk, rank: int, entered: int, **fields: Any) -> list[ev.Effect]:
    look = desk.pool.open_look
    assert look is not None
    calls = tuple(m.Call(n + 1, "all_reduce", 3, "line 3", not fields) for n in range(entered))
    state = m.GroupState("0", (), entered, calls)
    fields.setdefault("doing", "idle")
    return desk.handle(m.RankSeen(rank, 1, desk.cells, 0, look, groups=(state,), **fields))


def announcements(effects: list[ev.Effect]) -> list[str]:
    return [e.text for e in effects if isinstance(e, ev.Announced)]


def stuck(desk: Desk, rank: int, for_s: float = 10.0) -> list[ev.Effect]:
    return desk.handle(m.RankStuck(rank, 1, desk.cells, 0, for_s))


def test_a_rank_that_skipped_a_collective(two: Desk) -> None:
    """The cell's end waits for a look, warns, and the group is formed anew."""
    two.run(0, 1)
    ends(two, 0, 1)
    assert tells(ends(two, 1, 0), m.Look) == [0, 1]
    sees(two, 0, 1)
    effects = sees(two, 1, 0)
    (warning,) = only(effects, ev.CellEnded).warnings
    assert warning.startswith("out of step: rank 1 did not enter all_reduce #1 (line 3) that rank 0 entered")
    assert tells(effects, m.FormGroup) == [0, 1]
    assert two.pool.phase is p.Phase.FORMING


def test_counts_that_only_seemed_to_differ(two: Desk) -> None:
    """A look that finds everyone in step ends the cell as it is."""
    two.run(0, 1)
    ends(two, 0, 5)
    ends(two, 1, 4)
    sees(two, 0, 3)
    assert sees(two, 1, 3) == [ev.CellEnded(1, {0: "ok", 1: "ok"})]
    assert two.pool.phase is p.Phase.READY


def test_the_end_waits_for_answers_no_longer_than_their_time(two: Desk) -> None:
    """A rank that says nothing delays the cell's end by the bound, and no more."""
    two.run(0, 1)
    ends(two, 0, 5)
    ends(two, 1, 4)
    assert only(two.after(2), ev.CellEnded).verdicts == {0: "ok", 1: "ok"}
    assert two.pool.next_deadline is None


def test_a_press_ends_the_waiting_for_answers(two: Desk) -> None:
    """An interrupt always gets through."""
    two.run(0, 1)
    ends(two, 0, 5)
    ends(two, 1, 4)
    assert only(two.interrupt(), ev.CellEnded).cell == 1


def hang(desk: Desk, **settings: float) -> list[ev.Effect]:
    """Rank 0 waits in a collective that rank 1, asleep, has not entered."""
    desk.cells += 1
    desk.handle(ev.CellRequested(desk.cells, (0, 1), "pass", **settings))
    assert tells(stuck(desk, 0), m.Look) == [0, 1]
    sees(desk, 0, 1, doing="waiting", waits_in="all_reduce", line=3)
    return sees(desk, 1, 0, doing="sleeping", place="line 2")


HANG = "rank 1 has not entered all_reduce #1 (line 3); it is at line 2, sleeping; rank 0 waits for it"


def test_a_hang_is_told_and_taken_back(two: Desk) -> None:
    """Nothing is done about it; when the rank goes on, the notice goes."""
    assert hang(two) == [ev.HangSeen(1, HANG)]
    assert two.after(86400) == []
    assert stuck(two, 0, 0.0) == [ev.HangSeen(1, "")]


def test_an_interrupt_keeps_the_hangs_explanation(two: Desk) -> None:
    """Said once: the notice goes with the hang, and what the user was told is in the cell."""
    hang(two)
    assert two.interrupt()[0] == ev.Announced(f"before the interrupt: {HANG}", 1)
    assert not any(HANG in text for text in announcements(two.interrupt()))


def test_an_interrupt_says_nothing_of_a_hang_that_is_over(two: Desk) -> None:
    """The rank went on by itself before."""
    hang(two)
    stuck(two, 0, 0.0)
    assert not announcements(two.interrupt())


def test_several_stuck_ranks_cause_one_look(two: Desk) -> None:
    """A second rank that says so within seconds is not asked again."""
    hang(two)
    assert stuck(two, 0) == []


def test_a_hang_of_the_longest_time_ends_the_cell(two: Desk) -> None:
    """Where nobody watches: the group is broken, the ranks interrupted, and the reason is the hang."""
    hang(two, hang_timeout_s=600)
    assert two.after(589) == []
    assert two.after(2)[:2] == [breaks(1, 0, 1), interrupts(0, 1)]
    two.ends(0, "interrupted", broken=True)
    assert only(two.ends(1, "interrupted"), ev.CellEnded).hang == HANG


def test_a_rank_waits_for_a_failed_one_only_later(two: Desk) -> None:
    """It computed when the other failed; when it is stuck, it is freed."""
    two.run(0, 1)
    two.ends(1, "error")
    two.after(bounds.PEER_FAILED_TIMEOUT_S)
    sees(two, 0, 0, doing="computing")
    assert sees(two, 1, 0) == []
    two.after(10)
    stuck(two, 0)
    sees(two, 0, 1, doing="waiting", waits_in="all_reduce", line=3)
    (announced,) = sees(two, 1, 0)
    assert announced == ev.Announced(
        "rank 1 failed, rank 0 waits for it: breaking the process group; variables are kept", 1
    )
    assert two.after(NOTICE_S) == [breaks(1, 0, 1)]


def unseen(desk: Desk, rank: int, state: str = "R", silent_s: float = 12.0) -> list[ev.Effect]:
    """The agent answers for a rank that does not."""
    look = desk.pool.open_look
    assert look is not None
    return desk.handle(m.RankUnseen(rank, look, desk.cells, 3, state, silent_s))


IN_C = (
    "rank 1 has been in C code for 12 s (line 3): an interrupt is heard only after that; "
    "the third interrupt kills it"
)


def test_a_rank_in_c_code_is_told_though_nobody_waits_for_it(two: Desk) -> None:
    """Who waits for the cell asks after ten seconds; the notice goes when the rank answers again."""
    two.run(0, 1)
    assert tells(two.handle(ev.CellTookLong(1)), m.Look) == [0, 1]
    sees(two, 0, 0, doing="computing")
    assert unseen(two, 1) == [ev.HangSeen(1, IN_C)]
    two.handle(ev.CellTookLong(1))
    sees(two, 0, 0, doing="computing")
    assert sees(two, 1, 0, doing="computing") == [ev.HangSeen(1, "")]


@pytest.mark.parametrize(("state", "silent_s"), [("R", 3.0), ("T", 60.0), ("", 60.0)])
def test_a_moment_in_c_code_a_stopped_rank_and_a_dead_one_are_told_otherwise(
    two: Desk, state: str, silent_s: float
) -> None:
    """Only who holds the GIL for ten seconds is named unasked."""
    two.run(0, 1)
    two.handle(ev.CellTookLong(1))
    sees(two, 0, 0, doing="computing")
    assert unseen(two, 1, state, silent_s) == []


def test_nothing_is_asked_while_the_ranks_are_asked_already_or_have_ended(two: Desk) -> None:
    two.run(0, 1)
    two.handle(ev.CellTookLong(1))
    assert two.handle(ev.CellTookLong(1)) == []
    assert two.handle(ev.CellTookLong(7)) == []


def slow_to_answer(desk: Desk) -> None:
    """Rank 1 has failed; rank 2 may wait for it, and does not answer, nor does its agent."""
    desk.run(0, 1, 2)
    desk.ends(1, "error")
    desk.after(bounds.PEER_FAILED_TIMEOUT_S)
    sees(desk, 0, 0, doing="computing")
    sees(desk, 1, 0)


def test_who_does_not_answer_is_not_said_to_wait(three: Desk) -> None:
    """On a busy machine: it is asked again, and computes."""
    slow_to_answer(three)
    assert tells(three.after(LOOK_TIMEOUT_S + LOOK_AGAIN_S), m.Look) == [0, 1, 2]
    assert [sees(three, rank, 0, doing="computing") for rank in range(3)] == [[]] * 3
    assert three.pool.next_deadline is None


def test_who_answers_at_the_second_time_is_freed(three: Desk) -> None:
    slow_to_answer(three)
    three.after(LOOK_TIMEOUT_S + LOOK_AGAIN_S)
    sees(three, 0, 0, doing="computing")
    sees(three, 1, 0)
    (announced,) = announcements(sees(three, 2, 1, doing="waiting", waits_in="all_reduce"))
    assert announced.startswith("rank 1 failed, rank 2 waits for it: breaking")


def test_who_never_answers_is_asked_no_more_and_is_freed_when_it_comes_forward(three: Desk) -> None:
    """What would free it does not answer either; when it does, it says that it is stuck."""
    slow_to_answer(three)
    asked = tells(three.after(60), m.Look)
    assert asked == [0, 1, 2] * LOOKS_AGAIN
    assert three.pool.next_deadline is None
    stuck(three, 2)
    sees(three, 0, 0, doing="computing")
    sees(three, 1, 0)
    assert announcements(sees(three, 2, 1, doing="waiting", waits_in="all_reduce"))
    assert three.after(NOTICE_S) == [breaks(1, 0, 1, 2)]


def test_who_waits_in_what_names_no_ranks_is_freed_when_it_stays_there(three: Desk) -> None:
    """In a store, say; where it was only on its way out of a collective, nothing is done."""
    for stays in (True, False):
        three.run(0, 1)
        three.ends(1, "error")
        three.after(bounds.PEER_FAILED_TIMEOUT_S)
        effects: list[ev.Effect] = []
        for _ in range(LOOKS_AGAIN + stays):
            sees(three, 1, 0)
            sees(three, 2, 0)
            effects = sees(three, 0, 0, doing="waiting", waits_in="a store" if stays else "all_reduce")
            effects += [] if announcements(effects) else three.after(LOOK_AGAIN_S)
        if stays:
            assert len(announcements(effects)) == 1
            three.after(NOTICE_S)
            three.ends(0, "interrupted", broken=True)
            three.forms(0, 1, 2)
        else:
            assert [sees(three, rank, 0, doing="computing") for rank in range(3)] == [[]] * 3
            assert three.pool.next_deadline is None


def test_where_asks_all_living_ranks(two: Desk) -> None:
    """At any time; the number is the asker's."""
    two.run(0, 1)
    (asked,) = two.handle(ev.LookRequested(5, True))
    assert asked == ev.SendToNodes((0, 1), m.Tell([0, 1], m.Look(5, True)))


def test_who_waits_for_the_cell_does_not_keep_a_hang_from_being_explained(two: Desk) -> None:
    """Asked for the one reason, the ranks are asked again for the other, at once."""
    two.run(0, 1)
    two.handle(ev.CellTookLong(1))
    assert tells(stuck(two, 0), m.Look) == [0, 1]
    sees(two, 0, 1, doing="waiting", waits_in="all_reduce", line=3)
    assert sees(two, 1, 0, doing="sleeping", place="line 2") == [ev.HangSeen(1, HANG)]
    two.after(2)
    two.handle(ev.CellTookLong(1))
    sees(two, 0, 1, doing="waiting", waits_in="all_reduce", line=3)
    assert sees(two, 1, 0, doing="sleeping", place="line 2") == []


def test_what_a_look_has_cleared_needs_none_the_next_time(two: Desk) -> None:
    """Counts that differ for good, and grow alike."""
    two.run(0, 1)
    ends(two, 0, 5)
    ends(two, 1, 4)
    sees(two, 0, 3)
    sees(two, 1, 3)
    two.run(0, 1)
    ends(two, 0, 6)
    assert ends(two, 1, 5) == [ev.CellEnded(2, {0: "ok", 1: "ok"})]


def test_what_a_look_has_not_cleared_is_looked_at_again(two: Desk) -> None:
    """Ranks that gave no answer have not shown that they are in step."""
    two.run(0, 1)
    ends(two, 0, 5)
    ends(two, 1, 4)
    two.after(LOOK_TIMEOUT_S)
    two.run(0, 1)
    ends(two, 0, 6)
    assert tells(ends(two, 1, 5), m.Look) == [0, 1]


def test_a_group_that_is_broken_anyway_is_not_looked_at(two: Desk) -> None:
    """That its members are out of step is no news, and a new one is formed at once."""
    two.run(0, 1)
    ends(two, 0, 5)
    counts = (m.GroupCount("0", (), 4),)
    effects = two.handle(m.CellFinished(1, 1, 1, 0, "error", 0.1, True, counts=counts))
    assert tells(effects, m.FormGroup) == [0, 1]
    assert tells(effects, m.Look) == []


def test_a_look_at_the_end_waits_for_nothing_else(two: Desk) -> None:
    """Neither for the time that peers of a failed rank have, nor for the next step of an interrupt."""
    two.run(0, 1)
    two.handle(m.CellFinished(0, 1, 1, 0, "error", 0.1, counts=(m.GroupCount("0", (), 5),)))
    two.after(4)
    assert tells(ends(two, 1, 4), m.Look) == [0, 1]
    assert two.pool.next_deadline == two.now + LOOK_TIMEOUT_S
    two.after(LOOK_TIMEOUT_S)
    two.run(0, 1)
    two.interrupt()
    two.after(1)
    two.cells = 2
    ends(two, 0, 9)
    ends(two, 1, 5)
    assert two.after(1.2) == []


def test_a_press_leaves_the_breaking_to_its_own_step(two: Desk) -> None:
    """Also where the look that comes with it finds that somebody waits for a failed rank."""
    two.run(0, 1)
    two.ends(1, "error")
    two.interrupt()
    sees(two, 0, 1, doing="waiting", waits_in="all_reduce", line=3)
    assert breaks(1, 0, 1) not in sees(two, 1, 0)


def test_another_cells_long_time_is_none_of_this_one(two: Desk) -> None:
    """It has ended meanwhile."""
    two.run(0, 1)
    assert two.handle(ev.CellTookLong(7)) == []


def test_who_was_stuck_in_another_cell_is_not_asked_about_in_this_one(two: Desk) -> None:
    """Its word was late."""
    two.run(0, 1)
    assert two.handle(m.RankStuck(0, 1, 7, 0, 10.0)) == []


def test_who_waits_for_a_rank_that_has_ended_well_is_explained_and_left_alone(two: Desk) -> None:
    """Only for one that failed is the group broken unasked."""
    two.run(0, 1)
    two.ends(1)
    stuck(two, 0)
    sees(two, 0, 1, doing="waiting", waits_in="all_reduce", line=3)
    (seen,) = sees(two, 1, 0)
    assert isinstance(seen, ev.HangSeen)
    assert "it has ended the cell; rank 0 waits for it" in seen.text


def waits_in(desk: Desk, rank: int, op: str) -> list[ev.Effect]:
    """The rank waits in its first collective of the world."""
    look = desk.pool.open_look
    assert look is not None
    state = m.GroupState("0", (), 1, (m.Call(1, op, 3, "line 3", finished=False),))
    return desk.handle(m.RankSeen(rank, 1, desk.cells, 0, look, "waiting", 3, waits_in=op, groups=(state,)))


def test_a_hang_that_cannot_end_is_ended(two: Desk) -> None:
    """Two operations that will never meet: the group is broken, and the reason is given."""
    two.run(0, 1)
    stuck(two, 0)
    waits_in(two, 0, "all_reduce")
    words = "out of step: rank 0: all_reduce #1 (line 3); rank 1: broadcast #1 (line 3)"
    effects = waits_in(two, 1, "broadcast")
    assert effects[:3] == [ev.HangSeen(1, words), breaks(1, 0, 1), interrupts(0, 1)]


def test_a_press_leaves_a_hang_that_cannot_end_to_its_own_step(two: Desk) -> None:
    """Nobody has been stuck for long: the ladder's next step is soon enough."""
    two.run(0, 1)
    two.interrupt()
    waits_in(two, 0, "all_reduce")
    assert breaks(1, 0, 1) not in waits_in(two, 1, "broadcast")


def test_a_press_does_not_keep_a_hang_from_being_explained(two: Desk) -> None:
    """The ranks are asked anew, for both reasons; all of them hear the interrupt."""
    two.run(0, 1)
    stuck(two, 0)
    two.interrupt()
    sees(two, 0, 1, doing="waiting", waits_in="all_reduce", line=3)
    assert sees(two, 1, 0, doing="sleeping", place="line 2") == [ev.HangSeen(1, HANG)]


def test_an_end_told_twice_asks_nobody_twice(two: Desk) -> None:
    two.run(0, 1)
    ends(two, 0, 5)
    assert tells(ends(two, 1, 4), m.Look) == [0, 1]
    assert ends(two, 1, 4) == []


def test_a_look_that_a_press_has_ended_has_cleared_nothing(two: Desk) -> None:
    """The next cell's end looks again."""
    two.run(0, 1)
    ends(two, 0, 5)
    ends(two, 1, 4)
    two.interrupt()
    two.run(0, 1)
    ends(two, 0, 6)
    assert tells(ends(two, 1, 5), m.Look) == [0, 1]


def test_a_look_goes_with_the_pool(two: Desk) -> None:
    """Ranks were asked, and the pool was stopped: the next pool's cell waits for no answer of theirs."""
    two.run(0, 1)
    two.handle(ev.CellTookLong(1))
    two.stop()
    two.dies(0)
    two.dies(1)
    assert two.pool.open_look is None
    two.come_up(2)
    two.run(0, 1)
    assert two.pool.next_deadline is None


def test_in_a_pool_with_a_dead_rank_nobody_is_asked_at_the_end(three: Desk) -> None:
    """What the living have of the old group counts no more."""
    three.dies(1)
    three.run(0, 2)
    for rank, entered in ((0, 1), (2, 0)):
        counts = (m.GroupCount("pair", (0, 2), entered),)
        last = three.handle(m.CellFinished(rank, 1, 1, 0, "ok", 0.1, counts=counts))
    assert last == [ev.CellEnded(1, {0: "ok", 2: "ok"})]
