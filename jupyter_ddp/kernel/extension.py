"""`%load_ext jupyter_ddp` and its opposite."""

from __future__ import annotations

import sys
import weakref
from types import FrameType
from typing import Any

from IPython.core.extensions import ExtensionManager
from IPython.core.interactiveshell import InteractiveShell

from jupyter_ddp.core.errors import PoolError
from jupyter_ddp.kernel.cluster import Cluster
from jupyter_ddp.kernel.magics import DDPMagics

_TORCH_TIMEOUT_S = 60.0


def load(shell: InteractiveShell) -> None:
    """Register the magics and begin to warm up; returns at once, and can be called again."""
    if _magics(shell) is not None:
        return
    magics = DDPMagics(shell)
    shell.register_magics(magics)
    waiting = _WaitForTorch(shell, magics.cluster)
    shell.events.register("pre_run_cell", waiting)
    try:
        magics.cluster.warm_up()
    except PoolError as error:
        print(f"jupyter_ddp: {error}")  # noqa: T201  # the magics are there, and say the same


def unload(shell: InteractiveShell) -> None:
    """End the pool and forget the magics; harmless when they are not there, and in `%reload_ext`."""
    magics = _magics(shell)
    if magics is None or _is_reload():
        return
    magics.close()
    for kind in ("line", "cell"):
        for name in ("ddp", "rank"):
            shell.magics_manager.magics[kind].pop(name, None)
    shell.magics_manager.registry.pop(DDPMagics.__name__, None)


def _is_reload() -> bool:
    """`%reload_ext` unloads and loads: the pool and its variables are to outlive that.

    IPython tells an extension nothing of it but by who calls.
    """
    code = ExtensionManager.reload_extension.__code__
    frame: FrameType | None = sys._getframe()
    while frame is not None and frame.f_code is not code:
        frame = frame.f_back
    return frame is not None


def _magics(shell: InteractiveShell) -> DDPMagics | None:
    found = shell.magics_manager.registry.get(DDPMagics.__name__)
    return found if isinstance(found, DDPMagics) else None


class _WaitForTorch:
    """Keeps the user's imports from meeting ours halfway: see `TorchImport`."""

    def __init__(self, shell: InteractiveShell, cluster: Cluster) -> None:
        self._shell, self._cluster = weakref.ref(shell), weakref.ref(cluster)

    def __call__(self, info: Any) -> None:
        cluster, shell = self._cluster(), self._shell()
        if cluster is None or shell is None:
            return
        cell = (info.raw_cell or "").lstrip()
        if not cell.startswith(("%%ddp", "%%rank", "%ddp")):  # these wait themselves, as late as they can
            cluster.wait_for_torch(_TORCH_TIMEOUT_S)
        if not cluster.importing_torch:
            shell.events.unregister("pre_run_cell", self)
