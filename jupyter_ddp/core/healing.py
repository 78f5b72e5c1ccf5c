"""The replacement of dead and doomed ranks: when it can begin, and what is said of it.

Owns no state of the pool's but its own: whom it replaces, whose variables they get. The pool's machine
holds one of these from the request until the group stands or the attempt is undone.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from msgspec import Struct

from jupyter_ddp.core import messages as m
from jupyter_ddp.core.faults import describe_exit
from jupyter_ddp.core.topology import named

HEAL_TIMEOUT_S = 120.0
"""From the request until the group stands: a cold import of torch on a slow disk."""
COPY_TIMEOUT_S = 600.0
"""The same where variables are copied: 100 GB of them, at a slow machine's speed."""
NOBODY_LEFT = (
    "their variables are lost; %ddp heal puts new ranks in their places, "
    "%ddp restart starts a new pool (-n N: of another size)"
)
"""What is left of a pool whose ranks have all died."""
NOTHING_TO_HEAL = "no rank is dead or doomed: there is nothing to heal"
_MAX_REASON_CHARS = 600


class Healing(Struct, frozen=True):
    """What a heal that is under way was asked for."""

    dead: tuple[int, ...]
    """Those that are replaced; who was doomed is dead by now, too."""
    source: int | None
    """The living rank whose variables the new ones get; None: they start with none."""
    generation: int
    """The last one formed before."""

    @property
    def timeout_s(self) -> float:
        return HEAL_TIMEOUT_S if self.source is None else COPY_TIMEOUT_S

    def order(self, generation: int, backend: m.Backend, place: m.WorkerPlace) -> m.FormGroup:
        """What one rank is told, new or old."""
        source = -1 if self.source is None else self.source
        return m.FormGroup(generation, backend, place, self.dead, source)

    def failed(self, why: str) -> str:
        """In one line: why the ranks were not replaced, and what that means."""
        verb = "were" if len(self.dead) > 1 else "was"
        return f"{named(self.dead, '-')} {verb} not replaced: {' '.join(why.split())[:_MAX_REASON_CHARS]}"

    def ended_early(self, exit: m.WorkerExited) -> str:
        """A rank, new or old, ended before the group stood."""
        what = f"rank {exit.rank} died: {describe_exit(exit)}"
        if exit.rank not in self.dead:
            return what
        last = exit.stderr.strip().rpartition("\n")[2]
        return f"the new {what}" + (f": {last}" if last else "")


def refusal(
    phase: str, ranks: Sequence[int], fit: Sequence[int], doomed: Collection[int], source: int | None
) -> str:
    """Why ranks cannot be replaced now; "" when they can."""
    if phase == "stopped":
        return "there is no pool; %ddp start -n 4 starts one"
    if phase != "ready":
        return f"the pool is {phase}; it can be healed when it is ready (%ddp status)"
    if len(fit) == len(ranks):
        return NOTHING_TO_HEAL
    if source is None or source in fit:
        return ""
    living = f"name a living one ({named(fit, '-')})" if fit else "no rank is left: leave it out"
    if source in ranks:
        return f"--from {source}: rank {source} is {'doomed' if source in doomed else 'dead'}; {living}"
    return f"--from {source}: there is no rank {source}; {living}"


def way_on(fit: Sequence[int], lost: str = "dead") -> str:
    """What a user can do about dead (or doomed) ranks, in words for the end of a line."""
    part = f"-t with living ranks ({named(fit, '-')}), or " if fit else ""
    return f"{part}%ddp heal, which replaces the {lost}"


def what_survives(dead: Sequence[int], alive: Sequence[int]) -> str:
    """What is left after deaths, and what brings the pool back."""
    replaces = f"%ddp heal replaces {named(dead, '-')}"
    if not alive:
        return replaces
    keep = "keep" if len(alive) > 1 else "keeps"
    return f"{named(alive, '-')} {keep} all variables; {replaces}"
