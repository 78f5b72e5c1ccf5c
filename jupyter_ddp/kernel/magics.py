"""`%%ddp`, `%%rank` and `%ddp`: from what the user types to a `Cluster`, and back to the screen."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

from IPython.core.interactiveshell import InteractiveShell
from IPython.core.magic import Magics, cell_magic, line_cell_magic, magics_class, no_var_expand
from IPython.display import display
from traitlets import Enum, Float, Int, observe

from jupyter_ddp.core.errors import PoolError, UsageError
from jupyter_ddp.core.log import QUOTA_BYTES
from jupyter_ddp.core.record import CellRecord
from jupyter_ddp.core.topology import MAX_WORLD_SIZE, parse_targets
from jupyter_ddp.kernel import saved_logs
from jupyter_ddp.kernel.cluster import Cluster
from jupyter_ddp.kernel.display import CellDisplay, StartDisplay
from jupyter_ddp.kernel.front_end import content, is_terminal, somebody_watches
from jupyter_ddp.kernel.front_end import request as front_end_request
from jupyter_ddp.kernel.limits import check_world_size
from jupyter_ddp.kernel.live import LiveViews
from jupyter_ddp.kernel.options import (
    CellOptions,
    CommandOptions,
    PoolOptions,
    parse_cell_line,
    parse_command_line,
)
from jupyter_ddp.kernel.source import prepare
from jupyter_ddp.view.status import saved_table, status_table, status_text

_REDRAW_S = 1.0
"""A running cell redraws an earlier one's page at most so often: the page is made as a whole each time."""
_FRAMES_TO_CELL = 3
"""From a magic's helper through the magic and IPython's dispatch to the cell that called it."""


