"""Descriptors, disk and memory run out: output goes on, the reason is named, and nothing hangs."""

from __future__ import annotations

import contextlib
import re
import resource
from collections.abc import Iterator

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


MUCH = "for i in range(40_000): print(f'{i:099d}')"
"""4 MB: more than is kept in memory."""


@contextlib.contextmanager
def limited(what: int, soft: int) -> Iterator[None]:
    """Inside, this process may use no more of something."""
    before = resource.getrlimit(what)
    resource.setrlimit(what, (soft, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(what, before)


@pytest.mark.promise("disk full, no descriptor left: output goes on in memory, the errno named")
@pytest.mark.parametrize(
    ("what", "soft", "name"),
    [
        (resource.RLIMIT_NOFILE, 3, r"Too many open files \(EMFILE\)"),
        (resource.RLIMIT_FSIZE, 2**21, r"File too large \(EFBIG\)"),
    ],
)
def test_the_notebook_kernel_can_keep_no_file(pools: Pools, what: int, soft: int, name: str) -> None:
    """What the cell wrote is in its record all the same; the next cell is as ever."""
    cluster = pools.of(2)
    with limited(what, soft):
        record = cluster.run(MUCH)
        assert record.ok
    for r in record:
        assert r.stdout == "".join(f"{i:099d}\n" for i in range(40_000))
    notes = {note for r in record for note in r.notices}
    assert len(notes) == 1
    assert re.fullmatch(rf"output can be kept in memory alone, the last 16 MiB: {name}", notes.pop())
    record.close()
    after = cluster.run(MUCH, "0")
    assert after[0].notices == []
    after.close()
