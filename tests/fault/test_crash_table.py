"""Every way to die, at every moment, in pools of 1, 2 and 4 ranks: what is told in which time, what survives.

The last rank dies. `ways_to_die` has the ways, `fuse` the moments that no cell can choose. What is asked of a
row: the bound, the words, the survivors' variables and PIDs, the next cell, and that nothing is left.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import pytest

from jupyter_ddp.core.errors import PoolError
from tests.fault.fuse import COMING_UP, IN_A_COLLECTIVE, WITH_FUSES, WITHOUT_GROUP, Fuse
from tests.fault.pools import REDUCE, Pools, RunningCell, eventually, gone, states_of
from tests.fault.victim import Victim, check_children
from tests.fault.ways_to_die import DEATHS, FUSE, NO_DEATHS, WITH_LINE
from tests.promises import Stopwatch

SETTINGS = WITH_FUSES
SIZES = (1, 2, 4)
TOLD_S = 1.0
"""From a death in a cell to its line in the cell's output, while the others still run it."""

IN_EACH_SIZE = ("SIGKILL", "_exit(3)")
"""Ways to die that the short run has at every size: a signal and an exit. All others: with two ranks."""


def rows(ways: tuple[str, ...], of: Iterable[str] = DEATHS) -> list[Any]:
    """Each way with two ranks; with one and four, all but these `ways` are for the long run."""
    short = {(n, way): n == 2 or way in ways for n in SIZES for way in of}
    return [pytest.param(*row, marks=[] if here else [pytest.mark.slow]) for row, here in short.items()]


every_death = pytest.mark.parametrize(("n", "way"), rows(IN_EACH_SIZE))
no_death = pytest.mark.parametrize(("n", "way"), rows(("sys.exit(3)",), NO_DEATHS))


# --- deaths -----------------------------------------------------------------------------------------


@pytest.mark.promise("a rank dies while the pool starts: the start fails, and says how it died", bound_s=1)
@pytest.mark.parametrize("moment", COMING_UP)
@every_death
def test_while_the_pool_starts(
    pools: Pools,
    promised: Stopwatch,
    fuse: Fuse,
    monkeypatch: pytest.MonkeyPatch,
    n: int,
    way: str,
    moment: str,
) -> None:
    """Before it connects, before the group, in the midst of it: its siblings go, the next start works."""
    cluster, told = pools.of(n), DEATHS[way][1]
    cluster.stop()
    with monkeypatch.context() as patch:
        patch.setenv(FUSE, fuse.environ(n - 1, moment, way))
        with pytest.raises(PoolError, match=rf"^rank {n - 1} ended before the pool was up: {told}"):
            cluster.start(n)
        promised.took(fuse.since_s)
    assert not cluster.running
    check_children(cluster, 0)
    assert cluster.run(REDUCE).ok


@pytest.mark.promise("a rank dies while the group is formed again: it is told, the others go on", bound_s=1)
@every_death
def test_while_the_group_is_formed_again(
    pools: Pools, promised: Stopwatch, fuse: Fuse, n: int, way: str
) -> None:
    """Whoever waits for it in the new group is freed at once."""
    victim, told = Victim(pools, n, "joining", way, fuse), DEATHS[way][1]
    victim.cluster.run(WITHOUT_GROUP, check=False)
    eventually(lambda: "dead" in states_of(victim.cluster), 5)
    eventually(lambda: victim.cluster.phase == "ready", 5)
    promised.took(fuse.since_s)
    assert any(re.match(rf"rank {n - 1} died: {told}", said) for said in victim.cluster.announcements())
    victim.check_aftermath(told)


@pytest.mark.promise("a rank dies between cells: it is shown as dead before the next cell", bound_s=0.5)
@every_death
def test_between_cells(pools: Pools, promised: Stopwatch, fuse: Fuse, n: int, way: str) -> None:
    """Of a thread that an earlier cell has left: the table shows it, and it is announced."""
    victim, told = Victim(pools, n, "told", way, fuse), DEATHS[way][1]
    fuse.light()
    eventually(lambda: "dead" in states_of(victim.cluster), 5)
    promised.took(fuse.since_s)
    assert any(re.match(rf"rank {n - 1} died: {told}", said) for said in victim.cluster.announcements())
    victim.check_aftermath(told)


