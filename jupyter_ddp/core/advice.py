"""Collectives that not every rank of a cell will enter: what to say before it runs.

What each rank would call is held against what the others would. Owns the remarks on that; says nothing
where it is not certain that somebody is missing.
"""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Sequence

from jupyter_ddp.core.foreseen_calls import ForeseenCalls, Site, Trace
from jupyter_ddp.core.topology import named

MAX_REMARKS = 3

_MENTION = re.compile(r"\b(?:all_|reduce|broadcast|gather|scatter|barrier|monitored_|new_gr)")

_MAX_RANKS = 64
"""Of more ranks, some are looked at."""


def mentions_collective(source: str) -> bool:
    """Whether there is any use in looking: quick, and wrong on one side only."""
    return _MENTION.search(source) is not None


def remarks(source: str, tree: ast.Module, ranks: Sequence[int], world_size: int) -> list[str]:
    """One line for each collective of a cell on `ranks` that some of the pool's ranks will not enter."""
    if len(ranks) == world_size and "rank" not in source and "RANK" not in source:
        return []  # nothing tells one rank from another
    try:
        if len(ranks) < world_size:
            return _in_part_of_the_world(ForeseenCalls(tree, ranks[0], world_size), ranks)
        sample = [*ranks[: _MAX_RANKS - 1], ranks[-1]] if len(ranks) > _MAX_RANKS else ranks
        return _compared([ForeseenCalls(tree, rank, world_size) for rank in sample])
    except RecursionError:
        return []


def _in_part_of_the_world(walk: ForeseenCalls, ranks: Sequence[int]) -> list[str]:
    lines = []
    for site in sorted(walk.sites):
        way = "pass group=group" if site.operation != "new_group" else "call it in a cell on all of them"
        lines.append(
            f"line {site.line}: {site.operation} needs every rank, and this cell runs on "
            f"{named(ranks, '-')} only; {way}"
        )
    return lines[:MAX_REMARKS]


def _compared(walks: Sequence[ForeseenCalls]) -> list[str]:
    """The calls that some ranks make and others do not, where nothing makes up for it."""
    if len({walk.trace for walk in walks}) == 1:
        return []
    counts = [_most(walk.trace) for walk in walks]
    uneven = {op for count in counts for op in count if len({other[op] for other in counts}) > 1}
    sites = sorted({site for walk in walks for site in walk.sites})
    partial = [site for site in sites if not all(site in walk.sites for walk in walks)]
    if uneven:
        told = [site for site in partial if site.operation in uneven]
    else:  # the same calls in another order, if that is certain
        certain = all(isinstance(item, str) for walk in walks for item in walk.trace)
        told = partial[:1] if certain else []
    return [
        f"line {site.line}: {site.operation}{_where(site, walks)} is not entered by every rank; "
        "the others may hang or fall out of step"
        for site in told[:MAX_REMARKS]
    ]


def _most(trace: Trace) -> Counter[str]:
    """How often each operation is called at most."""
    count: Counter[str] = Counter()
    for item in trace:
        if isinstance(item, str):
            count[item] += 1
            continue
        most: Counter[str] = Counter()
        for way in item.ways:
            most |= _most(way)
        count += most
    return count


def _where(site: Site, walks: Sequence[ForeseenCalls]) -> str:
    """The innermost condition that keeps ranks from a call."""
    for walk in walks:
        for condition in reversed(walk.sites.get(site, ())):
            at = id(condition.test)
            if len({other.decided[at] for other in walks if at in other.decided}) > 1:
                return f" under {condition.words}"
    exits = (found for walk in walks if site not in walk.sites for found in walk.exits)
    before = [found for found in exits if found[0] < site.line]
    return f" after {max(before)[1]}" if before else ""
