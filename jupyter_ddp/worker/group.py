"""The rank's process group: the only place that forms, breaks and re-forms it.

Each generation has its own store client and key prefix. `break_` comes from the control thread while
the main thread waits inside a collective; everything else is the main thread's.
"""

from __future__ import annotations

import contextlib
import os
import re
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import TCPStore  # type: ignore[attr-defined]  # its stub leaves it out
from torch.distributed import distributed_c10d as c10d

from jupyter_ddp.core import messages as m
from jupyter_ddp.worker.carry_over import OldGroups, carry_over, note_groups
from jupyter_ddp.worker.connections import Connections, Deafened, knock, shut_down

COLLECTIVE_TIMEOUT = timedelta(days=7)
"""A user at a breakpoint is no fault: waits are bounded by the pool, not by torch."""
STORE_TIMEOUT = timedelta(seconds=60)

_RUN_ID = re.compile("[0-9a-f]{8}")
_PEER_GONE = re.compile(r"gloo/transport/|Connection closed by peer \[|NCCL communicator was aborted")
# What has to be set before the first NCCL group: a communicator that fails must not end the process.
_NCCL_ENVIRON = {
    "TORCH_NCCL_ASYNC_ERROR_HANDLING": "0",
    "TORCH_NCCL_ENABLE_MONITORING": "0",
    "TORCH_NCCL_DUMP_ON_TIMEOUT": "0",
    "TORCH_NCCL_PROPAGATE_ERROR": "0",
    "TORCH_NCCL_RETHROW_CUDA_ERRORS": "0",
}

_real_destroy = dist.destroy_process_group
_real_init = dist.init_process_group
_real_helper = c10d._new_process_group_helper


