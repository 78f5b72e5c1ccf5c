"""Scripts that form and destroy the group themselves, on ranks that have one.

Owns what `dist.init_process_group` and `dist.destroy_process_group` do inside a cell: the first
adopts the pool's group, the second hides it until the cell ends or the group is asked for again. The
group itself stays, and with it every model and mesh of earlier cells that refers to it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch.distributed as dist
from torch.distributed import distributed_c10d as c10d

from jupyter_ddp.worker.group import Group
from jupyter_ddp.worker.partial_world import PartOfTheWorld

_real_destroy = dist.destroy_process_group
_real_init = dist.init_process_group


class Adoption:
    """The two functions, in place of torch's."""

    def __init__(self, group: Group, notice: Callable[[str], None]) -> None:
        self._group, self._notice = group, notice
        self._hidden: dist.ProcessGroup | None = None
        self._told: set[str] = set()

    def install(self) -> None:
        """Replace torch's functions where user code looks for them."""

        @functools.wraps(_real_init)
        def init(*args: Any, **kwargs: Any) -> None:
            self._init(*args, **kwargs)

        @functools.wraps(_real_destroy)
        def destroy(group: Any = None) -> None:
            self._destroy(group)

        for module in (dist, c10d):
            vars(module).update(init_process_group=init, destroy_process_group=destroy)

    def _init(self, backend: Any = None, *args: Any, **kwargs: Any) -> None:
        if self._hidden is None and not dist.is_initialized():
            _real_init(backend, *args, **kwargs)  # a pool without its group: the user may form one
            return
        given = dict(zip(("init_method", "timeout", "world_size", "rank"), args, strict=False)) | kwargs
        self._check(given.get("world_size", -1), given.get("rank", -1))
        if self._hidden is not None:
            c10d._update_default_pg(self._hidden)
            self._hidden = None
        ours, asked = self._group.backend, str(backend or "").lower()
        if asked and ours not in asked:
            self._say_once(f"init_process_group: the pool's group is {ours}, not {asked}; the cell uses it")
        else:
            self._say_once(f"init_process_group: the cell uses the pool's group ({ours})")

    def _check(self, world_size: int, rank: int) -> None:
        size = self._group.world_size
        if world_size not in (-1, self._group.world_size):
            raise ValueError(
                f"init_process_group(world_size={world_size}): the pool has {size} "
                f"rank{'s' if size != 1 else ''}; leave world_size out, or %ddp resize {world_size}"
            )
        if rank not in (-1, self._group.rank):
            raise ValueError(
                f"init_process_group(rank={rank}): this is rank {self._group.rank} of the pool's {size}; "
                "leave rank out"
            )

    def _destroy(self, group: Any = None) -> None:
        if group is not None and group is not dist.GroupMember.WORLD:
            _real_destroy(group)
            return
        if not dist.is_initialized():
            raise ValueError("destroy_process_group: there is no group; it was destroyed in this cell")
        self._hidden = dist.GroupMember.WORLD
        c10d._update_default_pg(None)

    def restore(self) -> None:
        """At a cell's end: the pool's group is the default one again."""
        if self._hidden is not None:
            hidden, self._hidden = self._hidden, None
            if not isinstance(hidden, PartOfTheWorld):  # whose time ends with its cell
                c10d._update_default_pg(hidden)

    def _say_once(self, text: str) -> None:
        if text not in self._told:
            self._told.add(text)
            self._notice(text)
