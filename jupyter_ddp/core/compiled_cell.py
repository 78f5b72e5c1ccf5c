"""A cell's code, compiled once in the notebook kernel, for all ranks of the same Python.

Compiling takes a rank several times as long as a short cell's every other step, and N ranks share few
cores while they do it.
"""

from __future__ import annotations

import marshal
from importlib.util import MAGIC_NUMBER
from types import CodeType


def cell_file(cell: int, count: int) -> str:
    """The file name of a cell's code in tracebacks. `count`: the notebook's prompt number, 0 for none.

    It begins as IPython's own do, so that tools know it for a cell's.
    """
    return f"<ipython-input-{count or cell}-cell-{cell}>"


def pack(code: CodeType, file: str) -> bytes:
    """`code` as bytes, as if it had been compiled under the name `file`."""
    return MAGIC_NUMBER + marshal.dumps(_renamed(code, file))


def unpack(packed: bytes) -> CodeType | None:
    """The code; None where it is of another Python, whose code objects differ, or there is none."""
    if not packed.startswith(MAGIC_NUMBER):
        return None
    code: CodeType = marshal.loads(packed[len(MAGIC_NUMBER) :])
    return code


def _renamed(code: CodeType, file: str) -> CodeType:
    inner = tuple(_renamed(it, file) if isinstance(it, CodeType) else it for it in code.co_consts)
    return code.replace(co_filename=file, co_consts=inner)
