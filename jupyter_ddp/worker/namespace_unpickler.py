"""The other end of `namespace_pickler`: another rank's variables, made this rank's.

Owns what is different here: the namespace, the place, the groups. What fails is noted by the name of its
variable and replaced by a placeholder.
"""

from __future__ import annotations

import ctypes
import io
import os
import pickle
import sys
import types
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import distributed_c10d as c10d

from jupyter_ddp.core import messages as m
from jupyter_ddp.worker.not_copied import NotCopied


class NamespaceUnpickler(pickle.Unpickler):
    """Reads what a NamespacePickler has written, in the same order."""

    def __init__(
        self,
        stream: bytes,
        raw_fd: int,
        shell: Any,
        here: m.WorkerPlace,
        there: m.WorkerPlace,
    ) -> None:
        super().__init__(io.BytesIO(stream))
        self._raw_fd, self._shell, self._here, self._there = raw_fd, shell, here, there
        self._name = ""
        self.lost: dict[str, m.NotCopied] = {}
        self._seen: dict[tuple[str, int], Any] = {}
        self._own: dict[str, Any] = {
            "namespace": shell.user_ns,
            "shell": shell,
            "default generator": torch.default_generator,
            "make": self._make,
            "finish": self._finish,
            "fill": _fill,
            "missing": self._missing,
        }

    def copy(self, name: str) -> Any:
        """The value of the next variable. Raises whatever is wrong with the stream."""
        self._name = name
        return self.load()

    def finish(self, rounds: int) -> None:
        """Do what had to wait until all was there."""
        for _ in range(rounds):
            for kind, name, *args in self.load():
                self._name = name
                try:
                    _LATER[kind](self, *args)
                except Exception as error:  # noqa: BLE001  # the user's own model may raise anything
                    self._note(f"{kind}: {error}")

    def _note(self, why: str) -> None:
        self.lost.setdefault(self._name, m.NotCopied(self._name, why[:120]))

    # -- what lies beside the stream ---------------------------------------------------------------

    def persistent_load(self, pid: Any) -> Any:
        """pickle's hook."""
        if isinstance(pid, str):
            return set() if pid == "nothing" else self._own[pid]
        match pid:
            case ("storage", _, at, n_bytes, device):
                return self._once(pid[:2], lambda: self._storage(at, n_bytes, device))
            case ("typed storage", untyped, dtype):
                storage = self.persistent_load(untyped)
                return torch.TypedStorage(wrap_storage=storage, dtype=dtype, _internal=True)
            case ("array", _, at, dtype, shape, in_rows):
                return self._once(pid[:2], lambda: self._array(at, dtype, shape, in_rows))
            case ("device", name):
                return torch.device(self._device(name))
            case ("stream", name):
                return getattr(sys, name)
            case ("group", name, members):
                return self._group(name, members)
            case _:
                raise pickle.UnpicklingError(f"no such thing beside the stream: {pid!r}")

    def _once(self, key: tuple[str, int], make: Any) -> Any:
        if key not in self._seen:
            self._seen[key] = make()
        return self._seen[key]

    def _device(self, name: str) -> str:
        return self._here.device if name == self._there.device else name

    def _storage(self, at: int, n_bytes: int, device: str) -> Any:
        if at < 0:
            return torch.UntypedStorage(n_bytes, device=device)
        storage = torch.UntypedStorage(n_bytes)
        self._read((ctypes.c_char * n_bytes).from_address(storage.data_ptr()), at)
        own = self._device(device)
        return storage if own == "cpu" else storage.to(device=torch.device(own))

    def _array(self, at: int, dtype: Any, shape: tuple[int, ...], in_rows: bool) -> Any:
        import numpy as np  # there is an array

        array = np.empty(shape, dtype, order="C" if in_rows else "F")
        self._read((array if in_rows else array.T).reshape(-1).view("uint8"), at)
        return array

    def _read(self, buffer: Any, at: int) -> None:
        view = memoryview(buffer).cast("B")
        while view.nbytes:
            n_bytes = os.preadv(self._raw_fd, [view], at)
            if not n_bytes:
                raise EOFError("the copy of the variables is shorter than it should be")
            view, at = view[n_bytes:], at + n_bytes

    def _group(self, name: str, members: tuple[int, ...]) -> Any:
        if members and self._here.rank not in members:
            return dist.GroupMember.NON_GROUP_MEMBER
        for group, known in c10d._world.pg_names.items():
            if str(known) == name:
                return group
        return self._missing("a process group that was destroyed")

    # -- objects -----------------------------------------------------------------------------------

    def _make(self, function: Any, args: tuple[Any, ...]) -> Any:
        try:
            return function(*args)
        except Exception as error:  # noqa: BLE001  # the user's own class may raise anything
            return self._missing(f"{type(error).__name__}: {error}")

    def _missing(self, why: str) -> NotCopied:
        self._note(why)
        return NotCopied(f"{self._name} was not copied from rank {self._there.rank}: {why}")

    def _finish(self, obj: Any, finished: tuple[Any, Any]) -> None:
        if isinstance(obj, NotCopied):
            return
        state, setter = finished
        try:
            if setter is not None:
                setter(obj, state)
            elif hasattr(obj, "__setstate__"):
                obj.__setstate__(state)
            else:
                _set_state(obj, state)
        except Exception as error:  # noqa: BLE001  # the user's own __setstate__ may raise anything
            self._note(f"{type(error).__name__}: {error}")

    def _gradient(self, tensor: Any, gradient: Any) -> None:
        if not isinstance(tensor, NotCopied):
            tensor.grad = gradient

    def _sampler(self, sampler: Any) -> None:
        if sampler.rank == self._there.rank and sampler.num_replicas == self._here.world_size:
            sampler.rank = self._here.rank

    def _ddp(self, model: Any, state: dict[str, Any], group: Any) -> None:
        model.__setstate__(state)
        if group == dist.GroupMember.NON_GROUP_MEMBER:
            self._note(f"its process group, which rank {self._here.rank} is no member of")
        elif group is not dist.group.WORLD and not isinstance(group, NotCopied):
            model._update_process_group(group)
        for hook, hook_state in getattr(model, "_comm_hooks", ()):
            dist._register_comm_hook(model.reducer, hook_state, hook)  # type: ignore[attr-defined]  # its stub leaves it out


_LATER: dict[str, Any] = {
    "gradient": NamespaceUnpickler._gradient,
    "sampler": NamespaceUnpickler._sampler,
    "ddp": NamespaceUnpickler._ddp,
}


def _fill(cell: types.CellType, contents: tuple[Any]) -> None:
    cell.cell_contents = contents[0]


def _set_state(obj: Any, state: Any) -> None:
    """As pickle does for an object that does not say how."""
    slots: dict[str, Any] = {}
    if isinstance(state, tuple) and len(state) == 2:
        state, slots = state
    if state:
        vars(obj).update(state)
    for name, value in (slots or {}).items():
        setattr(obj, name, value)
