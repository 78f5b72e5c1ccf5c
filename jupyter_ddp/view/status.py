"""The pool as a table: `%ddp status`, what is saved of a panel, and in one line while it starts."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Protocol

from jupyter_ddp.view.panel import (
    NO_POOL,
    PanelRank,
    duration,
    lost_words,
    memory_words,
    place_words,
    state_word,
    title,
)
from jupyter_ddp.view.wording import one_line

_CHIPS = 32
"""Up to so many ranks are shown one by one."""
_MAX_ERROR_CHARS = 300

_TEXT = "color:var(--jp-content-font-color1,#1a1a1a)"
_CELL = "text-align:left;padding:2px 12px 2px 0"
# In JupyterLab the panel stands right below its table. While it lives it takes the table's place; where
# it is gone (no notebook kernel), what JupyterLab says of that is of no use to anybody.
_CHILD = ".jp-OutputArea-child"
_WITH_TABLE = f"{_CHILD}:has(.jupyter-ddp-table)"
_STYLE = (
    f"<style>{_WITH_TABLE}:has(+{_CHILD} .jddp-panel),"
    f"{_WITH_TABLE}+{_CHILD}:has(>.lm-Panel):not(:has(.jddp-panel)){{display:none}}</style>"
)


class RankLine(Protocol):
    """What one line needs of a rank, while the pool starts."""

    @property
    def rank(self) -> int: ...
    @property
    def device(self) -> str: ...
    @property
    def state(self) -> str: ...


def status_text(ranks: Sequence[PanelRank], backend: str, phase: str) -> str:
    """The table in a terminal, with processes, ages and memory; without a pool, how to start one."""
    columns = {
        "rank": [str(r.rank) for r in ranks],
        "pid": [str(r.pid) for r in ranks],
        "device": [r.device for r in ranks],
        "state": [state_word(r) for r in ranks],
        "age": [duration(r.age_s) for r in ranks],
        "memory": [memory_words(r) for r in ranks],
        "at": [place_words(r) for r in ranks],
        "last error": _errors(ranks),
    }
    return _text(ranks, backend, phase, columns)


def saved_table(ranks: Sequence[PanelRank], backend: str, phase: str) -> dict[str, str]:
    """What is saved of a panel: the table, which steps aside in JupyterLab while a panel stands below it."""
    table = status_table(ranks, backend, phase)
    return table | {"text/html": f'{_STYLE}<div class="jupyter-ddp-table">{table["text/html"]}</div>'}


def status_table(ranks: Sequence[PanelRank], backend: str, phase: str) -> dict[str, str]:
    """The table in a notebook, as a MIME bundle: what is the same in the next run, for it may be saved."""
    columns = {
        "rank": [str(r.rank) for r in ranks],
        "device": [r.device for r in ranks],
        "state": [state_word(r) for r in ranks],
        "last error": _errors(ranks),
    }
    if phase == "forming":
        phase = "ready"  # as it is in a moment: whether that has passed is chance
    page = _html(title(ranks, backend, phase), _rows(columns) if ranks else [])
    return {"text/plain": _text(ranks, backend, phase, columns), "text/html": page}


def _errors(ranks: Sequence[PanelRank]) -> list[str]:
    return [one_line(r.error, _MAX_ERROR_CHARS) for r in ranks]


def _rows(columns: dict[str, list[str]]) -> list[list[str]]:
    """Names, then one row for each rank; a column without anything in it is left out."""
    kept = {name: cells for name, cells in columns.items() if any(cells)}
    return [list(kept), *(list(row) for row in zip(*kept.values(), strict=True))]


def _text(ranks: Sequence[PanelRank], backend: str, phase: str, columns: dict[str, list[str]]) -> str:
    if not ranks:
        return NO_POOL
    rows = _rows(columns)
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    last = rows[0][-1] == "last error"
    lines = []
    for row in rows:
        cells = [cell.rjust(width) for cell, width in zip(row, widths, strict=True)]
        if last:
            cells[-1] = row[-1]
        lines.append("  ".join(cells).rstrip())
    lost = lost_words(ranks, "-")
    state = f"{lost}: %ddp heal" if lost else phase
    return "\n".join([f"{len(ranks)} rank{'s' if len(ranks) != 1 else ''}, {backend}, {state}", *lines])


def _html(heading: str, rows: list[list[str]]) -> str:
    """As `view.page` writes: no id, and it reads well without any style."""
    head, *body = rows or [[]]
    names = "".join(f'<th scope="col" style="{_CELL}">{escape(name)}</th>' for name in head)
    lines = ("".join(f'<td style="{_CELL}">{escape(cell)}</td>' for cell in row) for row in body)
    table = "".join(f"<tr>{line}</tr>\n" for line in [names, *lines]) if rows else ""
    return (
        f'<div style="{_TEXT}">\n'
        f'<p style="margin:0 0 6px"><strong>{escape(heading)}</strong></p>\n'
        + (f'<table style="margin:0">\n{table}</table>\n' if table else "")
        + "</div>"
    )


_STEPS = {"waiting": "·", "forked": "◔", "connected": "◑"}
_TIME_SHOWN_AFTER_S = 2.0


def progress_text(seconds: float, ranks: Sequence[RankLine]) -> str:
    """A starting pool in one line: "starting 4 ranks: ✓0 ✓1 ◑2 ·3", with the time once it takes long.

    Where ranks have to share GPUs it says so: "starting 4 ranks on 2 GPUs".
    """
    gpus = {r.device for r in ranks if r.device != "cpu"}
    shared = f" on {len(gpus)} GPU{'s' if len(gpus) != 1 else ''}" if 0 < len(gpus) < len(ranks) else ""
    count = f"starting {len(ranks)} rank{'s' if len(ranks) != 1 else ''}{shared}"
    time = f" ({seconds:.0f} s)" if seconds >= _TIME_SHOWN_AFTER_S else ""
    if not ranks:
        return f"starting the ranks{time}: importing torch"
    if all(r.state == "waiting" for r in ranks):
        return f"{count}{time}: importing torch"
    if len(ranks) > _CHIPS:
        ready = sum(r.state not in _STEPS for r in ranks)
        return f"{count}{time}: {ready} ready"
    return f"{count}{time}: " + " ".join(f"{_STEPS.get(r.state, '✓')}{r.rank}" for r in ranks)
