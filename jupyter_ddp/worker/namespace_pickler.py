"""A rank's variables as one graph of bytes: what was shared stays shared, what refers to itself does so.

Owns what each kind of object becomes. Built on cloudpickle, which knows functions and classes that were
defined in cells. Memory of tensors and large arrays goes to a file beside the stream. What cannot be
pickled becomes a placeholder, and its name and the reason are noted: nothing that is tried here raises.
"""

from __future__ import annotations

import asyncio
import copyreg
import ctypes
import io
import os
import subprocess
import sys
import threading
import types
import weakref
from concurrent.futures import Executor
from typing import Any

import cloudpickle
import torch
import torch.distributed as dist
from torch.distributed import distributed_c10d as c10d

from jupyter_ddp.core.messages import NotCopied

_LARGE_BYTES = 64 * 1024
_MAX_REASON_CHARS = 120
_LOCKS = {type(threading.Lock()): threading.Lock, type(threading.RLock()): threading.RLock}
_RUNNING = (threading.Thread, subprocess.Popen, Executor, asyncio.AbstractEventLoop, asyncio.Future)


class RawMemory:
    """The memory of tensors and arrays, one block after another in a file that has no name."""

    ALIGNMENT = 64

    def __init__(self, fd: int) -> None:
        self.fd, self.end = fd, 0

    def append(self, data: Any) -> int:
        """Write a buffer; where it is."""
        at, view = self.end, memoryview(data).cast("B")
        while view.nbytes:
            written = os.pwrite(self.fd, view, self.end)
            self.end, view = self.end + written, view[written:]
        self.end += -self.end % self.ALIGNMENT
        return at


class NamespacePickler(cloudpickle.Pickler):  # type: ignore[misc]  # cloudpickle has no types
    """Pickles values of one namespace, one `copy` after another, into `stream`."""

    def __init__(self, namespace: dict[str, Any], shell: object, raw: RawMemory) -> None:
        self.stream = io.BytesIO()
        super().__init__(self.stream, protocol=5)
        self._namespace, self._shell, self._raw = namespace, shell, raw
        self._name = ""
        self.lost: dict[str, NotCopied] = {}
        """By name of the variable, what of it is not in the copy."""
        self.files: set[str] = set()
        """Where the source of the functions is, for tracebacks."""
        self._later: list[tuple[Any, ...]] = []
        self._storages: dict[int, tuple[Any, ...]] = {}
        self._arrays: dict[int, tuple[Any, ...]] = {}
        self._kept: list[Any] = []  # so that no two objects of this graph ever have the same address
        self._outside = {
            _Marker: lambda marker: marker.name,
            dict: self._outside_dict,
            torch.UntypedStorage: self._outside_storage,
            torch.TypedStorage: self._outside_typed_storage,
            torch.device: lambda device: ("device", str(device)),
            torch.Generator: lambda g: "default generator" if g is torch.default_generator else None,
        }

    # -- values ----------------------------------------------------------------------------------

    def copy(self, name: str, value: Any) -> None:
        """Append the value of one variable. Where this raises, the stream is spoilt."""
        self._name = name
        self.dump(value)

    def finish(self) -> int:
        """Append what is done when all is there; how many pieces that is."""
        rounds = 0
        while self._later:  # pickling one may bring up another
            later, self._later = self._later, []
            self.dump(later)
            rounds += 1
        return rounds

    def _note(self, why: str, shards: bool = False) -> None:
        self.lost.setdefault(self._name, NotCopied(self._name, why[:_MAX_REASON_CHARS], shards))

    # -- what is the other rank's own, or goes beside the stream -----------------------------------

    def persistent_id(self, obj: Any) -> Any:
        """pickle's hook: None for what goes into the stream."""
        outside = self._outside.get(type(obj))
        if outside is not None:
            return outside(obj)
        if type(obj).__module__ == "numpy" and type(obj).__name__ == "ndarray":
            return self._outside_array(obj)
        if isinstance(obj, dist.ProcessGroup):
            members = c10d._world.pg_group_ranks.get(obj, {})
            return ("group", str(obj.group_name), tuple(members))
        if obj is sys.stdout or obj is sys.stderr:
            return ("stream", "stdout" if obj is sys.stdout else "stderr")
        return "shell" if obj is self._shell else None

    def _outside_dict(self, found: dict[str, Any]) -> str | None:
        return "namespace" if found is self._namespace else None

    def _outside_storage(self, storage: Any) -> tuple[Any, ...]:
        key = storage._cdata
        if key not in self._storages:
            self._kept.append(storage)
            device, n_bytes = str(storage.device), storage.nbytes()
            at = -1
            if n_bytes and device != "meta":
                here = storage.cpu()
                at = self._raw.append((ctypes.c_char * n_bytes).from_address(here.data_ptr()))
            self._storages[key] = ("storage", len(self._storages), at, n_bytes, device)
        return self._storages[key]

    def _outside_typed_storage(self, storage: Any) -> tuple[Any, ...]:
        return ("typed storage", self._outside_storage(storage._untyped_storage), storage.dtype)

    def _outside_array(self, array: Any) -> tuple[Any, ...] | None:
        if array.nbytes < _LARGE_BYTES or array.dtype.hasobject:
            return None
        if id(array) not in self._arrays:
            in_rows = array.flags.c_contiguous
            if not (in_rows or array.flags.f_contiguous):
                return None  # it goes into the stream
            self._kept.append(array)
            at = self._raw.append((array if in_rows else array.T).reshape(-1).view("uint8"))
            number = len(self._arrays)
            self._arrays[id(array)] = ("array", number, at, array.dtype, array.shape, in_rows)
        return self._arrays[id(array)]

    # -- everything else ---------------------------------------------------------------------------

    def reducer_override(self, obj: Any) -> Any:
        """pickle's hook: how to make each object again, so that a failure there spoils nothing but itself."""
        try:
            if refused := _refusal(obj):
                self._note(*refused)
                return _AS_MISSING, (refused[0],)
            made = self._reduce(obj)
        except RecursionError:
            raise
        except Exception as error:  # noqa: BLE001  # the user's own __reduce__ may raise anything
            why = str(error).removeprefix("cannot pickle ").removesuffix(" object") or type(error).__name__
            self._note(why)
            return _AS_MISSING, (why,)
        if not isinstance(made, tuple):
            return made
        function, args, state, items, pairs, setter = (list(made) + [None] * 4)[:6]
        finished = None if state is None else (state, setter)
        return _MAKE, (function, args), finished, items, pairs, _FINISH

    def _reduce(self, obj: Any) -> Any:
        if isinstance(obj, torch.Tensor):
            return self._reduce_tensor(obj)
        if isinstance(obj, type | types.FunctionType):
            return super().reducer_override(obj)
        if isinstance(obj, types.CellType):
            return self._reduce_cell(obj)
        if type(obj) in _LOCKS:
            return _LOCKS[type(obj)], ()
        if type(obj) is weakref.ref:
            return (weakref.ref, (obj() if obj() is not None else _Marker("nothing"),))
        if _is("torch.nn.parallel.distributed", "DistributedDataParallel", obj):
            return self._reduce_ddp(obj)
        if _is("torch.utils.data.distributed", "DistributedSampler", obj):
            self._later.append(("sampler", self._name, obj))
        reduce = self.dispatch_table.get(type(obj))
        made = obj.__reduce_ex__(5) if reduce is None else reduce(obj)
        if _is("torch.utils.data.dataloader", "DataLoader", obj):  # its running workers stay where they are
            made = (*made[:2], {**made[2], "_iterator": None}, *made[3:])
        return made

    def _reduce_tensor(self, tensor: torch.Tensor) -> Any:
        if tensor.grad_fn is not None:
            self._note("without its autograd history")
        elif tensor.grad is not None:
            self._later.append(("gradient", self._name, tensor, tensor.grad))
        return tensor.__reduce_ex__(5)

    def _reduce_cell(self, cell: types.CellType) -> Any:
        """Made empty and filled afterwards: a function may be in its own cell."""
        try:
            contents = cell.cell_contents
        except ValueError:  # it is empty
            return types.CellType, ()
        return types.CellType, (), (contents,), None, None, _FILL

    def _dynamic_function_reduce(self, function: types.FunctionType) -> Any:
        """A function of a cell goes on to see the variables of its rank, and shares its cells with others."""
        make, args, state, items, pairs, setter = super()._dynamic_function_reduce(function)
        self.files.add(function.__code__.co_filename)
        code, variables, name, defaults, _ = args
        if function.__globals__ is self._namespace:
            variables = self._namespace
            state[1]["__globals__"] = {}
        state[1]["__closure__"] = None
        return make, (code, variables, name, defaults, function.__closure__), state, items, pairs, setter

    def _reduce_ddp(self, model: Any) -> Any:
        """Its reducer is made again, once the model within is whole."""
        state = {k: v for k, v in vars(model).items() if k not in ("process_group", "reducer", "logger")}
        if "broadcast_buffers" not in state and hasattr(model, "forward_sync_buffers"):
            state["broadcast_buffers"] = model.forward_sync_buffers
        self._later.append(("ddp", self._name, model, state, model.process_group))
        return copyreg.__newobj__, (type(model),)  # type: ignore[attr-defined]  # its stub leaves it out


