"""Cells on some of the ranks: a process group of just those, and a stand-in for the whole world.

A collective on the whole world would wait there for ranks that do not run the cell: so it raises.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch.distributed as dist
from torch.distributed import distributed_c10d as c10d

from jupyter_ddp.core.topology import named
from jupyter_ddp.worker.carry_over import OURS

BROKEN = "was broken when a rank died; %ddp heal forms it again"


class RefusedCollective(RuntimeError):
    """A collective that could not come to an end was not begun."""


class PartOfTheWorld(dist.ProcessGroup):
    """Stands for the whole world in a cell on part of it: collectives raise instead of hanging."""

    def __init__(self, rank: int, size: int, why: str) -> None:
        super().__init__(rank, size)  # type: ignore[call-arg]  # torch's stub knows only the other overload
        self._why = why

    def _refuse(self, *args: Any, **kwargs: Any) -> Any:
        raise RefusedCollective(self._why)

    # Functional collectives look the group up by its name.
    group_name = property(_refuse)


for _name in (
    "allreduce",
    "allreduce_coalesced",
    "reduce",
    "broadcast",
    "allgather",
    "_allgather_base",
    "allgather_coalesced",
    "allgather_into_tensor_coalesced",
    "gather",
    "scatter",
    "reduce_scatter",
    "_reduce_scatter_base",
    "reduce_scatter_tensor_coalesced",
    "alltoall",
    "alltoall_base",
    "barrier",
    "monitored_barrier",
    "all_gather_single",
    "reduce_scatter_single",
    "all_to_all_single",
    "send",
    "recv",
    "recv_anysource",
    "_start_coalescing",
):
    setattr(PartOfTheWorld, _name, PartOfTheWorld._refuse)


class PartialWorlds:
    """Process groups of the rank sets that cells ran on, each formed once per generation."""

    def __init__(self) -> None:
        c10d._hash_ranks_to_str = _hashed_name
        self._groups: dict[tuple[int, ...], dist.ProcessGroup] = {}
        self._generation = 0

    def group(self, members: tuple[int, ...], generation: int) -> dist.ProcessGroup:
        """The group of just these ranks; only they take part in forming it."""
        if generation != self._generation:
            self._groups.clear()
            self._generation = generation
        if members not in self._groups:
            self._groups[members] = _form(members, generation)
        return self._groups[members]

    @contextmanager
    def guarded(self, members: tuple[int, ...], broken: bool) -> Iterator[None]:
        """Inside, a collective on the whole world raises at once on this rank."""
        world = dist.GroupMember.WORLD
        assert world is not None
        why = (
            f"this cell runs on {named(members, '-')} only, the others would never join: "
            "pass group=group, the process group of just these ranks"
        )
        if broken:
            why = f"there is no process group: it {BROKEN}"
        stand_in = PartOfTheWorld(world.rank(), world.size(), why)
        state = c10d._world
        tables: tuple[dict[Any, Any], ...] = (
            state.pg_map,
            state.pg_names,
            state.pg_group_ranks,
            state.pg_backend_config,
        )
        for table in tables:
            table[stand_in] = table[world]
        state.pg_names[stand_in] = f"{OURS}stand-in"  # type: ignore[assignment]  # a NewType of str
        c10d._update_default_pg(stand_in)
        new_groups = [(module, module.new_group) for module in (dist, c10d)]
        for module, real in new_groups:
            vars(module)["new_group"] = _checked(real, members)
        try:
            yield
        finally:
            for module, real in new_groups:
                vars(module)["new_group"] = real
            if dist.GroupMember.WORLD in (stand_in, None):  # None: the cell destroyed the group
                c10d._update_default_pg(world)
            for table in tables:
                table.pop(stand_in, None)


def _checked(new_group: Callable[..., Any], members: tuple[int, ...]) -> Callable[..., Any]:
    """`dist.new_group`, which all of the world has to call, unless its members form it alone."""

    @functools.wraps(new_group)
    def checked(ranks: Any = None, *args: Any, **kwargs: Any) -> Any:
        if not kwargs.get("use_local_synchronization") or not set(ranks or ()) <= set(members):
            raise RuntimeError(
                f"this cell runs on {named(members, '-')} only, and new_group needs every rank: call it in "
                " a cell on all ranks, or with use_local_synchronization=True and ranks of this cell"
            )
        return new_group(ranks, *args, **kwargs)

    return checked


_real_group_name = c10d._process_group_name


def _form(members: tuple[int, ...], generation: int) -> dist.ProcessGroup:
    """A group that only its members take part in forming, under a name that all of them know.

    torch's own name for it counts the groups that a rank is in, which differs from rank to rank here.
    """
    name = f"{OURS}{generation} " + ",".join(map(str, members))
    # A GroupName in newer torch, which is a str.
    c10d._process_group_name = lambda *_, **__: name  # type: ignore[assignment]  # see above
    try:
        made = dist.new_group(list(members), use_local_synchronization=True)
    finally:
        c10d._process_group_name = _real_group_name
    assert isinstance(made, dist.ProcessGroup)
    return made


def _hashed_name(ranks: Sequence[int]) -> str:
    """As torch names a group formed by its members alone, not counting ours, which not all ranks have."""
    others = sum(not str(name).startswith(OURS) for name in c10d._world.pg_names.values())
    text = "_".join([*map(str, ranks), str(others)])
    return hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()
