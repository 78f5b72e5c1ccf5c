"""What is known of the front end that asked for the cell that runs now."""

from __future__ import annotations

import re
from typing import Any

from IPython.core.getipython import get_ipython

_OF_JUPYTER_CLIENT = re.compile(r"[0-9a-f-]+_\d+_\d+", re.IGNORECASE)
"""A message id that Python's Session made (session, process, number). A browser's is a UUID."""


def request() -> dict[str, Any]:
    """Its request as it came: header, metadata, content; empty where there is no notebook kernel."""
    kernel = getattr(get_ipython(), "kernel", None)
    parent = {} if kernel is None else kernel.get_parent()
    return parent if isinstance(parent, dict) else {}


def content(asked: dict[str, Any]) -> dict[str, Any]:
    """What it asks for."""
    found = asked.get("content")
    return found if isinstance(found, dict) else {}


def is_terminal() -> bool:
    """IPython by itself, or jupyter console: what was printed stands there, and can be read at once."""
    shell = get_ipython()
    if shell is None or getattr(shell, "kernel", None) is None:
        return shell is not None
    asked = request()
    return bool(content(asked).get("allow_stdin", False)) and _is_console(asked)


def somebody_watches(asked: dict[str, Any]) -> bool:
    """There is somebody before the front end, who can watch and click, and it can redraw what it shows.

    One that can answer questions has somebody before it. A terminal is written to once: jupyter console
    ignores changes of a display, and would be left with what was there first.
    """
    return bool(content(asked).get("allow_stdin", False)) and not _is_console(asked)


def _is_console(asked: dict[str, Any]) -> bool:
    """It talks through jupyter_client, and of no cell: JupyterLab's requests and VS Code's name theirs.

    It asks with jupyter_client's defaults; who asks in another way is another program.
    """
    if "cellId" in (asked.get("metadata") or {}) or not content(asked).get("stop_on_error", False):
        return False
    return _OF_JUPYTER_CLIENT.fullmatch(str((asked.get("header") or {}).get("msg_id", ""))) is not None
