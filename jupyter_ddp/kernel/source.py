"""A cell's source, transformed and checked once, before any rank sees it."""

from __future__ import annotations

import ast
import functools
import inspect
import keyword
import re
import warnings
from typing import Any

from IPython.core.getipython import get_ipython
from IPython.core.inputtransformer2 import TransformerManager
from msgspec import Struct

from jupyter_ddp.core.advice import mentions_collective
from jupyter_ddp.core.errors import UsageError

_ESCAPES = re.compile(r"[%!?]|^\s*(?:[,;/>]|\.\.\.|In ?\[|\[)|\A\s", re.MULTILINE)
"""What IPython's own transformations begin with; a cell with none of it is Python as it stands."""

_STATEMENT = re.compile(rf"(?:{'|'.join(keyword.kwlist)})\b")
"""No magic is named like one of Python's own words."""


class PreparedSource(Struct, frozen=True):
    """Plain Python, with the notebook cell's line numbers.

    `awaits`: it uses top-level await; `shows`: its last statement is an expression. `tree`: its syntax
    tree, where it may call a collective.
    """

    source: str
    awaits: bool
    shows: bool
    tree: ast.Module | None = None


class _Silence:
    """No warning about the source inside: the ranks compile it again, and warn."""

    def __enter__(self) -> None:
        # As warnings.catch_warnings does it, without its copies; the compiler asks for this list alone.
        self._before, warnings.filters = warnings.filters, [("ignore", None, Warning, None, 0)]

    def __exit__(self, *_: object) -> None:
        warnings.filters = self._before


def prepare(cell: str, first_line: int = 1, shell: Any = None) -> PreparedSource:
    """Turn a cell into what a rank runs, by the transformations of `shell`, the notebook's if None.

    Raises UsageError for an empty cell or a syntax error.
    """
    if not cell.strip():
        raise UsageError("the cell is empty: write the code for the ranks below %%ddp")
    try:
        # Transforming drops empty lines at the top: the tracebacks' line numbers count them.
        leading = len(cell) - len(cell.lstrip("\n"))
        source = "\n" * (first_line - 1 + leading) + _transformed(cell, shell or get_ipython())
        with _Silence():
            tree = ast.parse(source)
            code = compile(tree, "<cell>", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)
    except SyntaxError as error:
        where = f"line {error.lineno}: " if error.lineno else ""
        text = f" in {error.text.strip()!r}" if error.text and error.text.strip() else ""
        raise UsageError(f"{where}{error.msg}{text}; nothing was run") from None
    except (ValueError, RecursionError, MemoryError) as error:
        raise UsageError(f"the cell cannot be compiled: {error}; nothing was run") from None
    shows = bool(tree.body) and isinstance(tree.body[-1], ast.Expr)
    looked_at = tree if mentions_collective(source) else None
    return PreparedSource(source, bool(code.co_flags & inspect.CO_COROUTINE), shows, looked_at)


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