class _Marker:
    """Stands for something of the other side's in the stream."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self, *_: Any) -> None:  # pickle asks for something that can be called
        raise AssertionError(self.name)


_MAKE, _FINISH, _FILL, _AS_MISSING = (_Marker(name) for name in ("make", "finish", "fill", "missing"))


def _is(module: str, kind: str, obj: Any) -> bool:
    """It is an instance of a class whose module may not have been imported."""
    found = getattr(sys.modules.get(module), kind, None)
    return found is not None and isinstance(obj, found)


def _is_sharded(tensor: Any) -> bool:
    return _is("torch.distributed.tensor", "DTensor", tensor)


def is_spread(obj: Any) -> bool:
    """Parts of it are on other ranks only: a tensor, model or optimizer of FSDP or tensor parallelism."""
    if isinstance(obj, torch.nn.Module):
        return _is("torch.distributed.fsdp", "FullyShardedDataParallel", obj) or any(
            _is_sharded(parameter) for parameter in obj.parameters()
        )
    if isinstance(obj, torch.optim.Optimizer):
        return any(_is_sharded(p) for group in obj.param_groups for p in group["params"])
    return _is_sharded(obj)


def _refusal(obj: Any) -> tuple[str, bool] | None:
    """Why an object is not copied at all, and whether it is because it is spread over the ranks."""
    if is_spread(obj):
        return "sharded over the ranks", True
    if _is("torch.distributed.device_mesh", "DeviceMesh", obj):
        return "a device mesh: all ranks make it together", False
    if isinstance(obj, _RUNNING):
        return f"a running {type(obj).__name__}", False
    if isinstance(obj, io.IOBase) and not isinstance(obj, io.BytesIO | io.StringIO):
        return "an open file", False
    return None
