"""Answers a page that is loaded again while a cell runs.

Such a page asks for the state of all widgets, on a channel that the running cell stands in the way of.
Owns the detour of this one question, while a live view is open: to the subshell where the views are
heard. What is used of ipykernel 7 has no public name: where it is missing, the page waits for the
cell's end.
"""

from __future__ import annotations

from typing import Any

from IPython.core.getipython import get_ipython

from jupyter_ddp.kernel.subshell import Subshell

DELIM = b"<IDS|MSG>"
"""Between a message's addresses and its signature (Jupyter's messaging protocol 5)."""
_TARGET = "jupyter.widget.control"
_CONTENT = 4
"""Its place in a message: behind signature, header, parent's header and metadata."""


class LatePages:
    """Between `begin` and `end`, reads what comes on the shell channel before ipykernel does."""

    def __init__(self, subshell: Subshell) -> None:
        self._subshell = subshell
        self._kernel: Any = getattr(get_ipython(), "kernel", None)
        self._channel: Any = getattr(self._kernel, "shell_channel_thread", None)
        self._questions: set[str] = set()

    def begin(self) -> None:
        self._receive_by(self._receive)

    def end(self) -> None:
        self._receive_by(getattr(self._kernel, "shell_channel_thread_main", None))

    def _receive_by(self, receive: Any) -> None:
        known = hasattr(self._kernel, "shell_channel_thread_main") and hasattr(self._channel, "io_loop")
        stream = getattr(self._kernel, "shell_stream", None)
        if known and stream is not None and self._subshell.usable:
            self._channel.io_loop.add_callback(lambda: stream.on_recv(receive, copy=False))

    async def _receive(self, message: list[Any]) -> None:
        to = self._subshell.id
        detour = self._detour(message, to) if to is not None else None
        if detour is None:
            await self._kernel.shell_channel_thread_main(message)
        else:
            self._channel.manager.get_shell_channel_to_subshell_socket(to).send_multipart(detour)

    def _detour(self, message: list[Any], to: str) -> list[bytes] | None:
        """The message as one to that subshell, if it is the question; a comm is opened for it."""
        session = self._kernel.session
        try:
            identities, frames = session.feed_identities(message, copy=False)
            header = session.deserialize(frames, content=False, copy=False)["header"]  # signed as it must be
            if header.get("subshell_id") or header["msg_type"] not in ("comm_open", "comm_msg", "comm_close"):
                return None
            content = session.unpack(frames[_CONTENT].bytes)
        except (ValueError, TypeError, LookupError, AttributeError):
            return None  # ipykernel says what is wrong with it
        if content.get("target_name") == _TARGET:
            self._questions.add(content.get("comm_id", ""))
        if content.get("comm_id") not in self._questions:
            return None
        parts = [frame.bytes for frame in frames[1:]]
        parts[0] = session.pack({**header, "subshell_id": to})
        return [*identities, DELIM, session.sign(parts[:_CONTENT]), *parts]
