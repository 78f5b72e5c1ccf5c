"""`%%ddp --check`: every collective of a cell is compared among its group's ranks before it begins.

Each rank puts what it is about to do into the pool's store and reads what the others put there. Where
that differs, all of them raise, and no operation has begun: the group is as it was. torch's own way,
TORCH_DISTRIBUTED_DEBUG=DETAIL, costs several times as much, has to be chosen before a group is formed,
and waits where no interrupt reaches it.

What is compared is what Python code asks a process group for, whichever way the user came to the
function, and what DDP's reducer asks for. Not seen: send and recv, functional collectives (DTensor,
compiled code), and what else calls a group from C++.
"""

from __future__ import annotations

import functools
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, NamedTuple, NoReturn

import torch
import torch.distributed as dist
from torch.distributed import distributed_c10d as c10d

from jupyter_ddp.core.collective_call import (
    CollectiveCall,
    entered,
    exact_text,
    mismatch,
    pack,
    tensor_text,
    tensors_text,
    unpack,
)
from jupyter_ddp.core.topology import named
from jupyter_ddp.worker.group import Group

NOTE_S = 10.0
"""A collective that some rank has not entered for so long is explained."""
LIMIT_S = 600.0
"""And after so long it is an error."""
_LOOK_S = 0.2
"""How often a rank that waits looks whether those who are missing may still come."""
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.00002, 0.005
"""Between two looks at what others have written."""
_DDP = "torch.nn.parallel.distributed"


class CollectiveMismatch(RuntimeError):
    """The ranks of a group did not call the same collective; none was begun."""


