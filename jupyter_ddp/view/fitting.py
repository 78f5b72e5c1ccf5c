"""Keeps what is shown within a size: of each group less, the end rather than the start.

Owns the limits. Never leaves anything out without saying how much, and never touches what fits.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

from jupyter_ddp.core.long_lines import end_of
from jupyter_ddp.view.ansi import strip
from jupyter_ddp.view.blocks import Block, Gap, Lines, Shown
from jupyter_ddp.view.media import Drawn

BLOCK_CHARS = 120
"""What the markup of a further piece of a group takes, about."""
GROUP_CHARS = 200
"""The least that a group takes, about, with the markup of one piece."""
SAMPLE = 80
"""Of more groups than these, about so many are written first, to see what they take."""

LINE_CHARS = 14
"""What each line takes in a notebook's file besides its characters: a line of JSON with its indentation."""


class Limits(NamedTuple):
    """Characters of a page in a notebook's file: of its text with all markup, and of media beside that."""

    chars: int
    media_chars: int
    head_share: float
    """The part of a shortened text that is taken from its start."""
    note: str
    """What is said of a page that is not whole, and how one comes to the rest."""


STATIC = Limits(
    500_000,
    10_000_000,
    1 / 3,
    "Shortened to keep the notebook small; %ddp log writes all of the text to a file.",
)
STATIC_TEXT = STATIC._replace(chars=300_000)
"""Together below 1 MB, though a thousand ranks differ; figures are the user's own, and may take more."""
LIVE = Limits(
    28_000,
    12_000,
    0.0,
    "Shortened while the cell runs; when it has ended, %ddp log writes all of the text to a file.",
)
"""Together 40,000: a live page is sent again up to ten times a second."""


class Page(NamedTuple):
    """What is left to show, the ranks left out whole, and a note that says so (else "")."""

    shown: list[Shown]
    hidden: list[int]
    note: str


def fit(shown: list[Shown], limits: Limits, write: Callable[[Page], str]) -> str:
    """What `write` makes of as much as fits the limits."""
    whole = Page(shown, [], limits.note if any(one.group.has_gap for one in shown) else "")
    if sum(map(_text_chars, shown)) <= limits.chars and sum(map(_media_chars, shown)) <= limits.media_chars:
        text = write(whole)
        if _fits(text, whole, limits):
            return text
    return _write_less(shown, limits, write)


def _write_less(shown: list[Shown], limits: Limits, write: Callable[[Page], str]) -> str:
    """Less text of each group, in few tries; in the end none of it, then fewer groups."""
    most = limits.chars // GROUP_CHARS
    if SAMPLE < len(shown) <= most and (text := _write_at_once(shown, limits, write)):
        return text
    while True:
        least = _page(shown, limits, 0, most)
        shortest = write(least)
        if _fits(shortest, least, limits) or most <= 1:
            break
        most //= 2
    fixed = _written_chars(shortest, least)
    room = min(sum(map(_text_chars, shown)), int(0.9 * (limits.chars - fixed)))
    for _ in range(5):
        page = _page(shown, limits, room, most)
        text = write(page)
        if _fits(text, page, limits):
            return text
        # Escapes and colours make text longer, by a factor that this try has shown.
        grown = max(1, _written_chars(text, page) - fixed)
        room = int(0.9 * room * min(1.0, (limits.chars - fixed) / grown))
    return shortest


def _write_at_once(shown: list[Shown], limits: Limits, write: Callable[[Page], str]) -> str:
    """With as much text as some of many groups say that there is room for; "" where that was too much."""
    some = shown[:: math.ceil(len(shown) / SAMPLE)]
    rooms = 0, limits.chars * len(some) // len(shown)
    least, more = (_page(some, limits, room, len(some)) for room in rooms)
    fixed, longer = (_written_chars(write(page), page) for page in (least, more))
    taken = sum(map(_text_chars, more.shown)) or 1
    grown = max(1.0, (longer - fixed) / taken)
    room = int(0.9 * (limits.chars - fixed / len(some) * len(shown)) / grown)
    page = _page(shown, limits, max(0, room), len(shown))
    text = write(page)
    return text if _fits(text, page, limits) else ""


