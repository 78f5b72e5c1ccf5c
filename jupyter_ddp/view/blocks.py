"""What a group of ranks shows, piece by piece, before it becomes text or a page.

Owns the order of the pieces: what was written and displayed, the traceback (once, where several failed
alike) and how the process ended. Never cuts anything; `fitting` does.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, NamedTuple

from jupyter_ddp.core.messages import CellError
from jupyter_ddp.core.rank_record import OWN_FAULTS
from jupyter_ddp.core.record import Snapshot
from jupyter_ddp.core.transcript import Segment, Text
from jupyter_ddp.view import wording
from jupyter_ddp.view.ansi import strip
from jupyter_ddp.view.grouping import Group, groups
from jupyter_ddp.view.media import Drawn, draw

Kind = Literal["stdout", "stderr", "value", "traceback", "cause"]


class Lines(NamedTuple):
    """Text, with control sequences; `omitted` lines are missing between head and tail."""

    kind: Kind
    head: str
    omitted: int = 0
    tail: str = ""

    @property
    def chars(self) -> int:
        return len(self.head) + len(self.tail)

    @property
    def n_lines(self) -> int:
        """Lines, those included that are missing."""
        ends = [text for text in (self.head, self.tail) if text]
        return self.omitted + sum(text.count("\n") + (not text.endswith("\n")) for text in ends)


class Gap(NamedTuple):
    """Lines and displayed values that there was no room for."""

    lines: int
    outputs: int
    kind: Literal["gap"] = "gap"


Block = Lines | Drawn | Gap


class Shown(NamedTuple):
    """A group and its pieces; none, where the ranks have nothing to show."""

    group: Group
    blocks: list[Block]

    @property
    def quiet(self) -> bool:
        """One line says all about the group."""
        return not self.blocks

    @property
    def failed(self) -> bool:
        return self.group.shown.verdict not in ("ok", None)

    @property
    def blocked(self) -> bool:
        """The ranks did nothing wrong: they were freed from waiting for one that failed."""
        return self.group.shown.verdict == "interrupted" and bool(self.group.shown.death)


def shown(snapshot: Snapshot) -> list[Shown]:
    """All there is to show, by group: first those that failed of themselves, the first cause first; last
    those that did not run to the end because of them. In the rest the order of ranks.
    """
    found = [Shown(group, list(_blocks(group))) for group in groups(snapshot)]
    place = {rank: at for at, rank in enumerate(snapshot.causes)}
    return list(_folded(sorted(found, key=lambda one: _weight(one, place))))


def _weight(one: Shown, place: dict[int, int]) -> tuple[int, int]:
    verdict = one.group.shown.verdict
    if verdict in OWN_FAULTS:
        return OWN_FAULTS.index(verdict), min(place.get(rank, 0) for rank in one.group.ranks)
    return len(OWN_FAULTS) + (one.blocked or verdict == "not-run"), 0


def _folded(found: list[Shown]) -> Iterator[Shown]:
    """Ranks that wrote different things and failed at the same place: its lines are shown once.

    Of the others the traceback's last line is left, which says what was raised and may differ.
    """
    first: dict[str, int] = {}
    for one in found:
        blocks = list(one.blocks)
        for at, block in enumerate(blocks):
            if isinstance(block, Lines) and block.kind == "traceback":
                lines, _, last = block.head.rpartition("\n")
                if (rank := first.setdefault(lines, one.group.ranks[0])) != one.group.ranks[0] and lines:
                    blocks[at] = Lines("traceback", wording.as_on(rank, last))
        yield Shown(one.group, blocks)


def _blocks(group: Group) -> Iterator[Block]:
    rank = group.shown
    anything = False
    for segment in rank.segments:
        if (block := _block(segment)) is not None:
            anything = True
            yield block
    if rank.error is not None and rank.verdict != "interrupted":
        anything = True
        yield Lines("traceback", traceback(rank.error))
    if rank.verdict == "died" or (rank.death and anything and rank.verdict != "interrupted"):
        yield Lines("cause", wording.cause(group))


def _block(segment: Segment) -> Block | None:
    """A segment's piece; None where there is nothing to see."""
    if isinstance(segment, Text):
        head, omitted, tail = segment.parts()
        return Lines(segment.stream, head, omitted, tail) if omitted or strip(head) else None
    drawn = draw(segment)
    if isinstance(drawn, Drawn):
        return drawn
    return Lines("value", drawn) if strip(drawn) else None


def traceback(error: CellError) -> str:
    """The traceback as the rank's shell formatted it; without one, the exception alone."""
    text = "\n".join(error.traceback).strip("\n")
    if strip(text).strip():
        return text
    return f"{error.ename}: {error.evalue}" if error.evalue else error.ename
