"""`Cluster`: a pool of ranks from Python. All that the magics do goes through it.

Owns the node agent, the rendezvous and the exchange of one pool, and the records of its last cells.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import secrets
import sys
import tempfile
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, Self, assert_never, get_args

from IPython.core.getipython import get_ipython
from msgspec import Struct

from jupyter_ddp.core import events as ev
from jupyter_ddp.core import messages as m
from jupyter_ddp.core import pool as p
from jupyter_ddp.core.advice import remarks
from jupyter_ddp.core.compiled_cell import cell_file
from jupyter_ddp.core.errors import PoolError, UsageError
from jupyter_ddp.core.faults import describe_exit
from jupyter_ddp.core.healing import COPY_TIMEOUT_S, HEAL_TIMEOUT_S
from jupyter_ddp.core.log import QUOTA_BYTES
from jupyter_ddp.core.record import CellRecord
from jupyter_ddp.core.steps import Sight
from jupyter_ddp.core.topology import (
    Plan,
    default_world_size,
    make_plan,
    parse_targets,
    visible_gpus,
)
from jupyter_ddp.core.usage import UsageBook
from jupyter_ddp.kernel.conditions import Conditions, stopped_note
from jupyter_ddp.kernel.exchange import Exchange
from jupyter_ddp.kernel.execution import Execution, Follower, OnNews
from jupyter_ddp.kernel.front_end import somebody_watches
from jupyter_ddp.kernel.healing import NOTHING_TO_HEAL, outcome
from jupyter_ddp.kernel.interrupts import InterruptsTo
from jupyter_ddp.kernel.limits import check_timeout, check_world_size, usable_cores
from jupyter_ddp.kernel.rendezvous import Rendezvous
from jupyter_ddp.kernel.sightings import ANSWER_TIMEOUT_S, Sightings
from jupyter_ddp.kernel.source import PreparedSource, prepare
from jupyter_ddp.kernel.torch_import import TorchImport
from jupyter_ddp.launch.local import LocalNode
from jupyter_ddp.view.status import saved_table
from jupyter_ddp.view.whereabouts import dump_text, where_text

if TYPE_CHECKING:
    from jupyter_ddp.kernel.panel import Feed, Panel

AskedBackend = m.Backend | Literal["auto"]
RECORDS_KEPT = 20
_NODE_TIMEOUT_S = 30.0
_CLOSE_TIMEOUT_S = 15.0
_WAIT_STEP_S = 0.25
_CELL_MESSAGES = frozenset(get_args(m.CellMessage))
_DEFAULT_SEED = 67280421310721
"""torch's own default seed (c10/core/GeneratorImpl.h): rank 0 draws what a fresh process draws."""


class _Waiter:
    """Something that will be finished by the exchange's thread."""

    def __init__(self) -> None:
        self._event = threading.Event()
        self.error = ""

    def finish(self, error: str = "") -> None:
        self.error = error
        self._event.set()

    def wait(self, timeout_s: float) -> bool:
        return self._event.wait(timeout_s)


class RankStatus(Struct, frozen=True):
    """One rank, as `%ddp status` and the panel show it.

    `cell` is the prompt number of the cell that runs on it, 0 if none; `line` that cell's line it was last
    seen on, 0 if nobody looked. `error` is its last failure, or why it died.
    """

    rank: int
    pid: int
    device: str
    state: str
    node: str = ""
    cell: int = 0
    line: int = 0
    age_s: float = 0.0
    error: str = ""
    usage: tuple[m.RankUsage, ...] = ()
    """What it used lately, oldest first, while somebody looks (`watch_usage`)."""


