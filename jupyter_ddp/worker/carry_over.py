"""What referred to a group of the last generation goes on with the same group of the next one.

Owns nothing: it notes the groups before they are destroyed, forms each again under its old name, and
puts the new one where the old one was: in variables, attributes and containers, in DDP and FSDP2
models. Groups are looked up by name in DeviceMesh, DTensor and functional collectives, which is why
names are kept.
"""

from __future__ import annotations

import contextlib
import gc
import sys
from collections.abc import Collection
from datetime import timedelta
from types import CellType, FrameType, ModuleType
from typing import Any

import msgspec
import torch.distributed as dist
from msgspec import Struct
from torch.distributed import distributed_c10d as c10d

from jupyter_ddp.worker.group_places import renew

OURS = "jupyter_ddp "
"""How the names of groups begin that are formed for one generation only."""


class Note(Struct, frozen=True):
    """What it takes to form a group again."""

    name: str
    ranks: tuple[int, ...]
    """Its members' global ranks, in the order of their ranks within the group."""
    backend: str
    tag: str
    description: str


class _Known(Struct, frozen=True):
    """What one rank tells the others: its groups, and how many torch has named."""

    groups: list[Note] = []
    count: int = 0


class OldGroup(Struct, frozen=True):
    """A group that this rank was a member of."""

    group: Any
    note: Note


class OldGroups(Struct, frozen=True):
    """All groups of a generation, as they were before they were destroyed."""

    world: Any
    others: tuple[OldGroup, ...] = ()
    count: int = 0


def note_groups() -> OldGroups:
    """What there is to carry over: nothing, on a rank that had no group yet."""
    world, state = dist.GroupMember.WORLD, c10d._world
    if world is None:
        return OldGroups(None)
    others = [
        OldGroup(
            group,
            Note(
                name=str(name),
                ranks=tuple(sorted(state.pg_group_ranks[group], key=state.pg_group_ranks[group].__getitem__)),
                backend=str(dist.get_backend(group)),
                tag=str(state.pg_to_tag.get(group, "")),
                description=str(group.group_desc),
            ),
        )
        for group, name in state.pg_names.items()
        if group is not world and not str(name).startswith(OURS)
    ]
    return OldGroups(world, tuple(others), state.group_count)


def carry_over(
    old: OldGroups,
    rank: int,
    world_size: int,
    store: Any,
    timeout: timedelta,
    replaced: Collection[int] = (),
) -> None:
    """After the world was formed again: form its other groups again, and replace the old ones.

    A group is formed again if every rank of it still exists and knows it: one that only some ranks had
    come to form when the last generation ended is left behind. `replaced` ranks are new and know nothing:
    they take the places that the others remember.
    """
    known = _exchange(_Known([g.note for g in old.others], old.count), rank, world_size, store)
    successors: dict[int, Any] = {id(old.world): dist.GroupMember.WORLD}
    shaken = {id(old.world)} if replaced else set()  # those whose other members have changed
    mine = {g.note.name: g.group for g in old.others}
    for note in _agreed(known, replaced):
        if rank in note.ranks:
            group = mine.get(note.name)
            successors[id(group)] = _form(note, rank, store, timeout)
            if not set(replaced).isdisjoint(note.ranks):
                shaken.add(id(group))
    # New groups are named by counting: all ranks have to count on from the same number.
    c10d._world.group_count = max(c10d._world.group_count, *(k.count for k in known))
    if old.world is None:
        return
    olds = [old.world, *(g.group for g in old.others if id(g.group) in successors)]
    _move_models(successors, shaken)
    _replace(olds, successors)
    _reset_fsdp()


def _exchange(mine: _Known, rank: int, world_size: int, store: Any) -> list[_Known]:
    store.set(f"groups/{rank}", msgspec.json.encode(mine))
    return [msgspec.json.decode(store.get(f"groups/{other}"), type=_Known) for other in range(world_size)]


def _agreed(known: list[_Known], replaced: Collection[int]) -> list[Note]:
    """The groups that all of their members know alike, in an order that is the same on every rank."""
    by_rank = [{note.name: note for note in k.groups} for k in known]
    notes = {note.name: note for notes in by_rank for note in notes.values()}
    return [
        notes[name]
        for name in sorted(notes)
        if all(
            r < len(known) and (r in replaced or by_rank[r].get(name) == notes[name])
            for r in notes[name].ranks
        )
    ]


