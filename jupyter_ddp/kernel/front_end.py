"""What is known of the front end that asked for the cell that runs now."""

from __future__ import annotations

from typing import Any

from IPython.core.getipython import get_ipython


def request() -> dict[str, Any]:
    """The content of its request; empty where there is no notebook kernel."""
    kernel = getattr(get_ipython(), "kernel", None)
    content = {} if kernel is None else kernel.get_parent().get("content", {})
    return content if isinstance(content, dict) else {}


def is_terminal() -> bool:
    """IPython without a notebook kernel: what was printed stands there, and can be read at once."""
    shell = get_ipython()
    return shell is not None and getattr(shell, "kernel", None) is None


def somebody_watches(asked: dict[str, Any] | None = None) -> bool:
    """A front end that can answer questions has somebody before it, who can watch and click."""
    return bool((request() if asked is None else asked).get("allow_stdin", False))
