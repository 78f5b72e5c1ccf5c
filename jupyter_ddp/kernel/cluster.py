"""`Cluster`: a pool of ranks from Python. All that the magics do goes through it.

Owns the parts: the pool's life, its cells, its roster and its panels, and passes to each what comes from
the exchange.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Self, assert_never, get_args

from IPython.core.getipython import get_ipython

from jupyter_ddp.core import events as ev
from jupyter_ddp.core import messages as m
from jupyter_ddp.core import pool as p
from jupyter_ddp.core.errors import PoolError, UsageError
from jupyter_ddp.core.log import QUOTA_BYTES
from jupyter_ddp.core.record import CellRecord
from jupyter_ddp.core.steps import Sight
from jupyter_ddp.core.topology import parse_targets
from jupyter_ddp.kernel.cells import Cells
from jupyter_ddp.kernel.execution import OnNews
from jupyter_ddp.kernel.front_end import request, somebody_watches
from jupyter_ddp.kernel.life import AskedBackend, Life, OnProgress, Wishes
from jupyter_ddp.kernel.limits import check_timeout
from jupyter_ddp.kernel.roster import RankStatus, Roster
from jupyter_ddp.kernel.sightings import ANSWER_TIMEOUT_S, Sightings
from jupyter_ddp.kernel.source import PreparedSource, prepare
from jupyter_ddp.view.status import saved_table
from jupyter_ddp.view.whereabouts import dump_text, where_text

if TYPE_CHECKING:
    from jupyter_ddp.kernel.panel import Feed, Panel

_CELL_MESSAGES = frozenset(get_args(m.CellMessage))


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
        if isinstance(preload, str):
            raise UsageError(f"preload={preload!r}: a list of modules' names is wanted: [{preload!r}]")
        self.log_quota_bytes = log_quota_bytes
        self._life = life = Life(
            Wishes(n, backend, devices),
            preload,
            on_effect=self._on_effect,
            on_message=self._on_message,
            on_end=self._end_running,
        )
        self._cells = Cells(life.order, life.interrupt, lambda: self._roster.notes(life.pool))
        self._roster = Roster(self._cells)
        self._sightings = Sightings()
        self._feed: Feed | None = None
        self._give_back: Callable[[Cluster], None] | None = None
        """Of the magics that use this cluster, since it was activated."""
        self.stages: dict[str, float] = {}
        """Seconds after its start at which the forkserver came to each stage."""

    @property
    def _pool(self) -> p.Pool:
        return self._life.pool

    # -- the pool's life -------------------------------------------------------------------------

    def warm_up(self) -> None:
        """Begin to import torch, here and in a process that ranks will be forked from; return at once.

        Raises PoolError where this system cannot run ranks.
        """
        self._life.warm_up()

    def wait_for_torch(self, timeout_s: float = 60.0) -> None:
        """Until the import that `warm_up` began in this process has ended."""
        self._life.torch.wait(timeout_s)

    @property
    def importing_torch(self) -> bool:
        """That import goes on."""
        return self._life.torch.busy

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
        return self._life.start(Wishes(n, backend, devices), self._progress(on_progress))

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
        return self._life.restart(Wishes(n, backend, devices), self._progress(on_progress))

    def _progress(self, tell: Callable[[float, list[RankStatus]], None] | None) -> OnProgress | None:
        return None if tell is None else lambda seconds: tell(seconds, self.status())

    def resize(self, n: int) -> str:
        """Add or end ranks. Those that stay keep their variables; the group is formed again."""
        return self._life.resize(n) if self.running else self.start(n)

    def heal(self, source: int | None = None) -> str:
        """Replace dead and doomed ranks; the others keep every variable. Says what was done, line by line.

        `source`: a living rank whose variables the new ones get; None: they start with none.

        Raises PoolError when it cannot be done; then all is as it was.
        """
        return self._life.heal(source)

    def interrupt(self) -> None:
        """Interrupt the running cell, as the notebook's interrupt button does. Again: one step further."""
        self._life.interrupt()

    def stop(self) -> None:
        """End the ranks; their variables are gone. The process they are forked from stays warm."""
        self._life.stop()

    def close(self) -> None:
        """End everything: ranks, the process they are forked from, the rendezvous, the panels."""
        self._life.end()
        give_back, self._give_back = self._give_back, None
        if give_back is not None:
            give_back(self)
        feed, self._feed = self._feed, None
        if feed is not None:
            feed.close()

    def _end_running(self) -> None:
        self._cells.end_all("the cluster was closed")

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:  # an interrupt too: no `with` block begins, so none ends
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

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
        output too), once a second while none comes, and at the end. `count` is the notebook's prompt
        number. A hang (a rank waits for one that does not come) that lasts `hang_timeout_s` ends the cell;
        0 leaves that to whoever watches.

        `check_collectives`: compare each collective's operation, shape and dtype among its ranks before it
        begins (`%%ddp --check`). `timeout_s`: interrupt the cell when it takes longer.

        Raises RankError (which has the record) when the cell did not end well on a rank, unless
        `check` is False; UsageError for source that is no Python, PoolError when the pool cannot run it.
        """
        if timeout_s is not None:
            check_timeout(timeout_s)
        prepared = source if isinstance(source, PreparedSource) else prepare(source)
        if self._life.pool.phase is p.Phase.STOPPED:
            self.start()
        size = self._life.pool.world_size
        record = self._cells.run(
            prepared,
            tuple(range(size)) if targets is None else _parsed(targets, size),
            size,
            self.log_quota_bytes,
            check_collectives=check_collectives,
            timeout_s=timeout_s or 0.0,
            on_news=on_news,
            count=count,
            hang_timeout_s=hang_timeout_s,
        )
        if check:
            record.raise_for_error()
        return record

    def records(self) -> list[CellRecord]:
        """The records of the last cells, oldest first."""
        return self._cells.records()

    def outdated_records(self) -> list[CellRecord]:
        """Of those, the ones that have changed since the last call, though their cells had ended."""
        return self._cells.outdated()

    def prompt_number(self, record: CellRecord) -> int:
        """Of a cell whose record is kept; 0 for one that no notebook asked for."""
        return self._cells.count_of(record)

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
        if not self.running:
            raise PoolError("there is no pool; %ddp start -n 4 starts one")
        question = self._sightings.open(self._pool.alive)
        try:
            self._life.submit(ev.LookRequested(question.number, full))
            question.answered.wait(ANSWER_TIMEOUT_S)
        finally:
            self._sightings.close(question)
        return dict(sorted(question.sights.items()))

    # -- in a notebook ---------------------------------------------------------------------------

    def activate(self) -> None:
        """Make this the cluster that the notebook's magics use, until it is closed.

        The one before is left as it is, and is used again then. Raises UsageError where there are no magics.
        """
        shell = get_ipython()
        magics = None if shell is None else shell.magics_manager.registry.get("DDPMagics")
        if magics is None:
            raise UsageError("activate: there are no magics to use it; %load_ext jupyter_ddp comes first")
        magics.take(self)
        self._give_back = magics.give_back

    def panel(self) -> Panel:
        """A panel that shows this cluster while it works, with buttons: a widget to display."""
        from jupyter_ddp.kernel.panel import Feed  # the widgets' library takes a while

        if self._feed is None:
            self._feed = Feed(self)
        return self._feed.open()

    def _ipython_display_(self) -> None:
        """As a cell's value: the panel, where somebody can use it."""
        if not somebody_watches(request()):
            raise NotImplementedError  # then IPython asks for the bundle
        self.panel()._ipython_display_()

    def _repr_mimebundle_(self, **_options: Any) -> dict[str, str]:
        return saved_table(self.status(), self.backend, self.phase)

    def __repr__(self) -> str:
        if not self.running:
            return "<Cluster: no pool>"
        return f"<Cluster: {self.world_size} ranks, {self.backend}, {self.phase}>"

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
        return tuple(self._life.devices) if self._life.devices else None

    @property
    def phase(self) -> str:
        """ "stopped", "starting", "ready", "running", "forming" or "stopping"."""
        return self._pool.phase.value

    @property
    def last_cell(self) -> int:
        """The number of the last cell, counted from 1; 0 before the first."""
        return self._cells.last

    def announcements(self) -> list[str]:
        """What the pool had to say outside any cell, since the last call."""
        said: list[str] = []
        while self._life.announced:
            said.append(self._life.announced.popleft())
        return said

    def watch_usage(self, interval_s: float) -> None:
        """Have `status` tell what the ranks use, sampled every so many seconds at most; 0 ends it."""
        self._life.watch_usage(interval_s)

    def status(self) -> list[RankStatus]:
        """Each rank's process and what it does; empty without a pool."""
        return self._roster.status(self._pool, time.monotonic())

    # -- from the exchange's thread --------------------------------------------------------------

    def _on_message(self, message: m.NodeToKernel) -> None:
        if type(message) in _CELL_MESSAGES:
            self._cells.fold(message)  # type: ignore[arg-type]  # which is what was asked
            return
        match message:
            case m.WorkerExited():
                state = self._pool.ranks.get(message.rank)
                if state and state.pid == message.pid and message.rank in self._pool.running_on:
                    self._cells.note_death(message)
            case m.NodeReady():
                self._roster.hostname = message.hostname
                self._life.note_ready(message)
            case m.WorkerSuspended():
                self._roster.suspend(message)
                self._cells.note_suspended(message)
            case m.Preloaded():
                self.stages[message.stage] = message.seconds
            case m.WorkerForked():
                self._roster.bear(message, time.monotonic())
            case m.Usage():
                self._roster.use(message)
            case m.RankSeen() | m.RankUnseen():
                self._sightings.take(message)
            case m.PreloadFailed():
                self._life.forkserver_lost = True  # living ranks go on; the next start makes a new one
            case m.RankHealed():
                self._life.note_healed(message)
            case _:
                pass  # membership: the pool's own affair

    def _on_effect(self, effect: ev.Effect) -> None:
        match effect:
            case ev.CellEnded():
                self._cells.end(effect)
            case ev.CellRefused():
                self._cells.refuse(effect)
            case ev.Announced() | ev.HangSeen():
                shown = self._cells.show(effect)
                if not shown and isinstance(effect, ev.Announced):
                    self._life.announced.append(effect.text)
            case ev.StartFinished():
                self._life.note_started(effect)
            case ev.StopFinished():
                self._life.note_stopped(effect)
            case ev.SendToNodes():
                pass  # the exchange sends it
            case _:
                assert_never(effect)


def _parsed(targets: str | Sequence[int], world_size: int) -> tuple[int, ...]:
    return parse_targets(targets if isinstance(targets, str) else ",".join(map(str, targets)), world_size)
