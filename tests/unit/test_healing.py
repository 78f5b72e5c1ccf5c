"""The replacement of dead ranks in the pool's machine, by example."""

from __future__ import annotations

import pytest

from jupyter_ddp.core import events as ev
from jupyter_ddp.core import healing
from jupyter_ddp.core import messages as m
from jupyter_ddp.core import pool as p
from tests.unit.desk import SURROUNDINGS, Desk, breaks, interrupts, kills, only, tells

NEW_PIDS = 200
LATE = "rank 1 did not connect within {:.0f} s"


@pytest.fixture
def wounded() -> Desk:
    """A pool of three ranks, of which rank 1 is dead."""
    desk = Desk()
    desk.come_up(3)
    desk.dies(1)
    return desk


def heal(desk: Desk, source: int | None = None) -> list[ev.Effect]:
    return desk.handle(ev.HealRequested(SURROUNDINGS, source))


def orders(effects: list[ev.Effect]) -> list[m.FormGroup]:
    found = [
        e.message.command for e in effects if isinstance(e, ev.SendToNodes) and isinstance(e.message, m.Tell)
    ]
    return [command for command in found if isinstance(command, m.FormGroup)]


def test_a_dead_rank_is_replaced_and_a_group_formed_among_all(wounded: Desk) -> None:
    """One process is asked for, in the same place; then all ranks form a new generation, and cells run."""
    place = wounded.pool.ranks[1].place
    assert heal(wounded) == [ev.SendToNodes((1,), m.StartRanks([place], SURROUNDINGS, replaces=True))]
    wounded.forks(1, pids=NEW_PIDS)
    formed = orders(wounded.connects(1, pids=NEW_PIDS))
    assert [(o.place.rank, o.generation, o.replaced, o.source) for o in formed] == [
        (rank, 2, (1,), -1) for rank in range(3)
    ]
    assert wounded.forms(0, 1, 2) == [ev.StartFinished()]
    assert [state.pid for state in wounded.pool.ranks.values()] == [100, 201, 102]
    assert tells(wounded.run(0, 1, 2), m.RunCell) == [0, 1, 2]


def test_a_heal_has_its_time_from_the_request_on(wounded: Desk) -> None:
    """As long as its variables may take to copy, and no longer."""
    heal(wounded, 2)
    assert wounded.pool.next_deadline == wounded.now + healing.COPY_TIMEOUT_S


def test_the_source_of_the_variables_is_told_to_all(wounded: Desk) -> None:
    """Every rank knows who copies to whom; the next group that is formed knows nothing of it."""
    heal(wounded, 2)
    wounded.forks(1, pids=NEW_PIDS)
    assert {o.source for o in orders(wounded.connects(1, pids=NEW_PIDS))} == {2}
    wounded.forms(0, 1, 2)
    wounded.run(0, 1, 2)
    for rank in range(3):
        again = wounded.ends(rank, "interrupted", broken=True)
    assert {(o.source, o.replaced) for o in orders(again)} == {(-1, ())}


def test_all_dead_ranks_are_replaced() -> None:
    """A pool that has lost everybody comes back too."""
    desk = Desk()
    desk.come_up(2)
    desk.dies(0)
    desk.dies(1)
    heal(desk)
    desk.forks(0, 1, pids=NEW_PIDS)
    assert tells(desk.connects(0, 1, pids=NEW_PIDS), m.FormGroup) == [0, 1]
    assert desk.forms(0, 1) == [ev.StartFinished()]


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (1, "--from 1: rank 1 is dead; name a living one (ranks 0,2)"),
        (7, "--from 7: there is no rank 7; name a living one (ranks 0,2)"),
    ],
)
def test_a_source_has_to_live(wounded: Desk, source: int, words: str) -> None:
    """Nothing is started for a source that has nothing."""
    assert heal(wounded, source) == [ev.StartFinished(words)]
    assert wounded.pool.phase is p.Phase.READY


def test_what_cannot_be_healed() -> None:
    """No pool, nobody dead, a cell that runs: one line each, and nothing happens."""
    desk = Desk()
    assert "%ddp start" in only(heal(desk), ev.StartFinished).error
    desk.come_up(2)
    assert heal(desk) == [ev.StartFinished("no rank is dead or doomed: there is nothing to heal")]
    desk.run(0, 1)
    assert only(heal(desk), ev.StartFinished).error.startswith("the pool is running")


def test_a_doomed_rank_has_no_variables_to_give() -> None:
    """It lives, but what it holds on its accelerator is lost: who lives and is fit can give them."""
    said = healing.refusal("ready", (0, 1, 2), fit=(0, 2), doomed={1}, source=1)
    assert said == "--from 1: rank 1 is doomed; name a living one (ranks 0,2)"


def test_what_is_heard_late_of_a_group_that_was_given_up_does_not_spoil_a_heal(three: Desk) -> None:
    """A resize was undone by a death while its group was formed; its ranks say so when the heal has begun."""
    three.resize(4)
    three.forks(3)
    three.connects(3)
    three.dies(1)
    heal(three)
    assert three.fails_to_form(2) == []
    three.forks(1, pids=NEW_PIDS)
    three.connects(1, pids=NEW_PIDS)
    assert three.forms(0, 1, 2) == [ev.StartFinished()]