@pytest.mark.promise(
    "a rank ends itself in a cell, in whatever way: the cell says how, and the line", bound_s=3
)
@every_death
def test_in_a_cell(pools: Pools, promised: Stopwatch, n: int, way: str) -> None:
    """The cell shows it at once and ends; who waited is blocked by it, and lives on."""
    victim, (source, told) = Victim(pools, n), DEATHS[way]
    told += r" \(line 3\)" if way in WITH_LINE else ""
    with promised():
        cell = RunningCell(
            victim.cluster, f"print('last words')\nif rank == {n - 1}:\n    {source}\n{REDUCE}"
        )
        eventually(lambda: cell.record and cell.record[n - 1].death, TOLD_S, "its death is told")
        record = cell.end()
    assert re.match(rf"rank {n - 1}: {told}", cell.words), cell.words
    assert [record[n - 1].verdict, record[n - 1].stdout] == ["died", "last words\n"]
    for rank in victim.survivors:
        assert record[rank].verdict == "interrupted"
        assert record[rank].death.startswith(f"blocked by rank {n - 1}")
    victim.check_aftermath(told)


@pytest.mark.promise("a rank dies in a collective: the cell says how, the others are freed", bound_s=3)
@every_death
def test_in_a_collective(pools: Pools, promised: Stopwatch, fuse: Fuse, n: int, way: str) -> None:
    """Of a thread, while the cell goes from one collective to the next."""
    victim, told = Victim(pools, n, "told", way, fuse), DEATHS[way][1]
    cell = RunningCell(victim.cluster, IN_A_COLLECTIVE)
    cell.until("on")
    fuse.light()
    record = cell.end()
    promised.took(fuse.since_s)
    assert re.match(rf"rank {n - 1}: {told}", cell.words), cell.words
    assert record[n - 1].verdict == "died"
    for rank in victim.survivors:
        assert record[rank].death.startswith(f"blocked by rank {n - 1}")
    victim.check_aftermath(told)


@pytest.mark.promise("a rank dies while the pool stops: that does not delay it", bound_s=3)
@every_death
def test_while_the_pool_stops(pools: Pools, promised: Stopwatch, fuse: Fuse, n: int, way: str) -> None:
    """Of an exit function: nothing is left, and the next cell starts a pool."""
    victim = Victim(pools, n, "stopping", way, fuse)
    with promised():
        victim.cluster.stop()
    assert gone(victim.pids)
    assert victim.cluster.run(REDUCE).ok
    check_children(victim.cluster, n)


# --- what is no death while cells run ---------------------------------------------------------------


@pytest.mark.promise("sys.exit() and exceptions in a cell, in threads too: the rank lives on", bound_s=3)
@no_death
def test_no_death_in_a_cell(pools: Pools, promised: Stopwatch, n: int, way: str) -> None:
    """An exit code and an exception are the cell's error; what a thread raises is shown, and no more."""
    victim = Victim(pools, n)
    with promised():
        cell = RunningCell(victim.cluster, f"if rank == {n - 1}:\n    {NO_DEATHS[way]}")
        record = cell.end()
    words = {"sys.exit(3)": "sys.exit(3)", "exception": "LookupError: on purpose"}.get(way, "")
    assert cell.words.startswith(f"rank {n - 1}: {words}" if words else ""), cell.words
    assert record[n - 1].verdict == ("error" if words else "ok")
    assert ("on purpose" in record[n - 1].stderr) == (way == "exception in a thread")
    victim.check_all_is_well()


@no_death
@pytest.mark.parametrize("busy", [False, True], ids=["idle", "in a collective"])
def test_no_death_in_a_thread(pools: Pools, fuse: Fuse, n: int, way: str, busy: bool) -> None:
    """Between cells, and while one goes from collective to collective: a thread ends, and nothing else."""
    victim = Victim(pools, n, "told", way, fuse)
    if busy:
        burnt = f"os.path.exists({str(fuse.note)!r})"
        reduce = f"t = torch.tensor([float({burnt})]); dist.all_reduce(t)"
        cell = RunningCell(victim.cluster, f"print('on')\nt = 0\nwhile not t:\n    {reduce}")
        cell.until("on")
    fuse.light()
    eventually(fuse.note.exists, 5)
    if busy:
        cell.end()
        assert cell.words == ""
    victim.check_all_is_well()


@pytest.mark.parametrize("way", ["sys.exit(3)", "exception"])
@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("moment", COMING_UP)
def test_no_way_to_begin(
    pools: Pools, fuse: Fuse, monkeypatch: pytest.MonkeyPatch, moment: str, n: int, way: str
) -> None:
    """A rank that cannot come up ends with it: the start fails with the end of its stderr."""
    cluster = pools.of(n)
    cluster.stop()
    alone = moment == "joining" and way == "exception"
    told = "could not join the process group" if alone else "ended before the pool was up: exited with code 1"
    last = "LookupError: on purpose" if way == "exception" else "SystemExit"
    with monkeypatch.context() as patch:
        patch.setenv(FUSE, fuse.environ(n - 1, moment, way))
        with pytest.raises(PoolError, match=rf"(?s)^rank {n - 1} {told}.*{last}"):
            cluster.start(n)
    assert not cluster.running
    assert cluster.run(REDUCE).ok