def _written_chars(text: str, page: Page) -> int:
    return saved_chars(text) - _kept_media_chars(page)


def _fits(text: str, page: Page, limits: Limits) -> bool:
    return _written_chars(text, page) <= limits.chars


def saved_chars(text: str) -> int:
    """About what a text takes in a notebook's file."""
    return len(text) + LINE_CHARS * text.count("\n")


def _kept_media_chars(page: Page) -> int:
    return sum(map(_media_chars, page.shown))


def _text_chars(shown: Shown) -> int:
    texts = [block.chars for block in shown.blocks if isinstance(block, Lines)]
    return sum(texts) + BLOCK_CHARS * max(0, len(texts) - 1)


def _media_chars(shown: Shown) -> int:
    return sum(b.chars for b in shown.blocks if isinstance(b, Drawn))


def _page(shown: list[Shown], limits: Limits, room: int, max_groups: int) -> Page:
    kept, hidden = _choose(shown, max_groups)
    text_room = _level([_text_chars(s) for s in kept], room)
    media_room = _level([_media_chars(s) for s in kept], limits.media_chars)
    less = [_shorten(s, text_room, media_room, limits.head_share) for s in kept]
    return Page(less, hidden, limits.note)


def _choose(shown: list[Shown], max_groups: int) -> tuple[list[Shown], list[int]]:
    """The groups to show, those that failed before others, in their order; and the others' ranks."""
    if len(shown) <= max_groups:
        return shown, []
    by_weight = sorted(range(len(shown)), key=lambda i: (not shown[i].failed, i))
    chosen = set(by_weight[:max_groups])
    hidden = sorted(r for i, s in enumerate(shown) if i not in chosen for r in s.group.ranks)
    return [shown[i] for i in sorted(chosen)], hidden


def _level(sizes: list[int], room: int) -> int:
    """The most that each may take so that all fit the room; small ones leave theirs to the large."""
    for at, size in enumerate(sorted(sizes)):
        share = room // (len(sizes) - at)
        if size > share:
            return share
        room -= size
    return max(sizes, default=0)


def _shorten(shown: Shown, text_room: int, media_room: int, head_share: float) -> Shown:
    """The group's last pieces, as many as there is room for, with gaps where others were."""
    kept: list[Block] = []
    for block in reversed(shown.blocks):
        match block:
            case Drawn() if block.chars <= media_room:
                media_room -= block.chars
                _add(kept, block)
            case Drawn():
                _add(kept, Gap(0, 1))
            case Lines():
                short = _cut(block, text_room, head_share)
                text_room = text_room - block.chars - BLOCK_CHARS if short is block else 0
                _add(kept, short)
            case Gap():
                _add(kept, block)
    return Shown(shown.group, kept[::-1])


def _add(kept: list[Block], block: Block) -> None:
    last = kept[-1] if kept else None
    if isinstance(block, Gap) and isinstance(last, Gap):
        kept[-1] = Gap(last.lines + block.lines, last.outputs + block.outputs)
    else:
        kept.append(block)


def _cut(block: Lines, room: int, head_share: float) -> Lines | Gap:
    """Whole lines from both ends within the room; of one line that is longer than that, its end."""
    if block.chars <= room:
        return block
    if room < 40:
        return Gap(block.n_lines, 0)
    before, after = (block.head, block.tail) if block.omitted else (block.head, block.head)
    head = _whole_lines(before[: int(room * head_share)])
    short = Lines(block.kind, head, 0, _end_of(after, room - len(head)))
    return short._replace(omitted=max(0, block.n_lines - short.n_lines))


def _end_of(text: str, room: int) -> str:
    if len(text) <= room:
        return text
    whole_lines = text[-room:].partition("\n")[2]
    if whole_lines:
        return whole_lines
    # Cut within a line only where no control sequence can be cut in two.
    return end_of(strip(text.rstrip("\n").rpartition("\n")[2]), room // 2)


def _whole_lines(text: str) -> str:
    return text[: text.rfind("\n") + 1]
