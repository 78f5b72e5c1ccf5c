"""A real notebook kernel, driven as a front end drives it.

Owns one kernel process and the channels to it. Every wait has a deadline; what a test waits for in the
outside world it polls for with `eventually`.
"""

from __future__ import annotations

import ast
import os
import re
import signal
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterable
from pathlib import Path
from queue import Empty
from typing import Any, Self

import zmq
from jupyter_client import BlockingKernelClient, KernelManager

TAG = "JUPYTER_DDP_TEST_TAG"
"""Every process that a notebook kernel of ours starts carries this variable, however it got away."""
READY_TIMEOUT_S = 60.0

_RANKS = (
    "[(r.rank, r.pid, r.device, r.state) for r in "
    "get_ipython().magics_manager.registry['DDPMagics'].cluster.status()]"
)
_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
_POLL_S = 0.01


def eventually(look: Callable[[], Any], timeout_s: float, what: str = "") -> Any:
    """The first true value of `look()`; AssertionError when there was none within `timeout_s`."""
    pause = threading.Event()
    deadline = time.monotonic() + timeout_s
    while not (found := look()):
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout_s} s: {what or look}")
        pause.wait(_POLL_S)
    return found


def tagged(tag: str) -> list[int]:
    """PIDs of all living processes that carry the tag; what has ended and is not reaped does not count."""
    wanted = f"{TAG}={tag}".encode()
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):  # noqa: PTH208 - names are all it takes
        try:
            carries = wanted in Path(f"/proc/{name}/environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if carries and process_state(int(name)) not in ("", "Z", "X"):
            found.append(int(name))
    return sorted(found)


def process_state(pid: int) -> str:
    """ "R", "S", "T", "Z", … as /proc has it; "" for a process that is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""


def parent_of(pid: int) -> int:
    """The PID of a process's parent."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def command_of(pid: int) -> str:
    """A process's command line, its words separated by spaces; "" when it is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ").strip()
    except OSError:
        return ""


class Cell:
    """What a front end has of one executed cell."""

    def __init__(self, msg_id: str) -> None:
        self.msg_id = msg_id
        self.sent = time.monotonic()
        self.status = ""
        self.execution_s = 0.0
        """From the request to the reply."""
        self.messages: list[tuple[float, dict[str, Any]]] = []
        """(seconds since the request, message) of everything on iopub that belongs to the cell."""
        self.outputs: list[dict[str, Any]] = []
        """As a saved notebook has them: updates and clear_output are carried out."""
        self.error = ""
        """"EName: evalue" of a cell whose status is error."""
        self.expressions: dict[str, Any] = {}
        self._replied = self._idle = False
        self._told: list[str] = []
        self.notes: list[str] = []
        """What the live view was told of the cell as a whole, each line once, in the order of its coming."""

    @property
    def done(self) -> bool:
        return self._replied and self._idle

    @property
    def ok(self) -> bool:
        return self.status == "ok"

    @property
    def texts(self) -> list[str]:
        """The text of each output, escape sequences removed."""
        return [_ESCAPES.sub("", _text_of(output)) for output in self.outputs]

    @property
    def text(self) -> str:
        """What stands under the cell; while a widget does, what it was told too."""
        live = any("application/vnd.jupyter.widget-view+json" in page for page in self.pages)
        return "\n".join(self.texts + (self._told if live else []))

    @property
    def pages(self) -> list[dict[str, str]]:
        """The MIME bundles that were displayed."""
        return [output["data"] for output in self.outputs if "data" in output]

    @property
    def html(self) -> str:
        return "\n".join(page.get("text/html", "") for page in self.pages)

    def reply(self, content: dict[str, Any]) -> None:
        self.status, self._replied = content["status"], True
        self.execution_s = time.monotonic() - self.sent
        self.expressions = content.get("user_expressions", {})
        if self.status == "error":
            self.error = f"{content['ename']}: {content['evalue']}"

    def take(self, message: dict[str, Any]) -> None:
        """Fold one message from iopub."""
        kind, content = message["msg_type"], message["content"]
        self.messages.append((time.monotonic() - self.sent, message))
        if kind == "status":
            self._idle |= content["execution_state"] == "idle"
        elif kind == "update_display_data":
            shown = content["transient"]["display_id"]
            for output in self.outputs:
                if output.get("transient", {}).get("display_id") == shown:
                    output["data"], output["metadata"] = content["data"], content["metadata"]
        elif kind == "clear_output":
            self.outputs.clear()
        elif kind in ("comm_open", "comm_msg"):
            self._told += _told(content["data"])
            self.notes += [note for note in _notes(content["data"]) if note not in self.notes]
        elif kind in ("stream", "display_data", "execute_result", "error"):
            last = self.outputs[-1] if self.outputs else {}
            if kind == "stream" and last.get("name") == content["name"]:
                last["text"] += content["text"]
            else:
                self.outputs.append({"output_type": kind, **content})

    def counted(self, *kinds: str) -> int:
        """How many messages of these kinds came."""
        return sum(message["msg_type"] in kinds for _, message in self.messages)

    def __repr__(self) -> str:
        return f"<cell {self.status or 'running'} {self.error!r} {self.text[-2000:]!r}>"


def _told(message: dict[str, Any]) -> list[str]:
    """The lines in a message to the live view."""
    told = message.get("content") or message.get("state", {}).get("whole", {})
    pieces = [piece for _, _, some in told.get("entries", []) for piece in some if piece[0] == "t"]
    return [_ESCAPES.sub("", line) for piece in pieces for line in (*piece[4], piece[5])]


def _notes(message: dict[str, Any]) -> list[str]:
    """The remarks in a message to the live view."""
    told = message.get("content") or message.get("state", {}).get("whole", {})
    return list(told.get("notes", []))


def _text_of(output: dict[str, Any]) -> str:
    if "data" in output:
        return str(output["data"].get("text/plain", ""))
    if "traceback" in output:
        return "\n".join(output["traceback"])
    return str(output["text"])


class NotebookKernel:
    """A notebook kernel in a directory of its own. `live`: as JupyterLab asks, not as nbclient does."""

    def __init__(self, folder: Path, environ: dict[str, str] | None = None) -> None:
        self.folder, self.tag, self.live = folder, uuid.uuid4().hex, False
        folder.mkdir(parents=True, exist_ok=True)
        inherited = {k: v for k, v in os.environ.items() if k not in _SETTING_UP_RANKS}
        own = {TAG: self.tag, "IPYTHONDIR": str(folder / ".ipython")}
        self._log = (folder / ".kernel.log").open("ab")
        self._cells: dict[str, Cell] = {}
        self.manager = KernelManager(kernel_name="python3")
        self.manager.start_kernel(
            env={**inherited, **own, **(environ or {})}, cwd=str(folder), stdout=self._log, stderr=self._log
        )
        self._connect()

    def _connect(self) -> None:
        self.client: BlockingKernelClient = self.manager.client()
        self.client.start_channels()
        self.client.wait_for_ready(timeout=READY_TIMEOUT_S)
        self._poller = zmq.Poller()
        for channel in (self.client.shell_channel, self.client.iopub_channel):
            self._poller.register(channel.socket, zmq.POLLIN)

    @property
    def pid(self) -> int:
        return int(self.manager.provisioner.pid)

    @property
    def log(self) -> str:
        """What the kernel process itself wrote to its stdout and stderr."""
        return (self.folder / ".kernel.log").read_text(errors="replace")

    @property
    def unfinished(self) -> list[Cell]:
        """Cells that were sent and have not ended."""
        return [cell for cell in self._cells.values() if not cell.done]

    # -- cells -----------------------------------------------------------------------------------

    def send(self, code: str, **request: Any) -> Cell:
        """Have a cell executed, and do not wait."""
        self.client.session.metadata = {"cellId": "a cell"} if self.live else {}
        cell = Cell(self.client.execute(code, allow_stdin=self.live, stop_on_error=False, **request))
        self._cells[cell.msg_id] = cell
        return cell

    def wait(self, cell: Cell, timeout_s: float = 30.0) -> Cell:
        """Until the cell's reply and its last output are there."""
        self.pump_until(lambda: cell.done, timeout_s, f"the end of {cell}; kernel log: {self.log[-2000:]}")
        return cell

    def pump_until(self, look: Callable[[], Any], timeout_s: float, what: str = "") -> None:
        """Take messages until `look()` is true."""
        deadline = time.monotonic() + timeout_s
        while not look():
            if time.monotonic() > deadline:
                raise AssertionError(f"not within {timeout_s} s: {what or look}")
            self._pump()

    def _pump(self) -> None:
        for socket, _ in self._poller.poll(20):
            shell = socket is self.client.shell_channel.socket
            channel = self.client.shell_channel if shell else self.client.iopub_channel
            try:
                message = channel.get_msg(timeout=0)
            except Empty:
                continue
            cell = self._cells.get(message["parent_header"].get("msg_id", ""))
            if cell is None:
                continue
            if not shell:
                cell.take(message)
            elif message["msg_type"] == "execute_reply":
                cell.reply(message["content"])

    def run(self, code: str, timeout_s: float = 30.0) -> Cell:
        """Execute a cell to its end, whatever its status."""
        return self.wait(self.send(code), timeout_s)

    def good(self, code: str, timeout_s: float = 30.0) -> Cell:
        """Execute a cell that must end well."""
        cell = self.run(code, timeout_s)
        assert cell.ok, cell
        return cell

    def bad(self, code: str, timeout_s: float = 30.0) -> Cell:
        """Execute a cell that must fail; its message is one line."""
        cell = self.run(code, timeout_s)
        assert cell.status == "error", cell
        assert "\n" not in cell.error.strip(), cell.error
        return cell

    def evaluate(self, expression: str) -> Any:
        """The value of a Python literal's expression in the kernel."""
        cell = self.wait(self.send("", silent=True, user_expressions={"it": f"ascii({expression})"}))
        found = cell.expressions["it"]
        assert found["status"] == "ok", found
        return ast.literal_eval(ast.literal_eval(found["data"]["text/plain"]))

    # -- ranks -----------------------------------------------------------------------------------

    def start_pool(self, n: int) -> Cell:
        """Load the extension and start the pool: what a module's tests share."""
        self.good("%load_ext jupyter_ddp")
        return self.good(f"%ddp start -n {n}", 60)

    def ranks(self, code: str, options: str = "", timeout_s: float = 30.0, *, ok: bool = True) -> Ranks:
        """Run a cell on the ranks; give what each wrote, and the cell."""
        cell = self.run(f"%%ddp -o _record {options}\n{code}", timeout_s)
        assert cell.ok or not ok, cell
        return Ranks(cell, self.evaluate(_RECORD.format("_record")))

    def rank_pids(self) -> list[int]:
        """In rank order."""
        return [pid for _, pid, _, _ in self.status()]

    def status(self) -> list[tuple[int, int, str, str]]:
        """(rank, pid, device, state) of each rank of the magics' cluster."""
        return [tuple(r) for r in self.evaluate(_RANKS)]

    @property
    def agent_pid(self) -> int:
        """The node agent: the parent of every living rank."""
        parents = {parent_of(pid) for _, pid, _, state in self.status() if state != "dead"}
        assert len(parents) == 1
        return parents.pop()

    def wait_for_files(self, pattern: str, n: int, timeout_s: float = 20.0) -> None:
        """Until a cell that runs has made `n` files of this pattern; they are removed."""
        what = f"{n} files {pattern}"
        found = eventually(lambda: len(f := list(self.folder.glob(pattern))) >= n and f, timeout_s, what)
        for path in found:
            path.unlink()

    # -- processes -------------------------------------------------------------------------------

    def others(self) -> list[int]:
        """PIDs of all that this kernel started, however it got away."""
        return [pid for pid in tagged(self.tag) if pid != self.pid]

    def interrupt(self) -> None:
        """The front end's interrupt button."""
        self.manager.interrupt_kernel()

    def restart(self) -> None:
        """The front end's restart."""
        self.client.stop_channels()
        self.manager.restart_kernel(now=False)
        self._cells.clear()
        self._connect()

    def close(self) -> None:
        """End the kernel; whatever is left of it after that is killed, and named. Twice is harmless."""
        if self._log.closed:
            return
        tag, log = self.tag, self.log
        self.client.stop_channels()
        self.manager.shutdown_kernel(now=False)
        self._log.close()
        try:
            eventually(lambda: not tagged(tag), 2.0)
        except AssertionError:
            left = [(pid, command_of(pid)) for pid in tagged(tag)]
            _kill(tagged(tag))
            raise AssertionError(f"processes left by the notebook kernel: {left}; its log: {log}") from None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


_SETTING_UP_RANKS = {"RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "OMP_NUM_THREADS"}
_RECORD = (
    "[dict(rank=r.rank, stdout=r.stdout, stderr=r.stderr, verdict=r.verdict, notices=r.notices, "
    "value=r.value and r.value.text, mime=r.value and r.value.data, lost=r.lost_messages, death=r.death, "
    "error=r.error and (r.error.ename, r.error.evalue, r.error.line), "
    "traceback='\\n'.join(r.error.traceback) if r.error else '') for r in {}]"
)


class Ranks:
    """What the ranks did in a cell, in rank order."""

    def __init__(self, cell: Cell, records: list[dict[str, Any]]) -> None:
        self.cell, self.records = cell, records

    def __getitem__(self, rank: int) -> dict[str, Any]:
        return next(record for record in self.records if record["rank"] == rank)

    def all(self, name: str) -> list[Any]:
        """One field of every rank's record."""
        return [record[name] for record in self.records]

    @property
    def stdout(self) -> list[str]:
        return self.all("stdout")

    @property
    def values(self) -> list[Any]:
        """The last expression's value on each rank, of a literal."""
        return [ast.literal_eval(text) for text in self.all("value")]

    def tracebacks(self) -> list[str]:
        return [_ESCAPES.sub("", text) for text in self.all("traceback")]


def _kill(pids: Iterable[int]) -> None:
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            pass  # it has just ended


def run_script(folder: Path, source: str, timeout_s: float = 60.0) -> str:
    """Run a plain Python script, without IPython; give what it printed."""
    import subprocess

    path = folder / "script.py"
    path.write_text(source)
    done = subprocess.run(
        [sys.executable, str(path)],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
