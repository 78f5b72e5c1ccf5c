"""Lines that are too long to be shown whole: what is left of them, and how much is missing.

Owns the words in place of what is missing. They count on: a line that was cut, has grown and is cut again
looks as if it had been cut once.
"""

from __future__ import annotations

import re

_GAP = re.compile(r" … ([\d,]{1,20}) characters? not shown … ")
_IN_EACH_GAP = " not shown … "


def is_cut(text: str) -> bool:
    """There is a line in it of which a part is missing."""
    return _IN_EACH_GAP in text and _GAP.search(text) is not None


def without_middle(line: str, max_chars: int) -> str:
    """So many characters of the line, from both its ends, and how many are missing between them."""
    if len(line) <= max_chars:
        return line
    half = max_chars // 2
    whole, missing = line, 0
    if earlier := _GAP.match(line, half):
        missing = _count(earlier)
        whole = line[:half] + line[earlier.end() :]
        if len(whole) <= max_chars:
            return line
    tail_at = len(whole) - (max_chars - half)
    return whole[:half] + _gap(missing + tail_at - half) + whole[tail_at:]


def end_of(line: str, max_chars: int) -> str:
    """The line's last characters, and before them how many are missing."""
    at = len(line) - max_chars
    if at <= 0:
        return line
    missing = at
    for earlier in _GAP.finditer(line) if _IN_EACH_GAP in line else ():
        if earlier.start() < at:
            at = max(at, earlier.end())
            missing = at - len(earlier[0]) + _count(earlier)
    return _gap(missing).lstrip() + line[at:]


def _gap(n_chars: int) -> str:
    return f" … {n_chars:,} character{'s' * (n_chars != 1)} not shown … "


def _count(gap: re.Match[str]) -> int:
    return int(gap[1].replace(",", "") or 0)
