"""The pool's look-out: when it asks the ranks, which answers count, and what they come to."""

from __future__ import annotations

from typing import Any

import pytest

from jupyter_ddp.core import events as ev
from jupyter_ddp.core import messages as m
from jupyter_ddp.core.lookout import LOOK_PAUSE_S, LOOK_TIMEOUT_S, Lookout, Purpose

NOW, CELL = 1000.0, 7


@pytest.fixture
def lookout() -> Lookout:
    return Lookout()


def stuck(rank: int, for_s: float = 10.0) -> m.RankStuck:
    return m.RankStuck(rank, 1, CELL, 0, for_s)


def seen(rank: int, look: int | None, entered: int = 0, **fields: Any) -> m.RankSeen:
    """A rank that computes, unless it waits in a collective of all, which it has entered as its last."""
    assert look is not None
    waits = bool(fields.get("waits_in"))
    fields.setdefault("doing", "waiting" if waits else "computing")
    calls = (m.Call(entered, "all_reduce", 3, "line 3", not waits),) if entered else ()
    return m.RankSeen(rank, 1, CELL, 0, look, groups=(m.GroupState("0", (), entered, calls),), **fields)


def finished(rank: int, entered: int, generation: int = 1, unfinished: bool = False) -> m.CellFinished:
    counts = (m.GroupCount("0", (), entered),)
    return m.CellFinished(rank, generation, CELL, 0, "ok", 0.1, counts=counts, unfinished=unfinished)


def asked(effects: list[ev.Effect]) -> int:
    """The number of the one question among the effects."""
    (send,) = effects
    assert isinstance(send, ev.SendToNodes)
    assert isinstance(send.message, m.Tell)
    assert isinstance(send.message.command, m.Look)
    return send.message.command.number


# --- asking -----------------------------------------------------------------------------------------


def test_its_questions_have_numbers_of_their_own(lookout: Lookout) -> None:
    """Below 0, where a user's are above; no two alike; none is open before, or once it is concluded."""
    assert lookout.open_look is None
    first = asked(lookout.look(Purpose.STEPS, [1, 0], NOW))
    assert lookout.open_look == first
    assert lookout.deadline == NOW + LOOK_TIMEOUT_S
    lookout.conclude({0, 1}, set(), 2)
    assert (lookout.open_look, lookout.deadline) == (None, None)
    second = asked(lookout.look(Purpose.STEPS, [0], NOW + 1))
    assert 0 > first > second


def test_only_awaited_answers_to_the_open_question_count(lookout: Lookout) -> None:
    """Neither an old number's, nor those of ranks that were not asked or have answered."""
    old = asked(lookout.look(Purpose.PEERS, [0, 1], NOW))
    number = asked(lookout.look(Purpose.STEPS, [0, 1], NOW))
    assert not lookout.take(seen(0, old))
    assert not lookout.take(seen(1, old))
    assert not lookout.take(seen(2, number))
    assert not lookout.take(seen(0, number))
    assert not lookout.take(seen(0, number))
    assert lookout.take(seen(1, number))
    assert not lookout.take(seen(1, number)), "it was the last, once"


def test_an_open_question_is_asked_again_with_the_new_one(lookout: Lookout) -> None:
    """What is concluded serves both; the next one starts without purposes."""
    lookout.look(Purpose.HANG, [0], NOW)
    number = asked(lookout.look(Purpose.INTERRUPT, [0], NOW))
    lookout.take(seen(0, number))
    assert lookout.conclude({0}, set(), 1).purposes == {Purpose.HANG, Purpose.INTERRUPT}
    lookout.look(Purpose.STEPS, [0], NOW)
    assert lookout.conclude({0}, set(), 1).purposes == {Purpose.STEPS}


# --- what it comes to -------------------------------------------------------------------------------


def test_while_ranks_run_the_finding_is_about_them(lookout: Lookout) -> None:
    """Who waits for whom; which of the running are silent; nothing yet about steps."""
    number = asked(lookout.look(Purpose.HANG, [0, 1, 2, 3], NOW))
    lookout.take(seen(0, number, 1, waits_in="all_reduce", line=3))
    lookout.take(seen(1, number))
    lookout.take(m.RankUnseen(2, number, CELL, 5, "R", 20.0))
    assert lookout.take(m.RankUnseen(3, number, 0, 0, "T", 20.0))
    found = lookout.conclude({0, 1, 2}, {3}, 4)
    assert found.hang is not None
    assert found.hang.text.startswith("rank 1 has not entered all_reduce #1 (line 3)")
    assert found.unheard.startswith("rank 2 has been in C code for 20 s (line 5)")
    assert "rank 3" not in found.unheard
    assert found.out_of_step == ""
    assert found.certain
    assert found.blocked, "rank 0 waits for rank 3, which has ended"


def test_after_the_group_was_broken_all_that_run_are_unheard(lookout: Lookout) -> None:
    """Also who answers, and runs on."""
    for broken in (False, True):
        number = asked(lookout.look(Purpose.INTERRUPT, [0], NOW))
        lookout.take(seen(0, number))
        found = lookout.conclude({0}, set(), 1, broken=broken) if broken else lookout.conclude({0}, set(), 1)
        assert bool(found.unheard) is broken


def test_when_all_have_ended_the_finding_is_about_steps(lookout: Lookout) -> None:
    """Who stands elsewhere; nobody hangs, nobody is silent."""
    number = asked(lookout.look(Purpose.STEPS, [0, 1], NOW))
    lookout.take(seen(0, number, 1, waits_in="all_reduce", line=3))
    lookout.take(seen(1, number))
    found = lookout.conclude(set(), {0, 1}, 2)
    assert found.out_of_step.startswith("out of step: rank 1 did not enter all_reduce #1")
    assert found.hang is None
    assert not found.blocked


