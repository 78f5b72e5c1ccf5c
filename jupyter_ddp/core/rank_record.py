"""One rank's part in the record of a cell: what it wrote and showed, and how it ended, in words.

Owns no output: text is in the cell's log. The cell's record changes these; a view reads `RankSnapshot`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable

from msgspec import Struct

from jupyter_ddp.core import messages as m
from jupyter_ddp.core.log import CellLog
from jupyter_ddp.core.saved_log import gap
from jupyter_ddp.core.terminal import strip
from jupyter_ddp.core.transcript import Segment, Transcript
from jupyter_ddp.core.verdicts import Verdict


class Value:
    """The value of a cell's last expression on one rank: its repr and its MIME data, no object."""

    def __init__(self, data: m.MimeBundle, metadata: m.MimeBundle) -> None:
        self.data = data
        self.metadata = metadata

    @property
    def text(self) -> str:
        """The value's repr, as the rank's shell formatted it."""
        return str(self.data.get("text/plain", ""))

    def __repr__(self) -> str:
        return self.text

    def _repr_mimebundle_(self, **_: object) -> tuple[m.MimeBundle, m.MimeBundle]:
        return self.data, self.metadata


class RankRecord:
    """One rank's part in a cell."""

    # Slots: a cell on many ranks makes many of these, and lets go of as many.
    __slots__ = (
        "_lock", "_log", "_next_seq", "changed_at", "death", "duration_s", "error",
        "lost_messages", "notices", "rank", "transcript", "value", "verdict",
    )  # fmt: skip

    def __init__(self, rank: int, log: CellLog, lock: contextlib.AbstractContextManager[object]) -> None:
        self.rank = rank
        self.verdict: Verdict | None = None
        """None while the cell runs on this rank."""
        self.error: m.CellError | None = None
        self.value: Value | None = None
        self.duration_s: float | None = None
        """Seconds that the cell ran on the rank, by its own monotonic clock; where it died, by ours."""
        self.death: str = ""
        """Why the rank's process ended ("killed by SIGKILL"), when it ended in this cell."""
        self.notices: list[str] = []
        self.changed_at = 0
        """The record's version when this rank's part last changed."""
        self.transcript = Transcript()
        self.lost_messages = 0
        self._log, self._lock = log, lock
        self._next_seq: dict[bool, int] = {}

    @property
    def stdout(self) -> str:
        """All that the rank wrote to standard output, by whatever means.

        Beyond the log's quota, head and tail, and a line between them that says how much is missing.
        """
        return self._read("stdout")

    @property
    def stderr(self) -> str:
        """All that the rank wrote to standard error, by whatever means."""
        return self._read("stderr")

    def _read(self, stream: m.Stream) -> str:
        with self._lock:
            kept = self._log.read(self.rank, stream)
        if not kept.missing_bytes:
            return (kept.head + kept.tail).decode("utf-8", "replace")
        return (
            kept.head.decode("utf-8", "replace")
            + gap(kept.missing_bytes)
            + kept.tail.decode("utf-8", "replace")
        )

    def note(self, text: str, withdrawn: bool = False) -> None:
        """Say something of how the cell is run on this rank, once; or no more."""
        if (text in self.notices) == withdrawn:
            self.notices.remove(text) if withdrawn else self.notices.append(text)

    @property
    def own_error(self) -> m.CellError | None:
        """The rank's error, unless it was blocked by another: then the group was taken from under it."""
        return None if self.verdict == "interrupted" and self.death else self.error

    def check_order(self, from_agent: bool, seq: int) -> None:
        """Count what is missing between two messages of one sender."""
        expected = self._next_seq.get(from_agent)
        if expected is not None and seq != expected:
            self.lost_messages += abs(seq - expected)
        self._next_seq[from_agent] = seq + 1

    def __repr__(self) -> str:
        return f"<rank {self.rank}: {self.verdict or 'running'}>"


class RankSnapshot(Struct, frozen=True):
    """What a view needs of one rank; later output does not change it."""

    rank: int
    verdict: Verdict | None
    segments: list[Segment]
    error: m.CellError | None
    death: str
    notices: tuple[str, ...]


OWN_FAULTS: tuple[Verdict, ...] = ("died", "error", "unknown")
"""Of a rank that failed of itself, deaths first: the others were stopped or blocked by something else."""
_CAUSES_FIRST: list[Verdict | None] = ["died", "error", "unknown", "interrupted", "not-run", None]
_AT_ONCE_S = 1.0


def causes_first(failed: Iterable[RankRecord]) -> list[RankRecord]:
    """A death explains the others' exceptions, an exception those that come later, and who was interrupted
    explains nothing. What comes within a second of the one before came at once, in the order of ranks: what
    is saved of a cell must be the same in its next run.
    """
    ordered = sorted(failed, key=lambda r: (_CAUSES_FIRST.index(r.verdict), r.duration_s or 0.0))
    last, wave, waves = 0.0, 0, {}
    for r in ordered:
        after_s = r.duration_s or 0.0
        wave += after_s > last + _AT_ONCE_S
        last = after_s
        waves[r.rank] = wave
    return sorted(ordered, key=lambda r: (_CAUSES_FIRST.index(r.verdict), waves[r.rank], r.rank))


def snapshot_of(r: RankRecord) -> RankSnapshot:
    return RankSnapshot(r.rank, r.verdict, r.transcript.copy(), r.own_error, r.death, tuple(r.notices))


def failure_words(r: RankRecord) -> str:
    line = f" (line {r.error.line})" if r.error is not None and r.error.line else ""
    if r.verdict == "interrupted":
        return r.death or f"interrupted{line}"
    if r.error is not None:
        first = next(iter(strip(r.error.evalue).strip().splitlines()), "")
        words = f"{strip(r.error.ename)}: {first}" if first else strip(r.error.ename)
        return words[:300] + (line if line not in first else "")  # which may name it itself
    return r.death or {"interrupted": "interrupted", "not-run": "not run"}.get(r.verdict or "", "no answer")
