"""What the pool's machine is told (events, in the past tense) and what it asks for (effects).

Messages from agents and ranks are events as they are. Both unions are closed.
"""

from __future__ import annotations

from collections.abc import Iterable

from msgspec import Struct

from jupyter_ddp.core import messages as m
from jupyter_ddp.core.topology import Plan
from jupyter_ddp.core.verdicts import Verdict

# --- events: what happened ----------------------------------------------------------------------


class StartRequested(Struct, frozen=True):
    plan: Plan
    surroundings: m.Surroundings


class CellRequested(Struct, frozen=True):
    cell: int
    targets: tuple[int, ...]
    source: str
    awaits: bool = False
    shows: bool = True
    count: int = 0
    checks: bool = False
    timeout_s: float = 0.0
    """It is interrupted when it takes longer; 0: it may take as long as it does."""
    hang_timeout_s: float = 0.0
    """A hang that lasts so long ends the cell; 0: none does."""
    code: bytes = b""
    """The source compiled, as `core.compiled_cell` packs it; empty: the ranks compile it."""


class LookRequested(Struct, frozen=True):
    """Somebody wants to know what every rank does. `number`, above 0, comes back with the answers."""

    number: int
    full: bool = False


class ResizeRequested(Struct, frozen=True):
    plan: Plan
    surroundings: m.Surroundings


class HealRequested(Struct, frozen=True):
    """Replace the dead and the doomed ranks; the new ones get the variables of `source`, or none."""

    surroundings: m.Surroundings
    source: int | None = None


class InterruptRequested(Struct, frozen=True):
    pass


class StopRequested(Struct, frozen=True):
    pass


class NodeLost(Struct, frozen=True):
    """The connection to a node agent ended: none of its ranks can be reached."""

    node_rank: int
    reason: str


class Ticked(Struct, frozen=True):
    """The time that `next_deadline` named has come."""


class CellTookLong(Struct, frozen=True):
    """Somebody has waited long for the cell (again), and may wonder whether its ranks live."""

    cell: int


Event = (
    StartRequested
    | CellRequested
    | CellTookLong
    | LookRequested
    | ResizeRequested
    | HealRequested
    | InterruptRequested
    | StopRequested
    | NodeLost
    | Ticked
    | m.PreloadFailed
    | m.WorkerForked
    | m.WorkerConnected
    | m.GroupFormed
    | m.GroupFailed
    | m.WorkerExited
    | m.CellFinished
    | m.GoodEnds
    | m.RankSeen
    | m.RankUnseen
    | m.RankStuck
)


# --- effects: what to do ------------------------------------------------------------------------


class SendToNodes(Struct, frozen=True):
    """Send this to the agents of the nodes that these ranks are on."""

    ranks: tuple[int, ...]
    message: m.KernelToNode


class StartFinished(Struct, frozen=True):
    """The pool stands, or (`error`) it does not and nothing of it is left."""

    error: str = ""


class CellEnded(Struct, frozen=True):
    """The cell has a verdict on each of its ranks. `deaths` are the ranks that died in it."""

    cell: int
    verdicts: dict[int, Verdict]
    deaths: tuple[m.WorkerExited, ...] = ()
    reasons: dict[int, str] = {}
    """Words for a verdict that the rank itself did not give: {0: "blocked by rank 1"}."""
    warnings: tuple[str, ...] = ()
    """What makes its results doubtful, one line each."""
    hang: str = ""
    """Why the ranks that were interrupted were so, where the cell would have hung."""


class CellRefused(Struct, frozen=True):
    """The cell ran nowhere."""

    cell: int
    reason: str


class StopFinished(Struct, frozen=True):
    """No process of the pool is left, but for the `unkillable` ones (PIDs)."""

    unkillable: tuple[int, ...] = ()


class Announced(Struct, frozen=True):
    """One line about what the pool does to the user's ranks, before it is done; where a cell runs, in it.

    `withdrawn`: it was announced, and is not done.
    """

    text: str
    cell: int = m.NO_CELL
    withdrawn: bool = False


class HangSeen(Struct, frozen=True):
    """A cell is held up: who waits for whom, in one line; "" when it goes on."""

    cell: int
    text: str


Effect = SendToNodes | StartFinished | CellEnded | CellRefused | StopFinished | Announced | HangSeen


def tell_ranks(ranks: Iterable[int], command: m.RankCommand) -> SendToNodes:
    """Have each of these ranks told this."""
    chosen = tuple(sorted(ranks))
    return SendToNodes(chosen, m.Tell(list(chosen), command))


def signal_ranks(ranks: Iterable[int], number: int, group: bool = False) -> SendToNodes:
    """Have a signal sent to each of these ranks; with `group`, to all their descendants too."""
    chosen = tuple(sorted(ranks))
    return SendToNodes(chosen, m.SignalRanks(list(chosen), int(number), group))
