"""Who waits for whom, in words: from what the ranks of a cell were seen to do.

Pure. `explain` is for ranks that have waited long; it gives nothing where nobody waits for anybody who
is not there.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Set

from msgspec import Struct

from jupyter_ddp.core import messages as m
from jupyter_ddp.core.steps import (
    MAX_PARTS,
    Sight,
    Sights,
    call_words,
    group_states,
    members_of,
    mismatch,
)
from jupyter_ddp.core.topology import named

_SENDS = {"send": "to", "isend": "to", "recv": "from", "irecv": "from"}
_STORE = "a store"


class Explanation(Struct, frozen=True):
    """`text`: one line. `out_of_step`: this can never come to an end."""

    text: str
    out_of_step: bool = False


def explain(sights: Sights, running: Set[int], world_size: int) -> Explanation | None:
    """What holds a cell up; None where nothing does. `running`: the ranks that have not ended it."""
    waiting = {rank: sight for rank, sight in sights.items() if _waits(sight)}
    if not waiting:
        return None
    if words := mismatch(sights):
        return Explanation(words, out_of_step=True)
    cells = {sight.cell for sight in waiting.values()}
    unended = running | {rank for rank, sight in sights.items() if sight.cell not in cells}  # or never begun
    parts = [
        *_collectives(sights, unended, world_size),
        *_sends(sights, unended),
        *_others(sights, unended),
    ]
    if not parts:
        return None
    more = [f"and {len(parts) - MAX_PARTS} more"] if len(parts) > MAX_PARTS else []
    return Explanation("; ".join(parts[:MAX_PARTS] + more))


def _waits(sight: Sight) -> bool:
    return isinstance(sight, m.RankSeen) and bool(sight.waits_in)


def _pending(sight: Sight, state: m.GroupState) -> m.Call | None:
    """The first collective of a group that a waiting rank has not come out of."""
    if not _waits(sight):
        return None
    return next((c for c in state.calls if not c.finished and not c.background), None)


def _collectives(sights: Sights, running: Set[int], world_size: int) -> Iterator[str]:
    for states in group_states(sights).values():
        pending = {rank: call for rank, state in states.items() if (call := _pending(sights[rank], state))}
        if not pending:
            continue
        first = min(pending.values(), key=lambda call: call.number)
        members = members_of(next(iter(states.values())), world_size)
        absent = [r for r, state in states.items() if 0 <= state.entered < first.number]
        silent = [r for r in members if isinstance(sights.get(r), m.RankUnseen)]
        if not absent and not silent:
            continue
        if absent:
            verb = "has" if len(absent) == 1 else "have"
            yield f"{named(absent, '-')} {verb} not entered {call_words(first)}"
            yield from _doings(absent, sights, running, pronoun=not silent)
        yield from _doings(silent, sights, running, pronoun=False)
        whom = "it" if len(absent) + len(silent) == 1 else "them"
        what = "" if absent else f" in {call_words(first)}"
        yield f"{named(pending, '-')} wait{'s' if len(pending) == 1 else ''} for {whom}{what}"


def _sends(sights: Sights, running: Set[int]) -> Iterator[str]:
    peers: set[int] = set()
    waiting: list[int] = []
    for rank, sight in sights.items():
        if isinstance(sight, m.RankSeen) and sight.waits_in in _SENDS:
            yield _sending(rank, sight)
            waiting.append(rank)
            peers.add(sight.peer)
    others = [rank for rank in sorted(peers) if rank in sights and rank not in waiting]
    yield from _doings(others, sights, running, pronoun=False)


def _sending(rank: int, sight: m.RankSeen) -> str:
    """ "rank 0 waits in recv from rank 1 (line 3)"."""
    whom = f"rank {sight.peer}" if sight.peer >= 0 else "any rank"
    return f"rank {rank} waits in {sight.waits_in} {_SENDS[sight.waits_in]} {whom}{_at(sight)}"


def _others(sights: Sights, running: Set[int]) -> Iterator[str]:
    """What waits in the store, directly or to form a group."""
    places: dict[tuple[str, int], list[int]] = defaultdict(list)
    every = group_states(sights).values()
    explained = {r for states in every for r in states if _pending(sights[r], states[r])}
    for rank, sight in sights.items():
        if not isinstance(sight, m.RankSeen) or not sight.waits_in or sight.waits_in in _SENDS:
            continue
        if rank not in explained:
            places[sight.waits_in, sight.line].append(rank)
    for (what, line), ranks in places.items():
        elsewhere = [r for r, sight in sights.items() if not _is_in(sight, what)]
        if what != _STORE and not elsewhere:
            continue
        at = f" (line {line})" if line else ""
        yield f"{named(ranks, '-')} wait{'s' if len(ranks) == 1 else ''} in {what}{at}"
        if what != _STORE:
            yield from _doings(elsewhere, sights, running, pronoun=False)


def _is_in(sight: Sight, what: str) -> bool:
    return isinstance(sight, m.RankSeen) and sight.waits_in == what


def _doings(ranks: list[int], sights: Sights, running: Set[int], *, pronoun: bool) -> Iterator[str]:
    """What each of these does; ranks that do the same together."""
    by_words: dict[tuple[str, str], list[int]] = defaultdict(list)
    for rank in ranks:
        if words := doing(sights[rank], rank in running):
            by_words[words].append(rank)
    for (one, many), whose in by_words.items():
        alone = len(whose) == 1
        who = ("it" if alone else "they") if pronoun and len(by_words) == 1 else named(whose, "-")
        yield f"{who} {one if alone else many}"


def doing(sight: Sight, in_cell: bool = True) -> tuple[str, str]:
    """What a rank does, as said of one and of several: ("is in data.py:31, sleeping", "are in …")."""
    if isinstance(sight, m.RankUnseen):
        return _silent(sight)
    if not in_cell:
        return "has ended the cell", "have ended the cell"
    if sight.doing == "idle":
        return "does not run the cell", "do not run the cell"
    if sight.waits_in in _SENDS:
        words = f" in {sight.waits_in} {_SENDS[sight.waits_in]} rank {sight.peer}{_at(sight)}"
        return f"waits{words}", f"wait{words}"
    if sight.waits_in:
        return f"waits in {sight.waits_in}{_at(sight)}", f"wait in {sight.waits_in}{_at(sight)}"
    where = f" at {sight.place}" if sight.place.startswith("line ") else f" in {sight.place}"
    words = (where if sight.place else "") + f", {sight.doing}"
    return f"is{words.removeprefix(',')}", f"are{words.removeprefix(',')}"


def _silent(sight: m.RankUnseen) -> tuple[str, str]:
    at = f" (line {sight.line})" if sight.line else ""
    if sight.state in ("T", "t"):
        return f"stopped (state {sight.state}){at}", f"stopped (state {sight.state}){at}"
    if sight.state == "":
        return "is gone", "are gone"
    words = f"been in C code for {sight.silent_s:.0f} s{at}"
    return f"has {words}", f"have {words}"


def _at(sight: m.RankSeen) -> str:
    place = f"line {sight.line}" if sight.line else sight.place
    return f" ({place})" if place else ""


def unheard(sights: Sights, broken: bool = False) -> str:
    """Who does not hear an interrupt, why, and what ends it, in one line; "" where everybody does.

    Those whose Python threads do not run: "rank 1 has been in C code for 10 s (line 3)". Once the group
    was `broken`, all that are still there.
    """
    mute = [rank for rank, sight in sights.items() if isinstance(sight, m.RankUnseen) and sight.state]
    others = [rank for rank, sight in sights.items() if broken and isinstance(sight, m.RankSeen)]
    if not (ranks := frozenset((*mute, *others))):
        return ""
    parts = list(_doings(mute, sights, ranks, pronoun=False))
    if parts:
        parts[-1] += ": an interrupt is heard only after that"
    parts += _doings(others, sights, ranks, pronoun=False)
    return "; ".join([*parts, f"the third interrupt kills {'it' if len(ranks) == 1 else 'them'}"])


def needs(sight: Sight, gone: Set[int], world_size: int) -> bool:
    """The rank waits for one of `gone`."""
    if not isinstance(sight, m.RankSeen) or sight.doing != "waiting":
        return False
    if sight.waits_in in _SENDS:
        return sight.peer in gone or sight.peer < 0
    return any(_pending(sight, s) and set(members_of(s, world_size)) & gone for s in sight.groups)


def may_need(sight: Sight) -> bool:
    """The rank waits, in nothing that names its members: a store, say, or it just goes in or comes out."""
    if not isinstance(sight, m.RankSeen) or sight.doing != "waiting" or sight.waits_in in _SENDS:
        return False
    return not any(_pending(sight, state) for state in sight.groups)
