"""What a cell's output is to a front end: text/plain and text/html, nothing else.

Owns how large it may be. The same snapshot always gives the same bundle, so a notebook can be compared
with a later run of it.
"""

from __future__ import annotations

from functools import partial

from jupyter_ddp.core.record import Snapshot
from jupyter_ddp.view import page, text, wording
from jupyter_ddp.view.blocks import shown
from jupyter_ddp.view.fitting import LIVE, STATIC, STATIC_TEXT, fit

MAX_LIVE_CHARS = LIVE.chars + LIVE.media_chars
"""The most that the HTML of a running cell takes."""
MAX_CHARS = STATIC.chars
"""The most that the HTML of a cell takes, without the images and the HTML that its code displayed."""


def bundle(snapshot: Snapshot, live: bool = False) -> dict[str, str]:
    """The cell's output as a MIME bundle.

    `live`: of a cell that runs. Each rank's state is always shown, and the whole is at most
    MAX_LIVE_CHARS long: the last of what each rank wrote.
    """
    groups = shown(snapshot)
    limits = LIVE if live else STATIC
    return {
        "text/plain": text.write(groups, LIVE if live else STATIC_TEXT, wording.notes(snapshot, live)),
        "text/html": fit(groups, limits, partial(page.write, snapshot=snapshot, live=live)),
    }
