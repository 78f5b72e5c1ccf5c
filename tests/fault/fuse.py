"""The test's end of a fuse: lays it in a rank, lights it, and knows when it burnt.

The rank's end is `fuse_in_rank`, which the pool's forkserver preloads.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

from tests.fault.pools import eventually

WITH_FUSES = {"preload": ["tests.fault.fuse_in_rank"]}
"""Settings of a cluster whose ranks have them."""

COMING_UP = ("forked", "connected", "joining")

GONE = "raise RuntimeError('Connection closed by peer [127.0.0.1]:1')"
WITHOUT_GROUP = f"if rank == world_size - 1:\n    {GONE}\nelse: kept"
"""A cell after which the group is formed again."""
IN_A_COLLECTIVE = "print('on')\nwhile True: dist.all_reduce(torch.ones(1))"


class Fuse:
    """What the test and the rank that is to die share: a FIFO that lights it, and when it burnt."""

    def __init__(self, folder: Path) -> None:
        self.fifo, self.note = folder / "fifo", folder / "burnt"
        if not self.fifo.exists():
            os.mkfifo(self.fifo)

    def environ(self, rank: int, moment: str, way: str) -> str:
        """For the variable FUSE."""
        return json.dumps({"rank": rank, "moment": moment, "way": way, "note": str(self.note)})

    def cell(self, rank: int, moment: str, way: str) -> str:
        """The source that lays it in a rank that runs cells."""
        lays = f"fuse.lay({moment!r}, {way!r}, {str(self.note)!r}, {str(self.fifo)!r})"
        return f"if rank == {rank}:\n    import tests.fault.fuse_in_rank as fuse; {lays}"

    def light(self) -> None:
        """In a rank that waits for it."""
        eventually(self._lit, 5, "the rank waits to be told")

    def _lit(self) -> bool:
        try:
            os.close(os.open(self.fifo, os.O_WRONLY | os.O_NONBLOCK))
        except OSError:  # nobody reads it yet
            return False
        return True

    @property
    def since_s(self) -> float:
        """Since the death, in seconds."""
        return time.monotonic() - float(self.note.read_text())
