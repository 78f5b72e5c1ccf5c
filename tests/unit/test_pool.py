"""The pool's machine, by example: the transitions that a user would notice."""

from __future__ import annotations

import signal
from typing import Any

import pytest

from jupyter_ddp.core import bounds
from jupyter_ddp.core import events as ev
from jupyter_ddp.core import messages as m
from jupyter_ddp.core import pool as p
from jupyter_ddp.core.healing import NOBODY_LEFT
from jupyter_ddp.core.ladder import BREAK_CHANCE_S, INTERRUPT_TIMEOUT_S, SIGNAL_CHANCE_S
from jupyter_ddp.core.topology import make_plan

SURROUNDINGS = m.Surroundings({}, "/", [], "127.0.0.1", 1, "run", 0)
SIGKILLED, EXITED_3 = 9, 3 << 8


class Desk:
    """A pool, a clock that the test moves, and the words that users and ranks would say."""

    def __init__(self) -> None:
        self.pool = p.Pool()
        self.now = 1000.0
        self.cells = 0

    def handle(self, event: ev.Event) -> list[ev.Effect]:
        return self.pool.handle(event, self.now)

    # the user

    def start(self, n: int) -> list[ev.Effect]:
        return self.handle(ev.StartRequested(make_plan(n, []), SURROUNDINGS))

    def resize(self, n: int) -> list[ev.Effect]:
        return self.handle(ev.ResizeRequested(make_plan(n, []), SURROUNDINGS))

    def run(self, *targets: int, timeout_s: float = 0.0) -> list[ev.Effect]:
        self.cells += 1
        return self.handle(ev.CellRequested(self.cells, targets, "pass", count=7, timeout_s=timeout_s))

    def interrupt(self) -> list[ev.Effect]:
        return self.handle(ev.InterruptRequested())

    def stop(self) -> list[ev.Effect]:
        return self.handle(ev.StopRequested())

    # time

    def after(self, seconds: float) -> list[ev.Effect]:
        """Let time pass; the deadline that falls due by then is kept at its own time."""
        until = self.now + seconds
        due = self.pool.next_deadline
        if due is None or due > until:
            self.now = until
            return self.handle(ev.Ticked())
        self.now = due
        effects = self.handle(ev.Ticked())
        return [*effects, *self.after(until - due)]

    # ranks

    def forks(self, *ranks: int, pids: int = 100) -> list[ev.Effect]:
        return [e for r in ranks for e in self.handle(m.WorkerForked(r, pids + r))]

    def connects(self, *ranks: int, pids: int = 100) -> list[ev.Effect]:
        return [e for r in ranks for e in self.handle(m.WorkerConnected(r, 0, 0, 0, pids + r))]

    def forms(self, *ranks: int, generation: int | None = None) -> list[ev.Effect]:
        made = generation or self.pool.generation
        return [e for r in ranks for e in self.handle(m.GroupFormed(r, made, 0, 0, 0.01))]

    def fails_to_form(self, rank: int) -> list[ev.Effect]:
        return self.handle(m.GroupFailed(rank, self.pool.generation, 0, 0, "refused"))

    def ends(self, rank: int, verdict: Any = "ok", broken: bool = False) -> list[ev.Effect]:
        return self.handle(m.CellFinished(rank, 1, self.cells, 0, verdict, 0.1, broken))

    def answers(self, rank: int, *, waits_in: str = "", entered: int = 0) -> list[ev.Effect]:
        """What the rank says it does, when the pool asks: nothing, or a collective of all ranks."""
        look = self.pool.open_look
        assert look is not None
        call = m.Call(entered, waits_in or "all_reduce", 3, "line 3", finished=not waits_in)
        state = m.GroupState("0", (), entered, (call,) if entered else ())
        doing = "waiting" if waits_in else "computing"
        return self.handle(
            m.RankSeen(rank, 1, self.cells, 0, look, doing, 3, "line 3", waits_in=waits_in, groups=(state,))
        )

    def dies(self, rank: int, status: int = SIGKILLED, pid: int = 0, stderr: str = "") -> list[ev.Effect]:
        return self.handle(m.WorkerExited(rank, pid or 100 + rank, status, 0, 0, stderr, 0))

    def come_up(self, n: int) -> None:
        ranks = range(n)
        self.start(n)
        self.forks(*ranks)
        self.connects(*ranks)
        assert self.forms(*ranks) == [ev.StartFinished()]


