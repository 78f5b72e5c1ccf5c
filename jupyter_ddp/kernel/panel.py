"""`%ddp`'s panel: a widget that shows the cluster while it works, and acts on it.

Owns the open panels, and the thread that keeps them up to date while there are any. Imported when the
first panel is opened: the widgets' library takes a while.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Any, Protocol

import anywidget
import traitlets
from IPython.display import display

from jupyter_ddp.core.errors import DDPError
from jupyter_ddp.kernel.subshell import Subshell
from jupyter_ddp.view import panel as view
from jupyter_ddp.view.panel import CLOSED, panel_state
from jupyter_ddp.view.status import saved_table

UPDATE_S = 1.0
BEAT_S = 5.0
"""So often a panel hears something though nothing changes: else it says that there is no news."""
MAX_PANELS = 8
"""Open panels that are kept up to date; a notebook that opens more lets go of its oldest."""
_FILES = Path(view.__file__).parent


class Watched(Protocol):
    """What a panel needs of a cluster."""

    @property
    def backend(self) -> str: ...
    @property
    def phase(self) -> str: ...
    @property
    def last_cell(self) -> int: ...
    def status(self) -> list[Any]: ...
    def watch_usage(self, interval_s: float) -> None: ...
    def interrupt(self) -> None: ...
    def restart(self) -> str: ...
    def stop(self) -> None: ...
    def where(self) -> str: ...
    def heal(self) -> str: ...


class Panel(anywidget.AnyWidget):
    """One panel in a notebook. It knows its feed, which alone knows the cluster."""

    _esm = _FILES / "panel.js"
    _css = _FILES / "panel.css"
    state = traitlets.Dict().tag(sync=True)

    def __init__(self, feed: Feed) -> None:
        super().__init__(state=feed.state())
        self._feed = feed
        self.on_msg(self._on_custom)

    def _on_custom(self, _: Any, content: dict[str, Any], __: Any) -> None:
        self._feed.act(str(content.get("do", "")), str(content.get("ask", "")))

    def _ipython_display_(self) -> None:
        """Twice: the table, which is what a saved notebook shows, and the panel, which takes its place."""
        display(self._feed.table(), raw=True)  # type: ignore[no-untyped-call]  # IPython has no types here
        bundle = self._repr_mimebundle_()
        if bundle is not None:
            data, metadata = bundle if isinstance(bundle, tuple) else (bundle, {})
            widget = {kind: view for kind, view in data.items() if kind != "text/plain"}
            display(widget, metadata=metadata, raw=True)  # type: ignore[no-untyped-call]  # IPython has no types here


class Feed:
    """Keeps the panels of one cluster up to date, and does what their buttons ask.

    All that they are told comes from its one thread, as one state: they cannot but agree.
    """

    def __init__(self, cluster: Watched) -> None:
        self._cluster = cluster
        self._panels: deque[Panel] = deque()
        self._answer = _answer()
        self._holds: Callable[[], bool] = lambda: True
        """Whether it is no old news yet."""
        self._changed = threading.Condition()
        self._stale = self._closing = False
        self._thread: threading.Thread | None = None
        self._acting = threading.Lock()
        self._subshell = Subshell()

    def open(self) -> Panel:
        """A new panel; it shows what the others show. What was said before is old news by now."""
        if not self._answer["busy"]:
            self._answer = _answer()
        panel = Panel(self)
        self._subshell.hear(panel.comm)
        with self._changed:
            self._panels.append(panel)
            surplus = [self._panels.popleft() for _ in range(len(self._panels) - MAX_PANELS)]
            if self._thread is None or not self._thread.is_alive():
                self._cluster.watch_usage(UPDATE_S)
                self._thread = threading.Thread(target=self._serve, name="jupyter_ddp panel", daemon=True)
                self._thread.start()
        for old in surplus:
            old.close()
        return panel

    def state(self) -> dict[str, Any]:
        cluster = self._cluster
        state = panel_state(cluster.status(), cluster.backend, cluster.phase)
        return state | {"answer": self._current_answer(), "beat": int(time.monotonic() / BEAT_S)}

    def table(self) -> dict[str, str]:
        """The same as a table, as a MIME bundle."""
        cluster = self._cluster
        return saved_table(cluster.status(), cluster.backend, cluster.phase)

    def refresh(self) -> None:
        """Show what there is now, at once."""
        with self._changed:
            self._stale = True
            self._changed.notify_all()

    def close(self) -> None:
        """Let go of the panels; they say so."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
            thread, self._thread = self._thread, None
        if thread is not None and thread is not threading.current_thread():
            thread.join(timeout=5)
        self._show(panel_state([], "", "") | {"title": CLOSED, "answer": _answer()})
        self._subshell.close()

    # -- its thread ------------------------------------------------------------------------------

    def _serve(self) -> None:
        try:
            while not self._closing:
                with self._changed:
                    self._stale = False
                self._show(self.state())
                with self._changed:
                    self._changed.wait_for(lambda: self._stale or self._closing, UPDATE_S)
        except Exception as error:  # noqa: BLE001  # a defect of ours must not look like no news
            reason = f"this panel failed ({type(error).__name__}: {error}); %ddp opens a new one"
            self._show(panel_state([], "", "") | {"title": reason, "answer": _answer()})
        finally:
            self._cluster.watch_usage(0)

    def _show(self, state: dict[str, Any]) -> None:
        for panel in list(self._panels):
            if panel.comm is None:
                continue
            try:
                panel.state = state
            except Exception:  # noqa: BLE001  # who observes one panel of the user's must not end the others
                self._panels.remove(panel)

    # -- what the buttons do ---------------------------------------------------------------------

    def act(self, command: str, ask: str) -> None:
        """Do what a button asks; the answer goes to every panel. One at a time, but for Interrupt.

        `ask`: the asking view's name for this, by which it knows the answer.
        """
        doing = {
            "interrupt": ("interrupting", self._interrupt),
            "where": ("asking the ranks", self._where),
            "heal": ("healing", self._heal),
            "restart": ("restarting", self._restart),
            "stop": ("stopping", self._stop),
        }.get(command)
        if doing is None:
            return
        words, do = doing
        if command == "interrupt":
            holds = _as_long_as(self._cell_and_phase)  # first: when it has been sent, the cell may have ended
            self._say(self._outcome(do), "", ask, holds)
        elif not self._acting.acquire(blocking=False):
            self._say("another button's work is not done yet; wait for it", "", ask)
        else:
            self._say("", words, ask)
            # Not in the front end's thread: another button may be pressed meanwhile.
            work = threading.Thread(
                target=self._work, args=(do, ask), name="jupyter_ddp panel button", daemon=True
            )
            work.start()

    def _work(self, do: Any, ask: str) -> None:
        try:
            said = self._outcome(do)
        finally:
            self._acting.release()
        self._say(said, "", ask)

    def _outcome(self, do: Any) -> str:
        try:
            return str(do() or "")
        except DDPError as error:
            return str(error)

    def _say(self, text: str, busy: str, ask: str, holds: Callable[[], bool] | None = None) -> None:
        self._holds = holds or _as_long_as(self._cell_and_processes)
        self._answer = _answer(text, busy, ask)
        self.refresh()

    def _current_answer(self) -> dict[str, Any]:
        """Without words that hold no more; who asked still learns that there was an answer."""
        answer = self._answer
        return answer if answer["busy"] or self._holds() else _answer(ask=answer["ask"])

    def _cell_and_phase(self) -> Hashable:
        return self._cluster.last_cell, self._cluster.phase

    def _cell_and_processes(self) -> Hashable:
        return self._cluster.last_cell, tuple(rank.pid for rank in self._cluster.status())

    def _interrupt(self) -> str:
        self._cluster.interrupt()
        return "interrupt sent; press again to go one step further"

    def _where(self) -> str:
        return self._cluster.where()

    def _heal(self) -> str:
        return self._cluster.heal()

    def _restart(self) -> str:
        return self._cluster.restart()

    def _stop(self) -> str:
        self._cluster.stop()
        return "the pool was stopped"


def _answer(text: str = "", busy: str = "", ask: str = "") -> dict[str, Any]:
    """What is said below the table: of what was asked for last, or (`busy`) what is being done for it."""
    return {"text": text, "busy": busy, "ask": ask}


def _as_long_as(what: Callable[[], Hashable]) -> Callable[[], bool]:
    """True until `what` gives something else than now."""
    then = what()
    return lambda: what() == then
