"""Which frames are the user's, and how a place in them is named."""

from __future__ import annotations

import sysconfig
from collections.abc import Callable
from pathlib import Path, PurePath

OURS = str(Path(__file__).parents[1]) + "/"
_LIBRARIES = (OURS, *{sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")})


def is_users(filename: str, is_cell_file: Callable[[str], bool]) -> bool:
    """Code of a cell, or of a module of the user's own."""
    return is_cell_file(filename) or not (filename.startswith(_LIBRARIES) or filename.startswith("<"))


def place_of(filename: str, line: int, is_cell_file: Callable[[str], bool]) -> str:
    """ "line 3" of a cell, or "data.py:31"."""
    return f"line {line}" if is_cell_file(filename) else f"{PurePath(filename).name}:{line}"
