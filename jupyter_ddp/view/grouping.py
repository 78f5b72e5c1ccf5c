"""Ranks that show the same, folded into groups.

Owns what "the same" means. Never alters or drops anything: folding is a matter of display.
"""

from __future__ import annotations

import json
from collections.abc import Hashable
from typing import NamedTuple

from jupyter_ddp.core.long_lines import is_cut
from jupyter_ddp.core.messages import MimeBundle
from jupyter_ddp.core.rank_record import RankSnapshot
from jupyter_ddp.core.record import Snapshot
from jupyter_ddp.core.transcript import Rich, Segment, Text


class Group(NamedTuple):
    """Ranks, ascending, and one of them to show for all."""

    ranks: tuple[int, ...]
    shown: RankSnapshot

    @property
    def has_gap(self) -> bool:
        """Something is missing from what is shown, so that the ranks are the same as far as one sees."""
        texts = (s for s in self.shown.segments if isinstance(s, Text))
        return any(text.omitted_lines or is_cut(text.head) or is_cut(text.tail) for text in texts)


def groups(snapshot: Snapshot) -> list[Group]:
    """The snapshot's ranks by what they show, ordered by each group's lowest rank."""
    found: dict[Hashable, list[RankSnapshot]] = {}
    for rank in snapshot.ranks:
        found.setdefault(_identity(rank), []).append(rank)
    return [Group(tuple(r.rank for r in same), same[0]) for same in found.values()]


def notices(snapshot: Snapshot) -> list[tuple[tuple[int, ...], str]]:
    """Each notice once, with the ranks that gave it, in the order of the first of them.

    Apart from the groups: a remark on how the cell was run is no reason to show output twice.
    """
    found: dict[str, list[int]] = {}
    for rank in snapshot.ranks:
        for notice in rank.notices:
            found.setdefault(notice, []).append(rank.rank)
    return [(tuple(ranks), notice) for notice, ranks in found.items()]


def _identity(rank: RankSnapshot) -> Hashable:
    error = rank.error and (rank.error.ename, rank.error.evalue, rank.error.line, tuple(rank.error.traceback))
    segments = tuple(map(_segment_identity, rank.segments))
    return rank.verdict, error, rank.death, segments


def _segment_identity(segment: Segment) -> Hashable:
    match segment:
        case Text():
            return segment.stream, *segment.parts()
        case Rich():
            return _frozen(segment.data), _frozen(segment.metadata)


def _frozen(bundle: MimeBundle) -> Hashable:
    """MIME data as something that can be hashed: strings (images) as they are, the rest as JSON."""
    return tuple(
        (mime, value if isinstance(value, str) else (json.dumps(value, sort_keys=True),))
        for mime, value in sorted(bundle.items())
    )
