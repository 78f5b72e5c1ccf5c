"""Descriptors, disk and memory run out: output goes on, the reason is named, and nothing hangs."""

from __future__ import annotations

import pytest

from tests.fault.pools import REDUCE, Pools, RunningCell, run_to_failure
from tests.promises import Stopwatch


@pytest.mark.promise("a rank without a free descriptor can be interrupted in a collective", bound_s=3)
def test_interrupt_without_descriptors(pools: Pools, promised: Stopwatch) -> None:
    """Where the cell has used them all up, the group is broken all the same."""
    cluster = pools.of(2)
    cluster.run("import resource, time\nresource.setrlimit(resource.RLIMIT_NOFILE, (3, 4096))")
    words, _ = run_to_failure(cluster, "open('/dev/null')")
    assert "Too many open files" in words
    cell = RunningCell(cluster, f"print('on')\nif rank:\n    time.sleep(60)\n{REDUCE}")
    cell.until("on")
    with promised():
        cluster.interrupt()
        cell.end()
    assert "interrupted" in cell.words
    cluster.restart()
    assert cluster.run(REDUCE).ok
