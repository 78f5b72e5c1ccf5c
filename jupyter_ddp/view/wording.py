"""The words and signs that both the text and the page use.

Owns the verdicts' glyphs and the one-line texts. Never makes HTML, and never passes on a control
character or a line break of a rank's.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import NamedTuple

from jupyter_ddp.core.rank_record import RankSnapshot
from jupyter_ddp.core.record import Snapshot
from jupyter_ddp.core.topology import named, ranges
from jupyter_ddp.core.verdicts import Verdict
from jupyter_ddp.view.ansi import strip
from jupyter_ddp.view.grouping import Group, notices

GLYPHS: dict[Verdict | None, str] = {
    "ok": "✓",
    "error": "✗",
    "interrupted": "◼",
    "died": "☠",
    "not-run": "–",
    "unknown": "?",
    None: "…",
}
WORDS: dict[Verdict | None, str] = {
    "ok": "ok",
    "error": "error",
    "interrupted": "interrupted",
    "died": "died",
    "not-run": "not run",
    "unknown": "no answer",
    None: "running",
}

FEW_RANKS = 8
"""Up to here a strip shows every rank by itself."""
MANY_CHIPS = 32
"""Above, it shows one chip for each verdict."""
MAX_NUMBERS_CHARS = 200


class Chip(NamedTuple):
    """One entry of the strip: "✗2", or "✓0–1" for ranks in a row."""

    verdict: Verdict | None
    ranks: str

    def __str__(self) -> str:
        return GLYPHS[self.verdict] + self.ranks


def strip_of(snapshot: Snapshot) -> list[Chip]:
    """Every rank's verdict, in as few chips as can be read."""
    if len(snapshot.ranks) <= FEW_RANKS:
        return [Chip(r.verdict, str(r.rank)) for r in snapshot.ranks]
    runs = groupby(enumerate(snapshot.ranks), lambda at: (at[1].verdict, at[1].rank - at[0]))
    chips = [_chip(verdict, [r.rank for _, r in run]) for (verdict, _), run in runs]
    return chips if len(chips) <= MANY_CHIPS else _chip_for_each_verdict(snapshot.ranks)


def _chip(verdict: Verdict | None, run: list[int]) -> Chip:
    return Chip(verdict, f"{run[0]}–{run[-1]}" if len(run) > 1 else str(run[0]))


def _chip_for_each_verdict(ranks: list[RankSnapshot]) -> list[Chip]:
    with_verdict: dict[Verdict | None, list[int]] = {}
    for r in ranks:
        with_verdict.setdefault(r.verdict, []).append(r.rank)
    return [Chip(verdict, numbers(found)) for verdict, found in with_verdict.items()]


def numbers(ranks: list[int]) -> str:
    """The ranks as ranges; of very many ranges the first, and how many ranks there are."""
    words = ranges(ranks)
    if len(words) <= MAX_NUMBERS_CHARS:
        return words
    return f"{words[:MAX_NUMBERS_CHARS].rpartition(',')[0]},… ({len(ranks):,} ranks)"


def title(group: Group) -> str:
    """A group's heading: "rank 2 · ZeroDivisionError", "ranks 0–3 · identical"."""
    parts, shown = [named(group.ranks)], group.shown
    if shown.verdict == "interrupted":
        parts.append(one_line(shown.death) or f"interrupted{_at_line(group)}")
    elif shown.error is not None:
        parts.append(one_line(shown.error.ename, 80) or "error")
    elif shown.verdict not in ("ok", None):
        parts.append(WORDS[shown.verdict])
    if len(group.ranks) > 1:
        parts.append("identical where shown" if group.has_gap else "identical")
    return " · ".join(parts)


def _at_line(group: Group) -> str:
    error = group.shown.error
    return f" (line {error.line})" if error is not None and error.line else ""


def state(group: Group) -> str:
    """What to say of a group that shows nothing: "interrupted (line 4)", "blocked by rank 2"."""
    if group.shown.verdict == "ok":
        return "no output"
    why = one_line(group.shown.death)
    if group.shown.verdict == "interrupted":
        return why or f"interrupted{_at_line(group)}"
    return WORDS[group.shown.verdict] + (f": {why}" if why else "")


def cause(group: Group) -> str:
    """How a group ended that did not end by itself: "☠ rank 2: killed by SIGKILL (line 5)"."""
    why = one_line(group.shown.death) or WORDS[group.shown.verdict]
    return f"{GLYPHS[group.shown.verdict]} {named(group.ranks)}: {why}"


def hidden(ranks: list[int]) -> str:
    """Which ranks were left out whole."""
    return f"{named_in_short(ranks)} not shown"


def named_in_short(ranks: list[int]) -> str:
    """ "ranks 0–63"; of very many ranges the first, and how many ranks there are."""
    return f"rank{'s' * (len(ranks) > 1)} {numbers(ranks)}"


def gap(lines: int, outputs: int = 0) -> str:
    """What was left out: "… 1,234 lines not shown"."""
    counted = [(n, word) for n, word in ((lines, "line"), (outputs, "output")) if n]
    words = " and ".join(f"{n:,} {word}" + "s" * (n != 1) for n, word in counted)
    return f"… {words} not shown"


def as_on(rank: int, last_line: str) -> str:
    """In place of a traceback that `rank` has too, but for its last line (view/live.js has it too)."""
    return f"{last_line}  (traceback as on rank {rank})"


def one_line(text: str, max_chars: int = 500) -> str:
    """A rank's text as one line that does nothing but be read."""
    line = " ".join(strip(text[: 4 * max_chars]).split())
    return line if len(line) <= max_chars else line[: max_chars - 1] + "…"


MAX_NOTES = 20
_MAX_NOTE_CHARS = 400


def asides(hang: str, announced: Sequence[str]) -> list[str]:
    """What the pool says of a cell: what holds it up, and what was done or comes next, one line each."""
    lines = [f"waiting: {one_line(hang, 1000)}"] if hang else []
    return [*lines, *(one_line(text) for text in announced[-MAX_NOTES:])]


def notes(snapshot: Snapshot, live: bool = False) -> list[str]:
    """What was done to the ranks, and remarks on how the cell was run (whose, where not every rank's).

    `live`: and what holds the cell up now.
    """
    lines = asides(snapshot.hang if live else "", snapshot.announced)
    for ranks, notice in notices(snapshot)[:MAX_NOTES]:
        whose = "" if len(ranks) == len(snapshot.ranks) else f" ({named(ranks)})"
        lines.append(f"note{whose}: {one_line(notice)[:_MAX_NOTE_CHARS]}")
    return lines
