"""`%ddp where` and `%ddp dump`: what each rank does, as text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from jupyter_ddp.core import messages as m
from jupyter_ddp.core.hang import doing, explain
from jupyter_ddp.core.steps import Sight, call_words, members_of
from jupyter_ddp.core.topology import named
from jupyter_ddp.view.ansi import strip

_HEADINGS = ("rank", "state", "for", "where", "last collective")


def where_text(sights: Mapping[int, Sight], running: Sequence[int], world_size: int) -> str:
    """A line for each rank, and below who waits for whom."""
    if not sights:
        return "no rank has answered: %ddp status shows what there is"
    rows = [_HEADINGS, *(_row(rank, sight, world_size) for rank, sight in sights.items())]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEADINGS))]
    lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
    if (found := explain(sights, set(running), world_size)) is not None:
        lines.append(found.text)
    return strip("\n".join(lines))


def dump_text(sights: Mapping[int, Sight], running: Sequence[int], world_size: int) -> str:
    """The same, and for each rank its groups' last collectives and the stacks of its threads."""
    parts = [where_text(sights, running, world_size)]
    for rank, sight in sights.items():
        if isinstance(sight, m.RankSeen):
            parts.append("\n".join([f"[rank {rank}]", *_groups(sight, world_size), sight.stacks.rstrip()]))
        else:
            parts.append(f"[rank {rank}] {doing(sight)[0]}: it could not say more")
    return strip("\n\n".join(parts))


def _row(rank: int, sight: Sight, world_size: int) -> tuple[str, ...]:
    if isinstance(sight, m.RankUnseen):
        return str(rank), doing(sight)[0], "", "", ""
    place = f"{sight.place} in {sight.function}" if sight.function else sight.place
    if sight.line and sight.place != f"line {sight.line}":
        place += f" (line {sight.line})"
    state = f"waits in {sight.waits_in}" if sight.waits_in else sight.doing
    for_s = f"{sight.for_s:.0f} s" if sight.doing != "idle" else ""
    return str(rank), state, for_s, place, _last(sight, world_size)


def _last(sight: m.RankSeen, world_size: int) -> str:
    """The one that it waits in, else the last of the whole world, else of any group."""
    calls = [(state, call) for state in sight.groups for call in state.calls[-1:]]
    if not calls:
        return ""
    state, call = min(calls, key=lambda one: (one[1].finished, bool(one[0].members)))
    return _in_group(state, call, world_size)


def _in_group(state: m.GroupState, call: m.Call, world_size: int) -> str:
    whose = f" of {named(members_of(state, world_size), '-')}" if state.members else ""
    return f"{call_words(call)}{whose}" + ("" if call.finished else ", unfinished")


def _groups(sight: m.RankSeen, world_size: int) -> list[str]:
    lines = []
    for state in sight.groups:
        lines.append(f"group {state.name} ({named(members_of(state, world_size), '-')}):")
        lines += [f"  {call_words(call)}" + ("" if call.finished else ", unfinished") for call in state.calls]
        if not state.calls:
            lines.append("  no collective" if not state.entered else "  none of late")
    return lines
