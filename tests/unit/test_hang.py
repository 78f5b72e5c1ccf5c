"""Who waits for whom, and who is out of step: from sights of ranks to words."""

from __future__ import annotations

from typing import Any

from jupyter_ddp.core import messages as m
from jupyter_ddp.core.hang import doing, explain, may_need, needs, unheard
from jupyter_ddp.core.steps import Sight, Steps, out_of_step


def call(number: int, op: str = "all_reduce", line: int = 14, **fields: Any) -> m.Call:
    return m.Call(number, op, line, f"line {line}", **fields)


def seen(rank: int, *calls: m.Call, name: str = "0", members: tuple[int, ...] = (), **fields: Any) -> Sight:
    """A rank whose last collectives of a group are these."""
    entered = calls[-1].number if calls else 0
    fields.setdefault("doing", "computing")
    return m.RankSeen(rank, 1, 1, 0, -1, groups=(m.GroupState(name, members, entered, calls),), **fields)


def waiting(rank: int, number: int, op: str = "all_reduce", line: int = 14, **fields: Any) -> Sight:
    """A rank that has entered a collective and not come out of it."""
    pending = call(number, op, line, finished=False)
    return seen(rank, pending, doing="waiting", line=line, waits_in=op, **fields)


def sights(*each: Sight) -> dict[int, Sight]:
    return {sight.rank: sight for sight in each}


ALL = frozenset(range(4))


def told(*each: Sight, running: frozenset[int] = ALL) -> str:
    found = explain(sights(*each), running, 4)
    return found.text if found else ""


def test_the_absent_rank_is_named_with_what_it_does() -> None:
    """The collective that it has not entered, with the line; where it is; and who waits."""
    late = seen(2, call(7), place="data.py:31", doing="sleeping")
    assert told(waiting(0, 8), waiting(1, 8), late, waiting(3, 8)) == (
        "rank 2 has not entered all_reduce #8 (line 14); it is in data.py:31, sleeping; "
        "ranks 0-1,3 wait for it"
    )


def test_ranks_that_have_ended_the_cell_are_said_to_have() -> None:
    """They will not come: the cell's own condition left them out."""
    others = [seen(rank, call(7), doing="idle") for rank in (1, 2, 3)]
    assert told(waiting(0, 8), *others, running=frozenset({0})) == (
        "ranks 1-3 have not entered all_reduce #8 (line 14); they have ended the cell; rank 0 waits for them"
    )


def test_ranks_that_the_cell_is_not_for_are_not_said_to_have_ended_it() -> None:
    """Their last cell is an earlier one."""
    beside = m.RankSeen(3, 1, 0, 0, -1, "idle", groups=(m.GroupState("0", (), 7, (call(7),)),))
    ended = seen(1, call(7), doing="idle")
    assert told(waiting(0, 8), ended, beside, running=frozenset({0})) == (
        "ranks 1,3 have not entered all_reduce #8 (line 14); rank 1 has ended the cell; "
        "rank 3 does not run the cell; rank 0 waits for them"
    )


def test_a_stopped_rank_and_one_in_c_code_are_named() -> None:
    """They cannot say themselves what they do: their agent does."""
    stopped = m.RankUnseen(1, -1, 1, 5, "T", 12.0)
    assert told(waiting(0, 8), stopped) == (
        "rank 1 stopped (state T) (line 5); rank 0 waits for it in all_reduce #8 (line 14)"
    )
    mute = m.RankUnseen(1, -1, 1, 5, "R", 10.2)
    words = "rank 1 has been in C code for 10 s (line 5): an interrupt is heard only after that"
    assert unheard({0: seen(0, call(7)), 1: mute}) == f"{words}; the third interrupt kills it"
    assert unheard({0: seen(0, call(7))}) == ""


def test_nobody_is_blamed_when_all_have_entered() -> None:
    """A slow network, and ranks that compute, are no hang."""
    assert told(*(waiting(rank, 8) for rank in range(4))) == ""
    assert told(*(seen(rank, call(7), doing="sleeping") for rank in range(4))) == ""


def test_different_operations_can_never_end() -> None:
    """At the same number of the same group: both are named, and it is called out of step."""
    found = explain(sights(waiting(0, 7, line=3), waiting(1, 7, "broadcast", 5)), ALL, 4)
    assert found is not None
    assert found.out_of_step
    assert found.text == "out of step: rank 0: all_reduce #7 (line 3); rank 1: broadcast #7 (line 5)"


