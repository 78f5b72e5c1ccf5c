"""`import torch` in the notebook kernel's process, begun before the user waits for it."""

from __future__ import annotations

import importlib
import threading


class TorchImport:
    """One import in the background. Whoever wants torch in this process waits for its end first.

    Two threads that enter torch's own import cycles at different places can meet in a deadlock, which
    Python resolves by handing out half-initialised modules: so no user code runs meanwhile.
    """

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None

    def begin(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._import, name="jupyter_ddp import torch", daemon=True)
            self._thread.start()

    def _import(self) -> None:
        try:
            importlib.import_module("torch.distributed")
            importlib.import_module("jinja2")  # for the first cell that shows something
            importlib.import_module("anywidget")  # and for the first that does so while it runs
        except ImportError:
            pass  # the user's own import, or the pool's start, will say so where it is read

    def wait(self, timeout_s: float) -> None:
        if self._thread is not None:
            self._thread.join(timeout_s)

    @property
    def busy(self) -> bool:
        return self._thread is not None and self._thread.is_alive()
