"""A cell that runs: whom it waits for, how it has ended elsewhere, and how far an interrupt went."""

from __future__ import annotations

from jupyter_ddp.core import messages as m
from jupyter_ddp.core.events import CellEnded
from jupyter_ddp.core.ladder import Ladder
from jupyter_ddp.core.topology import named
from jupyter_ddp.core.verdicts import Verdict


class RunningCell:
    def __init__(self, cell: int, targets: tuple[int, ...], hang_timeout_s: float = 0.0) -> None:
        self.cell = cell
        self.hang_timeout_s = hang_timeout_s
        """A hang that lasts so long ends the cell; 0: none does."""
        self.waiting = set(targets)
        self.verdicts: dict[int, Verdict] = {}
        self.deaths: list[m.WorkerExited] = []
        self.reasons: dict[int, str] = {}
        self.targets = targets
        self.ladder = Ladder(cell)
        """How far an interrupt of it has gone."""
        self.break_sent = self.kill_sent = False
        self.group_broken = False
        self.timeout_at: float | None = None
        """When the user wants it to be interrupted."""
        self.late: set[int] = set()
        """Whom it still waited for at that time."""
        self.hang = ""
        """Why the pool has ended it, where it would have hung."""
        self.warnings: list[str] = []
        self._blocked: set[int] = set()
        self._timeout_s = 0.0

    def limit(self, timeout_s: float, now: float) -> None:
        """It may take so long from now on."""
        self._timeout_s, self.timeout_at = timeout_s, now + timeout_s

    def is_late(self, now: float) -> bool:
        return self.timeout_at is not None and now >= self.timeout_at

    @property
    def climbs_at(self) -> float | None:
        """When an interrupt of it goes a step further of itself."""
        return self.ladder.deadline if self.waiting else None

    def end(self, rank: int, verdict: Verdict, reason: str = "", blocked: bool = False) -> None:
        self.waiting.discard(rank)
        self.verdicts[rank] = verdict
        if reason:
            self.reasons[rank] = reason
        if blocked:
            self._blocked.add(rank)

    @property
    def failed(self) -> bool:
        """On some rank it has ended otherwise than well."""
        return any(verdict != "ok" for verdict in self.verdicts.values())

    def ended(self) -> CellEnded:
        """The blame goes to the ranks that failed of themselves, not to those that waited for them."""
        culprits = sorted(r for r, v in self.verdicts.items() if v in ("error", "died"))
        if culprits and not self.ladder.presses:
            for rank in self._blocked:
                self.reasons[rank] = f"blocked by {named(culprits, '-')}"
        for rank in self.late:
            if self.verdicts[rank] == "interrupted":
                self.reasons.setdefault(rank, f"interrupted by --timeout {self._timeout_s:g}")
        deaths, warnings = tuple(self.deaths), tuple(self.warnings)
        return CellEnded(self.cell, self.verdicts, deaths, self.reasons, warnings, self.hang)