def test_only_members_of_a_group_are_waited_for() -> None:
    """A rank outside has nothing to enter."""
    inside = waiting(0, 1, name="1", members=(0, 2))
    absent = seen(2, name="1", members=(0, 2), place="line 3", doing="sleeping")
    assert told(inside, seen(1), absent, seen(3)) == (
        "rank 2 has not entered all_reduce #1 (line 14); it is at line 3, sleeping; rank 0 waits for it"
    )


def test_a_receive_names_the_sender_and_what_it_does() -> None:
    """Point to point: one waits for one."""
    receiver = m.RankSeen(0, 1, 1, 0, -1, "waiting", 3, "line 3", waits_in="recv", peer=1)
    sender = m.RankSeen(1, 1, 1, 0, -1, "sleeping", 4, "line 4")
    assert (
        told(receiver, sender) == "rank 0 waits in recv from rank 1 (line 3); rank 1 is at line 4, sleeping"
    )


def test_a_group_that_not_all_form() -> None:
    """A rank in new_group waits in the store: for whoever is not there."""
    forming = m.RankSeen(1, 1, 1, 0, -1, "waiting", 2, "line 2", waits_in="new_group")
    idle = m.RankSeen(0, 1, 1, 0, -1, "idle")
    assert told(forming, idle, running=frozenset({1})) == (
        "rank 1 waits in new_group (line 2); rank 0 has ended the cell"
    )


def test_out_of_step_after_the_cell() -> None:
    """The lowest number that a member has not entered, with the line of those that did."""
    ahead = seen(0, call(7), call(8, finished=False))
    behind = [seen(rank, call(7)) for rank in (1, 2, 3)]
    assert out_of_step(sights(ahead, *behind)) == (
        "out of step: ranks 1-3 did not enter all_reduce #8 (line 14) that rank 0 entered"
    )
    assert out_of_step(sights(*(seen(rank, call(8)) for rank in range(4)))) == ""


def test_background_threads_are_left_alone() -> None:
    """An asynchronous checkpoint's collectives go on across the cells' ends."""
    assert out_of_step(sights(seen(0, call(5, background=True)), seen(1, call(4)))) == ""


def test_who_needs_a_failed_rank() -> None:
    """Who waits in a group with it; not who waits in a group without it, or computes."""
    assert needs(waiting(0, 8), {1}, 4)
    assert not needs(waiting(0, 8, name="1", members=(0, 2)), {1}, 4)
    assert not needs(seen(0, call(7)), {1}, 4)
    in_a_store = m.RankSeen(0, 1, 1, 0, -1, "waiting", waits_in="a store")
    assert not needs(in_a_store, {1}, 4)


def test_who_may_need_a_failed_rank() -> None:
    """Who waits in what names no members, or is in torch's function with nothing begun there."""
    assert may_need(m.RankSeen(0, 1, 1, 0, -1, "waiting", waits_in="a store"))
    assert may_need(m.RankSeen(0, 1, 1, 0, -1, "waiting"))
    assert may_need(seen(0, call(7), doing="waiting", waits_in="all_reduce"))
    assert not may_need(waiting(0, 8))
    assert not may_need(m.RankSeen(0, 1, 1, 0, -1, "waiting", waits_in="recv", peer=1))
    assert not may_need(m.RankSeen(0, 1, 1, 0, -1, "sleeping"))
    assert not may_need(m.RankUnseen(0, -1, 1, 0, "R", 12.0))


def finished(rank: int, entered: int, name: str = "0", members: tuple[int, ...] = ()) -> m.CellFinished:
    counts = (m.GroupCount(name, members, entered),) if entered else ()
    return m.CellFinished(rank, 1, 1, 0, "ok", 0.1, counts=counts)


def test_equal_counts_are_not_suspected_and_others_are() -> None:
    """Who did not enter any says nothing, and counts as having stayed where it was."""
    steps = Steps(1)
    for rank in range(2):
        steps.note(finished(rank, 3))
    assert not steps.suspect(2)
    steps.settle(agreed=False)
    steps.note(finished(0, 4))
    steps.note(finished(1, 0))
    assert steps.suspect(2)


def test_what_a_look_has_cleared_is_not_suspected_again() -> None:
    """Counts may differ for good (monitored_barrier): afterwards their growth is compared."""
    steps = Steps(1)
    steps.note(finished(0, 9))
    steps.note(finished(1, 5))
    assert steps.suspect(2)
    steps.settle(agreed=True)
    steps.note(finished(0, 10))
    steps.note(finished(1, 6))
    assert not steps.suspect(2)


