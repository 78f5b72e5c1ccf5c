"""A cell's source, transformed and checked once, before any rank sees it."""

from __future__ import annotations

import ast
import inspect
import warnings

from IPython.core.getipython import get_ipython
from IPython.core.inputtransformer2 import TransformerManager
from msgspec import Struct

from jupyter_ddp.core.errors import UsageError


class PreparedSource(Struct, frozen=True):
    """Plain Python, with the notebook cell's line numbers. `awaits`: it uses top-level await."""

    source: str
    awaits: bool


def prepare(cell: str, first_line: int = 1) -> PreparedSource:
    """Turn a cell into what a rank runs. Raises UsageError for an empty cell or a syntax error."""
    if not cell.strip():
        raise UsageError("the cell is empty: write the code for the ranks below %%ddp")
    shell = get_ipython()
    transform = shell.transform_cell if shell is not None else TransformerManager().transform_cell
    try:
        # Transforming drops empty lines at the top: the tracebacks' line numbers count them.
        leading = len(cell) - len(cell.lstrip("\n"))
        source = "\n" * (first_line - 1 + leading) + transform(cell)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the ranks compile it again, and warn
            code = compile(source, "<cell>", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)
    except SyntaxError as error:
        where = f"line {error.lineno}: " if error.lineno else ""
        text = f" in {error.text.strip()!r}" if error.text and error.text.strip() else ""
        raise UsageError(f"{where}{error.msg}{text}; nothing was run") from None
    except (ValueError, RecursionError, MemoryError) as error:
        raise UsageError(f"the cell cannot be compiled: {error}; nothing was run") from None
    return PreparedSource(source, bool(code.co_flags & inspect.CO_COROUTINE))
