"""A cell's source, transformed and checked once, before any rank sees it."""

from __future__ import annotations

import ast
import functools
import inspect
import keyword
import re
import warnings
from types import CodeType
from typing import Any

from IPython.core.getipython import get_ipython
from IPython.core.inputtransformer2 import TransformerManager
from msgspec import Struct

from jupyter_ddp.core.advice import mentions_collective
from jupyter_ddp.core.compiled_cell import pack
from jupyter_ddp.core.errors import UsageError

_ESCAPES = re.compile(r"[%!?]|^\s*(?:[,;/>]|\.\.\.|In ?\[|\[)|\A\s", re.MULTILINE)
"""What IPython's own transformations begin with; a cell with none of it is Python as it stands."""

_STATEMENT = re.compile(rf"(?:{'|'.join(keyword.kwlist)})\b")
"""No magic is named like one of Python's own words."""

_REMEMBERED_CHARS = 64 * 1024
"""A longer cell is compiled each time that it runs: its syntax tree would take megabytes."""


class PreparedSource(Struct, frozen=True):
    """Plain Python, with the notebook cell's line numbers.

    `awaits`: it uses top-level await; `shows`: its last statement is an expression. `tree`: its syntax
    tree, where it may call a collective. `code`: it compiled, where a rank can take it as it is.
    """

    source: str
    awaits: bool
    shows: bool
    tree: ast.Module | None = None
    code: CodeType | None = None

    def packed(self, file: str) -> bytes:
        """The code under this file name, for the ranks; empty where they compile the source themselves."""
        return b"" if self.code is None else pack(self.code, file)


class _Warnings:
    """Inside, what the compiler has to warn of is ignored, or an error: `action`."""

    def __init__(self, action: str) -> None:
        self._filters = [(action, None, Warning, None, 0)]

    def __enter__(self) -> None:
        # As warnings.catch_warnings does it, without its copies; the compiler asks for this list alone.
        self._before, warnings.filters = warnings.filters, self._filters

    def __exit__(self, *_: object) -> None:
        warnings.filters = self._before


def prepare(cell: str, first_line: int = 1, shell: Any = None) -> PreparedSource:
    """Turn a cell into what a rank runs, by the transformations of `shell`, the notebook's if None.

    Raises UsageError for an empty cell or a syntax error.
    """
    if not isinstance(cell, str):
        raise UsageError(f"{type(cell).__name__} is no source: a cell's text is wanted; nothing was run")
    if not cell.strip():
        raise UsageError("the cell is empty: write the code for the ranks below %%ddp")
    try:
        # Transforming drops empty lines at the top: the tracebacks' line numbers count them.
        leading = len(cell) - len(cell.lstrip("\n"))
        source = "\n" * (first_line - 1 + leading) + _transformed(cell, shell or get_ipython())
        return _prepared_again(source) if len(source) <= _REMEMBERED_CHARS else _prepared(source)
    except SyntaxError as error:
        where = f"line {error.lineno}: " if error.lineno else ""
        text = f" in {error.text.strip()!r}" if error.text and error.text.strip() else ""
        raise UsageError(f"{where}{error.msg}{text}; nothing was run") from None
    except (ValueError, RecursionError, MemoryError) as error:
        raise UsageError(f"the cell cannot be compiled: {error}; nothing was run") from None


def _prepared(source: str) -> PreparedSource:
    """Of plain Python. Raises SyntaxError, or what else the compiler does."""
    tree, code, warns = _compiled(source)
    shows = bool(tree.body) and isinstance(tree.body[-1], ast.Expr)
    looked_at = tree if mentions_collective(source) else None
    # Where a value is to be shown, a rank's own settings say which, and it is the ranks that warn.
    ready = None if shows or warns else code
    return PreparedSource(source, bool(code.co_flags & inspect.CO_COROUTINE), shows, looked_at, ready)


_prepared_again = functools.lru_cache(maxsize=8)(_prepared)
"""A cell is often run again as it is; it depends on nothing but its text."""


def _compiled(source: str) -> tuple[ast.Module, CodeType, bool]:
    """(the syntax tree, the code, whether the compiler has something to warn of). Raises SyntaxError."""
    try:
        with _Warnings("error"):
            return *_compile(source), False
    except SyntaxError:  # it may be a warning
        with _Warnings("ignore"):
            return *_compile(source), True


def _compile(source: str) -> tuple[ast.Module, CodeType]:
    tree = ast.parse(source)
    return tree, compile(tree, "<cell>", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)


def _transformed(cell: str, shell: Any) -> str:
    """As IPython's transformations leave it.

    Most cells have nothing for them to do, which is seen sooner than IPython's tokenizer would see it.
    """
    manager = TransformerManager() if shell is None else shell.input_transformer_manager
    if _ESCAPES.search(cell) or _transforms(manager) != _usual_transforms():
        return str(shell.transform_cell(cell) if shell is not None else manager.transform_cell(cell))
    source = cell if cell.endswith("\n") else cell + "\n"
    if shell is None:
        return source
    if source.count("\n") == 1 and not _STATEMENT.match(source):  # it may be a magic without its sign
        source = shell.prefilter_manager.prefilter_lines(source) + "\n"
    if not shell.input_transformers_post:
        return source
    lines = source.splitlines(keepends=True)
    for transform in shell.input_transformers_post:
        lines = transform(lines)
    return "".join(lines)


def _transforms(manager: TransformerManager) -> tuple[list[Any], ...]:
    return manager.cleanup_transforms, manager.line_transforms, manager.token_transformers


@functools.cache
def _usual_transforms() -> tuple[list[Any], ...]:
    return _transforms(TransformerManager())
