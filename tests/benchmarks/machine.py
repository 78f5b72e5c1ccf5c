"""What the figures were measured on and with."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from pathlib import Path

import psutil

_PACKAGES = ("torch", "ipython", "ipykernel", "jupyter_client", "ipyparallel", "pyzmq", "msgspec")


def machine() -> str:
    """One line: cores, processor, memory, GPUs, system."""
    cores = len(os.sched_getaffinity(0))
    memory = psutil.virtual_memory().total / 2**30
    gpus = len(list(Path("/dev").glob("nvidia[0-9]*"))) or "no"
    system = f"{platform.system()} {platform.release()}"
    return f"{cores} cores ({processor()}), {memory:.0f} GiB, {gpus} GPU, {system}"


def processor() -> str:
    """The processor's model, as /proc/cpuinfo has it."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def versions() -> dict[str, str]:
    """Python and the packages that matter, where they are installed."""
    found = {"Python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue  # not measured beside us
    return found
