"""Every message that crosses a process boundary: a closed set of typed, immutable structs.

Three directions, three unions: `KernelToNode`, `NodeToKernel` and `NodeToRank`. What a rank says
(`FromRank`) carries its rank, the generation of its process group, the cell it belongs to and a
sequence number; a node agent relays it unchanged. Text written by a rank travels as the bytes that
it wrote, so that nothing is altered on the way.
"""

from __future__ import annotations

from typing import Any, Literal

from msgspec import Struct

PROTOCOL_VERSION = 4
"""Raised whenever a message changes. A peer that speaks another version is refused."""

NO_CELL = 0
"""The cell number of what was said outside any cell. Cells are counted from 1."""

NODE_MARK = "JUPYTER_DDP_NODE"
"""The environment variable that a node agent, its ranks and all that they start have in common."""

Stream = Literal["stdout", "stderr"]
Backend = Literal["nccl", "gloo"]


class Message(Struct, frozen=True, tag=True, array_like=True, forbid_unknown_fields=True):
    """Base of every message. The tag is the class name."""


# --- what a rank is told ------------------------------------------------------------------------


class WorkerPlace(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Where one rank stands in the pool: torchrun's numbers, and its device ("cpu", "cuda:1")."""

    rank: int
    local_rank: int
    world_size: int
    local_world_size: int
    node_rank: int
    n_nodes: int
    device: str


class Surroundings(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What the notebook kernel has at the moment the pool starts, and its ranks get."""

    environ: dict[str, str]
    cwd: str
    sys_path: list[str]
    master_addr: str
    master_port: int
    run_id: str
    seed: int


class BeginWorker(Message, frozen=True):
    """The first message of a rank's life. `random_states` are those of the rank that it replaces."""

    place: WorkerPlace
    surroundings: Surroundings
    random_states: bytes = b""


class FormGroup(Message, frozen=True):
    """Form the process group of this generation; leave an earlier one first.

    `replaced` are the ranks that are new processes in the place of dead ones; `source` is the rank that
    they get their variables from, or -1.
    """

    generation: int
    backend: Backend
    place: WorkerPlace
    replaced: tuple[int, ...] = ()
    source: int = -1


class RunCell(Message, frozen=True):
    """Run a cell's source, already transformed by IPython.

    `awaits` says that the source uses top-level await, `shows` that a statement of it may have a value
    to be shown. `members` are the ranks the cell runs on, in
    ascending order; it is empty when that is the whole world. `count` is the notebook's prompt number.
    `checks`: each collective is compared among its ranks before it begins. `code` is the source as
    `core.compiled_cell` packs it; empty where each rank has to compile it for itself.
    """

    cell: int
    source: str
    awaits: bool = False
    shows: bool = True
    members: tuple[int, ...] = ()
    count: int = 0
    checks: bool = False
    code: bytes = b""


class BreakGroup(Message, frozen=True):
    """Free whatever waits in the process group, from outside the waiting thread."""

    generation: int


class EndWorker(Message, frozen=True):
    """Leave, running exit functions."""


class Look(Message, frozen=True):
    """Say what you do, whatever you do. `full`: with the stacks of all threads.

    `number` comes back with the answer; the pool's own are below 0.
    """

    number: int
    full: bool = False


RankCommand = FormGroup | RunCell | BreakGroup | EndWorker | Look
NodeToRank = BeginWorker | FormGroup | RunCell | BreakGroup | EndWorker | Look


# --- what a node agent is told ------------------------------------------------------------------


class StartRanks(Message, frozen=True):
    """Fork one rank for each place, as soon as the forkserver can.

    With `replaces`, in the place of dead ones: they get the random states that those had.
    """

    places: list[WorkerPlace]
    surroundings: Surroundings
    replaces: bool = False


class Tell(Message, frozen=True):
    """Pass one command to each of these ranks."""

    ranks: list[int]
    command: RankCommand


class SignalRanks(Message, frozen=True):
    """Send a signal to each of these ranks' main process (with `group`, to all its descendants)."""

    ranks: list[int]
    signal: int
    group: bool = False


class WatchUsage(Message, frozen=True):
    """Say what the ranks use (`Usage`) every so many seconds from now on; 0 ends it."""

    interval_s: float


KernelToNode = StartRanks | Tell | SignalRanks | WatchUsage


# --- what a node agent says ---------------------------------------------------------------------


class Gpu(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A physical GPU, as the driver's management library lists it."""

    index: int
    uuid: str
    name: str
    memory_bytes: int


class NodeReady(Message, frozen=True):
    """The agent's first message."""

    version: int
    pid: int
    hostname: str
    gpus: list[Gpu]


class Preloaded(Message, frozen=True):
    """The forkserver has come to this stage ("torch", then "dynamo"); ranks may be forked from it."""

    stage: str
    seconds: float


class PreloadFailed(Message, frozen=True):
    """The forkserver ended before it could fork: the end of what it wrote to stderr."""

    stderr: str


class WorkerForked(Message, frozen=True):
    """A rank's process exists."""

    rank: int
    pid: int


class WorkerExited(Message, frozen=True):
    """A rank's process was reaped. `status` is what waitpid gave; `line` the cell's line it was on."""

    rank: int
    pid: int
    status: int
    cell: int
    line: int
    stderr: str
    oom_kills: int


class WorkerSuspended(Message, frozen=True):
    """A rank's process was stopped a while ago (SIGSTOP, a debugger), or (not `suspended`) goes on."""

    rank: int
    pid: int
    suspended: bool


class RankUnseen(Message, frozen=True):
    """A rank did not answer a `Look` in time: what its agent knows of it.

    `state` is its process's in /proc ("T": stopped, "R": running, "": gone), `silent_s` how long none of
    its Python threads has run, `line` the cell's line that it was last seen on.
    """

    rank: int
    look: int
    cell: int
    line: int
    state: str
    silent_s: float


class FdOutput(Message, frozen=True):
    """Bytes written to a rank's file descriptor 1 or 2 by C code or a subprocess."""

    rank: int
    cell: int
    seq: int
    stream: Stream
    data: bytes


class RankUsage(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What one rank's process uses, and where it is.

    `memory_bytes`: its share of main memory (PSS: what ranks share is divided among them). `cpu`: cores
    in use since the last sample, `gpu` the share of its GPU's time in use (0 to 1, by all processes);
    `gpu_memory_bytes`: of its GPU, by all processes, with `gpu_total_bytes`; the three are -1 without a
    GPU. `line`: the cell's line it was last seen on, 0 between cells. `process_state`: the letter that
    ps shows (R runs, S sleeps, T stopped).
    """

    rank: int
    memory_bytes: int
    cpu: float
    line: int
    process_state: str
    gpu: float = -1.0
    gpu_memory_bytes: int = -1
    gpu_total_bytes: int = -1


class Usage(Message, frozen=True):
    """One sample of a node's ranks."""

    ranks: list[RankUsage]


# --- what a rank says ---------------------------------------------------------------------------


class FromRank(Message, frozen=True):
    """Base of what a rank says about itself. `seq` counts a rank's messages from 0."""

    rank: int
    generation: int
    cell: int
    seq: int


class WorkerConnected(FromRank, frozen=True):
    """The rank has its environment and waits for a group."""

    pid: int


class GroupFormed(FromRank, frozen=True):
    """The rank is a member of the group of `generation`."""

    seconds: float


class GroupFailed(FromRank, frozen=True):
    """The group of `generation` could not be formed on this rank."""

    reason: str


class Output(FromRank, frozen=True):
    """Bytes that Python code wrote to sys.stdout or sys.stderr.

    `offset` is the number of bytes of this rank sent before, so that what is read from the journal
    of a dead rank can be joined without a gap or a repetition.
    """

    stream: Stream
    offset: int
    data: bytes


class Display(FromRank, frozen=True):
    """A rich output: `display()`, a figure, or (`result`) the cell's last expression.

    `data` and `metadata` are JSON texts of a mimebundle and its metadata, built by the rank.
    """

    data: str
    metadata: str
    display_id: str = ""
    update: bool = False
    result: bool = False


class ClearOutput(FromRank, frozen=True):
    """`clear_output()` on a rank. The record keeps what was written; the display does not."""

    wait: bool


class Notice(FromRank, frozen=True):
    """Something the user should know about how the cell was run, in one line.

    `withdrawn`: the same text was said before, and holds no more.
    """

    text: str
    withdrawn: bool = False


class CellError(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """An exception that ended a cell on a rank. `line` is the notebook cell's line, 0 if unknown."""

    ename: str
    evalue: str
    line: int
    traceback: list[str]


class GroupCount(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """How many collectives of a group a rank has entered, at little cost: not to be relied on alone.

    `members` are global ranks, ascending; empty for the whole world.
    """

    name: str
    members: tuple[int, ...]
    entered: int


class CellFinished(FromRank, frozen=True, omit_defaults=True):
    """The cell ended on this rank.

    `counts` are of the groups that the rank has used in this cell; `unfinished` says that it has left
    an operation of theirs behind that has not come to its end. `doomed` says why the rank's accelerator is
    lost to its process for good: device, cause and line.
    """

    verdict: Literal["ok", "error", "interrupted"]
    duration_s: float
    group_broken: bool = False
    error: CellError | None = None
    counts: tuple[GroupCount, ...] = ()
    unfinished: bool = False
    doomed: str = ""


class GoodEnds(Message, frozen=True):
    """A cell's good ends on several ranks, from their agent: they are taken in one step."""

    cell: int
    ends: tuple[CellFinished, ...]


class Call(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A collective that a rank has entered. `number` counts a group's collectives from 1.

    `line` is the notebook cell's (0: none), `place` the innermost of the user's own ("data.py:31").
    """

    number: int
    op: str
    line: int = 0
    place: str = ""
    finished: bool = True
    background: bool = False
    """Made by a thread that the user has started."""


class GroupState(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A process group as one of its members has it, from torch's flight recorder.

    `members` as in GroupCount; `entered` is the last collective's number, -1 where that is not known;
    `calls` the last of them, oldest first.
    """

    name: str
    members: tuple[int, ...]
    entered: int
    calls: tuple[Call, ...] = ()


class RankSeen(FromRank, frozen=True):
    """The answer to a `Look`, from the rank's control thread.

    `line`, `place` and `function` say where the main thread is; `doing` is "idle", "computing",
    "sleeping" or "waiting", for `for_s` seconds there. `waits_in` is what it waits in that needs other
    ranks ("all_reduce", "recv", "new_group", "a store"; "" when it does not), `peer` from or for whom in
    a point-to-point call.
    """

    look: int
    doing: str
    line: int = 0
    place: str = ""
    function: str = ""
    for_s: float = 0.0
    waits_in: str = ""
    peer: int = -1
    groups: tuple[GroupState, ...] = ()
    stacks: str = ""


class RankStuck(FromRank, frozen=True):
    """The rank has waited for others in one place for so long; 0: it goes on again. Said each 10 s."""

    for_s: float


class NotCopied(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A variable that a new rank did not get as it was, and why.

    `shards`: it is spread over the ranks, so that the dead one's part is lost.
    """

    name: str
    why: str
    shards: bool = False


class RankHealed(FromRank, frozen=True):
    """What became of the variables when ranks were replaced: how many this one got, and what is lost."""

    copied: int
    lost: list[NotCopied]


RankMessage = (
    WorkerConnected
    | GroupFormed
    | GroupFailed
    | RankHealed
    | Output
    | Display
    | ClearOutput
    | Notice
    | CellFinished
    | RankSeen
    | RankStuck
)

RankCellMessage = Output | FdOutput | Display | ClearOutput | Notice | CellFinished
CellMessage = RankCellMessage | GoodEnds
"""What a cell's record is folded from."""

NodeToKernel = (
    NodeReady
    | Preloaded
    | PreloadFailed
    | WorkerForked
    | WorkerExited
    | Usage
    | WorkerSuspended
    | RankUnseen
    | FdOutput
    | GoodEnds
    | WorkerConnected
    | GroupFormed
    | GroupFailed
    | RankHealed
    | Output
    | Display
    | ClearOutput
    | Notice
    | CellFinished
    | RankSeen
    | RankStuck
)

MimeBundle = dict[str, Any]
