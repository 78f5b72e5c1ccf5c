"""The record of one cell: an append-only fold over what its ranks said.

Owns one cell's output. `CellRecord` is what the user holds; `snapshot()` is what a view draws from.
"""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from msgspec import Struct

from jupyter_ddp.core import doomed, saved_log
from jupyter_ddp.core import messages as m
from jupyter_ddp.core.errors import DDPError
from jupyter_ddp.core.faults import describe_exit
from jupyter_ddp.core.log import QUOTA_BYTES, WITHOUT_FILE_BYTES, CellLog, size_words
from jupyter_ddp.core.rank_record import (
    OWN_FAULTS,
    RankRecord,
    RankSnapshot,
    Value,
    causes_first,
    failure_words,
    snapshot_of,
)
from jupyter_ddp.core.topology import named
from jupyter_ddp.core.transcript import Rich
from jupyter_ddp.core.verdicts import Verdict

MAX_CAUSES = 3
"""Different causes that a failure's one line names."""


class Snapshot(Struct, frozen=True):
    """What a view needs of a cell, in rank order."""

    ranks: list[RankSnapshot]
    hang: str = ""
    """What holds the cell up now, in one line."""
    announced: tuple[str, ...] = ()
    """What the pool did to the cell's ranks, or is about to do, a line each."""
    causes: tuple[int, ...] = ()
    """The ranks that failed of themselves, the first cause first."""


