"""What the user's own signal handlers raise: it is raised in a cell's code, and told where there is none.

Owns `_signal.signal` and `_signal.getsignal`, which all ways to set a handler in Python lead through. The
handlers themselves run whenever their signal comes. But what one raises (torch's for SIGCHLD does, when a
DataLoader's worker was killed) must not end a rank that waits for its next cell, nor tear a message in two.
"""

from __future__ import annotations

import _signal
import signal
from collections.abc import Callable
from types import FrameType
from typing import Any

from jupyter_ddp.core.faults import signal_name
from jupyter_ddp.worker.interrupts import InterruptGate

_KEPT_WORDS = 4
"""Of different errors as many are told: a timer may raise between cells for hours."""
_MAX_CHARS = 2000


class SignalHandlers:
    """Used by the main thread alone, where Python runs its signal handlers."""

    def __init__(self, gate: InterruptGate) -> None:
        self._gate = gate
        self._set, self._get = _signal.signal, _signal.getsignal
        self.untold: list[str] = []
        """What was raised where no cell's code ran, until a cell tells it."""

    def install(self) -> None:
        """From now on handlers are wrapped; who asks for one gets the user's own."""
        _signal.signal = self._wrap
        _signal.getsignal = self._unwrapped

    def _wrap(self, number: int, handler: Any) -> Any:
        ours = handler is self._gate.handler
        return _own(self._set(number, handler if ours or not callable(handler) else _Handler(handler, self)))

    def _unwrapped(self, number: int) -> Any:
        return _own(self._get(number))

    def call(self, own: Callable[..., Any], number: int, frame: FrameType | None) -> None:
        """Run a handler of the user's."""
        if self._gate.takes(number):
            own(number, frame)
            return
        try:
            own(number, frame)
        except BaseException as error:  # noqa: BLE001  # whatever it raises has no place to go to
            if not self._gate.keep(error) and number != signal.SIGINT:
                self._note(number, error)

    def _note(self, number: int, error: BaseException) -> None:
        text = f"a handler of {signal_name(number)} raised, outside of a cell's code: {_words(error)}"
        if text not in self.untold and len(self.untold) < _KEPT_WORDS:
            self.untold.append(text)

    def take(self) -> list[str]:
        """What there is to tell, each in a line."""
        told, self.untold = self.untold, []
        return told


class _Handler:
    """What Python calls instead of the user's handler."""

    __slots__ = ("_handlers", "own")

    def __init__(self, own: Callable[..., Any], handlers: SignalHandlers) -> None:
        self.own, self._handlers = own, handlers

    def __call__(self, number: int, frame: FrameType | None) -> None:
        self._handlers.call(self.own, number, frame)


def _own(handler: Any) -> Any:
    return handler.own if isinstance(handler, _Handler) else handler


def _words(error: BaseException) -> str:
    try:
        text = " ".join(str(error).split())[:_MAX_CHARS].encode("utf-8", "backslashreplace").decode()
    except Exception as broken:  # noqa: BLE001  # the user's own __str__ may raise anything
        text = f"(its text could not be made: {type(broken).__name__})"
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
