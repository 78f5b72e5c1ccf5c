"""The pool's machine when the user interrupts a cell: each step announced, with its chance, in its order."""

from __future__ import annotations

import pytest

from jupyter_ddp.core import events as ev
from jupyter_ddp.core import messages as m
from jupyter_ddp.core.ladder import BREAK_CHANCE_S, INTERRUPT_TIMEOUT_S, NOTICE_S, SIGNAL_CHANCE_S
from tests.unit.desk import Desk, breaks, interrupts, kills, only, tells


def breaking(ranks: str, withdrawn: bool = False) -> ev.Announced:
    return ev.Announced(f"interrupt: {ranks}: breaking the process group; variables are kept", 1, withdrawn)


def killing(ranks: str, hold: str = "they hold", withdrawn: bool = False) -> ev.Announced:
    return ev.Announced(f"interrupt: killing {ranks}; what only {hold} is lost", 1, withdrawn)


def ladder(effects: list[ev.Effect]) -> list[ev.Effect]:
    """Without the looks at what keeps the ranks."""
    return [e for e in effects if not tells([e], m.Look)]


def test_one_press_signals_and_breaks_two_seconds_later(three: Desk) -> None:
    """SIGINT goes to those that still run; then the breaking is announced, and done; SIGINT goes again."""
    three.run(0, 1, 2)
    three.ends(1)
    assert ladder(three.interrupt()) == [interrupts(0, 2)]
    assert ladder(three.after(INTERRUPT_TIMEOUT_S - NOTICE_S)) == [breaking("ranks 0,2")]
    assert ladder(three.after(NOTICE_S)) == [breaks(1, 0, 1, 2), interrupts(0, 2)]
    assert ladder(three.after(60)) == []  # nobody says what keeps them, and nobody is killed
    assert three.pool.next_deadline is None


def test_each_press_goes_one_step_further(three: Desk) -> None:
    """A second or two apart: each says what it costs, and is done as soon as that can have been read."""
    three.run(0, 1, 2)
    three.interrupt()
    three.ends(2, "interrupted")
    three.after(1)
    assert ladder(three.interrupt()) == [breaking("ranks 0-1")]
    assert ladder(three.after(NOTICE_S)) == [breaks(1, 0, 1, 2), interrupts(0, 1)]
    three.after(2)
    assert ladder(three.interrupt()) == [killing("ranks 0-1")]
    assert ladder(three.after(NOTICE_S)) == [kills(0, 1)]
    three.dies(0)
    assert only(three.dies(1), ev.CellEnded).verdicts == {0: "died", 1: "died", 2: "interrupted"}


def test_three_presses_at_once_give_each_step_its_chance(three: Desk) -> None:
    """Nobody is killed whom the second step frees; who is still there is killed in the end, announced."""
    three.run(0, 1, 2)
    effects = [e for _ in range(3) for e in three.interrupt()]
    assert ladder(effects) == [interrupts(0, 1, 2), breaking("ranks 0-2")]
    three.ends(2, "interrupted")
    assert ladder(three.after(SIGNAL_CHANCE_S)) == [
        breaking("ranks 0-2", withdrawn=True), breaking("ranks 0-1"), breaks(1, 0, 1, 2), interrupts(0, 1),
        killing("ranks 0-1"),
    ]  # fmt: skip
    three.ends(0, "interrupted", broken=True)
    assert ladder(three.after(BREAK_CHANCE_S - 0.1)) == []
    assert ladder(three.after(0.1)) == [
        killing("ranks 0-1", withdrawn=True), killing("rank 1", "it holds"), kills(1)
    ]  # fmt: skip


@pytest.mark.parametrize("presses", [2, 3])
def test_a_step_that_is_not_needed_is_taken_back(three: Desk, presses: int) -> None:
    """It was announced, and the ranks have ended of themselves: nothing is broken, nobody killed."""
    three.run(0, 1)
    for _ in range(presses):
        three.interrupt()
    three.ends(0, "interrupted")
    effects = three.ends(1, "interrupted")
    assert effects == [
        breaking("ranks 0-1", withdrawn=True), ev.CellEnded(1, dict.fromkeys((0, 1), "interrupted"))
    ]  # fmt: skip
    assert three.pool.next_deadline is None


def test_a_second_press_never_kills(three: Desk) -> None:
    """Also where two seconds have broken the group already: it is SIGINT once more, with its own chance."""
    three.run(0, 1)
    three.interrupt()
    three.after(INTERRUPT_TIMEOUT_S)
    assert ladder(three.interrupt()) == [interrupts(0, 1)]
    assert ladder(three.interrupt()) == [killing("ranks 0-1")]
    assert ladder(three.after(BREAK_CHANCE_S)) == [kills(0, 1)]


def test_presses_after_the_third_change_nothing(three: Desk) -> None:
    """Somebody leans on the button: the times stay as they are."""
    three.run(0)
    for _ in range(20):
        three.interrupt()
    assert kills(0) in three.after(SIGNAL_CHANCE_S + BREAK_CHANCE_S)
    assert three.interrupt() == []


def test_a_group_that_was_broken_for_a_dead_rank_is_not_broken_again(three: Desk) -> None:
    """The three presses are SIGINT twice, and the third kills."""
    three.run(0, 1, 2)
    three.dies(1)
    assert three.frees_peers(0, 2) == [breaks(1, 0, 2)]
    assert ladder(three.interrupt()) == [interrupts(0, 2)]
    assert ladder(three.interrupt()) == [interrupts(0, 2)]
    assert ladder(three.interrupt()) == [killing("ranks 0,2")]
    assert kills(0, 2) in three.after(BREAK_CHANCE_S)


def unseen(desk: Desk, rank: int) -> list[ev.Effect]:
    """The agent answers for a rank that does not."""
    look = desk.pool.open_look
    assert look is not None
    return desk.handle(m.RankUnseen(rank, look, desk.cells, 3, "R", 12.0))


def test_nobody_is_asked_what_keeps_it_where_nobody_has_pressed(three: Desk) -> None:
    """Ranks may compute on after the group was broken under those that waited for a dead one."""
    three.run(0, 1, 2)
    three.dies(2)
    assert three.frees_peers(0) == [breaks(1, 0, 1)]
    three.ends(1, "interrupted", broken=True)
    assert tells(three.after(BREAK_CHANCE_S), m.Look) == []
    assert three.pool.next_deadline is None


def test_who_cannot_hear_an_interrupt_is_named_at_the_first_press(three: Desk) -> None:
    """Once it has not answered for a second; with what that means."""
    three.run(0, 1)
    assert tells(three.interrupt(), m.Look) == [0, 1, 2]
    three.answers(0)
    three.answers(2)
    assert unseen(three, 1) == [
        ev.HangSeen(
            1,
            "rank 1 has been in C code for 12 s (line 3): "
            "an interrupt is heard only after that; the third interrupt kills it",
        )
    ]


def test_what_keeps_ranks_that_the_breaking_did_not_free(three: Desk) -> None:
    """A second later they are asked: who computes and hears nothing is told like who is in C code."""
    three.run(0, 1)
    three.interrupt()
    three.after(1.6)  # nobody answers the first look
    effects = three.after(INTERRUPT_TIMEOUT_S + BREAK_CHANCE_S - 1.6)
    assert tells(effects, m.Look) == [0, 1, 2]
    three.answers(0)
    three.answers(2)
    words = (
        "rank 1 has been in C code for 12 s (line 3): an interrupt is heard only after that; "
        "rank 0 is at line 3, computing; the third interrupt kills them"
    )
    assert unseen(three, 1) == [ev.HangSeen(1, words)]