class CheckedCollectives:
    """The comparison, installed for one cell at a time.

    A rank has two keys for each group, used in turn: whoever overwrites one has seen that all have come
    to the call after it, and so have read it. What is written says which call it is of.
    """

    def __init__(
        self, group: Group, note: Callable[[str, bool], None], is_cell_file: Callable[[str], bool]
    ) -> None:
        self._group, self._note, self._is_cell_file = group, note, is_cell_file
        self._store: Any = None
        self._written: set[str] = set()
        """Keys that are known to exist."""
        self._cell = 0
        self._members: tuple[int, ...] = ()
        self._counts: dict[str, int] = {}
        self._models: list[tuple[weakref.ref[Any], _ReducersGroup]] = []
        self._failed = False
        self.ended_well = False
        """The cell came to its end on this rank: set before `during` is left."""

    # -- one cell --------------------------------------------------------------------------------

    @contextmanager
    def during(self, cell: int, members: Sequence[int]) -> Iterator[None]:
        """Inside, collectives are compared. `members`: the ranks that run the cell."""
        if self._group.broken or not dist.is_initialized():
            yield  # there is no group to call
            return
        self._written.clear()
        self._cell, self._members = cell, tuple(members)
        self._failed = self.ended_well = False
        self._counts.clear()
        with self._group.watching_store(f"check/{self._group.generation}") as store, self._installed():
            self._store = store
            try:
                yield
            finally:
                self._leave()
                self._store = None

    def _leave(self) -> None:
        """Tell who still waits for this rank; a rank that failed is dealt with by the pool."""
        for known, _ in self._models:
            if (model := known()) is not None:
                model.reducer._update_process_group(model.process_group)
        self._models.clear()
        if self._failed:
            # Models that were in the midst of a pass come to rest when the group is formed again.
            self._group.broken = True
        elif self.ended_well and not self._group.broken:
            with suppress(RuntimeError):  # the store is gone: so are those who wait
                self._store.set(f"end/{self._group.rank}", str(self._cell))

    @contextmanager
    def _installed(self) -> Iterator[None]:
        """torch's own methods are replaced: whoever imported a function of torch.distributed, and when,
        comes by here."""
        kind = dist.ProcessGroup
        real = {name: vars(kind)[name] for name in _READERS if name in vars(kind)}
        for name, method in real.items():
            setattr(kind, name, self._checked(name, method))
        ddp = getattr(sys.modules.get(_DDP), "DistributedDataParallel", None)
        forward = None if ddp is None else ddp.forward
        if ddp is not None:
            ddp.forward = self._watching_reducer(forward)
        try:
            yield
        finally:
            for name, method in real.items():
                setattr(kind, name, method)
            if ddp is not None:
                ddp.forward = forward

    def _checked(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        read = _READERS[name]

        @functools.wraps(real)
        def checked(group: Any, *args: Any, **kwargs: Any) -> Any:
            self._check(group, name, read(*args, **kwargs))
            return real(group, *args, **kwargs)

        return checked

    # -- DDP's reducer, which calls its group from C++ -------------------------------------------

    def _watching_reducer(self, forward: Any) -> Any:
        @functools.wraps(forward)
        def watched(model: Any, *args: Any, **kwargs: Any) -> Any:
            if torch.compiler.is_compiling():
                return forward(model, *args, **kwargs)
            known = any(one() is model for one, _ in self._models)
            if not known and getattr(model, "reducer", None) is not None:
                group = _ReducersGroup(model.process_group)  # to be kept: C++ does not keep it whole
                self._models.append((weakref.ref(model), group))
                model.reducer._update_process_group(group)
            return forward(model, *args, **kwargs)

        return watched

    # -- one collective --------------------------------------------------------------------------

    def _check(self, group: Any, method: str, what: _Arguments) -> None:
        places = c10d._world.pg_group_ranks.get(group)
        if places is None:
            return  # none of torch.distributed's
        ranks = sorted(places, key=places.__getitem__)
        frame = _Caller(method, self._is_cell_file)
        call = CollectiveCall(
            method=method,
            operation=frame.operation or _NAMES.get(method, method),
            line=frame.line,
            shown=tensors_text(what.shown),
            agrees=exact_text(what.agrees or what.shown),
            reduce_op=what.reduce_op,
            root=ranks[what.root] if 0 <= what.root < len(ranks) else -1,
            sends=what.sends or _even(what.rows_in, len(ranks)),
            receives=what.receives or _even(what.rows_out, len(ranks)),
        )
        if absent := [rank for rank in ranks if rank not in self._members]:
            self._fail(
                f"{named(absent, '-')} will not enter {entered(call)}: this cell runs on "
                f"{named(self._members, '-')} only, and the group has {named(ranks, '-')}"
            )
        name = str(group.group_name)
        count = self._counts[name] = self._counts.get(name, 0) + 1
        place = (self._cell, count)
        keys = [f"{name}/{count % 2}/{rank}" for rank in ranks]
        self._store.set(f"{name}/{count % 2}/{self._group.rank}", pack((place, call)))
        found = self._await(keys, place, ranks, call, frame.goes_on)
        if found and (words := mismatch(found)):
            self._fail(words)

    def _fail(self, words: str) -> NoReturn:
        self._failed = True
        raise CollectiveMismatch(words)

    def _await(
        self, keys: list[str], place: _Place, ranks: list[int], call: CollectiveCall, goes_on: bool
    ) -> dict[int, CollectiveCall]:
        """What all ranks call, once they have come to it.

        Empty: it begins without being compared, since the caller of an asynchronous operation may have
        to go on before another rank can come.
        """
        began = looked = time.monotonic()
        pause_s, note = _FIRST_PAUSE_S, ""
        while not all((found := self._read(keys, place, ranks)).values()):
            now = time.monotonic()
            if now - looked >= _LOOK_S:
                looked = now
                missing = [rank for rank, there in found.items() if not there]
                self._look_for(missing, call)
                words = _absence(missing, call)
                if now - began >= NOTE_S and not note:
                    note = f"{words} after {NOTE_S:.0f} s"
                    if goes_on:
                        self._note(f"{note}; it began without being compared", True)
                        return {}
                    self._note(note, True)
                if now - began >= LIMIT_S:
                    self._fail(f"{words} in {LIMIT_S:.0f} s")
            time.sleep(pause_s)  # in Python, so that an interrupt comes through
            pause_s = min(pause_s * 1.5, _LONGEST_PAUSE_S)
        if note:
            self._note(note, False)
        if any(there.place != place for there in found.values() if there):
            return {}  # one that went on without us
        return {rank: there.call for rank, there in found.items() if there}

    def _read(self, keys: list[str], place: _Place, ranks: list[int]) -> dict[int, _Entry | None]:
        """Each rank's entry, None for one that has not come so far."""
        if self._group.broken:
            raise RuntimeError("the process group was broken while this rank waited in it")
        for key in keys:
            if key not in self._written:
                if not self._store.check([key]):
                    continue
                self._written.add(key)
        known = [key for key in keys if key in self._written]
        entries = dict(zip(known, map(_unpacked, self._store.multi_get(known)), strict=True)) if known else {}
        found: dict[int, _Entry | None] = {}
        for rank, key in zip(ranks, keys, strict=True):
            entry = entries.get(key)
            found[rank] = entry if entry is not None and entry.place >= place else None
        return found

    def _look_for(self, missing: list[int], call: CollectiveCall) -> None:
        """A rank whose cell has ended will not come."""
        ends = [f"end/{rank}" for rank in missing]
        gone = [
            rank
            for rank, key in zip(missing, ends, strict=True)
            if self._store.check([key]) and int(self._store.get(key)) == self._cell
        ]
        if gone:
            ended = f"{named(gone, '-')}: the cell ended there without it"
            self._fail(f"rank {self._group.rank}: {entered(call)}; {ended}")


_Place = tuple[int, int]
"""(cell, how many-th of the group's calls in it)."""


class _Entry(NamedTuple):
    place: _Place
    call: CollectiveCall


def _unpacked(data: bytes) -> _Entry:
    return _Entry(*unpack(data))


def _absence(missing: list[int], call: CollectiveCall) -> str:
    return f"{named(missing, '-')} {'has' if len(missing) == 1 else 'have'} not entered {entered(call)}"


class _ReducersGroup(dist.ProcessGroup):
    """What a DDP model's reducer has for its group meanwhile: each call comes by Python."""

    def __init__(self, real: Any) -> None:
        super().__init__(real.rank(), real.size())  # type: ignore[call-arg]  # see PartOfTheWorld
        self.real = real
        kinds = dist.Backend.backend_type_map
        for device in real._device_types:  # what is not passed on below goes there directly
            backend = real._get_backend(device)
            kind = kinds.get(backend.name(), dist.ProcessGroup.BackendType.CUSTOM)
            self._register_backend(device, kind, backend)
            self._set_default_backend(kind)


def _passed_on(name: str) -> Callable[..., Any]:
    def call(self: _ReducersGroup, *args: Any, **kwargs: Any) -> Any:
        return getattr(self.real, name)(*args, **kwargs)

    return call


for _name in ("allreduce", "allreduce_coalesced", "broadcast", "allgather", "barrier"):
    setattr(_ReducersGroup, _name, _passed_on(_name))


# -- who called ----------------------------------------------------------------------------------

_C10D_FILES = (c10d.__file__, sys.modules["torch.distributed.c10d_logger"].__file__)


class _Caller:
    """The function of torch.distributed that the user called, and the cell's line."""

    def __init__(self, method: str, is_cell_file: Callable[[str], bool]) -> None:
        self.operation, self.line = "", 0
        self.goes_on = False
        """It was called with async_op=True."""
        frame: FrameType | None = sys._getframe(3)
        while frame is not None and frame.f_code.co_filename in _C10D_FILES:
            if frame.f_code.co_name != "wrapper":
                if not frame.f_code.co_name.startswith("_"):
                    self.operation = frame.f_code.co_name
                self.goes_on |= frame.f_locals.get("async_op") is True
            frame = frame.f_back
        if frame is not None and isinstance(frame.f_locals.get("self"), _ReducersGroup):
            self.operation = f"DDP's {_NAMES.get(method, method)}"
        self.line = _cell_line(frame, is_cell_file)
        if not self.line and threading.current_thread() is not threading.main_thread():
            main = threading.main_thread().ident  # a backward pass on a GPU has a thread of its own
            self.line = _cell_line(sys._current_frames().get(main or 0), is_cell_file)


def _cell_line(frame: FrameType | None, is_cell_file: Callable[[str], bool]) -> int:
    while frame is not None:
        if is_cell_file(frame.f_code.co_filename):
            return frame.f_lineno or 0
        frame = frame.f_back
    return 0


# -- what a group is asked for -------------------------------------------------------------------


class _Arguments:
    """Of a method's arguments, what its ranks compare."""

    def __init__(
        self, tensors: Any = (), options: Any = None, *, agrees: Any = (), op: Any = None, root: int = -1
    ) -> None:
        self.shown = [_text(t) for t in _listed(tensors)]
        self.agrees = [_text(t) for t in _listed(agrees)]
        op = getattr(options, "reduceOp", op)
        self.reduce_op = "" if op is None else str(getattr(getattr(op, "op", op), "name", op))
        self.root = int(getattr(options, "rootRank", root))
        self.sends: tuple[int, ...] = ()
        self.receives: tuple[int, ...] = ()
        self.rows_in = self.rows_out = -1
        """Of an exchange in equal parts."""


def _text(tensor: Any) -> str:
    return tensor_text(str(tensor.dtype), tensor.shape)


def _listed(tensors: Any) -> list[Any]:
    """A tensor, or lists of them, as one list."""
    if isinstance(tensors, torch.Tensor):
        return [tensors]
    return [one for part in tensors for one in _listed(part)]


def _reduction(tensors: Any, opts: Any = None, timeout: Any = None, *, op: Any = None) -> _Arguments:
    return _Arguments(tensors, opts, op=op or opts or "SUM")


def _rooted(tensors: Any, opts: Any = None, timeout: Any = None, *, root: int = -1) -> _Arguments:
    return _Arguments(tensors, opts, root=opts if isinstance(opts, int) else root)


def _rooted_reduction(tensors: Any, opts: Any = None, op: Any = None, *_: Any, root: int = -1) -> _Arguments:
    return _Arguments(tensors, opts, op=op or "SUM", root=opts if isinstance(opts, int) else root)


def _gathering_all(outputs: Any, inputs: Any, opts: Any = None, *_: Any, **__: Any) -> _Arguments:
    return _Arguments(inputs, agrees=outputs)


def _gathering_into(outputs: Any, inputs: Any, opts: Any = None, *_: Any, **__: Any) -> _Arguments:
    return _Arguments(inputs)


def _gathering(outputs: Any, inputs: Any, opts: Any = None, *_: Any, **__: Any) -> _Arguments:
    return _Arguments(inputs, opts, root=opts if isinstance(opts, int) else -1)


def _scattering(outputs: Any, inputs: Any, opts: Any = None, *_: Any, **__: Any) -> _Arguments:
    return _Arguments(outputs, opts, root=opts if isinstance(opts, int) else -1)


def _reduce_scattering(outputs: Any, inputs: Any, opts: Any = None, *_: Any, op: Any = None) -> _Arguments:
    return _Arguments(outputs, opts, agrees=inputs, op=op or opts or "SUM")


def _reduce_scattering_from(outputs: Any, inputs: Any, opts: Any = None, *_: Any, **__: Any) -> _Arguments:
    return _Arguments(inputs, opts)


def _exchanging(
    output: Any, input: Any, receives: Sequence[int] = (), sends: Sequence[int] = (), *_: Any, **__: Any
) -> _Arguments:
    what = _Arguments(input)
    # Only the numbers of rows may differ from rank to rank, as long as they fit.
    what.agrees = [f"rows of {tensor_text(str(input.dtype), input.shape[1:])}"]
    what.sends, what.receives = tuple(sends), tuple(receives)
    what.rows_in, what.rows_out = int(input.shape[0]), int(output.shape[0])
    return what


def _even(rows: int, ranks: int) -> tuple[int, ...]:
    return (rows // ranks,) * ranks if rows >= 0 else ()


def _exchanging_lists(outputs: Any, inputs: Any, opts: Any = None, *_: Any, **__: Any) -> _Arguments:
    what = _Arguments(inputs)
    what.agrees = sorted({str(t.dtype) for t in (*inputs, *outputs)})
    what.sends = tuple(t.numel() for t in inputs)
    what.receives = tuple(t.numel() for t in outputs)
    return what


def _meeting(*_: Any, **__: Any) -> _Arguments:
    return _Arguments()


_READERS: dict[str, Callable[..., _Arguments]] = {
    "allreduce": _reduction,
    "allreduce_coalesced": _reduction,
    "broadcast": _rooted,
    "reduce": _rooted_reduction,
    "allgather": _gathering_all,
    "allgather_coalesced": _gathering_all,
    # Newer torch has two names for some methods.
    "_allgather_base": _gathering_into,
    "all_gather_single": _gathering_into,
    "allgather_into_tensor_coalesced": _gathering_into,
    "all_gather_single_coalesced": _gathering_into,
    "gather": _gathering,
    "scatter": _scattering,
    "reduce_scatter": _reduce_scattering,
    "_reduce_scatter_base": _reduce_scattering_from,
    "reduce_scatter_single": _reduce_scattering_from,
    "reduce_scatter_tensor_coalesced": _reduce_scattering_from,
    "reduce_scatter_single_coalesced": _reduce_scattering_from,
    "alltoall_base": _exchanging,
    "all_to_all_single": _exchanging,
    "alltoall": _exchanging_lists,
    "barrier": _meeting,
    "monitored_barrier": _meeting,
}

_NAMES = {"allreduce": "all_reduce", "allgather": "all_gather", "allreduce_coalesced": "all_reduce"}
"""What users call a method that was not called by a function of torch.distributed."""
