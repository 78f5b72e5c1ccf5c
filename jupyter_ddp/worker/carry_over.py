"""What referred to a group of the last generation goes on with the same group of the next one.

Owns nothing: it notes the groups before they are destroyed, forms each again under its old name, and
puts the new one where the old one was: in variables, attributes and containers, in DDP and FSDP2
models. Groups are looked up by name in DeviceMesh, DTensor and functional collectives, which is why
names are kept.
"""

from __future__ import annotations

import contextlib
import gc
import json
import sys
from datetime import timedelta
from types import CellType, FrameType, ModuleType
from typing import Any

import torch.distributed as dist
from msgspec import Struct
from torch.distributed import distributed_c10d as c10d

OURS = "jupyter_ddp "
"""How the names of groups begin that are formed for one generation only."""


class OldGroup(Struct, frozen=True):
    """A group that this rank was a member of."""

    group: Any
    name: str
    ranks: tuple[int, ...]
    """Its members' global ranks, in the order of their ranks within the group."""
    backend: str
    tag: str
    description: str


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
            group=group,
            name=str(name),
            ranks=tuple(sorted(state.pg_group_ranks[group], key=state.pg_group_ranks[group].__getitem__)),
            backend=str(dist.get_backend(group)),
            tag=str(state.pg_to_tag.get(group, "")),
            description=str(group.group_desc),
        )
        for group, name in state.pg_names.items()
        if group is not world and not str(name).startswith(OURS)
    ]
    return OldGroups(world, tuple(sorted(others, key=lambda g: g.name)), state.group_count)


def carry_over(old: OldGroups, rank: int, world_size: int, store: Any, timeout: timedelta) -> None:
    """After the world was formed again: form its other groups again, and replace the old ones.

    A group is formed again if every rank of it still exists and knows it: one that only some ranks had
    come to form when the last generation ended is left behind.
    """
    known = _exchange({g.name: list(g.ranks) for g in old.others}, rank, world_size, store)
    if old.world is None:
        return
    successors: dict[int, Any] = {id(old.world): dist.GroupMember.WORLD}
    for group in old.others:
        if all(r < world_size and known[r].get(group.name) == list(group.ranks) for r in group.ranks):
            successors[id(group.group)] = _form(group, rank, store, timeout)
    c10d._world.group_count = max(c10d._world.group_count, old.count)
    olds = [old.world, *(g.group for g in old.others if id(g.group) in successors)]
    _move_models(successors)
    _replace(olds, successors)
    _reset_fsdp()


def _exchange(mine: dict[str, list[int]], rank: int, world_size: int, store: Any) -> list[dict[str, Any]]:
    store.set(f"groups/{rank}", json.dumps(mine))
    return [json.loads(store.get(f"groups/{other}")) for other in range(world_size)]


def _form(group: OldGroup, rank: int, store: Any, timeout: timedelta) -> Any:
    made = c10d._new_process_group_helper(
        len(group.ranks),
        group.ranks.index(rank),
        list(group.ranks),
        dist.Backend(group.backend),
        dist.PrefixStore(f"group {group.name}", store),  # type: ignore[attr-defined]  # its stub leaves it out
        group_name=group.name,  # type: ignore[arg-type]  # a GroupName is a str; older torch has no such name
        timeout=timeout,
        pg_tag=group.tag.removeprefix("user:") or None,
        group_desc=group.description,
    )
    new = made[0] if isinstance(made, tuple) else made
    c10d._world.pg_group_ranks[new] = {r: at for at, r in enumerate(group.ranks)}
    return new


def _move_models(successors: dict[int, Any]) -> None:
    """DDP keeps its group in C++ too."""
    ddp = sys.modules.get("torch.nn.parallel.distributed")
    if ddp is None:
        return
    for thing in gc.get_objects():
        if issubclass(type(thing), ddp.DistributedDataParallel):
            new = successors.get(id(thing.process_group))
            if new is not None and hasattr(thing, "_update_process_group"):
                thing._update_process_group(new)


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
        elif isinstance(holder, CellType):
            holder.cell_contents = successors.get(id(holder.cell_contents), holder.cell_contents)
        else:
            _replace_attributes(holder, successors)


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
            with contextlib.suppress(RuntimeError, AssertionError):  # not a root module
                thing.reset_iter_state()