class CellRecord:
    """What a cell did on each of its ranks: `record[2].stdout`, `.value`, `.error`, `.verdict`.

    `open_file` gives what takes the ranks' output when it is much, `quota_bytes` of it at most; `lock` is
    held wherever the record changes or is read.
    """

    def __init__(
        self,
        cell: int,
        ranks: Iterable[int],
        open_file: Callable[[], BinaryIO] = io.BytesIO,
        lock: contextlib.AbstractContextManager[object] | None = None,
        quota_bytes: int = QUOTA_BYTES,
    ) -> None:
        self.cell = cell
        self.prompt = 0
        """The number that stands beside the cell in the notebook; 0 where it is in none."""
        self._lock = contextlib.nullcontext() if lock is None else lock
        self.log = CellLog(open_file, quota_bytes)
        self._quota_bytes = quota_bytes
        self._ranks = {rank: RankRecord(rank, self.log, self._lock) for rank in sorted(ranks)}
        self._lost: list[int] = []
        """Ranks that died in this cell, or are doomed since."""
        self._freed: set[int] = set()
        """Ranks that were taken out of a wait; for what, is known at the cell's end."""
        self.held_up = ""
        """What holds the cell up now, in one line."""
        self.announced: list[str] = []
        """What the pool did to the ranks in this cell, or is about to do, a line each."""
        self.version = 0
        """Counts what was folded: a view that saw this version has seen everything."""

    # -- what the user reads ---------------------------------------------------------------------

    def __getitem__(self, rank: int) -> RankRecord:
        """Raises KeyError for a rank that the cell was not for."""
        if rank not in self._ranks:
            raise KeyError(f"the cell was not for rank {rank!r}; it was for {named(self.ranks, '-')}")
        return self._ranks[rank]

    def __iter__(self) -> Iterator[RankRecord]:
        return iter(self._ranks.values())

    def __len__(self) -> int:
        return len(self._ranks)

    @property
    def ranks(self) -> tuple[int, ...]:
        """The ranks that the cell was for, ascending."""
        return tuple(self._ranks)

    @property
    def verdicts(self) -> dict[int, Verdict | None]:
        return {r.rank: r.verdict for r in self}

    @property
    def ok(self) -> bool:
        """The cell ended well on every rank."""
        return all(r.verdict == "ok" for r in self)

    def __repr__(self) -> str:
        kinds: dict[str, list[int]] = {}
        for r in self:
            kinds.setdefault(r.verdict or "running", []).append(r.rank)
        return f"<cell {self.cell}: " + ", ".join(f"{named(v)} {k}" for k, v in kinds.items()) + ">"

    def save(self, path: str | os.PathLike[str]) -> saved_log.Saved:
        """Write all that the ranks wrote to a new text file, by sections `[rank 0]` and `[rank 0 · stderr]`.

        Raises FileExistsError for a file that is there, OSError where it cannot be written: then none is
        left.
        """
        place = Path(path)
        file = place.open("xb")
        try:
            with file:
                with self._lock:
                    streams = self.log.streams()
                return saved_log.write(streams, file, self._lock)
        except BaseException:  # an interrupt too
            place.unlink()
            raise

    def raise_for_error(self) -> None:
        """Raise RankError, with the cause in one line, unless the cell ended well on every rank."""
        if not self.ok:
            raise RankError(self.summary(), self)

    def summary(self) -> str:
        """The cause of a cell's failure in one line, the first cause first."""
        failed = causes_first(r for r in self if r.verdict != "ok")
        groups = _grouped((failure_words(r), r.rank) for r in failed)
        causes = [f"{named(ranks, '-')}: {words}" for words, ranks in groups[:MAX_CAUSES]]
        if rest := [rank for _, ranks in groups[MAX_CAUSES:] for rank in ranks]:
            causes.append(f"{named(rest, '-')} failed too")
        if self._lost:
            lost = named(sorted(self._lost), "-")
            others = ", the others keep their variables" * (len(self._lost) < len(self._ranks))
            causes.append(f"%ddp heal replaces {lost}{others}")
        return "; ".join(causes)

    def failure_of(self, rank: int) -> str:
        """Why the cell did not end well on this rank, in one line; "" if it did, or has not ended."""
        r = self._ranks[rank]
        return "" if r.verdict in (None, "ok") else failure_words(r)

    # -- how it grows ----------------------------------------------------------------------------

    def fold(self, message: m.CellMessage) -> None:
        """Add one message of this cell. What comes from a rank that the cell is not for is left out."""
        with self._lock:
            if isinstance(message, m.GoodEnds):
                for end in message.ends:
                    self._fold_from(end)
            else:
                self._fold_from(message)

    def _fold_from(self, message: m.RankCellMessage) -> None:
        if (r := self._ranks.get(message.rank)) is not None:
            self.version += 1
            r.changed_at = self.version
            # What comes late comes between the messages of later cells.
            if r.verdict is None and message.cell == self.cell:
                r.check_order(isinstance(message, m.FdOutput), message.seq)
            if isinstance(message, m.CellFinished):  # first: a short cell has nothing else
                self._finish(r, message)
                return
            match message:
                case m.Output() | m.FdOutput():
                    self.log.append(r.rank, message.stream, message.data)
                    if self.log.full:
                        r.note(self._limit())
                    source = "fd" if isinstance(message, m.FdOutput) else "python"
                    r.transcript.write(message.stream, source, message.data)
                case m.Display():
                    self._fold_display(r, message)
                case m.ClearOutput():
                    r.transcript.clear(message.wait)
                case m.Notice():
                    r.note(message.text, message.withdrawn)

    def _finish(self, r: RankRecord, message: m.CellFinished) -> None:
        if r.verdict is not None:
            return  # what ended once does not end otherwise
        r.error, r.duration_s = message.error, message.duration_s
        if message.doomed:
            self._lost.append(r.rank)
            r.note(doomed.note(r.rank, message.doomed))
        if message.verdict == "interrupted" and message.group_broken:
            self._freed.add(r.rank)
            r.death = "freed from its wait" + _at_line(r)
        self._end(r, message.verdict)

    def _limit(self) -> str:
        """What is kept of a cell that has written more than can be."""
        if (error := self.log.failure) is not None:
            name = errno.errorcode.get(error.errno or 0, "")
            why, last = f"{os.strerror(error.errno or 0)} ({name})", WITHOUT_FILE_BYTES // 2**20
            return f"output can be kept in memory alone, the last {last} MiB: {why}"
        return f"the cell's log is full ({size_words(self._quota_bytes)}): head and tail are kept"

    def advise(self, text: str) -> None:
        """A remark on the cell as a whole, one line, from before it runs."""
        with self._lock:
            self.version += 1
            for r in self:
                r.changed_at = self.version
                r.note(text)

    def _fold_display(self, r: RankRecord, message: m.Display) -> None:
        try:
            rich = _rich(message)
        except (ValueError, RecursionError) as error:
            r.notices.append(f"an output could not be read: {error}")
            return
        if message.update:
            r.transcript.update(rich)
        else:
            r.transcript.display(rich)
        if message.result:
            r.value = Value(rich.data, rich.metadata)

    def displays(self, rank: int, display_id: str) -> bool:
        """The rank has displayed something under this id in this cell, and has not cleared it."""
        with self._lock:
            r = self._ranks.get(rank)
            return r is not None and any(
                isinstance(s, Rich) and s.display_id == display_id for s in r.transcript
            )

    def update_display(self, message: m.Display) -> bool:
        """Take a later cell's update of what was displayed in this one; False where nothing was."""
        with self._lock:
            try:
                rich = _rich(message)
            except (ValueError, RecursionError):
                return True  # the cell that it came from says so
            r = self._ranks.get(message.rank)
            if r is None or not r.transcript.update(rich):
                return False
            self.version += 1
            r.changed_at = self.version
            return True

    def note(self, rank: int, text: str) -> None:
        """Say of a rank what no message of its own says."""
        with self._lock:
            self.version += 1
            self._ranks[rank].changed_at = self.version
            self._ranks[rank].note(text)

    def take_back(self, rank: int, text: str) -> None:
        """What was said of a rank holds no more."""
        with self._lock:
            self.version += 1
            self._ranks[rank].changed_at = self.version
            notices = self._ranks[rank].notices
            notices[:] = [notice for notice in notices if notice != text]

    def die(self, exit: m.WorkerExited, after_s: float | None = None) -> None:
        """The rank's process ended before the cell ended on it, so many seconds after it began."""
        with self._lock:
            r = self._ranks[exit.rank]
            if r.verdict is not None:
                return
            self.version += 1
            r.changed_at = self.version
            r.death, r.duration_s = describe_exit(exit), after_s
            self._lost.append(exit.rank)
            self._end(r, "died")

    def settle(self, rank: int, verdict: Verdict, why: str = "") -> None:
        """Give a verdict that no message of the rank gave."""
        with self._lock:
            self.version += 1
            r = self._ranks[rank]
            r.changed_at = self.version
            r.death = why + (_at_line(r) if verdict == "interrupted" else "")
            self._freed.discard(rank)
            self._end(r, verdict)

    def conclude(self, hang: str = "") -> None:
        """The cell has ended: nobody gives another reason. Who was freed from a wait was interrupted.

        `hang`: why the ranks that it was interrupted on have no other end, where it would have hung.
        """
        self.hang("")
        if not (self._freed or hang):
            return
        with self._lock:
            self._change_all()
            while self._freed:
                self._ranks[self._freed.pop()].death = ""
            for r in self:
                if r.verdict == "interrupted" and not r.death:
                    r.death = hang

    def hang(self, text: str) -> None:
        """The cell is held up: who waits for whom, in one line; "": it goes on."""
        if text == self.held_up:
            return
        with self._lock:
            self._change_all()
            self.held_up = text

    def announce(self, text: str, withdrawn: bool = False) -> None:
        """The pool is about to do something to the cell's ranks; or (`withdrawn`) it does not."""
        with self._lock:
            if (text in self.announced) == withdrawn:
                self._change_all()
                self.announced.remove(text) if withdrawn else self.announced.append(text)

    def warn(self, text: str) -> None:
        """Something makes the cell's results doubtful, on whatever rank."""
        with self._lock:
            self._change_all()
            for r in self:
                r.note(text)

    def _change_all(self) -> None:
        self.version += 1
        for r in self:
            r.changed_at = self.version

    def _end(self, r: RankRecord, verdict: Verdict) -> None:
        r.verdict = verdict
        r.transcript.finish()

    @property
    def silent(self) -> bool:
        """There is nothing to show: no output, no notice, no end but a good one."""
        return not (self.held_up or self.announced) and all(
            r.verdict in (None, "ok") and not (r.transcript or r.error or r.death or r.notices) for r in self
        )

    @contextlib.contextmanager
    def reading(self) -> Iterator[None]:
        """Nothing is folded meanwhile: for a view that reads what is new in place, without a copy."""
        with self._lock:
            yield

    def snapshot(self) -> Snapshot:
        """An immutable copy of what there is to show."""
        with self._lock:
            causes = causes_first(r for r in self if r.verdict in OWN_FAULTS)
            return Snapshot(
                [snapshot_of(r) for r in self],
                self.held_up,
                tuple(self.announced),
                tuple(r.rank for r in causes),
            )

    def close(self) -> None:
        """Let go of the log. Streams read as empty afterwards."""
        with self._lock:
            self.log.close()


class RankError(DDPError, RuntimeError):
    """A cell did not end well on some rank. `record` holds what every rank wrote and raised."""

    def __init__(self, message: str, record: CellRecord | None = None) -> None:
        super().__init__(message)
        self.record = record


def _grouped(pairs: Iterable[tuple[str, int]]) -> list[tuple[str, list[int]]]:
    groups: dict[str, list[int]] = {}
    for words, rank in pairs:
        groups.setdefault(words, []).append(rank)
    return list(groups.items())


def _rich(message: m.Display) -> Rich:
    """Raises ValueError or RecursionError for what is no JSON that can be read."""
    return Rich(json.loads(message.data), json.loads(message.metadata), message.display_id, message.result)


def _at_line(r: RankRecord) -> str:
    return f" (line {r.error.line})" if r.error and r.error.line else ""
