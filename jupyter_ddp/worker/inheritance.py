"""How new ranks come to a living rank's variables, while the group is formed that they are new in.

Owns the way that the bytes take: a file in memory, which the source writes and the others open through
/proc. Nothing of it passes the node agent or the notebook kernel.
"""

from __future__ import annotations

import builtins
import contextlib
import linecache
import os
import re
import sys
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import msgspec
import torch
from msgspec import Struct

from jupyter_ddp.core import messages as m
from jupyter_ddp.core.healing import COPY_TIMEOUT_S
from jupyter_ddp.worker.group_places import take_places, tell_places
from jupyter_ddp.worker.interrupts import InterruptGate
from jupyter_ddp.worker.random_states import RandomStates
from jupyter_ddp.worker.surroundings import torchrun_environ

_IPYTHONS_OWN = re.compile(r"_+\d*|_i+\d*|_[ido]h|__\w+__|_exit_code|In|Out|get_ipython|exit|quit|open")
_MAX_RETRIES = 20


class _Estate(Struct, frozen=True):
    """What lies in the file: raw memory first, then the pickled stream, then this."""

    place: m.WorkerPlace
    names: list[str]
    stream: tuple[int, int]
    rounds: int
    lost: list[m.NotCopied]
    cwd: str
    sys_path: list[str]
    environ: dict[str, str]
    dtype: str
    sources: dict[str, tuple[int, str]]
    """Cells that functions are from: (prompt number, source) by the name that they were compiled under."""


class _Where(Struct, frozen=True):
    """What is told through the store: whose descriptor, and where the estate lies; or why there is none."""

    pid: int = 0
    fd: int = -1
    at: int = 0
    n_bytes: int = 0
    error: str = ""


