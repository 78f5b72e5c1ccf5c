"""A node agent without processes: its ranks are a thread of the test's, which obeys at once.

Stands where a launcher's node stands (`kernel/exchange.py`: Node). Ranks may refuse to run a cell, or to die.
"""

from __future__ import annotations

import signal
import socket
import threading
from collections.abc import Sequence

from jupyter_ddp.core import codec
from jupyter_ddp.core import messages as m

FIRST_PID = 4_200_000
"""Above what Linux gives to processes (2**22): no signal could hit anything."""


class FakeNode:
    """`busy`: cells never end; `immortal`: nothing ends the ranks. Both may be changed at any time."""

    def __init__(self, gpus: Sequence[m.Gpu] = (), version: int = m.PROTOCOL_VERSION) -> None:
        self.link, self._far = socket.socketpair()
        self.orders: list[m.KernelToNode] = []
        self.busy = self.immortal = False
        self.closed = False
        self.told_to_run = threading.Event()
        self.pids: dict[int, int] = {}
        self._generation = 0
        self._seq = 0
        self.say(m.NodeReady(version, FIRST_PID, "fake", list(gpus)), m.Preloaded("torch", 0.1))
        self._thread = threading.Thread(target=self._serve, name="fake node", daemon=True)
        self._thread.start()

    def say(self, *messages: m.Message) -> None:
        self._far.sendall(b"".join(map(codec.encode, messages)))

    def obituary(self) -> str:
        return "the node agent was ended by the test"

    def end_strays(self) -> None: ...

    def close(self) -> None:
        self.link.close()
        self._thread.join(5)
        self._far.close()
        self.closed = True

    # -- its side ----------------------------------------------------------------------------------

    def _serve(self) -> None:
        reader = codec.FrameReader()
        while data := self._far.recv(1 << 20):
            for body in reader.feed(data):
                order = codec.decode(codec.to_node, body)
                self.orders.append(order)
                self._obey(order)

    def _obey(self, order: m.KernelToNode) -> None:
        match order:
            case m.StartRanks(places):
                for place in places:
                    self._bear(place.rank)
            case m.Tell(ranks, command):
                for rank in ranks:
                    self._tell(rank, command)
            case m.SignalRanks(ranks, signal.SIGKILL):
                for rank in ranks:
                    self._end(rank, signal.SIGKILL)
            case _:
                pass

    def _bear(self, rank: int) -> None:
        pid = self.pids[rank] = FIRST_PID + len(self.orders) * 100 + rank
        self.say(m.WorkerForked(rank, pid), m.WorkerConnected(*self.sender(rank), pid=pid))

    def _tell(self, rank: int, command: m.RankCommand) -> None:
        match command:
            case m.FormGroup():
                self._generation = command.generation
                self.say(m.GroupFormed(*self.sender(rank), seconds=0.01))
            case m.RunCell():
                self.told_to_run.set()
                if self.busy:
                    return
                self.say(m.CellFinished(*self.sender(rank, command.cell), verdict="ok", duration_s=0.1))
            case m.EndWorker():
                self._end(rank, 0)
            case _:
                pass

    def _end(self, rank: int, status: int) -> None:
        if rank in self.pids and not self.immortal:
            self.say(m.WorkerExited(rank, self.pids.pop(rank), status, m.NO_CELL, 0, "", 0))

    def sender(self, rank: int, cell: int = m.NO_CELL) -> tuple[int, int, int, int]:
        """What every message of a rank begins with."""
        self._seq += 1
        return rank, self._generation, cell, self._seq
