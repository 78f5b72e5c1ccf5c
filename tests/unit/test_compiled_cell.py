"""A cell's code that was compiled once runs as if each rank had compiled it."""

from __future__ import annotations

import traceback
from types import CodeType
from typing import Any

import pytest

from jupyter_ddp.core.compiled_cell import cell_file, pack, unpack

NESTED = """
def outer():
    class Inner:
        def method(self):
            return 1 / 0
    return Inner()
"""


def packed(source: str, file: str) -> bytes:
    return pack(compile(source, "<elsewhere>", "exec"), file)


def test_the_code_does_what_the_source_says() -> None:
    """What comes out of the bytes runs."""
    names: dict[str, Any] = {}
    code = unpack(packed("x = [n * n for n in range(3)]", "<cell>"))
    assert isinstance(code, CodeType)
    exec(code, names)
    assert names["x"] == [0, 1, 4]


def test_every_function_in_it_has_the_cells_file_name() -> None:
    """A traceback through a method of a class in a function names the cell in each of its frames."""
    names: dict[str, Any] = {}
    file = cell_file(3, 7)
    code = unpack(packed(NESTED + "outer().method()\n", file))
    assert code is not None
    with pytest.raises(ZeroDivisionError) as raised:
        exec(code, names)
    files = [frame.filename for frame in traceback.extract_tb(raised.tb)][1:]
    assert files == [file, file]


def test_code_of_another_python_is_not_taken() -> None:
    """Its first bytes tell, as in a .pyc file; none at all is no code either."""
    assert unpack(b"\x00\x00" + packed("pass", "<cell>")[2:]) is None
    assert unpack(b"") is None


def test_a_cells_file_is_named_by_its_prompt() -> None:
    """By the prompt's number where there is one; two cells of one prompt differ."""
    assert cell_file(3, 7) == "<ipython-input-7-cell-3>"
    assert cell_file(4, 7) != cell_file(3, 7)
    assert cell_file(3, 0) == "<ipython-input-3-cell-3>"
