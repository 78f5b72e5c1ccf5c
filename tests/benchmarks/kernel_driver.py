"""A real notebook kernel, driven and timed as a front end sees it.

Owns one kernel process and the channels to it. All times are seconds since the request was sent, on this
process's clock; all sizes are bytes on the wire.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, Self

import zmq
from jupyter_client.manager import KernelManager

from tests.benchmarks.processes import Tag

READY_TIMEOUT_S = 90.0

# The same for every system: as many threads as torchrun gives a worker, and gloo on the loopback interface.
_ENVIRON = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "GLOO_SOCKET_IFNAME": "lo",
    "PYTHONWARNINGS": "ignore",
}
_FIXED = ("status", "execute_input")
"""What every cell sends, whatever it does."""


class Arrival(NamedTuple):
    """One message on iopub."""

    at_s: float
    kind: str
    text: str
    size_bytes: int


class Cell:
    """One executed cell, as it looks from outside."""

    def __init__(self, msg_id: str, sent: float) -> None:
        self.msg_id, self.sent = msg_id, sent
        self.status = ""
        self.reply_s = self.idle_s = 0.0
        self.arrivals: list[Arrival] = []

    @property
    def done(self) -> bool:
        return bool(self.reply_s and self.idle_s)

    @property
    def shown(self) -> list[Arrival]:
        """What came beside the fixed messages of any cell."""
        return [arrival for arrival in self.arrivals if arrival.kind not in _FIXED]

    @property
    def text(self) -> str:
        return "".join(arrival.text for arrival in self.shown)

    @property
    def complete_s(self) -> float:
        """Until the reply and the last output were both there."""
        return max([self.reply_s, *(arrival.at_s for arrival in self.shown)])

    def first_s(self, word: str) -> float | None:
        """When an output with this word came; None if none did."""
        return next((arrival.at_s for arrival in self.shown if word in arrival.text), None)


class CellFailed(Exception):
    """A cell of the benchmark's own did not end well: there is nothing to measure."""


class NotebookKernel:
    """A notebook kernel in a folder of its own; closing it leaves no process of it."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.tag = folder, Tag()
        self._log = (folder / "kernel.log").open("ab")
        self._manager = KernelManager(kernel_name="python3")
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
        own = {"PATH": path, "IPYTHONDIR": str(folder / ".ipython")}
        environ = {**os.environ, **_ENVIRON, **own, **self.tag.environ}
        try:
            self._manager.start_kernel(env=environ, cwd=str(folder), stdout=self._log, stderr=self._log)
            self._client = self._manager.client()
            self._client.start_channels()
            self._client.wait_for_ready(timeout=READY_TIMEOUT_S)
        except BaseException:  # Ctrl-C too: nobody has this object yet who could close it
            self.tag.end()
            raise
        self._shell, self._iopub = self._client.shell_channel.socket, self._client.iopub_channel.socket
        self._poller = zmq.Poller()
        for socket in (self._shell, self._iopub):
            self._poller.register(socket, zmq.POLLIN)
        self._current: Cell | None = None

    @property
    def pid(self) -> int:
        return int(self._manager.provisioner.pid)  # type: ignore[union-attr]  # a local process has one

    # -- cells -----------------------------------------------------------------------------------

    def send(self, code: str) -> Cell:
        """Have a cell executed as JupyterLab asks for it (somebody watches), and do not wait."""
        sent = time.perf_counter()
        self._current = Cell(self._client.execute(code, allow_stdin=True, stop_on_error=False), sent)
        return self._current

    def wait(self, cell: Cell, timeout_s: float, until: Callable[[Cell], bool] | None = None) -> Cell:
        """Until the cell is done, or `until(cell)`. Raises CellFailed after `timeout_s`, or if it fails."""
        deadline = cell.sent + timeout_s
        while not cell.done and not (until and until(cell)):
            left_s = deadline - time.perf_counter()
            if left_s <= 0:
                raise CellFailed(f"not done within {timeout_s:.0f} s: {cell.text[-2000:]}")
            for socket, _ in self._poller.poll(int(left_s * 1000) + 1):
                self._drain(socket)
        if cell.status == "error":
            raise CellFailed(cell.text[-2000:])
        return cell

    def run(self, code: str, timeout_s: float = 180.0) -> Cell:
        """Execute a cell to its end."""
        return self.wait(self.send(code), timeout_s)

    def _drain(self, socket: zmq.Socket[bytes]) -> None:
        while True:
            try:
                frames = socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            self._take(frames, time.perf_counter())

    def _take(self, frames: list[bytes], now: float) -> None:
        session = self._client.session
        message = session.deserialize(session.feed_identities(frames)[1])
        cell, kind, content = self._current, message["msg_type"], message["content"]
        if cell is None or message["parent_header"].get("msg_id") != cell.msg_id:
            return
        at_s = now - cell.sent
        if kind == "execute_reply":
            cell.status, cell.reply_s = content["status"], at_s
            return
        if kind == "status" and content["execution_state"] == "idle":
            cell.idle_s = at_s
        cell.arrivals.append(Arrival(at_s, kind, _text_of(kind, content), sum(map(len, frames))))

    # -- the end ---------------------------------------------------------------------------------

    def others(self) -> list[int]:
        """All processes that this kernel started."""
        return [pid for pid in self.tag.pids() if pid != self.pid]

    def close(self) -> None:
        """End the kernel, and kill what is left of it."""
        self._client.stop_channels()
        try:
            self._manager.shutdown_kernel(now=True)
        finally:
            self.tag.end()
            self._manager.cleanup_resources()
            self._log.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _text_of(kind: str, content: dict[str, Any]) -> str:
    """What a reader would find in the message: a stream's text, an output's, what a widget is told."""
    match kind:
        case "stream":
            return str(content["text"])
        case "error":
            return "\n".join(content["traceback"])
        case "display_data" | "update_display_data" | "execute_result":
            return str(content["data"].get("text/plain", ""))
        case "comm_open" | "comm_msg":
            return json.dumps(content.get("data", {}), ensure_ascii=False, default=str)
        case _:
            return ""
