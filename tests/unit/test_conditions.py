"""What is known of ranks beside that they live."""

from __future__ import annotations

from jupyter_ddp.core import messages as m
from jupyter_ddp.kernel.conditions import Conditions


def test_a_stopped_rank_has_a_state_until_it_goes_on() -> None:
    """The table says so; the note names the rank, the state and the way out."""
    conditions = Conditions()
    assert not conditions
    conditions.take(m.WorkerSuspended(1, 4711, True))
    assert conditions.state(1, 4711) == "stopped (state T)"
    assert conditions.state(0, 4710) == ""
    (note,) = conditions.notes({0: 4710, 1: 4711}).values()
    assert note.startswith("rank 1 stopped (state T)")
    assert "kill -CONT 4711" in note
    conditions.take(m.WorkerSuspended(1, 4711, False))
    assert not conditions
    assert conditions.state(1, 4711) == ""


def test_a_replaced_rank_has_none_of_its_predecessors_conditions() -> None:
    """The same number with another process, or with none alive, is not stopped."""
    conditions = Conditions()
    conditions.take(m.WorkerSuspended(1, 4711, True))
    assert conditions.state(1, 5000) == ""
    conditions.take(m.WorkerSuspended(1, 5000, False))
    assert conditions
    assert conditions.notes({1: 5000}) == {}
    assert not conditions
