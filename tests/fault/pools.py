"""Warm pools in the test's own process, and cells that are watched while they run.

Where a test needs no notebook, a `Cluster` in its own process is quicker than a notebook kernel, and
nearer: it can be asked for PIDs, and its cells' records can be read while they run.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Self

from jupyter_ddp import Cluster
from jupyter_ddp.core.errors import DDPError
from jupyter_ddp.core.record import CellRecord

REDUCE = "t = torch.ones(1); dist.all_reduce(t); assert t.item() == world_size"
_TURN_S = 0.005


def eventually(look: Callable[[], Any], timeout_s: float, what: str = "") -> Any:
    """The first true value of `look()`; AssertionError when there was none within `timeout_s`."""
    pause, deadline = threading.Event(), time.monotonic() + timeout_s
    while not (found := look()):
        assert time.monotonic() < deadline, f"not within {timeout_s} s: {what or look}"
        pause.wait(_TURN_S)
    return found


def state_of(pid: int) -> str:
    """ "R", "S", "T", "Z", … as /proc has it; "" for a process that is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""


def gone(pids: Iterable[int]) -> bool:
    """None of these processes lives."""
    return all(state_of(pid) in ("", "Z", "X") for pid in pids)


class Pools:
    """One cluster for a module's tests: of the size that each wants, with every rank alive and idle."""

    def __init__(self, **settings: Any) -> None:
        self.cluster = Cluster(1, **settings)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.cluster.close()

    def of(self, n: int) -> Cluster:
        """A pool of `n` living ranks. One that a test has harmed is started anew."""
        cluster = self.cluster
        if cluster.phase == "stopped":
            cluster.start(n)
        elif cluster.world_size != n or [s.state for s in cluster.status()] != ["idle"] * n:
            cluster.restart(n)
        cluster.announcements()
        return cluster


def pids_of(cluster: Cluster) -> list[int]:
    """In rank order, the dead ones' too."""
    return [status.pid for status in cluster.status()]


def states_of(cluster: Cluster) -> list[str]:
    return [status.state for status in cluster.status()]


def values_of(record: CellRecord) -> dict[int, str]:
    """The repr of each rank's last expression."""
    return {r.rank: r.value.text if r.value else "" for r in record}


def agent_of(cluster: Cluster) -> int:
    """The PID of the node agent."""
    exchange = cluster._life.exchange
    assert exchange is not None
    (connection,) = exchange._connections.values()
    return int(connection.node.process.pid)  # type: ignore[attr-defined]  # a LocalNode


def kill(pid: int, number: int = signal.SIGKILL) -> None:
    os.kill(pid, number)


class RunningCell:
    """A cell that is run by a thread of its own, so that the test can do harm meanwhile."""

    def __init__(self, cluster: Cluster, source: str, targets: str | None = None) -> None:
        self.record: CellRecord | None = None
        self.error: DDPError | None = None
        """What `Cluster.run` raised: the words that a user reads."""
        self.ended_at = 0.0
        self._begun = threading.Event()
        self._cluster, self._source, self._targets = cluster, source, targets
        self._thread = threading.Thread(target=self._run, name=f"cell {source[:40]!r}", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        def take(record: CellRecord, done: bool) -> None:
            self.record = record
            self._begun.set()

        try:
            self.record = self._cluster.run(self._source, self._targets, on_news=take)
        except DDPError as error:
            self.error = error
            self.record = getattr(error, "record", None) or self.record
        finally:
            self.ended_at = time.monotonic()

    def until(self, word: str, *ranks: int, timeout_s: float = 20.0) -> None:
        """Until each of these ranks (all, unless named) has printed the word."""

        def said() -> bool:
            assert self._thread.is_alive(), f"the cell has ended: {self.error}"
            record = self.record
            return record is not None and all(word in record[r].stdout for r in ranks or record.ranks)

        assert self._begun.wait(timeout_s), f"nothing was printed in {timeout_s} s"
        eventually(said, timeout_s, f"{word!r} of {ranks or 'all ranks'}")

    @property
    def running(self) -> bool:
        return self._thread.is_alive()

    def end(self, timeout_s: float = 20.0) -> CellRecord:
        """Wait for the cell's end; its record."""
        self._thread.join(timeout_s)
        assert not self._thread.is_alive(), f"the cell has not ended in {timeout_s} s"
        assert self.record is not None, self.error
        return self.record

    @property
    def words(self) -> str:
        """What the user is told of the failure; "" for a cell that ended well."""
        return str(self.error or "")


def run_to_failure(cluster: Cluster, source: str, targets: str | None = None) -> tuple[str, CellRecord]:
    """Run a cell that must fail; what the user is told, and the record."""
    cell = RunningCell(cluster, source, targets)
    record = cell.end()
    assert cell.error is not None, record
    return cell.words, record
