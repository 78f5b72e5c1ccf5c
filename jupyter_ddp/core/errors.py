"""What a user of the package may catch. Each is one line that names the remedy.

`RankError`, which carries a cell's record, is in `core/record.py`.
"""

from __future__ import annotations


class DDPError(Exception):
    """Base of the package's errors. A notebook shows it as one line, without a traceback."""

    def _render_traceback_(self) -> list[str]:
        """IPython's hook for an exception that knows how to show itself."""
        return [f"{type(self).__name__}: {self}"]


class UsageError(DDPError, ValueError):
    """The request makes no sense as it stands: an option, a number of ranks, a target."""


class PoolError(DDPError, RuntimeError):
    """The pool cannot do this now: it did not start, a rank is dead, or another cell runs."""
