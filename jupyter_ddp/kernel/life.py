"""The pool's life: how it starts, forms its group, is resized, healed and restarted, and ends.

Owns the node agent, the rendezvous and the exchange of one pool, and the torch import that they need.
What runs on the ranks is no business of it.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

from msgspec import Struct
from msgspec.structs import replace

from jupyter_ddp.core import bounds
from jupyter_ddp.core import events as ev
from jupyter_ddp.core import messages as m
from jupyter_ddp.core import pool as p
from jupyter_ddp.core.errors import PoolError, UsageError
from jupyter_ddp.core.healing import COPY_TIMEOUT_S, HEAL_TIMEOUT_S, NOTHING_TO_HEAL
from jupyter_ddp.core.topology import Plan, default_world_size, make_plan, visible_gpus
from jupyter_ddp.kernel.exchange import Exchange
from jupyter_ddp.kernel.healing import outcome
from jupyter_ddp.kernel.interrupts import InterruptsTo
from jupyter_ddp.kernel.limits import check_world_size, shared_memory_remark, usable_cores
from jupyter_ddp.kernel.rendezvous import Rendezvous
from jupyter_ddp.kernel.torch_import import TorchImport
from jupyter_ddp.kernel.waiter import NO_ANSWER, WAIT_STEP_S, Waiter, wait_for
from jupyter_ddp.launch.local import LocalNode

AskedBackend = m.Backend | Literal["auto"]
OnProgress = Callable[[float], None]
"""Is told, a few times a second, for how many seconds a pool has been coming up."""
_NODE_TIMEOUT_S = 30.0
_CLOSE_TIMEOUT_S = 15.0
_DEFAULT_SEED = 67280421310721
"""torch's own default seed (c10/core/GeneratorImpl.h): rank 0 draws what a fresh process draws."""


class Wishes(Struct, frozen=True):
    """What a pool is to be. None: what the last one was asked to be, at first what fits the machine."""

    n: int | None = None
    """Its number of ranks."""
    backend: AskedBackend | None = None
    devices: Sequence[int] | None = None
    """Which of the visible GPUs to use; empty for all."""

    def before(self, earlier: Wishes) -> Wishes:
        """These, and where there are none the earlier ones."""
        return Wishes(
            earlier.n if self.n is None else self.n,
            earlier.backend if self.backend is None else self.backend,
            earlier.devices if self.devices is None else self.devices,
        )


