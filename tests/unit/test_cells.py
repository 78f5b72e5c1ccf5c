"""A cell whose fate is known before its record is made."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from jupyter_ddp.core import events as ev
from jupyter_ddp.core import messages as m
from jupyter_ddp.core.errors import PoolError
from jupyter_ddp.core.record import CellRecord
from jupyter_ddp.kernel.cells import Cells
from jupyter_ddp.kernel.source import PreparedSource


class FakeExchange:
    """Tells of the cell before it lets it begin."""

    def __init__(self, early: Callable[[Cells], None], begins: bool = True) -> None:
        self.cells = Cells(self.order, lambda: None, dict)
        self._early, self._begins = early, begins
        self.rested = False

    def order(self, event: ev.Event, meanwhile: Callable[[], None]) -> Any:
        self._early(self.cells)
        if self._begins:
            meanwhile()
        return self

    def rest(self) -> None:
        self.rested = True

    def wait(self, *_: object) -> bool:
        raise AssertionError("it has ended: there is nothing to wait for")

    def run(self) -> CellRecord:
        return self.cells.run(
            PreparedSource("pass\n", awaits=False, shows=False),
            (0, 1),
            2,
            1000,
            check_collectives=False,
            timeout_s=0.0,
            on_news=None,
            count=1,
            hang_timeout_s=0.0,
        )


def test_a_cell_that_is_refused_at_once() -> None:
    """The reason is raised, and nothing is left waiting."""
    exchange = FakeExchange(lambda cells: cells.refuse(ev.CellRefused(1, "busy")))
    with pytest.raises(PoolError, match="busy"):
        exchange.run()
    assert exchange.rested
    assert exchange.cells.records() == []


def test_a_cell_whose_agent_is_gone_when_it_is_sent() -> None:
    """Its record has the deaths, as if they had come later."""
    deaths = tuple(m.WorkerExited(rank, 9, 9, 1, 0, "", 0) for rank in (0, 1))
    ended = ev.CellEnded(1, {0: "died", 1: "died"}, deaths)
    exchange = FakeExchange(lambda cells: cells.end(ended))
    record = exchange.run()
    assert record.verdicts == {0: "died", 1: "died"}
    assert exchange.rested


def test_a_cell_for_a_cluster_that_was_closed() -> None:
    """It does not begin, and says so."""
    exchange = FakeExchange(lambda _: None, begins=False)
    with pytest.raises(PoolError, match="closed"):
        exchange.run()
    assert exchange.rested


def test_what_is_late_goes_to_its_cell_or_the_last() -> None:
    """Output of a cell that has ended is in its record, which is outdated; in the last cell's once that is
    forgotten.
    """

    def end(cells: Cells) -> None:
        cells.end(ev.CellEnded(cells.last, {0: "unknown", 1: "unknown"}, (), {0: "gone", 1: "gone"}))

    exchange = FakeExchange(end)
    cells, first = exchange.cells, exchange.run()
    cells.fold(m.Output(0, 1, 1, 5, "stdout", 0, b"late"))
    assert first[0].stdout == "late"
    assert cells.outdated() == [first]
    assert cells.outdated() == []
    assert cells.count_of(first) == 1
    for _ in range(30):
        last = exchange.run()
    cells.fold(m.Output(0, 1, 1, 6, "stdout", 0, b"later"))
    assert (first[0].stdout, last[0].stdout) == ("late", "later")
    assert cells.outdated() == [last]
