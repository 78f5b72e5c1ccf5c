"""How long a cell's source is kept."""

from __future__ import annotations

import inspect
import linecache
from collections.abc import Iterator
from typing import Any

import pytest

from jupyter_ddp.worker.cell_sources import KEPT_CELLS, CellSources


class Rank:
    """Runs cells as a rank does, as far as their sources go."""

    def __init__(self) -> None:
        self.names: dict[str, int] = {}
        self.namespace: dict[str, Any] = {"__name__": "__main__"}
        self._sources = CellSources(self.names)
        self._cells = 0

    def run(self, source: str) -> str:
        self._cells += 1
        name = f"<cell {self._cells}>"
        self._sources.add(name, self._cells, source)
        code = compile(source, name, "exec")
        self._sources.compiled(name, [code])
        exec(code, self.namespace)
        return name


@pytest.fixture
def rank() -> Iterator[Rank]:
    rank = Rank()
    yield rank
    for name in rank.names:
        del linecache.cache[name]


def test_cells_that_define_nothing(rank: Rank) -> None:
    """The last hundred are kept, and no more."""
    names = [rank.run(f"x = {number}") for number in range(3 * KEPT_CELLS)]
    assert list(rank.names) == names[-KEPT_CELLS:]
    assert linecache.getline(names[-1], 1) == f"x = {3 * KEPT_CELLS - 1}"
    assert names[0] not in linecache.cache


def test_a_definition_that_is_run_again(rank: Rank) -> None:
    """Of a cell that replaces its function time and again, few sources are kept, and always the last."""
    for number in range(10 * KEPT_CELLS):
        rank.run(f"def f(x):\n    return [y + {number} for y in x]")
        assert f"y + {number} for" in inspect.getsource(rank.namespace["f"])
    assert len(rank.names) <= KEPT_CELLS + 2


def test_functions_that_live(rank: Rank) -> None:
    """However many cells come after them: functions, methods and lambdas have their source."""
    rank.run("def outer():\n    def inner(): return 'inner'\n    return inner\ninner = outer()\ndel outer")
    rank.run("class Net:\n    def forward(self): return 'forward'\nforward = Net.forward\ndel Net")
    rank.run("calls = [lambda: 'lambda']")
    for number in range(10 * KEPT_CELLS):
        rank.run(f"def f():\n    return {number}")
    assert "'inner'" in inspect.getsource(rank.namespace["inner"])
    assert "'forward'" in inspect.getsource(rank.namespace["forward"])
    assert "'lambda'" in inspect.getsource(rank.namespace["calls"][0])


def test_a_definition_that_does_not_compile(rank: Rank) -> None:
    """Its source goes with the others'."""
    for _ in range(3 * KEPT_CELLS):
        with pytest.raises(SyntaxError):
            rank.run("def f(:")
    rank.run("def f(): pass")
    assert len(rank.names) == 1
