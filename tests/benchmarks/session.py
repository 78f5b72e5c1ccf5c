"""A notebook kernel in which one system has its ranks up: from the first cell to no process left."""

from __future__ import annotations

import re
import tempfile
import time
from pathlib import Path
from typing import Self

from tests.benchmarks.kernel_driver import Cell, CellFailed, NotebookKernel
from tests.benchmarks.processes import pss_bytes
from tests.benchmarks.systems import System

FIRST_CELL = (
    "import torch, torch.distributed as dist\nt = torch.ones(1)\ndist.all_reduce(t)\n"
    "print(f'SUM {dist.get_rank()} {t.item():.0f} END')"
)
"""Names the rank in its output, so that folding identical output cannot hide a rank that is missing."""
_SETTLE_S = 2.0


class Session:
    """`start_s`: from the kernel being ready to the first all_reduce printed by every rank.

    `pause_s`: how long the user waits between the set-up cells and that first cell; it does not count, and
    then neither do the set-up cells.
    """

    def __init__(self, system: System, n: int, pause_s: float = 0.0, ready: str = "") -> None:
        """`ready`: an expression in the kernel that is waited for beyond `pause_s`."""
        self.system, self.n = system, n
        self._folder = tempfile.TemporaryDirectory(prefix="ddp-benchmark-", ignore_cleanup_errors=True)
        self.kernel = NotebookKernel(Path(self._folder.name))
        try:
            self.start_s = self._start(pause_s, ready)
        except BaseException:
            self.close()
            raise

    def _start(self, pause_s: float, ready: str) -> float:
        began = time.perf_counter()
        for source in self.system.set_up(self.n):
            self.kernel.run(source)
        if pause_s:
            time.sleep(pause_s)
            while ready and "True" not in self.kernel.run(f"print(bool({ready}))").text:
                time.sleep(1)
            began = time.perf_counter()
        cell = self.run(FIRST_CELL)
        took_s = time.perf_counter() - began
        said = set(re.findall(r"SUM (\d+) (\d+) END", cell.text))
        if said != {(str(rank), str(self.n)) for rank in range(self.n)}:
            raise CellFailed(f"{self.system.name}: not all of {self.n} ranks answered: {cell.text[-2000:]}")
        return took_s

    def send(self, code: str) -> Cell:
        """A cell on the ranks, not waited for."""
        return self.kernel.send(self.system.on_ranks(code, self.n))

    def run(self, code: str, timeout_s: float = 180.0) -> Cell:
        """A cell on the ranks, to its end."""
        return self.kernel.wait(self.send(code), timeout_s)

    def run_keeping(self, code: str, timeout_s: float = 180.0) -> Cell:
        """The same, and keep what the ranks wrote, where the system can."""
        return self.kernel.run(self.system.keeping(code, self.n), timeout_s)

    def pss_per_rank_bytes(self) -> float:
        """PSS of all that the kernel started (what keeps and serves the ranks included), per rank."""
        time.sleep(_SETTLE_S)
        return sum(map(pss_bytes, self.kernel.others())) / self.n

    def close(self) -> None:
        self.kernel.close()
        self._folder.cleanup()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