@pytest.mark.parametrize("fault", ["new dies", "old dies", "interrupt", "late", "no preload"])
def test_a_heal_that_fails_before_the_group_leaves_the_pool_as_it_was(wounded: Desk, fault: str) -> None:
    """One line says why; the new process is ended, the old group is not touched, the living take cells."""
    heal(wounded, 0)
    if fault != "no preload":
        wounded.forks(1, pids=NEW_PIDS)
    effects, words = {
        "new dies": lambda: (
            wounded.dies(1, 256, pid=NEW_PIDS + 1, stderr="Traceback\nImportError: no torch"),
            "the new rank 1 died: exited with code 1: ImportError: no torch",
        ),
        "old dies": lambda: (wounded.dies(2), "rank 2 died: killed by SIGKILL"),
        "interrupt": lambda: (wounded.interrupt(), "interrupted"),
        "late": lambda: (wounded.after(healing.COPY_TIMEOUT_S), LATE.format(healing.COPY_TIMEOUT_S)),
        "no preload": lambda: (
            wounded.handle(m.PreloadFailed("no torch")),
            "what ranks are forked from could not be prepared: no torch; repair that, then start again",
        ),
    }[fault]()
    killed = [] if fault in ("new dies", "no preload") else [kills(1)]
    assert effects == [*killed, ev.StartFinished(f"rank 1 was not replaced: {words}")]
    assert wounded.pool.phase is p.Phase.READY
    assert wounded.pool.dead == ((1, 2) if fault == "old dies" else (1,))
    assert wounded.pool.ranks[1].pid == 101
    assert tells(wounded.run(0), m.RunCell) == [0]


def test_a_heal_that_fails_in_forming_frees_who_waits(wounded: Desk) -> None:
    """The group that was to be is broken under the living, and whoever collects variables is interrupted."""
    heal(wounded, 2)
    wounded.forks(1, pids=NEW_PIDS)
    wounded.connects(1, pids=NEW_PIDS)
    wounded.forms(0)
    words = "rank 1 was not replaced: rank 2 could not join the process group: refused"
    assert wounded.fails_to_form(2) == [kills(1), breaks(2, 0, 2), interrupts(2), ev.StartFinished(words)]
    assert wounded.forms(2, generation=2) == []
    assert wounded.pool.phase is p.Phase.READY


def test_a_heal_can_be_tried_again(wounded: Desk) -> None:
    """What was let go under the number is killed first; its exit is not the new one's."""
    heal(wounded)
    wounded.forks(1, pids=NEW_PIDS)
    wounded.interrupt()
    assert heal(wounded)[0] == kills(1)
    wounded.forks(1, pids=300)
    assert wounded.dies(1, pid=NEW_PIDS + 1) == []
    wounded.connects(1, pids=300)
    assert wounded.forms(0, 1, 2) == [ev.StartFinished()]


def test_a_stop_ends_a_heal(wounded: Desk) -> None:
    """Both who asked get an answer, and no process is left."""
    heal(wounded)
    wounded.forks(1, pids=NEW_PIDS)
    assert tells(wounded.stop(), m.EndWorker) == [0, 1, 2]
    for rank, pid in ((0, 100), (1, 201), (2, 102)):
        effects = wounded.dies(rank, 0, pid=pid)
    assert [type(e) for e in effects] == [ev.StartFinished, ev.StopFinished]
    assert wounded.pool.phase is p.Phase.STOPPED


def test_the_words_that_survive() -> None:
    """What is left and what to do, for one and for many."""
    assert healing.what_survives([1], [0]) == "rank 0 keeps all variables; %ddp heal replaces rank 1"
    assert healing.what_survives([0, 1], []) == "%ddp heal replaces ranks 0-1"


def test_words_where_nobody_is_left() -> None:
    """Without a living rank, none is named; several dead ranks are spoken of as such."""
    assert healing.way_on(()) == "%ddp heal, which replaces the dead"
    words = "--from 0: rank 0 is dead; no rank is left: leave it out"
    assert healing.refusal("ready", (0, 1), (), (), 0) == words
    assert healing.Healing((0, 1), None, 1).failed("so") == "ranks 0-1 were not replaced: so"
    assert healing.Healing((1,), None, 1).failed("so") == "rank 1 was not replaced: so"


def test_a_heal_without_copies_has_less_time() -> None:
    """Copying variables may take minutes; starting a process may not."""
    assert healing.Healing((1,), None, 1).timeout_s == healing.HEAL_TIMEOUT_S
    assert healing.Healing((1,), 0, 1).timeout_s == healing.COPY_TIMEOUT_S


def test_the_last_words_of_a_new_rank() -> None:
    """They are told where there are any."""
    plan = healing.Healing((1,), None, 1)
    assert (
        plan.ended_early(m.WorkerExited(1, 200, 9, 0, 0, "", 0)) == "the new rank 1 died: killed by SIGKILL"
    )
    said = plan.ended_early(m.WorkerExited(1, 200, 9, 0, 0, "a\nno memory", 0))
    assert said == "the new rank 1 died: killed by SIGKILL: no memory"
