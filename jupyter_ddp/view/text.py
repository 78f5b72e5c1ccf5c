"""A cell's output as plain text: what a terminal, a log or a reader of raw JSON sees.

Owns the text/plain form. Never holds a control sequence.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from jupyter_ddp.core.record import Snapshot
from jupyter_ddp.core.topology import named
from jupyter_ddp.view import wording
from jupyter_ddp.view.ansi import strip
from jupyter_ddp.view.blocks import Block, Gap, Lines, Shown, shown
from jupyter_ddp.view.fitting import STATIC_TEXT, Limits, Page, fit
from jupyter_ddp.view.media import Drawn


def text(snapshot: Snapshot) -> str:
    """The cell's output, group by group, without a trailing newline; "" if there is none."""
    return write(shown(snapshot), STATIC_TEXT, wording.notes(snapshot))


def write(groups: list[Shown], limits: Limits, notes: Sequence[str]) -> str:
    """The groups as text within the limits, and the notes."""
    body = fit([Shown(s.group, list(map(_as_lines, s.blocks))) for s in groups], limits, _write)
    return "\n".join([body, *notes] if body else notes)


def _as_lines(block: Block) -> Block:
    return Lines("value", block.plain) if isinstance(block, Drawn) else block


def _write(page: Page) -> str:
    lines: list[str] = []
    silent: list[int] = []
    for one in page.shown:
        if not one.quiet:
            lines.append(f"[{wording.title(one.group)}]")
            lines.extend(line for block in one.blocks for line in _lines(block))
        elif one.group.shown.verdict == "ok":
            silent.extend(one.group.ranks)
        else:
            lines.append(f"[{named(one.group.ranks)}] {wording.state(one.group)}")
    if page.hidden:
        lines.append(wording.hidden(page.hidden))
    if silent and lines:
        lines.append(f"[{named(sorted(silent))}] no output")
    if page.note:
        lines.append(page.note)
    return "\n".join(lines).removesuffix("\n")


def _lines(block: Block) -> Iterator[str]:
    match block:
        case Lines():
            yield from _run(block)
        case Gap():
            yield wording.gap(block.lines, block.outputs)
        case Drawn():
            yield block.plain  # write() has made it Lines


def _run(run: Lines) -> Iterator[str]:
    if head := strip(run.head):
        yield head.removesuffix("\n")
    if run.omitted:
        yield wording.gap(run.omitted)
    if tail := strip(run.tail):
        yield tail.removesuffix("\n")
