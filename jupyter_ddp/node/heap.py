"""What makes the memory of a forked process stay shared with the one it was forked from.

A page is copied as soon as one of its two owners writes to it. So before forking: no garbage that a
collection would touch, and no free slots between live objects, which new objects would be put into.
"""

from __future__ import annotations

import ctypes
import gc
import os
import re
import sys
import tempfile

# A line of CPython's statistics of its small-object allocator: class, size, pools, in use, available.
_SIZE_CLASS = re.compile(rb"^ *\d+ +(\d+) +\d+ +\d+ +(\d+) *$", re.MULTILINE)
_BYTES_OVERHEAD = sys.getsizeof(b"")


def settle(collect: bool) -> list[list[bytes]]:
    """Prepare this process to be forked from. What is returned must be kept, or the slots are free again.

    `collect` garbage only where nobody waits: it takes a third of a second.
    """
    if collect:
        gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    filling = _fill_free_slots()
    gc.freeze()
    return filling


def _fill_free_slots() -> list[list[bytes]]:
    """Objects in the free slots of pages that are in use: 2 MB of them keep 5 MB per process shared."""
    filling: list[list[bytes]] = []
    for size, available in _SIZE_CLASS.findall(_allocator_statistics()):
        length = int(size) - _BYTES_OVERHEAD
        if length > 0:
            filling.append([bytes(length) for _ in range(int(available))])
    return filling


def _allocator_statistics() -> bytes:
    """`sys._debugmallocstats()`, which writes to fd 2 and nowhere else; nothing where it is missing."""
    if not hasattr(sys, "_debugmallocstats"):
        return b""
    with tempfile.TemporaryFile() as file:
        stderr = os.dup(2)
        os.dup2(file.fileno(), 2)
        try:
            sys._debugmallocstats()
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
        file.seek(0)
        return file.read()
