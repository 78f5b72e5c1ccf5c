"""Where a rank's variables refer to process groups.

A group is one object on its members and `NON_GROUP_MEMBER` on all others, so that a copy of another rank's
variables has the wrong one of the two wherever that rank is a member and this one is not, or the reverse.
What the source cannot know, the other members do: they tell their places, in the store that the group was
formed through.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import msgspec
import torch
import torch.distributed as dist
from msgspec import Struct
from torch.distributed import distributed_c10d as c10d

_MAX_DEPTH = 6
_MAX_OBJECTS = 10_000
_Key = str | int
_Path = tuple[_Key, ...]


class Place(Struct, frozen=True, array_like=True):
    """A variable, or a way from one through containers and attributes, and the name of the group there."""

    path: tuple[str | int, ...]
    group: str


def tell_places(namespace: dict[str, Any], rank: int, store: Any) -> None:
    """Let new ranks know where this one's variables refer to groups other than the world."""
    groups = {id(g): str(name) for g, name in c10d._world.pg_names.items() if g is not dist.group.WORLD}
    told = [Place(path, groups[id(value)]) for path, value in _find(namespace, groups)] if groups else []
    store.set(f"group places/{rank}", msgspec.json.encode(told))


def take_places(namespace: dict[str, Any], ranks: list[int], store: Any) -> None:
    """Put this rank's groups where those ranks have them, and where the source was no member."""
    groups = {str(name): group for group, name in c10d._world.pg_names.items()}
    for rank in ranks:
        for place in msgspec.json.decode(store.get(f"group places/{rank}"), type=list[Place]):
            if place.group in groups:
                _put(namespace, place.path, _instead_of_none(groups[place.group]))


def renew(namespace: dict[str, Any], successors: Mapping[int, Any]) -> None:
    """Replace old groups (by id) also in tuples and frozensets, which only who holds them can change."""
    for path, _ in list(_find(namespace, successors)):
        _put(namespace, path, lambda now: successors.get(id(now), now))


def _find(namespace: dict[str, Any], wanted: Mapping[int, Any]) -> Iterator[tuple[_Path, Any]]:
    """Where an object is of those that are wanted (by id), in the variables and not far below them."""
    seen: set[int] = set()
    level: list[tuple[_Path, Any]] = [((), namespace)]
    for _ in range(_MAX_DEPTH):
        below: list[tuple[_Path, Any]] = []
        for path, holder in level:
            if id(holder) in seen or len(seen) > _MAX_OBJECTS:
                continue
            seen.add(id(holder))
            for key, value in _items(holder):
                if id(value) in wanted:
                    yield (*path, key), value
                else:
                    below.append(((*path, key), value))
        level = below


def _items(holder: Any) -> Iterator[tuple[_Key, Any]]:
    """What is in it, by index, key or name of an attribute."""
    if isinstance(holder, list | tuple | set | frozenset):
        yield from enumerate(holder)
        return
    if isinstance(holder, types.ModuleType | type | types.FunctionType | torch.Tensor):
        return
    try:
        held = holder if isinstance(holder, dict) else getattr(holder, "__dict__", None)
    except Exception:  # noqa: BLE001  # the user's own class may raise anything
        return
    if isinstance(held, dict):
        yield from ((key, value) for key, value in list(held.items()) if type(key) in (str, int))


def _instead_of_none(group: Any) -> Callable[[Any], Any]:
    def choose(now: Any) -> Any:
        outside = type(now) is int and now == dist.GroupMember.NON_GROUP_MEMBER
        return group if outside else now

    return choose


def _put(holder: Any, path: _Path, choose: Callable[[Any], Any]) -> Any:
    """The holder, or what takes its place, with another object at that path."""
    if not path:
        return choose(holder)
    key, rest = path[0], path[1:]
    if isinstance(holder, set | frozenset):
        return _put_in_set(holder, rest, choose)
    inside = dict(_items(holder))
    if key not in inside or (new := _put(inside[key], rest, choose)) is inside[key]:
        return holder
    if isinstance(holder, tuple):
        items = [*holder[: int(key)], new, *holder[int(key) + 1 :]]
        return type(holder)(*items) if hasattr(holder, "_fields") else tuple(items)
    if isinstance(holder, list | dict):
        holder[key] = new  # type: ignore[index]  # a list has numbers, as was found
    else:
        vars(holder)[str(key)] = new
    return holder


def _put_in_set(holder: Any, rest: _Path, choose: Callable[[Any], Any]) -> Any:
    """Of a set all elements: in which order they are differs from rank to rank."""
    before = list(holder)
    items = [_put(item, rest, choose) for item in before]
    if all(new is old for new, old in zip(items, before, strict=True)):
        return holder
    if isinstance(holder, frozenset):
        return type(holder)(items)
    holder.clear()
    holder.update(items)
    return holder