def test_counts_are_compared_among_members_only() -> None:
    """A subgroup's other ranks have none."""
    steps = Steps(1)
    for rank in (0, 2):
        steps.note(finished(rank, 3, "1", (0, 2)))
    assert not steps.suspect(4)


def test_a_rank_without_a_count_has_entered_none() -> None:
    """One collective is enough to be out of step."""
    steps = Steps(1)
    steps.note(finished(0, 1))
    steps.note(finished(1, 0))
    assert steps.suspect(2)


def test_an_unfinished_operation_is_suspect_though_counts_agree() -> None:
    """Until the cell's end is settled; a cell without collectives never is."""
    steps = Steps(1)
    assert not steps.suspect(2)
    begun = m.CellFinished(0, 1, 1, 0, "ok", 0.1, counts=(m.GroupCount("0", (), 3),), unfinished=True)
    steps.note(begun)
    steps.note(finished(1, 3))
    assert steps.suspect(2)
    steps.settle(agreed=False)
    assert not steps.suspect(2)
    steps.note(finished(0, 3))
    steps.note(finished(1, 3))
    assert not steps.suspect(2)


def test_what_no_cell_has_touched_since_is_not_suspected() -> None:
    """Counts that differ were looked at once; one that was found in step may have told of none."""
    steps = Steps(1)
    steps.note(finished(0, 3))
    assert steps.suspect(2)
    steps.settle(agreed=False)
    assert not steps.suspect(2)
    steps.note(finished(0, 3))
    steps.settle(agreed=True)
    steps.note(finished(0, 3))
    assert not steps.suspect(2)


def test_a_line_names_four_different_calls_at_most() -> None:
    """And says how many more there are; a call outside any cell by its file, or without a place."""
    places = ["data.py:3", "", "a.py:1", "b.py:2", "c.py:3", "d.py:4"]
    ranks = [
        seen(rank, m.Call(7, f"op{rank}", 0, place), doing="waiting", waits_in="op")
        for rank, place in enumerate(places)
    ]
    within = seen(0, m.Call(7, "op", 14, "data.py:31"))
    assert out_of_step(sights(within, seen(1, call(6)))).endswith("op #7 (line 14) that rank 0 entered")
    four = "out of step: rank 0: op0 #7 (data.py:3); rank 1: op1 #7; rank 2: op2 #7 (a.py:1); "
    assert out_of_step(sights(*ranks[:4])) == f"{four}rank 3: op3 #7 (b.py:2)"
    assert out_of_step(sights(*ranks)) == f"{four}rank 3: op3 #7 (b.py:2); and 2 more"


def test_only_the_last_call_says_whether_a_thread_of_the_users_goes_on() -> None:
    """A rank that has since entered collectives of the cell is compared like any other."""
    ahead = seen(0, call(4, background=True), call(5))
    assert out_of_step(sights(ahead, seen(1, call(4)))).startswith("out of step: rank 1 did not enter")


def test_a_line_explains_in_four_parts_at_most() -> None:
    """Of groups that hang at once; and says how many parts more there are."""
    one = waiting(0, 1, name="1", members=(0, 1)), seen(1, name="1", members=(0, 1), place="line 2")
    two = waiting(2, 1, name="2", members=(2, 3)), seen(3, name="2", members=(2, 3), place="line 2")
    first = "rank 1 has not entered all_reduce #1 (line 14); it is at line 2, computing; rank 0 waits for it"
    assert told(*one) == first
    assert told(*one, *two) == f"{first}; rank 3 has not entered all_reduce #1 (line 14); and 2 more"
    receiver = m.RankSeen(2, 1, 1, 0, -1, "waiting", 5, "line 5", waits_in="recv")
    assert told(*one, receiver) == f"{first}; rank 2 waits in recv from any rank (line 5)"


def test_only_who_waits_hangs() -> None:
    """Not who has begun an operation and goes on, nor in a thread of the user's, nor for what has ended."""
    begun = seen(0, call(8, finished=False))
    assert told(begun, seen(1, call(7))) == ""
    assert told(begun, seen(1, call(8, "broadcast")), seen(2)) == ""
    own = call(8, finished=False, background=True)
    assert told(seen(0, own, doing="waiting", waits_in="a store"), seen(1)) == "rank 0 waits in a store"
    ended = seen(0, call(8), doing="waiting", waits_in="a store", line=3)
    assert told(ended, seen(1)) == "rank 0 waits in a store (line 3)"


