"""What a rank that was forked early has still to import, as quickly as the forkserver would have."""

from __future__ import annotations

import gc
import importlib.machinery
import sys
from collections.abc import Sequence
from types import ModuleType

_SLOW = "torch._dynamo"
"""The first DistributedDataParallel imports it, and some 800 modules with it. Garbage collections,
which find nothing, take two thirds of that time: docs/speed.md."""


class WithoutCollections:
    """A finder that lets one import run without garbage collections."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name != _SLOW:
            return None
        sys.meta_path.remove(self)
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def without_collections(module: ModuleType) -> None:
            enabled = gc.isenabled()
            gc.disable()
            try:
                execute(module)
            finally:
                if enabled:
                    gc.enable()

        vars(spec.loader)["exec_module"] = without_collections
        return spec

    @classmethod
    def install(cls) -> None:
        """Where the slow module has not been imported yet."""
        if _SLOW not in sys.modules:
            sys.meta_path.insert(0, cls())