class Life:
    """Of one cluster's pools, one after the other.

    `wishes`: what the first is to be. `preload`: modules to import once, before ranks are forked. `on_effect`
    and `on_message` are told of all that comes from the exchange, on its thread; `on_end`, when all processes
    have been let go of.
    """

    def __init__(
        self,
        wishes: Wishes,
        preload: Sequence[str],
        *,
        on_effect: Callable[[ev.Effect], None],
        on_message: Callable[[m.NodeToKernel], None],
        on_end: Callable[[], None],
    ) -> None:
        self._wishes, self._preload = wishes, tuple(preload)
        self._on_effect, self._on_message, self._on_end = on_effect, on_message, on_end
        self.pool = p.Pool()
        self.exchange: Exchange | None = None
        self.torch = TorchImport()
        self.rendezvous: Rendezvous | None = None
        self.announced: deque[str] = deque(maxlen=100)
        """What there is to say outside any cell."""
        self.forkserver_lost = False
        self._node_ready = Waiter()
        self._gpus: list[m.Gpu] = []
        self._changing = threading.Lock()
        self._starting: Waiter | None = None
        self._stopping: Waiter | None = None
        self._run_id = ""
        self._usage_interval_s = 0.0
        self._healed: list[m.RankHealed] = []

    def submit(self, event: ev.Event) -> Exchange:
        """Have the pool handle an event. Raises PoolError when the cluster was closed meanwhile."""
        exchange = self._open_exchange()
        exchange.submit(event)
        return exchange

    def order(self, event: ev.Event, meanwhile: Callable[[], None]) -> Exchange:
        """The same, for a thread that waits for the answer next, as `Exchange.order` does it."""
        exchange = self._open_exchange()
        try:
            exchange.order(event, meanwhile)
        except BaseException:  # an interrupt too: nobody else would read the links
            exchange.rest()
            raise
        return exchange

    def _open_exchange(self) -> Exchange:
        exchange = self.exchange
        if exchange is None:
            raise PoolError("the cluster was closed; %ddp start starts a pool")
        return exchange

    def interrupt(self) -> None:
        """Also for a signal handler."""
        if self.exchange is not None:
            self.exchange.post(ev.InterruptRequested())

    def watch_usage(self, interval_s: float) -> None:
        """Have the nodes tell what the ranks use, every so many seconds; 0 ends it."""
        self._usage_interval_s = interval_s
        if self.exchange is not None and not self.exchange.lost:
            self.exchange.tell_nodes(m.WatchUsage(interval_s))

    # -- starting --------------------------------------------------------------------------------

    def warm_up(self) -> None:
        """Begin to import torch, here and in a process that ranks will be forked from; return at once.

        Raises PoolError where this system cannot run ranks.
        """
        if self.exchange is not None:
            return
        node = LocalNode(self._preload)
        self.forkserver_lost = False
        self._node_ready = Waiter()
        self.exchange = Exchange(self.pool, [node], self._on_effect, self._on_message)
        self.watch_usage(self._usage_interval_s)
        self.torch.begin()

    @property
    def devices(self) -> Sequence[int] | None:
        """The visible GPUs that were asked for, if any."""
        return self._wishes.devices

    def start(self, wishes: Wishes, on_progress: OnProgress | None) -> str:
        """Start a pool and form its group; say in one line what was chosen.

        Raises UsageError for numbers that make no sense, PoolError if the pool does not come up.
        """
        with self._changing_alone():
            if self.pool.phase is not p.Phase.STOPPED:
                raise PoolError(f"the pool is {self.pool.phase.value} already; %ddp restart starts anew")
            return self._start(wishes, on_progress)

    def _start(self, wishes: Wishes, on_progress: OnProgress | None) -> str:
        began = time.monotonic()
        plan = self._plan(wishes)
        if on_progress is not None and self.torch.busy:  # for seconds, before there are any ranks
            on_progress(time.monotonic() - began)
        if remark := shared_memory_remark(len(plan.places)):
            self.announced.append(remark)
        self._run_id = secrets.token_hex(4)  # a new pool never meets the store's keys of an earlier one
        self._come_up(ev.StartRequested(plan, self._surroundings(plan)), on_progress, began=began)
        self._wishes = replace(wishes.before(self._wishes), n=len(plan.places))
        return _choice(plan)

    @contextlib.contextmanager
    def _changing_alone(self) -> Iterator[None]:
        if not self._changing.acquire(blocking=False):
            raise PoolError("another thread starts, stops or resizes the pool; wait for it")
        try:
            yield
        finally:
            self._changing.release()

    def _reach_node(self) -> None:
        """Have a node agent that answers. Raises PoolError with the reason where there is none."""
        spoilt = self.exchange is not None and (self.exchange.lost or self.forkserver_lost)
        if spoilt and self.pool.phase is p.Phase.STOPPED:
            self.end()
        self.warm_up()
        assert self.exchange is not None
        deadline = time.monotonic() + _NODE_TIMEOUT_S
        while not self._node_ready.wait(WAIT_STEP_S):
            if self.exchange.lost or time.monotonic() > deadline:
                reason = (
                    self.exchange.lost_reason or f"no answer from the node agent in {_NODE_TIMEOUT_S:.0f} s"
                )
                self.end()
                raise PoolError(reason)
        if error := self._node_ready.error:
            self.end()
            raise PoolError(error)

    def _plan(self, wishes: Wishes) -> Plan:
        """What a pool would be. Raises UsageError for what makes no sense."""
        _working_directory()
        self._reach_node()
        wishes = wishes.before(self._wishes)
        backend, devices = wishes.backend, wishes.devices or None
        gpus = visible_gpus(self._gpus, os.environ.get("CUDA_VISIBLE_DEVICES"))
        default = default_world_size(len(devices or gpus), usable_cores())
        count = default if wishes.n is None else wishes.n
        check_world_size(count, self.pool.world_size)
        return make_plan(count, gpus, None if backend == "auto" else backend, devices)

    def _surroundings(self, plan: Plan) -> m.Surroundings:
        if self.rendezvous is None:
            self.torch.wait(60.0)
            self.rendezvous = Rendezvous()
        environ = {name: value for name, value in os.environ.items() if _is_text(name + value)}
        for name in sorted(set(os.environ) - set(environ)):
            self.announced.append(f"the ranks do not get {name!a} from the environment: it is no UTF-8")
        if plan.visible_devices is not None:
            environ["CUDA_VISIBLE_DEVICES"] = plan.visible_devices
        cwd = _working_directory()
        return m.Surroundings(
            environ=environ,
            cwd=cwd,
            sys_path=[path or cwd for path in sys.path if isinstance(path, str) and _is_text(path)],
            master_addr=self.rendezvous.host,
            master_port=self.rendezvous.port,
            run_id=self._run_id,
            seed=_DEFAULT_SEED,
        )

    def _come_up(
        self,
        request: ev.StartRequested | ev.ResizeRequested | ev.HealRequested,
        on_progress: OnProgress | None = None,
        limit_s: float = bounds.START_TIMEOUT_S,
        began: float | None = None,
    ) -> None:
        waiter = self._starting = Waiter()
        began = time.monotonic() if began is None else began

        def wait(timeout_s: float) -> bool:
            done = waiter.wait(timeout_s)
            if on_progress is not None and not done:
                on_progress(time.monotonic() - began)
            return done

        with InterruptsTo(self.interrupt):
            self.submit(request)
            wait_for(wait, limit_s + bounds.KILL_TIMEOUT_S + bounds.FORM_TIMEOUT_S)
        self._starting = None
        if waiter.error:
            raise PoolError(waiter.error)

    # -- changes ---------------------------------------------------------------------------------

    def restart(self, wishes: Wishes, on_progress: OnProgress | None) -> str:
        """Stop, then start. What cannot be had is said before anything is stopped."""
        with self._changing_alone():
            self._plan(wishes)
            self._stop()
            return self._start(wishes, on_progress)

    def resize(self, n: int) -> str:
        """Add or end ranks of a pool that is there; those that stay keep their variables."""
        with self._changing_alone():
            self._until_formed()
            plan = self._plan(Wishes(n))
            if n != self.pool.world_size:
                self._come_up(ev.ResizeRequested(plan, self._surroundings(plan)))
                self._wishes = replace(self._wishes, n=n)
            return _choice(plan)

    def heal(self, source: int | None) -> str:
        """Replace dead and doomed ranks; `source` is the rank whose variables the new ones get, if any."""
        with self._changing_alone():
            self._until_formed()
            lost, plan = self.pool.unfit, self.pool.plan
            if plan is None:
                raise PoolError("there is no pool; %ddp start -n 4 starts one")
            if not lost:
                return NOTHING_TO_HEAL
            self._healed.clear()
            request = ev.HealRequested(self._surroundings(plan), source)
            self._come_up(request, limit_s=HEAL_TIMEOUT_S if source is None else COPY_TIMEOUT_S)
            return outcome(lost, len(plan.places), source, self._healed)

    def _until_formed(self) -> None:
        """Wait while a group is being formed. Raises PoolError when that takes longer than it may."""
        if (exchange := self.exchange) is None:
            return
        with InterruptsTo(self.interrupt):
            formed = exchange.wait_until(
                lambda: self.pool.phase is not p.Phase.FORMING, bounds.FORM_TIMEOUT_S + WAIT_STEP_S
            )
        if not formed:
            raise PoolError(NO_ANSWER)

    # -- the end ---------------------------------------------------------------------------------

    def stop(self) -> None:
        """End the ranks. The process they are forked from stays warm."""
        with self._changing_alone():
            self._stop()

    def _stop(self) -> None:
        if self.exchange is None:
            return
        waiter = self._stopping = Waiter()
        with InterruptsTo(self.interrupt):
            self.submit(ev.StopRequested())
            wait_for(waiter.wait, _CLOSE_TIMEOUT_S)
        self._stopping = None
        if waiter.error:
            raise PoolError(waiter.error)

    def end(self) -> None:
        """Let go of all processes. The next `start` makes new ones."""
        exchange, self.exchange = self.exchange, None
        if exchange is not None:
            exchange.close()
        self._on_end()
        for waiter in (self._starting, self._stopping):
            if waiter is not None:
                waiter.finish("the cluster was closed")
        self.pool = p.Pool()  # news of this one's processes is none of the next one's
        if self.rendezvous is not None:
            self.rendezvous.close()
            self.rendezvous = None

    # -- from the exchange's thread --------------------------------------------------------------

    def note_ready(self, message: m.NodeReady) -> None:
        """The node agent is there."""
        self._gpus = message.gpus
        self._node_ready.finish(_version_error(message))

    def note_healed(self, message: m.RankHealed) -> None:
        self._healed.append(message)

    def note_started(self, effect: ev.StartFinished) -> None:
        """Whoever waits for a start, a resize or a heal waits no longer."""
        if self._starting is not None:
            self._starting.finish(effect.error)

    def note_stopped(self, effect: ev.StopFinished) -> None:
        if self._stopping is not None:
            stuck = ", ".join(map(str, effect.unkillable))
            self._stopping.finish(f"the system does not end processes {stuck}" if stuck else "")


def _working_directory() -> str:
    """Raises UsageError for one that ranks cannot have."""
    try:
        cwd = os.getcwd()  # noqa: PTH109  # a plain string goes into a message
    except FileNotFoundError:
        raise UsageError("the working directory was deleted; %cd to one that is there") from None
    if not _is_text(cwd):
        raise UsageError(f"the working directory's name is no UTF-8: {cwd!a}; work in another")
    return cwd


def _is_text(text: str) -> bool:
    """It has no lone surrogates, which stand for bytes that are no UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _version_error(ready: m.NodeReady) -> str:
    if ready.version == m.PROTOCOL_VERSION:
        return ""
    ours = m.PROTOCOL_VERSION
    return f"the node agent speaks version {ready.version}, this package {ours}: install one release on both"


def _choice(plan: Plan) -> str:
    """What a pool is, and why its backend is not NCCL where it is not."""
    kinds = sorted({place.device.partition(":")[0] for place in plan.places})
    n = len(plan.places)
    reason = f" ({plan.reason})" if plan.reason else ""
    return f"{n} rank{'s' if n != 1 else ''} on {'/'.join(kinds)}, {plan.backend}{reason}"
