"""A thread of the notebook kernel that hears a widget's messages while a cell runs.

Owns one subshell of ipykernel 7. A front end that sends a widget's messages to a subshell of its own
(JupyterLab 4.4) is heard there; but ipykernel 7.4 sends what comes for a widget to wherever the widget
last spoke from, and other front ends know no subshells, so that the messages wait for the cell's end.
What is used here has no public name in ipykernel: where it is missing, nothing is changed.
"""

from __future__ import annotations

from typing import Any

from IPython.core.getipython import get_ipython


class Subshell:
    """Made when the first widget wants to be heard."""

    def __init__(self) -> None:
        kernel = getattr(get_ipython(), "kernel", None)
        channel = getattr(kernel, "shell_channel_thread", None)
        self._channel: Any = channel if getattr(kernel, "_supports_kernel_subshells", False) else None
        self._id: str | None = None
        self._asked = False

    def hear(self, comm: Any) -> None:
        """Have a widget's messages handled while a cell runs, if this notebook kernel can."""
        manager = getattr(self._channel, "manager", None)
        if not (hasattr(comm, "_reply_subshell_for") and hasattr(manager, "_create_subshell")):
            return
        comm._reply_subshell_for = self._route
        if not self._asked:
            self._asked = True
            self._channel.io_loop.add_callback(self._create)

    def _create(self) -> None:
        self._id = self._channel.manager._create_subshell()

    def _route(self, data: Any, asked_for: str | None) -> str | None:
        return asked_for or self._id

    @property
    def usable(self) -> bool:
        """This notebook kernel has subshells."""
        return self._channel is not None

    @property
    def id(self) -> str | None:
        """Its name for ipykernel; None so far, or where there is none."""
        return self._id

    def close(self) -> None:
        """End the thread. Messages that come later are handled between cells."""
        ended, self._id = self._id, None
        if ended is not None:
            self._channel.io_loop.add_callback(self._channel.manager._delete_subshell, ended)
