"""Many cells, many groups, many healed ranks: what is kept of each is bounded.

The suite runs a short version; `make soak` sets JUPYTER_DDP_SOAK to the number of cells (10,000, with 200
groups formed again and 50 healed ranks).
"""

from __future__ import annotations

import ctypes
import gc
import os
import signal
import time
from collections.abc import Callable

import pytest

from jupyter_ddp import Cluster
from jupyter_ddp.core import running_cell
from tests import soak_figures
from tests.fault.pools import REDUCE, eventually, pids_of, values_of
from tests.soak.processes import Use, growth, store_keys, uses_of

CELLS = int(os.environ.get("JUPYTER_DDP_SOAK", "1000"))
WARM_UP = 1100
"""Cells after which caches are full: IPython keeps the values of 1000 cells in `Out`, as in any notebook."""
GROUPS = max(6, CELLS // 50)
HEALS = max(3, CELLS // 200)
SAMPLES = 40
KEPT_BYTES = 1024
"""A cell may leave so much behind, in each process."""
LIMIT_S = 0 if soak_figures.FULL else 240


@pytest.mark.timeout(LIMIT_S)
def test_cells_leave_nothing_behind() -> None:
    """Descriptors, threads and the store's keys stay as they are; memory grows by less than 1 KiB a cell."""
    with Cluster(2) as cluster:
        for number in range(WARM_UP):
            run_usual(cluster, number)
        keys, before = store_keys(cluster), uses_of(cluster)
        grown = growths(cluster, CELLS, run_usual)
        worst = max(grown, key=grown.__getitem__)
        words = ", ".join(f"{name} {n_bytes:.0f}" for name, n_bytes in grown.items())
        assert grown[worst] < KEPT_BYTES, f"bytes a cell: {words}"
        check_flat(before, uses_of(cluster), keys, store_keys(cluster))
    soak_figures.note(
        f"memory that each of {CELLS:,} cells leaves behind, after {WARM_UP:,} to warm up",
        "1 KiB a cell",
        f"bytes a cell: {words}",
    )
    soak_figures.note(
        f"descriptors, threads, store keys after {CELLS:,} cells", "as before", flat_words(before, keys)
    )


@pytest.mark.timeout(LIMIT_S)
def test_a_leak_would_be_seen() -> None:
    """2 KiB that stay of each cell, on a rank and in the notebook kernel, are more than is allowed."""
    kept = []

    def run(cluster: Cluster, number: int) -> None:
        cluster.run("if rank == 1: kept.append(b'x' * 2048)")
        kept.append(b"x" * (2048 + number % 2))

    with Cluster(2) as cluster:
        cluster.run("kept = []")
        growths(cluster, 100, run)
        grown = growths(cluster, 400, run)
    assert grown["rank 1"] > KEPT_BYTES
    assert grown["kernel"] > KEPT_BYTES
    assert grown["rank 0"] < KEPT_BYTES
    assert grown["agent"] < KEPT_BYTES


def test_values_that_nothing_shows_any_more() -> None:
    """What `Out` lets go of, as it does of all but the last thousand values, is free."""
    with Cluster(1) as cluster:
        assert values_of(cluster.run("Out, _"))[0] == "({}, '')"
        cluster.run("get_ipython().displayhook.cache_size = 10\nimport weakref\nclass Value: pass")
        cluster.run("value = Value(); ref = weakref.ref(value)\nvalue")
        assert values_of(cluster.run("del value\nref() is Out[3] is _3"))[0] == "True"
        for number in range(20):
            cluster.run(str(number))
        assert values_of(cluster.run("ref() is None and Out[24] == _24 == 19"))[0] == "True"


@pytest.mark.timeout(LIMIT_S)
def test_groups_leave_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    """However often the group is broken and formed again, with one of the user's own beside it."""
    monkeypatch.setattr(running_cell, "PEER_FAILED_TIMEOUT_S", 0.02)
    with Cluster(2) as cluster:
        cluster.run("pair = dist.new_group([0, 1])")
        check_repeated(cluster, GROUPS, break_the_group, "re-formed groups")


@pytest.mark.timeout(LIMIT_S)
def test_healed_ranks_leave_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    """However often a rank is killed and replaced, with and without a copy of the other's variables."""
    monkeypatch.setattr(running_cell, "PEER_DIED_TIMEOUT_S", 0.02)
    with Cluster(2) as cluster:
        check_repeated(cluster, HEALS, heal, "healed ranks")


def test_restarts_leave_nothing_behind() -> None:
    """A new pool on the same agent, of another size: what the last one put into the store is gone."""
    with Cluster(2) as cluster:

        def renew(cluster: Cluster, number: int) -> None:
            cluster.restart(1 + number % 2)
            cluster.run(REDUCE)
            cluster.resize(2)
            cluster.run(REDUCE)

        check_repeated(cluster, HEALS, renew, "restarts and changes of size")


# --- what is done ---------------------------------------------------------------------------------


def run_usual(cluster: Cluster, number: int) -> None:
    """A cell as people write them: another text each, with output, a value, now and then an error."""
    if number % 50 == 49:
        record = cluster.run(f"if rank == 1: raise ValueError({number})", check=False)
        assert record[1].verdict == "error"
    elif number % 10 == 3:
        cluster.run(f"def shifted(x):\n    return [y + {number} for y in x]\nshifted([rank])")
    else:
        cluster.run(f"# {number}\n{REDUCE}\nprint('step', {number}, 'x' * 200)\nt.item() + {number}")


def break_the_group(cluster: Cluster, number: int) -> None:
    record = cluster.run(f"if rank == 0: raise ValueError\n{REDUCE}", check=False)
    assert record[1].verdict == "interrupted"
    cluster.run(REDUCE)


def heal(cluster: Cluster, number: int) -> None:
    os.kill(pids_of(cluster)[1], signal.SIGKILL)
    eventually(lambda: cluster.status()[1].state == "dead", 5)
    cluster.heal(0 if number % 2 else None)
    cluster.run(REDUCE)


# --- what is held ---------------------------------------------------------------------------------


def growths(cluster: Cluster, count: int, run: Callable[[Cluster, int], None]) -> dict[str, float]:
    """Run so many cells; how many bytes a cell each process has grown by meanwhile."""
    # What other tests have left free in this process, where a leak could hide, goes back to the system.
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    numbers: list[int] = []
    samples: dict[str, list[int]] = {}
    for number in range(count):
        run(cluster, number)
        if number % (count // SAMPLES) == 0:
            numbers.append(number)
            for name, use in uses_of(cluster).items():
                samples.setdefault(name, []).append(use.private_bytes)
    return {name: growth(numbers, held) for name, held in samples.items()}


def check_repeated(cluster: Cluster, count: int, repeat: Callable[[Cluster, int], None], what: str) -> None:
    """After `count` more times there is what there was after the first few."""
    for number in range(4):
        repeat(cluster, number)
    keys, before, began = store_keys(cluster), settled(cluster), time.monotonic()
    for number in range(count):
        repeat(cluster, number)
    took_s = time.monotonic() - began
    eventually(lambda: store_keys(cluster) <= keys, 5, f"{keys} keys in the store, as before")
    after = settled(cluster)
    check_flat(before, after, keys, store_keys(cluster))
    lasting = [name for name in before if not name.startswith("rank 1")]
    grown = {name: (after[name].private_bytes - before[name].private_bytes) / count for name in lasting}
    words = ", ".join(f"{name} {n_bytes / 1024:.1f}" for name, n_bytes in grown.items())
    soak_figures.note(
        f"descriptors, threads, store keys after {count} {what}",
        "as before",
        f"{flat_words(before, keys)}; memory, KiB each: {words}; {took_s / count:.2f} s each",
    )


def settled(cluster: Cluster) -> dict[str, Use]:
    gc.collect()
    return uses_of(cluster)


def check_flat(before: dict[str, Use], after: dict[str, Use], keys: int, keys_after: int) -> None:
    for name, use in before.items():
        assert after[name].descriptors <= use.descriptors, name
        assert after[name].threads <= use.threads, name
    assert keys_after <= keys


def flat_words(uses: dict[str, Use], keys: int) -> str:
    words = ", ".join(f"{name} {use.descriptors} and {use.threads}" for name, use in uses.items())
    return f"descriptors and threads as before ({words}), {keys} keys"
