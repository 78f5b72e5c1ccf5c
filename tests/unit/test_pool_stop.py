"""The pool's machine when a pool stops or is lost, by example."""

from __future__ import annotations

from jupyter_ddp.core import bounds
from jupyter_ddp.core import events as ev
from jupyter_ddp.core import messages as m
from jupyter_ddp.core import pool as p
from jupyter_ddp.core.healing import NOBODY_LEFT
from tests.unit.desk import Desk, kills, only, tells


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