@pytest.fixture
def desk() -> Desk:
    return Desk()


@pytest.fixture
def three() -> Desk:
    """A pool of three ranks that takes cells."""
    desk = Desk()
    desk.come_up(3)
    return desk


PREPARED = "what ranks are forked from could not be prepared: {}; repair that, then start again"


def died(rank: int, signal: str = "SIGKILL", left: str = "ranks 0-1 keep") -> ev.Announced:
    words = f"rank {rank} died: killed by {signal}; {left} all variables; %ddp heal replaces rank {rank}"
    return ev.Announced(words)


DIED_1 = died(1, left="ranks 0,2 keep")


def kills(*ranks: int) -> ev.SendToNodes:
    return ev.SendToNodes(ranks, m.SignalRanks(list(ranks), int(signal.SIGKILL), True))


def interrupts(*ranks: int) -> ev.SendToNodes:
    return ev.SendToNodes(ranks, m.SignalRanks(list(ranks), int(signal.SIGINT), False))


def breaks(generation: int, *ranks: int) -> ev.SendToNodes:
    return ev.SendToNodes(ranks, m.Tell(list(ranks), m.BreakGroup(generation)))


def tells(effects: list[ev.Effect], kind: type[m.Message]) -> list[int]:
    """The ranks that these effects tell a command of this kind."""
    told: list[int] = []
    for effect in effects:
        if isinstance(effect, ev.SendToNodes) and isinstance(effect.message, m.Tell):
            told += effect.message.ranks if isinstance(effect.message.command, kind) else []
    return told


def only(effects: list[ev.Effect], kind: type[Any]) -> Any:
    """The one effect of this kind."""
    found = [effect for effect in effects if isinstance(effect, kind)]
    assert len(found) == 1, effects
    return found[0]


# --- starting ---------------------------------------------------------------------------------------


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
    """They may go on that long; then the group is broken, and they were blocked by the one that failed."""
    three.run(0, 1, 2)
    three.ends(1, "error")
    assert three.after(bounds.PEER_FAILED_TIMEOUT_S - 0.01) == []
    assert tells(three.after(0.02), m.Look) == [0, 1, 2]
    three.answers(0, waits_in="all_reduce", entered=1)
    three.answers(1)
    assert three.answers(2, waits_in="all_reduce", entered=1) == [breaks(1, 0, 1, 2)]
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
    """They are told to let go, are blocked by the dead one, and no group is formed without it."""
    three.run(0, 1, 2)
    assert three.dies(1) == []
    assert three.after(bounds.PEER_DIED_TIMEOUT_S) == [breaks(1, 0, 2)]
    three.ends(0, "interrupted", broken=True)
    effects = three.ends(2, "interrupted", broken=True)
    ended = only(effects, ev.CellEnded)
    assert tells(effects, m.FormGroup) == []
    assert ended.verdicts == {0: "interrupted", 1: "died", 2: "interrupted"}
    assert [exit.rank for exit in ended.deaths] == [1]
    assert ended.reasons == {0: "blocked by rank 1", 2: "blocked by rank 1"}
    assert three.pool.phase is p.Phase.READY


def test_a_death_hastens_the_breaking_but_a_failure_does_not_delay_it(three: Desk) -> None:
    """The earlier deadline counts."""
    three.run(0, 1, 2)
    three.dies(1)
    three.ends(2, "error")
    assert three.after(bounds.PEER_DIED_TIMEOUT_S) == [breaks(1, 0, 2)]


def test_a_press_does_not_delay_the_breaking(three: Desk) -> None:
    """A user's interrupt 0.9 s after a death does not keep the others waiting for two more seconds."""
    three.run(0, 1)
    three.dies(1)
    three.after(0.9)
    three.interrupt()
    assert breaks(1, 0, 2) in three.after(0.1)


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
    three.after(bounds.PEER_DIED_TIMEOUT_S)
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


def test_a_group_found_broken_frees_the_others_though_nobody_failed(three: Desk) -> None:
    """A rank may have lost its group and ended well: who waits for it is freed like after an error."""
    three.run(0, 1)
    three.ends(0, "ok", broken=True)
    assert tells(three.after(bounds.PEER_FAILED_TIMEOUT_S), m.Look) == [0, 1, 2]
    three.answers(0)
    three.answers(2)
    assert three.answers(1, waits_in="all_reduce", entered=1) == [breaks(1, 0, 1, 2)]


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


