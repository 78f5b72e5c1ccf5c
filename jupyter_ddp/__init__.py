"""Notebook cells on every rank of a persistent torch.distributed pool.

    %load_ext jupyter_ddp
    %%ddp -n 4

From Python: `from jupyter_ddp import Cluster`. Importing the package starts nothing and imports
neither torch nor IPython.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

    from jupyter_ddp.core.errors import DDPError, PoolError, UsageError
    from jupyter_ddp.core.record import CellRecord, RankError
    from jupyter_ddp.kernel.cluster import Cluster

__version__ = "0.1.0"
__all__ = ["CellRecord", "Cluster", "DDPError", "PoolError", "RankError", "UsageError"]

_HOMES = {
    "CellRecord": "jupyter_ddp.core.record",
    "Cluster": "jupyter_ddp.kernel.cluster",
    "DDPError": "jupyter_ddp.core.errors",
    "PoolError": "jupyter_ddp.core.errors",
    "RankError": "jupyter_ddp.core.record",
    "UsageError": "jupyter_ddp.core.errors",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def load_ipython_extension(shell: InteractiveShell) -> None:
    """`%load_ext jupyter_ddp`."""
    importlib.import_module("jupyter_ddp.kernel.extension").load(shell)


def unload_ipython_extension(shell: InteractiveShell) -> None:
    """`%unload_ext jupyter_ddp`."""
    importlib.import_module("jupyter_ddp.kernel.extension").unload(shell)