def test_without_every_answer_nothing_is_certain(lookout: Lookout) -> None:
    """A rank that was not heard of is not said to wait for one that has failed."""
    number = asked(lookout.look(Purpose.PEERS, [0, 1], NOW))
    lookout.take(seen(0, number))
    found = lookout.conclude({0, 1}, {2}, 3)
    assert not found.certain
    assert (found.blocked, found.silent) == (frozenset(), {1})
    number = asked(lookout.look(Purpose.PEERS, [0, 1, 2], NOW))
    lookout.take(m.RankSeen(0, 1, CELL, 0, number, "waiting", waits_in="a store"))
    lookout.take(m.RankUnseen(1, number, CELL, 0, "S", 1.0))
    found = lookout.conclude({0, 1}, {2}, 3)
    assert (found.blocked, found.doubtful, found.silent) == (frozenset(), {0}, {1})
    number = asked(lookout.look(Purpose.PEERS, [0], NOW))
    lookout.take(seen(0, number))
    found = lookout.conclude({0}, {2}, 3)
    assert found.certain
    assert not found.blocked | found.doubtful | found.silent


# --- hangs ------------------------------------------------------------------------------------------


def test_a_stuck_rank_causes_a_look_and_the_next_within_its_pause_none(lookout: Lookout) -> None:
    """One serves them all; none is asked while one is open, however late; who has ended is not heard."""
    assert lookout.hear(stuck(5), {0, 1}, [0, 1], NOW) == []
    number = asked(lookout.hear(stuck(0), {0, 1}, [0, 1], NOW))
    assert lookout.hear(stuck(1), {0, 1}, [0, 1], NOW + LOOK_PAUSE_S + 1) == [], "it is open"
    lookout.take(seen(0, number))
    lookout.take(seen(1, number))
    lookout.conclude({0, 1}, set(), 2)
    assert lookout.hear(stuck(1), {0, 1}, [0, 1], NOW + LOOK_PAUSE_S - 0.1) == []
    assert asked(lookout.hear(stuck(1), {0, 1}, [0, 1], NOW + LOOK_PAUSE_S))


def test_a_notice_goes_when_the_last_stuck_rank_goes_on(lookout: Lookout) -> None:
    """Not before; and it is said once."""
    running = {0, 1}
    for rank in running:
        lookout.hear(stuck(rank), running, [0, 1], NOW)
    assert lookout.tell(CELL, "held up") == [ev.HangSeen(CELL, "held up")]
    assert lookout.tell(CELL, "held up") == []
    assert lookout.hear(stuck(0, 0.0), running, [0, 1], NOW + 1) == []
    assert lookout.hear(stuck(1, 0.0), running, [0, 1], NOW + 1) == [ev.HangSeen(CELL, "")]
    assert lookout.hear(stuck(1, 0.0), running, [0, 1], NOW + 2) == []


def test_a_hang_lasts_from_when_the_first_rank_was_stuck(lookout: Lookout) -> None:
    """As long as there is one that the user sees, and a rank that is stuck; without a limit for ever."""
    assert lookout.hang_deadline(600) is None
    lookout.hear(stuck(0, 10.0), {0, 1}, [0, 1], NOW)
    assert lookout.hang_deadline(600) is None, "the user sees none yet"
    lookout.hear(stuck(1, 30.0), {0, 1}, [0, 1], NOW)
    lookout.hear(stuck(1, 40.0), {0, 1}, [0, 1], NOW + 20)  # the first time counts
    lookout.tell(CELL, "held up")
    assert lookout.hang_deadline(600) == NOW - 30 + 600
    assert lookout.hang_deadline(0) is None
    lookout.note(finished(1, 0))
    assert lookout.hang_deadline(600) == NOW - 10 + 600
    lookout.note(finished(0, 0))
    assert lookout.hang_deadline(600) is None


def test_what_was_seen_of_a_cell_goes_with_it(lookout: Lookout) -> None:
    """The question, the notice, who was stuck; and the next cell's first stuck rank causes a look at once."""
    lookout.hear(stuck(0), {0}, [0], NOW)
    lookout.tell(CELL, "held up")
    lookout.end_cell()
    assert (lookout.open_look, lookout.deadline, lookout.hang_text) == (None, None, "")
    lookout.tell(CELL + 1, "held up")
    assert lookout.hang_deadline(600) is None
    assert asked(lookout.hear(stuck(0), {0}, [0], NOW + 1))


# --- steps ------------------------------------------------------------------------------------------


def test_a_look_that_finds_all_in_step_clears_the_counts(lookout: Lookout) -> None:
    """They may differ for good; without a look, they are as suspect as before when they come again."""
    for in_step in (False, True):
        lookout.note(finished(0, 9))
        lookout.note(finished(1, 5))
        assert lookout.steps.suspect(2)
        if in_step:
            lookout.end_cell(in_step=True)
        else:
            lookout.end_cell()
        lookout.note(finished(0, 9))
        lookout.note(finished(1, 5))
        assert lookout.steps.suspect(2) is not in_step
        lookout.end_cell()


def test_a_new_generation_counts_anew(lookout: Lookout) -> None:
    """Its groups begin at 1: what the last one's had come to, and was found to be in step, is no measure."""
    lookout.note(finished(0, 9))
    lookout.note(finished(1, 5))
    lookout.end_cell(in_step=True)
    lookout.note(finished(0, 1, generation=2))
    lookout.note(finished(1, 1, generation=2))
    assert not lookout.steps.suspect(2)
    lookout.note(finished(0, 2, generation=2))
    assert lookout.steps.suspect(2)