def test_absent_ranks_that_do_different_things_are_named() -> None:
    """No "it" or "they" where it would be unclear whom it means."""
    computes, sleeps = seen(1, place="line 2"), seen(2, place="line 3", doing="sleeping")
    assert told(waiting(0, 1), computes, sleeps) == (
        "ranks 1-2 have not entered all_reduce #1 (line 14); rank 1 is at line 2, computing; "
        "rank 2 is at line 3, sleeping; rank 0 waits for them"
    )


def test_who_waits_for_each_other_is_named_once() -> None:
    """Of two that wait, each is told in its own part; who receives from anybody waits for nobody by name."""
    first = m.RankSeen(0, 1, 1, 0, -1, "waiting", 3, "line 3", waits_in="recv", peer=1)
    second = m.RankSeen(1, 1, 1, 0, -1, "waiting", 4, "line 4", waits_in="send", peer=0)
    assert (
        told(first, second)
        == "rank 0 waits in recv from rank 1 (line 3); rank 1 waits in send to rank 0 (line 4)"
    )
    anyone = m.RankSeen(2, 1, 1, 0, -1, "waiting", waits_in="recv", peer=-1)
    assert told(anyone) == "rank 2 waits in recv from any rank"
    from_0 = m.RankSeen(2, 1, 1, 0, -1, "waiting", 5, waits_in="recv", peer=0)
    assert told(from_0, seen(0)) == "rank 2 waits in recv from rank 0 (line 5); rank 0 is computing"
    unheard = m.RankSeen(2, 1, 1, 0, -1, "waiting", place="data.py:3", waits_in="recv", peer=3)
    assert told(unheard) == "rank 2 waits in recv from rank 3 (data.py:3)"


def test_who_waits_in_a_store() -> None:
    """Ranks at the same place together; nobody is to blame for it, nor while all form a group."""
    forming = [m.RankSeen(rank, 1, 1, 0, -1, "waiting", waits_in="new_group") for rank in range(2)]
    assert told(*forming) == ""
    alone = m.RankUnseen(2, -1, 1, 0, "T", 12.0)
    assert told(*forming, alone) == "ranks 0-1 wait in new_group; rank 2 stopped (state T)"
    stores = [m.RankSeen(rank, 1, 1, 0, -1, "waiting", 2, waits_in="a store") for rank in range(2)]
    assert told(*stores) == "ranks 0-1 wait in a store (line 2)"


def test_what_a_rank_does_in_words() -> None:
    """As said of one rank, wherever it is and whether or not a line is known."""
    sent = m.RankSeen(0, 1, 1, 0, -1, "waiting", 3, waits_in="isend", peer=2)
    assert doing(sent)[0] == "waits in isend to rank 2 (line 3)"
    assert doing(waiting(0, 7)) == ("waits in all_reduce (line 14)", "wait in all_reduce (line 14)")
    assert doing(seen(0)) == ("is computing", "are computing")
    assert doing(seen(0, place="data.py:3"))[1] == "are in data.py:3, computing"
    assert doing(seen(0, doing="idle"))[0] == "does not run the cell"
    assert doing(m.RankUnseen(0, -1, 1, 0, "", 12.0)) == ("is gone", "are gone")


def test_who_does_not_hear_an_interrupt() -> None:
    """Who may hear it later; who is gone will not; once the group was broken, all that are still there."""
    gone, mute = m.RankUnseen(0, -1, 1, 0, "", 12.0), m.RankUnseen(1, -1, 1, 5, "R", 10.0)
    assert unheard({0: gone}, broken=True) == ""
    sleeps = seen(2, place="line 3", doing="sleeping")
    words = "rank 1 has been in C code for 10 s (line 5): an interrupt is heard only after that"
    assert unheard({0: gone, 1: mute, 2: sleeps}) == f"{words}; the third interrupt kills it"
    both = f"{words}; rank 2 is at line 3, sleeping; the third interrupt kills them"
    assert unheard({0: gone, 1: mute, 2: sleeps}, broken=True) == both
    alone = "rank 2 is at line 3, sleeping; the third interrupt kills it"
    assert unheard({2: sleeps}, broken=True) == alone


def test_who_needs_a_failed_rank_point_to_point() -> None:
    """Who receives from it or from anybody; an answer that never came is none."""
    from_0, from_any = (m.RankSeen(1, 1, 1, 0, -1, "waiting", waits_in="recv", peer=p) for p in (0, -1))
    assert needs(from_0, {0}, 4)
    assert not needs(from_0, {2}, 4)
    assert needs(from_any, {2}, 4)
    assert not needs(m.RankUnseen(1, -1, 1, 0, "R", 12.0), {0}, 4)