class Inheritance:
    """One rank's part in it, as the source, as a new rank or as one of the others."""

    def __init__(
        self, shell: Any, gate: InterruptGate, random: RandomStates, surroundings: m.Surroundings
    ) -> None:
        self._shell, self._gate, self._random, self._surroundings = shell, gate, random, surroundings

    def settle(self, order: m.FormGroup, store: Any) -> tuple[int, list[m.NotCopied]] | None:
        """Give, take or stand by; what there is to tell of it. Raises RuntimeError with the reason."""
        rank = order.place.rank
        drawn = self._random.capture()  # what is drawn on the way is none of the user's
        try:
            with self._interruptible():
                if rank == order.source:
                    self._give(order, store)
                elif order.source >= 0:
                    if rank in order.replaced:
                        return self._take(order, store)
                    tell_places(self._shell.user_ns, rank, store)
        finally:
            self._random.restore(drawn)
        spread = [] if rank in order.replaced else self._spread()
        return (0, spread) if spread else None

    @contextlib.contextmanager
    def _interruptible(self) -> Iterator[None]:
        self._gate.open()
        try:
            try:
                yield
            finally:
                self._gate.close()
        except KeyboardInterrupt:
            self._gate.close()
            raise RuntimeError("interrupted while variables were copied") from None

    def _spread(self) -> list[m.NotCopied]:
        """Variables of this rank whose other part died."""
        if "torch.distributed.tensor" not in sys.modules and "torch.distributed.fsdp" not in sys.modules:
            return []
        from jupyter_ddp.worker.namespace_pickler import is_spread

        return [
            m.NotCopied(name, "sharded over the ranks", True)
            for name, value in self._shell.user_ns.items()
            if not _IPYTHONS_OWN.fullmatch(name) and is_spread(value)
        ]

    # -- the source --------------------------------------------------------------------------------

    def _give(self, order: m.FormGroup, store: Any) -> None:
        fd = os.memfd_create("jupyter_ddp variables")
        try:
            try:
                where = self._write(fd, order.place)
            except BaseException as error:  # an interrupt too: the new ranks wait for a word of this one
                store.set("variables", msgspec.json.encode(_Where(error=f"{type(error).__name__}: {error}")))
                raise
            store.set("variables", msgspec.json.encode(where))
            store.wait([f"variables/{rank}" for rank in order.replaced], timedelta(seconds=COPY_TIMEOUT_S))
        finally:
            os.close(fd)

    def _write(self, fd: int, place: m.WorkerPlace) -> _Where:
        from jupyter_ddp.worker.namespace_pickler import NamespacePickler, RawMemory

        excluded: dict[str, m.NotCopied] = {}
        while True:
            raw = RawMemory(fd)
            pickler = NamespacePickler(self._shell.user_ns, self._shell, raw)
            names = [name for name in self._names(place) if name not in excluded]
            name = ""
            try:
                for name in names:
                    pickler.copy(name, self._shell.user_ns[name])
                rounds = pickler.finish()
                break
            except Exception as error:  # deep recursion, no memory: all but this one
                if not name or len(excluded) >= _MAX_RETRIES:
                    raise
                excluded[name] = m.NotCopied(name, f"{type(error).__name__}: {error}"[:120])
        stream = pickler.stream.getbuffer()
        estate = _Estate(
            place=place,
            names=names,
            stream=(raw.append(stream), stream.nbytes),
            rounds=rounds,
            lost=[*excluded.values(), *pickler.lost.values(), *self._suspicious(names, place, pickler.lost)],
            cwd=os.getcwd(),  # noqa: PTH109  # a plain string goes into a message
            sys_path=[path for path in sys.path if isinstance(path, str)],
            environ={
                k: v for k, v in os.environ.items() if k not in torchrun_environ(self._surroundings, place)
            },
            dtype=str(torch.get_default_dtype()).removeprefix("torch."),
            sources={
                file: (self._shell.compile._filename_map[file], "".join(linecache.getlines(file)))
                for file in pickler.files & self._shell.compile._filename_map.keys()
            },
        )
        data = msgspec.msgpack.encode(estate)
        return _Where(os.getpid(), fd, raw.append(data), len(data))

    def _names(self, place: m.WorkerPlace) -> list[str]:
        """The user's variables: not IPython's own, and not what every rank has anyway."""
        every = introduced(place)
        hidden = self._shell.user_ns_hidden
        return [
            name
            for name, value in self._shell.user_ns.items()
            if not _IPYTHONS_OWN.fullmatch(name)
            and not (name in hidden and hidden[name] is value)
            and not (name in every and type(every[name]) is type(value) and every[name] == value)
            and not (name == "group" and _is_of_a_cell(value))
        ]

    def _suspicious(self, names: list[str], place: m.WorkerPlace, lost: dict[str, Any]) -> list[m.NotCopied]:
        """What seems to be a number of the rank's under a name that we do not know."""
        return [
            m.NotCopied(name, f"it has rank {place.rank}'s value")
            for name in names
            if "rank" in name.lower()
            and name not in lost
            and type(value := self._shell.user_ns[name]) is int
            and value in (place.rank, place.local_rank)
        ]

    # -- a new rank --------------------------------------------------------------------------------

    def _take(self, order: m.FormGroup, store: Any) -> tuple[int, list[m.NotCopied]]:
        try:
            store.wait(["variables"], timedelta(seconds=COPY_TIMEOUT_S))
            where = msgspec.json.decode(store.get("variables"), type=_Where)
            if where.error:
                raise RuntimeError(f"rank {order.source}'s variables could not be collected: {where.error}")
            fd = os.open(f"/proc/{where.pid}/fd/{where.fd}", os.O_RDONLY | os.O_CLOEXEC)
            try:
                told = self._read(fd, where, order.place)
            finally:
                os.close(fd)
            others = set(range(order.place.world_size)) - {order.source, *order.replaced}
            take_places(self._shell.user_ns, sorted(others), store)
            return told
        finally:
            store.set(f"variables/{order.place.rank}", b"taken")

    def _read(self, fd: int, where: _Where, place: m.WorkerPlace) -> tuple[int, list[m.NotCopied]]:
        from jupyter_ddp.worker.namespace_unpickler import NamespaceUnpickler

        estate = msgspec.msgpack.decode(_pread(fd, where.n_bytes, where.at), type=_Estate)
        self._move_in(estate)
        at, n_bytes = estate.stream
        unpickler = NamespaceUnpickler(_pread(fd, n_bytes, at), fd, self._shell, place, estate.place)
        lost = {note.name: note for note in estate.lost}
        arrived: list[str] = []
        try:
            for name in estate.names:  # each at once: what comes later may call a function of a cell
                self._shell.user_ns[name] = unpickler.copy(name)
                arrived.append(name)
            unpickler.finish(estate.rounds)
        except Exception as error:  # noqa: BLE001  # what comes after it in the stream cannot be found any more
            why = f"{type(error).__name__}: {error}"[:120]
            lost |= {name: m.NotCopied(name, why) for name in estate.names if name not in arrived}
        self._shell.user_ns["__builtins__"] = builtins
        return len(arrived), [*(unpickler.lost | lost).values()]

    def _move_in(self, estate: _Estate) -> None:
        """Directory, path, environment and the like, as a rank has them that ran the same cells."""
        os.environ.update(estate.environ)
        sys.path[:] = estate.sys_path
        with contextlib.suppress(OSError):  # it was removed
            os.chdir(estate.cwd)
        torch.set_default_dtype(getattr(torch, estate.dtype))
        for name, (count, source) in estate.sources.items():
            self._shell.compile._filename_map[name] = count
            linecache.cache[name] = (len(source), None, source.splitlines(keepends=True), name)


def introduced(place: m.WorkerPlace) -> dict[str, Any]:
    """The names that every rank has."""
    return {
        "rank": place.rank,
        "local_rank": place.local_rank,
        "world_size": place.world_size,
        "device": torch.device(place.device),
        "torch": torch,
        "dist": torch.distributed,
    }


def _is_of_a_cell(group: Any) -> bool:
    """The group of a cell on some of the ranks, which is formed for one generation only."""
    from jupyter_ddp.worker.carry_over import OURS

    return group is None or str(getattr(group, "group_name", "")).startswith(OURS)


def _pread(fd: int, n_bytes: int, at: int) -> bytes:
    pieces = []
    while n_bytes and (piece := os.pread(fd, n_bytes, at)):
        pieces.append(piece)
        n_bytes, at = n_bytes - len(piece), at + len(piece)
    return b"".join(pieces)