def _form(group: Note, rank: int, store: Any, timeout: timedelta) -> Any:
    # torch writes "user:" before what it is given, and makes "ptd:NAME" of nothing. The note has to stay as
    # it is: a rank that was stopped half-way compares its own with those of ranks that came through.
    tag = group.tag.removeprefix("user:") if group.tag.startswith("user:") else None
    made = c10d._new_process_group_helper(
        len(group.ranks),
        group.ranks.index(rank),
        list(group.ranks),
        dist.Backend(group.backend),
        dist.PrefixStore(f"group {group.name}", store),  # type: ignore[attr-defined]  # its stub leaves it out
        group_name=group.name,  # type: ignore[arg-type]  # a GroupName is a str; older torch has no such name
        timeout=timeout,
        pg_tag=tag,
        group_desc=group.description,
    )
    new = made[0] if isinstance(made, tuple) else made
    c10d._world.pg_group_ranks[new] = {r: at for at, r in enumerate(group.ranks)}
    return new


def _move_models(successors: dict[int, Any], shaken: Collection[int]) -> None:
    """DDP keeps its group in C++ too, and what its ranks have agreed upon: the order of the gradients.

    With a new rank in the group there is to be agreed anew: otherwise gradients of one parameter would be
    added to those of another, and only where the sizes differ would anything fail.
    """
    ddp = sys.modules.get("torch.nn.parallel.distributed")
    if ddp is None:
        return
    for thing in gc.get_objects():
        if issubclass(type(thing), ddp.DistributedDataParallel):
            old = id(thing.process_group)
            new = successors.get(old)
            if new is not None and hasattr(thing, "_update_process_group"):
                if old in shaken:
                    _begin_anew(thing)
                thing._update_process_group(new)


def _begin_anew(model: Any) -> None:
    """Give a DDP model a new reducer, with the hooks that the user has registered."""
    model.process_group = dist.group.WORLD  # its own state is only given away while it is in this one
    model.__setstate__(dict(model.__getstate__()))
    for hook, state in getattr(model, "_comm_hooks", ()):
        dist._register_comm_hook(model.reducer, state, hook)  # type: ignore[attr-defined]  # its stub leaves it out


def _replace(olds: list[Any], successors: dict[int, Any]) -> None:
    """Put each successor where its old group is referred to from."""
    # The user's namespace is older than the fork, and so among the frozen objects that gc leaves out.
    namespace = vars(sys.modules["__main__"])
    for holder in [namespace, namespace.get("_oh"), *gc.get_referrers(*olds)]:
        if holder is olds or isinstance(holder, FrameType | ModuleType | OldGroup | OldGroups):
            continue
        if isinstance(holder, dict):
            for key, value in list(holder.items()):
                if id(value) in successors:
                    holder[key] = successors[id(value)]
        elif isinstance(holder, list):
            for at, value in enumerate(holder):
                if id(value) in successors:
                    holder[at] = successors[id(value)]
        elif isinstance(holder, set):
            found = [value for value in holder if id(value) in successors]
            holder.difference_update(found)
            holder.update(successors[id(value)] for value in found)
        elif isinstance(holder, CellType):
            holder.cell_contents = successors.get(id(holder.cell_contents), holder.cell_contents)
        else:
            _replace_attributes(holder, successors)
    renew(namespace, successors)


def _replace_attributes(holder: Any, successors: dict[int, Any]) -> None:
    for name, value in list(getattr(holder, "__dict__", {}).items()):
        if id(value) in successors:
            with contextlib.suppress(AttributeError, TypeError):  # a frozen object keeps the old one
                object.__setattr__(holder, name, successors[id(value)])


def _reset_fsdp() -> None:
    """A forward that was broken off leaves FSDP2's hooks in the middle of an iteration."""
    fsdp = sys.modules.get("torch.distributed.fsdp")
    kind = getattr(fsdp, "FSDPModule", None)
    if kind is None:
        return
    for thing in gc.get_objects():
        if issubclass(type(thing), kind) and hasattr(thing, "reset_iter_state"):
            with contextlib.suppress(RuntimeError, AssertionError, AttributeError):  # no root, or never used
                thing.reset_iter_state()
