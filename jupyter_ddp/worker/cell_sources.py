"""The source of cells, for tracebacks, debuggers and `inspect`: for as long as somebody may ask for it.

Owns cells' entries in `linecache` and in IPython's map of their file names.
"""

from __future__ import annotations

import linecache
import warnings
import weakref
from collections import deque
from collections.abc import Iterable, Iterator
from types import CodeType

_format_warning = warnings.formatwarning  # as Python has it
KEPT_CELLS = 100
"""Of cells of which nothing is left the source of the last is kept: a debugger may ask for it."""


class CellSources:
    """`names`: IPython's map, to the cells' prompt numbers."""

    def __init__(self, names: dict[str, int]) -> None:
        self._names = names
        self._passing: deque[str] = deque()
        self._lasting: dict[str, list[weakref.ref[CodeType]]] = {}
        """Cells that define something, with all code that they were compiled to."""
        self._enough = KEPT_CELLS
        self._last = ""
        """The file name of the cell that was added last: the one that runs."""

    def add(self, name: str, count: int, source: str) -> None:
        """A cell is about to be compiled under this name."""
        self._names[name], self._last = count, name
        linecache.cache[name] = (len(source), None, source.splitlines(keepends=True), name)
        if "def " in source or "lambda" in source or "class " in source:
            self._lasting[name] = []
            return
        self._passing.append(name)
        if len(self._passing) > KEPT_CELLS:
            self._forget(self._passing.popleft())

    def label(self, name: str) -> tuple[str, str] | None:
        """What a traceback calls a cell's file, in two words; None for other files.

        The cell that runs has no number: a notebook that is run again by a tool that counts otherwise
        (nbval does) is to show the same.
        """
        if name == self._last:
            return "This", "cell"
        return ("Cell", f"In[{self._names[name]}]") if name in self._names else None

    def format_warning(
        self,
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        line: str | None = None,
    ) -> str:
        """As Python writes a warning, but with a cell's name instead of its file's."""
        if (label := self.label(filename)) is not None:
            line = linecache.getline(filename, lineno) if line is None else line
            filename = " ".join(label)
        return _format_warning(message, category, filename, lineno, line)

    def compiled(self, name: str, codes: Iterable[CodeType]) -> None:
        """This is the cell's code: with the last piece of it goes the need for its source."""
        if name not in self._lasting:
            return
        self._lasting[name] = [weakref.ref(code) for code in _with_nested(codes)]
        if len(self._lasting) > self._enough:
            for other, pieces in list(self._lasting.items()):
                if all(piece() is None for piece in pieces):
                    del self._lasting[other]
                    self._forget(other)
            self._enough = 2 * len(self._lasting) + KEPT_CELLS

    def _forget(self, name: str) -> None:
        linecache.cache.pop(name, None)
        self._names.pop(name, None)


def _with_nested(codes: Iterable[CodeType]) -> Iterator[CodeType]:
    for code in codes:
        yield code
        yield from _with_nested(const for const in code.co_consts if isinstance(const, CodeType))