class Cluster:
    """A pool of persistent ranks that share one process group.

        with Cluster(4) as cluster:
            record = cluster.run("dist.all_reduce(t := torch.ones(1)); t")

    `n`: number of ranks; None for one per GPU, else a few. `backend`: "nccl", "gloo", or "auto", which
    chooses; `devices`: which of the visible GPUs to use, () for all. None for either: as before, at first
    "auto" and all. `preload`: modules to import once, before ranks are
    forked. `log_quota_bytes`: what is kept of each cell's output. Nothing is started before `start`,
    `run` or `with`.
    """

    def __init__(
        self,
        n: int | None = None,
        *,
        backend: AskedBackend | None = None,
        devices: Sequence[int] | None = None,
        preload: Sequence[str] = (),
        log_quota_bytes: int = QUOTA_BYTES,
    ) -> None:
        self._n, self._backend, self._devices, self._preload = n, backend, devices, tuple(preload)
        self.log_quota_bytes = log_quota_bytes
        self._pool = p.Pool()
        self._exchange: Exchange | None = None
        self._torch = TorchImport()
        self._rendezvous: Rendezvous | None = None
        self._node_ready = _Waiter()
        self._gpus: list[m.Gpu] = []
        self._forkserver_lost = False
        self._changing = threading.Lock()
        self._starting: _Waiter | None = None
        self._stopping: _Waiter | None = None
        self._conditions = Conditions()
        self._executions: OrderedDict[int, Execution] = OrderedDict()
        self._cells = itertools.count(1)
        self._run_id = ""
        self._feed: Feed | None = None
        self._usage = UsageBook()
        self._usage_interval_s = 0.0
        self._hostname = ""
        self._announced: deque[str] = deque(maxlen=100)
        self._healed: list[m.RankHealed] = []
        self._sightings = Sightings()
        self.stages: dict[str, float] = {}
        """Seconds after its start at which the forkserver came to each stage."""

    # -- starting --------------------------------------------------------------------------------

    def warm_up(self) -> None:
        """Begin to import torch, here and in a process that ranks will be forked from; return at once.

        Raises PoolError where this system cannot run ranks.
        """
        if self._exchange is not None:
            return
        node = LocalNode(self._preload)
        self._forkserver_lost = False
        self._node_ready = _Waiter()
        self._exchange = Exchange(self._pool, [node], self._on_effect, self._on_message)
        self.watch_usage(self._usage_interval_s)
        self._torch.begin()

    def wait_for_torch(self, timeout_s: float = 60.0) -> None:
        """Until the import that `warm_up` began in this process has ended."""
        self._torch.wait(timeout_s)

    @property
    def importing_torch(self) -> bool:
        """That import goes on."""
        return self._torch.busy

    def start(
        self,
        n: int | None = None,
        *,
        backend: AskedBackend | None = None,
        devices: Sequence[int] | None = None,
        on_progress: Callable[[float, list[RankStatus]], None] | None = None,
    ) -> str:
        """Start the pool and form its group; say in one line what was chosen, and why if it is not NCCL.

        `on_progress(seconds, ranks)` is called a few times a second meanwhile.

        Raises UsageError for numbers that make no sense, PoolError if the pool does not come up.
        """
        with self._changing_alone():
            if self._pool.phase is not p.Phase.STOPPED:
                raise PoolError(f"the pool is {self._pool.phase.value} already; %ddp restart starts anew")
            return self._start(n, backend, devices, on_progress)

    def _start(
        self,
        n: int | None,
        backend: AskedBackend | None,
        devices: Sequence[int] | None,
        on_progress: Callable[[float, list[RankStatus]], None] | None,
    ) -> str:
        plan = self._plan(n, backend, devices)
        self._run_id = secrets.token_hex(4)  # a new pool never meets the store's keys of an earlier one
        self._come_up(ev.StartRequested(plan, self._surroundings(plan)), on_progress)
        self._n = len(plan.places)
        self._backend = self._backend if backend is None else backend
        self._devices = self._devices if devices is None else devices
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
        spoilt = self._exchange is not None and (self._exchange.lost or self._forkserver_lost)
        if spoilt and self._pool.phase is p.Phase.STOPPED:
            self._let_go()
        self.warm_up()
        assert self._exchange is not None
        deadline = time.monotonic() + _NODE_TIMEOUT_S
        while not self._node_ready.wait(_WAIT_STEP_S):
            if self._exchange.lost or time.monotonic() > deadline:
                reason = (
                    self._exchange.lost_reason or f"no answer from the node agent in {_NODE_TIMEOUT_S:.0f} s"
                )
                self._let_go()
                raise PoolError(reason)
        if error := self._node_ready.error:
            self._let_go()
            raise PoolError(error)

    def _plan(self, n: int | None, backend: AskedBackend | None, devices: Sequence[int] | None) -> Plan:
        """What a pool would be, the last one's choices in place of None. Raises UsageError."""
        self._reach_node()
        n = self._n if n is None else n
        backend = self._backend if backend is None else backend
        devices = (self._devices if devices is None else devices) or None
        gpus = visible_gpus(self._gpus, os.environ.get("CUDA_VISIBLE_DEVICES"))
        count = n if n is not None else default_world_size(len(devices or gpus), usable_cores())
        check_world_size(count, self._pool.world_size)
        return make_plan(count, gpus, None if backend == "auto" else backend, devices)

    def _surroundings(self, plan: Plan) -> m.Surroundings:
        if self._rendezvous is None:
            self._torch.wait(60.0)
            self._rendezvous = Rendezvous()
        environ = {name: value for name, value in os.environ.items() if _is_text(name + value)}
        for name in sorted(set(os.environ) - set(environ)):
            self._announced.append(f"the ranks do not get {name!a} from the environment: it is no UTF-8")
        if plan.visible_devices is not None:
            environ["CUDA_VISIBLE_DEVICES"] = plan.visible_devices
        cwd = os.getcwd()  # noqa: PTH109  # a plain string goes into a message
        if not _is_text(cwd):
            raise UsageError(f"the working directory's name is no UTF-8: {cwd!a}; work in another")
        return m.Surroundings(
            environ=environ,
            cwd=cwd,
            sys_path=[path or cwd for path in sys.path if isinstance(path, str) and _is_text(path)],
            master_addr=self._rendezvous.host,
            master_port=self._rendezvous.port,
            run_id=self._run_id,
            seed=_DEFAULT_SEED,
        )

    def _come_up(
        self,
        request: ev.StartRequested | ev.ResizeRequested | ev.HealRequested,
        on_progress: Callable[[float, list[RankStatus]], None] | None = None,
        limit_s: float = p.START_TIMEOUT_S,
    ) -> None:
        waiter = self._starting = _Waiter()
        began = time.monotonic()

        def wait(timeout_s: float) -> bool:
            done = waiter.wait(timeout_s)
            if on_progress is not None and not done:
                on_progress(time.monotonic() - began, self.status())
            return done

        with InterruptsTo(self.interrupt):
            self._submit(request)
            _wait_for(wait, limit_s + p.KILL_TIMEOUT_S + p.FORM_TIMEOUT_S)
        self._starting = None
        if waiter.error:
            raise PoolError(waiter.error)

    # -- cells -----------------------------------------------------------------------------------

    def run(
        self,
        source: str | PreparedSource,
        targets: str | Sequence[int] | None = None,
        *,
        check: bool = True,
        check_collectives: bool = False,
        timeout_s: float | None = None,
        on_news: OnNews | None = None,
        count: int = 0,
        hang_timeout_s: float = 0.0,
    ) -> CellRecord:
        """Run a cell's source on the ranks, and wait for its end; start the pool if there is none.

        `targets`: ranks, as "0,2-3", "::2" or numbers; None for all. `on_news(record, done)` is called
        from this thread as output comes, at most ten times a second (where it returns True, without more
        output too), and at the end. `count` is the notebook's prompt number. A hang (a rank waits for one
        that does not come) that lasts `hang_timeout_s` ends the cell; 0 leaves that to whoever watches.

        `check_collectives`: compare each collective's operation, shape and dtype among its ranks before it
        begins (`%%ddp --check`). `timeout_s`: interrupt the cell when it takes longer.

        Raises RankError (which has the record) when the cell did not end well on a rank, unless
        `check` is False; UsageError for source that is no Python, PoolError when the pool cannot run it.
        """
        if timeout_s is not None:
            check_timeout(timeout_s)
        prepared = source if isinstance(source, PreparedSource) else prepare(source)
        if self._pool.phase is p.Phase.STOPPED:
            self.start()
        ranks = self._targets(targets)
        cell = next(self._cells)
        record = CellRecord(cell, ranks, _open_spool, threading.RLock(), self.log_quota_bytes)
        execution = Execution(record, count)
        self._executions[cell] = execution
        if prepared.tree is not None:
            size = self._pool.world_size
            execution.advise(remarks(prepared.source, prepared.tree, ranks, size))
        with InterruptsTo(self.interrupt):
            exchange = self._submit(
                ev.CellRequested(
                    cell,
                    ranks,
                    prepared.source,
                    prepared.awaits,
                    prepared.shows,
                    count,
                    check_collectives,
                    timeout_s or 0.0,
                    hang_timeout_s,
                    prepared.packed(cell_file(cell, count)),
                )
            )
            self._forget_surplus()  # while the ranks are at work
            if self._conditions:
                self._note_conditions(execution)
            self._follow(execution, exchange, on_news)
        if execution.refusal:
            raise PoolError(execution.refusal)
        if check:
            record.raise_for_error()
        return record

    def _targets(self, targets: str | Sequence[int] | None) -> tuple[int, ...]:
        size = self._pool.world_size
        if targets is None:
            return tuple(range(size))
        text = targets if isinstance(targets, str) else ",".join(map(str, targets))
        return parse_targets(text, size)

    def _note_conditions(self, execution: Execution) -> None:
        alive = {rank: state.pid for rank, state in list(self._pool.ranks.items()) if state.alive}
        for rank, text in self._conditions.notes(alive).items():
            execution.note(rank, text)

    def _forget_surplus(self) -> None:
        """Of the records that nobody else holds, keep the last."""
        surplus = len(self._executions) - RECORDS_KEPT
        if surplus > 0:
            ended = (cell for cell, kept in list(self._executions.items()) if kept.done)
            for cell in list(itertools.islice(ended, surplus)):
                self._executions.pop(cell, None)

    def _follow(
        self,
        execution: Execution,
        exchange: Exchange,
        on_news: OnNews | None,
    ) -> None:
        """Until the cell has ended everywhere."""
        follow = Follower(execution, exchange.wait, on_news)
        while not execution.done:
            follow.step()
        if on_news is not None and not execution.refusal:
            on_news(execution.record, True)

    # -- looking ---------------------------------------------------------------------------------

    def where(self) -> str:
        """What each rank does: its line, for how long, its last collective, and who waits for whom.

        At any time, from any thread, also while a cell runs; takes at most two seconds.
        """
        return where_text(self._look(full=False), sorted(self._pool.running_on), self.world_size)

    def dump(self) -> str:
        """The same, with the stacks of all threads and the last collectives of every group."""
        return dump_text(self._look(full=True), sorted(self._pool.running_on), self.world_size)

    def _look(self, *, full: bool) -> dict[int, Sight]:
        if self._pool.phase is p.Phase.STOPPED:
            raise PoolError("there is no pool; %ddp start -n 4 starts one")
        question = self._sightings.open(self._pool.alive)
        try:
            self._submit(ev.LookRequested(question.number, full))
            question.answered.wait(ANSWER_TIMEOUT_S)
        finally:
            self._sightings.close(question)
        return dict(sorted(question.sights.items()))

    # -- the pool's life -------------------------------------------------------------------------

    def interrupt(self) -> None:
        """Interrupt the running cell, as the notebook's interrupt button does. Again: one step further."""
        if self._exchange is not None:
            self._exchange.post(ev.InterruptRequested())

    def stop(self) -> None:
        """End the ranks; their variables are gone. The process they are forked from stays warm."""
        with self._changing_alone():
            self._stop()

    def _stop(self) -> None:
        if self._exchange is None:
            return
        waiter = self._stopping = _Waiter()
        with InterruptsTo(self.interrupt):
            self._submit(ev.StopRequested())
            _wait_for(waiter.wait, _CLOSE_TIMEOUT_S)
        self._stopping = None
        if waiter.error:
            raise PoolError(waiter.error)

    def restart(
        self,
        n: int | None = None,
        *,
        backend: AskedBackend | None = None,
        devices: Sequence[int] | None = None,
        on_progress: Callable[[float, list[RankStatus]], None] | None = None,
    ) -> str:
        """Stop, then start, as before where nothing else is asked for; says what `start` says.

        What cannot be had is said before anything is stopped.
        """
        with self._changing_alone():
            self._plan(n, backend, devices)
            self._stop()
            return self._start(n, backend, devices, on_progress)

    def resize(self, n: int) -> str:
        """Add or end ranks. Those that stay keep their variables; the group is formed again."""
        if self._pool.phase is p.Phase.STOPPED:
            return self.start(n)
        with self._changing_alone():
            _wait_for(self._is_formed, p.FORM_TIMEOUT_S)
            plan = self._plan(n, None, None)
            if n != self._pool.world_size:
                self._come_up(ev.ResizeRequested(plan, self._surroundings(plan)))
                self._n = n
            return _choice(plan)

    def heal(self, source: int | None = None) -> str:
        """Replace dead ranks by new ones; the others keep every variable. Says what was done, line by line.

        `source`: a living rank whose variables the new ones get; None: they start with none.

        Raises PoolError when it cannot be done; then all is as it was.
        """
        with self._changing_alone():
            _wait_for(self._is_formed, p.FORM_TIMEOUT_S)
            dead, plan = self._pool.dead, self._pool.plan
            if plan is None:
                raise PoolError("there is no pool; %ddp start -n 4 starts one")
            if not dead:
                return NOTHING_TO_HEAL
            self._healed.clear()
            request = ev.HealRequested(self._surroundings(plan), source)
            self._come_up(request, limit_s=HEAL_TIMEOUT_S if source is None else COPY_TIMEOUT_S)
            return outcome(dead, len(plan.places), source, self._healed)

    def activate(self) -> None:
        """Make this the cluster that the notebook's magics use. The one before is left as it is.

        Raises UsageError where there are no magics.
        """
        shell = get_ipython()
        magics = None if shell is None else shell.magics_manager.registry.get("DDPMagics")
        if magics is None:
            raise UsageError("activate: there are no magics to use it; %load_ext jupyter_ddp comes first")
        magics.cluster = self

    def panel(self) -> Panel:
        """A panel that shows this cluster while it works, with buttons: a widget to display."""
        from jupyter_ddp.kernel.panel import Feed  # the widgets' library takes a while

        if self._feed is None:
            self._feed = Feed(self)
        return self._feed.open()

    def _ipython_display_(self) -> None:
        """As a cell's value: the panel, where somebody can use it."""
        if not somebody_watches():
            raise NotImplementedError  # then IPython asks for the bundle
        self.panel()._ipython_display_()

    def _repr_mimebundle_(self, **_options: Any) -> dict[str, str]:
        return saved_table(self.status(), self.backend, self.phase)

    def _is_formed(self, timeout_s: float) -> bool:
        """Wait until no group is being formed; True when that is so. A poll will do: it is rarely asked."""
        deadline = time.monotonic() + timeout_s
        while self._pool.phase is p.Phase.FORMING and time.monotonic() < deadline:
            time.sleep(0.01)
        return self._pool.phase is not p.Phase.FORMING

    def close(self) -> None:
        """End everything: ranks, the process they are forked from, the rendezvous, the panels."""
        self._let_go()
        feed, self._feed = self._feed, None
        if feed is not None:
            feed.close()

    def _let_go(self) -> None:
        """Of all processes. The panels stay: they show what comes next."""
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            exchange.close()
        for execution in list(self._executions.values()):
            if not execution.done:
                execution.refusal = "the cluster was closed while the cell ran"
                execution.finish()
        for waiter in (self._starting, self._stopping):
            if waiter is not None:
                waiter.finish("the cluster was closed")
        self._pool = p.Pool()  # news of this one's processes is none of the next one's
        if self._rendezvous is not None:
            self._rendezvous.close()
            self._rendezvous = None

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()  # no `with` block begins, so none ends
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- what others may read --------------------------------------------------------------------

    @property
    def running(self) -> bool:
        """There is a pool, whatever it does now."""
        return self._pool.phase is not p.Phase.STOPPED

    @property
    def world_size(self) -> int:
        """Number of ranks; 0 without a pool."""
        return self._pool.world_size

    @property
    def backend(self) -> str:
        """The group's backend; "" without a pool."""
        return self._pool.plan.backend if self._pool.plan else ""

    @property
    def devices(self) -> tuple[int, ...] | None:
        """The visible GPUs that the pool was told to use; None for all."""
        return tuple(self._devices) if self._devices else None

    @property
    def phase(self) -> str:
        """ "stopped", "starting", "ready", "running", "forming" or "stopping"."""
        return self._pool.phase.value

    def records(self) -> list[CellRecord]:
        """The records of the last cells, oldest first."""
        return [execution.record for execution in self._executions.values()]

    def announcements(self) -> list[str]:
        """What the pool had to say outside any cell, since the last call."""
        said: list[str] = []
        while self._announced:
            said.append(self._announced.popleft())
        return said

    def watch_usage(self, interval_s: float) -> None:
        """Have `status` tell what the ranks use, sampled every so many seconds at most; 0 ends it."""
        self._usage_interval_s = interval_s
        if self._exchange is not None and not self._exchange.lost:
            self._exchange.tell_nodes(m.WatchUsage(interval_s))

    def status(self) -> list[RankStatus]:
        """Each rank's process and what it does; empty without a pool."""
        now = time.monotonic()
        running = next((e for e in reversed(list(self._executions.values())) if not e.done), None)
        return [self._status_of(rank, state, running, now) for rank, state in list(self._pool.ranks.items())]

    def _status_of(self, rank: int, state: p.RankState, running: Execution | None, now: float) -> RankStatus:
        word, history = self._state_of(rank, state), self._usage.history(rank)
        busy = running is not None and word == "running"
        return RankStatus(
            rank=rank,
            pid=state.pid,
            device=state.place.device,
            state=word,
            node=self._hostname,
            cell=running.count if running is not None and busy else 0,
            line=history[-1].line if history and busy else 0,
            age_s=self._usage.age_s(rank, now),
            error=describe_exit(state.exited) if state.exited else self._last_error(rank),
            usage=history,
        )

    def _last_error(self, rank: int) -> str:
        """Of the last of its cells that failed, in one line; "" if none of those that are kept did."""
        for execution in reversed(list(self._executions.values())):
            if rank in execution.record.ranks and (words := execution.record.failure_of(rank)):
                return words
        return ""

    def _state_of(self, rank: int, state: p.RankState) -> str:
        if not state.alive:
            return "dead"
        if condition := self._conditions.state(rank, state.pid):
            return condition
        if state.generation:
            return "running" if rank in self._pool.running_on else "idle"
        return "connected" if state.connected else "forked" if state.pid else "waiting"

    def __repr__(self) -> str:
        if not self.running:
            return "<Cluster: no pool>"
        return f"<Cluster: {self.world_size} ranks, {self.backend}, {self.phase}>"

    # -- from the exchange's thread --------------------------------------------------------------

    def _submit(self, event: ev.Event) -> Exchange:
        """Have the pool handle an event. Raises PoolError when the cluster was closed meanwhile."""
        exchange = self._exchange
        if exchange is None:
            raise PoolError("the cluster was closed; %ddp start starts a pool")
        exchange.submit(event)
        return exchange

    def _on_message(self, message: m.NodeToKernel) -> None:
        if type(message) in _CELL_MESSAGES:
            execution = self._executions.get(message.cell)  # type: ignore[union-attr]  # as was asked
            if execution is not None:
                self._fold(execution, message)  # type: ignore[arg-type]  # which is what was asked
            return
        match message:
            case m.WorkerExited():
                self._note_death(message)
            case m.NodeReady():
                self._gpus, self._hostname = message.gpus, message.hostname
                self._node_ready.finish(_version_error(message))
            case m.WorkerSuspended():
                self._conditions.take(message)
                text = stopped_note(message.rank, message.pid)
                for execution in list(self._executions.values()):
                    if not execution.done:
                        execution.note(message.rank, text, message.suspended)
            case m.Preloaded():
                self.stages[message.stage] = message.seconds
            case m.WorkerForked():
                self._usage.bear(message.rank, time.monotonic())
            case m.Usage():
                for usage in message.ranks:
                    self._usage.fold(usage)
            case m.RankSeen() | m.RankUnseen():
                self._sightings.take(message)
            case m.PreloadFailed():
                self._forkserver_lost = True  # living ranks go on; the next start makes a new one
            case m.RankHealed():
                self._healed.append(message)
            case _:
                pass  # membership: the pool's own affair

    def _note_death(self, exit: m.WorkerExited) -> None:
        """In the cell at once: the others may compute for hours yet."""
        state = self._pool.ranks.get(exit.rank)
        if state is None or state.pid != exit.pid or exit.rank not in self._pool.running_on:
            return
        for execution in list(self._executions.values()):
            if not execution.done and exit.rank in execution.record.ranks:
                execution.record.die(exit)
                execution.tell_at_once()

    def _fold(self, execution: Execution, message: m.CellMessage) -> None:
        execution.record.fold(message)
        execution.tell(message)

    def _on_effect(self, effect: ev.Effect) -> None:
        match effect:
            case ev.StartFinished():
                if self._starting is not None:
                    self._starting.finish(effect.error)
            case ev.StopFinished():
                if self._stopping is not None:
                    stuck = ", ".join(map(str, effect.unkillable))
                    self._stopping.finish(f"the system does not end processes {stuck}" if stuck else "")
            case ev.CellEnded():
                self._end_cell(effect)
            case ev.CellRefused():
                refused = self._executions.pop(effect.cell, None)
                if refused is not None:
                    refused.refusal = effect.reason
                    refused.finish()
            case ev.Announced() | ev.HangSeen():
                execution = self._executions.get(effect.cell)
                if execution is not None:
                    execution.show(effect)
                elif isinstance(effect, ev.Announced):
                    self._announced.append(effect.text)
            case ev.SendToNodes():
                pass  # the exchange sends it
            case _:
                assert_never(effect)

    def _end_cell(self, effect: ev.CellEnded) -> None:
        execution = self._executions.get(effect.cell)
        if execution is None:
            return
        for exit in effect.deaths:
            execution.record.die(exit)
        dead = {exit.rank for exit in effect.deaths}
        for rank, reason in effect.reasons.items():
            if rank not in dead:
                execution.record.settle(rank, effect.verdicts[rank], reason)
        if effect.hang:
            execution.record.end_hang(effect.hang)
        for warning in effect.warnings:
            execution.record.warn(warning)
        execution.record.hang("")
        execution.finish()


def _open_spool() -> BinaryIO:
    """Without a name, so it goes with the record or with this process, however that ends."""
    return tempfile.TemporaryFile(prefix="jupyter_ddp-", buffering=0)


def _wait_for(wait: Callable[[float], bool], limit_s: float) -> None:
    """Wait for the exchange's thread. Raises PoolError when it takes longer than any of its own bounds."""
    deadline = time.monotonic() + limit_s
    while not wait(_WAIT_STEP_S):
        if time.monotonic() > deadline:
            raise PoolError("the pool does not answer; %ddp restart starts anew")


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
