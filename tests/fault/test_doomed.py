"""A rank whose accelerator is lost to its process for good: said once, left alone, replaced by a heal.

There is no GPU to break: the ranks' probe (`worker/accelerator.py`) is replaced by one that a cell breaks.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from jupyter_ddp import Cluster
from jupyter_ddp.core.errors import PoolError
from jupyter_ddp.view.panel import panel_state
from jupyter_ddp.view.status import status_text
from tests.fault.pools import REDUCE, Pools, eventually, gone, pids_of, run_to_failure, states_of, values_of
from tests.promises import Stopwatch

RANKS = 3
ASSERT = "CUDA error: device-side assert triggered"
PROBE = f"""
from jupyter_ddp.worker import accelerator
broken = False
accelerator.PROBES["cpu"] = lambda device: "{ASSERT}" if broken else ""
kept = torch.full((2,), float(rank))
"""
BREAK = f"""
dist.barrier()
if rank == 1:
    broken = True
    raise RuntimeError("{ASSERT}")
"""
WHY = f"cpu: {ASSERT} (line 5)"


@pytest.fixture
def pool(pools: Pools) -> Iterator[Cluster]:
    """Three ranks whose accelerators can be broken."""
    cluster = pools.of(RANKS)
    cluster.run(PROBE)
    yield cluster
    cluster.restart()


@pytest.mark.promise(
    "a GPU that is lost to a rank: the rank is doomed, with device, cause, line and remedy", bound_s=3
)
def test_a_rank_is_doomed(pool: Cluster, promised: Stopwatch) -> None:
    """The cell says so once, the table and the panel show it; nothing is killed, cells elsewhere go on."""
    before = pids_of(pool)
    with promised():
        words, record = run_to_failure(pool, BREAK)
    assert words == (
        f"rank 1: RuntimeError: {ASSERT} (line 5); %ddp heal replaces rank 1, the others keep their variables"
    )
    assert record[1].notices == [
        f"rank 1 is doomed: {WHY}; its process runs no more cells, and %ddp heal replaces it"
    ]
    assert not record[0].notices
    assert states_of(pool) == ["idle", "doomed", "idle"]
    assert pool.status()[1].error == WHY
    assert "rank 1 is doomed: %ddp heal" in status_text(pool.status(), pool.backend, pool.phase)
    assert panel_state(pool.status(), pool.backend, pool.phase)["lost"] == [1]
    with pytest.raises(PoolError) as refused:
        pool.run("ran = True")
    assert str(refused.value) == (
        f"rank 1 is doomed: {WHY}; nothing was run. "
        "To go on: -t with living ranks (ranks 0,2), or %ddp heal, which replaces the doomed"
    )
    with pytest.raises(PoolError, match=r"^rank 1 is doomed: .*; %ddp heal comes before a resize$"):
        pool.resize(2)
    assert values_of(pool.run("'ran' in globals(), kept.tolist()", "0,2")) == {
        0: "(False, [0.0, 0.0])",
        2: "(False, [2.0, 2.0])",
    }
    assert pids_of(pool) == before


@pytest.mark.promise("%ddp heal replaces a doomed rank; the others keep every variable", bound_s=10)
@pytest.mark.parametrize("source", [None, 0])
def test_a_doomed_rank_is_healed(pool: Cluster, promised: Stopwatch, source: int | None) -> None:
    """Its process ends, a new one is in its place with the random states it had, and collectives work."""
    state = "state = torch.get_rng_state(); x = torch.rand(1).item(); torch.set_rng_state(state); x"
    drawn = values_of(pool.run(state))
    before = pids_of(pool)
    run_to_failure(pool, BREAK)
    with promised():
        said = pool.heal(source)
    assert said.startswith("rank 1 replaced; ranks 0,2 kept all variables")
    after = pids_of(pool)
    assert [a == b for a, b in zip(before, after, strict=True)] == [True, False, True]
    eventually(lambda: gone([before[1]]), 2)
    assert states_of(pool) == ["idle"] * 3
    assert pool.run(REDUCE).ok
    kept = "'nothing'" if source is None else "[0.0, 0.0]"
    found = values_of(pool.run("kept.tolist() if 'kept' in globals() else 'nothing'"))
    assert found == {0: "[0.0, 0.0]", 1: kept, 2: "[2.0, 2.0]"}
    assert values_of(pool.run("torch.rand(1).item()")) == drawn
    assert pool.heal() == "no rank is dead or doomed: there is nothing to heal"


def test_peers_in_a_collective_are_freed(pool: Cluster) -> None:
    """They are blocked by it, as by any rank that fails, and it is the doomed one that is to blame."""
    words, record = run_to_failure(pool, BREAK + REDUCE)
    assert re.match(rf"rank 1: RuntimeError: {ASSERT} \(line 5\); ranks 0,2: blocked by rank 1", words)
    assert record.verdicts == {0: "interrupted", 1: "error", 2: "interrupted"}
    assert pool.heal(2).startswith("rank 1 replaced")
    assert values_of(pool.run("kept.tolist()")) == {0: "[0.0, 0.0]", 1: "[2.0, 2.0]", 2: "[2.0, 2.0]"}
    assert pool.run(REDUCE).ok


def test_an_error_that_leaves_the_accelerator_whole(pool: Cluster) -> None:
    """Most errors do: nobody is doomed, and the next cell runs."""
    words, record = run_to_failure(pool, f"raise RuntimeError('{ASSERT}')")
    assert "%ddp heal" not in words
    assert not any(r.notices for r in record)
    assert pool.run(REDUCE).ok


def test_a_doomed_rank_cannot_be_copied_from(pool: Cluster) -> None:
    """One line that names those that can; and a doomed rank that dies is dead."""
    run_to_failure(pool, BREAK)
    with pytest.raises(PoolError, match=r"^--from 1: rank 1 is doomed; name a living one \(ranks 0,2\)$"):
        pool.heal(1)
    assert states_of(pool) == ["idle", "doomed", "idle"]


def test_all_are_doomed(pool: Cluster) -> None:
    """Then the new ones begin anew."""
    run_to_failure(pool, "broken = True\nraise RuntimeError('all of them')")
    with pytest.raises(PoolError, match=r"^ranks 0-2 are doomed: .* To go on: %ddp heal"):
        pool.run("pass")
    assert pool.heal() == "ranks 0-2 replaced"
    assert pool.run(REDUCE).ok