# --- resizing ---------------------------------------------------------------------------------------


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


# --- stopping and losing ------------------------------------------------------------------------------


def test_a_stop_asks_then_kills_then_names_who_is_left(three: Desk) -> None:
    """Two seconds for exit functions, five for the system, then the PIDs that it does not end."""
    assert tells(three.stop(), m.EndWorker) == [0, 1, 2]
    three.dies(0, 0)
    assert three.after(bounds.STOP_TIMEOUT_S) == [kills(1, 2)]
    three.dies(2)
    assert three.after(bounds.KILL_TIMEOUT_S) == [ev.StopFinished((101,))]
    assert three.pool.phase is p.Phase.STOPPED


def test_a_stop_gives_up_the_cell_that_runs_and_the_one_that_waits(three: Desk) -> None:
    """Ranks without a reply have the verdict `unknown`; what waited is refused."""
    three.run(0, 1)
    three.ends(0)
    ended = only(three.stop(), ev.CellEnded)
    assert ended.verdicts == {0: "ok", 1: "unknown"}
    assert ended.reasons == {1: "the pool was stopped"}


def test_each_stop_is_answered_once(three: Desk) -> None:
    """Two who ask hear two answers; without a pool the answer comes at once."""
    three.stop()
    assert three.stop() == []
    effects = [e for rank in range(3) for e in three.dies(rank)]
    assert effects == [ev.StopFinished(), ev.StopFinished()]
    assert three.stop() == [ev.StopFinished()]


def test_a_stop_of_a_pool_whose_ranks_are_all_dead(three: Desk) -> None:
    """There is nobody to ask and nothing to wait for."""
    for rank in range(3):
        three.dies(rank)
    assert three.stop() == [ev.StopFinished()]


def test_a_lost_node_ends_the_cell_and_the_pool(three: Desk) -> None:
    """Each rank without a reply died with its node, whose last words are the reason."""
    three.run(0, 1)
    three.ends(1)
    lost = ev.NodeLost(0, "the node agent was killed by signal 9")
    ended, announced = three.handle(lost)
    assert ended == ev.CellEnded(1, {1: "ok", 0: "died"}, (), {0: lost.reason})
    assert announced == ev.Announced(f"pool lost: {lost.reason}; the variables of all ranks are lost")
    assert three.pool.phase is p.Phase.STOPPED
    assert three.handle(lost) == []


def test_a_node_lost_while_starting_or_stopping_is_the_answer(desk: Desk) -> None:
    """Who waits for the pool to come or go hears of it."""
    desk.start(1)
    assert desk.handle(ev.NodeLost(0, "gone")) == [ev.StartFinished("gone")]
    desk.come_up(1)
    desk.stop()
    assert desk.handle(ev.NodeLost(0, "gone")) == [ev.StopFinished()]


def test_the_next_pool_counts_generations_on(desk: Desk) -> None:
    """A generation's number is never used twice, so that a late message cannot be taken for a new one."""
    desk.come_up(1)
    desk.stop()
    desk.dies(0, 0)
    desk.start(1)
    desk.forks(0, pids=200)
    desk.connects(0, pids=200)
    assert desk.pool.generation == 2
    assert desk.forms(0, generation=1) == []
    assert desk.forms(0) == [ev.StartFinished()]


def test_an_early_tick_does_nothing(three: Desk) -> None:
    """Only the time that `next_deadline` names counts."""
    three.stop()
    assert three.handle(ev.Ticked()) == []


def test_a_pool_without_a_living_rank_is_lost(three: Desk) -> None:
    """The last death says that the pool is lost, and so does the refusal of the next cell."""
    three.run(0, 1, 2)
    assert three.dies(0) == three.dies(1) == []
    ended, lost = three.dies(2)[-2:]
    assert ended.verdicts == {0: "died", 1: "died", 2: "died"}
    assert lost.text == f"pool lost: every rank died (killed by SIGKILL); {NOBODY_LEFT}"
    refused = only(three.run(0, 1, 2), ev.CellRefused)
    assert refused.reason.startswith("pool lost: ranks 0-2 died: killed by SIGKILL; nothing was run.")