@magics_class
class DDPMagics(Magics):
    """The magics, over the one cluster that is current."""

    shell: InteractiveShell

    display: Any = Enum(
        ("auto", "live", "static"),
        default_value="auto",
        help="Show output while a cell runs (live), once at its end (static), or as the front end can.",
    ).tag(config=True)

    hang_timeout: Any = Float(
        600.0,
        min=0.0,
        help="Where nobody watches (static), end a cell whose ranks wait so many seconds for one that does "
        "not come; 0 never does.",
    ).tag(config=True)

    log_quota: Any = Int(
        QUOTA_BYTES,
        min=0,
        help="Bytes that are kept of each cell's output; beyond, its head and its tail.",
    ).tag(config=True)

    def __init__(self, shell: InteractiveShell, **kwargs: Any) -> None:
        super().__init__(shell, **kwargs)
        self._clusters = [Cluster(log_quota_bytes=self.log_quota)]
        """Their own, then those that were activated; the last is the current one."""
        self._views = LiveViews()
        self._screens: WeakKeyDictionary[CellRecord, CellDisplay] = WeakKeyDictionary()
        """Of cells that have ended: they may be changed by a later one, or by a thread that they left."""
        self._pageless: list[CellRecord] = []
        """Those that have changed and have no page, which the next cell shows."""
        self._redrawn_at = 0.0

    @observe("log_quota")
    def _quota_changed(self, change: Any) -> None:
        if hasattr(self, "_clusters"):  # not while it is made
            self.cluster.log_quota_bytes = change.new

    @property
    def cluster(self) -> Cluster:
        """The one that is current."""
        return self._clusters[-1]

    def take(self, cluster: Cluster) -> None:
        """Use this cluster from now on, until it is closed."""
        if cluster is not self._clusters[0]:
            self.give_back(cluster)
            self._clusters.append(cluster)
        else:
            del self._clusters[1:]

    def give_back(self, cluster: Cluster) -> None:
        """Use the one before again; their own is never given back."""
        if cluster in self._clusters[1:]:
            self._clusters.remove(cluster)

    def close(self) -> None:
        """End the pool that the magics started, and those that they were given."""
        for cluster in list(self._clusters):
            cluster.close()
        self._views.close()

    @cell_magic
    @no_var_expand
    def rank(self, line: str, cell: str) -> None:
        """Run the cell on some ranks: `%%rank 0`, `%%rank 0-2` (short for `%%ddp -t`)."""
        targets, _, rest = self._expanded(line).strip().partition(" ")
        if not targets or targets.startswith("-"):
            raise UsageError("%%rank: name the ranks, as in %%rank 0 or %%rank [0-2]")
        if rest and not rest.lstrip().startswith("-"):
            raise UsageError(f"%%rank {line.strip()}: write the ranks as one word, as in %%rank 0,2-3")
        self._run(f"-t {targets} {rest}", cell)

    @line_cell_magic
    @no_var_expand
    def ddp(self, line: str, cell: str | None = None) -> None:
        """Run a cell on every rank of a persistent pool, or manage the pool.

        %%ddp [-n N] [-t RANKS] [-o NAME] [--check] [--timeout S] [--backend nccl|gloo|auto] [--devices GPUS]
            -n N            ranks of the pool; started on first use
            -t, --targets   run on some ranks: 0,2-3 or ::2
            -o, --output    bind the cell's record: NAME[2].stdout, .value, .error, .verdict
            --check         compare each collective among its ranks before it begins: operation,
                            shape, dtype
            --timeout       interrupt the cell after so many seconds
            --backend       of a new pool; auto: nccl where each rank has a GPU, else gloo
            --devices       GPUs of a new pool, as in 1,3, or all
        %ddp            the panel: what each rank is and does, and buttons to act on them
        %ddp status | start [-n N] | stop | restart | resize N | heal [--from RANK] | interrupt
            heal            replaces dead and doomed ranks; --from copies a living rank's variables into them
        %ddp where | dump
            where           what each rank does, and who waits for whom; dump: with all stacks
        %ddp log [CELL]
            log             all that the ranks wrote in the last cell, or in that with this number beside it,
                            to a file in the working directory

        On every rank: rank, local_rank, world_size, device, torch, dist. Variables live on.
        """
        line = self._expanded(line)
        if cell is None:
            self._command(parse_command_line(line))
        else:
            self._run(line, cell)

    def _expanded(self, line: str) -> str:
        """`$n` and `{n}` stand for the notebook's variables, as in any magic; most lines have none."""
        if "$" not in line and "{" not in line:
            return line
        return str(self.shell.var_expand(line, _FRAMES_TO_CELL))  # type: ignore[no-untyped-call]  # IPython has no types here

    # -- cells -----------------------------------------------------------------------------------

    def _run(self, line: str, cell: str) -> None:
        options = parse_cell_line(line)
        announced = self._say_announcements()
        announced |= self._show_late()
        request = front_end_request()
        first_line, count = self._place_of_cell(cell, content(request).get("code", ""))
        record: CellRecord | None = None
        live = self._is_live(request)
        screen = CellDisplay(live, self._views)

        def show(news: CellRecord, done: bool) -> bool:
            nonlocal record
            record = news
            behind = screen.show(news, done)
            self._redraw_earlier(at_once=done)
            return behind

        prepared = prepare(cell, first_line, self.shell)  # what is no Python starts no pool
        screen.alone = self.cluster.running and not announced
        self._ensure_pool(options)
        try:
            self.cluster.run(
                prepared,
                options.targets,
                check=False,
                check_collectives=options.check,
                timeout_s=options.timeout_s,
                on_news=show,
                count=count,
                hang_timeout_s=0.0 if live else self.hang_timeout,
            )
        finally:
            if record is not None and (screen.stays or screen.printed):
                self._screens[record] = screen
            if record is not None and options.output is not None:
                self.shell.user_ns[options.output] = record
        self._say_announcements()
        if record is not None:
            record.raise_for_error()

    def _redraw_earlier(self, *, at_once: bool) -> None:
        """Pages of earlier cells that have changed; while a cell runs now and then."""
        if not at_once and time.monotonic() < self._redrawn_at + _REDRAW_S:
            return
        for record in self.cluster.outdated_records():
            self._redrawn_at = time.monotonic()
            if (screen := self._screens.get(record)) is not None and screen.stays:
                screen.redraw(record)
            elif record not in self._pageless:
                self._pageless.append(record)

    def _show_late(self) -> bool:
        """What earlier cells left running has written since: on their pages, or here where a cell had none.
        True when there was any of the latter.
        """
        self._redraw_earlier(at_once=True)
        if not self._pageless:
            return False
        late, self._pageless = self._pageless, []
        shown = [record for record in late if self.cluster.prompt_number(record)]
        for record in shown:
            number = self.cluster.prompt_number(record)
            if record in self._screens:  # a terminal would have to show all of it again
                self._say(f"In[{number}] wrote after its end: %ddp log {number} has it")
                continue
            self._say(f"In[{number}] wrote after its end:")
            self._screens[record] = CellDisplay(False, self._views)
            self._screens[record].show(record, True)
        return bool(shown)

    def _ensure_pool(self, options: CellOptions) -> None:
        cluster, n = self.cluster, options.pool.n
        if not cluster.running:
            if options.targets is not None:  # what makes no sense starts nothing
                parse_targets(options.targets, n or MAX_WORLD_SIZE)
            self._bring_up(cluster.start, options.pool)
        elif n is not None and n != cluster.world_size:
            check_world_size(n, cluster.world_size)
            raise PoolError(
                f"the pool has {cluster.world_size} rank{'s' if cluster.world_size != 1 else ''}, not {n}; "
                f"nothing was run. %ddp resize {n} makes it fit, or leave -n out"
            )
        elif (backend := options.pool.backend) is not None and backend not in ("auto", cluster.backend):
            raise PoolError(
                f"the pool's backend is {cluster.backend}; nothing was run. "
                f"%ddp restart --backend {backend} starts anew, without the variables"
            )
        elif (devices := options.pool.devices) is not None and devices != (cluster.devices or ()):
            raise PoolError(
                "the pool was started without these devices; nothing was run. "
                "%ddp restart --devices … starts anew, without the variables"
            )

    def _place_of_cell(self, cell: str, whole: str) -> tuple[int, int]:
        """(the notebook cell's line that the source begins on, the prompt number)."""
        before = 1
        if cell.strip() and whole.rstrip().endswith(cell.rstrip()):
            before = whole[: len(whole.rstrip()) - len(cell.rstrip())].count("\n")
        # `In` ends with this cell's own input; execution_count may already be the next one's.
        return before + 1, len(self.shell.user_ns.get("In", [""])) - 1

    def _is_live(self, request: dict[str, Any]) -> bool:
        """A front end that can answer questions has somebody before it, who can watch."""
        return somebody_watches(request) if self.display == "auto" else bool(self.display == "live")

    # -- the pool's life -------------------------------------------------------------------------

    def _command(self, options: CommandOptions) -> None:
        cluster = self.cluster
        self._show_late()
        match options.command:
            case "panel":
                self._show_panel()
            case "status":
                self._show_status(status_table)
            case "start":
                self._start_or_keep(options.pool)
            case "stop":
                cluster.stop()
            case "restart":
                self._bring_up(cluster.restart, options.pool)
            case "resize":
                assert options.pool.n is not None
                self._say(cluster.resize(options.pool.n))
            case "heal":
                self._say(cluster.heal(options.source))
            case "interrupt":
                cluster.interrupt()
            case "where":
                self._say(cluster.where())
            case "dump":
                self._say(cluster.dump())
            case "log":
                self._say(saved_logs.save(cluster.records(), options.cell))
            case other:
                raise AssertionError(other)
        self._say_announcements()

    def _show_panel(self) -> None:
        """The panel where it can be used, else what it would show."""
        if self._is_live(front_end_request()):
            display(self.cluster.panel())  # type: ignore[no-untyped-call]  # IPython has no types here
        else:
            self._show_status(saved_table)

    def _show_status(self, table: Callable[..., dict[str, str]]) -> None:
        """To a terminal all there is to say; to a notebook, which is saved, what is the same next time."""
        cluster = self.cluster
        if is_terminal():
            self._say(status_text(cluster.status(), cluster.backend, cluster.phase))
        else:
            display(table(cluster.status(), cluster.backend, cluster.phase), raw=True)  # type: ignore[no-untyped-call]  # IPython has no types here

    def _start_or_keep(self, pool: PoolOptions) -> None:
        """Run again from the top, `%ddp start -n 4` finds the pool there and keeps it."""
        if not self.cluster.running:
            self._bring_up(self.cluster.start, pool)
        else:
            self._ensure_pool(CellOptions(pool))

    def _bring_up(self, start: Callable[..., str], pool: PoolOptions) -> None:
        line = StartDisplay(self._is_live(front_end_request()))
        try:
            choice = start(pool.n, backend=pool.backend, devices=pool.devices, on_progress=line.show)
        except BaseException:  # an interrupt too: the line must not go on saying "starting"
            line.fail()
            raise
        line.end(choice)

    def _say(self, text: str) -> None:
        if text:
            print(text)  # noqa: T201  # this is what the user sees

    def _say_announcements(self) -> bool:
        """True when there were any."""
        announced = self.cluster.announcements()
        for text in announced:
            self._say(text)
        return bool(announced)