class Group:
    """The pool's group on this rank, and what is needed to break it."""

    def __init__(self, surroundings: m.Surroundings) -> None:
        self._address = (surroundings.master_addr, surroundings.master_port)
        self._prefix = surroundings.run_id
        self._lock = threading.Lock()
        self._given_up = 0  # the last generation that was to be broken
        self.generation = 0
        self.backend: m.Backend = "gloo"
        self.world_size = 0
        self.rank = 0
        self.broken = False
        """The group was broken under whoever waited in it: it will be formed again."""
        self._gloos = Connections()
        self._deafened = Deafened()
        self._spared = Connections()
        self._joining = 0  # calls under way that wait for all members of a group to come
        self._before: Connections | None = None  # what there was before the group that is being made
        self._left_behind: OldGroups | None = None
        """The groups of the last generation that stood, while no later one does."""
        self.store: Any = None
        """Where the ranks of this generation meet."""
        for name, value in _NCCL_ENVIRON.items():
            os.environ.setdefault(name, value)
        if self._address[0] == "127.0.0.1":
            # gloo otherwise listens on whatever the host's name resolves to.
            os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        c10d._new_process_group_helper = self._noting_sockets

    # -- forming ---------------------------------------------------------------------------------

    def form(self, order: m.FormGroup) -> float:
        """Join the group of this generation; seconds it took. Raises what torch raises."""
        started = time.monotonic()
        with self._lock:  # an order to break the last generation that comes after this is too late
            if order.generation <= self._given_up:
                raise RuntimeError("the pool gave this group up before this rank came to form it")
            self.generation = order.generation
            was_broken, self.broken = self.broken, False
        if self._left_behind is None:
            self._left_behind = note_groups()
        self._leave(was_broken)
        self.backend = order.backend
        self.rank, self.world_size = order.place.rank, order.place.world_size
        # A generation has its own prefix: on used keys a group would meet those of its predecessor.
        store = self._connect(str(order.generation))
        device = torch.device(order.place.device)
        if device.type == "cuda":
            torch.cuda.set_device(device)
        options: dict[str, Any] = {"device_id": device} if order.backend == "nccl" else {}
        # Groups are named by counting, and a forming that failed has counted: new ranks have not.
        c10d._world.group_count = 0
        with self._breakable():
            _real_init(
                order.backend,
                store=store,
                rank=self.rank,
                world_size=self.world_size,
                timeout=COLLECTIVE_TIMEOUT,
                **options,
            )
            if order.generation > 1:  # all ranks take part, those that are new too
                carry_over(
                    self._left_behind, self.rank, self.world_size, store, COLLECTIVE_TIMEOUT, order.replaced
                )
        self._left_behind, self.store = None, store
        return time.monotonic() - started

    def forget_earlier(self) -> None:
        """Once a group stands, all ranks have left those before it: what they met by goes from the store.

        One rank does it for all. Where torch does not list a store's keys they stay, a few for each group.
        """
        client: Any = getattr(self.store, "underlying_store", None)
        if self.rank != 0 or not hasattr(client, "list_keys"):
            return
        with contextlib.suppress(RuntimeError):  # the group is broken already, and with it this client's link
            for key in client.list_keys():
                if self._is_earlier(key):
                    client.delete_key(key)

    def _is_earlier(self, key: str) -> bool:
        run_id, _, rest = key.partition("/")
        number = rest.removeprefix("check/").partition("/")[0]
        if not (_RUN_ID.fullmatch(run_id) and number.isdigit()):
            return False  # a user's own
        return run_id != self._prefix or int(number) < self.generation

    def _connect(self, prefix: str) -> Any:
        """A client of the pool's store, of its own, under this prefix."""
        host, port = self._address
        client = TCPStore(host, port, is_master=False, timeout=STORE_TIMEOUT, wait_for_workers=False)
        return c10d.PrefixStore(f"{self._prefix}/{prefix}", client)

    @contextlib.contextmanager
    def watching_store(self, prefix: str) -> Iterator[Any]:
        """A client for one who never waits in it, and looks at `broken` instead: breaking leaves it whole,
        since torch writes a stack of its own to stderr where a client ends in the midst of a call."""
        before = Connections.now()
        store = self._connect(prefix)
        self._spared = Connections.now() - before
        try:
            yield store
        finally:
            self._spared = Connections()

    def _leave(self, broken: bool) -> None:
        """End the group, if there is one."""
        if dist.is_initialized():
            if broken and self.backend == "nccl":
                c10d._abort_process_group()
            else:
                _real_destroy()
        self._gloos = Connections()
        self._deafened.close()

    @contextlib.contextmanager
    def _breakable(self) -> Iterator[None]:
        """Around what waits for others to come: who gives the group up frees it at whatever moment."""
        self._joining += 1
        try:
            if self.broken:
                raise RuntimeError("the pool gave this group up while this rank came to form it")
            yield
        finally:
            self._joining -= 1

    def _noting_sockets(self, *args: Any, **kwargs: Any) -> Any:
        """torch's own way to make any group; gloo opens a listening socket and connections for each."""
        before = self._before = Connections.now()
        # Where the pool has lost its group, a user may form one: that is not ours to break.
        ours = self._joining or dist.is_initialized()
        try:
            with self._breakable() if ours else contextlib.nullcontext():
                return _real_helper(*args, **kwargs)
        finally:
            self._before = None
            self._gloos |= Connections.now() - before

    # -- breaking --------------------------------------------------------------------------------

    def break_(self, generation: int) -> None:
        """Free whatever waits in this generation's groups or its store. Variables are untouched.

        For gloo by ending its connections: those that it had when the group was formed, and those accepted on
        its listening ports since. Each rank ends its own ends, for itself: it is told at the same time as all
        others, and who is stopped, or holds the GIL, does it later.
        """
        with self._lock:
            self._given_up = max(self._given_up, generation)
            if generation == self.generation:
                self._break()

    @property
    def stuck(self) -> bool:
        """A group is still being formed that was to be broken: what it waited for then came after that."""
        return self.broken and self._joining > 0

    def break_again(self) -> None:
        """Free it, if that is still so."""
        with self._lock:
            if self.stuck:
                self._break()

    def _break(self) -> None:
        self.broken = True
        if self.backend == "nccl":
            for group in list(c10d._world.pg_names):
                with contextlib.suppress(RuntimeError, AttributeError):  # ended already, or our stand-in
                    group.abort()
        before = self._before
        new = Connections() if before is None else Connections.now() - before
        shut_down(self._gloos, self._deafened, new, self._address, self._spared)
        knock(new.ports, self.world_size)

    def blames_peer(self, error: BaseException) -> bool:
        """The exception says that the group is gone, not that this rank did something wrong."""
        return (self.broken and isinstance(error, RuntimeError)) or self.says_it_is_gone(error)

    @staticmethod
    def says_it_is_gone(error: BaseException) -> bool:
        """The same, by the exception's own words."""
        if not isinstance(error, RuntimeError):
            return False
        return isinstance(error, dist.DistError) or bool(_PEER_GONE.search(str(error)))
